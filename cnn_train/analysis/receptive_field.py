"""The receptive field of every layer of any CNN: `receptive_field(torchvision.models.googlenet(), (3, 224, 224))`."""

from collections.abc import Sequence

from torch import nn

from cnn_train.analysis.graph import LayerRow
from cnn_train.analysis.trace import trace


def receptive_field(module: nn.Module, input_size: Sequence[int]) -> list[LayerRow]:
    """Receptive field, jump and start per layer, in order of execution, for an image of `input_size` (C, H, W).

    The recurrences of Araujo, Norris & Sim (Distill 2019), extended to any graph, transposed convolutions, unpooling,
    interpolation and global operations. Layers that evaluation does not run are left out. ValueError names the
    operation that cannot be followed.
    """
    return [row for row in trace(module, input_size).rows if row.receptive_field is not None]
