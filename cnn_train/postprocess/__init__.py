"""What is done to predicted class probabilities after the network, by the image and by shape.

Each is a callable (images, probabilities) -> probabilities on one device: images (N, C, H, W) of values 0..255, not
normalized; probabilities (N, K, H, W) that sum to 1 over K. The labels are the result's `argmax(1)`. So they chain.
"""

from cnn_train.postprocess.crf import DenseCRF
from cnn_train.postprocess.morphology import Morphology

__all__ = ["DenseCRF", "Morphology"]
