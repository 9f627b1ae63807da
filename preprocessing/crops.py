"""Geometry of face crops: the window of the frame that is cropped, and how a crop becomes a network's square input.

Used by preprocessing, training and inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

# The winning solution extends the bounding box on each side by this fraction of its height or width.
MARGIN = 1 / 3


@dataclass(frozen=True)
class MarginCrop:
    """The bounding box, extended on each side by a margin.

    Attributes:
        margin: as a fraction of the box's width (left and right) and height (top and bottom).
    """

    kind: ClassVar[str] = "margin"
    margin: float = MARGIN

    def window(self, box: np.ndarray) -> tuple[int, int, int, int]:
        """Return the window (xmin, ymin, xmax, ymax) of a bounding box. Corners and margins are truncated to pixels."""
        xmin, ymin, xmax, ymax = (int(corner) for corner in box)
        margin_x, margin_y = int((xmax - xmin) * self.margin), int((ymax - ymin) * self.margin)
        return xmin - margin_x, ymin - margin_y, xmax + margin_x, ymax + margin_y


@dataclass(frozen=True)
class SquareCrop:
    """A square that is centered horizontally on the bounding box.

    Attributes:
        side: side of the square, in heights of the box.
        center: distance of the square's center from the top of the box, in heights of the box.
    """

    kind: ClassVar[str] = "square"
    side: float
    center: float

    def window(self, box: np.ndarray) -> tuple[int, int, int, int]:
        """Return the window (xmin, ymin, xmax, ymax) of a bounding box, rounded to pixels."""
        xmin, ymin, xmax, ymax = (float(corner) for corner in box)
        side = round((ymax - ymin) * self.side)
        left = round((xmin + xmax - side) / 2)
        top = round(ymin + (ymax - ymin) * self.center - side / 2)
        return left, top, left + side, top + side


CROP_TYPES = {crop_type.kind: crop_type for crop_type in (MarginCrop, SquareCrop)}
# The winning solution's crop.
DEFAULT_CROP = MarginCrop()
# Parameters of the crops, in units of the bounding box. No face needs more of its surroundings.
RANGES = {MarginCrop.kind: {"margin": (0.001, 10.0)}, SquareCrop.kind: {"side": (0.1, 10.0), "center": (-1.0, 2.0)}}


def cut(image: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray | None:
    """Return a view of the part of an image (height, width, 3) inside a window; None if they do not overlap."""
    xmin, ymin, xmax, ymax = (max(side, 0) for side in window)
    part = image[ymin:ymax, xmin:xmax]
    return part if part.size else None


def cut_faces(
    image: np.ndarray,
    faces: Sequence[tuple[int, Sequence[float]]],
    size: tuple[int, int] | None = None,
    rule: MarginCrop | SquareCrop = DEFAULT_CROP,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the face number and the crop of each face that is at least partly inside the frame.

    Args:
        image: the frame, (height, width, 3).
        faces: face number and box of each face.
        size: (width, height) of the frames that the boxes refer to; None if these are the clip's own.
        rule: the window of a box. The part of it that lies outside the frame is cut off, as in prediction.
    """
    height, width = image.shape[:2]
    scale = np.tile(np.divide((width, height), size or (width, height)), 2)
    for number, box in faces:
        crop = cut(image, rule.window(np.multiply(box, scale)))
        if crop is not None:
            yield number, crop


def resize_longer_side(
    image: np.ndarray, size: int, down: int = cv2.INTER_AREA, up: int = cv2.INTER_CUBIC
) -> np.ndarray:
    """Resize an image so that its longer side is `size` pixels, keeping the aspect ratio.

    Args:
        image: (height, width, 3).
        size: longer side of the result in pixels. The shorter side is rounded down, to at least 1.
        down: OpenCV's interpolation for shrinking.
        up: OpenCV's interpolation for enlarging.
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    if scale == 1:
        return image
    # Set the longer side directly: rounding down a product could make it one pixel too short.
    target = (size, max(1, int(height * scale))) if width > height else (max(1, int(width * scale)), size)
    return cv2.resize(image, target, interpolation=up if scale > 1 else down)


def center_in_square(image: np.ndarray, size: int) -> np.ndarray:
    """Center an image of at most `size` x `size` pixels in a black square: (size, size, 3), same dtype."""
    height, width = image.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((size, size, *image.shape[2:]), image.dtype)
    square[top : top + height, left : left + width] = image
    return square
