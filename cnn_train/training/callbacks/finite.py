"""What to do when the loss or a gradient is not finite: find where it began, and stop, skip the step or go back."""

import json
import logging
import math
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import Tensor, nn

from cnn_train.analysis.modules import leaves
from cnn_train.atomic import write_text
from cnn_train.data.random import seed_generators
from cnn_train.errors import DivergedError
from cnn_train.runs import checkpoint
from cnn_train.training.loop import Callback, Loop
from cnn_train.training.samples import names_of

log = logging.getLogger(__name__)

REPORT = "not_finite.json"
MOST = 10  # steps in a row that may be skipped, and times to go back


class NotFinite(Callback):
    """At a step whose loss or gradient is not finite: `stop` with DivergedError, `skip` its update, or `rollback`.

    A rollback takes the weights and the whole state of the last checkpoint, and continues with the batches that follow
    the bad one, as PaLM's training did (Chowdhery et al. 2022, section 5.1). Each such step is run again to name the
    first layer whose output or gradient was not finite; not_finite.json has the samples of its batch.
    """

    def __init__(self, policy: Literal["stop", "skip", "rollback"] = "stop"):
        self.policy = policy
        self.steps: list[int] = []

    def setup(self, trainer: L.Trainer, loop: Any, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = list(state["steps"])

    def on_not_finite(self, loop: Loop, step: int) -> None:
        report = examine(loop, step)
        if loop.trainer.is_global_zero:
            write_text(self.folder / REPORT, json.dumps(report, indent=2) + "\n")
        self.steps.append(step)
        in_a_row = self.steps[-MOST:] == list(range(step - MOST + 1, step + 1))
        if self.policy == "skip" and not in_a_row:
            log.warning("step %d skipped: %s", step, report["where"])
        elif self.policy == "rollback" and len(self.steps) <= MOST and (saved := self._go_back(loop)) is not None:
            log.warning("step %d: %s; going on from the state of step %d", step, report["where"], saved)
        else:
            raise DivergedError(self._message(report))

    def _message(self, report: dict[str, Any]) -> str:
        state = next((name for name in (checkpoint.LAST, checkpoint.PREVIOUS) if (self.folder / name).exists()), None)
        kept = f"{state} is from before" if state else "no checkpoint was due before"
        names = ", ".join(map(str, report["samples"][:2]))
        return (
            f"diverged at step {report['step']} (epoch {report['epoch']}): loss {report['loss']:.4g}, gradient norm "
            f"{report['gradient_norm']:.4g}, learning rate {report['learning_rate']:.3g}; {report['where']}; batch of "
            f"{len(report['samples'])}: {names}, ... in {self.folder / REPORT}; {kept}; try a smaller optimizer.lr"
            + (f" ({MOST} steps in a row were skipped)" if self.policy == "skip" else "")
            + (" or" if self.policy != "stop" else ",")
            + " trainer.gradient_clip=1"
            + (" or trainer.on_nan=skip" if self.policy == "stop" else "")
        )

    def _go_back(self, loop: Loop) -> int | None:
        """Take the state of the last checkpoint, but continue with the batches that come now; its step."""
        state, _ = checkpoint.load_newest(self.folder)
        if state is None:
            return None
        progress, now = state["progress"], loop.progress
        position = {"epoch": now.epoch, "step": now.step, "images": now.images}
        loop.load_training_state({**state, "progress": position, "curve": []})
        if progress["epoch"] != now.epoch:
            loop.sums = loop.no_sums()
        loop.optimizer.zero_grad(set_to_none=True)
        return progress["step"]


def examine(loop: Loop, step: int) -> dict[str, Any]:
    """Run the batches of a step (counted from 1) again, on the weights before it, and tell where it goes wrong.

    Running statistics and gradients are left as this leaves them.
    """
    progress, recipe = loop.progress, loop.recipe
    last = step - 1 - progress.epoch * progress.steps_per_epoch
    first = last - last % recipe.accumulate
    now = progress.step
    progress.step = progress.epoch * progress.steps_per_epoch + first
    batches = loop.train_batches()
    watch = Watch(loop.network)
    samples: list[int] = []
    loss, norm = math.nan, math.nan
    loop.optimizer.zero_grad(set_to_none=True)
    try:
        for position, batch in zip(range(first, last + 1), batches, strict=False):
            progress.step = progress.epoch * progress.steps_per_epoch + position
            seed_generators(recipe.seed, progress.step, device=loop.device)
            samples += batch.indices.tolist()
            watch.see("the images of the batch", batch.images)
            with loop.trainer.precision_plugin.forward_context():
                outputs = loop.network(loop.to_network(batch.images))
                value = loop.task.learn(outputs, batch.targets, batch.images.shape[-2:]).loss
            loss = float(value.detach())
            watch.see("the loss (every layer's output is finite)", value)
            value.backward()
        gradients = [p.grad for p in loop.parameters_in_order if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients)) if gradients else math.nan
        for name, parameter in loop.network.named_parameters():
            if parameter.grad is not None:
                watch.see(f"the gradient of {name}", parameter.grad)
    finally:
        progress.step = now
        watch.close()
    loop.optimizer.zero_grad(set_to_none=True)
    return {
        "step": step,
        "epoch": progress.epoch + 1,
        "loss": loss,
        "gradient_norm": norm,
        "learning_rate": loop.optimizer.param_groups[0]["lr"],
        "where": f"first not finite: {watch.first}" if watch.first else "it was finite when run again",
        "losses_before": loop.curve.losses[-5:],
        "samples": names_of(loop.data, "train", samples),
    }


