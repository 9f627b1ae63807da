"""Worker processes that run cases, and that are replaced when a case kills them or takes too long."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.fuzzing.target import Result, Target, clear
from common.cli import PrintableFormatter

# Address space for data of a worker process in bytes, so that a case cannot take the memory of the whole machine.
MEMORY = 12 * 2**30
# Memory in bytes that a case may take beyond what the cases before it took.
MORE_MEMORY = 2**30
# Seconds for a process to end by itself.
PATIENCE = 10
# What Python prints about exceptions that nobody handles, also those in logging handlers and destructors.
UNHANDLED = ("Traceback", "Warning: ", "Exception ignored")

MakeTargets = Callable[[Path], list[Target]]


class Worker:
    """A worker process, started on first use.

    Args:
        make_targets: makes the targets from the folder of the seeds.
        seeds: folder of the files that inputs are made from.
        folder: folder for this worker's files.

    Attributes:
        target: the target of the batch in progress; None if there is none.
        numbers: the cases of this batch that have no result yet.
    """

    def __init__(self, make_targets: MakeTargets, seeds: Path, folder: Path):
        self.arguments = make_targets, seeds, folder
        self.folder = folder
        self.target: Target | None = None
        self.numbers: list[int] = []
        self.process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection

    @property
    def input(self) -> Path:
        """Folder of the input of the case in progress, or of the last one."""
        return self.folder / "input"

    def start(self, target: Target, seed: int, numbers: Sequence[int]) -> None:
        """Start a batch of cases."""
        if self.process is None:
            self._start_process()
        self.target, self.numbers, self.seed = target, list(numbers), seed
        self.started = time.monotonic()
        self.connection.send((target.name, seed, self.numbers))

    def _start_process(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = context.Process(target=_serve, args=(theirs, *self.arguments))
        with theirs, _interrupt_deferred():
            self.process.start()

    def receive(self) -> tuple[int, float, Result]:
        """Return the number, the seconds and the result of the next case."""
        assert self.target
        try:
            result = self.connection.recv()
        except (EOFError, OSError):
            assert self.process
            self.process.join()
            result = Result("crash", f"the worker process died with exit status {self.process.exitcode}")
        return self._finish(result)

    def stop_if_overdue(self) -> tuple[int, float, Result] | None:
        """Stop a case that takes too long and return its result."""
        if not self.target or time.monotonic() - self.started < self.target.limit:
            return None
        return self._finish(Result("hang", f"no result within {self.target.limit:g} s"))

    def _finish(self, result: Result) -> tuple[int, float, Result]:
        number, seconds = self.numbers.pop(0), time.monotonic() - self.started
        if result.status in ("crash", "hang"):
            self.kill()
        if not self.numbers:
            self.target = None
        self.started = time.monotonic()
        return number, seconds, result

    def go_on(self) -> None:
        """Go on after a problem, with which the process waits so that its input can be copied, or which killed it."""
        if self.process is not None:
            self.connection.send(None)
        elif self.target:
            self.start(self.target, self.seed, self.numbers)

    def close(self) -> None:
        """End the process; if a case is in progress, kill it."""
        if self.process is not None and self.process.pid is not None and self.target is None:
            self.connection.close()
            self.process.join(PATIENCE)
        self.kill()

    def kill(self) -> None:
        """Kill the process and those that it has started."""
        process, self.process = self.process, None
        if process is not None and process.pid is not None:
            with suppress(ProcessLookupError):  # it has no group of its own yet
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
            self.connection.close()


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Raise KeyboardInterrupt after the block instead of within it. Processes started in it ignore Ctrl-C."""
    interrupts: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, _: interrupts.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupts:
        raise KeyboardInterrupt


def _serve(connection: Connection, make_targets: MakeTargets, seeds: Path, folder: Path) -> None:
    """Run the batches that arrive until the connection closes."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    errors = folder / "stderr.txt"
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC), 2)
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    targets = {target.name: target for target in make_targets(seeds)}
    clear(folder / "input")
    with suppress(EOFError, ConnectionError):
        while True:
            name, seed, numbers = connection.recv()
            memory = _peak_memory()
            for result in targets[name].run(seed, numbers, folder / "input"):
                result = _judge(result, errors, memory)
                connection.send(result)
                if result.problem:
                    connection.recv()  # the input has been copied
                memory = _peak_memory()


def _judge(result: Result, errors: Path, memory: int) -> Result:
    """Return a result, with a problem if the case printed a traceback or took much memory."""
    if result.problem:
        errors.write_text("")
        return result
    if errors.stat().st_size:
        printed = errors.read_text(errors="replace")
        errors.write_text("")
        if any(text in printed for text in UNHANDLED):
            return Result(result.status, f"printed:\n{printed}")
    if memory and _peak_memory() - memory > MORE_MEMORY:
        return Result(result.status, f"took {(_peak_memory() - memory) / 2**30:.1f} GiB of memory")
    return result


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
