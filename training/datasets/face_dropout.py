"""Blacking out parts of a face, so that the network does not rely on one of them.

Functions of images (height, width, 3) uint8, masks (height, width) uint8 (0: not changed by the faker) and
landmarks (5, 2), (x, y) in pixels: left eye, right eye, nose, left and right corner of the mouth. They return bool
(height, width), what is to be blacked out; None where nothing is. `random` is a NumPy generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np

# The winning solution's probabilities; each is asked where the one before it did nothing.
LANDMARK_P, OUTLINE_P, HALF_P = 0.7, 0.2, 0.1
# Of a mask, what counts as changed where a block is blacked out, and how many pixels of it must remain.
CHANGED = 0.4 * 255
REMAINING_HALF, REMAINING_BLOCK = 20, 40
# Probability of the block drop-out for reals and fakes, and how far from the middle (a share of the side) it cuts.
BLOCK_P = (0.6, 0.8)
PIVOT = 0.2
HALF_TRIES, BLOCK_TRIES = 5, 50
# Share of the distance of the eyes (for eyes and nose), and of the mouth's corners, by which a line is thickened.
EYES_DILATION, MOUTH_DILATION = 1 / 4, 1 / 3
LINE = 2  # pixels
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
# The outline of a face, from the brows to the chin: an ellipse. Its half width in distances of the eyes; its top
# above the eyes and its bottom below them, in distances from eyes to mouth.
OUTLINE_WIDTH, OUTLINE_TOP, OUTLINE_BOTTOM = 1.1, 0.35, 1.7

# Gives the mask when it is asked for; None where it is not known.
Mask = Callable[[], np.ndarray | None]


def face_dropout(
    shape: tuple[int, int], landmarks: np.ndarray | None, fake: bool, mask: Mask, random: np.random.Generator
) -> np.ndarray | None:
    """Eyes, mouth or nose; or half of the face; or half of the image (the winning solution's "hardcore" mode)."""
    if landmarks is not None and random.random() < LANDMARK_P:
        return _landmark(shape, landmarks, random)
    if random.random() < OUTLINE_P:
        return None if landmarks is None else half_of_outline(shape, landmarks, random)
    if random.random() < HALF_P:
        halves = list(image_halves(shape))
        candidates = (halves[random.integers(len(halves))] for _ in range(HALF_TRIES))
        return _first_that_leaves(candidates, fake, mask, REMAINING_HALF)
    return None


def block_dropout(shape: tuple[int, int], fake: bool, mask: Mask, random: np.random.Generator) -> np.ndarray | None:
    """One side of the image, up to a random pivot near its middle; of a fake such that changed pixels remain."""
    if random.random() >= BLOCK_P[fake]:
        return None
    return _first_that_leaves((_side(shape, random) for _ in range(BLOCK_TRIES)), fake, mask, REMAINING_BLOCK)


def eyes(shape: tuple[int, int], landmarks: np.ndarray) -> np.ndarray:
    left, right = _points(landmarks)[:2]
    return _line(shape, left, right, np.linalg.norm(left - right) * EYES_DILATION)


def mouth(shape: tuple[int, int], landmarks: np.ndarray) -> np.ndarray:
    left, right = _points(landmarks)[3:]
    return _line(shape, left, right, np.linalg.norm(left - right) * MOUTH_DILATION)


def nose(shape: tuple[int, int], landmarks: np.ndarray) -> np.ndarray:
    """From the nose's tip to the middle between the eyes."""
    left, right, tip = _points(landmarks)[:3]
    return _line(shape, tip, (left + right) / 2, np.linalg.norm(left - right) * EYES_DILATION)


def outline(shape: tuple[int, int], landmarks: np.ndarray) -> np.ndarray:
    """The inside of the face's outline, derived from the five points."""
    points = _points(landmarks)
    between_eyes, mouth_middle = points[:2].mean(axis=0), points[3:].mean(axis=0)
    down = mouth_middle - between_eyes
    center = between_eyes + down * (OUTLINE_BOTTOM - OUTLINE_TOP) / 2
    height = np.linalg.norm(down) * (OUTLINE_BOTTOM + OUTLINE_TOP)
    width = np.linalg.norm(points[0] - points[1]) * OUTLINE_WIDTH * 2
    inside = np.zeros(shape, np.uint8)
    angle = np.degrees(np.arctan2(down[1], down[0])) - 90
    cv2.ellipse(inside, (center.tolist(), (float(width), float(height)), float(angle)), 1, thickness=-1)
    return inside > 0


def half_of_outline(shape: tuple[int, int], landmarks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The face above, below, left or right of its centroid."""
    inside = outline(shape, landmarks)
    if not inside.any():
        return inside
    rows, columns = np.nonzero(inside)
    low = np.arange(shape[0])[:, None] >= int(rows.mean())
    right = np.arange(shape[1])[None, :] >= int(columns.mean())
    return inside & (~low, low, ~right, right)[random.integers(4)]


def image_halves(shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """The six: upper, lower, left, right half, and the two pairs of diagonal quarters."""
    height, width = shape
    low = np.arange(height)[:, None] >= height // 2
    right = np.arange(width)[None, :] >= width // 2
    for upper in (~low, low):
        yield np.broadcast_to(upper, shape)
    for side in (~right, right):
        yield np.broadcast_to(side, shape)
    yield low == right
    yield low != right


def _landmark(shape: tuple[int, int], landmarks: np.ndarray, random: np.random.Generator) -> np.ndarray | None:
    for part in (eyes, mouth, nose):
        if random.random() < 0.5:
            return part(shape, landmarks)
    return None


def _points(landmarks: np.ndarray) -> np.ndarray:
    """In floats: differences of int16 overflow when they are squared."""
    return np.asarray(landmarks, np.float64)


def _line(shape: tuple[int, int], start: np.ndarray, end: np.ndarray, dilation: float) -> np.ndarray:
    line = np.zeros(shape, np.uint8)
    cv2.line(line, [int(x) for x in start], [int(x) for x in end], 1, LINE)
    return cv2.dilate(line, CROSS, iterations=int(dilation)) > 0


def _side(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Rows or columns before or from a pivot."""
    axis = int(random.integers(2))
    length = shape[axis]
    pivot = random.integers(length // 2 - int(length * PIVOT), length // 2 + int(length * PIVOT) + 1)
    before = np.arange(length) < pivot
    side = before if random.random() < 0.5 else ~before
    return np.broadcast_to(side[:, None] if axis == 0 else side[None, :], shape)


def _first_that_leaves(candidates: Iterator[np.ndarray], fake: bool, mask: Mask, remaining: int) -> np.ndarray | None:
    """The first that may be blacked out: of a fake, if more than so many changed pixels remain."""
    if not fake:
        return next(candidates)
    known = mask()
    if known is None:  # nobody knows what would remain
        return None
    changed = known > CHANGED
    return next((black for black in candidates if np.count_nonzero(changed & ~black) > remaining), None)
