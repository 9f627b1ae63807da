"""Read, encode and list the image files of faces."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from common.errors import ClipError
from preprocessing.layout import CROP_SUFFIX


class ImageError(ClipError):
    """An image, or a folder of images, that cannot be read."""


class FaceImage(NamedTuple):
    """A file of one face: frame number, face number, path."""

    frame: int
    face: int
    path: Path


def list_images(folder: Path, suffix: str = CROP_SUFFIX) -> list[FaceImage]:
    """Return the files <frame>_<face><suffix> of a clip's folder in order. Raises ImageError if there is no folder."""
    name = re.compile(rf"(\d+)_(\d+){re.escape(suffix)}")
    try:
        found = [(match, path) for path in folder.iterdir() if (match := name.fullmatch(path.name))]
    except OSError:
        remedy = "Run extract_crops.py (with --retry-failed if it failed before)"
        raise ImageError(folder, f"no crops. {remedy}", "no_crops") from None
    return sorted(FaceImage(int(match[1]), int(match[2]), path) for match, path in found)


def read_image(path: Path) -> np.ndarray:
    """Read an image as RGB uint8 (height, width, 3). Raises ImageError."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ImageError(path, f"not an image, or damaged. Delete {path.parent} and run extract_crops.py again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def encode_image(image: np.ndarray, suffix: str = ".png") -> bytes:
    """Encode RGB (height, width, 3) or gray (height, width) uint8 as PNG (lossless) or JPEG (quality 95)."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(suffix, image)[1].tobytes()
