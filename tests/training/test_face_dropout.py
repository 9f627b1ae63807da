"""Face dropout: regions against SciPy and NumPy, probabilities, and what must stay visible."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from training.datasets import face_dropout as dropout

POINTS = np.array([[60, 50], [101, 55], [80, 80], [62, 110], [98, 112]], np.int16)
SHAPE = (160, 130)


def make_rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def thick_line(shape: tuple[int, int], start: np.ndarray, end: np.ndarray, thickness: int) -> np.ndarray:
    line = np.zeros(shape, np.uint8)
    cv2.line(line, [int(x) for x in start], [int(x) for x in end], 1, 2)
    return binary_dilation(line, iterations=thickness)


def test_parts_are_dilated_lines() -> None:
    """Dilation: a quarter of the distance between the eyes (41.3 / 4), a third of the mouth's width (36.06 / 3)."""
    points = POINTS.astype(float)
    for part, start, end, thickness in (
        (dropout.eyes, points[0], points[1], 10),
        (dropout.mouth, points[3], points[4], 12),
        (dropout.nose, points[2], (points[0] + points[1]) / 2, 10),
    ):
        np.testing.assert_array_equal(part(SHAPE, POINTS), thick_line(SHAPE, start, end, thickness))


@pytest.mark.parametrize("scale", [2, 5, 8])
def test_parts_scale_with_the_face(scale: int) -> None:
    """In the published code, squared int16 distances above 181 pixels overflowed."""
    large = tuple(scale * side for side in SHAPE)
    for part in (dropout.eyes, dropout.mouth, dropout.nose):
        fraction = part(large, (POINTS * scale).astype(np.int16)).mean()
        assert fraction == pytest.approx(part(SHAPE, POINTS).mean(), rel=0.15)


def test_parts_of_tiny_faces_are_thin_lines() -> None:
    """In the published code, a dilation of 0 pixels blacked out the whole image."""
    tiny = np.array([[50, 50], [52, 50], [51, 51], [50, 53], [52, 53]], np.int16)
    for part in (dropout.eyes, dropout.mouth, dropout.nose):
        assert 0 < part(SHAPE, tiny).sum() < 30


def test_landmarks_outside_the_image_black_out_nothing() -> None:
    for part in (dropout.eyes, dropout.mouth, dropout.nose, dropout.outline):
        assert not part(SHAPE, POINTS + np.int16(500)).any()
    assert not dropout.half_of_outline(SHAPE, POINTS + np.int16(500), make_rng()).any()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 9), (160, 130)])
