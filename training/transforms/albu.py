"""Augmentation of training samples with albumentations.

The winning solution used albumentations 1.0.0. Several transforms have changed since: noise is sampled by its standard
deviation instead of its variance, GaussianBlur and FancyPCA compute something else, HueSaturationValue skips gray
pixels, and Affine scales the axes independently and shifts by whole pixels. The transforms and parameters here restore
the distribution of 1.0.0.
"""

from __future__ import annotations

import functools
import os
import random
import warnings
from typing import Any

import cv2
import numpy as np
import torch

from preprocessing.crops import resize_longer_side
from training.tools.config import AugmentationConfig

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise, importing it looks for updates online
import albumentations as A

# Interpolation of IsotropicResize: (downscaling, upscaling), chosen at random.
INTERPOLATIONS = (
    (cv2.INTER_AREA, cv2.INTER_CUBIC),
    (cv2.INTER_AREA, cv2.INTER_LINEAR),
    (cv2.INTER_LINEAR, cv2.INTER_LINEAR),
)
# Standard deviation whose 3-pixel kernel is (1, 2, 1) / 4, which OpenCV uses if it is given no sigma.
BLUR_SIGMA = (1 / (2 * np.log(2))) ** 0.5
# Largest changes. Hue ranges from 0 to 179, saturation and value from 0 to 255.
HUE, SATURATION, VALUE = 20, 30, 20
# Standard deviation of FancyPCA's strength.
PCA_ALPHA = 0.1


class Augmentation:
    """Augments a crop of any size and fits it into a square. The result depends only on the arguments, seed included.

    Args:
        size: side of the square in pixels.
        config: strengths and probabilities; the winning solution's by default.
    """

    def __init__(self, size: int, config: AugmentationConfig | None = None):
        self.pipeline = build_pipeline(size, config or AugmentationConfig())

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Augment an image and its mask.

        Args:
            image: uint8 (height, width, 3), RGB.
            mask: uint8 (height, width), or None.
            seed: seed of all random choices.

        Returns:
            The image (size, size, 3) and the mask (size, size).
        """
        numpy_seed, python_seed = seed.spawn(2)
        self.pipeline.set_random_state(
            np.random.default_rng(numpy_seed), random.Random(int(python_seed.generate_state(1)[0]))
        )
        targets = {"image": image} if mask is None else {"image": image, "mask": mask}
        augmented = self.pipeline(**targets)
        return augmented["image"], augmented.get("mask")


def build_pipeline(size: int, config: AugmentationConfig) -> A.Compose:
    """Build the transforms in the winning solution's order."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # albumentations only warns about parameters that it does not know
        return A.Compose(
            [
                # A transform that is off would still use up random numbers, and change those of the others.
                *([Downscale(config.downscale, p=config.downscale_p)] if config.downscale_p else []),
                A.ImageCompression(quality_range=config.jpeg_quality, p=config.jpeg_p),
                VarianceNoise(config.noise_variance, p=config.noise_p),
                _blur(config),
                A.HorizontalFlip(p=config.flip_p),
                A.OneOf([IsotropicResize(size, down, up, p=1) for down, up in INTERPOLATIONS], p=1),
                A.PadIfNeeded(size, size, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=0, p=1),
                A.OneOf(
                    [
                        A.RandomBrightnessContrast(
                            (-config.brightness, config.brightness),
                            (-config.contrast, config.contrast),
                            brightness_by_max=True,
                            p=1,
                        ),
                        FancyPCA(PCA_ALPHA, p=1),
                        HueSaturationValue(p=1),
                    ],
                    p=config.color_p,
                ),
                A.ToGray(num_output_channels=3, method="weighted_average", p=config.gray_p),
                SubpixelAffine(
                    scale=(1 - config.scale, 1 + config.scale),
                    translate_percent=dict.fromkeys("xy", (-config.shift, config.shift)),
                    rotate=(-config.rotate, config.rotate),
                    keep_ratio=True,
                    interpolation=cv2.INTER_LINEAR,
                    mask_interpolation=cv2.INTER_NEAREST,
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=0,
                    fill_mask=0,
                    p=config.affine_p,
                ),
            ]
        )


def _blur(config: AugmentationConfig) -> A.GaussianBlur:
    if config.blur_sigma is None:
        return A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(BLUR_SIGMA, BLUR_SIGMA), p=config.blur_p)
    return A.GaussianBlur(blur_limit=0, sigma_limit=config.blur_sigma, p=config.blur_p)


class Downscale(A.ImageOnlyTransform):
    """Reduce an image by a random factor and enlarge it again, with a random interpolation each."""

    def __init__(self, factors: tuple[float, float], p: float = 0.5):
        super().__init__(p=p)
        self.factors = factors

    def get_params(self) -> dict[str, Any]:
        down = self.py_random.choice((cv2.INTER_AREA, cv2.INTER_LINEAR))
        up = self.py_random.choice((cv2.INTER_LINEAR, cv2.INTER_CUBIC))
        return {"factor": self.py_random.uniform(*self.factors), "down": down, "up": up}

    def apply(self, img: np.ndarray, factor: float, down: int, up: int, **params: Any) -> np.ndarray:  # noqa: ARG002
        height, width = img.shape[:2]
        size = max(1, round(width * factor)), max(1, round(height * factor))
        return cv2.resize(cv2.resize(img, size, interpolation=down), (width, height), interpolation=up)


