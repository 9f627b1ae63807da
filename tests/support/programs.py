"""Start programs in such a way that no test waits without a limit or leaves a process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Seconds after which a program or a condition counts as hanging, far more than any takes on a slow machine.
LIMIT = 600
# Seconds for a program to stop the processes that it has started.
GRACE = 10


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program and capture its output. Raises TimeoutExpired after LIMIT seconds."""
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        output, errors = process.communicate(timeout=LIMIT)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a program in its own process group. If it is still running at the end, it is stopped."""
    with subprocess.Popen(list(map(str, command)), text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a program that is running and its process group. After SIGTERM, torchrun stops its worker processes."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signal_number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)


def wait_for(condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until a condition holds. Fails after LIMIT seconds, or when the given process has ended before."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert process is None or process.poll() is None, f"{what}: exit status {process.returncode} before that"
        assert time.monotonic() < end, f"{what}: not within {LIMIT} s"
        time.sleep(0.01)
