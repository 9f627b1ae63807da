"""When Python looks for garbage.

It visits all objects, and a program that has imported PyTorch has a million of them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Do not look for garbage in the block, or in a decorated function, which imports libraries.

    That creates many objects, but little garbage.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def forget_garbage() -> None:
    """Leave all garbage to the end of the process, before which Python would look for it several times."""
    gc.freeze()
