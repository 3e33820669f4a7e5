"""Data sets, and batches whose order and augmentation are pure functions of (seed, epoch, sample index)."""
