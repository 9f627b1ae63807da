"""Image files of faces: their names tell the frame and the face."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np


class ImageError(Exception):
    """An image, or a folder of images, that cannot be read. The message names it."""

    def __init__(self, path: Path, reason: str, status: str = "unreadable"):
        super().__init__(f"{path}: {reason}")
        self.status = status


class FaceImage(NamedTuple):
    """A face in a frame: the frame's number, the face's number, the file."""

    frame: int
    face: int
    path: Path


def image_name(frame: int, face: int) -> str:
    return f"{frame}_{face}.png"


def list_images(folder: Path, suffix: str = ".png") -> list[FaceImage]:
    """The files <frame>_<face><suffix> of a clip's folder, in order. Raises ImageError if it is not there."""
    name = re.compile(rf"(\d+)_(\d+){re.escape(suffix)}")
    try:
        found = [(match, path) for path in folder.iterdir() if (match := name.fullmatch(path.name))]
    except OSError:
        remedy = "run extract_crops.py (with --retry-failed if that failed)"
        raise ImageError(folder, f"no crops; {remedy}", "no_crops") from None
    return sorted(FaceImage(int(match[1]), int(match[2]), path) for match, path in found)


def read_image(path: Path) -> np.ndarray:
    """RGB uint8 (height, width, 3). Raises ImageError."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ImageError(path, f"not an image, or damaged; delete {path.parent} and run extract_crops.py again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def encode_image(image: np.ndarray, suffix: str = ".png") -> bytes:
    """PNG (lossless) or JPEG (quality 95) of an image: RGB (height, width, 3) or grey (height, width) uint8."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(suffix, image)[1].tobytes()
