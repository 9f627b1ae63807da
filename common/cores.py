"""The CPU cores of this machine."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Return the number of CPU cores that this process may use, which a batch system can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(count: int) -> None:
    """Let numerical libraries use `count` threads each, in this process and those that it starts.

    They must not have been loaded yet.
    """
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(count))
