"""Turn and mirror decoded frames as their display matrix says."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type

# A coefficient that is smaller than another one by this factor counts as 0.
NEGLIGIBLE = 0.01


def _other_type(cls: type[Type], _: object) -> Type:
    """Return a stand-in for a kind of side data that PyAV does not know; it refuses to list any otherwise."""
    return cls.VIDEO_HINT


Type._missing_ = classmethod(_other_type)  # type: ignore[assignment]


def upright_rgb(frame: av.VideoFrame) -> tuple[np.ndarray, str]:
    """Return a decoded frame as RGB uint8 (height, width, 3), and a note if its display matrix is ignored."""
    # One thread, because whole clips are decoded concurrently instead. PyAV's rows may be padded.
    image = np.ascontiguousarray(frame.to_ndarray(format="rgb24", threads=1))
    matrix = display_matrix(frame)
    if matrix is None:
        return image, ""
    if not is_meaningful(matrix):
        return image, f"display matrix ignored: {matrix[:2, :2].ravel().tolist()} is no multiple of a quarter turn"
    return np.ascontiguousarray(transform(image, matrix)), ""


def display_matrix(frame: av.VideoFrame) -> np.ndarray | None:
    """Return the display matrix of a frame, int64 (3, 3); None if there is none.

    `frame.rotation` does not tell a mirrored matrix from a rotated one.
    """
    # PyAV keeps a frame whose side data has been read in memory until the garbage collector runs: read a thumbnail's.
    thumbnail = frame.reformat(width=16, height=16, format="gray", interpolation="FAST_BILINEAR", threads=1)
    data: Any = thumbnail.side_data.get("DISPLAYMATRIX")
    # The smallest int32 has no absolute value of its type.
    return None if data is None else np.frombuffer(bytes(data), np.int32).reshape(3, 3).astype(np.int64)


def is_meaningful(matrix: np.ndarray) -> bool:
    """Return whether a display matrix turns by a multiple of 90 degrees, with or without a mirror, at any scale."""
    (a, b), (c, d) = np.abs(matrix[:2, :2].astype(float))
    return max(b, c) < NEGLIGIBLE * min(a, d) or max(a, d) < NEGLIGIBLE * min(b, c)


def transform(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return a view of an image (height, width, 3) as a meaningful display matrix shows it.

    A pixel at (x, y) is shown at (a x + c y, b x + d y), for the matrix's upper left part [[a, b], [c, d]].
    """
    (a, b), (c, d) = matrix[:2, :2]
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
