"""Dropout of parts of a face (the winning solution's "hardcore" augmentation): choose the region to black out.

The network must not rely on a single part of the face. Two kinds exist: `face_dropout` on crops and `block_dropout` on
augmented images. Both return the region to black out, bool (height, width), or None to leave the image as it is.

Common arguments:
    shape: (height, width) of the image.
    landmarks: (5, 2), (x, y) in pixels: left eye, right eye, nose, left and right corner of the mouth.
    fake: whether the image is fake.
    read_mask: returns the fake's mask, uint8 (height, width), 0 = not manipulated, or None if it is unknown.
    rng: NumPy generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import cv2
import numpy as np

Shape = tuple[int, int]
ReadMask = Callable[[], np.ndarray | None]

# Probabilities of the winning solution. Each is tried only if the one before it did not apply.
LANDMARK_P, OUTLINE_P, HALF_P = 0.7, 0.2, 0.1
# Probability of each part. Eyes, mouth and nose are tried in this order until one applies.
PART_P = 0.5
# Mask level above which a pixel of a fake counts as manipulated. More than MIN_VISIBLE of these must stay visible.
LEVEL_HALF, LEVEL_BLOCK = 0, 0.4 * 255
MIN_VISIBLE_HALF, MIN_VISIBLE_BLOCK = 20, 40
# Probability of block dropout for real and fake images.
BLOCK_P = (0.6, 0.8)
# Largest distance of a block's edge from the center, as a fraction of the side.
PIVOT_RANGE = 0.2
# Number of random regions to try until one leaves enough manipulated pixels visible.
HALF_TRIES, BLOCK_TRIES = 5, 50
# Dilation of the lines, as a fraction of the distance between the eyes (eyes, nose) or the mouth's corners (mouth).
EYES_DILATION, MOUTH_DILATION = 1 / 4, 1 / 3
LINE_THICKNESS = 2
# The face's outline is an ellipse. Its half width is relative to the distance between the eyes; its top above the eyes
# and its bottom below them are relative to the distance from eyes to mouth.
OUTLINE_WIDTH, OUTLINE_TOP, OUTLINE_BOTTOM = 1.1, 0.35, 1.7


def face_dropout(
    shape: Shape, landmarks: np.ndarray | None, fake: bool, read_mask: ReadMask, rng: np.random.Generator
) -> np.ndarray | None:
    """Choose eyes, mouth or nose; or half of the face; or half of the image; or nothing."""
    if landmarks is not None and rng.random() < LANDMARK_P:
        return _random_part(shape, landmarks, rng)
    if rng.random() < OUTLINE_P:
        return None if landmarks is None else half_of_outline(shape, landmarks, rng)
    if rng.random() < HALF_P:
        halves = list(image_halves(shape))
        regions = (halves[rng.integers(len(halves))] for _ in range(HALF_TRIES))
        return _first_allowed(regions, fake, read_mask, LEVEL_HALF, MIN_VISIBLE_HALF)
    return None


def block_dropout(shape: Shape, fake: bool, read_mask: ReadMask, rng: np.random.Generator) -> np.ndarray | None:
    """Choose everything on one side of a random horizontal or vertical line near the center, or nothing."""
    if rng.random() >= BLOCK_P[fake]:
        return None
    regions = (_random_block(shape, rng) for _ in range(BLOCK_TRIES))
    return _first_allowed(regions, fake, read_mask, LEVEL_BLOCK, MIN_VISIBLE_BLOCK)


def eyes(shape: Shape, landmarks: np.ndarray) -> np.ndarray:
    """Return a thick line through both eyes."""
    left, right = _as_floats(landmarks)[:2]
    return _thick_line(shape, left, right, _distance(left, right) * EYES_DILATION)


def mouth(shape: Shape, landmarks: np.ndarray) -> np.ndarray:
    """Return a thick line between the corners of the mouth."""
    left, right = _as_floats(landmarks)[3:]
    return _thick_line(shape, left, right, _distance(left, right) * MOUTH_DILATION)


def nose(shape: Shape, landmarks: np.ndarray) -> np.ndarray:
    """Return a thick line from the tip of the nose to the point between the eyes."""
    left, right, tip = _as_floats(landmarks)[:3]
    return _thick_line(shape, tip, (left + right) / 2, _distance(left, right) * EYES_DILATION)


def outline(shape: Shape, landmarks: np.ndarray) -> np.ndarray:
    """Return the face from the brows to the chin, an ellipse derived from the landmarks."""
    points = _as_floats(landmarks)
    between_eyes, mouth_center = points[:2].mean(axis=0), points[3:].mean(axis=0)
    down = mouth_center - between_eyes
    center = between_eyes + down * (OUTLINE_BOTTOM - OUTLINE_TOP) / 2
    height = _distance(between_eyes, mouth_center) * (OUTLINE_BOTTOM + OUTLINE_TOP)
    width = _distance(points[0], points[1]) * OUTLINE_WIDTH * 2
    angle = float(np.degrees(np.arctan2(down[1], down[0]))) - 90
    inside = np.zeros(shape, np.uint8)
    cv2.ellipse(inside, (center.tolist(), (width, height), angle), 1, thickness=-1)
    return inside > 0


def half_of_outline(shape: Shape, landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the part of the face above, below, left or right of its centroid."""
    inside = outline(shape, landmarks)
    if not inside.any():
        return inside
    rows, columns = np.nonzero(inside)
    lower = np.arange(shape[0])[:, None] >= int(rows.mean())
    right = np.arange(shape[1])[None, :] >= int(columns.mean())
    return inside & (~lower, lower, ~right, right)[rng.integers(4)]


