"""Sweeps: planned, run as processes, ranked."""
