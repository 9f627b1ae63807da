"""Write the clips of the demo: two of a real face, one of the same face manipulated, and one without a face.

python -m inference.demo_clips FOLDER
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

# A square around the face in the portrait: left, top, side; and the face's landmarks, all in pixels of the portrait.
LEFT, TOP, SIDE = 160, 50, 130
LANDMARKS = np.array([[205, 102], [247, 104], [225, 129], [202, 139], [245, 142]])
SEED = 3


def manipulated_portrait() -> np.ndarray:
    """Return Eileen Collins' portrait with her face blended with a changed copy of itself: uint8 (512, 512, 3)."""
    portrait = astronaut()
    face = portrait[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    face[:] = self_blend(face, LANDMARKS - (LEFT, TOP), np.random.default_rng(SEED))[0]
    return portrait


def write_demo_clips(folder: Path) -> None:
    """Write the four clips."""
    make_folder(folder)
    face_clip(folder / "astronaut.mp4", 100, 960, 720)
    face_clip(folder / "astronaut_portrait.mp4", 60, 360, 640)
    write_clip(folder / "astronaut_manipulated.mp4", moving(manipulated_portrait(), 100, 960, 720, 720 / 400))
    faceless_clip(folder / "coffee_no_face.mp4", 60, 640, 480)


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="output folder")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the clips. Return the exit status."""
    write_demo_clips(args.folder)
    return cli.OK


if __name__ == "__main__":
    cli.main(main, get_args_parser())
