"""The moments at which training can be watched."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnn_train.tasks.task import Task


class Callback:
    """Called with the task after every step (be cheap), after every epoch with its validation, and after the last."""

    def on_step(self, task: "Task") -> None:
        pass

    def on_epoch_end(self, task: "Task") -> None:
        pass

    def on_fit_end(self, task: "Task") -> None:
        pass
