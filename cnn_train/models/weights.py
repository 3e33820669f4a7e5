"""Adapting a state_dict to a network: another head, number of channels, norm or encoder, dense layers as filters."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Literal

import torch
from torch import Tensor, nn

from cnn_train.errors import ConfigError
from cnn_train.models.classification import builder, builder_names
from cnn_train.models.classification.densenet import from_old_torchvision
from cnn_train.models.folding import fold_norms
from cnn_train.models.network import backbone_of, classification_name

# What wrappers put before every name: DataParallel, torch.compile, Lightning modules, segmentation networks.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "backbone.", "encoder.")
Status = Literal["loaded", "adapted", "fresh", "unused"]


@dataclass(frozen=True)
class Row:
    """What became of one tensor, of the network or, where it is unused, of the file."""

    name: str
    shape: tuple[int, ...]
    status: Status
    how: str = ""


@dataclass
class Report:
    """What became of every tensor; `notes` are what follows from it for training."""

    source: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, status: Status) -> list[Row]:
        return [row for row in self.rows if row.status == status]

    def lines(self) -> list[str]:
        """A line for each status that occurs."""
        total = len(self.rows) - len(self.of("unused"))
        lines = [f"loaded   {len(self.of('loaded'))} of {total} tensors"]
        for how in dict.fromkeys(row.how for row in self.of("adapted")):
            lines.append(f"adapted  {_some(row.name for row in self.of('adapted') if row.how == how)}: {how}")
        for status in ("fresh", "unused"):
            if rows := self.of(status):
                lines.append(f"{status:<8} {_some(row.name for row in rows)}")
        return [*lines, *(f"note     {note}" for note in self.notes)]

    def as_csv(self) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["tensor", "shape", "status", "how"])
        writer.writerows([row.name, "x".join(map(str, row.shape)), row.status, row.how] for row in self.rows)
        return text.getvalue()


def load_weights(
    network: nn.Module,
    state: Mapping[str, Tensor],
    source: object,
    norm_eps: float = 1e-5,
    classes: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Report:
    """Load a state_dict that came from `source`; layers whose shape differs (another head) keep their start.

    An encoder also takes the weights of its classification network, and a dense layer turned into a convolution those
    of the dense one. The first convolution is folded to the number of channels that the images have, and batch norm,
    with `norm_eps`, into the convolution before it where the network has no norms. `classes` are the names of the
    file's and of the network's classes: where they differ, the last layer takes those of the same name. Raises
    ConfigError if fewer than half of the network's kernels, or of its encoder's, are found.
    """
    own = network.state_dict()
    state = without_prefix(from_old_torchvision(dict(state)), network, own)
    report = Report(str(source))
    state, folded, lost = fold_norms(network, state, norm_eps)
    if lost:
        report.notes.append(f"{len(lost)} batch norms follow no convolution and are lost: {_some(lost)}")
    stem = next((f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Conv2d)), "")
    head = last_layer(network) if classes is not None and list(classes[0]) != list(classes[1]) else set()
    fitting: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, weight in own.items():
        theirs = name if name in state else classification_name(network, name)
        given = state.get(theirs)
        if given is None:
            report.rows.append(Row(name, tuple(weight.shape), "fresh", "not in the file"))
            continue
        used.add(theirs)
        if classes is not None and name in head and given.shape[:1] == (len(classes[0]),):
            adapted, how = by_class(given, weight, *classes)
        else:
            adapted, how = adapt(given, weight, name == stem)
        if adapted is None:
            shape = "x".join(map(str, given.shape))
            report.rows.append(Row(name, tuple(weight.shape), "fresh", how or f"{shape} in the file"))
            continue
        fitting[name] = adapted
        how = how or ("batch norm folded into the convolution" if theirs in folded else "")
        report.rows.append(Row(name, tuple(weight.shape), "adapted" if how else "loaded", how))
    unused = [name for name in state if name not in used]
    report.rows += [Row(name, tuple(state[name].shape), "unused") for name in unused]
    check_enough(network, own, state, fitting, used, source)
    dropped = sum(name.endswith("running_mean") for name in unused)
    if dropped and not any(name.endswith("running_mean") for name in own):
        report.notes.append(
            f"the running statistics of {dropped} batch norms are dropped: this network's norms compute their own from "
            "each image, so its scores mean something only after some training"
        )
    network.load_state_dict(fitting, strict=False)
    return report


def without_prefix(state: dict[str, Tensor], network: nn.Module, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with those prefixes of wrappers taken off that keep its names from being the network's."""
    names = set(own) | {classification_name(network, name) for name in own}
    while True:
        candidates = [state, *(_stripped(state, prefix) for prefix in PREFIXES)]
        best = max(candidates, key=lambda candidate: len(names & candidate.keys()))
        if best is state:
            # A wrapper in a wrapper: what becomes known only when both are gone.
            twice = [_stripped(_stripped(state, first), second) for first in PREFIXES for second in PREFIXES]
            best = max([state, *twice], key=lambda candidate: len(names & candidate.keys()))
            if best is state:
                return state
        state = best


