"""Configuration of a training run: one JSON file per model, with the keys of the published code and a few more.

The classes below document every key. Where a key of the published code has a default here, it is the published one.
Unknown keys, wrong types and unsupported names are errors that name the key and what is allowed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from common.errors import UserError
from common.text import shorten
from preprocessing.crops import CROP_TYPES, MARGIN, RANGES, MarginCrop, SquareCrop
from training.losses import GAMMA, LOSSES, MASK_LOSS
from training.tools.optimizers import OPTIMIZERS
from training.tools.published_config import translate
from training.tools.recipe import IMAGENET_MEAN, IMAGENET_STD, MEANS, SIZES, STDS, Recipe, check_size
from training.tools.schedulers import SCHEDULES, Count, Schedule, schedule_class
from training.zoo import ENCODERS, NETWORKS
from training.zoo.unet import EfficientUnetClassifier

# Longest part of a wrong value that is repeated in an error.
MAX_VALUE = 100
SGD_MOMENTUM = 0.9


class ConfigError(UserError):
    """A configuration that cannot be used. The message has one line per invalid key."""


def one_of(names: Collection[str]) -> AfterValidator:
    """Return a validator that accepts only these names."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"Input should be one of {', '.join(names)}")
        return name

    return AfterValidator(check)


def within(bounds: tuple[float, float]) -> Any:
    """Return a field that accepts numbers within these bounds."""
    return Field(ge=bounds[0], le=bounds[1])


Model = TypeVar("Model", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(gt=0, le=1)]
Sigma = Annotated[float, Field(gt=0, le=20)]
JpegQuality = Annotated[int, Field(ge=1, le=100)]
Mean = Annotated[float, within(MEANS)]
Std = Annotated[float, within(STDS)]
LossName = Annotated[str, one_of([*LOSSES, MASK_LOSS])]


