"""Write every 10th frame of all videos as a whole, for who wants to look at them or to find faces otherwise.

    python preprocessing/extract_images.py --root-dir DATA_ROOT [--images-dir images]

writes DATA_ROOT/images/<video id>/<frame>.jpg.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from preprocessing import command
from preprocessing.images import encode_image
from preprocessing.jobs import Job, Outcome
from preprocessing.output import whole_folder
from preprocessing.video import FRAME_STEP, Clip, VideoError, iter_frames

VERSION = 1


def get_args_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__)
    command.add_run_arguments(parser)
    parser.add_argument("--images-dir", type=Path, default=Path("images"), help="folder to write, in the root folder")
    return parser


def main(args: argparse.Namespace) -> int:
    dataset = command.load(args)
    output = args.root_dir / args.images_dir
    todo = [
        Job(video.id, (video.path,), output / video.id, (video.path, output / video.id))
        for video in dataset.videos.values()
    ]
    settings = {"stage": Path(__file__).stem, "version": VERSION}
    return command.run_stage(args, extract, todo, output, settings)


def extract(path: Path, output: Path) -> Outcome:
    """Write the frames of one clip."""
    clip = Clip(path)
    wanted = range(0, clip.total, FRAME_STEP)
    images = 0
    with whole_folder(output) as folder:
        for frame in iter_frames(clip, wanted):
            (folder / f"{frame.index}.jpg").write_bytes(encode_image(frame.image, ".jpg"))
            images += 1
        if not images:
            raise VideoError(path, "no frame can be decoded; it is damaged, fetch it again")
    lost = len(wanted) - images
    return Outcome("ok", f"{lost} frames cannot be decoded" if lost else "", {"images": images})


if __name__ == "__main__":
    command.main(main, get_args_parser())
