"""Run a Python program in its own process, for its result or to measure its time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


class Usage(NamedTuple):
    """Resources used by a program: seconds, start-up included, and the peak memory of its largest process in bytes."""

    seconds: float
    memory: int


class ProgramError(UserError):
    """A measured program that failed."""


def measure(*arguments: str | Path) -> Usage:
    """Run `python ARGUMENTS...` in the repository root and discard its output. Raises ProgramError."""
    command = [sys.executable, *map(str, arguments)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)  # wait4 has already reaped the process
    if process.returncode:
        raise ProgramError(f"{' '.join(command)}: failed with exit status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(seconds, usage.ru_maxrss * unit)


def run_module(module: str, *arguments: str | Path | float) -> Any:
    """Run `python -m MODULE ARGUMENTS...` and return its last line of output, which is JSON. Raises ProgramError."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if finished.returncode:
        raise ProgramError(f"{' '.join(command)}: failed with exit status {finished.returncode}")
    return json.loads(finished.stdout.splitlines()[-1])
