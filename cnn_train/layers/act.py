"""Activations that torch has in another form."""

from torch import nn


class PReLU(nn.PReLU):
    """Rectifier with a learned slope below zero for each channel, or one for all (He et al. 2015, section 2.1)."""

    takes_channels = True

    def __init__(self, num_channels: int, shared: bool = False, init: float = 0.25):
        super().__init__(1 if shared else num_channels, init)
