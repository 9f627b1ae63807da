"""Measure what Ray adds to the time of a clip: one worker on a Ray node of this machine against one local worker.

    python -m benchmarks.cluster --videos VIDEOS [--copies 4] [--runs 3]

Both score the same videos with the embedded model, and both detect the faces on every 10th frame of them (stage 1), on
one CPU core. Times are from the first result to the last one, so that they leave out the start of the workers, which
takes seconds and does not depend on the number of clips. The runs alternate; medians are compared.
"""

from __future__ import annotations

import os

# Before PyTorch and Ray are loaded: one thread, as a Ray worker with one CPU has, and Ray's workers without `nice`.
os.environ |= {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from common import cli
from common.local_executor import run_local
from common.outcome import Executor, Job
from common.ray_cluster import GIB, Resources
from common.ray_executor import run_on_ray
from common.text import plural
from common.watchdog import CLIP_TIMEOUT, TimeLimits
from inference.loading import load_predictor
from inference.scorers import LocalScorer, RayScorer
from inference.submission import find_videos
from preprocessing.detect_original_faces import detect

RESOURCES = Resources(cpus=1, memory=2.0)


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--videos", type=Path, required=True, metavar="VIDEOS", help="folder of videos")
    parser.add_argument("--copies", type=cli.positive, default=4, help="number of times that each video is processed")
    parser.add_argument("--runs", type=cli.positive, default=3, help="number of runs on each side")
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure and print the table. Return the exit status."""
    import ray

    ray.init(num_cpus=1, _memory=4 * GIB, object_store_memory=GIB // 8, include_dashboard=False, log_to_driver=False)
    found = find_videos(args.videos).videos
    videos = {f"{number}/{name}": path for number in range(args.copies) for name, path in found.items()}
    print(f"{plural(len(videos), 'clip')}\n{'seconds per clip':24}{'local':>10}{'Ray':>10}{'Ray/local':>12}")
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            Job(str(number), (), Path(), (path, Path(folder, f"{number}.json"), "auto", "cpu"))
            for number, path in enumerate(videos.values())
        ]
        on_ray = partial(run_on_ray, address="auto", resources=RESOURCES, limits=TimeLimits())
        compare("predict", partial(score_locally, videos), partial(score_on_ray, videos), args.runs)
        compare("detect_original_faces", partial(run, run_local, jobs), partial(run, on_ray, jobs), args.runs)
    return cli.OK


def compare(name: str, local: Callable[[], Any], on_ray: Callable[[], Any], runs: int) -> None:
    """Print the median times of both sides and their ratio."""
    times: dict[Callable, list[float]] = {local: [], on_ray: []}
    for _ in range(runs):
        for measure, results in times.items():
            results.append(measure())
    theirs, ours = (statistics.median(results) for results in times.values())
    print(f"{name:24}{theirs:10.3f}{ours:10.3f}{ours / theirs:12.3f}", flush=True)


def score_locally(videos: dict[str, Path]) -> float:
    """Return the seconds per video of this process."""
    return seconds_per_item(LocalScorer(load_predictor(device="cpu", workers=1)).score(videos))


def score_on_ray(videos: dict[str, Path]) -> float:
    """Return the seconds per video of a worker on Ray."""
    scorer = RayScorer(partial(load_predictor, device="cpu", workers=1), RESOURCES, 1, CLIP_TIMEOUT)
    try:
        return seconds_per_item(scorer.score(videos))
    finally:
        scorer.close()


def run(execute: Executor, jobs: list[Job]) -> float:
    """Return the seconds per clip of an executor with one worker."""
    return seconds_per_item(execute(detect, jobs, 1))


def seconds_per_item(results: Iterable[Any]) -> float:
    """Return the mean time between two results in seconds."""
    times = [time.perf_counter() for _ in results]
    return (times[-1] - times[0]) / (len(times) - 1)


if __name__ == "__main__":
    cli.main(main, get_args_parser())
