"""Run jobs on a Ray cluster: as `common.local_executor` does, but on many machines."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any

from common import __version__
from common.local_executor import POLL_INTERVAL, WorkerProcess
from common.outcome import CRASHED, Job, Outcome, Outcomes
from common.ray_cluster import ROOT, Resources, connect
from common.versions import package_versions
from common.watchdog import TimeLimits

GIVEN_UP = Outcome(CRASHED, "its worker died several times (out of memory?). Run the same command to try again")


def run_on_ray(
    function: Callable[..., Outcome],
    jobs: Iterable[Job],
    workers: int | None,
    address: str,
    resources: Resources,
    limits: TimeLimits,
) -> Outcomes:
    """Run jobs on a Ray cluster (an Executor). The repository and the data must have the same paths on all nodes.

    Args:
        function: called with a job's arguments; must be importable.
        jobs: the jobs.
        workers: number of workers, each of which runs one clip at a time; None for as many as fit on the nodes.
        address: address of the cluster.
        resources: what is reserved for each worker.
        limits: what a clip may take.

    Raises:
        UserError: of the function; Ray is not installed, there is no cluster, or no worker can start.
    """
    jobs = list(jobs)
    if not jobs:
        return
    connect(address)
    from common.ray_pool import Pool

    pool = Pool(partial(JobWorker, name_of(function), limits), resources, workers, limits.clip)
    pool.expected = describe_environment()
    try:
        for index, outcome in pool.run([job.arguments for job in jobs]):
            yield jobs[index], outcome or GIVEN_UP
    finally:
        pool.close()


class JobWorker:
    """Runs jobs in a process of its own, which is killed when a clip takes too long (a `common.ray_pool.Worker`).

    Args:
        function: result of `name_of`.
        limits: what a clip may take.
    """

    def __init__(self, function: str, limits: TimeLimits):
        module, _, name = function.partition(":")
        self.function = getattr(importlib.import_module(module), name)
        self.process = WorkerProcess(limits)

    def describe(self) -> dict[str, Any]:
        """Return the versions of this project and of the packages."""
        return describe_environment()

    def run(self, items: Iterator[tuple]) -> Iterator[Outcome]:
        """Yield the outcome for each job's arguments."""
        for arguments in items:
            future = self.process.submit(self.function, arguments)
            while not wait([future], POLL_INTERVAL).done:
                self.process.kill_if_late()
            yield self.process.result(future)


def describe_environment() -> dict[str, Any]:
    """Return what the outputs of a stage depend on besides its inputs and settings."""
    return {"version": __version__, **package_versions()}


def name_of(function: Callable[..., Any]) -> str:
    """Return `module:name` of a function at module level, also if its module is the program that runs."""
    module = function.__module__
    if module == "__main__":
        path = Path(str(sys.modules[module].__file__)).resolve()
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return f"{module}:{function.__name__}"
