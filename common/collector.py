"""Control of Python's garbage collection, which visits all objects: a million after importing PyTorch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Disable garbage collection in the block or the decorated function.

    This is for importing libraries, which creates many objects but little garbage.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def forget_garbage() -> None:
    """Exempt all objects from garbage collection, before an exit that would visit them several times."""
    gc.freeze()
