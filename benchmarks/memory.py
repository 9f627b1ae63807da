"""Compare the peak memory of prediction for few and many clips.

    python -m benchmarks.memory [--few 20] [--many 200]

Scores copies of a generated 1080p clip with the embedded model. A ratio near 1 means that memory does not grow with
the number of clips.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.processes import measure
from common import cli
from preprocessing import sample_clips


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--few", type=cli.positive, default=20, help="number of clips in the first run")
    parser.add_argument("--many", type=cli.positive, default=200, help="number of clips in the second run")
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure both runs and print the peaks and their ratio. Return the exit status."""
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        clip = sample_clips.face_clip(Path(folder) / "clip.mp4", 32, 1920, 1080)
        for name in ("few", "many"):
            count, videos = getattr(args, name), Path(folder) / name
            videos.mkdir()
            for number in range(count):
                os.link(clip, videos / f"{number}.mp4")
            usage = measure("predict_folder.py", "--test-dir", videos, "--output", f"{folder}/{name}.csv")
            peaks.append(usage.memory / 2**30)
            print(f"{count} clips of 1080p: peak {peaks[-1]:.2f} GiB", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.3f}")
    return cli.OK


if __name__ == "__main__":
    cli.main(main, get_args_parser())
