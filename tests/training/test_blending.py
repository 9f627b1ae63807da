"""Self-blended images and classical face swaps."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from tests.support import face_crops
from training.datasets.blending import blend, restyle, self_blend, swap_face

LEFT, TOP, SIDE = 160, 50, 130
FACE = np.ascontiguousarray(astronaut()[TOP : TOP + SIDE, LEFT : LEFT + SIDE])
LANDMARKS = face_crops.LANDMARKS - (LEFT, TOP)


def blended(seed: int) -> tuple[np.ndarray, np.ndarray]:
    return self_blend(FACE, LANDMARKS, np.random.default_rng(seed))


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first.astype(int) - second).max(axis=2)


def test_blend_is_a_weighted_mean() -> None:
    inserted, around = np.full((2, 3, 3), 200, np.uint8), np.full((2, 3, 3), 40, np.uint8)
    opacity = np.array([[0, 0.5, 1], [0.25, 0.75, 0.1]], np.float32)
    np.testing.assert_array_equal(blend(inserted, around, opacity)[..., 0], [[40, 120, 200], [80, 160, 56]])


def test_only_one_side_of_the_boundary_changes_its_style() -> None:
    """Outside of the opacity, the image is either the original one or a restyled one, and not a mixture."""
    original = 0
    for seed in range(60):
        image, opacity = blended(seed)
        assert image.shape == FACE.shape
        assert opacity.shape == FACE.shape[:2]
        outside = difference(image, FACE)[opacity == 0]
        original += not outside.any()
    assert 18 < original < 42  # binomial with probability 0.5: mean 30, standard deviation 3.9


def test_face_is_blended_and_corners_are_not() -> None:
    opacities = np.stack([blended(seed)[1] for seed in range(60)]) / 255.0
    mean = opacities.mean(axis=0)
    assert all(mean[y, x] > 0.2 for x, y in LANDMARKS)
    assert all(mean[y, x] < 0.05 for y in (0, SIDE - 1) for x in (0, SIDE - 1))
    largest = opacities.max(axis=(1, 2))
    assert 0.2 < largest.min() < 0.3  # the lowest opacity is 0.25
    assert largest.max() > 0.95
    soft = (opacities > 0.02) & (opacities < 0.98 * largest[:, None, None])
    assert (soft.mean(axis=(1, 2)) > 0.01).all()


def test_changes_are_subtle() -> None:
    """A blended face looks like the face: mean differences of a few gray levels."""
    means = [difference(blended(seed)[0], FACE).mean() for seed in range(60)]
    assert 1 < np.mean(means) < 25
    assert min(means) > 0.1


def test_result_depends_only_on_the_arguments() -> None:
    face = FACE.copy()
    np.testing.assert_array_equal(blended(3)[0], blended(3)[0])
    assert difference(blended(3)[0], blended(4)[0]).any()
    np.testing.assert_array_equal(FACE, face)


def test_restyled_images_differ_in_sharpness() -> None:
    def detail(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image.astype(float), axis=1)).mean())

    ratios = [detail(restyle(FACE, np.random.default_rng(seed))) / detail(FACE) for seed in range(60)]
    assert min(ratios) < 0.8
    assert max(ratios) > 1.2


@pytest.mark.parametrize("shape", [(8, 9), (300, 200), (97, 224)])
def test_any_size_of_crop(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    landmarks = LANDMARKS * (np.array(shape[::-1]) / SIDE)
    for seed in range(8):
        assert self_blend(image, landmarks, np.random.default_rng(seed))[0].shape == image.shape


@pytest.mark.parametrize("poisson", [False, True])
def test_swap_inserts_the_other_face(poisson: bool) -> None:
    """The inserted face is a mirrored one of another color: its landmarks are aligned and its colors are matched."""
    other = np.clip(FACE[:, ::-1] * [0.5, 0.8, 0.4], 0, 255).astype(np.uint8)
    mirrored = LANDMARKS[[1, 0, 2, 4, 3]] * (-1, 1) + (SIDE - 1, 0)
    swapped = swap_face(FACE, LANDMARKS, np.ascontiguousarray(other), mirrored, poisson)
    changed = difference(swapped, FACE)
    inside = np.s_[LANDMARKS[0, 1] : LANDMARKS[3, 1], LANDMARKS[0, 0] : LANDMARKS[1, 0]]
    assert changed[inside].mean() > 5
    assert not changed[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    inserted, target = swapped[inside].mean(axis=(0, 1)), FACE[inside].mean(axis=(0, 1))
    assert np.abs(inserted - target).max() < 30  # the other face's colors differ by up to 80
    larger = cv2.resize(np.ascontiguousarray(other), None, fx=1.5, fy=1.5)
    resized = swap_face(FACE, LANDMARKS, larger, mirrored * 1.5, poisson)
    assert difference(resized, swapped).mean() < 3
    itself = swap_face(FACE, LANDMARKS, FACE, LANDMARKS, poisson)
    assert difference(itself, FACE).mean() < 1


def test_swap_needs_landmarks_that_differ() -> None:
    with pytest.raises(ValueError, match="landmarks"):
        swap_face(FACE, LANDMARKS, FACE, np.full((5, 2), 7), poisson=False)
    with pytest.raises(ValueError, match="outside"):
        swap_face(FACE, LANDMARKS + 1000, FACE, LANDMARKS, poisson=False)
