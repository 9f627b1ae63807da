"""How long the embedded model takes for a clip: 300 frames of 1080p, one face.

    python -m benchmarks.one_clip [--video FILE] [--device cpu]

Scores it alone, and copies of it in one run. What counts is from the clip's file to its score, decoding included, once
the program and the network have been loaded. Without --video the clip is drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from preprocessing import sample_clips

COPIES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--video", type=Path)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = args.video or sample_clips.face_clip(Path(folder) / "clip.mp4", 300, 1920, 1080)
        whole, alone = scored(clip, 1, Path(folder), args.device)
        more, _ = scored(clip, COPIES, Path(folder), args.device)
    print(
        f"{os.cpu_count()} cores: {alone:.2f} s for a clip alone, after {whole - alone:.1f} s to load the program; "
        f"{(more - whole) / (COPIES - 1):.2f} s for each of several"
    )


def scored(clip: Path, count: int, folder: Path, device: str) -> tuple[float, float]:
    """Seconds that the program takes for `count` copies of a clip, and of them those for the first copy."""
    videos, details = folder / str(count), folder / f"{count}.jsonl"
    videos.mkdir()
    for number in range(count):
        (videos / f"{number}{clip.suffix}").symlink_to(clip.resolve())
    options = ["--test-dir", videos, "--output", folder / f"{count}.csv", "--details", details, "--device", device]
    started = time.perf_counter()
    subprocess.run([sys.executable, "predict_folder.py", *map(str, options)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    return seconds, json.loads(details.read_text().splitlines()[0])["seconds"]


if __name__ == "__main__":
    main()
