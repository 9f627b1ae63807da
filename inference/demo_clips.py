"""Write the clips of the demo.

    python -m inference.demo_clips FOLDER

Two clips show a face, one shows the same face manipulated, and one shows no face. The manipulated face is blended with
a changed copy of itself, see `training.datasets.blending.self_blend`.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the program without a traceback

import argparse
from pathlib import Path

import numpy as np
from skimage.data import astronaut

from common import cli
from common.files import make_folder
from preprocessing.sample_clips import face_clip, faceless_clip, moving, write_clip
from training.datasets.blending import self_blend

# Square around the face of the portrait, and MTCNN's landmarks of this face, in pixels of the photograph.
LEFT, TOP, SIDE = 160, 50, 130
LANDMARKS = np.array([[205, 102], [247, 104], [225, 129], [202, 139], [245, 142]])
# Seed of the manipulation, chosen because the embedded model recognizes it: of the seeds 0 to 15, only 4 and 14.
SEED = 14


def write_demo_clips(folder: Path) -> None:
    """Write the clips."""
    make_folder(folder)
    face_clip(folder / "astronaut.mp4", 100, 960, 720)
    write_clip(folder / "astronaut_manipulated.mp4", moving(manipulated_portrait(SEED), 100, 960, 720, 1.8))
    face_clip(folder / "astronaut_portrait.mp4", 60, 360, 640)
    faceless_clip(folder / "coffee_no_face.mp4", 60, 640, 480)


def manipulated_portrait(seed: int) -> np.ndarray:
    """Return Eileen Collins' portrait with a self-blended face: uint8 (512, 512, 3)."""
    portrait = astronaut()
    face = np.s_[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    portrait[face], _ = self_blend(portrait[face], LANDMARKS - (LEFT, TOP), np.random.default_rng(seed))
    return portrait


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="output folder")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the clips. Return the exit status."""
    write_demo_clips(args.folder)
    return cli.OK


if __name__ == "__main__":
    cli.main(main, get_args_parser())
