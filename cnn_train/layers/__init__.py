"""Layers and the one object that chooses them."""

from cnn_train.layers.factory import LayerFactory

__all__ = ["LayerFactory"]
