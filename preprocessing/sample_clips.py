"""Sample clips made from scikit-image's photographs, for the demo, the tests and the benchmarks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.stream import VideoStream
from skimage.data import astronaut, coffee

from preprocessing.x264 import reproducible_options

CRF = 18  # visually lossless


def moving(picture: np.ndarray, frames: int, width: int, height: int, zoom: float = 1.0) -> Iterator[np.ndarray]:
    """Yield the frames of a camera that circles over a picture: RGB uint8 (height, width, 3), black outside it."""
    for x, y in corners(picture, frames, width, height, zoom):
        transform = np.array([[zoom, 0, x], [0, zoom, y]])
        yield cv2.warpAffine(picture, transform, (width, height), flags=cv2.INTER_LINEAR)


def corners(picture: np.ndarray, frames: int, width: int, height: int, zoom: float) -> np.ndarray:
    """Return the position of the picture's top left corner in each frame of `moving`: (frames, 2), x and y."""
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
    """Write a video and return its path.

    Args:
        path: the file; its suffix selects the container.
        frames: RGB uint8 (height, width, 3), all of the same size.
        codec: FFmpeg's name of the encoder.
        rate: frames per second.
        dropped: indices of frames to leave out. The other frames keep their times.
        options: options of the encoder.
    """
    frames = iter(frames)
    first = next(frames)
    # Put the index before the frames, so that truncated files can be read.
    container_options = {"movflags": "faststart"} if Path(path).suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=container_options) as container:
        defaults = reproducible_options(CRF) if codec == "libx264" else {"crf": str(CRF)}
        stream = container.add_stream(codec, rate=rate, options={**defaults, **options})
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, image in enumerate(chain([first], frames)):
            if number not in dropped:
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, rate)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


def face_clip(path: str | Path, frames: int = 40, width: int = 480, height: int = 360) -> Path:
    """Write a clip of Eileen Collins' portrait, with one face in each frame."""
    return write_clip(path, moving(astronaut(), frames, width, height, min(width, height) / 400))


def faceless_clip(path: str | Path, frames: int = 40, width: int = 480, height: int = 360) -> Path:
    """Write a clip of a cup of coffee."""
    return write_clip(path, moving(coffee(), frames, width, height))
