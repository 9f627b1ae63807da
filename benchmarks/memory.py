"""Does the number of clips change how much memory is taken?

    python -m benchmarks.memory [--few 20] [--many 200]

Scores FEW and MANY copies of a 1080p clip with the embedded network and compares the peaks.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from preprocessing import sample_clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--few", type=int, default=20)
    parser.add_argument("--many", type=int, default=200)
    args = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        clip = sample_clips.face_clip(Path(folder) / "clip.mp4", 32, 1920, 1080)
        for count in (args.few, args.many):  # the fewer first: children's peak is one figure that only grows
            videos = Path(folder) / str(count)
            videos.mkdir()
            for number in range(count):
                os.link(clip, videos / f"{number}.mp4")
            command = [sys.executable, "predict_folder.py", "--test-dir", str(videos)]
            subprocess.run([*command, "--output", f"{folder}/{count}.csv"], check=True)
            unit = 2**30 if sys.platform == "darwin" else 2**20
            peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit)
            print(f"{count} clips of 1080p: peak {peaks[-1]:.2f} GiB")
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
