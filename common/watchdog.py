"""Time limits of clips: notice native calls that do not return, such as a decoder in an endless loop.

A worker process marks the calls that it makes; its parent reads the marks and kills the process if a call takes too
long. A thread in the same process could not stop such a call.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import NamedTuple, Protocol

# Default limit in seconds. A call opens a file, reads a packet or decodes one; slow network storage may take a while.
TIMEOUT = 60.0
# Default limit of a whole clip in seconds. Only clips of several hours come close.
CLIP_TIMEOUT = 3600.0

_watchdog: Marks | None = None


class TimeLimits(NamedTuple):
    """What a clip may take, in seconds.

    Attributes:
        stall: one native call.
        clip: the whole clip.
    """

    stall: float = TIMEOUT
    clip: float = CLIP_TIMEOUT


class Marks(Protocol):
    """What is told of the start and the end of each call."""

    def start(self) -> None:
        """Mark the start of a call."""

    def stop(self) -> None:
        """Mark the end of a call."""


class Watchdog:
    """The start of the native call that a worker process is in, in memory that it shares with its parent.

    The worker process calls `attach` once, then `start` and `stop`; its parent calls the other methods.

    Args:
        context: how the worker process is started.
    """

    def __init__(self, context: BaseContext):
        self._started = context.RawValue("d", 0.0)  # time.monotonic() counts alike in all processes; 0: no call
        self._pid = context.RawValue("l", 0)

    def attach(self) -> None:
        """Watch this process."""
        self._pid.value = os.getpid()

    def start(self) -> None:
        """Mark the start of a call."""
        self._started.value = time.monotonic()

    def stop(self) -> None:
        """Mark the end of a call."""
        self._started.value = 0.0

    @property
    def is_attached(self) -> bool:
        """Whether the worker process has started."""
        return bool(self._pid.value)

    def is_stalled(self, timeout: float) -> bool:
        """Return whether a call has taken longer than `timeout` seconds."""
        started = self._started.value
        return bool(started) and time.monotonic() - started > timeout

    def kill(self) -> None:
        """Kill the worker process, which must have started."""
        os.kill(self._pid.value, signal.SIGKILL)


def watch_this_process(watchdog: Marks) -> None:
    """Mark this process's native calls in a watchdog from now on."""
    global _watchdog
    _watchdog = watchdog


@contextmanager
def native_call() -> Iterator[None]:
    """Mark the block as a native call, if this process is watched."""
    if _watchdog is None:
        yield
        return
    _watchdog.start()
    try:
        yield
    finally:
        _watchdog.stop()
