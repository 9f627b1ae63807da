"""Drop-outs against SciPy and NumPy, and their probabilities. Faults 19 to 21 and 24."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from training.datasets import face_dropout as dropout

POINTS = np.array([[60, 50], [101, 55], [80, 80], [62, 110], [98, 112]], np.int16)
SHAPE = (160, 130)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def thick_line(shape: tuple[int, int], start: np.ndarray, end: np.ndarray, thickness: int) -> np.ndarray:
    drawn = np.zeros(shape, np.uint8)
    cv2.line(drawn, [int(x) for x in start], [int(x) for x in end], 1, 2)
    return binary_dilation(drawn, iterations=thickness) if thickness else drawn > 0


def test_lines_between_landmarks() -> None:
    """Dilated by a quarter of the distance of the eyes (41.3 / 4), and a third of the mouth's (36.06 / 3)."""
    points = POINTS.astype(float)
    for part, start, end, thickness in (
        (dropout.eyes, points[0], points[1], 10),
        (dropout.mouth, points[3], points[4], 12),
        (dropout.nose, points[2], (points[0] + points[1]) / 2, 10),
    ):
        np.testing.assert_array_equal(part(SHAPE, POINTS), thick_line(SHAPE, start, end, thickness))


@pytest.mark.parametrize("scale", [2, 5, 8])
def test_large_distances(scale: int) -> None:
    """Fault 20: int16 differences above 181 overflow when squared. The share of the image stays the same."""
    large = tuple(scale * side for side in SHAPE)
    for part in (dropout.eyes, dropout.mouth, dropout.nose):
        share = part(large, (POINTS * scale).astype(np.int16)).mean()
        assert share == pytest.approx(part(SHAPE, POINTS).mean(), rel=0.15)


def test_small_distances() -> None:
    """Fault 20: no iterations meant dilation without end, a black image. Here nothing but the line is black."""
    tiny = np.array([[50, 50], [52, 50], [51, 51], [50, 53], [52, 53]], np.int16)
    for part in (dropout.eyes, dropout.mouth, dropout.nose):
        assert 0 < part(SHAPE, tiny).sum() < 30


def test_landmarks_outside() -> None:
    for part in (dropout.eyes, dropout.mouth, dropout.nose, dropout.outline):
        assert not part(SHAPE, POINTS + np.int16(500)).any()
    assert not dropout.half_of_outline(SHAPE, POINTS + np.int16(500), generator()).any()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 9), (160, 130)])
def test_halves_of_images_that_are_not_square(shape: tuple[int, int]) -> None:
    """Fault 19: the middle of the height was taken from the width."""
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


def test_outline_holds_the_face() -> None:
    """From the brows to the chin, turned with the head."""
    face = dropout.outline(SHAPE, POINTS)
    assert all(face[y, x] for x, y in POINTS)
    assert not face[:30].any()
    assert 0.1 < face.mean() < 0.5
    angle = np.deg2rad(40)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = (POINTS - [80, 80]) @ turn.T + [200, 200]
    rows, columns = np.nonzero(dropout.outline((400, 400), turned))
    back = (np.stack([columns, rows], axis=1) - [200, 200]) @ turn + [80, 80]
    left, top, right, bottom = *back.min(axis=0), *back.max(axis=0)
    rows, columns = np.nonzero(dropout.outline((400, 400), POINTS + 100))
    upright = (columns.min() - 100, rows.min() - 100, columns.max() - 100, rows.max() - 100)
    np.testing.assert_allclose((left, top, right, bottom), upright, atol=2)


def test_half_of_the_outline() -> None:
    face = dropout.outline(SHAPE, POINTS)
    rows, columns = np.nonzero(face)
    seen = set()
    for seed in range(40):
        half = dropout.half_of_outline(SHAPE, POINTS, generator(seed))
        assert not (half & ~face).any()
        assert 0.4 < half.sum() / face.sum() < 0.6
        y, x = (axis.mean() for axis in np.nonzero(half))
        seen.add((np.sign(round((y - rows.mean()) / 4)), np.sign(round((x - columns.mean()) / 4))))
    assert seen == {(-1, 0), (1, 0), (0, -1), (0, 1)}


