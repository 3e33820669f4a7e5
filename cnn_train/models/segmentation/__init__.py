"""Segmentation networks: (N, in_channels, H, W) -> (N, num_classes, H, W)."""
