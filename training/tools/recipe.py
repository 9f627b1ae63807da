"""The recipe of a checkpoint: its network, how its input is made from a frame, and how a crop is scored.

A checkpoint may come from anyone, so every value of its recipe is checked. Configurations have the same ranges.
"""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from preprocessing.crops import CROP_TYPES, RANGES, MarginCrop, SquareCrop
from training.options import MAX_SHIFT
from training.zoo import ENCODERS, NETWORKS
from training.zoo.unet import EfficientUnetClassifier

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Range = tuple[float, float]
# Side of the input in pixels. The largest published EfficientNet has 800; memory and time grow with the square.
SIZES = (32, 1024)
# Mean and standard deviation of RGB values in 0 to 1. The input is at most 1/std, which must also fit float16.
MEANS: Range = (0.0, 1.0)
STDS: Range = (0.001, 10.0)
SHIFTS: Range = (0.0, MAX_SHIFT)
# Keys that checkpoints of earlier versions lack.
OPTIONAL = ("bands", "flip", "shift")


@dataclass(frozen=True)
class Bands:
    """Scores up to which a face counts as likely real and from which it counts as likely fake.

    They come from the faces of a calibration set: at most the share `error` of its real faces are likely fake, and at
    most that share of its fakes are likely real.

    Attributes:
        real: scores up to this one are likely real.
        fake: scores from this one on are likely fake; not below `real`.
        error: the share, 0 to 1.
        faces: number of faces of the calibration set.
    """

    real: float
    fake: float
    error: float
    faces: int


@dataclass(frozen=True)
class Recipe:
    """The network of a checkpoint and its input. The defaults are those of the released checkpoints.

    Attributes:
        network: key of `training.zoo.NETWORKS`.
        encoder: key of `training.zoo.ENCODERS`.
        size: side of the square input in pixels.
        mean: mean of the RGB channels in 0 to 1, for normalization.
        std: standard deviation of the RGB channels in 0 to 1, for normalization.
        crop: the part of the frame around a face.
        bands: verdicts by score; None if the checkpoint is not calibrated.
        flip: flip averaging: a crop's logit is the mean of the logits of the crop and its mirror image.
        shift: if not 0, a crop's logit is the mean of the logits of the crop shifted up and down by this fraction of
            its side.
    """

    network: str = "DeepFakeClassifier"
    encoder: str = "tf_efficientnet_b7_ns"
    size: int = 380
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: MarginCrop | SquareCrop = field(default_factory=MarginCrop)
    bands: Bands | None = None
    flip: bool = False
    shift: float = 0.0

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize uint8 (n, size, size, 3) to float32 (n, 3, size, size) in channels-last memory format."""
        mean, std = (_on_device(values, images.device) for values in (self.mean, self.std))
        return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)

    def views(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the versions of images (n, channels, size, size) whose logits are averaged."""
        shifted = self.shifted(images)
        return [*shifted, *(view.flip(3) for view in shifted)] if self.flip else shifted

    def shifted(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return images shifted up and down, with the rows at the border repeated, or only the images for no shift."""
        rows = round(self.shift * images.shape[2])
        if not rows:
            return [images]
        top, bottom = (images[:, :, [row] * rows] for row in (0, -1))
        return [torch.cat([images[:, :, rows:], bottom], dim=2), torch.cat([top, images[:, :, :-rows]], dim=2)]

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as it is stored in a checkpoint."""
        return {**asdict(self), "crop": {"kind": self.crop.kind, **asdict(self.crop)}}

    @classmethod
    def from_dict(cls, values: Any) -> Recipe:
        """Make a recipe from the result of `to_dict`. Raises ValueError, which names the key, if it is not one."""
        values = _require_keys("recipe", values, [field.name for field in fields(cls) if field.name not in OPTIONAL])
        recipe = cls(
            network=_one_of("network", values["network"], NETWORKS),
            encoder=_one_of("encoder", values["encoder"], ENCODERS),
            size=_integer("size", values["size"], SIZES),
            mean=_channels("mean", values["mean"], MEANS),
            std=_channels("std", values["std"], STDS),
            crop=_crop(values["crop"]),
            bands=_bands(values.get("bands")),
            flip=_boolean("flip", values.get("flip", False)),
            shift=_number("shift", values.get("shift", 0), SHIFTS),
        )
        check_size(recipe.network, recipe.size)
        return recipe


@functools.cache  # copying constants to a GPU in each step would wait for it
def _on_device(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device)


def check_size(network: str, size: int) -> None:
    """Raise ValueError if a network cannot have an input of this size."""
    if issubclass(NETWORKS[network], EfficientUnetClassifier) and size % 32:
        raise ValueError(f"size: {network} needs a multiple of 32, not {size}")


def _crop(values: Any) -> MarginCrop | SquareCrop:
    kind = _one_of("crop.kind", _require_keys("crop", values, ["kind"])["kind"], CROP_TYPES)
    ranges = RANGES[kind]
    _require_keys("crop", values, list(ranges))
    unknown = [repr(key) for key in values if key not in ("kind", *ranges)]
    if unknown:
        raise ValueError(f"crop: unknown key {reprlib.repr(unknown[0])}")
    return CROP_TYPES[kind](**{key: _number(f"crop.{key}", values[key], bounds) for key, bounds in ranges.items()})


def _bands(values: Any) -> Bands | None:
    if values is None:
        return None
    values = _require_keys("bands", values, [field.name for field in fields(Bands)])
    real, fake, error = (_number(f"bands.{key}", values[key], (0, 1)) for key in ("real", "fake", "error"))
    if real > fake:
        raise ValueError(f"bands: real {real:g} is above fake {fake:g}")
    return Bands(real, fake, error, _integer("bands.faces", values["faces"], (1, 2**31 - 1)))


def _channels(key: str, values: Any, bounds: Range) -> tuple[float, float, float]:
    if not isinstance(values, (tuple, list)) or len(values) != 3:
        raise ValueError(f"{key}: {reprlib.repr(values)} is not three numbers")
    red, green, blue = (_number(key, value, bounds) for value in values)
    return red, green, blue


def _number(key: str, value: Any, bounds: Range) -> float:
    low, high = bounds
    # The comparison is false for NaN and, unlike a conversion, works for integers of any length.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{key}: {reprlib.repr(value)} is not a number from {low:g} to {high:g}")
    return float(value)


def _integer(key: str, value: Any, bounds: tuple[int, int]) -> int:
    low, high = bounds
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{key}: {reprlib.repr(value)} is not an integer from {low} to {high}")
    return value


def _boolean(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key}: {reprlib.repr(value)} is not true or false")
    return value


def _one_of(key: str, value: Any, names: Collection[str]) -> str:
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{key}: {reprlib.repr(value)} is not one of {', '.join(names)}")
    return value


def _require_keys(key: str, values: Any, names: list[str]) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(f"{key}: {reprlib.repr(values)} is not a mapping")
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"{key}: lacks {', '.join(missing)}")
    return values
