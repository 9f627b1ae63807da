"""The simulation of runs on a cluster, on cases that can be computed by hand."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.makespan import Node, Outage, Scenario, make_nodes, makespan, outages, read_times
from common.errors import UserError
from tests.support import programs

ROOT = Path(__file__).parents[1]


def lost(*times: tuple[float, float]) -> Node:
    return Node(outages=iter(Outage(*pair) for pair in times))


def test_free_workers_take_the_next_clip() -> None:
    """One worker runs 4 and 2, the other 3, 3 and 1: they take the clips in order as they become free."""
    assert makespan([4, 3, 3, 2, 1], [Node(), Node()], workers=1) == 7
    assert makespan([4, 3, 3, 2, 1], [Node()], workers=2) == 7
    assert makespan([4, 3, 3, 2, 1], [Node()], workers=1) == 13
    assert makespan([], [Node()], workers=1) == 0


def test_a_slow_node_takes_fewer_clips() -> None:
    """Of six clips of 1 s, a node that takes 3 s per clip runs one or two."""
    assert makespan([1] * 6, [Node(), Node(3.0)], workers=1) == 6
    assert makespan([1] * 6, [Node(3.0)], workers=1) == 18


def test_clips_in_flight_on_a_lost_node_run_again() -> None:
    """At 3 s, the second clip is lost; both remaining clips run from 10 s."""
    assert makespan([2, 2, 2], [lost((3, 10))], workers=1) == 14
    # The other node runs the clips from 0, 2 and 4 s (the lost one) meanwhile.
    assert makespan([2, 2, 2, 2], [lost((3, 10)), Node()], workers=1) == 6


def test_an_idle_worker_takes_a_lost_clip() -> None:
    """The second node is idle from 1 s; it runs the clip of 5 s that the first one loses at 4 s."""
    assert makespan([5, 1], [lost((4, math.inf)), Node()], workers=1) == 9


def test_all_workers_of_a_node_are_lost_together() -> None:
    assert makespan([4, 4], [lost((2, 5))], workers=2) == 9


def test_a_node_that_is_lost_while_idle_takes_no_clip_until_it_returns() -> None:
    """The only other node loses its clip at 6 s, when the idle node is lost until 7 s."""
    assert makespan([8, 1], [lost((6, math.inf)), lost((2, 7))], workers=1) == 15


def test_a_run_without_nodes_never_ends() -> None:
    assert makespan([2, 2], [lost((3, math.inf))], workers=1) == math.inf


def test_slow_nodes_and_outages_are_as_frequent_as_asked() -> None:
    rng = np.random.default_rng(0)
    nodes = make_nodes(64, Scenario(slow_share=0.25, slow_factor=3), rng)
    assert [node.factor for node in nodes].count(3) == 16
    assert nodes[0].outage(1e9).start == math.inf
    stream = outages(Scenario(mtbf=100, return_after=50), rng)
    pairs = [next(stream) for _ in range(20_000)]
    assert pairs[-1].end / len(pairs) == pytest.approx(150, rel=0.03)
    assert all(pair.end - pair.start == pytest.approx(50) for pair in pairs)


def test_times_are_read_from_details_and_progress_files(tmp_path: Path) -> None:
    details = [{"record": "run"}, {"record": "video", "filename": "a.mp4", "processing_seconds": 1.5}]
    crops = [{"settings": {"stage": "crops"}}, record("b", 9), record("b", 2), record("skipped", 0)]
    diffs = [record("b", 0.25)]
    paths = [tmp_path / f"{name}.jsonl" for name in ("details", "crops", "diffs")]
    for path, lines in zip(paths, (details, crops, diffs), strict=True):
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert read_times(paths).tolist() == [1.5, 2.25]


def record(clip: str, seconds: float) -> dict:
    return {"clip": clip, "stamp": [], "settings": "", "record": {"status": "ok", "seconds": seconds}}


@pytest.mark.parametrize("content", ["not JSON", '{"record": "run"}', ""])
def test_a_file_without_times_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"other\.jsonl"):
        read_times([path])


def test_table(tmp_path: Path) -> None:
    """With equal clips and nothing lost, Ray takes as long as the ideal, and shards as long as the largest one."""
    path = tmp_path / "details.jsonl"
    path.write_text('{"filename": "a.mp4", "processing_seconds": 7}\n')
    options = "--mean 36 --clips 800 --nodes 4 --workers 2 --seeds 3 --mtbf 1"
    command = [sys.executable, "-m", "benchmarks.makespan", path, *options.split()]
    finished = programs.run(command, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    first, _, *rows = finished.stdout.splitlines()
    assert first == "1 recorded clips, 36.00 s on average; 800 clips per run"
    assert rows[0].split() == ["4", "Ray", "60.0", "60.0", "60.0", "1.000"]
    assert len(rows) == 8
    ratios = [float(row.split()[-1]) for row in rows]
    assert ratios[0] < ratios[1] < ratios[5]
    assert programs.run(command, cwd=ROOT).stdout == finished.stdout
