"""Let the C library keep freed memory instead of handing it back to the system.

Large activations are allocated and freed at every layer. glibc maps each anew, and the kernel clears
each page again: on a CPU that costs as much time as the networks themselves.
"""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Set this process's malloc so; False where the C library is not glibc (nothing is changed)."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return all(
        mallopt(parameter, value)
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20))
    )
