"""Augmentations: results and distributions equal those of albumentations 1.0.0, restated in NumPy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.stats import kstest
from skimage.data import astronaut

from training.tools.config import AugmentationConfig
from training.transforms import albu
from training.transforms.albu import Augmentation

OFF = dict.fromkeys(("jpeg_p", "noise_p", "blur_p", "flip_p", "color_p", "gray_p", "affine_p"), 0.0)
GRAY = np.full((64, 64, 3), 128, np.uint8)


def only(size: int = 64, **on: Any) -> Augmentation:
    """An augmentation with all transforms off, except resizing and those that are given."""
    return Augmentation(size, AugmentationConfig(**{**OFF, **on}))


def samples(
    augmentation: Augmentation, image: np.ndarray, count: int, mask: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    for number in range(count):
        yield augmentation(image, mask, np.random.SeedSequence((1, number)))


def parameters(transform: Any, count: int, **data: Any) -> list[dict[str, Any]]:
    """Random parameters of a transform."""
    transform.set_random_state(np.random.default_rng(0), random.Random(0))
    data = {"image": GRAY, **data}
    shape = {"shape": data["image"].shape}
    return [{**transform.get_params(), **transform.get_params_dependent_on_data(shape, data)} for _ in range(count)]


def transform(name: str, **config: Any) -> Any:
    """A transform of the pipeline by the name of its class."""
    pipeline = albu.build_pipeline(64, AugmentationConfig(**config))
    transforms = [inner for outer in pipeline.transforms for inner in getattr(outer, "transforms", [outer])]
    return next(found for found in transforms if type(found).__name__ == name)


def is_uniform(values: list[float], low: float, high: float) -> bool:
    """Whether values may be uniformly distributed (Kolmogorov-Smirnov test at 0.1 %)."""
    return kstest(np.array(values), "uniform", (low, high - low)).pvalue > 0.001


def test_order_and_probabilities_of_the_winning_solution() -> None:
    names = [type(t).__name__ for t in albu.build_pipeline(380, AugmentationConfig()).transforms]
    assert names == [
        "ImageCompression",
        "VarianceNoise",
        "GaussianBlur",
        "HorizontalFlip",
        "OneOf",
        "PadIfNeeded",
        "OneOf",
        "ToGray",
        "SubpixelAffine",
    ]
    assert [t.p for t in albu.build_pipeline(380, AugmentationConfig()).transforms] == [
        *(0.5, 0.1, 0.05, 0.5, 1, 1, 0.7, 0.2, 0.5)
    ]


def test_noise_variance_is_uniform() -> None:
    variances = [np.var(image.astype(float)) for image, _ in samples(only(noise_p=1), GRAY, 1500)]
    assert is_uniform(variances, 10, 50)


def test_jpeg_quality_is_uniform() -> None:
    qualities = np.array([values["quality"] for values in parameters(transform("ImageCompression"), 8000)])
    counts = np.bincount(qualities, minlength=101)[60:]
    assert qualities.min() == 60
    assert qualities.max() == 100
    assert np.abs(counts - 8000 / 41).max() < 5 * (8000 / 41) ** 0.5


def test_blur_equals_opencv_with_three_pixels() -> None:
    image = astronaut()[:64, 200:264]
    (blurred, _), *_ = samples(only(blur_p=1), image, 1)
    expected = cv2.GaussianBlur(image, (3, 3), 0)
    assert np.abs(blurred.astype(int) - expected).max() <= 1


def test_blur_of_a_random_width() -> None:
    """The variance of a blurred point is the square of the kernel's standard deviation."""
    point = np.zeros((64, 64, 3), np.uint8)
    point[32, 32] = 255
    distances = np.arange(64) - 32
    widths = []
    for image, _ in samples(only(blur_p=1, blur_sigma=(1.0, 3.0)), point, 200):
        profile = image[..., 0].sum(axis=0) / image[..., 0].sum()
        widths.append(float((profile @ distances**2) ** 0.5))
    assert 0.8 < min(widths) < 1.2
    assert 2.2 < max(widths) < 3.1  # the kernel's tails are rounded to 0


def test_downscaling_removes_details() -> None:
    """A factor of 1/4 leaves nothing of a pattern with a period of two pixels, and 1 leaves everything."""
    pattern = np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None].repeat(3, 2)
    for factor, low, high in ((0.25, 0, 20), (1.0, 127, 128)):
        for image, _ in samples(only(downscale_p=1, downscale=(factor, factor)), pattern, 20):
            assert low <= image.std() <= high
    sizes = [values["factor"] for values in parameters(albu.Downscale((0.3, 0.9)), 2000)]
    assert is_uniform(sizes, 0.3, 0.9)


def test_largest_change_of_brightness_and_contrast() -> None:
    values = parameters(transform("RandomBrightnessContrast", brightness=0.4, contrast=0.1), 2000)
    assert is_uniform([value["alpha"] for value in values], 0.9, 1.1)
    assert is_uniform([value["beta"] for value in values], -0.4 * 255, 0.4 * 255)


def test_brightness_and_contrast_are_uniform() -> None:
    """image * alpha + beta * 255, with alpha in 1 +- 0.2 and beta in +- 0.2."""
    values = parameters(transform("RandomBrightnessContrast"), 2000)
    assert is_uniform([value["alpha"] for value in values], 0.8, 1.2)
    assert is_uniform([value["beta"] for value in values], -0.2 * 255, 0.2 * 255)


def test_hue_saturation_value_are_uniform() -> None:
    values = np.array([value["shifts"] for value in parameters(transform("HueSaturationValue"), 2000)])
    for shifts, limit in zip(values.T, (20, 30, 20), strict=True):
        assert is_uniform(shifts, -limit, limit)


