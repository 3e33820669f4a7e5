"""Fine-tuning: which parts of a network train, from which epoch on, and with what share of the learning rate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from cnn_train.layers.norm import NORMS
from cnn_train.models.network import backbone_of, stages_of
from cnn_train.training.progress import Progress

NEVER = 10**9  # the epoch at which a frozen part begins to train


@dataclass(frozen=True)
class Part:
    """A piece of a network between its input and its scores."""

    name: str
    parameters: list[nn.Parameter]
    norms: Sequence[nn.Module]


@dataclass(frozen=True)
class Finetune:
    """How a network with weights of another task is trained on.

    `trains` is "all", the "head" alone, the head and the "last_stage", or "gradual": the head from the first epoch on,
    and one stage more, from the last to the first, every `epochs_per_stage` epochs (Howard & Ruder 2018, section 3.3).

    `layer_decay` multiplies the learning rate once for each part between a part and the head (Clark et al. 2020, 0.8
    to 0.9; 0.65 to 0.75 for vision transformers). `frozen_norm` true keeps the running statistics of all norms; "auto"
    keeps those of the parts that do not train, and normalizes by them.
    """

    trains: Literal["all", "head", "last_stage", "gradual"] = "all"
    layer_decay: float = 1.0
    frozen_norm: Literal["auto", True, False] = "auto"
    epochs_per_stage: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether it is training as without it."""
        return self.trains == "all" and self.layer_decay == 1 and self.frozen_norm is not True

    def starts(self, count: int) -> list[int]:
        """The epoch from which each of `count` parts trains, the head last."""
        trained = {"all": count, "head": 1, "last_stage": 2, "gradual": count}[self.trains]
        every = self.epochs_per_stage if self.trains == "gradual" else 0
        return [(count - 1 - i) * every if i >= count - trained else NEVER for i in range(count)]

    def freeze(self, network: nn.Module, progress: Progress) -> None:
        """Let what never trains take no gradient, and hold running statistics until the epoch of `progress` comes."""
        if self.is_plain:
            return
        parts = parts_of(network)
        starts = self.starts(len(parts))
        for part, start in zip(parts, starts, strict=True):
            if start == NEVER:
                for parameter in part.parameters:
                    parameter.requires_grad_(False)
        held = {
            n: NEVER if self.frozen_norm is True else s for p, s in zip(parts, starts, strict=True) for n in p.norms
        }
        if self.frozen_norm is not False:
            network.register_forward_pre_hook(
                HeldNorms({norm: start for norm, start in held.items() if start}, progress)
            )

    def groups(self, groups: Iterable[dict[str, Any]], network: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Groups of an optimizer by parts, the head's first, each with its `lr` and the epoch it `starts` at."""
        if self.is_plain:
            return list(groups)
        parts = parts_of(network)
        starts = self.starts(len(parts))
        divided = []
        for index in reversed(range(len(parts))):
            members = set(parts[index].parameters)
            for group in groups:
                share = self.layer_decay ** (len(parts) - 1 - index)
                own = [p for p in group["params"] if p in members]
                rate = group.get("lr", lr) * share
                divided.append({**group, "params": own, "lr": rate, "starts": starts[index]})
        return [group for group in divided if group["params"]]

    def describe(self, network: nn.Module, lr: float) -> str:
        """Each part's learning rate, for the header of a run; "" where there is nothing to say."""
        if self.is_plain:
            return ""
        parts = parts_of(network)
        texts = []
        for index, (part, start) in reversed(list(enumerate(zip(parts, self.starts(len(parts)), strict=True)))):
            rate = f"{lr * self.layer_decay ** (len(parts) - 1 - index):.3g}"
            later = f" from epoch {start + 1}" if start else ""
            texts.append(f"{part.name} {'frozen' if start == NEVER else rate + later}")
        return ", ".join(texts)


class HeldNorms:
    """A hook before a network's forward: norms use their running statistics, unchanged, until they start to train."""

    def __init__(self, starts: dict[nn.Module, int], progress: Progress):
        self.starts = starts
        self.progress = progress

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for norm, start in self.starts.items():
            norm.training = network.training and self.progress.epoch >= start


def parts_of(network: nn.Module) -> list[Part]:
    """The network cut into parts, from the input to the head: its stages or its encoder's, or else its children."""
    encoder = backbone_of(network)
    stages = stages_of(encoder if encoder is not None else network)
    named = [(f"stage {i}", stage) for i, stage in enumerate(stages or (), start=1)] or _children(network)
    taken: set[nn.Parameter] = set()
    parts = []
    for name, module in named:
        parameters = [p for p in module.parameters() if p not in taken]
        taken |= set(parameters)
        parts.append(Part(name, parameters, [m for m in module.modules() if isinstance(m, NORMS)]))
    rest = [p for p in network.parameters() if p not in taken]
    known = {norm for part in parts for norm in part.norms}
    norms = [m for m in network.modules() if isinstance(m, NORMS) and m not in known]
    if stages is not None:
        parts.append(Part("head", rest, norms))
    elif rest:  # what belongs to no child, as a transformer's position embedding, stands at the input
        parts[0] = Part(parts[0].name, [*rest, *parts[0].parameters], [*norms, *parts[0].norms])
    return [part for part in parts if part.parameters or part.norms]


def _children(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The children that learn, in order; those of its sequences where it has few others."""

    def learning(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
        return [(prefix + name, m) for name, m in module.named_children() if next(m.parameters(), None) is not None]

    children = learning(network)
    if len(children) > 3:
        return children
    return [
        inner
        for name, child in children
        for inner in (learning(child, f"{name}.") if isinstance(child, nn.Sequential) else [(name, child)])
    ]