class Section(BaseModel):
    """Base class of the configuration's sections."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ScheduleConfig(Section):
    """Learning rate schedule.

    Attributes:
        type: key of `training.tools.schedulers.SCHEDULES`.
        mode: "step": the schedule's time counts batches, `batches_per_epoch` for each epoch; "epoch": epochs.
        epochs: number of epochs to train.
        params: parameters of the schedule, see its class.
    """

    type: Annotated[str, one_of(SCHEDULES)] = "constant"
    mode: Literal["step", "epoch"] = "epoch"
    epochs: Count = 10
    params: dict[str, Any] = {}

    def build(self) -> Schedule:
        """Build the schedule."""
        return schedule_class(self.type, self.params).model_validate_json(json.dumps(self.params))


class OptimizerConfig(Section):
    """Optimizer.

    Attributes:
        batch_size: number of crops per batch and process (GPU).
        type: key of `training.tools.optimizers.OPTIMIZERS`.
        learning_rate: initial learning rate.
        classifier_lr: initial learning rate of everything but the encoder; null for `learning_rate`.
        momentum: momentum, if the optimizer supports it. SGD's default is SGD_MOMENTUM.
        nesterov: use Nesterov momentum, if the optimizer supports it. SGD's default is true if it has a momentum.
        weight_decay: weight decay.
        schedule: learning rate schedule.
        clip_norm: gradient clipping threshold (L2 norm).
        accumulate: number of parts that a batch is divided into to save memory; the gradient is that of the batch.
    """

    batch_size: Annotated[Count, Field(ge=2)] = 32
    type: Annotated[str, one_of(OPTIMIZERS)] = "SGD"
    learning_rate: PositiveFloat = 0.1
    classifier_lr: PositiveFloat | None = None
    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: PositiveFloat = 1.0
    accumulate: Count = 1

    @model_validator(mode="before")
    @classmethod
    def _set_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("type", "SGD") not in ("SGD", "FusedSGD"):
            return values
        values = {"momentum": SGD_MOMENTUM, **values}
        return {"nesterov": values["momentum"] != 0, **values}

    @model_validator(mode="after")
    def _check(self) -> OptimizerConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by accumulate {self.accumulate}")
        return self


class NormalizeConfig(Section):
    """Normalization of the network's input: (rgb / 255 - mean) / std. The defaults are those of ImageNet.

    Attributes:
        mean: mean of R, G and B.
        std: standard deviation of R, G and B.
    """

    mean: tuple[Mean, Mean, Mean] = IMAGENET_MEAN
    std: tuple[Std, Std, Std] = IMAGENET_STD


class MarginConfig(Section):
    """Crops with a margin, see `preprocessing.crops.MarginCrop`.

    Attributes:
        kind: "margin".
        margin: margin on each side, as a fraction of the bounding box's height and width.
    """

    kind: Literal["margin"] = "margin"
    margin: Annotated[float, within(RANGES["margin"]["margin"])] = MARGIN


class SquareConfig(Section):
    """Square crops, see `preprocessing.crops.SquareCrop`.

    Attributes:
        kind: "square".
        side: side of the square, as a multiple of the bounding box's height.
        center: distance of the square's center from the top of the bounding box, as a fraction of the box's height.
    """

    kind: Literal["square"] = "square"
    side: Annotated[float, within(RANGES["square"]["side"])]
    center: Annotated[float, within(RANGES["square"]["center"])]


class AugmentationConfig(Section):
    """Augmentation of training images. The defaults are those of the winning solution.

    Attributes:
        downscale: range of the factor by which an image is reduced and enlarged again.
        downscale_p: probability of that, before JPEG compression.
        jpeg_quality: range of the JPEG quality, 1 to 100.
        jpeg_p: probability of JPEG compression.
        noise_variance: range of the variance of Gaussian noise, in squared gray levels (0 to 255).
        noise_p: probability of noise.
        blur_sigma: range of the standard deviation of Gaussian blur in pixels; null for a 3x3 kernel.
        blur_p: probability of blur.
        flip_p: probability of a horizontal flip.
        brightness: largest change of the brightness, as a fraction of white.
        contrast: largest change of the contrast, as a fraction.
        color_p: probability of a color change: brightness and contrast, FancyPCA, or hue, saturation and value.
        gray_p: probability of conversion to gray.
        shift: largest shift, as a fraction of the image's side.
        scale: largest change of the scale; 0.2 means 0.8 to 1.2.
        rotate: largest rotation in degrees.
        affine_p: probability of shift, scale and rotation together.
    """

    downscale: tuple[Factor, Factor] = (0.25, 1.0)
    downscale_p: Probability = 0.0
    jpeg_quality: tuple[JpegQuality, JpegQuality] = (60, 100)
    jpeg_p: Probability = 0.5
    noise_variance: tuple[NonNegativeFloat, NonNegativeFloat] = (10.0, 50.0)
    noise_p: Probability = 0.1
    blur_sigma: tuple[Sigma, Sigma] | None = None
    blur_p: Probability = 0.05
    flip_p: Probability = 0.5
    brightness: Probability = 0.2
    contrast: Probability = 0.2
    color_p: Probability = 0.7
    gray_p: Probability = 0.2
    shift: Probability = 0.1
    scale: Fraction = 0.2
    rotate: Annotated[int, Field(ge=0, le=180)] = 10
    affine_p: Probability = 0.5

    @model_validator(mode="after")
    def _check(self) -> AugmentationConfig:
        for key in ("downscale", "jpeg_quality", "noise_variance", "blur_sigma"):
            low, high = getattr(self, key) or (0, 0)
            if low > high:
                raise ValueError(f"{key}: {low} is above {high}")
        return self


class Config(Section):
    """A model and its training.

    Attributes:
        network: key of `training.zoo.NETWORKS`.
        encoder: key of `training.zoo.ENCODERS`.
        size: side of the network's square input in pixels.
        batches_per_epoch: largest number of batches per epoch; an epoch also ends when its crops are used up.
        fp16: train with mixed precision (`amp_dtype`).
        optimizer: optimizer and learning rate schedule.
        normalize: normalization of the network's input.
        losses: weights of the losses, by name.
        focal_gamma: focusing parameter of the focal loss.
        loss_scope: which samples each class is averaged over. "global": those of all processes, so that the loss does
            not depend on how a batch is divided; "process": those of each process, as in the published code.
        ohem_samples: number of hardest samples of each class to use per process; null for all.
        pretrained: initial weights of the encoder. true: ImageNet weights, from PyTorch's cache or else downloaded by
            timm; false: random; a string: a file, relative to the configuration's folder (on the command line: to the
            working directory).
        amp_dtype: AMP dtype.
        channels_last: use the channels-last memory format.
        frozen_stages: number of block stages of the encoder that keep their initial weights, as does the stem then;
            the last stages learn the most, and the first ones take the most time.
        pairs: put each real crop and a fake of the same face and frame in one batch, see
            `training.datasets.folds.paired_order`.
        self_blended: share of the fakes that are replaced by self-blended images of their originals, see
            `training.datasets.blending`. Needs landmarks.
        ema: decay of an exponential moving average of the weights, which is validated and saved instead of the
            weights; null for none.
        dropout: dropout rate before the last layer; null for the network's default.
        drop_path: stochastic depth rate of the encoder; null for the encoder's default.
        crop: the part of the frame that the crops show.
        augmentation: augmentation of training images.
        prefix: start of the run's name, if --prefix does not set one.
    """

    network: Annotated[str, one_of(NETWORKS)]
    encoder: Annotated[str, one_of(ENCODERS)]
    size: Annotated[int, within(SIZES)]
    batches_per_epoch: Count
    fp16: bool
    optimizer: OptimizerConfig = OptimizerConfig()
    normalize: NormalizeConfig = NormalizeConfig()
    losses: Annotated[dict[LossName, PositiveFloat], Field(min_length=1)]
    focal_gamma: NonNegativeFloat = GAMMA
    loss_scope: Literal["global", "process"] = "global"
    ohem_samples: Count | None = None
    pretrained: bool | str = True
    amp_dtype: Literal["float16", "bfloat16"] = "float16"
    channels_last: bool = True
    frozen_stages: Annotated[int, Field(ge=0, le=6)] = 0
    pairs: bool = False
    self_blended: Probability = 0.0
    ema: Fraction | None = None
    dropout: Fraction | None = None
    drop_path: Fraction | None = None
    crop: Annotated[MarginConfig | SquareConfig, Field(discriminator="kind")] = MarginConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    prefix: Annotated[str, Field(pattern="^[^/\\x00]*$")] = ""

    @model_validator(mode="after")
    def _check(self) -> Config:
        predicts_mask = issubclass(NETWORKS[self.network], EfficientUnetClassifier)
        if predicts_mask != (MASK_LOSS in self.losses):
            raise ValueError(
                f"losses: {self.network} {'needs' if predicts_mask else 'predicts no mask and cannot use'} {MASK_LOSS}"
            )
        check_size(self.network, self.size)
        if not set(self.losses) & set(LOSSES):
            raise ValueError(f"losses: at least one of {', '.join(LOSSES)} is needed")
        if self.ohem_samples and self.optimizer.accumulate > 1:
            raise ValueError("ohem_samples: needs whole batches. Set optimizer.accumulate to 1")
        return self

    def crop_spec(self) -> MarginCrop | SquareCrop:
        """Return the part of the frame that the crops show."""
        return CROP_TYPES[self.crop.kind](**self.crop.model_dump(exclude={"kind"}))

    def recipe(self, crop: MarginCrop | SquareCrop) -> Recipe:
        """Return the recipe that checkpoints store; `crop` is what the network sees."""
        return Recipe(self.network, self.encoder, self.size, self.normalize.mean, self.normalize.std, crop)


# Location in pydantic's errors -> the section at that location.
SECTIONS: dict[str, type[Section]] = {
    "optimizer": OptimizerConfig,
    "optimizer.schedule": ScheduleConfig,
    "normalize": NormalizeConfig,
    "crop.margin": MarginConfig,
    "crop.square": SquareConfig,
    "augmentation": AugmentationConfig,
}


def read_config(path: str | Path, changes: Mapping[str, Any] | None = None) -> Config:
    """Read and check a configuration.

    Args:
        path: JSON file.
        changes: dotted key -> value; overrides the file.

    Raises:
        ConfigError: the configuration cannot be used.
    """
    values = _read_json(path)
    if isinstance(values.get("pretrained"), str):
        try:
            values["pretrained"] = os.path.realpath(Path(path).parent / values["pretrained"])
        except ValueError:  # a null character or a surrogate
            raise ConfigError(f"{path}: pretrained: {values['pretrained']!r} is not a path. Correct it") from None
    for key, value in (changes or {}).items():
        _change(values, key, value)
    translate(values)
    config = _validate(path, Config, values)
    schedule = config.optimizer.schedule
    schedule_type = schedule_class(schedule.type, schedule.params)
    _validate(path, schedule_type, schedule.params, prefix="optimizer.schedule.params.")
    return config


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). See configs/ for examples") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a JSON object. See configs/ for examples")
    return values


def _change(values: dict[str, Any], dotted_key: str, value: Any) -> None:
    """Set a dotted key in place."""
    *sections, key = dotted_key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {dotted_key}: {section} is not a section of the configuration")
    values[key] = value


def _validate(path: str | Path, model: type[Model], values: dict[str, Any], prefix: str = "") -> Model:
    """Validate JSON values with a pydantic model. Raises ConfigError, whose message has `prefix` before each key."""
    try:
        return model.model_validate_json(json.dumps(values))
    except RecursionError:
        raise ConfigError(f"{path}: values are nested too deeply. Check it and --set") from None
    except ValidationError as error:
        raise ConfigError(*(f"{path}: {prefix}{_explain(details, model)}" for details in error.errors())) from None


def _explain(error: ErrorDetails, model: type[BaseModel]) -> str:
    """Format an error as `<key>: <what is wrong>`, or without a key if it concerns the whole model."""
    location = [str(part) for part in error["loc"] if part != "[key]"]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        section = model if len(location) == 1 else SECTIONS[".".join(location[:-1])]
        message = f"unknown key. Allowed: {', '.join(section.model_fields)}"
    elif error["type"] == "missing":
        message = "is missing"
    elif error["type"] != "json_invalid" and not isinstance(error["input"], dict):
        message += f", not {shorten(json.dumps(error['input']), MAX_VALUE)}"
    return ": ".join(filter(None, (".".join(location), message)))
