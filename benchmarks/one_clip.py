"""Measure how long the embedded model takes for a single clip, and per clip when it scores several.

    python -m benchmarks.one_clip [--video FILE] [--device cpu]

Times are from the file to its score, including decoding; the time to load the program and the network is reported
separately. Without --video, the clip is generated: 300 frames of 1080p with one face.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import ROOT
from common import cli
from common.allocator import keep_freed_memory
from common.errors import UserError

if TYPE_CHECKING:
    from inference.predictor import Predictor

MODEL = ROOT / "weights" / "default_lite0.pt"


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--video", type=Path, help="clip to score (default: a generated one)")
    parser.add_argument("--device", default="cpu", help="device for the networks: auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--copies", type=cli.positive, default=5, help="number of copies scored in one call")
    parser.add_argument("--repeat", type=cli.positive, default=3, help="number of measurements; the fastest counts")
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the seconds for loading, for a single clip and per clip of several. Return the exit status."""
    keep_freed_memory()
    start = time.perf_counter()
    predictor = load_predictor(args.device)
    loading = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        clip = args.video or generated_clip(Path(folder) / "clip.mp4")
        alone = min(seconds_per_clip(predictor, clip, 1) for _ in range(args.repeat))
        several = min(seconds_per_clip(predictor, clip, args.copies) for _ in range(args.repeat))
    print(f"{os.cpu_count()} CPU cores, {predictor.ensemble.device} in {predictor.ensemble.precision}")
    print(f"loading the program: {loading:.1f} s")
    print(f"a clip alone: {alone:.2f} s")
    print(f"each of {args.copies} clips: {several:.2f} s")
    return cli.OK


def load_predictor(device: str) -> Predictor:
    """Import PyTorch and load the embedded model as predict_folder.py does."""
    from inference.ensemble import Ensemble
    from inference.predictor import Predictor
    from preprocessing.faces import FaceDetector

    ensemble = Ensemble([MODEL], device)
    return Predictor(ensemble, FaceDetector("inference", ensemble.device))


def generated_clip(path: Path) -> Path:
    """Generate the clip that is measured by default."""
    from preprocessing import sample_clips

    return sample_clips.face_clip(path, 300, 1920, 1080)


def seconds_per_clip(predictor: Predictor, clip: Path, copies: int) -> float:
    """Score copies of a clip in one call and return the seconds per copy. Raises UserError if it is unreadable."""
    start = time.perf_counter()
    results = list(predictor.predict([clip] * copies))
    seconds = time.perf_counter() - start
    if results[0].status == "unreadable":
        raise UserError(results[0].message)
    return seconds / copies


if __name__ == "__main__":
    cli.main(main, get_args_parser())
