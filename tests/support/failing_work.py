"""A function of a stage that fails in every way, depending on the clip's name."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from common.errors import ClipError
from common.files import OutputError, atomic_write
from common.outcome import Job, Outcome
from common.watchdog import native_call
from tests.support import programs


def work(name: str, output: Path) -> Outcome:
    if name == "dies":
        os._exit(9)
    if name == "raises":
        raise RuntimeError("unexpected")
    if name == "unreadable":
        raise ClipError("x.mp4", "is damaged")
    if name == "full":
        raise OutputError("no space")
    if name == "memory":
        raise MemoryError
    if name == "sleeps":
        time.sleep(600)
    if name.startswith("stalls"):
        with native_call():
            time.sleep(600)
    if name.startswith("slow"):
        time.sleep(0.5)
    if name.startswith("waits"):
        programs.wait_for(lambda: len(processes(output.parent) - {str(os.getpid())}) >= 4, "results of four others")
    atomic_write(output, f"{os.getpid()} {threading.active_count()} {os.environ['OMP_NUM_THREADS']}")
    return Outcome("ok", counts={"files": 1})


def processes(folder: Path) -> set[str]:
    """Return the identifiers of the processes that wrote results of :func:`work` to the folder."""
    return {path.read_text().split()[0] for path in folder.glob("[!.]*")}


def make_jobs(folder: Path, *names: str) -> list[Job]:
    return [Job(name, (), folder / name, (name, folder / name)) for name in names]
