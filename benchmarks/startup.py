"""Measure a short run from the start of predict_folder.py to its exit, phase by phase.

    python -m benchmarks.startup [--video FILE] [--baseline CHECKOUT] [--repeat 5] [--json FILE]

The embedded model scores one clip; without --video, a generated one: 300 frames of 720p with one face. With --baseline,
another checkout of this project is measured in turn, and "plain" is that one. Times are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.processes import ROOT, ProgramError
from benchmarks.results import Stage, add_json_option, stage_table, write_json
from common import cli
from preprocessing import sample_clips


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--video", type=Path, metavar="FILE", help="clip to score (default: a generated one)")
    add("--baseline", type=Path, metavar="CHECKOUT", help="another checkout to compare with")
    add("--device", default="cpu", help="device of the networks: auto, cpu, cuda, cuda:1 or mps")
    add("--repeat", type=cli.positive, default=5, help="number of measurements")
    add_json_option(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure both checkouts and print their phases. Return the exit status."""
    baseline = (args.baseline or ROOT).absolute()
    runs: dict[Path, list[dict[str, float]]] = {baseline: [], ROOT: []}
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        clip = args.video or sample_clips.face_clip(Path(folder) / "clip.mp4", 300, 1280, 720)
        for _ in range(args.repeat):
            for checkout, phases in runs.items():
                output = Path(folder) / f"{len(phases)}.csv"
                phases.append(run(checkout, clip.absolute(), output, args.device))
                scores[checkout] = float(output.read_text().split(",")[-1])
                output.unlink()
    medians = {
        checkout: {name: statistics.median(run[name] for run in phases) for name in phases[0]}
        for checkout, phases in runs.items()
    }
    stages = {name: Stage(medians[baseline][name], seconds) for name, seconds in medians[ROOT].items()}
    print(stage_table(stages))
    result = {
        "ratio": stages["total"].plain / stages["total"].ours,
        "stages": {name: stage.to_dict() for name, stage in stages.items()},
        "headings": {"plain": "Before", "ours": "Now"},
        "max_score_difference": abs(scores[ROOT] - scores[baseline]),
    }
    write_json(args.json, "1 clip, the embedded model", result)
    return cli.OK


def run(checkout: Path, clip: Path, output: Path, device: str) -> dict[str, float]:
    """Score a clip and return the seconds of each phase and in total."""
    command = [sys.executable, ROOT / "benchmarks" / "phases.py", checkout, "--test-dir", clip, "--output", output]
    start = time.time()
    finished = subprocess.run([*map(str, command), "--device", device], cwd=checkout, capture_output=True, text=True)
    end = time.time()
    if finished.returncode:
        raise ProgramError(f"{checkout}: predict_folder.py failed: {finished.stderr.splitlines()[-1]}")
    ends = {**json.loads(finished.stderr.splitlines()[-1]), "exit": end}
    phases = {
        name: after - before for name, (before, after) in zip(ends, pairwise([start, *ends.values()]), strict=True)
    }
    return {**phases, "total": end - start}


if __name__ == "__main__":
    cli.main(main, get_args_parser())
