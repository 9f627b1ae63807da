"""The boxes of a clip's faces: their file, and which boxes of different frames are one person's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from preprocessing.output import write_whole
from preprocessing.video import FRAME_STEP

# Frame number -> boxes (xmin, ymin, xmax, ymax) in pixels of the full frame, largest first; empty where no face is.
Boxes = dict[int, list[list[float]]]


class BoxesError(Exception):
    """Boxes that are not there or cannot be used. The message names the file."""

    status = "no_boxes"


def write_boxes(path: Path, boxes: Boxes) -> None:
    """JSON: frame number -> list of boxes, or null where none. Raises OutputError."""
    write_whole(path, json.dumps({str(frame): boxes[frame] or None for frame in sorted(boxes)}))


def read_boxes(path: Path) -> Boxes:
    """The boxes of every 10th frame (files of other programs may hold more).

    Raises BoxesError for a file that is not there or that `write_boxes` cannot have written.
    """
    remedy = "run detect_original_faces.py (with --retry-failed if that failed)"
    try:
        frames = json.loads(path.read_bytes())
        boxes = {int(frame): [[float(side) for side in box] for box in found or []] for frame, found in frames.items()}
    except FileNotFoundError:
        raise BoxesError(f"{path}: no boxes; {remedy}") from None
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BoxesError(f"{path}: holds no boxes ({error}); delete it and {remedy}") from None
    sides = [box for found in boxes.values() for box in found]
    if not all(len(box) == 4 and np.isfinite(box).all() for box in sides) or any(frame < 0 for frame in boxes):
        raise BoxesError(f"{path}: holds no boxes (four finite numbers each); delete it and {remedy}")
    return {frame: found for frame, found in boxes.items() if frame % FRAME_STEP == 0}


def face_numbers(boxes: Boxes) -> dict[int, list[int]]:
    """For each frame the numbers of its boxes' faces: a person keeps a number from frame to frame.

    Numbers are given in order of appearance, to larger faces first. A box goes to the face that was last seen
    nearest to it (all of a frame together at the least total distance), but not farther from it than the
    larger one's longer side; else it is a new face.
    """
    last: list[np.ndarray] = []
    numbers = {}
    for frame in sorted(boxes):
        found = [np.asarray(box) for box in boxes[frame]]
        assigned = dict(_matches(found, last))
        for index, box in enumerate(found):
            if index not in assigned:
                assigned[index] = len(last)
                last.append(box)
            last[assigned[index]] = box
        numbers[frame] = [int(assigned[index]) for index in range(len(found))]
    return numbers


def _matches(boxes: list[np.ndarray], faces: list[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of indices, into boxes and into faces, of what belongs together."""
    from scipy.optimize import linear_sum_assignment  # takes long to load, and few stages come here

    apart = np.array([[_distance(box, face) for face in faces] for box in boxes]).reshape(len(boxes), len(faces))
    pairs = zip(*linear_sum_assignment(np.minimum(apart, 1)), strict=True)
    return [pair for pair in pairs if apart[pair] < 1]


def _distance(box: np.ndarray, face: np.ndarray) -> float:
    """Between the centres, in units of the larger one's longer side."""
    side = max(*(box[2:] - box[:2]), *(face[2:] - face[:2]), 1.0)
    return np.linalg.norm((box[:2] + box[2:]) / 2 - (face[:2] + face[2:]) / 2) / side
