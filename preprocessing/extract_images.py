"""Write every 10th frame of each video as an image.

    python preprocessing/extract_images.py --root-dir DATA_ROOT [--images-dir images]

writes DATA_ROOT/images/<video>/<frame>.jpg, for inspection or for another face detector.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli
from common.files import atomic_folder
from common.outcome import Job, Outcome
from common.text import plural
from preprocessing import stage
from preprocessing.images import encode_image
from preprocessing.layout import FRAME_STEP, IMAGES
from preprocessing.video import MAX_PIXELS, Clip, VideoError, iter_frames

VERSION = 1


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = stage.make_parser(__doc__)
    parser.add_argument("--images-dir", type=Path, default=Path(IMAGES), help="folder to write, within DATA_ROOT")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the frames of all videos. Return the exit status."""
    dataset, output = stage.load_dataset(args), args.root_dir / args.images_dir
    jobs = [
        Job(video.id, (video.path,), output / video.id, (video.path, output / video.id, args.max_pixels))
        for video in dataset.videos.values()
    ]
    settings = {"stage": Path(__file__).stem, "version": VERSION}
    return stage.run_jobs(args, dataset, extract, jobs, output, settings)


def extract(path: Path, output: Path, max_pixels: int = MAX_PIXELS) -> Outcome:
    """Write the frames of one clip."""
    clip = Clip(path, max_pixels)
    wanted = range(0, clip.total, FRAME_STEP)
    images = 0
    with atomic_folder(output) as folder:
        for frame in iter_frames(clip, wanted):
            (folder / f"{frame.index}.jpg").write_bytes(encode_image(frame.image, ".jpg"))
            images += 1
        if not images:
            raise VideoError(path, "no frame can be decoded. The file is damaged; download it again")
    lost = len(wanted) - images
    notes = [f"{plural(lost, 'frame')} cannot be decoded"] if lost else []
    return Outcome("ok", "; ".join(clip.notes + notes), {"images": images})


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
