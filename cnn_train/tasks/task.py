"""The training step and its bookkeeping, on Lightning's loops.

Everything random in a step is a function of (seed, step), and every batch of (seed, epoch, index): a run that goes on
from a checkpoint repeats exactly what an undisturbed run does.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from cnn_train.data.data import Batch, Data
from cnn_train.data.random import seed_generators
from cnn_train.tasks.pictures import Picture
from cnn_train.training.callbacks.callback import Callback
from cnn_train.training.optim import EMA, faster_decoder, parameter_groups

log = logging.getLogger(__name__)

# One call of Lightning's loop costs about 0.6 ms, a step of LeNet-5 9 ms: several steps share a call.
STEPS_PER_CALL = 32
WORST = 64  # samples that a checkpoint remembers as the worst of a split


@dataclass(frozen=True)
class Recipe:
    """How to train: everything but the network, the loss and the data."""

    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Callable[[int, int, int], float]
    max_epochs: int
    schedule_start: int = 0
    schedule_epochs: int | None = None
    seed: int = 0
    accumulate: int = 1
    gradient_clip: float | None = None
    ema: float = 0.0
    ema_bias_correction: bool = False
    decay_norm_and_bias: bool = False
    decoder_lr_ratio: float = 1.0
    channels_last: bool = False
    limit_batches: int | None = None
    overfit_batches: int = 0
    same_batches: bool = False
    log_every: int = 50
    split_batches: int | None = 1  # None: as many parts as memory needs
    skip_not_finite: bool = False


@dataclass
class Sums:
    """Totals over the steps of an epoch so far, on the device."""

    loss: Tensor
    correct: Tensor
    count: Tensor
    images: Tensor

    @classmethod
    def zero(cls, device: torch.device) -> "Sums":
        return cls(*(torch.zeros((), dtype=torch.float64, device=device) for _ in fields(cls)))


@dataclass
class Progress:
    """Where training stands; `step` counts the batches of all epochs."""

    epoch: int = 0
    step: int = 0
    steps_per_epoch: int = 0
    total_steps: int = 0
    images: int = 0

    @property
    def step_in_epoch(self) -> int:
        return self.step - self.epoch * self.steps_per_epoch


class Calls:
    """What Lightning's training loop iterates over: the number of steps that each call of `training_step` does."""

    def __init__(self, steps: int, per_call: int):
        # An epoch without a step left still has its end: Lightning leaves out epochs without calls.
        self.calls = [min(per_call, steps - first) for first in range(0, steps, per_call)] or [0]

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[int]:
        return iter(self.calls)


