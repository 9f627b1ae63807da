"""Fuzz everything that the programs read: random changes of valid files must end with a documented status or error.

    python -m benchmarks.fuzz [--minutes 10] [--seed 0] [--targets journal folds ...] [--jobs 2]

A case is made from the seed, the target and a number, which the report of a finding names; the input is copied to
--output. --first NUMBER --cases 1 repeats one case. The programs (predict, preprocess) read a folder of 50 clips at a
time, so there a finding is repeated with the first number of the folder and --cases 50.

Exit status: 0 if nothing was found, 1 if something was, 130 after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from benchmarks.fuzzing.target import Result, Target
from benchmarks.fuzzing.workers import MakeTargets, Worker
from common import cli
from common.text import plural

FOUND = 1
NAMES = (
    "decoder", "stage", "predict", "preprocess", "checkpoint", "resume",
    "journal", "dataset", "folds", "boxes", "crops", "log", "config", "submission",
)  # fmt: skip
# Seconds between two looks at the workers, and between two lines of progress.
POLL_INTERVAL, REPORT_INTERVAL = 1.0, 300.0
# Findings of one kind whose inputs are kept.
KEPT = 3

log = logging.getLogger("fuzz")


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="time to run; the cases in progress are finished")
    add("--cases", type=cli.positive, metavar="N", help="number of cases per target (default: as many as possible)")
    add("--first", type=cli.not_negative, default=0, metavar="NUMBER", help="number of the first case of each target")
    add("--seed", type=int, default=0, help="random seed")
    add("--targets", nargs="+", choices=NAMES, default=NAMES, metavar="TARGET", help=f"any of {', '.join(NAMES)}")
    add("--jobs", type=cli.positive, default=1, help="number of cases that run concurrently")
    add("--output", type=Path, default=Path("fuzz"), metavar="DIR", help="folder for the inputs of findings")
    return parser


def make_targets(seeds: Path) -> list[Target]:
    """Return all targets."""
    from benchmarks.fuzzing.checkpoints import checkpoint_targets
    from benchmarks.fuzzing.clips import clip_targets
    from benchmarks.fuzzing.files import file_targets
    from benchmarks.fuzzing.programs import program_targets

    return [*clip_targets(seeds), *program_targets(seeds), *checkpoint_targets(seeds), *file_targets(seeds)]


@dataclass
class Tally:
    """The results of one target.

    Attributes:
        target: the target.
        next: number of the next case.
        running: number of the cases in progress.
        seconds: time of the finished cases.
        statuses: number of cases per status.
        findings: number of findings per kind.
    """

    target: Target
    next: int
    running: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)


class Run:
    """A run over several targets: starts the cases, and collects and reports their results.

    Args:
        args: the command line.
        folder: temporary folder.
        make_targets: makes the targets.
    """

    def __init__(self, args: argparse.Namespace, folder: Path, make_targets: MakeTargets):
        self.args = args
        self.tallies = {t.name: Tally(t, args.first) for t in make_targets(folder / "seeds") if t.name in args.targets}
        self.workers = [Worker(make_targets, folder / "seeds", folder / f"worker{n}") for n in range(args.jobs)]
        self.end = args.first + args.cases if args.cases else None

    def execute(self) -> None:
        """Run cases until the time is over or all are done."""
        for tally in self.tallies.values():
            tally.target.prepare()
        start = reported = time.monotonic()
        try:
            while self._start_batches(time.monotonic() - start < 60 * self.args.minutes):
                for tally, case in self._finished_cases():
                    self._add(tally, *case)
                if time.monotonic() - reported > REPORT_INTERVAL:
                    reported = time.monotonic()
                    log.info("%.0f minutes: %s", (reported - start) / 60, self.summary())
        finally:
            for worker in self.workers:
                worker.close()

    def _start_batches(self, more: bool) -> bool:
        """Give each idle worker a batch, if there is time for more. Return whether any worker is busy."""
        for worker in self.workers:
            if more and worker.target is None and (tally := self._most_behind()):
                count = min(tally.target.batch, (self.end or tally.next + tally.target.batch) - tally.next)
                numbers = range(tally.next, tally.next + count)
                tally.next, tally.running = numbers.stop, tally.running + count
                worker.start(tally.target, self.args.seed, numbers)
        return any(worker.target for worker in self.workers)

    def _most_behind(self) -> Tally | None:
        """Return the target with the least time so far, relative to its share; targets without any case come first."""
        ready = [tally for tally in self.tallies.values() if self.end is None or tally.next < self.end]
        return min(ready, key=lambda tally: (tally.seconds + tally.running) / tally.target.weight, default=None)

    def _finished_cases(self) -> Iterator[tuple[Tally, tuple[Worker, int, float, Result]]]:
        """Yield the cases that have finished or take too long."""
        busy = {worker.connection: worker for worker in self.workers if worker.target}
        ready = wait(list(busy), POLL_INTERVAL)
        for connection, worker in busy.items():
            assert worker.target
            tally = self.tallies[worker.target.name]
            case = worker.receive() if connection in ready else worker.stop_if_overdue()
            if case:
                yield tally, (worker, *case)

    def _add(self, tally: Tally, worker: Worker, number: int, seconds: float, result: Result) -> None:
        tally.running -= 1
        tally.seconds += seconds
        tally.statuses[result.status] += 1
        if result.problem:
            kind = kind_of(result)
            tally.findings[kind] += 1
            if tally.findings[kind] <= KEPT:
                self._keep(tally.target.name, worker.input, number, result)
            worker.go_on()

    def _keep(self, target: str, source: Path, number: int, result: Result) -> None:
        """Report a finding and copy its input."""
        folder = self.args.output / f"{target}_{self.args.seed}_{number}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder, symlinks=True)
        (folder / "finding.txt").write_text(f"{result.status}\n{result.problem}\n", errors="backslashreplace")
        repeat = f"--seed {self.args.seed} --targets {target} --first {number} --cases 1"
        print(f"{result.status} ({repeat}), input in {folder}:\n{result.problem}", flush=True)

    def summary(self) -> str:
        """Return the number of all cases and findings."""
        cases = sum(tally.statuses.total() for tally in self.tallies.values())
        findings = sum(tally.findings.total() for tally in self.tallies.values())
        return f"{plural(cases, 'case')}, {plural(findings, 'finding')}"

    def table(self) -> str:
        """Return a table of the targets."""
        rows = [f"{'target':12}{'cases':>9}{'seconds':>9}{'findings':>9}  statuses"]
        for name, tally in self.tallies.items():
            counts = ", ".join(f"{count} {status}" for status, count in tally.statuses.most_common())
            rows.append(f"{name:12}{tally.statuses.total():9}{tally.seconds:9.0f}{tally.findings.total():9}  {counts}")
        return "\n".join([*rows, self.summary()])

    def found(self) -> bool:
        """Return whether there is any finding."""
        return any(tally.findings for tally in self.tallies.values())


def kind_of(result: Result) -> str:
    """Return a text that is the same for findings with the same cause: the place and the type of an exception."""
    lines = result.problem.strip().splitlines() or [""]
    places = [line.strip() for line in lines if line.lstrip().startswith("File ")]
    return f"{result.status} {places[-1] if places else ''} {re.sub(r'[0-9]+|.(?<=[^ -~])', '', lines[-1])[:60]}"


def main(args: argparse.Namespace, make_targets: MakeTargets = make_targets) -> int:
    """Run the cases and print the table. Return the exit status."""
    with tempfile.TemporaryDirectory(prefix="fuzz", ignore_cleanup_errors=True) as folder:
        run = Run(args, Path(folder), make_targets)
        status = cli.OK
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # print the table, as after Ctrl-C
        try:
            run.execute()
        except KeyboardInterrupt:
            status = cli.INTERRUPTED
        print(run.table())
    return status or (FOUND if run.found() else cli.OK)


if __name__ == "__main__":
    cli.main(main, get_args_parser())