class IsotropicResize(A.DualTransform):
    """Resize to a longer side of `size` pixels, keeping the aspect ratio. Masks use nearest-neighbor interpolation."""

    _targets = (A.core.type_definitions.Targets.IMAGE, A.core.type_definitions.Targets.MASK)

    def __init__(self, size: int, down: int, up: int, p: float = 1.0):
        super().__init__(p=p)
        self.size, self.down, self.up = size, down, up

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:  # noqa: ARG002
        return resize_longer_side(img, self.size, self.down, self.up)

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:  # noqa: ARG002
        return resize_longer_side(mask, self.size, cv2.INTER_NEAREST, cv2.INTER_NEAREST)


class VarianceNoise(A.ImageOnlyTransform):
    """Add Gaussian noise whose variance, in squared gray levels, is uniform in a range."""

    def __init__(self, variance: tuple[float, float], p: float = 0.5):
        super().__init__(p=p)
        self.variance = variance

    def get_params(self) -> dict[str, float]:
        return {"std": self.py_random.uniform(*self.variance) ** 0.5}

    def apply(self, img: np.ndarray, std: float, **params: Any) -> np.ndarray:  # noqa: ARG002
        # Adding levels that are rounded down equals rounding down the sum, because pixels are integers.
        levels = np.floor(std * _normal_quantiles()).astype(np.int16)
        choices = np.frombuffer(self.random_generator.bytes(2 * img.size), np.uint16)
        return cv2.add(img, levels.take(choices).reshape(img.shape), dtype=cv2.CV_8U)


class SubpixelAffine(A.Affine):
    """Shift, scale and rotate. Unlike in albumentations 2, shifts are not rounded to whole pixels."""

    def _get_translate_params(self, image_shape: tuple[int, int]) -> dict[str, float]:  # type: ignore[override]
        sides = dict(zip("yx", image_shape, strict=False))
        return {axis: self.py_random.uniform(*shifts) * sides[axis] for axis, shifts in self.translate_percent.items()}


class FancyPCA(A.ImageOnlyTransform):
    """Shift all pixels by the same color along the image's principal components.

    Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, NeurIPS 2012, as implemented by
    albumentations 1.0.0: with one random strength for all components and the transposed matrix of eigenvectors.
    """

    def __init__(self, alpha: float, p: float = 0.5):
        super().__init__(p=p)
        self.alpha = alpha

    def get_params(self) -> dict[str, float]:
        return {"strength": self.py_random.gauss(0, self.alpha)}

    def apply(self, img: np.ndarray, strength: float, **params: Any) -> np.ndarray:  # noqa: ARG002
        values, vectors = np.linalg.eigh(_color_covariance(img) / 255**2)
        shift = vectors[:, ::-1].T @ (strength * values[::-1]) * 255
        return _apply_table(img, np.arange(256)[:, None] + shift)


class HueSaturationValue(A.ImageOnlyTransform):
    """Shift hue (0 to 179), saturation and value (0 to 255) by random amounts, including those of gray pixels."""

    def get_params(self) -> dict[str, tuple[float, float, float]]:
        return {"shifts": tuple(self.py_random.uniform(-limit, limit) for limit in (HUE, SATURATION, VALUE))}

    def apply(self, img: np.ndarray, shifts: tuple[float, float, float], **params: Any) -> np.ndarray:  # noqa: ARG002
        table = np.arange(256)[:, None] + np.array(shifts)
        table[:, 0] %= 180
        hsv = _apply_table(cv2.cvtColor(img, cv2.COLOR_RGB2HSV), table)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


@functools.cache
def _normal_quantiles() -> np.ndarray:
    """Return 2^16 equally probable values of the standard normal distribution, float64: sampling is looking them up."""
    probabilities = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    return torch.special.ndtri(probabilities).numpy()


def _color_covariance(image: np.ndarray) -> np.ndarray:
    """Return the covariance (3, 3) of the channels of an image (height, width, 3).

    Mean products follow from xy = (x^2 + y^2 - (x - y)^2) / 2, because OpenCV computes such norms of bytes exactly and
    ten times faster than a covariance.
    """
    channels = cv2.split(image)
    squares = [cv2.norm(channel, cv2.NORM_L2SQR) for channel in channels]
    products = np.diag(squares)
    for x, y in ((0, 1), (0, 2), (1, 2)):
        difference = cv2.norm(channels[x], channels[y], cv2.NORM_L2SQR)
        products[x, y] = products[y, x] = (squares[x] + squares[y] - difference) / 2
    means = cv2.mean(image)[:3]
    return products / channels[0].size - np.outer(means, means)


def _apply_table(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Map the levels of an image (height, width, 3) with a table (256, 3) that is clipped to uint8."""
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8)[None])