def shares(landmarks: np.ndarray | None, draws: int = 4000) -> dict[str, float]:
    """How often each kind of drop-out comes."""
    kinds = {
        part.__name__: part(SHAPE, POINTS) for part in (dropout.eyes, dropout.mouth, dropout.nose, dropout.outline)
    }
    halves = [np.array(half) for half in dropout.image_halves(SHAPE)]
    counted = dict.fromkeys((*kinds, "half", "nothing"), 0)
    random = generator()
    for _ in range(draws):
        black = dropout.face_dropout(SHAPE, landmarks, False, lambda: None, random)
        if black is None:
            counted["nothing"] += 1
        elif any((black == half).all() for half in halves):
            counted["half"] += 1
        else:
            exact = [name for name in ("eyes", "mouth", "nose") if (black == kinds[name]).all()]
            counted[exact[0] if exact else "outline"] += 1
    return {name: count / draws for name, count in counted.items()}


def test_probabilities() -> None:
    """Eyes 0.5, else mouth 0.5, else nose 0.5, of 0.7; of the rest 0.2 the outline; of the rest 0.1 a half."""
    found = shares(POINTS)
    expected = {
        "eyes": 0.35,
        "mouth": 0.175,
        "nose": 0.0875,
        "outline": 0.3 * 0.2,
        "half": 0.3 * 0.8 * 0.1,
        "nothing": 0.0875 + 0.3 * 0.8 * 0.9,
    }
    for name, share in expected.items():
        assert found[name] == pytest.approx(share, abs=5 * (share / 4000) ** 0.5), name


def test_without_landmarks() -> None:
    found = shares(None)
    assert found["half"] == pytest.approx(0.08, abs=0.02)
    assert found["half"] + found["nothing"] == 1


def corner_mask() -> np.ndarray:
    """Changed only in the upper left quarter; 30 pixels, 8 of them as little as does not count."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[10:15, 10:16] = 255
    mask[10, 10:16] = mask[11, 10:12] = 102
    return mask


def test_a_fake_keeps_changed_pixels() -> None:
    """Halves: more than 20 pixels above 0.4 * 255 must remain; here all 22 of them are in one quarter."""
    mask, random = corner_mask(), generator()
    found = [dropout.face_dropout(SHAPE, None, True, lambda: mask, random) for _ in range(4000)]
    halves = [black for black in found if black is not None]
    assert len(halves) > 200
    assert all(not black[10:15, 10:16].any() for black in halves)
    mask[12, 10:13] = 0  # 19 are left
    assert all(dropout.face_dropout(SHAPE, None, True, lambda: mask, random) is None for _ in range(500))
    assert all(dropout.face_dropout(SHAPE, None, True, lambda: None, random) is None for _ in range(500))


def test_block_dropout_runs() -> None:
    """Fault 21: it could never run. p 0.6 for reals, 0.8 for fakes; pivots within a fifth of the middle."""
    mask = np.full(SHAPE, 255, np.uint8)
    for fake, share in ((False, 0.6), (True, 0.8)):
        random = generator()
        blocks = [dropout.block_dropout(SHAPE, fake, lambda: mask, random) for _ in range(2000)]
        drawn = [block for block in blocks if block is not None]
        assert len(drawn) / 2000 == pytest.approx(share, abs=0.05)
        assert {block.mean() < 0.5 for block in drawn} == {True, False}
        for block in drawn:
            assert 0.29 < block.mean() < 0.71
            rows, columns = block.all(axis=1), block.all(axis=0)
            assert np.count_nonzero(np.diff(rows)) + np.count_nonzero(np.diff(columns)) == 1


def test_block_dropout_leaves_what_was_changed() -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[:10, :10] = 255
    random = generator()
    for _ in range(300):
        block = dropout.block_dropout(SHAPE, True, lambda: mask, random)
        assert block is None or np.count_nonzero(mask[~block] > 0) > 40
