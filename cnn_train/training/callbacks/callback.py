"""The moments at which training can be watched."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnn_train.tasks.task import Task


class Callback:
    """What a run calls with its task. Be cheap in `on_step`.

    `on_epoch_end` comes after the epoch's validation, `on_validation_step` before each of its batches. `on_error` comes
    where an error meets the state between two updates, `on_not_finite` when the loss or gradient of a step (counted
    from 1) was not finite, before that is logged or saved.
    """

    def on_fit_start(self, task: "Task") -> None:
        pass

    def on_step(self, task: "Task") -> None:
        pass

    def on_validation_step(self, task: "Task") -> None:
        pass

    def on_epoch_end(self, task: "Task") -> None:
        pass

    def on_fit_end(self, task: "Task") -> None:
        pass

    def on_error(self, task: "Task") -> None:
        pass

    def on_not_finite(self, task: "Task", step: int) -> None:
        pass
