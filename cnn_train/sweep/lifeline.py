"""A job that ends with its sweep: it watches the process that started it, and saves and ends when that is gone."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable

from cnn_train.sweep import system

GRACE = 20.0  # seconds from the sweep's end until a job that has not ended is killed
MARK = "CNN_TRAIN_SWEEP"  # set in a job's environment: its stdin is open as long as the sweep lives


def end_with_sweep(grace: float = GRACE) -> None:
    """Watch the sweep from a thread, in a job that one has started; elsewhere do nothing."""
    parent = multiprocessing.parent_process()
    if os.environ.pop(MARK, None) is None:  # taken out: processes that this job starts are not the sweep's
        return
    gone: Callable[[], object] = wait_for_stdin if parent is None else parent.join
    threading.Thread(target=watch, args=(gone, grace), daemon=True, name="lifeline").start()


def wait_for_stdin() -> None:
    """Return when the sweep has closed this process's stdin, or has died."""
    try:
        while os.read(sys.__stdin__.fileno() if sys.__stdin__ else 0, 4096):
            pass
    except OSError:
        pass


def watch(gone: Callable[[], object], grace: float) -> None:
    gone()
    system.stop_self()
    time.sleep(grace)
    system.kill(os.getpid())
    os._exit(1)
