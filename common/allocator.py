"""Keep freed memory in the process instead of returning it to the system.

Every layer of a network allocates and frees large activations. By default, glibc maps each one separately, and the
kernel zeroes its pages every time: on a CPU, this takes as long as the forward pass itself.
"""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
MIB = 2**20


def keep_freed_memory() -> bool:
    """Configure malloc for this process. Return False if the C library is not glibc or rejects a setting."""
    return _configure({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 * MIB})


def keep_some_freed_memory() -> bool:
    """Keep up to 128 MiB and no block above 32 MiB, for a process with limited memory. Return as keep_freed_memory."""
    return _configure({M_MMAP_THRESHOLD: 32 * MIB, M_TRIM_THRESHOLD: 128 * MIB})


def _configure(settings: dict[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(parameter, value) for parameter, value in settings.items())


def return_freed_memory() -> None:
    """Return the memory that has been freed to the system, once, where the C library is glibc."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