class Watch:
    """Remembers the first of a network's weights, outputs and gradients, in the order of a step, that is not finite."""

    def __init__(self, network: nn.Module):
        self.first = ""
        for name, parameter in network.named_parameters():
            self.see(f"the weights {name}", parameter)
        self.handles = [module.register_forward_hook(self._hook(name, module)) for name, module in leaves(network)]

    def see(self, what: str, value: Tensor) -> None:
        if not self.first and value.is_floating_point() and not bool(value.detach().isfinite().all()):
            self.first = what

    def _hook(self, name: str, module: nn.Module) -> Any:
        layer = f"{name} ({type(module).__name__})"

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            self.see(f"the output of {layer}", output)
            if output.requires_grad:
                output.register_hook(lambda gradient: self.see(f"the gradient at the output of {layer}", gradient))

        return hook

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


class LossWatch(Callback):
    """Warns once of a loss that explodes, and once of one that stands still, with the likely cause.

    Judged by means over the steps between two points of the curve: ten times the least so far; or, after an epoch and
    twenty points, all within a hundredth of the first.
    """

    def __init__(self) -> None:
        self.means: list[float] = []
        self.seen = 0
        self.told: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"means": list(self.means), "told": sorted(self.told)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.means, self.told = list(state["means"]), set(state["told"])

    def on_validation_start(self, trainer: L.Trainer, loop: Any) -> None:
        if trainer.state.fn == "fit":
            self.on_step(loop)  # the epoch's last losses, before a checkpoint counts them as seen

    def on_epoch_end(self, loop: Loop) -> None:
        self.on_step(loop)

    def on_step(self, loop: Loop) -> None:
        if len(loop.curve.losses) == self.seen:
            return
        window = loop.curve.losses[self.seen :]
        self.seen = len(loop.curve.losses)
        self.means.append(sum(window) / len(window))
        first, last, least = self.means[0], self.means[-1], min(self.means)
        still = max(abs(mean - first) for mean in self.means) < 0.01 * abs(first)
        if last > 10 * max(least, 0.1) and last > first:
            advice = "a smaller optimizer.lr, scheduler.warmup_epochs or trainer.gradient_clip=1 usually helps"
            self._tell(loop, f"the loss explodes: {least:.3g} before, now {last:.3g}; {advice}")
        elif still and len(self.means) >= 20 and loop.progress.epoch >= 1:
            advice = "is optimizer.lr far too small or large, are units dead (callbacks=health), do the labels fit?"
            self._tell(loop, f"the loss stands still at {last:.4g}; {advice}")

    def _tell(self, loop: Loop, message: str) -> None:
        what = message.partition(":")[0].partition(" at ")[0]
        if what not in self.told and loop.trainer.is_global_zero:
            log.warning("step %d: %s", loop.progress.step, message)
        self.told.add(what)
