"""The augmentations of a training sample, with albumentations: the only file that knows that library.

The winning solution's pipeline was made with albumentations 1.0.0. Where today's library means something else by
the same name (noise by its standard deviation, blur, FancyPCA, saturation of gray pixels, unequal scaling), the
transform or its parameters are such that images are distributed as they were.
"""

from __future__ import annotations

import os
import random
import warnings
from typing import Any

import cv2
import numpy as np

from preprocessing.crops import resize_longer_side
from training.tools.config import AugmentationConfig

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks a server for its newest version otherwise
import albumentations as A

# The filters of IsotropicResize: for shrinking, for enlarging.
RESIZES = (
    (cv2.INTER_AREA, cv2.INTER_CUBIC),
    (cv2.INTER_AREA, cv2.INTER_LINEAR),
    (cv2.INTER_LINEAR, cv2.INTER_LINEAR),
)
# Gives the kernel 1 2 1 that OpenCV takes for 3 pixels if it is told no sigma.
BLUR_SIGMA = (1 / (2 * np.log(2))) ** 0.5
BRIGHTNESS, CONTRAST = 0.2, 0.2
HUE, SATURATION, VALUE = 20, 30, 20
PCA_ALPHA = 0.1


class Augmentation:
    """Augments a crop of any size to a square of `size`; a function of its arguments and the seed."""

    def __init__(self, size: int, config: AugmentationConfig | None = None):
        self.pipeline = build_pipeline(size, config or AugmentationConfig())

    def __call__(
        self, image: np.ndarray, mask: np.ndarray | None, seed: np.random.SeedSequence
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """RGB uint8 (height, width, 3) and its mask, uint8 (height, width), to (size, size, 3) and (size, size)."""
        numbers, draws = seed.spawn(2)
        self.pipeline.set_random_state(np.random.default_rng(numbers), random.Random(int(draws.generate_state(1)[0])))
        targets = {"image": image} if mask is None else {"image": image, "mask": mask}
        augmented = self.pipeline(**targets)
        return augmented["image"], augmented.get("mask")


def build_pipeline(size: int, config: AugmentationConfig) -> A.Compose:
    """The transforms in their order."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # albumentations warns of parameters that it ignores
        return A.Compose(
            [
                A.ImageCompression(quality_range=config.jpeg_quality, p=config.jpeg_p),
                VarianceNoise(config.noise_variance, p=config.noise_p),
                A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(BLUR_SIGMA, BLUR_SIGMA), p=config.blur_p),
                A.HorizontalFlip(p=config.flip_p),
                A.OneOf([IsotropicResize(size, down, up, p=1) for down, up in RESIZES], p=1),
                A.PadIfNeeded(size, size, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=0, p=1),
                A.OneOf(
                    [
                        A.RandomBrightnessContrast(
                            (-BRIGHTNESS, BRIGHTNESS), (-CONTRAST, CONTRAST), brightness_by_max=True, p=1
                        ),
                        FancyPCA(PCA_ALPHA, p=1),
                        HueSaturationValue(p=1),
                    ],
                    p=config.color_p,
                ),
                A.ToGray(num_output_channels=3, method="weighted_average", p=config.gray_p),
                A.Affine(
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


class IsotropicResize(A.DualTransform):
    """Resize so that the longer side is `size` pixels, keeping the proportions; masks by the nearest pixel."""

    _targets = (A.core.type_definitions.Targets.IMAGE, A.core.type_definitions.Targets.MASK)

    def __init__(self, size: int, down: int, up: int, p: float = 1.0):
        super().__init__(p=p)
        self.size, self.down, self.up = size, down, up

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:  # noqa: ARG002
        return resize_longer_side(img, self.size, self.down, self.up)

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:  # noqa: ARG002
        return resize_longer_side(mask, self.size, cv2.INTER_NEAREST, cv2.INTER_NEAREST)


class VarianceNoise(A.ImageOnlyTransform):
    """Gaussian noise whose variance, in gray levels squared, is uniform in a range (today's draws the deviation)."""

    def __init__(self, variance: tuple[float, float], p: float = 0.5):
        super().__init__(p=p)
        self.variance = variance

    def get_params(self) -> dict[str, float]:
        return {"deviation": self.py_random.uniform(*self.variance) ** 0.5}

    def apply(self, img: np.ndarray, deviation: float, **params: Any) -> np.ndarray:  # noqa: ARG002
        noise = self.random_generator.standard_normal(img.shape, np.float32)
        return np.clip(img + deviation * noise, 0, 255).astype(np.uint8)


class FancyPCA(A.ImageOnlyTransform):
    """One shift of all pixels, along the image's principal colors (today's scales each pixel's deviation instead).

    Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, NeurIPS 2012, as
    albumentations 1.0.0 does it: with a single draw, and with the matrix of the eigenvectors transposed.
    """

    def __init__(self, alpha: float, p: float = 0.5):
        super().__init__(p=p)
        self.alpha = alpha

    def get_params(self) -> dict[str, float]:
        return {"strength": self.py_random.gauss(0, self.alpha)}

    def apply(self, img: np.ndarray, strength: float, **params: Any) -> np.ndarray:  # noqa: ARG002
        covariance = cv2.calcCovarMatrix(
            img.reshape(-1, 3), None, cv2.COVAR_NORMAL | cv2.COVAR_ROWS | cv2.COVAR_SCALE, ctype=cv2.CV_64F
        )[0]
        values, vectors = np.linalg.eigh(covariance / 255**2)
        shift = vectors[:, ::-1].T @ (strength * values[::-1]) * 255
        return _look_up(img, np.arange(256)[:, None] + shift)


class HueSaturationValue(A.ImageOnlyTransform):
    """Shifts of hue (of 180), saturation and value (of 255), also of gray pixels (today's leaves these gray)."""

    def get_params(self) -> dict[str, tuple[float, float, float]]:
        return {"shifts": tuple(self.py_random.uniform(-limit, limit) for limit in (HUE, SATURATION, VALUE))}

    def apply(self, img: np.ndarray, shifts: tuple[float, float, float], **params: Any) -> np.ndarray:  # noqa: ARG002
        table = np.arange(256)[:, None] + np.array(shifts)
        table[:, 0] %= 180
        hsv = _look_up(cv2.cvtColor(img, cv2.COLOR_RGB2HSV), table)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replace the levels of an image (height, width, 3) by those of a table (256, 3), cut off to bytes."""
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8)[None])
