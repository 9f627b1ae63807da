"""Measure how the scores of videos change when the videos are compressed, resized or cut.

    python -m benchmarks.video_robustness VIDEOS [--models FILE ...]

Makes variants of each video and prints their scores as a table, with the largest difference from the score of the
unchanged video. VIDEOS is a folder or one video, as for predict_folder.py.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from common import cli
from common.errors import UserError
from inference.loading import DEFAULT_MODEL, load_predictor
from inference.submission import find_videos
from preprocessing.sample_clips import write_clip
from preprocessing.video import Clip, iter_frames

if TYPE_CHECKING:
    from inference.predictor import Predictor


class Variant(NamedTuple):
    """A change of a video, which is then encoded as H.264.

    Attributes:
        crf: constant rate factor of the encoding; 18 is visually lossless.
        scale: factor of the frame's width and height.
        start, end: part of the frames, as fractions of the video.
    """

    crf: int = 18
    scale: float = 1
    start: float = 0
    end: float = 1


VARIANTS = {
    "unchanged": None,
    "encoded again, CRF 18": Variant(),
    "encoded again, CRF 28": Variant(crf=28),
    "encoded again, CRF 38": Variant(crf=38),
    "half the width and height": Variant(scale=0.5),
    "a quarter of the width and height": Variant(scale=0.25),
    "first third": Variant(end=1 / 3),
    "last third": Variant(start=2 / 3),
}


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("videos", type=Path, help="folder of videos, or one video")
    add("--models", type=Path, nargs="+", default=[DEFAULT_MODEL], metavar="FILE", help="checkpoints")
    add("--device", default="cpu", help="device for the networks: auto, cpu, cuda, cuda:1 or mps")
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the table. Return the exit status."""
    videos = find_videos(args.videos).videos
    predictor = load_predictor(args.models, args.device)
    scores = {name: measure(path, predictor) for name, path in videos.items()}
    print("\n".join(table(scores)))
    return cli.OK


def measure(path: Path, predictor: Predictor) -> list[float]:
    """Return the score of each variant of a video. Raises UserError if it is unreadable."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            make_variant(path, Path(folder) / f"{number}.mp4", variant) if variant else path
            for number, variant in enumerate(VARIANTS.values())
        ]
        results = list(predictor.predict(paths))
    for result in results:
        if result.status == "unreadable":
            raise UserError(result.message)
    return [result.score for result in results]


def make_variant(path: Path, output: Path, variant: Variant) -> Path:
    """Write a variant of a video and return its path."""
    clip = Clip(path)
    wanted = range(round(variant.start * clip.total), round(variant.end * clip.total))
    frames = (frame.image for frame in iter_frames(clip, wanted))
    return write_clip(output, resized(frames, variant.scale), rate=round(clip.rate), crf=str(variant.crf))


def resized(frames: Iterable[np.ndarray], scale: float) -> Iterator[np.ndarray]:
    """Yield resized frames whose width and height are even, as H.264 needs it."""
    for image in frames:
        height, width = (2 * max(1, round(side * scale / 2)) for side in image.shape[:2])
        yield cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def table(scores: dict[str, list[float]]) -> Iterator[str]:
    """Yield the lines of the table: a row per variant, a column per video."""
    yield f"| | {' | '.join(scores)} | Largest difference |"
    yield "|---|" + "---|" * (len(scores) + 1)
    first = [values[0] for values in scores.values()]
    for number, name in enumerate(VARIANTS):
        row = [values[number] for values in scores.values()]
        largest = max(abs(a - b) for a, b in zip(row, first, strict=True))
        yield f"| {name} | {' | '.join(f'{score:.2f}' for score in row)} | {largest:.2f} |"


if __name__ == "__main__":
    cli.main(main, get_args_parser())