def _stripped(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if not any(name.startswith(prefix) for name in state):
        return state
    rest = {name: value for name, value in state.items() if not name.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)} | rest


def adapt(given: Tensor, weight: Tensor, is_stem: bool) -> tuple[Tensor | None, str]:
    """A tensor of a file in the shape that the network has, and how; None if it is of something else."""
    how = ""
    if given.ndim == 2 and weight.ndim == 4 and given.numel() == weight.numel():
        given, how = given.view(weight.shape), "dense to convolution"
    if is_stem and given.ndim == weight.ndim and given.size(1) != weight.size(1):
        how = f"folded from {given.size(1)} to {weight.size(1)} channels"
        given = fold(given, weight.size(1))
    return (given, how) if given.shape == weight.shape else (None, "")


def last_layer(network: nn.Module) -> set[str]:
    """The names of the tensors of the last convolution or dense layer, and of those of auxiliary classifiers."""
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    ends = {layers[-1], *(name for name in layers if name.startswith("aux"))} if layers else set()
    return {f"{name}.{part}" for name in ends for part in ("weight", "bias")}


def by_class(given: Tensor, weight: Tensor, theirs: Sequence[str], ours: Sequence[str]) -> tuple[Tensor | None, str]:
    """The rows (K, ...) of a last layer for other classes: those of the same name, the others as they start."""
    common = [name for name in ours if name in theirs]
    if not common or given.shape[1:] != weight.shape[1:] or weight.size(0) != len(ours):
        return None, "of other classes in the file"
    rows = weight.clone()
    for index, name in enumerate(ours):
        if name in theirs:
            rows[index] = given[list(theirs).index(name)]
    return rows, f"{len(common)} of {len(ours)} classes by name, the others fresh"


def check_enough(
    network: nn.Module,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    fitting: Mapping[str, Tensor],
    used: set[str],
    source: object,
) -> None:
    """ConfigError unless half of the network's kernels are found, or half of its encoder's, or of the file's."""
    if not fitting:
        raise ConfigError(
            f"{source} holds no weight of this network; it begins with {next(iter(state), 'nothing')!r}{_advice(state)}"
        )
    kernels = [name for name, weight in own.items() if weight.ndim > 1]
    encoder = [name for name in kernels if backbone_of(network) is not None and name.startswith("backbone.")]
    found = [name for name in kernels if name in fitting]
    shares = [len([name for name in part if name in fitting]) / len(part) for part in (kernels, encoder) if part]
    if shares and max(shares) < 0.5:
        raise ConfigError(
            f"{source} has {len(found)} of this network's {len(kernels)} convolutions and dense layers, fewer than "
            f"half{_advice(state)}"
        )


def _advice(state: Mapping[str, Tensor]) -> str:
    likely = looks_like(state)
    return f"; it looks like {likely}" if likely else ""


def _leave(network: nn.Module, act: object) -> None:
    """Leave the weights as they are made: initializing them is most of the time."""


def looks_like(state: Mapping[str, Tensor]) -> str | None:
    """The classification network whose kernels a state_dict has, by names and shapes; None if none is near."""
    theirs = {(name, tuple(value.shape)) for name, value in state.items() if value.ndim > 1}
    heads = {name: shape for name, shape in theirs if len(shape) == 2}
    best, likeness = None, 0.8
    for name in builder_names():
        build = builder(name)
        try:
            with torch.device("meta"):
                network = build(layers=replace(signature(build).parameters["layers"].default, initializer=_leave))
        except (ValueError, TypeError):
            continue
        kernels = {(key, tuple(value.shape)) for key, value in network.state_dict().items() if value.ndim > 1}
        # Another number of classes is no other network.
        same = sum(kernel in theirs or (len(kernel[1]) == 2 and kernel[0] in heads) for kernel in kernels)
        share = same / max(len(kernels), len(theirs), 1)
        if share > likeness:
            best, likeness = name, share
    return best


def fold(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """A convolution's weight (out, in, h, w) for another number of input channels: (out, channels, h, w).

    Channels are dealt out in turn: fewer ones are the sums of those dealt to them, more are copies that share the
    original. To an image whose channels are all alike the convolution answers as before.
    """
    given = weight.size(1)
    share = torch.zeros(channels, given, dtype=weight.dtype)
    for i in range(max(given, channels)):
        share[i % channels, i % given] = 1
    return torch.einsum("oihw,ci->ochw", weight, share / share.sum(0))


def _some(names: Iterable[str], most: int = 4) -> str:
    """Some names of many, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