def test_hue_saturation_value_equals_1_0_0() -> None:
    """Black and gray pixels are shifted too, unlike in albumentations 2."""
    image = np.concatenate([astronaut()[:40, :60], np.zeros((5, 60, 3), np.uint8)])
    for shifts in ((13.7, -20.2, 5.5), (-17.1, 28.9, 12.3)):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(float)
        hsv[..., 0] = np.mod(hsv[..., 0] + shifts[0], 180)
        hsv[..., 1:] = np.clip(hsv[..., 1:] + shifts[1:], 0, 255)
        expected = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
        np.testing.assert_array_equal(albu.HueSaturationValue().apply(image, shifts), expected)


def test_fancy_pca_equals_1_0_0() -> None:
    """All pixels are shifted by the strength times the eigenvalues times the transposed matrix of eigenvectors."""
    image = astronaut()[:90, 100:200]
    pixels = image.reshape(-1, 3) / 255
    values, vectors = np.linalg.eigh(np.cov(pixels, rowvar=False))
    for strength in (0.15, -0.3, 2.0):
        shift = vectors[:, ::-1].T @ (strength * values[::-1]) * 255
        expected = np.clip(image + shift, 0, 255).astype(int)
        found = albu.FancyPCA(0.1).apply(image, strength).astype(int)
        assert np.abs(found - expected).max() <= 1
        assert np.abs(shift).max() > 0.5
    strengths = [value["strength"] for value in parameters(transform("FancyPCA"), 3000)]
    assert kstest(np.array(strengths) / 0.1, "norm").pvalue > 0.001


def test_affine_parameters_are_uniform() -> None:
    """Shift up to 0.1, the same scale of 0.8 to 1.2 for both axes, rotation up to 10 degrees around the center."""
    values = parameters(transform("SubpixelAffine"), 3000, image=np.zeros((400, 400, 3), np.uint8))
    matrices = np.array([value["matrix"] for value in values])
    scales = np.hypot(matrices[:, 0, 0], matrices[:, 0, 1])
    np.testing.assert_allclose(scales, np.hypot(matrices[:, 1, 0], matrices[:, 1, 1]))
    assert is_uniform(scales, 0.8, 1.2)
    assert is_uniform(np.degrees(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0])), -10, 10)
    centers = matrices @ (199.5, 199.5, 1)
    for axis in (0, 1):
        shifts = centers[:, axis] - 199.5
        assert np.abs(shifts).max() <= 40
        assert is_uniform(shifts, -40, 40)


@pytest.mark.parametrize(("name", "p"), [("flip_p", 0.5), ("gray_p", 0.2), ("affine_p", 0.5), ("jpeg_p", 0.5)])
def test_probabilities(name: str, p: float) -> None:
    image = astronaut()[40:104, 180:244]
    plain, _ = next(samples(only(), image, 1))
    changed = [not np.array_equal(found, plain) for found, _ in samples(only(**{name: p}), image, 800)]
    assert np.mean(changed) == pytest.approx(p, abs=5 * (p * (1 - p) / 800) ** 0.5)


def test_gray_and_flip_equal_opencv_and_numpy() -> None:
    image = astronaut()[40:104, 180:244]
    (gray, _), *_ = samples(only(gray_p=1), image, 1)
    np.testing.assert_array_equal(gray, np.dstack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)] * 3))
    (flipped, _), *_ = samples(only(flip_p=1), image, 1)
    np.testing.assert_array_equal(flipped, image[:, ::-1])


@pytest.mark.parametrize(("height", "width"), [(50, 33), (33, 50), (200, 151), (151, 200), (64, 64), (1, 1)])
def test_resize_uses_three_interpolations_and_pads_both_sides(height: int, width: int) -> None:
    """In the published code, all three choices were the same interpolation."""
    image = cv2.resize(astronaut()[40:104, 180:244], (width, height)) // 2 + 100
    mask = np.full((height, width), 200, np.uint8)
    longer = max(height, width)
    inner = (max(1, int(width * (64 / longer))), max(1, int(height * (64 / longer))))
    choices = ((cv2.INTER_AREA, cv2.INTER_CUBIC), (cv2.INTER_AREA, cv2.INTER_LINEAR), (cv2.INTER_LINEAR,) * 2)
    expected = {cv2.resize(image, inner, interpolation=choice[longer < 64]).tobytes() for choice in choices}
    top, left = (64 - inner[1]) // 2, (64 - inner[0]) // 2
    inside = np.s_[top : top + inner[1], left : left + inner[0]]
    found = set()
    for augmented, warped in samples(only(), image, 30, mask):
        found.add(augmented[inside].tobytes())
        assert (warped[inside] == 200).all()
        augmented, warped = augmented.copy(), warped.copy()
        augmented[inside] = warped[inside] = 0
        assert not augmented.any()
        assert not warped.any()
    assert found == expected


def test_geometry_moves_image_and_mask_alike() -> None:
    image = np.zeros((80, 60, 3), np.uint8)
    image[20:40, 10:50] = 255
    mask = image[..., 0]
    for augmented, warped in samples(only(affine_p=1, flip_p=0.5), image, 20, mask):
        assert set(np.unique(warped)) <= {0, 255}
        differs = (augmented[..., 0] > 127) != (warped > 127)
        assert differs.mean() < 0.03
        assert warped.any()


def test_same_seeds_give_same_images_and_keep_global_random_state() -> None:
    image = astronaut()[:90, 100:200]
    augmentation = Augmentation(64)
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].copy()
    first = [image.copy() for image, _ in samples(augmentation, image, 12)]
    again = [image for image, _ in samples(Augmentation(64), image, 12)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({image.tobytes() for image in first}) == 12
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
