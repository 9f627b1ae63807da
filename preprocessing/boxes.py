"""Bounding boxes of the faces in a clip: reading, writing and linking each person's boxes across frames."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from common.errors import ClipError
from common.files import atomic_write, read_regular_file
from preprocessing.layout import FRAME_STEP

# Frame number -> boxes [xmin, ymin, xmax, ymax] in pixels of the full frame, largest first; [] if there is no face.
Boxes = dict[int, list[list[float]]]
# Largest distance of a box's corner from the frame's, in pixels: far more than any frame has.
MAX_CORNER = 10**6


class BoxesError(ClipError):
    """A file of bounding boxes that is missing or cannot be used."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason, "no_boxes")


def write_boxes(path: Path, boxes: Boxes) -> None:
    """Write JSON: frame number -> list of boxes, or null if there is no face. Raises OutputError."""
    atomic_write(path, json.dumps({str(frame): boxes[frame] or None for frame in sorted(boxes)}))


def read_boxes(path: Path) -> Boxes:
    """Read the boxes of every 10th frame; files from other programs may contain more. Raises BoxesError."""
    remedy = "run detect_original_faces.py (with --retry-failed if it failed before)"
    try:
        frames = json.loads(read_regular_file(path))
        boxes = {_frame_number(frame): list(map(_box, found or [])) for frame, found in frames.items()}
    except FileNotFoundError:
        raise BoxesError(path, f"no such file; {remedy}") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BoxesError(path, f"is not a file of bounding boxes ({error}); delete it and {remedy}") from None
    return {frame: found for frame, found in boxes.items() if frame % FRAME_STEP == 0}


def _frame_number(text: str) -> int:
    """Return a frame number. Raises ValueError."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"{reprlib.repr(text)} is not a frame number")
    return int(text)


def _box(values: Sequence) -> list[float]:
    """Return a box. Raises ValueError."""
    # The comparison is false for NaN and, unlike a conversion, works for integers of any length.
    if len(values) != 4 or not all(type(value) in (int, float) and abs(value) <= MAX_CORNER for value in values):
        raise ValueError(f"{reprlib.repr(values)} is not four numbers from -{MAX_CORNER} to {MAX_CORNER}")
    return list(map(float, values))


def face_numbers(boxes: Boxes) -> dict[int, list[int]]:
    """Return the face numbers of each frame's boxes, so that a person keeps the same number across frames.

    Faces are numbered in order of appearance, larger ones first. The boxes of a frame are assigned to the last boxes of
    the faces so far, with the least total distance of the centers. A box that is farther from its face than the longer
    side of the larger of the two boxes starts a new face.
    """
    last_seen: list[np.ndarray] = []
    numbers = {}
    for frame in sorted(boxes):
        found = [np.asarray(box) for box in boxes[frame]]
        assigned = dict(_assign(found, last_seen))
        for index, box in enumerate(found):
            if index not in assigned:
                assigned[index] = len(last_seen)
                last_seen.append(box)
            last_seen[assigned[index]] = box
        numbers[frame] = [int(assigned[index]) for index in range(len(found))]
    return numbers


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes (..., 4): xmin, ymin, xmax, ymax; 0 if both are empty."""
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    shared = np.prod(np.maximum(sides, 0), axis=-1)
    areas = [np.prod(group[..., 2:] - group[..., :2], axis=-1) for group in (boxes, others)]
    union = areas[0] + areas[1] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)


def distance(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the distance of the centers of boxes (..., 4) in units of the longer side of the larger box."""
    sides = [np.max(group[..., 2:] - group[..., :2], axis=-1) for group in (boxes, others)]
    apart = (boxes[..., :2] + boxes[..., 2:] - others[..., :2] - others[..., 2:]) / 2
    return np.linalg.norm(apart, axis=-1) / np.maximum(np.maximum(*sides), 1)


def _assign(boxes: list[np.ndarray], faces: list[np.ndarray]) -> list[tuple[int, int]]:
    """Return the (box index, face index) pairs that belong together."""
    if not boxes or not faces:
        return []
    distances = distance(np.reshape(boxes, (-1, 1, 4)), np.reshape(faces, (1, -1, 4)))
    return [pair for pair in _least_total(np.minimum(distances, 1)) if distances[pair] < 1]


def _least_total(costs: np.ndarray) -> Iterable[tuple[int, int]]:
    """Return the (row, column) pairs with the least total cost, one per row or one per column."""
    if 1 in costs.shape:  # in most clips, there is one face, and SciPy takes longer to load than to crop a short clip
        return [divmod(int(costs.argmin()), costs.shape[1])]
    from scipy.optimize import linear_sum_assignment

    return zip(*linear_sum_assignment(costs), strict=True)
