"""Fakes made from real crops: self-blended images for training, and classical face swaps to test on.

A self-blended image is a face blended with a changed copy of itself. It has what most fakes have, a blending boundary
and regions that differ in color and sharpness, but no trace of a particular generator, so a network that learns from it
recognizes more kinds of fakes (Shiohara & Yamasaki, Detecting Deepfakes with Self-Blended Images, CVPR 2022). This is
an implementation of the paper's idea for five landmarks and tight crops.

Common arguments:
    image: uint8 (height, width, 3), RGB.
    landmarks: (5, 2), (x, y) in pixels: left eye, right eye, nose, left and right corner of the mouth.
    rng: NumPy generator.
"""

from __future__ import annotations

import cv2
import numpy as np

from training.datasets.face_dropout import outline

# Largest changes of the copy: factor and offset of each channel (offset in gray levels), and gamma.
GAIN, OFFSET, GAMMA = 0.06, 6.0, 0.1
# Range of the side, in pixels, that the copy is reduced to and enlarged from, and of the factor of its details.
REDUCED, SHARPENING = (48, 160), (0.3, 1.0)
# Largest changes of the copy's position (as a fraction of the side), scale and angle (degrees).
SHIFT, SCALE, ANGLE = 0.025, 0.05, 3.0
# Largest distance between the landmarks that the region is made from and the true ones, relative to the eyes' distance.
JITTER = 0.15
# Size of the random deformation of the region's boundary, as a fraction of the side, and the number of its grid points.
DEFORMATION, GRID = 0.08, 5
# Range of the standard deviation that the boundary is blurred with, as a fraction of the side.
SOFTNESS = (0.01, 0.06)
# Opacity of the copy: as in the paper, half of the images have the full one.
OPACITIES = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)


def self_blend(image: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Blend a face with a changed copy of itself.

    Returns:
        The image, uint8 (height, width, 3), and the opacity of the inserted face, uint8 (height, width).
    """
    inserted, around = image, image
    if rng.random() < 0.5:
        inserted = restyle(image, rng)
    else:
        around = restyle(image, rng)
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(
        (width / 2, height / 2), rng.uniform(-ANGLE, ANGLE), 1 + rng.uniform(-SCALE, SCALE)
    )
    matrix[:, 2] = matrix[:, 2] + rng.uniform(-SHIFT, SHIFT, 2) * (width, height)
    inserted = _warp(inserted, matrix, image.shape)
    opacity = _soften(_region(image.shape[:2], landmarks, rng), rng) * rng.choice(OPACITIES)
    return blend(inserted, around, opacity), np.rint(opacity * 255).astype(np.uint8)


def swap_face(
    image: np.ndarray, landmarks: np.ndarray, other: np.ndarray, other_landmarks: np.ndarray, poisson: bool
) -> np.ndarray:
    """Replace a face by another person's face: align the landmarks, match the colors and blend.

    Args:
        image: crop whose face is replaced.
        landmarks: its landmarks.
        other: crop with the face to insert.
        other_landmarks: its landmarks.
        poisson: blend gradients (Perez et al., Poisson Image Editing, SIGGRAPH 2003) instead of colors.

    Returns:
        The image, uint8 (height, width, 3).

    Raises:
        ValueError: the landmarks of a face coincide.
    """
    points, other_points = (np.asarray(p, np.float32) for p in (landmarks, other_landmarks))
    matrix, _ = cv2.estimateAffinePartial2D(other_points, points, method=cv2.LMEDS)
    if matrix is None:
        raise ValueError("landmarks that coincide")
    warped = _warp(other, matrix, image.shape)
    known = cv2.warpAffine(np.ones(other.shape[:2], np.uint8), matrix, image.shape[1::-1])
    face = outline(image.shape[:2], landmarks) & (known > 0)
    if not face.any():
        raise ValueError("a face outside of the crop")
    if poisson:
        # OpenCV centers the region on a point, and it must not touch the border.
        face[[0, -1]] = face[:, [0, -1]] = False
        left, top, width, height = cv2.boundingRect(face.astype(np.uint8))
        center = left + width // 2, top + height // 2
        return cv2.seamlessClone(warped, image, face.astype(np.uint8) * 255, center, cv2.NORMAL_CLONE)
    inside, target = warped[face].astype(np.float32), image[face].astype(np.float32)
    matched = (warped - inside.mean(axis=0)) * (target.std(axis=0) / (inside.std(axis=0) + 1)) + target.mean(axis=0)
    soft = cv2.GaussianBlur(cv2.erode(face.astype(np.float32), np.ones((9, 9))), (0, 0), 0.02 * max(image.shape))
    return blend(np.clip(matched, 0, 255), image, soft)


def blend(inserted: np.ndarray, around: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Blend two images (height, width, 3) with an opacity (height, width) of 0 to 1 into a uint8 image."""
    return np.rint(around + opacity[..., None] * (inserted.astype(np.float32) - around)).astype(np.uint8)


def restyle(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a copy with slightly other colors that is either sharper or less sharp."""
    levels = np.arange(256, dtype=np.float32)[:, None] / 255
    gain, offset = 1 + rng.uniform(-GAIN, GAIN, 3), rng.uniform(-OFFSET, OFFSET, 3) / 255
    table = levels ** np.exp(rng.uniform(-GAMMA, GAMMA)) * gain + offset
    copy = cv2.LUT(image, np.rint(np.clip(table, 0, 1) * 255).astype(np.uint8)[None])
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        side = int(rng.uniform(*REDUCED))
        small = cv2.resize(copy, (min(side, width), min(side, height)), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    amount = rng.uniform(*SHARPENING)
    return cv2.addWeighted(copy, 1 + amount, cv2.GaussianBlur(copy, (0, 0), 2), -amount, 0)


def _region(shape: tuple[int, int], landmarks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random part of the face: all of it, without its upper or its lower part, or only its inner part."""
    points = np.asarray(landmarks, np.float64)
    points = points + rng.uniform(-JITTER, JITTER, (5, 2)) * np.linalg.norm(points[0] - points[1])
    face = outline(shape, points)
    kind = rng.integers(4)
    if kind == 0:
        return face
    if kind == 1:
        hull = cv2.convexHull(np.rint(points).astype(np.int32))
        inner = cv2.fillConvexPoly(np.zeros(shape, np.uint8), hull, 1)
        radius = int(np.linalg.norm(points[0] - points[1]) * rng.uniform(0.2, 0.5)) + 1
        return cv2.dilate(inner, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)) > 0
    between_eyes, between_corners = points[:2].mean(axis=0), points[3:].mean(axis=0)
    down = between_corners - between_eyes
    y, x = np.mgrid[: shape[0], : shape[1]]
    depth = (x - between_eyes[0]) * down[0] + (y - between_eyes[1]) * down[1]
    cut = rng.uniform(0.2, 0.7) * (down @ down)
    return face & (depth > cut if kind == 2 else depth < cut)


def _soften(region: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deform the boundary of a region smoothly and blur it: float32 (height, width), 0 to 1."""
    height, width = region.shape
    side = max(height, width)
    grid = rng.uniform(-DEFORMATION, DEFORMATION, (GRID, GRID, 2)).astype(np.float32) * side
    shifts = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    deformed = cv2.remap(region.astype(np.float32), x + shifts[..., 0], y + shifts[..., 1], cv2.INTER_LINEAR)
    return np.clip(cv2.GaussianBlur(deformed, (0, 0), rng.uniform(*SOFTNESS) * side), 0, 1)


def _warp(image: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Transform an image into one of this shape, continued by reflection."""
    return cv2.warpAffine(image, matrix, shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
