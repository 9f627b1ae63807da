"""Sample clips made from scikit-image's pictures, for the demo, the tests and the benchmarks.

    python -m preprocessing.sample_clips FOLDER

writes the demo's clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from skimage.data import astronaut, coffee

from common import cli


def moving(picture: np.ndarray, frames: int, width: int, height: int, zoom: float = 1.0) -> Iterator[np.ndarray]:
    """A camera that circles over a picture: RGB uint8 (height, width, 3) frames. Black beyond the picture."""
    for x, y in corners(picture, frames, width, height, zoom):
        place = np.array([[zoom, 0, x], [0, zoom, y]])
        yield cv2.warpAffine(picture, place, (width, height), flags=cv2.INTER_LINEAR)


def corners(picture: np.ndarray, frames: int, width: int, height: int, zoom: float) -> np.ndarray:
    """Where the enlarged picture's corner is in each frame: (frames, 2), x and y."""
    angle = np.linspace(0, 2 * np.pi, frames, endpoint=False)
    shift = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 0.04 * min(width, height)
    rows, columns = picture.shape[:2]
    return np.array([width - columns * zoom, height - rows * zoom]) / 2 + shift


def write_clip(
    path: str | Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    rate: int = 25,
    dropped: Collection[int] = (),
    **options: str,
) -> Path:
    """Write frames, `rate` a second; `options` are the encoder's. The header stands before the frames.

    Frames with the numbers `dropped` are left out; the others keep their times.
    """
    with av.open(
        str(path), "w", options={"movflags": "faststart"} if str(path).endswith((".mp4", ".mov")) else {}
    ) as container:
        stream = None
        for number, image in enumerate(frames):
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options={"crf": "18", **options})
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
            if number in dropped:
                continue
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


def face_clip(path: str | Path, frames: int = 40, width: int = 480, height: int = 360, **options: str) -> Path:
    """A clip of the astronaut Eileen Collins' portrait, one face in each frame."""
    return write_clip(path, moving(astronaut(), frames, width, height, min(width, height) / 400), **options)


def faceless_clip(path: str | Path, frames: int = 40, width: int = 480, height: int = 360) -> Path:
    """A clip of a cup of coffee."""
    return write_clip(path, moving(coffee(), frames, width, height))


def write_demo_clips(folder: Path) -> None:
    """Write the three clips of the demo: two with a face, one without."""
    folder.mkdir(parents=True, exist_ok=True)
    face_clip(folder / "astronaut.mp4", 100, 960, 720)
    face_clip(folder / "astronaut_portrait.mp4", 60, 360, 640)
    faceless_clip(folder / "coffee_no_face.mp4", 60, 640, 480)


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder to write")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the clips of the demo. Return the exit status."""
    write_demo_clips(args.folder)
    return cli.OK


if __name__ == "__main__":
    cli.main(main, get_args_parser())