class EvalBatches:
    """The batches of a split for one process, as a loader with a length."""

    def __init__(self, data: Data, split: str, limit: int | None, **where: Any):
        self.data, self.split, self.where = data, split, where
        share = -(-(data.size(split) - where["rank"]) // where["world_size"])
        batches = -(-share // data.eval_batch_size)
        self.length = batches if limit is None else min(batches, limit)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        batches = self.data.eval_batches(self.split, **self.where)
        return (batch for batch, _ in zip(batches, range(self.length), strict=False))


class Task(L.LightningModule):
    """A network, a loss, data and a recipe; subclasses say how predictions are counted.

    `shown_metrics` are the validation metrics that an epoch's line shows, the first of which decides by default which
    checkpoint is best. Its callbacks see it after every step, epoch and the fit, in their order.
    """

    automatic_optimization = False
    metric_names: tuple[str, ...] = ("loss",)
    shown_metrics: tuple[str, ...] = ("loss",)
    per_class_metric = ""
    confusion_matrix: Tensor
    per_class: dict[str, float]
    class_table: dict[str, list[float]]  # of each class, by metric; the first is `per_class`

    def __init__(self, network: nn.Module, loss: nn.Module, data: Data, recipe: Recipe):
        super().__init__()
        self.network = network
        self.loss = loss
        self.data = data
        self.recipe = recipe
        self.progress = Progress()
        self.metrics: dict[str, float] = {}
        self.class_table = {}
        self.worst: dict[str, list[int]] = {}  # of a split: the samples that came out worst, from the worst on
        self.callbacks: list[Callback] = []
        self.curve: list[tuple[int, float, Tensor, Tensor]] = []
        self.step_losses: list[float] = []
        self.resume_state: dict[str, Any] | None = None
        self.ema: EMA | None = None
        self.validated = False
        self.between_updates = True
        self.split_batches = recipe.split_batches or 1
        self._poison: Tensor | None = None
        self._averaged = ExitStack()
        self._batches: Iterator[Batch] = iter(())

    # What a kind of task must say ---------------------------------------------------------------------------------

    def count_correct(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Correct predictions and countable targets of a training batch, as tensors on the device."""
        raise NotImplementedError

    def infer(self, images: Tensor) -> Tensor:
        """Scores in evaluation."""
        return self.network(images)

    def update_metrics(self, scores: Tensor, batch: Batch) -> None:
        """Count an evaluation batch."""
        raise NotImplementedError

    def compute_metrics(self) -> dict[str, float]:
        """Metrics of what was counted since `reset_metrics`, over all processes."""
        raise NotImplementedError

    def reset_metrics(self) -> None:
        raise NotImplementedError

    def worst_samples(self) -> list[int] | None:
        """Indices of what was evaluated, from the worst on; None where samples have no metric of their own."""
        return None

    def panel(self, images: Tensor, targets: Tensor, scores: Tensor) -> Picture:
        """A picture of predictions; images (N, C, H, W) in [0, 1]."""
        raise NotImplementedError

    @torch.no_grad()
    def sample_panel(self, split: str, count: int, worst: bool = False) -> Picture:
        """Predictions for the first images of a split, or for the worst of its last evaluation."""
        chosen = self.worst[split][:count] if worst else range(min(count, self.data.size(split)))
        raw, targets = self.data.samples(split, chosen, device=self.device)
        images = self._to_network(self.data.to_input(raw))
        training = self.network.training
        self.network.eval()
        with self.ema.swap() if self.ema is not None else nullcontext():
            scores = self.infer(images)
        self.network.train(training)
        return self.panel(self.data.denormalize(images), targets, scores)

    # Training -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        weight_decay = _default_of(self.recipe.optimizer, "weight_decay")
        groups = parameter_groups(self.network, weight_decay, self.recipe.decay_norm_and_bias)
        if (ratio := self.recipe.decoder_lr_ratio) != 1:
            encoder = self.network.get_submodule("backbone")
            groups = faster_decoder(groups, encoder, _default_of(self.recipe.optimizer, "lr"), ratio)
        self._fused = self.device.type in ("cuda", "cpu") and _takes(self.recipe.optimizer, "fused")
        self.optimizer = self.recipe.optimizer(groups, **({"fused": True} if self._fused else {}))
        for group in self.optimizer.param_groups:
            group["base_lr"] = group["lr"]
        return self.optimizer

    def on_fit_start(self) -> None:
        world_size = self.trainer.world_size
        steps = self.recipe.overfit_batches or self.data.train_steps(world_size)
        if self.recipe.limit_batches is not None:
            steps = min(steps, self.recipe.limit_batches)
        self.progress.steps_per_epoch = steps
        self.progress.total_steps = steps * self.recipe.max_epochs
        self.parameters_in_order = [p for p in self.network.parameters() if p.requires_grad]
        self.sums = Sums.zero(self.device)
        waits = (
            self.device.type == "cpu" or self.recipe.skip_not_finite or not self._fused or self._scaler() is not None
        )
        self._poison = None if waits else torch.zeros((), device=self.device)
        self._running = list(self.network.buffers())
        if self.recipe.ema:
            self.ema = EMA(self.network, self.recipe.ema, self.recipe.ema_bias_correction)
        if self.resume_state is not None:
            self.load_training_state(self.resume_state)
            self.resume_state = None
        elif self.recipe.split_batches is None:
            self._fit_memory()
        for callback in self.callbacks:
            callback.on_fit_start(self)

    def _fit_memory(self) -> None:
        """Double the parts of a batch until one goes through the network and back; all else is left as it was.

        Two tensors as large as the weights stand for the state that an optimizer will have.
        """
        batch = next(
            self.data.train_batches(
                0, device=self.device, rank=self.trainer.global_rank, world_size=self.trainer.world_size
            )
        )
        buffers = [(buffer, buffer.clone()) for buffer in self.network.buffers()]
        self.network.train()
        ballast: list[Tensor] = []
        while True:
            try:
                ballast = [torch.empty_like(p) for p in self.parameters_in_order for _ in range(2)]
                with self.trainer.precision_plugin.forward_context():
                    self._gradients(self._to_network(batch.images), batch.targets, 1)
                break
            except torch.OutOfMemoryError:
                if self.split_batches >= len(batch.images):
                    raise
                self.split_batches = min(2 * self.split_batches, len(batch.images))
            finally:
                ballast.clear()
                self.optimizer.zero_grad(set_to_none=True)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        for buffer, before in buffers:
            buffer.copy_(before)
        if self.trainer.world_size > 1:
            most = self.trainer.strategy.reduce(torch.tensor(self.split_batches, device=self.device), reduce_op="max")
            self.split_batches = int(most)
        if self.trainer.is_global_zero and self.split_batches > 1:
            log.warning("a batch of %d goes in %d parts: that fits in memory", self.data.batch_size, self.split_batches)

    def train_dataloader(self) -> Calls:
        # DDP synchronizes gradients once per call of its forward, which is this module's training_step.
        per_call = STEPS_PER_CALL if self.trainer.world_size == 1 else 1
        return Calls(self.progress.steps_per_epoch - self.progress.step_in_epoch, per_call)

    def on_train_epoch_start(self) -> None:
        self.validated = False
        epoch, start = self.progress.epoch, self.progress.step_in_epoch
        if start == 0:
            self.sums = Sums.zero(self.device)
        if self.recipe.same_batches:
            epoch = 0  # its order and its augmentation, every time
        self._batches = self.data.train_batches(
            epoch, device=self.device, rank=self.trainer.global_rank, world_size=self.trainer.world_size, start=start
        )

    def training_step(self, num_steps: int, batch_idx: int) -> None:
        for _ in range(num_steps):
            self._train_batch(next(self._batches))
            for callback in self.callbacks:
                callback.on_step(self)

    def _train_batch(self, batch: Batch) -> None:
        progress, recipe = self.progress, self.recipe
        seed_generators(recipe.seed, progress.step, device=self.device)
        accumulate, position = recipe.accumulate, progress.step_in_epoch
        first_of_group = position - position % accumulate
        group_size = min(accumulate, progress.steps_per_epoch - first_of_group)
        last_of_group = position + 1 == first_of_group + group_size
        self.between_updates = False
        if recipe.skip_not_finite and position == first_of_group:
            self._running_before = [buffer.clone() for buffer in self._running]

        images = self._to_network(batch.images)
        loss, correct, count = self._gradients(images, batch.targets, group_size)
        finite = True
        if last_of_group:
            lr = self._set_learning_rate(progress.step - position % accumulate)
            norm, finite = self._update(loss)
            self.curve.append((progress.step + 1, lr, loss, norm))
        progress.step += 1
        progress.images += len(images) * self.trainer.world_size
        if finite:
            self.sums.loss += loss * len(images)
            self.sums.correct += correct
            self.sums.count += count
            self.sums.images += len(images)
        else:
            self.check_finite()
        self.between_updates = last_of_group
        if last_of_group and progress.step // recipe.log_every > (progress.step - group_size) // recipe.log_every:
            self.flush_curve()

    def _gradients(self, images: Tensor, targets: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Add a batch's share of its group's gradient; its loss, correct predictions and countable targets."""
        parts = min(self.split_batches, len(images))
        if parts == 1:
            return self._backward(images, targets, 1 / group_size)
        # The weighted sum over the parts is the batch's loss, if that is a mean over its images, in the memory of one.
        results = []
        for part, labels in zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True):
            share = len(part) / len(images)
            loss, correct, count = self._backward(part, labels, share / group_size)
            results.append((loss * share, correct, count))
        loss, correct, count = (torch.stack(values).sum(0) for values in zip(*results, strict=True))
        return loss, correct, count

    def _backward(self, images: Tensor, targets: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        outputs = self.network(images)
        scores = outputs[0] if isinstance(outputs, tuple) else outputs
        loss = self.total_loss(outputs, targets)
        loss_share = loss * weight if weight != 1 else loss
        if isinstance(self.trainer.strategy, SingleDeviceStrategy) and self._scaler() is None:
            loss_share.backward()  # without Lightning's hooks around it, 0.1 ms
        else:
            self.manual_backward(loss_share)
        with torch.no_grad():
            return loss.detach(), *self.count_correct(scores, targets)

    def _to_network(self, images: Tensor) -> Tensor:
        """Images in the memory format and the type of the weights; mixed precision casts later, by itself."""
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images.double() if self.trainer.precision == "64-true" else images

    def total_loss(self, outputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """The loss of the scores plus that of auxiliary heads, weighted as in the network's paper."""
        if isinstance(outputs, Tensor):
            return self.loss(outputs, targets)
        main, *auxiliary = (self.loss(scores, targets) for scores in outputs)
        return main + self.network.aux_weight * sum(auxiliary)

    def _set_learning_rate(self, step: int) -> float:
        recipe, per_epoch = self.recipe, self.progress.steps_per_epoch
        length = (recipe.schedule_epochs or recipe.max_epochs - recipe.schedule_start) * per_epoch
        position = min(max(step - recipe.schedule_start * per_epoch, 0), length - 1)
        factor = recipe.schedule(position, length, per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return self.optimizer.param_groups[0]["lr"]

    def _scaler(self) -> Any:
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _update(self, loss: Tensor) -> tuple[Tensor, bool]:
        """Clip, step, average. Returns the gradient norm before clipping, and False if the step was found not finite.

        No weight takes a gradient that is not finite, nor one after it. A fused optimizer on a GPU is told so there, so
        that nothing waits, and `check_finite` finds it later; elsewhere it is found here.
        """
        scaler = self._scaler()
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        limit = self.recipe.gradient_clip
        if limit is None:
            norm = gradient_norm(self.parameters_in_order)
        else:
            norm = nn.utils.clip_grad_norm_(self.parameters_in_order, limit)
        # With a scaler, infinite gradients are no news: it leaves out the step. The norm is the same in all processes.
        decisive = loss if scaler is not None else norm if self.trainer.world_size > 1 else loss + norm
        finite = True
        if self._poison is not None:
            self._poison = self._poison.add(decisive, alpha=0)  # stays 0, or becomes and stays NaN
            self.optimizer.found_inf = (self._poison != 0).float()  # type: ignore[attr-defined]
        elif self.device.type == "cpu" or scaler is None or self.recipe.skip_not_finite:
            finite = math.isfinite(float(decisive))
        if finite and scaler is None:
            self.optimizer.step()
        elif finite:
            scaler.step(self.optimizer)
        if scaler is not None:
            scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None and finite:
            self.ema.update()
        return norm, finite

    def check_finite(self) -> None:
        """Tell the callbacks if the loss or the gradient of a step since the last flush was not finite."""
        scaled = self._scaler() is not None
        for index, (step, _, loss, norm) in enumerate(self._points()):
            if not (math.isfinite(loss) and (scaled or math.isfinite(norm))):
                del self.curve[index:]
                if self._poison is not None:
                    self._poison.zero_()
                # Batches after that step went by without an update: not a state to save.
                whole, self.between_updates = self.between_updates, False
                for callback in self.callbacks:
                    callback.on_not_finite(self, step)
                self.between_updates = whole
                if self.recipe.skip_not_finite:
                    for buffer, before in zip(self._running, self._running_before, strict=True):
                        buffer.copy_(before)
                return

    def flush_curve(self) -> None:
        """Bring the losses since the last flush to the host and log their means, if all is finite."""
        self.check_finite()
        if not self.curve:
            return
        points = self._points()
        self.step_losses += [loss for _, _, loss, _ in points]
        step, lr, _, _ = points[-1]
        self.curve.clear()
        if self.logger is not None:
            loss, norm = (sum(point[i] for point in points) / len(points) for i in (2, 3))
            self.logger.log_metrics({"train/loss_step": loss, "lr": lr, "train/gradient_norm": norm}, step)

    def _points(self) -> list[tuple[int, float, float, float]]:
        """The curve's points that are not logged yet: step, learning rate, loss, gradient norm."""
        if not self.curve:
            return []
        losses = torch.stack([loss for _, _, loss, _ in self.curve]).tolist()
        norms = torch.stack([norm for _, _, _, norm in self.curve]).tolist()
        return [(step, lr, *values) for (step, lr, _, _), *values in zip(self.curve, losses, norms, strict=True)]

    def on_train_epoch_end(self) -> None:
        self.flush_curve()
        self.between_updates = False
        totals = torch.stack([getattr(self.sums, f.name) for f in fields(Sums)])
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        loss, correct, count, images = totals.tolist()
        self.metrics |= {"train/loss": loss / images, "train/acc": correct / max(count, 1)}
        self.progress.epoch += 1
        for callback in self.callbacks:
            callback.on_epoch_end(self)
        self.between_updates = True

    def on_fit_end(self) -> None:
        for callback in self.callbacks:
            callback.on_fit_end(self)

    # State of training, for checkpoints -----------------------------------------------------------------------------

    def training_state(self) -> dict[str, Any]:
        """Everything that the continuation of training needs, as plain data and tensors."""
        scaler = self._scaler()
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "progress": {name: getattr(self.progress, name) for name in ("epoch", "step", "images")},
            "sums": [getattr(self.sums, f.name).cpu() for f in fields(Sums)],
            "metrics": dict(self.metrics),
            "worst": {split: samples[:WORST] for split, samples in self.worst.items()},
            "curve": [list(point) for point in self._points()],
            "split_batches": self.split_batches,
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Inverse of `training_state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        scaler = self._scaler()
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        for name, value in state["progress"].items():
            setattr(self.progress, name, value)
        self.sums = Sums(*(value.to(self.device) for value in state["sums"]))
        self.metrics = dict(state["metrics"])
        self.split_batches = state["split_batches"]
        self.curve = [
            (step, lr, torch.tensor(loss, device=self.device), torch.tensor(norm, device=self.device))
            for step, lr, loss, norm in state["curve"]
        ]

    def load_for_evaluation(self, state: dict[str, Any]) -> None:
        """Take the weights of a checkpoint, the averaged ones where there are some, and its metrics."""
        self.network.load_state_dict(state["network"])
        if state["ema"] is not None:
            self.ema = self.ema or EMA(self.network, self.recipe.ema, self.recipe.ema_bias_correction)
            self.ema.load_state_dict(state["ema"])
        self.metrics = dict(state["metrics"])
        self.worst = dict(state.get("worst", {}))

    # Evaluation -----------------------------------------------------------------------------------------------------

    def _eval_batches(self, split: str) -> EvalBatches:
        if self.recipe.overfit_batches:
            split = "train"
        where = {"device": self.device, "rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return EvalBatches(self.data, split, self.recipe.overfit_batches or self.recipe.limit_batches, **where)

    def val_dataloader(self) -> EvalBatches:
        return self._eval_batches("val")

    def test_dataloader(self) -> EvalBatches:
        return self._eval_batches("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # The data makes its batches on the device.

    def _start_evaluation(self) -> None:
        self.reset_metrics()
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self._loss_count = 0
        if self.ema is not None:
            self._averaged.enter_context(self.ema.swap())

    def _evaluate(self, batch: Batch) -> None:
        images = self._to_network(batch.images)
        scores = self.infer(images)
        self._loss_sum += self.loss(scores, batch.targets) * len(images)
        self._loss_count += len(images)
        self.update_metrics(scores, batch)

    def _finish_evaluation(self, split: str) -> None:
        total = torch.stack([self._loss_sum, self._loss_sum.new_tensor(float(self._loss_count))])
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        loss, count = total.tolist()
        values = {"loss": loss / max(count, 1), **self.compute_metrics()}
        self.metrics |= {f"{split}/{name}": value for name, value in values.items()}
        if (worst := self.worst_samples()) is not None:
            self.worst[split] = worst
        self._averaged.close()
        self.validated = self.validated or split == "val"

    def leave_evaluation(self) -> None:
        """Put back the weights that are trained."""
        self._averaged.close()

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.trainer.state.fn == "fit":
            for callback in self.callbacks:
                callback.on_validation_step(self)
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self._start_evaluation()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients as one vector, on their device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    # Half the time of nn.utils.get_total_norm, which sorts them by device first.
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _takes(optimizer: Callable[..., Any], name: str) -> bool:
    import inspect

    return name in inspect.signature(getattr(optimizer, "func", optimizer)).parameters


def _default_of(optimizer: Callable[..., Any], name: str) -> float:
    """The value of a keyword of a partial."""
    return getattr(optimizer, "keywords", {}).get(name, 0.0)
