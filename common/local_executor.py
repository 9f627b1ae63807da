"""Run jobs in worker processes on this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from common.allocator import keep_freed_memory
from common.cores import limit_threads
from common.errors import ClipError, UserError
from common.gpus import place_workers
from common.outcome import CRASHED, FAILED, STALLED, Job, Outcome, Outcomes
from common.watchdog import TimeLimits, Watchdog, watch_this_process

# Seconds between looks at the clocks.
POLL_INTERVAL = 1.0
DEFAULT_LIMITS = TimeLimits()

log = logging.getLogger(__name__)


def run_local(
    function: Callable[..., Outcome],
    jobs: Iterable[Job],
    workers: int | None,
    limits: TimeLimits = DEFAULT_LIMITS,
    device: str | None = None,
) -> Outcomes:
    """Run jobs in worker processes on this machine, one clip at a time in each (an Executor).

    Args:
        function: called with a job's arguments; must be importable.
        jobs: the jobs.
        workers: number of worker processes; None for one per CPU core, or as many as the GPUs have room for.
        limits: a worker process that exceeds one of them is killed, which fails its clip.
        device: `--device` of the function's networks, if it has any; worker processes are spread over the GPUs.
    """
    jobs = list(jobs)
    if not jobs:
        return
    queue = iter(jobs)
    pool = [WorkerProcess(limits, environment) for environment in place_workers(device, workers)]
    idle = pool.copy()
    in_flight: dict[Future, tuple[Job, WorkerProcess]] = {}
    try:
        while True:
            while idle and (job := next(queue, None)):
                worker = idle.pop()
                in_flight[worker.submit(function, job.arguments)] = job, worker
            if not in_flight:
                return
            for future in wait(in_flight, POLL_INTERVAL, FIRST_COMPLETED).done:
                job, worker = in_flight.pop(future)
                idle.append(worker)
                yield job, worker.result(future)
            for _, worker in in_flight.values():
                worker.kill_if_late()
    finally:
        for process in multiprocessing.active_children():
            process.terminate()
        for worker in pool:
            worker.close()


class WorkerProcess:
    """A process that runs one job at a time, with one thread. It is started on first use and replaced when it dies.

    Each one has a process pool of its own, because a process that dies breaks its whole pool.

    Args:
        limits: what a clip may take.
        environment: environment variables to set in the process.
    """

    def __init__(self, limits: TimeLimits, environment: Mapping[str, str] | None = None) -> None:
        limit_threads(1)  # before the process starts
        self.limits = limits
        self.environment = dict(environment or {})
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.watchdog, self.killed_for = Watchdog(context), ""
        self.pool = ProcessPoolExecutor(1, context, _initialize, (self.watchdog, self.environment))

    def submit(self, function: Callable[..., Outcome], arguments: tuple) -> Future[Outcome]:
        """Start a job. A process started here ignores Ctrl-C, which its parent handles."""
        self.submitted = time.monotonic()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self.pool.submit(_attempt, function, arguments)
        except BrokenProcessPool:
            self.close()
            self._start()
            return self.pool.submit(_attempt, function, arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def close(self) -> None:
        """Wait for the pool's thread to end. It can fail if the interpreter exits first."""
        self.pool.shutdown(cancel_futures=True)

    def kill_if_late(self) -> None:
        """Kill the process if its job exceeds a limit."""
        if self.killed_for or not self.watchdog.is_attached:
            return
        if self.watchdog.is_stalled(self.limits.stall):
            self.killed_for = f"no progress for {self.limits.stall:g} s. Raise --timeout if the storage is slow"
        elif time.monotonic() - self.submitted > self.limits.clip:
            self.killed_for = f"not finished after {self.limits.clip:g} s. Raise --clip-timeout if the clip is long"
        if self.killed_for:
            self.watchdog.kill()

    def result(self, future: Future[Outcome]) -> Outcome:
        """Return the outcome of the job that has ended."""
        try:
            return future.result()
        except BrokenProcessPool:
            if self.killed_for:
                return Outcome(STALLED, self.killed_for, seconds=round(time.monotonic() - self.submitted, 3))
            return Outcome(CRASHED, "the worker process died (out of memory?). Run the same command to try again")


def _initialize(watchdog: Watchdog, environment: dict[str, str]) -> None:
    """Set environment variables, use one thread, exit when the parent process does, and mark native calls."""
    import cv2

    os.environ |= environment
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
