"""Imports without the garbage collector."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Import torch with the cyclic garbage collector off: saves a quarter of the time.

    Afterwards torch's objects are frozen, or the collector would look through them once more at the end of the process.
    Where torch is there already, nothing happens: freezing again would keep the garbage of a training before.
    """
    if "torch" in sys.modules:
        yield
        return
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if on:
            gc.enable()
