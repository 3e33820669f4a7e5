"""A run's first steps replayed, with a digest of every number, to compare bits."""

import hashlib
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from cnn_train.training.loop import Loop


# Of each step, digests of what went in and what came out: (name, digest) in the order of the computation.
Trace = dict[int, list[tuple[str, str]]]


def differences(cfg: "DictConfig", steps: int) -> list[str]:
    """What differs between replays of a run's first steps: the first step and the first thing in it; [] if nothing."""
    first: Trace = {}
    second: Trace = {}
    resumed: Trace = {}
    with tempfile.TemporaryDirectory() as folder:
        replay(cfg, Path(folder), steps, first, save_at=steps // 2)
        replay(cfg, None, steps, second)
        replay(cfg, Path(folder), steps, resumed, resume=True)
    found = [compare("the second time", first, second), compare("from the checkpoint", first, resumed)]
    return [text for text in found if text]


def compare(which: str, first: Trace, other: Trace) -> str:
    for step, digests in other.items():
        for (name, digest), (_, again) in zip(first[step], digests, strict=True):
            if digest != again:
                return f"step {step} {which}: {name} differs"
    return ""


def replay(
    cfg: "DictConfig", folder: Path | None, steps: int, trace: Trace, save_at: int | None = None, resume: bool = False
) -> None:
    """Train `steps` steps and keep their digests; save a checkpoint after `save_at`, or continue from it."""
    from cnn_train.experiment.build import prepare
    from cnn_train.experiment.hardware import Machine
    from cnn_train.experiment.state import set_epoch
    from cnn_train.experiment.trainer import quiet_libraries
    from cnn_train.runs import checkpoint
    from cnn_train.training.loop import Callback

    class Enough(BaseException):
        """The steps are done."""

    class Observer(Callback):
        def on_step(self, loop: "Loop") -> None:
            step = loop.progress.step
            trace[step] = [*kept, *weights(loop)]
            kept.clear()
            if step == save_at and folder is not None:
                checkpoint.save(loop.training_state(), folder / "last.ckpt")
            if step >= steps:
                raise Enough

    cfg = cfg.copy()
    cfg.logger = None
    with quiet_libraries():
        experiment = prepare(cfg, Machine.of(cfg.trainer), folder or Path(tempfile.gettempdir()), [Observer()])
        if resume and folder is not None:
            experiment.loop.resume_state = state = checkpoint.load(folder / "last.ckpt")
            set_epoch(experiment.trainer, state["progress"]["epoch"])
        kept = watch(experiment.loop)
        with suppress(Enough):
            experiment.trainer.fit(experiment.loop)


def watch(loop: "Loop") -> list[tuple[str, str]]:
    """Let the network keep, in the list given back, digests of its input, each layer's output and each gradient."""
    from torch import Tensor

    from cnn_train.analysis.modules import leaves

    kept: list[tuple[str, str]] = []

    def before(module: object, inputs: "tuple[Tensor, ...]") -> None:
        kept.append(("the batch of images", digest(inputs[0])))

    loop.network.register_forward_pre_hook(before)
    for name, module in leaves(loop.network):

        def after(module: object, inputs: object, output: object, name: str = name) -> None:
            if isinstance(output, Tensor):
                kept.append((f"the output of {name}", digest(output)))

        module.register_forward_hook(after)
    for name, parameter in loop.network.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(partial(keep_gradient, kept, name))
    return kept


def keep_gradient(kept: list[tuple[str, str]], name: str, gradient: "Tensor") -> None:
    kept.append((f"the gradient of {name}", digest(gradient)))


def weights(loop: "Loop") -> list[tuple[str, str]]:
    return [(f"the weights {name}", digest(tensor)) for name, tensor in loop.network.state_dict().items()]


def digest(tensor: "Tensor") -> str:
    """A hash of a tensor's bytes."""
    from torch import uint8

    content = tensor.detach().cpu().contiguous().reshape(-1).view(uint8).numpy()
    return hashlib.blake2b(content.tobytes(), digest_size=16).hexdigest()
