"""Which order of numbers in memory trains faster: planes of one channel, or the channels of a pixel together."""

from torch import nn

from cnn_train.layers.norm import NORMS


def channels_last_pays(network: nn.Module, on_gpu: bool) -> bool:
    """Whether the channels of a pixel should lie together.

    On a GPU they should, for its matrix units. On a CPU it is known of plain networks, without a norm and without
    transposed convolutions (a step of LeNet-5 takes 0.66 of the time, AlexNet 0.82, NIN 0.89), and of depthwise
    convolutions with batch norm (MobileNetV2 0.59); others take 0.8 to 1.3, by norm and size. See docs/performance.md.
    """
    if on_gpu:
        return True
    modules = list(network.modules())
    if not any(isinstance(m, nn.Conv2d) for m in modules):
        return False
    norms = [m for m in modules if isinstance(m, NORMS)]
    if not norms:
        return not any(isinstance(m, nn.ConvTranspose2d) for m in modules)
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in modules)
    return depthwise and all(isinstance(m, nn.BatchNorm2d) for m in norms)
