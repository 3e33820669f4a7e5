"""The loop: a LightningModule that trains a network on a task by a recipe. The step is `Loop.step`.

Everything random in a step is a function of (seed, step), and every batch of (seed, epoch, index): a run that is
resumed from a checkpoint repeats exactly what an undisturbed run does.
"""

import logging
from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer import call
from torch import Tensor, nn

from cnn_train.data.data import Batch
from cnn_train.data.random import seed_generators
from cnn_train.tasks.task import Measured, Task
from cnn_train.training.batches import STEPS_PER_CALL, Calls, EvalBatches, Steps, listens_to_batches
from cnn_train.training.evaluation import Evaluation
from cnn_train.training.gradient import Gradient, Totals
from cnn_train.training.graphs import Recorded, record
from cnn_train.training.memory import fit_batch
from cnn_train.training.optim import EMA
from cnn_train.training.progress import Best, Curve, Progress, Sums
from cnn_train.training.recipe import Recipe
from cnn_train.training.update import Update, make_optimizer

log = logging.getLogger(__name__)

WORST = 64  # samples that a checkpoint remembers as the worst of a split


class Callback(L.Callback):
    """A callback of Lightning's that also sees every step, at no cost: steps still share a call. Be cheap in them.

    `before_step` comes when this process has the step's batch, `on_step` after the step. `on_epoch_end` comes after the
    epoch's validation and ranking, `on_not_finite` when the loss or gradient of a step (counted from 1) was not finite,
    before that is logged or saved.
    """

    def before_step(self, loop: "Loop") -> None:
        pass

    def on_step(self, loop: "Loop") -> None:
        pass

    def on_epoch_end(self, loop: "Loop") -> None:
        pass

    def on_not_finite(self, loop: "Loop", step: int) -> None:
        pass


