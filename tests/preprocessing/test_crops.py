"""Geometry of crops: worked examples and properties."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from preprocessing.crops import MarginCrop, SquareCrop, center_in_square, cut, resize_longer_side


def test_margin_is_a_third_rounded_down_for_all_sizes():
    for side in range(1, 8000):
        xmin, ymin, xmax, ymax = MarginCrop().window(np.array([10.9, 20.9, 10 + side, 20 + side]))
        assert (10 - xmin, xmax - 10 - side) == (side // 3, side // 3)
        assert (20 - ymin, ymax - 20 - side) == (side // 3, side // 3)


def test_margin_window_by_hand():
    # truncated corners: 588, 108, 767, 357; width 179, a third of it 59; height 249, a third of it 83
    box = np.array([588.69, 108.9, 767.24, 357.83], np.float32)
    assert MarginCrop().window(box) == (529, 25, 826, 440)
    assert MarginCrop(margin=0).window(box) == (588, 108, 767, 357)


def test_square_window_by_hand():
    # height 200: side 162; center x 150, y 100 + 0.57 * 200 = 214
    assert SquareCrop(side=0.81, center=0.57).window(np.array([70.0, 100.0, 230.0, 300.0])) == (69, 133, 231, 295)


def test_cut_at_the_edges_of_the_frame():
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    np.testing.assert_array_equal(cut(image, (-3, -2, 4, 5)), image[0:5, 0:4])
    np.testing.assert_array_equal(cut(image, (5, 3, 20, 20)), image[3:, 5:])
    assert cut(image, (-9, 0, -1, 5)) is None
    assert cut(image, (8, 0, 12, 5)) is None


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((200, 100), 380, (380, 190)),
        ((100, 200), 380, (190, 380)),
        ((500, 333), 380, (380, 253)),
        ((380, 300), 380, (380, 300)),
        ((1, 900), 380, (1, 380)),
        ((77, 77), 224, (224, 224)),
    ],
)
def test_resize_keeps_proportions(shape: tuple, size: int, expected: tuple):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    resized = resize_longer_side(image, size)
    assert resized.shape == (*expected, 3)
    filter_ = cv2.INTER_CUBIC if size > max(shape) else cv2.INTER_AREA
    if shape != expected:
        np.testing.assert_array_equal(resized, cv2.resize(image, expected[::-1], interpolation=filter_))


@pytest.mark.parametrize("shape", [(380, 380), (253, 380), (380, 1), (7, 8)])
def test_center_in_square(shape: tuple):
    image = np.full((*shape, 3), 200, np.uint8)
    square = center_in_square(image, 380)
    assert square.shape == (380, 380, 3)
    assert square.astype(int).sum() == image.astype(int).sum()
    rows, columns = (np.flatnonzero(square[..., 0].any(axis)) for axis in (1, 0))
    for indices, side in ((rows, shape[0]), (columns, shape[1])):
        assert indices[0] == (380 - side) // 2
        assert len(indices) == side
