"""Processes that a test has forked."""

import os
import signal
import time


def end(child: int, patience: float = 60.0) -> int:
    """Wait for a process; its exit code, or minus the signal that killed it."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"process {child} did not end in {patience} s")
