"""A classification network seen as feature maps by stride, its strides traded for dilation where asked.

Holes instead of strides: Chen et al., "DeepLab", TPAMI 2018, section 3.1, https://arxiv.org/abs/1606.00915; multi-grid:
Chen et al. 2017, https://arxiv.org/abs/1706.05587, section 3.2.1; rates without a common divisor against gridding: Wang
et al., "Understanding Convolution for Semantic Segmentation", WACV 2018, https://arxiv.org/abs/1702.08502, section 3.2.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from cnn_train.layers import LayerFactory
from cnn_train.models.classification import builder
from cnn_train.models.network import min_size, stages_of

PROBE_SIZES = (1024, 512)
GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad")

Geometry = dict[nn.Module, dict[str, Any]]
Probe = tuple[list[tuple[int, int | None]], dict[nn.Module, int | None]]


class Encoder(nn.Module):
    """The stages of a classification network: (N, in_channels, H, W) -> one map (N, C_i, H_i, W_i) per stage.

    `network` has a property `stages`; its children that they use are registered here under their own names, those of a
    lone `features` under theirs, as in torchvision; the head is dropped. `channels` and `strides` describe the maps.

    `output_stride` bounds the stride: what would exceed it gets stride 1, and every window after it is dilated by as
    much as its input is now denser, so that the maps hold the old ones on a coarser grid. Poolings are not dilated;
    those that lose their stride are padded to keep the size, and even ones, which have no centre, become one wider (3x3
    in DeepLab v1).
    `dilate_strided` also dilates convolutions that lost their stride (PSPNet's and MobileNetV3's form).
    `eval_output_stride` is another bound for evaluation mode; `channels` and `strides` hold in training mode.

    `multi_grid` multiplies the dilations of the last stage, block by block; `hybrid` gives the blocks of each dilated
    stage the rates of a pattern such as (1, 2, 5) in turn.
    """

    channels: list[int]
    strides: list[int]

    def __init__(
        self,
        network: nn.Module,
        *,
        output_stride: int | None = None,
        eval_output_stride: int | None = None,
        multi_grid: Sequence[int] | None = None,
        hybrid: Sequence[int] | None = None,
        dilate_strided: bool = False,
        stages: Sequence[nn.Module] | None = None,
    ):
        super().__init__()
        if stages is None:
            stages = stages_of(network)
        if stages is None:
            raise ValueError(f"{type(network).__name__} has no feature maps by stride; choose another encoder")
        used = {id(module) for stage in stages for module in stage.modules()}
        children = dict(_used_children(network, used))
        self.prefix = ""  # of our keys in the classification network
        if list(children) == ["features"]:
            children, self.prefix = dict(children["features"].named_children()), "features."
        for name, child in children.items():
            self.add_module(name, child)
        # Views of the children above: a plain list, so that no parameter is registered twice.
        self.stages = list(stages)
        self.min_size = min_size(network)

        was_training = network.training
        network.eval()
        probe = maps, _ = _probe(self.stages)
        original = _geometry(self.stages)
        self._geometry_by_mode: dict[bool, Geometry] = {}
        for training, bound in ((False, eval_output_stride or output_stride), (True, output_stride)):
            _set_geometry(original)
            if bound is not None:
                _dilate(self.stages, probe, bound, dilate_strided)
            if hybrid is not None:
                _repeat_rates(self.stages, hybrid)
            if multi_grid is not None:
                _multiply_rates(self.stages[-1], multi_grid)
            self._geometry_by_mode[training] = _geometry(self.stages)
        if self._geometry_by_mode[True] != original:
            maps, _ = _probe(self.stages)
        network.train(was_training)
        self.channels = [channels for channels, _ in maps]
        self.strides = [stride or PROBE_SIZES[0] for _, stride in maps]

    def train(self, mode: bool = True) -> Self:
        _set_geometry(self._geometry_by_mode[mode])
        return super().train(mode)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def make_encoder(
    encoder: str | nn.Module,
    *,
    in_channels: int,
    layers: LayerFactory,
    network_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Encoder:
    """An Encoder of a classification network: built by its name with `network_options`, or given ready."""
    if isinstance(encoder, str):
        try:
            encoder = builder(encoder)(in_channels=in_channels, layers=layers, **(network_options or {}))
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise ValueError(
                f"{encoder} does not take all of {', '.join(network_options or {})}; "
                "leave out what it does not, by model.encoder_options=null, encoder_widths=null, stride_in_1x1=false"
            ) from error
    return Encoder(encoder, **options)


def _used_children(module: nn.Module, used: set[int]) -> Iterator[tuple[str, nn.Module]]:
    """Children that occur in the stages, without those parts of sequences that do not: they would get no gradient."""
    for name, child in module.named_children():
        if id(child) in used:
            yield name, child
        elif isinstance(child, nn.Sequential):
            parts = dict(_used_children(child, used))
            if len(parts) == len(child):
                yield name, child
            elif parts:
                kept = nn.Sequential()
                for part_name, part in parts.items():
                    kept.add_module(part_name, part)
                yield name, kept


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """Layers with a window or a stride: convolutions, poolings, subsampling shortcuts."""
    for layer in module.modules():
        if not list(layer.children()) and hasattr(layer, "stride"):
            yield layer


def _probe(stages: Sequence[nn.Module]) -> Probe:
    """(channels, stride) of the map after each stage, and the stride at the input of each layer; None: not a map.

    Computed without data from two input sizes, of whose difference a stride keeps its exact fraction whatever the
    padding.
    """
    whole = nn.Sequential(*stages)
    whole.eval()
    tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    empty = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    first = next(layer for layer in whole.modules() if isinstance(layer, nn.Conv2d))
    dtype = first.weight.dtype
    inputs: dict[nn.Module, list[int]] = {}
    outputs: dict[nn.Module, list[int]] = {}
    channels: dict[nn.Module, int] = {}

    def record(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.setdefault(layer, []).append(args[0].size(-1))
        outputs.setdefault(layer, []).append(output.size(-1))
        channels[layer] = output.size(1)

    handles = [layer.register_forward_hook(record) for layer in {*stages, *_leaves(whole)}]
    try:
        for size in PROBE_SIZES:
            images = torch.empty(1, first.in_channels, size, size, device="meta", dtype=dtype)
            with torch.no_grad():
                torch.func.functional_call(whole, empty, images)
    finally:
        for handle in handles:
            handle.remove()

    def stride(sizes: list[int]) -> int | None:
        difference = sizes[0] - sizes[-1]
        return round((PROBE_SIZES[0] - PROBE_SIZES[1]) / difference) if difference else None

    maps = [(channels[stage], stride(outputs[stage])) for stage in stages]
    return maps, {layer: stride(sizes) for layer, sizes in inputs.items()}


def _geometry(stages: Sequence[nn.Module]) -> Geometry:
    leaves = [leaf for stage in stages for leaf in _leaves(stage)]
    return {leaf: {name: getattr(leaf, name) for name in GEOMETRY if hasattr(leaf, name)} for leaf in leaves}


def _set_geometry(geometry: Geometry) -> None:
    for layer, attributes in geometry.items():
        for name, value in attributes.items():
            setattr(layer, name, value)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _dilate(stages: Sequence[nn.Module], probe: Probe, output_stride: int, dilate_strided: bool) -> None:
    """Bound the stride of every map by dilation, in place; `probe` describes the network before."""
    maps, input_strides = probe
    reachable = [stride for _, stride in maps if stride]
    if output_stride not in reachable:
        raise ValueError(
            f"output_stride must be one of this encoder's strides {sorted(set(reachable))}, got {output_stride}"
        )
    for layer in [leaf for stage in stages for leaf in _leaves(stage)]:
        before = input_strides.get(layer)
        if before is None:
            continue  # a squeezed map
        stride = _pair(layer.stride)[0]  # type: ignore[arg-type]
        lost = before * stride > output_stride and stride > 1
        if lost:
            new_stride = max(output_stride // before, 1)
            layer.stride = new_stride if isinstance(layer.stride, int) else (new_stride, new_stride)  # type: ignore[assignment]
        denser = before * stride if lost and dilate_strided else before
        _widen(layer, max(denser // output_stride, 1), lost)


def _widen(layer: nn.Module, factor: int, lost_stride: bool) -> None:
    """Dilate a convolution by `factor`; a pooling that lost its stride gets a centre and keeps the size."""
    window: Any = layer
    if isinstance(layer, nn.Conv2d):
        if max(layer.kernel_size) == 1:
            return
        window.dilation = (layer.dilation[0] * factor, layer.dilation[1] * factor)
        assert not isinstance(layer.padding, str)
        window.padding = (layer.padding[0] * factor, layer.padding[1] * factor)
    elif hasattr(layer, "kernel_size"):
        size = _pair(window.kernel_size)[0]
        if lost_stride and _pair(window.padding)[0] != (size - 1) / 2:  # torch's poolings cannot be dilated
            window.kernel_size, window.padding, window.ceil_mode = size | 1, size // 2, False
            if hasattr(layer, "count_include_pad"):
                window.count_include_pad = False


def _blocks(stage: nn.Module) -> list[nn.Module]:
    """The blocks of a stage that have windows wider than 1x1, inside out of nested sequences."""
    parts = [stage]
    while any(type(part) is nn.Sequential for part in parts):
        parts = [inner for part in parts for inner in (part if type(part) is nn.Sequential else [part])]
    return [part for part in parts if any(True for _ in _windows(part))]


def _windows(block: nn.Module) -> Iterator[nn.Conv2d]:
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1:
            yield layer


def _multiply_rates(stage: nn.Module, rates: Sequence[int]) -> None:
    blocks = _blocks(stage)
    if len(blocks) != len(rates):
        raise ValueError(
            f"multi_grid needs one rate for each of the {len(blocks)} blocks of the last stage, got {list(rates)}"
        )
    for block, rate in zip(blocks, rates, strict=True):
        for layer in _windows(block):
            _widen(layer, rate, lost_stride=False)


def _repeat_rates(stages: Sequence[nn.Module], pattern: Sequence[int]) -> None:
    """Give the blocks of each dilated stage the rates of `pattern` in turn instead of one rate."""
    for stage in stages:
        blocks = _blocks(stage)
        if not any(layer.dilation[0] > 1 for block in blocks for layer in _windows(block)):
            continue
        for index, block in enumerate(blocks):
            rate = pattern[index % len(pattern)]
            for layer in _windows(block):
                assert not isinstance(layer.padding, str)
                height, width = layer.padding
                layer.padding = (height // layer.dilation[0] * rate, width // layer.dilation[1] * rate)
                layer.dilation = (rate, rate)
