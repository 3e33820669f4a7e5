"""Run folders: made, found, written and read, with their checkpoints."""
