"""How long the embedded model takes for a clip: 300 frames of 1080p, one face.

    python -m benchmarks.one_clip [--video FILE] [--device cpu]

Scores the clip once and five times in one run; the difference is what a clip takes, decoding included, once the
program has been loaded. Without --video the clip is drawn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import clips

FEW, MANY = 1, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--video", type=Path)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = args.video or clips.face_clip(Path(folder) / "clip.mp4", 300, 1920, 1080)
        seconds = {count: scored(clip, count, Path(folder), args.device) for count in (FEW, MANY)}
    each = (seconds[MANY] - seconds[FEW]) / (MANY - FEW)
    print(f"{os.cpu_count()} cores: {each:.2f} s a clip, and {seconds[FEW] - each:.1f} s to load the program")


def scored(clip: Path, count: int, folder: Path, device: str) -> float:
    """Seconds that the program takes for `count` copies of a clip."""
    videos = folder / str(count)
    videos.mkdir()
    for number in range(count):
        (videos / f"{number}{clip.suffix}").symlink_to(clip.resolve())
    options = ["--test-dir", videos, "--output", folder / f"{count}.csv", "--device", device]
    started = time.perf_counter()
    subprocess.run([sys.executable, "predict_folder.py", *map(str, options)], check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