class Loop(L.LightningModule):
    """Trains `network` on `task` by `recipe`; the epochs are ranked by `best`.

    `metrics` are the newest of each split, under the names of metrics.csv; Lightning's callbacks find them in
    `trainer.callback_metrics`. `description` is what a checkpoint holds besides the state of training.
    """

    automatic_optimization = False
    optimizer: torch.optim.Optimizer
    update: Update

    def __init__(
        self, network: nn.Module, task: Task, recipe: Recipe, best: Best, description: dict[str, Any] | None = None
    ):
        super().__init__()
        self.network = network
        self.task = task
        self.data = task.data
        self.recipe = recipe
        self.best = best
        self.description = description or {}
        self.progress = Progress()
        recipe.finetune.freeze(network, self.progress)
        self.curve = Curve()
        self.metrics: dict[str, float] = {}
        self.measured: Measured | None = None  # of the last evaluation
        self.worst: dict[str, list[int]] = {}  # of a split: the samples that came out worst, from the worst on
        self.per_class: dict[str, dict[str, list[float]]] = {}  # of a split: the table of classes
        self.resume_state: dict[str, Any] | None = None
        self.ema: EMA | None = None
        self.validated = False
        self.between_updates = True
        self.split_batches = recipe.split_batches or 1
        self.gradient = Gradient(network, task)
        self.recorded: Recorded | None = None
        self.evaluation: Evaluation | None = None
        self._batches: Iterator[Batch] = iter(())

    # The step -------------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> Tensor:
        """Train on one batch; its loss. The weights change at the last batch of an accumulated group."""
        progress, recipe = self.progress, self.recipe
        seed_generators(recipe.seed, progress.step, device=self.device)
        accumulate, position = recipe.accumulate, progress.step_in_epoch
        first_of_group = position - position % accumulate
        group_size = min(accumulate, progress.steps_per_epoch - first_of_group)
        last_of_group = position + 1 == first_of_group + group_size
        self.between_updates = False
        if position == first_of_group:
            self._begin_group()

        images = self.to_network(batch.images)
        totals = self.add_gradient(images, batch.targets, group_size)
        loss, finite = totals.loss, True
        if last_of_group:
            self.gradient.settle(self.parameters_in_order, self.over_processes, self.trainer.world_size)
            factor = recipe.factor(progress.step - position % accumulate, progress.steps_per_epoch)
            lr = self.update.set_learning_rate(factor, progress.epoch)
            if self.listened:
                call._call_callback_hooks(self.trainer, "on_before_optimizer_step", self.optimizer)
            norm, finite = self.update(loss)
            self.curve.add(progress.step + 1, lr, loss, norm)
        progress.step += 1
        progress.images += len(images) * self.trainer.world_size
        if finite:
            self.sums.add(totals)
        else:
            self.check_finite()
        self.between_updates = last_of_group
        if last_of_group and progress.step // recipe.log_every > (progress.step - group_size) // recipe.log_every:
            self.flush_curve()
        return loss

    def _begin_group(self) -> None:
        self.gradient.begin()
        if self.recipe.skip_not_finite:
            self._running_before = [buffer.clone() for buffer in self.running]
        if self.listened:
            call._call_callback_hooks(self.trainer, "on_before_zero_grad", self.optimizer)

    def add_gradient(self, images: Tensor, targets: Tensor, group_size: int) -> Totals:
        """Add a batch's share of its group's gradient."""
        if self.recorded is not None and self.recorded.takes(images, targets):
            return self.recorded(images, targets)
        # Plain: without Lightning's hooks around it, 0.1 ms.
        backward = Tensor.backward if self._plain else self.manual_backward
        return self.gradient.add(images, targets, self.split_batches, group_size, backward)

    def to_network(self, images: Tensor) -> Tensor:
        """Images in the memory format and the type of the weights; mixed precision casts later, by itself."""
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images.double() if self.trainer.precision == "64-true" else images

    # Training, as Lightning calls it --------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        # After the callbacks' own setup, as when Lightning restores a checkpoint of its own.
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        self.listened = any(listens_to_batches(callback) for callback in callbacks)
        self.watchers = [callback for callback in callbacks if isinstance(callback, Callback)]
        self.step_starters = [w for w in self.watchers if type(w).before_step is not Callback.before_step]
        self.step_watchers = [w for w in self.watchers if type(w).on_step is not Callback.on_step]
        saved = (self.resume_state or {}).get("callbacks", {})
        for callback in callbacks:
            if callback.state_key in saved:
                callback.load_state_dict(deepcopy(saved[callback.state_key]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.optimizer = make_optimizer(self.recipe, self.network, self.device)
        return self.optimizer

    def on_fit_start(self) -> None:
        steps = self.data.train_steps(self.trainer.world_size)
        steps = steps if self.recipe.limit_batches is None else min(steps, self.recipe.limit_batches)
        self.progress.steps_per_epoch, self.progress.total_steps = steps, steps * self.recipe.max_epochs
        self.parameters_in_order = [p for p in self.network.parameters() if p.requires_grad]
        self.sums = self.no_sums()
        self.running = list(self.network.buffers())
        plain = self.scaler is None and not self.listened
        self._plain = plain and isinstance(self.trainer.strategy, SingleDeviceStrategy)
        if self.recipe.ema:
            self.ema = EMA(self.network, self.recipe.ema, self.recipe.ema_bias_correction)
        where = {"device": self.device, "world_size": self.trainer.world_size, "scaler": self.scaler}
        self.update = Update(self.optimizer, self.parameters_in_order, self.recipe, ema=self.ema, **where)
        if self.resume_state is not None:
            self.load_training_state(self.resume_state)
            self.resume_state = None
        elif self.recipe.split_batches is None:
            self.split_batches = fit_batch(self)
        if self.recipe.cuda_graphs:
            self.recorded = record(self)
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.progress.step

    def no_sums(self) -> Sums:
        """The totals of an epoch that begins."""
        return Sums.zero(self.device, len(self.task.loss_parts))

    def over_processes(self, value: Tensor, how: str = "sum") -> Tensor:
        """The sum, or the `max`, of every process's value."""
        return value if self.trainer.world_size == 1 else self.trainer.strategy.reduce(value, reduce_op=how)

    def all_processes(self, value: Tensor) -> Tensor:
        """Every process's value, one after the other."""
        return value[None] if self.trainer.world_size == 1 else self.trainer.strategy.all_gather(value)

    @property
    def scaler(self) -> Any:
        """The gradient scaler of fp16; None elsewhere."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def train_batches(self) -> Iterator[Batch]:
        """This process's batches of the present epoch, from the present step on."""
        epoch = 0 if self.recipe.same_batches else self.progress.epoch
        where = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return self.data.train_batches(epoch, device=self.device, start=self.progress.step_in_epoch, **where)

    def train_dataloader(self) -> Calls | Steps:
        left = self.progress.steps_per_epoch - self.progress.step_in_epoch
        if self.listened:
            return Steps(left, self.train_batches)
        # DDP synchronizes gradients once per call of its forward, which is this module's training_step.
        return Calls(left, STEPS_PER_CALL if self.trainer.world_size == 1 else 1)

    def on_train_epoch_start(self) -> None:
        self.validated = False
        if self.progress.step_in_epoch == 0:
            self.sums = self.no_sums()
        if not self.listened:
            self._batches = self.train_batches()

    def training_step(self, work: int | Batch, batch_idx: int) -> dict[str, Tensor] | None:
        """Train on a batch, or on the next `work` ones."""
        loss = None
        for batch in islice(self._batches, work) if isinstance(work, int) else (work,):
            for watcher in self.step_starters:
                watcher.before_step(self)
            loss = self.step(batch)
            for watcher in self.step_watchers:
                watcher.on_step(self)
        counter = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        counter.ready = counter.completed = self.progress.updates(self.recipe.accumulate)
        if self.progress.step_in_epoch == self.progress.steps_per_epoch:
            self._sum_up()
        return {"loss": loss} if self.listened and loss is not None else None

    def _sum_up(self) -> None:
        """Metrics of the epoch's training, over all processes."""
        self.flush_curve()
        loss, correct, count, weight, *parts = self.over_processes(torch.cat(self.sums.values())).tolist()
        metrics = {"train/loss": loss / max(weight, 1), f"train/{self.task.train_metric}": correct / max(count, 1)}
        names = [f"train/loss_{name}" for name in self.task.loss_parts]
        self._keep(metrics | {name: part / max(weight, 1) for name, part in zip(names, parts, strict=True)})

    def _keep(self, metrics: dict[str, float]) -> None:
        """Metrics for us, and for Lightning's callbacks; loggers get them from the callback `Curves`."""
        self.metrics |= metrics
        self.log_dict(metrics, on_step=False, on_epoch=True, logger=False, batch_size=1)

    def on_train_epoch_end(self) -> None:
        self.flush_curve()
        if self.progress.step_in_epoch < self.progress.steps_per_epoch:
            return  # a callback ended training in the middle of an epoch
        self.between_updates = False
        self.progress.epoch += 1
        if self.validated and (value := self.metrics.get(self.best.monitor)) is not None:
            self.best.rank(value, self.progress.epoch)
        for watcher in self.watchers:
            watcher.on_epoch_end(self)
        self.between_updates = True

    # The curve ------------------------------------------------------------------------------------------------------

    def check_finite(self) -> None:
        """Tell the callbacks if the loss or the gradient of a step since the last flush was not finite."""
        step = self.curve.first_not_finite(norms_count=self.scaler is None)
        if step is None:
            return
        self.update.heal()
        # Batches after that step went by without an update: not a state to save.
        whole, self.between_updates = self.between_updates, False
        for watcher in self.watchers:
            watcher.on_not_finite(self, step)
        self.between_updates = whole
        if self.recipe.skip_not_finite:
            for buffer, before in zip(self.running, self._running_before, strict=True):
                buffer.copy_(before)

    def flush_curve(self) -> None:
        """Bring the losses since the last flush to the host and log their means, if all is finite."""
        self.check_finite()
        if means := self.curve.flush():
            self.record(means)

    def record(self, metrics: dict[str, float]) -> None:
        """Give every logger these values at the present step."""
        for logger in self.loggers:
            logger.log_metrics(metrics, self.progress.step)

    # State ----------------------------------------------------------------------------------------------------------

    def training_state(self) -> dict[str, Any]:
        """Everything that the continuation of training needs, as plain data and tensors; all processes call it."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "progress": {name: getattr(self.progress, name) for name in ("epoch", "step", "images")},
            "sums": self.all_processes(torch.cat(self.sums.values())).cpu(),
            "metrics": dict(self.metrics),
            "per_class": {split: dict(columns) for split, columns in self.per_class.items()},
            "worst": {split: samples[:WORST] for split, samples in self.worst.items()},
            "curve": [list(point) for point in self.curve.points()],
            "split_batches": self.split_batches,
            "chosen": self.task.chosen(),
            "best": self.best.state(),
            "callbacks": {c.state_key: state for c in self.trainer.callbacks if (state := c.state_dict())},  # type: ignore[attr-defined]
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Inverse of `training_state`, but for the callbacks' states and the ranking."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.load_state_dict(state["ema"])
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        for name, value in state["progress"].items():
            setattr(self.progress, name, value)
        self.sums = Sums.of(state["sums"], self.trainer.global_rank, self.trainer.world_size, self.device)
        self.metrics = dict(state["metrics"])
        self.split_batches = state["split_batches"]
        self.worst, self.per_class = dict(state["worst"]), dict(state["per_class"])
        self.task.restore(state.get("chosen") or {})
        self.curve.restore(state["curve"], self.device)

    def load_for_evaluation(self, state: dict[str, Any]) -> None:
        """Take the weights of a checkpoint, the averaged ones where there are some, and its metrics."""
        self.network.load_state_dict(state["network"])
        if state["ema"] is not None:
            self.ema = self.ema or EMA(self.network, self.recipe.ema, self.recipe.ema_bias_correction)
            self.ema.load_state_dict(state["ema"])
        self.metrics = dict(state["metrics"])
        self.worst = dict(state.get("worst", {}))
        self.per_class = dict(state.get("per_class", {}))
        self.task.restore(state.get("chosen") or {})

    # Evaluation -----------------------------------------------------------------------------------------------------

    def _eval_batches(self, split: str) -> EvalBatches:
        where = {"device": self.device, "rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return EvalBatches(self.data, split, self.recipe.limit_batches, **where)

    def val_dataloader(self) -> EvalBatches:
        return self._eval_batches("val")

    def test_dataloader(self) -> EvalBatches:
        return self._eval_batches("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # The data makes its batches on the device.

    def on_validation_epoch_start(self) -> None:
        samples = 0 if self.trainer.state.fn == "fit" else max(map(self.data.size, self.data.splits))
        self.evaluation = Evaluation(self.network, self.task, self.ema, self.device, samples)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert self.evaluation is not None
        self.evaluation.add(self.to_network(batch.images), batch)

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")
        self.validated = True

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def _finish_evaluation(self, split: str) -> None:
        assert self.evaluation is not None
        self.measured = self.evaluation.finish(self.over_processes, choose=split == "val")
        self._keep({f"{split}/{name}": value for name, value in self.measured.metrics.items()})
        self.per_class[split] = self.measured.per_class
        if self.measured.worst is not None:
            self.worst[split] = self.measured.worst

    def leave_evaluation(self) -> None:
        """Put back the weights that are trained."""
        if self.evaluation is not None:
            self.evaluation.leave()
