"""The difference between a fake and its original."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.ndimage import uniform_filter
from skimage import metrics

from preprocessing.generate_diffs import difference, dissimilarity
from tests.support.datasets import portrait_frames


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute SSIM by its definition (Wang et al., 2004): 7 x 7 windows, sample covariance, K1 = 0.01, K2 = 0.03."""
    x, y = first.astype(float), second.astype(float)
    mean = lambda values: uniform_filter(values, 7)  # noqa: E731
    covariance = lambda a, b: 49 / 48 * (mean(a * b) - mean(a) * mean(b))  # noqa: E731
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean(x) * mean(y) + c1) * (2 * covariance(x, y) + c2)
    return numerator / ((mean(x) ** 2 + mean(y) ** 2 + c1) * (covariance(x, x) + covariance(y, y) + c2))


def test_difference_by_definition():
    random = np.random.default_rng(0)
    original = cv2.GaussianBlur(random.integers(0, 255, (60, 50, 3), dtype=np.uint8), (5, 5), 1)
    fake = original.copy()
    fake[20:40, 15:35] = 255 - fake[20:40, 15:35]  # negative correlation, so SSIM is below 0
    maps = [ssim(original[..., channel], fake[..., channel]) for channel in range(3)]
    assert min(values.min() for values in maps) < -0.5
    red, green, blue = (np.clip(255 * (1 - values), 0, 255).astype(np.uint8) for values in maps)
    expected = np.round(0.299 * red + 0.587 * green + 0.114 * blue)
    mask = difference(original, fake)
    np.testing.assert_allclose(mask, expected, atol=1.01)
    assert mask[25:35, 20:30].min() > 250  # above 255 before clipping; the published code overflows to values near 0
    np.testing.assert_array_equal(difference(original, original), 0)


@pytest.mark.parametrize("shape", [(3, 3), (3, 50), (5, 4), (6, 40), (7, 7), (8, 200), (150, 120)])
@pytest.mark.parametrize("change", [3, 255])
def test_difference_equals_that_of_scikit_image(shape: tuple[int, int], change: int):
    """On a photograph and on white noise, slightly and completely changed; windows of 3, 5 and 7 pixels."""
    random = np.random.default_rng(0)
    photograph = cv2.resize(next(iter(portrait_frames(1, 320, 240))), shape[::-1], interpolation=cv2.INTER_AREA)
    window = min(7, (min(shape) - 1) // 2 * 2 + 1)
    for original in (photograph, random.integers(0, 256, (*shape, 3), np.uint8), np.full((*shape, 3), 255, np.uint8)):
        fake = np.clip(original + random.integers(-change, change + 1, original.shape), 0, 255).astype(np.uint8)
        similarity = metrics.structural_similarity(original, fake, win_size=window, channel_axis=2, full=True)[1]
        np.testing.assert_allclose(dissimilarity(original, fake), 255 * (1 - similarity), atol=0.001)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 3), (6, 40), (7, 7)])
def test_difference_of_tiny_crops(shape: tuple[int, int]):
    random = np.random.default_rng(0)
    first, second = (random.integers(0, 255, (*shape, 3), dtype=np.uint8) for _ in range(2))
    assert difference(first, second).shape == shape
