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

    from cnn_train.tasks.task import Task


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
    """Train `steps` steps and keep their digests; save a checkpoint after `save_at`, or go on from the one there is."""
    from cnn_train.experiment.build import build_task
    from cnn_train.experiment.network import build_network_and_data
    from cnn_train.experiment.state import set_epoch
    from cnn_train.experiment.trainer import build_trainer, quiet_libraries
    from cnn_train.runs import checkpoint
    from cnn_train.training.callbacks.callback import Callback

    class Enough(BaseException):
        """The steps are done."""

    class Observer(Callback):
        def on_step(self, task: "Task") -> None:
            step = task.progress.step
            trace[step] = [*kept, *weights(task)]
            kept.clear()
            if step == save_at and folder is not None:
                checkpoint.save(task.training_state(), folder / "last.ckpt")
            if step >= steps:
                raise Enough

    cfg = cfg.copy()
    cfg.logger = None
    with quiet_libraries():
        network, data = build_network_and_data(cfg)
        task = build_task(cfg, network, data)
        task.callbacks = [Observer()]
        trainer = build_trainer(cfg, folder or Path(tempfile.gettempdir()))
        if resume and folder is not None:
            task.resume_state = state = checkpoint.load(folder / "last.ckpt")
            set_epoch(trainer, state["progress"]["epoch"])
        kept = watch(task)
        with suppress(Enough):
            trainer.fit(task)


def watch(task: "Task") -> list[tuple[str, str]]:
    """Let the network keep, in the list given back, digests of its input, each layer's output and each gradient."""
    from torch import Tensor

    kept: list[tuple[str, str]] = []

    def before(module: object, inputs: "tuple[Tensor, ...]") -> None:
        kept.append(("the batch of images", digest(inputs[0])))

    task.network.register_forward_pre_hook(before)
    for name, module in task.network.named_modules():
        if not any(True for _ in module.children()):

            def after(module: object, inputs: object, output: object, name: str = name) -> None:
                if isinstance(output, Tensor):
                    kept.append((f"the output of {name}", digest(output)))

            module.register_forward_hook(after)
    for name, parameter in task.network.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(partial(keep_gradient, kept, name))
    return kept


def keep_gradient(kept: list[tuple[str, str]], name: str, gradient: "Tensor") -> None:
    kept.append((f"the gradient of {name}", digest(gradient)))


def weights(task: "Task") -> list[tuple[str, str]]:
    return [(f"the weights {name}", digest(tensor)) for name, tensor in task.network.state_dict().items()]


def digest(tensor: "Tensor") -> str:
    """Of the bits, on the CPU."""
    from torch import uint8

    content = tensor.detach().cpu().contiguous().reshape(-1).view(uint8).numpy()
    return hashlib.blake2b(content.tobytes(), digest_size=16).hexdigest()
