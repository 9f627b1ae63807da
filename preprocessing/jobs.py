"""Run a function over clips: processes, progress, a done-record a clip, retry and resume.

    jobs -> an executor (local processes) -> (job, outcome) as each ends -> the stage's journal -> a table

A stage is a function that is called with a job's arguments, writes the job's output as a whole and returns
an Outcome. What it raises is that clip's failure, except a ReportedError, which ends the stage.
"""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from preprocessing.allocator import keep_freed_memory
from preprocessing.boxes import BoxesError
from preprocessing.errors import ReportedError
from preprocessing.images import ImageError
from preprocessing.journal import Journal, last_settings, stamp_of
from preprocessing.output import make_folder, remove
from preprocessing.video import VideoError

# Statuses of clips that have an output, and those that are no failure: nothing to mend, nothing to retry.
DONE = ("ok", "no_face")
FINE = (*DONE, "no_original", "no_video")
# A worker that dies (killed for memory, say) fails its clip; as many in a row mean that none can work.
MOST_DEATHS = 10

log = logging.getLogger(__name__)


class StageError(ReportedError):
    """A stage that cannot go on. The message says what to do."""


@dataclass(frozen=True)
class Job:
    """A clip of a stage: the files or folders it reads, the one it writes, and the stage function's arguments."""

    clip: str
    inputs: tuple[Path, ...]
    output: Path
    arguments: tuple


@dataclass(frozen=True)
class Outcome:
    """How a clip ended: `status` is one of FINE or says what failed."""

    status: str
    message: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


# Yields each job with its outcome as it ends, in any order; raises a ReportedError of the function.
# Closed before its end, it stops what is under way.
Outcomes = Generator[tuple[Job, Outcome], None, None]
Executor = Callable[[Callable[..., Outcome], Iterable[Job], int], Outcomes]


def run(
    function: Callable[..., Outcome],
    jobs: list[Job],
    output: Path,
    settings: Mapping[str, Any],
    workers: int,
    retry_failed: bool = False,
    overwrite: bool = False,
    execute: Executor | None = None,
) -> dict[str, Outcome]:
    """The outcome of each job by clip: those of earlier runs, and of what was left to do, which is done.

    `output` is the folder of the stage's results; `settings` name the `stage`. A clip is done again if what it
    was made from or the settings have changed, or its output is gone. What failed has no output. Raises
    StageError or OutputError where the stage cannot go on.
    """
    path = journal_of(output)
    for folder in (output, path.parent):
        make_folder(folder)
    with _alone(output):
        owner = last_settings(path).get("stage")
        if owner and owner != settings.get("stage"):
            raise StageError(f"{output}: holds the results of {owner}; name another folder, or delete it and {path}")
        journal = Journal(path, settings, overwrite)
        if journal.changed:
            log.info("another %s than in the last run: done again where need be", ", ".join(journal.changed))
        stamps = {job.clip: [stamp_of(path) for path in job.inputs] for job in jobs}
        records = {clip: journal.finished(clip, stamp) for clip, stamp in stamps.items()}
        outcomes = {job.clip: _earlier(job, records[job.clip], retry_failed) for job in jobs}
        todo = [job for job in jobs if not outcomes[job.clip]]
        deaths = 0
        bar = tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="clip", desc=output.name)
        with bar, closing((execute or run_local)(function, todo, workers)) as results:
            for job, outcome in results:
                outcomes[job.clip] = outcome
                if outcome.status not in DONE:
                    remove(job.output)  # of an earlier run, when there was something to make it from
                if outcome.status not in FINE:
                    log.warning("%s: %s: %s", job.clip, outcome.status, outcome.message)
                deaths = deaths + 1 if outcome.status == "crashed" else 0
                if deaths == MOST_DEATHS:
                    raise StageError(f"{deaths} workers in a row died; lower --workers if memory is short")
                if not deaths:  # a clip whose worker died is always tried again
                    journal.add(job.clip, stamps[job.clip], asdict(outcome))
                bar.update()
    return outcomes


def journal_of(output: Path) -> Path:
    """The journal of a folder of results."""
    return output.parent / "progress" / f"{output.name}.jsonl"


def run_local(function: Callable[..., Outcome], jobs: Iterable[Job], workers: int) -> Outcomes:
    """An Executor: processes on this machine, each with one thread and one clip at a time."""
    # Set before a process starts: libraries read it when they are loaded.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    spawned = multiprocessing.get_context("spawn")
    jobs = iter(jobs)
    idle, running = [], {}
    try:
        while True:
            while len(running) < workers and (job := next(jobs, None)):
                # A pool a worker: when that dies, its pool is broken and no other.
                pool = idle.pop() if idle else ProcessPoolExecutor(1, spawned, _start_worker)
                try:
                    future = _submit(pool, function, job)
                except BrokenProcessPool:  # died while it was idle
                    pool = ProcessPoolExecutor(1, spawned, _start_worker)
                    future = _submit(pool, function, job)
                running[future] = job, pool
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, pool = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    outcome = Outcome("crashed", "its worker died (out of memory?); the same command tries it again")
                else:
                    idle.append(pool)
                yield job, outcome
    finally:
        for process in multiprocessing.active_children():
            process.terminate()


def _submit(pool: ProcessPoolExecutor, function: Callable[..., Outcome], job: Job) -> Future:
    """Give a worker a clip. A worker that is started for it never sees Ctrl-C, which is the parent's affair."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_attempt, function, job.arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start_worker() -> None:
    """Runs first in each worker: one thread, and an end when the parent ends."""
    import cv2

    threading.Thread(target=_follow_parent, daemon=True).start()
    cv2.setNumThreads(1)
    keep_freed_memory()


def _follow_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _attempt(function: Callable[..., Outcome], arguments: tuple) -> Outcome:
    start = time.perf_counter()
    try:
        outcome = function(*arguments)
    except ReportedError:
        raise
    except (VideoError, BoxesError, ImageError) as error:
        outcome = Outcome(error.status, str(error))
    except Exception as error:
        log.exception("%s", arguments[0])
        outcome = Outcome("failed", f"{type(error).__name__}: {error}")
    return Outcome(outcome.status, outcome.message, outcome.counts, round(time.perf_counter() - start, 3))


def _earlier(job: Job, record: dict[str, Any] | None, retry_failed: bool) -> Outcome | None:
    if record is None or (record["status"] in DONE and not job.output.exists()):
        return None
    outcome = Outcome(**record)
    return None if retry_failed and outcome.status not in FINE else outcome


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other run writes to a folder. The system lets go of the lock of a process that dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s: another run is writing there; waiting for it to end", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            log.warning("%s: cannot be locked (%s); see that no other run writes there", folder, error.strerror)
        yield
    finally:
        os.close(handle)


def summary(outcomes: Mapping[str, Outcome]) -> str:
    """A table: how many clips ended in which status, with the sums of their counts."""
    clips = Counter(outcome.status for outcome in outcomes.values())
    columns = list(dict.fromkeys(name for outcome in outcomes.values() for name in outcome.counts))
    sums: dict[str, Counter] = {status: Counter() for status in clips}
    for outcome in outcomes.values():
        sums[outcome.status].update(outcome.counts)
    rows = [["status", "clips", *columns]]
    rows += [[status, clips[status], *(sums[status][name] for name in columns)] for status in sorted(clips)]
    return "\n".join(f"{row[0]:14}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows)
