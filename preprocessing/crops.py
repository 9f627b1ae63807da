"""Crops of faces: which part of the frame, and how it becomes a network's square input.

The one home of the crop's geometry, for preprocessing, training and inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

# The winning solution widens the detector's box on each side by this share of its height and width.
MARGIN = 1 / 3


@dataclass(frozen=True)
class MarginCrop:
    """The face's box, widened on each side by `margin` times its height (above, below) and width (left, right)."""

    kind: ClassVar[str] = "margin"
    margin: float = MARGIN

    def window(self, box: np.ndarray) -> tuple[int, int, int, int]:
        """Whole pixels (xmin, ymin, xmax, ymax) for a face's box; corners and margins are cut off to integers."""
        xmin, ymin, xmax, ymax = (int(corner) for corner in box)
        across, along = int((xmax - xmin) * self.margin), int((ymax - ymin) * self.margin)
        return xmin - across, ymin - along, xmax + across, ymax + along


@dataclass(frozen=True)
class SquareCrop:
    """A square with `side` times the height of the face's box, centered across, `center` heights below its top."""

    kind: ClassVar[str] = "square"
    side: float
    center: float

    def window(self, box: np.ndarray) -> tuple[int, int, int, int]:
        """Whole pixels (xmin, ymin, xmax, ymax) for a face's box."""
        xmin, ymin, xmax, ymax = (float(corner) for corner in box)
        side = round((ymax - ymin) * self.side)
        left = round((xmin + xmax - side) / 2)
        top = round(ymin + (ymax - ymin) * self.center - side / 2)
        return left, top, left + side, top + side


CROPS = {rule.kind: rule for rule in (MarginCrop, SquareCrop)}


def cut(image: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray | None:
    """The part of an image (height, width, 3) inside a window, cut at its edges; None where nothing is left.

    A view, not a copy.
    """
    xmin, ymin, xmax, ymax = (max(side, 0) for side in window)
    part = image[ymin:ymax, xmin:xmax]
    return part if part.size else None


def resize_longer_side(
    image: np.ndarray, size: int, down: int = cv2.INTER_AREA, up: int = cv2.INTER_CUBIC
) -> np.ndarray:
    """Resize so that the longer side is `size` pixels, keeping the proportions (shorter side rounded down)."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    if scale == 1:
        return image
    # The longer side is set, not computed: a product of floats may fall short of it.
    target = (size, max(1, int(height * scale))) if width > height else (max(1, int(width * scale)), size)
    return cv2.resize(image, target, interpolation=up if scale > 1 else down)


def center_in_square(image: np.ndarray, size: int) -> np.ndarray:
    """An image of at most `size` x `size` in the middle of a black square, (size, size, 3) uint8."""
    height, width = image.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((size, size, *image.shape[2:]), image.dtype)
    square[top : top + height, left : left + width] = image
    return square
