"""Simulate how long a run takes on a cluster with slow nodes and nodes that are lost.

    python -m benchmarks.makespan details.jsonl [--clips 124000] [--nodes 1 16 64]

The clips' times are sampled from recorded ones: `processing_seconds` of predict_folder.py --details, or `seconds` of
progress files in DATA_ROOT/progress/ (a clip's times in several files are added). `processing_seconds` includes the
time that concurrent steps wait for each other; --mean scales the times to the measured mean per clip of one worker.

Ray hands the next clip to any worker that is free. With shards, each node has the clips of its own shard. A node that
is lost loses the clips in flight, and its workers return after --return-after.

The table has the mean and the 95th percentile of the makespan over the seeds, and the mean of its ratio to the ideal:
the sum of the clips' times divided by the number of workers.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import cli
from common.errors import UserError


class Scenario(NamedTuple):
    """What goes wrong on a cluster.

    Attributes:
        slow_share: share of the nodes that are slow.
        slow_factor: how many times as long a clip takes on a slow node.
        mtbf: mean time between failures of a node in seconds; infinity for none.
        return_after: seconds until a lost node's workers start again; infinity for never.
    """

    slow_share: float = 0.0
    slow_factor: float = 2.0
    mtbf: float = math.inf
    return_after: float = 600.0


class Outage(NamedTuple):
    """A time in which a node is lost, in seconds since the start of the run."""

    start: float
    end: float


class Node:
    """A node of a simulation.

    Args:
        factor: how many times as long as recorded a clip takes.
        outages: when the node is lost, in order; may be endless.
    """

    def __init__(self, factor: float = 1.0, outages: Iterator[Outage] = iter(())):  # noqa: B008  # empty forever
        self.factor = factor
        self._outages = outages
        self._next = self._following()

    def outage(self, time: float) -> Outage:
        """Return the outage that lasts at a time or is the next one. Times must not decrease from call to call."""
        while self._next.end <= time:
            self._next = self._following()
        return self._next

    def _following(self) -> Outage:
        return next(self._outages, Outage(math.inf, math.inf))


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("records", nargs="+", type=Path, metavar="JSONL", help="files of --details, or progress files of stages")
    add("--mean", type=cli.positive_number, metavar="SECONDS", help="mean time per clip (default: as recorded)")
    add("--clips", type=cli.positive, default=124_000, metavar="N", help="number of clips of the run")
    add("--nodes", type=cli.positive, nargs="+", default=[1, 16, 64], metavar="N", help="numbers of nodes to compare")
    add("--workers", type=cli.positive, default=8, metavar="N", help="number of clips that a node runs concurrently")
    add("--group", type=cli.positive, default=1, metavar="N", help="clips that share a shard, as fakes of one original")
    add("--slow-share", type=cli.not_negative_number, default=0.05, metavar="X", help="share of slow nodes, 0 to 1")
    add("--slow-factor", type=cli.positive_number, default=2.0, metavar="X", help="times as long on a slow node")
    add("--mtbf", type=cli.positive_number, default=24.0, metavar="HOURS", help="mean time between a node's failures")
    add(
        "--return-after",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="time until the workers of a lost node start again; inf for never",
    )
    add("--seeds", type=cli.positive, default=20, metavar="N", help="number of simulations per row")
    return parser


def main(args: argparse.Namespace) -> int:
    """Simulate runs and print the table. Return the exit status."""
    recorded = read_times(args.records)
    if args.mean:
        recorded *= args.mean / recorded.mean()
    print(f"{len(recorded)} recorded clips, {recorded.mean():.2f} s on average; {args.clips} clips per run")
    print(f"{'nodes':>5}  {'':14}{'':8}{'ideal':>10}{'mean':>10}{'95%':>10}  minutes{'ratio':>8}")
    slow = {"slow_share": args.slow_share, "slow_factor": args.slow_factor}
    lost = {"mtbf": args.mtbf * 3600, "return_after": args.return_after}
    scenarios = {"": {}, "slow": slow, "lost": lost, "slow and lost": {**slow, **lost}}
    for nodes in args.nodes:
        for name, options in scenarios.items():
            for shards in (False, True):
                scenario = Scenario(**options)
                runs = [_run(recorded, args, nodes, scenario, shards, seed) for seed in range(args.seeds)]
                _print_row(nodes, name, "shards" if shards else "Ray", np.array(runs))
    return cli.OK


def _print_row(nodes: int, scenario: str, method: str, runs: np.ndarray) -> None:
    """Print a line of the table. `runs`: one row per seed with the makespan and the ideal in seconds."""
    makespans, ideals = runs.T
    high = np.sort(makespans)[math.ceil(0.95 * len(makespans)) - 1]
    ratio = np.mean(makespans / ideals)
    times = "".join(f"{seconds / 60:10.1f}" for seconds in (ideals.mean(), makespans.mean(), high))
    print(f"{nodes:5}  {scenario:14}{method:8}{times}{ratio:17.3f}", flush=True)


def read_times(paths: Sequence[Path]) -> np.ndarray:
    """Return the positive times of the clips in some files in seconds. A clip's last record in a file is valid.

    Raises:
        UserError: a file cannot be read, or there are no times.
    """
    times: Counter[str] = Counter()
    for path in paths:
        try:
            lines = [json.loads(line) for line in path.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read as JSON Lines ({error}). Name a file of --details") from None
        times.update({clip: seconds for clip, seconds in map(_time_of, lines) if seconds > 0})
    if not times:
        raise UserError(f"{', '.join(map(str, paths))}: no times of clips. Name a file of --details or a progress file")
    return np.array(list(times.values()), float)


def _time_of(line: dict) -> tuple[str, float]:
    """Return a clip and its time; 0 if the line is not the record of a clip."""
    if isinstance(line.get("record"), dict):
        return line["clip"], line["record"].get("seconds", 0)  # a line of a progress file
    return line.get("filename", ""), line.get("processing_seconds", 0)


def _run(
    recorded: np.ndarray, args: argparse.Namespace, nodes: int, scenario: Scenario, shards: bool, seed: int
) -> tuple[float, float]:
    """Simulate one run. Return the makespan and the ideal in seconds. A seed's clips are the same in all scenarios."""
    rng = np.random.default_rng(seed)
    clips = rng.choice(recorded, args.clips)
    groups = rng.integers(nodes, size=-(-args.clips // args.group))  # like a hash of the original's name
    cluster = make_nodes(nodes, scenario, rng)
    ideal = clips.sum() / (nodes * args.workers)
    if not shards:
        return makespan(clips, cluster, args.workers), ideal
    shard_of = np.repeat(groups, args.group)[: args.clips]
    return max(makespan(clips[shard_of == i], [node], args.workers) for i, node in enumerate(cluster)), ideal


def make_nodes(number: int, scenario: Scenario, rng: np.random.Generator) -> list[Node]:
    """Return nodes, of which randomly chosen ones are slow."""
    slow = set(rng.permutation(number)[: round(scenario.slow_share * number)].tolist())
    return [
        Node(scenario.slow_factor if i in slow else 1.0, outages(scenario, stream))
        for i, stream in enumerate(rng.spawn(number))
    ]


def outages(scenario: Scenario, rng: np.random.Generator) -> Iterator[Outage]:
    """Yield a node's outages: the times between them are exponential."""
    time = 0.0
    while time < math.inf:
        start = time + (rng.exponential(scenario.mtbf) if scenario.mtbf < math.inf else math.inf)
        time = start + scenario.return_after
        yield Outage(start, time)


def makespan(clips: Sequence[float] | np.ndarray, nodes: Sequence[Node], workers: int) -> float:
    """Return when the last clip is finished, in seconds; infinity if no node is left before.

    Args:
        clips: time of each clip on a normal node in seconds, in the order in which they start.
        nodes: the nodes.
        workers: number of clips that each node runs concurrently.
    """
    waiting = deque(np.asarray(clips, float).tolist())
    order = count()  # of events at the same time
    # A worker (its node) becomes free, or the clip of a lost one (its time) returns to those that wait.
    events: list[tuple[float, int, Node | float]] = [(0.0, next(order), node) for _ in range(workers) for node in nodes]
    idle: list[Node] = []
    end = 0.0
    while events:
        time, _, subject = heapq.heappop(events)
        if isinstance(subject, Node):
            idle.append(subject)
        else:
            waiting.append(subject)
        while waiting and idle:
            node = idle.pop()
            outage = node.outage(time)
            if outage.start <= time:  # the node was lost while the worker was idle
                _add(events, outage.end, next(order), node)
                continue
            clip = waiting.popleft()
            finish = time + clip * node.factor
            if finish <= outage.start:
                end = max(end, finish)
                _add(events, finish, next(order), node)
            else:
                _add(events, outage.start, next(order), clip)
                _add(events, outage.end, next(order), node)
    return math.inf if waiting else end


def _add(events: list[tuple[float, int, Node | float]], time: float, order: int, subject: Node | float) -> None:
    """Add an event, unless it never happens."""
    if time < math.inf:
        heapq.heappush(events, (time, order, subject))


if __name__ == "__main__":
    cli.main(main, get_args_parser())
