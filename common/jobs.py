"""Run a function over clips: worker processes, progress, status records, retry and resume.

    jobs -> an executor (local processes) -> (job, outcome) as each finishes -> the journal -> a summary

The function is called with a job's arguments, writes the job's output atomically and returns an Outcome. An exception
fails that clip only, except a UserError, which ends the run.
"""

from __future__ import annotations

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
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from common.allocator import keep_freed_memory
from common.errors import ClipError, UserError
from common.files import lock, make_folder, remove
from common.journal import Journal, last_settings, stamp_of
from common.watchdog import TIMEOUT, Watchdog, watch_this_process

# After this many crashes in a row, the run ends: apparently no worker process can run.
MAX_CRASHES = 10
# Statuses set by the runner itself: an unexpected error; a worker process that died (out of memory, for example).
FAILED, CRASHED = "failed", "crashed"
# Status of a clip at which a native call does not return, which is the clip's fault: the default of ClipError.
STALLED = "unreadable"
# Seconds between looks at the watchdogs.
POLL_INTERVAL = 1.0

log = logging.getLogger(__name__)


class StageError(UserError):
    """A stage that cannot continue."""


class Statuses(NamedTuple):
    """What the statuses of a stage mean. All others are failures, which --retry-failed re-runs.

    Attributes:
        done: the clip has an output.
        skipped: there is nothing to do for the clip; it has no output.
    """

    done: frozenset[str] = frozenset({"ok"})
    skipped: frozenset[str] = frozenset()

    def failed(self, status: str) -> bool:
        """Return whether a status is a failure."""
        return status not in self.done | self.skipped


ONLY_OK = Statuses()


@dataclass(frozen=True)
class Job:
    """One clip of a stage.

    Attributes:
        clip: id of the clip.
        inputs: files and folders that the output is made from; the job runs again when one of them changes.
        output: the file or folder that the function writes.
        arguments: arguments of the stage's function.
    """

    clip: str
    inputs: tuple[Path, ...]
    output: Path
    arguments: tuple


@dataclass(frozen=True)
class Outcome:
    """The result of a job.

    Attributes:
        status: `ok` or another status of the stage.
        message: for the log and the journal.
        counts: numbers that the summary adds up per status.
        seconds: processing time.
    """

    status: str
    message: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


# A generator of jobs and their outcomes as they finish, in any order. UserErrors of the function propagate from
# it, and closing it early stops the jobs in flight.
Outcomes = Generator[tuple[Job, Outcome], None, None]
Executor = Callable[[Callable[..., Outcome], Iterable[Job], int], Outcomes]


def run(
    function: Callable[..., Outcome],
    jobs: list[Job],
    output: Path,
    settings: Mapping[str, Any],
    workers: int,
    statuses: Statuses = ONLY_OK,
    retry_failed: bool = False,
    overwrite: bool = False,
    timeout: float = TIMEOUT,
    execute: Executor | None = None,
) -> dict[str, Outcome]:
    """Run the jobs that are not finished and return the outcome of every job by clip.

    A clip runs again if its inputs or the settings have changed, or if its output is missing. A failed clip leaves no
    output.

    Args:
        function: called with a job's arguments; must be importable by worker processes.
        jobs: one per clip.
        output: folder of the stage's outputs.
        settings: everything else that the outputs depend on; `stage` names the stage.
        workers: number of worker processes.
        statuses: meaning of the function's statuses.
        retry_failed: re-run the clips that failed in an earlier run.
        overwrite: start over.
        timeout: seconds after which a native call that does not return fails its clip, see `common.watchdog`.
        execute: the executor; local processes if None.

    Raises:
        StageError: the stage cannot continue.
        OutputError: an output cannot be written.
    """
    path = journal_path(output)
    for folder in (output, path.parent):
        make_folder(folder)
    with lock(output):
        journal = _open_journal(output, settings, overwrite)
        stamps = {job.clip: [stamp_of(path) for path in job.inputs] for job in jobs}
        outcomes = {
            job.clip: _previous_outcome(job, journal.get(job.clip, stamps[job.clip]), statuses, retry_failed)
            for job in jobs
        }
        todo = [job for job in jobs if outcomes[job.clip] is None]
        finished = len(jobs) - len(todo)
        with (
            _progress(output.name, len(jobs), finished) as bar,
            closing((execute or partial(run_local, timeout=timeout))(function, todo, workers)) as results,
        ):
            for job, outcome in _stop_after_crashes(results):
                outcomes[job.clip] = outcome
                if outcome.status not in statuses.done:
                    remove(job.output)  # made by an earlier run from inputs that have changed since
                if statuses.failed(outcome.status):
                    log.warning("%s: %s: %s", job.clip, outcome.status, outcome.message)
                if outcome.status != CRASHED:  # crashed clips are always tried again
                    journal.add(job.clip, stamps[job.clip], asdict(outcome))
                bar.update()
    return {clip: outcome for clip, outcome in outcomes.items() if outcome}


def journal_path(output: Path) -> Path:
    """Return the path of the journal of an output folder."""
    return output.parent / "progress" / f"{output.name}.jsonl"