def test_halves_of_any_image_size(shape: tuple[int, int]) -> None:
    """The published code computed the middle of the height from the width."""
    height, width = shape
    upper, lower, left, right, *diagonals = (np.array(half) for half in dropout.image_halves(shape))
    assert upper[: height // 2].all()
    assert not upper[height // 2 :].any()
    assert left[:, : width // 2].all()
    assert not left[:, width // 2 :].any()
    np.testing.assert_array_equal(lower, ~upper)
    np.testing.assert_array_equal(right, ~left)
    np.testing.assert_array_equal(diagonals[0], (upper & left) | (lower & right))
    np.testing.assert_array_equal(diagonals[1], ~diagonals[0])


def test_outline_contains_the_face_and_rotates_with_it() -> None:
    face = dropout.outline(SHAPE, POINTS)
    assert all(face[y, x] for x, y in POINTS)
    assert not face[:30].any()
    assert 0.1 < face.mean() < 0.5
    angle = np.deg2rad(40)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rotated = (POINTS - [80, 80]) @ rotation.T + [200, 200]
    rows, columns = np.nonzero(dropout.outline((400, 400), rotated))
    back = (np.stack([columns, rows], axis=1) - [200, 200]) @ rotation + [80, 80]
    left, top, right, bottom = *back.min(axis=0), *back.max(axis=0)
    rows, columns = np.nonzero(dropout.outline((400, 400), POINTS + 100))
    upright = (columns.min() - 100, rows.min() - 100, columns.max() - 100, rows.max() - 100)
    np.testing.assert_allclose((left, top, right, bottom), upright, atol=2)


def test_half_of_outline_is_one_of_four_halves() -> None:
    face = dropout.outline(SHAPE, POINTS)
    rows, columns = np.nonzero(face)
    seen = set()
    for seed in range(40):
        half = dropout.half_of_outline(SHAPE, POINTS, make_rng(seed))
        assert not (half & ~face).any()
        assert 0.4 < half.sum() / face.sum() < 0.6
        y, x = (axis.mean() for axis in np.nonzero(half))
        seen.add((np.sign(round((y - rows.mean()) / 4)), np.sign(round((x - columns.mean()) / 4))))
    assert seen == {(-1, 0), (1, 0), (0, -1), (0, 1)}


def frequencies(landmarks: np.ndarray | None, trials: int = 4000) -> dict[str, float]:
    """How often face dropout chooses each kind of region for a real face."""
    parts = {part.__name__: part(SHAPE, POINTS) for part in (dropout.eyes, dropout.mouth, dropout.nose)}
    halves = [np.array(half) for half in dropout.image_halves(SHAPE)]
    counts = dict.fromkeys((*parts, "outline", "half", "nothing"), 0)
    rng = make_rng()
    for _ in range(trials):
        region = dropout.face_dropout(SHAPE, landmarks, False, lambda: None, rng)
        if region is None:
            counts["nothing"] += 1
        elif any((region == half).all() for half in halves):
            counts["half"] += 1
        else:
            counts[next((name for name in parts if (region == parts[name]).all()), "outline")] += 1
    return {name: count / trials for name, count in counts.items()}


def test_probabilities_of_face_dropout() -> None:
    """A part with 0.7 (eyes 0.5, else mouth 0.5, else nose 0.5), else the outline with 0.2, else a half with 0.1."""
    found = frequencies(POINTS)
    expected = {
        "eyes": 0.35,
        "mouth": 0.175,
        "nose": 0.0875,
        "outline": 0.3 * 0.2,
        "half": 0.3 * 0.8 * 0.1,
        "nothing": 0.0875 + 0.3 * 0.8 * 0.9,
    }
    for name, probability in expected.items():
        assert found[name] == pytest.approx(probability, abs=5 * (probability / 4000) ** 0.5), name


def test_probabilities_without_landmarks() -> None:
    found = frequencies(None)
    assert found["half"] == pytest.approx(0.08, abs=0.02)
    assert found["half"] + found["nothing"] == 1


def test_face_dropout_leaves_manipulated_pixels() -> None:
    """A half is only chosen if more than 20 pixels that are not zero stay visible, however weak."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:15, 10:16] = 1
    mask[10, 10:16] = mask[11, 10:12] = 0  # 22 pixels count, all of them in the upper left quarter
    rng = make_rng()
    regions = [dropout.face_dropout(SHAPE, None, True, lambda: mask, rng) for _ in range(4000)]
    halves = [region for region in regions if region is not None]
    assert len(halves) > 200
    assert all(not half[10:15, 10:16].any() for half in halves)
    mask[12, 10:13] = 0  # 19 pixels are left
    assert all(dropout.face_dropout(SHAPE, None, True, lambda: mask, rng) is None for _ in range(500))
    assert all(dropout.face_dropout(SHAPE, None, True, lambda: None, rng) is None for _ in range(500))


def test_weak_masks_do_not_reveal_the_label() -> None:
    """Fakes whose masks are below 102 everywhere lose halves as often as reals."""
    mask = np.full(SHAPE, 60, np.uint8)
    shares = []
    for fake in (False, True):
        rng = make_rng()
        shares.append(sum(dropout.face_dropout(SHAPE, None, fake, lambda: mask, rng) is not None for _ in range(4000)))
    assert shares[0] == pytest.approx(320, abs=5 * 320**0.5)
    assert shares[1] == pytest.approx(320, abs=5 * 320**0.5)


def test_block_dropout_blacks_out_one_side() -> None:
    """Probability 0.6 for reals and 0.8 for fakes, pivot within a fifth of the side from the center.

    In the published code, block dropout never ran.
    """
    mask = np.full(SHAPE, 255, np.uint8)
    for fake, probability in ((False, 0.6), (True, 0.8)):
        rng = make_rng()
        regions = [dropout.block_dropout(SHAPE, fake, lambda: mask, rng) for _ in range(2000)]
        blocks = [region for region in regions if region is not None]
        assert len(blocks) / 2000 == pytest.approx(probability, abs=0.05)
        assert {block.mean() < 0.5 for block in blocks} == {True, False}
        for block in blocks:
            assert 0.29 < block.mean() < 0.71
            rows, columns = block.all(axis=1), block.all(axis=0)
            assert np.count_nonzero(np.diff(rows)) + np.count_nonzero(np.diff(columns)) == 1


def test_block_dropout_leaves_manipulated_pixels() -> None:
    """A block is only chosen if more than 40 manipulated pixels stay visible."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[:10, :10] = 255
    rng = make_rng()
    regions = [dropout.block_dropout(SHAPE, True, lambda: mask, rng) for _ in range(300)]
    blocks = [region for region in regions if region is not None]
    assert len(blocks) > 200  # of 240 expected; half of all blocks would cover the corner
    assert all(np.count_nonzero(mask[~block]) > 40 for block in blocks)
    mask[:] = 0
    mask[:5, :8] = 255  # 40 pixels are too few
    assert all(dropout.block_dropout(SHAPE, True, lambda: mask, rng) is None for _ in range(100))
    assert all(dropout.block_dropout(SHAPE, True, lambda: None, rng) is None for _ in range(100))
