"""Detection networks: (N, in_channels, H, W) -> `Outputs`, what they say of each prior; no chance and no suppression.

Each has `priors(size)`, the boxes or points that its outputs refer to in images of (height, width), and
`decode(outputs, priors)`, boxes (N, P, 4) as corners in pixels and probabilities (N, P, num_classes) of them. What a
network learns from is its loss's (`cnn_train.tasks.box_losses`). Classes count from 0; where a paper has a background
class, it is a column of `Outputs.classes`, but not of what `decode` gives.
"""