def summarize(outcomes: Mapping[str, Outcome]) -> str:
    """Format a table: the number of clips per status with the sums of their counts."""
    clips = Counter(outcome.status for outcome in outcomes.values())
    columns = list(dict.fromkeys(name for outcome in outcomes.values() for name in outcome.counts))
    sums: dict[str, Counter] = {status: Counter() for status in clips}
    for outcome in outcomes.values():
        sums[outcome.status].update(outcome.counts)
    rows = [["status", "clips", *columns]]
    rows += [[status, str(clips[status]), *(str(sums[status][name]) for name in columns)] for status in sorted(clips)]
    return "\n".join(f"{row[0]:14}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows)


def _open_journal(output: Path, settings: Mapping[str, Any], overwrite: bool) -> Journal:
    path = journal_path(output)
    owner = last_settings(path).get("stage")
    if owner and owner != settings.get("stage"):
        raise StageError(f"{output}: contains the outputs of {owner}. Choose another folder, or delete it and {path}")
    journal = Journal(path, settings, overwrite, _is_outcome)
    if journal.changed:
        log.info("settings changed since the last run (%s): re-running the clips", ", ".join(journal.changed))
    return journal


def _is_outcome(_clip: str, record: dict[str, Any]) -> bool:
    """Return whether a record is that of an Outcome."""
    types: dict[str, Any] = {"status": str, "message": str, "counts": dict, "seconds": (int, float)}
    return record.keys() == types.keys() and all(isinstance(record[key], types[key]) for key in types)


def _previous_outcome(
    job: Job, record: dict[str, Any] | None, statuses: Statuses, retry_failed: bool
) -> Outcome | None:
    """Return the recorded outcome of a job, or None if it has to run."""
    if record is None or (record["status"] in statuses.done and not job.output.exists()):
        return None
    outcome = Outcome(**record)
    return None if retry_failed and statuses.failed(outcome.status) else outcome


def _progress(name: str, total: int, finished: int) -> tqdm:
    """Return a progress bar that is shown on terminals only, and only if there is work left."""
    return tqdm(desc=name, total=total, initial=finished, unit="clip", disable=True if finished == total else None)


def _stop_after_crashes(results: Outcomes) -> Iterator[tuple[Job, Outcome]]:
    """Yield the results. Raises StageError after MAX_CRASHES crashes in a row."""
    crashes = 0
    for job, outcome in results:
        yield job, outcome
        crashes = crashes + 1 if outcome.status == CRASHED else 0
        if crashes == MAX_CRASHES:
            raise StageError(f"--workers: {crashes} worker processes died in a row. Use fewer if memory is short")


def run_local(
    function: Callable[..., Outcome], jobs: Iterable[Job], workers: int, timeout: float = TIMEOUT
) -> Outcomes:
    """Run jobs in worker processes on this machine, each with one thread and one clip at a time (an Executor).

    A worker process whose native call takes longer than `timeout` seconds is killed and fails its clip.
    """
    # Libraries read these when they are loaded, so set them before the processes start.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    queue = iter(jobs)
    pool = [_Worker(timeout) for _ in range(workers)]
    idle = pool.copy()
    in_flight: dict[Future, tuple[Job, _Worker]] = {}
    try:
        while True:
            while idle and (job := next(queue, None)):
                worker = idle.pop()
                in_flight[worker.submit(function, job)] = job, worker
            if not in_flight:
                return
            for future in wait(in_flight, POLL_INTERVAL, FIRST_COMPLETED).done:
                job, worker = in_flight.pop(future)
                idle.append(worker)
                yield job, worker.result(future)
            for _, worker in in_flight.values():
                worker.kill_if_stalled()
    finally:
        for process in multiprocessing.active_children():
            process.terminate()
        for worker in pool:
            worker.close()


class _Worker:
    """A worker process that is started on first use and replaced when it dies.

    Each worker has a process pool of its own, because a process that dies breaks its whole pool.

    Args:
        timeout: limit of a native call in seconds.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.watchdog, self.stalled = Watchdog(context), False
        self.pool = ProcessPoolExecutor(1, context, _initialize_worker, (self.watchdog,))

    def submit(self, function: Callable[..., Outcome], job: Job) -> Future:
        """Start a job. A process started here ignores Ctrl-C, which its parent handles."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self.pool.submit(_attempt, function, job.arguments)
        except BrokenProcessPool:
            self.close()
            self._start()
            return self.pool.submit(_attempt, function, job.arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def close(self) -> None:
        """Wait for the pool's thread to end. It can fail if the interpreter exits first."""
        self.pool.shutdown(cancel_futures=True)

    def kill_if_stalled(self) -> None:
        """Kill the process if a native call takes too long."""
        if not self.stalled and self.watchdog.is_stalled(self.timeout):
            self.stalled = True
            self.watchdog.kill()

    def result(self, future: Future) -> Outcome:
        """Return the outcome of the job that has ended."""
        try:
            return future.result()
        except BrokenProcessPool:
            if self.stalled:
                remedy = "Raise --timeout if the storage is slow"
                return Outcome(STALLED, f"no progress for {self.timeout:g} s. {remedy}", seconds=self.timeout)
            return Outcome(CRASHED, "the worker process died (out of memory?). Run the same command to try again")


def _initialize_worker(watchdog: Watchdog) -> None:
    """Use one thread, exit when the parent process does, and mark native calls."""
    import cv2

    watchdog.attach()
    watch_this_process(watchdog)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    keep_freed_memory()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
    os._exit(1)


def _attempt(function: Callable[..., Outcome], arguments: tuple) -> Outcome:
    start = time.perf_counter()
    try:
        outcome = function(*arguments)
    except UserError:
        raise
    except ClipError as error:
        outcome = Outcome(error.status, str(error))
    except MemoryError:
        outcome = Outcome(FAILED, f"{arguments[0]}: out of memory. Use fewer --workers")
    except Exception as error:
        log.exception("%s", arguments[0])
        outcome = Outcome(FAILED, f"{type(error).__name__}: {error}")
    return Outcome(outcome.status, outcome.message, outcome.counts, round(time.perf_counter() - start, 3))