def image_halves(shape: Shape) -> Iterator[np.ndarray]:
    """Yield the upper, lower, left and right half and the two pairs of diagonally opposite quarters."""
    height, width = shape
    lower = np.arange(height)[:, None] >= height // 2
    right = np.arange(width)[None, :] >= width // 2
    for half in (~lower, lower, ~right, right):
        yield np.broadcast_to(half, shape)
    yield lower == right
    yield lower != right


def _random_part(shape: Shape, landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    for part in (eyes, mouth, nose):
        if rng.random() < PART_P:
            return part(shape, landmarks)
    return None


def _as_floats(landmarks: np.ndarray) -> np.ndarray:
    """Convert int16 landmarks, whose squared differences would overflow."""
    return np.asarray(landmarks, np.float64)


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first - second))


def _thick_line(shape: Shape, start: np.ndarray, end: np.ndarray, dilation: float) -> np.ndarray:
    """Draw a line and dilate it with a cross `int(dilation)` times."""
    points, steps = np.array([start, end]).astype(int), int(dilation)
    line = np.ones(shape, np.uint8)
    cv2.line(line, points[0].tolist(), points[1].tolist(), 0, LINE_THICKNESS)
    region = np.zeros(shape, bool)
    margin = steps + LINE_THICKNESS
    left, top = np.maximum(points.min(axis=0) - margin, 0)
    right, bottom = np.maximum(points.max(axis=0) + margin + 1, 0)
    around = np.s_[top:bottom, left:right]
    if line[around].size:
        # Each dilation with a cross adds the pixels at the next L1 distance.
        region[around] = cv2.distanceTransform(line[around], cv2.DIST_L1, 3) <= steps
    return region


def _random_block(shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Return all rows or columns on one side of a random pivot."""
    axis = int(rng.integers(2))
    length = shape[axis]
    center, distance = length // 2, int(length * PIVOT_RANGE)
    before = np.arange(length) < rng.integers(center - distance, center + distance + 1)
    block = before if rng.random() < 0.5 else ~before
    return np.broadcast_to(block[:, None] if axis == 0 else block[None, :], shape)


def _first_allowed(
    regions: Iterable[np.ndarray], fake: bool, read_mask: ReadMask, level: float, min_visible: int
) -> np.ndarray | None:
    """Return the first region that leaves more than `min_visible` pixels of a fake's mask above `level`, if any."""
    if not fake:
        return next(iter(regions))
    mask = read_mask()
    if mask is None:
        return None
    manipulated = mask > level
    return next((region for region in regions if np.count_nonzero(manipulated & ~region) > min_visible), None)
