"""A training run's configuration: one JSON file a model, in the keys of the published code and some more.

Every key is checked before anything is done: an unknown one, a wrong type or a name that is not supported is an
error which says where it stands and what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from common.errors import UserError
from preprocessing.crops import CROPS, MARGIN, MarginCrop, SquareCrop
from training.losses import LOSSES, MASK_LOSS
from training.tools.checkpoint import Recipe
from training.tools.optimizers import OPTIMIZERS
from training.tools.schedulers import SCHEDULES, Curve
from training.zoo import ENCODERS, NETWORKS
from training.zoo.unet import EfficientUnetClassifier

Share = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Color = tuple[float, float, float]


class ConfigError(UserError):
    """A configuration that cannot be used. The message has a line for each key that is wrong."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ScheduleConfig(Section):
    type: Literal[tuple(SCHEDULES)]
    # Whether the curve's t counts batches or epochs.
    mode: Literal["step", "epoch"] = "step"
    epochs: PositiveInt
    params: dict[str, Any] = {}

    def curve(self) -> Curve:
        """Raises pydantic's ValidationError for parameters that are not the curve's."""
        return SCHEDULES[self.type].model_validate_json(json.dumps(self.params))


class OptimizerConfig(Section):
    # Crops a process (a GPU) at a time.
    batch_size: Annotated[int, Field(ge=2)]
    type: Literal[tuple(OPTIMIZERS)]
    learning_rate: PositiveFloat
    momentum: Share = 0.0
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0
    schedule: ScheduleConfig
    # The gradient's norm is cut to this.
    clip_norm: PositiveFloat = 1.0
    # A batch goes through the network in so many parts, one after the other: the same batch in less memory.
    accumulate: PositiveInt = 1

    @model_validator(mode="after")
    def _keys_of_the_type(self) -> OptimizerConfig:
        for key in ("momentum", "nesterov"):
            if getattr(self, key) and key not in OPTIMIZERS[self.type]:
                raise ValueError(f"{self.type} takes no {key}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be divided into {self.accumulate} parts (accumulate)"
            )
        return self


class NormalizeConfig(Section):
    mean: Color
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class MarginConfig(Section):
    """See preprocessing.crops.MarginCrop."""

    kind: Literal["margin"] = "margin"
    margin: PositiveFloat = MARGIN


class SquareConfig(Section):
    """See preprocessing.crops.SquareCrop."""

    kind: Literal["square"] = "square"
    side: PositiveFloat
    center: float


CROP_CONFIGS = {"margin": MarginConfig, "square": SquareConfig}


class AugmentationConfig(Section):
    """Strengths and probabilities of the augmentations; the defaults are those of the winning solution."""

    jpeg_quality: tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]] = (60, 100)
    jpeg_p: Probability = 0.5
    noise_variance: tuple[NonNegativeFloat, NonNegativeFloat] = (10.0, 50.0)  # of gray levels, 0 to 255
    noise_p: Probability = 0.1
    blur_p: Probability = 0.05
    flip_p: Probability = 0.5
    color_p: Probability = 0.7
    gray_p: Probability = 0.2
    shift: Probability = 0.1  # of the image's side
    scale: Share = 0.2
    rotate: NonNegativeInt = 10  # degrees
    affine_p: Probability = 0.5

    @model_validator(mode="after")
    def _ranges(self) -> AugmentationConfig:
        for key in ("jpeg_quality", "noise_variance"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key}: {low} is above {high}")
        return self


class Config(Section):
    """`size`: side of the network's input in pixels. `fp16`: mixed precision, in `amp_dtype`."""

    network: Literal[tuple(NETWORKS)]
    encoder: Literal[tuple(ENCODERS)]
    size: Annotated[int, Field(ge=32)]
    # An epoch ends after so many, or when all crops of the epoch have been seen.
    batches_per_epoch: PositiveInt
    fp16: bool
    optimizer: OptimizerConfig
    normalize: NormalizeConfig
    losses: Annotated[dict[Literal[(*LOSSES, MASK_LOSS)], PositiveFloat], Field(min_length=1)]
    ohem_samples: PositiveInt | None = None
    # true: the encoder's published weights, which timm downloads; false: random ones; a text: those in a file,
    # whose path is relative to the configuration's folder (on the command line: to the working folder).
    pretrained: bool | str = False
    amp_dtype: Literal["float16", "bfloat16"] = "float16"
    channels_last: bool = True
    # Decay of a moving average of the weights, which is then what is validated and kept.
    ema: Share | None = None
    # Rates of dropout before the last layer and of stochastic depth; null: the network's own.
    dropout: Share | None = None
    drop_path: Share | None = None
    # The part of the frame that the crops show.
    crop: Annotated[MarginConfig | SquareConfig, Field(discriminator="kind")] = MarginConfig()
    augmentation: AugmentationConfig = AugmentationConfig()

    @model_validator(mode="after")
    def _together(self) -> Config:
        draws = issubclass(NETWORKS[self.network], EfficientUnetClassifier)
        if draws != (MASK_LOSS in self.losses):
            raise ValueError(f"losses: {MASK_LOSS} goes with networks that draw a mask, and they with it")
        if draws and self.size % 32:
            raise ValueError(f"size: {self.network} needs a multiple of 32, not {self.size}")
        if not set(self.losses) & set(LOSSES):
            raise ValueError(f"losses: one of {', '.join(LOSSES)} is needed")
        if self.ohem_samples and self.optimizer.accumulate > 1:
            raise ValueError("ohem_samples: chooses from whole batches; set optimizer.accumulate to 1")
        return self

    def crop_spec(self) -> MarginCrop | SquareCrop:
        return CROPS[self.crop.kind](**self.crop.model_dump(exclude={"kind"}))

    def recipe(self, crop: MarginCrop | SquareCrop) -> Recipe:
        """What a checkpoint must say of the network that is trained on these crops."""
        return Recipe(self.network, self.encoder, self.size, self.normalize.mean, self.normalize.std, crop)


def read_config(path: str | Path, changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a JSON file; `changes` (dotted key -> value) win over it. Raises ConfigError."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); configs/ has those of the project") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a JSON object of settings")
    if isinstance(values.get("pretrained"), str):
        values["pretrained"] = str((Path(path).parent / values["pretrained"]).resolve())
    for key, value in (changes or {}).items():
        _change(values, key, value)
    try:
        config = Config.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in _lines(error, Config))) from None
    try:
        config.optimizer.schedule.curve()
    except ValidationError as error:
        lines = _lines(error, SCHEDULES[config.optimizer.schedule.type], "optimizer.schedule.params.")
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None
    return config


def parse_change(text: str) -> tuple[str, Any]:
    """KEY=VALUE of the command line; the value is JSON, or else a text. Raises ValueError."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _change(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {key}: {section} is no section")
    values[name] = value


def _lines(error: ValidationError, model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """A line a fault: where it stands, what it is, what is allowed."""
    for fault in error.errors():
        place = [str(part) for part in fault["loc"] if part != "[key]"]
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = f"unknown key; allowed: {', '.join(_keys(model, place[:-1]))}"
        elif fault["type"] == "missing":
            message = "is missing"
        elif not isinstance(fault["input"], dict):
            message += f", not {json.dumps(fault['input'])}"
        where = prefix + ".".join(place)
        yield f"{where}: {message}" if where else message


def _keys(model: type[BaseModel], place: list[str]) -> Iterable[str]:
    """The keys of the section at a place; a part of it may be the kind of crop."""
    kinds: list[type[BaseModel]] = []
    for name in place:
        if name in model.model_fields:
            annotation = model.model_fields[name].annotation
            parts = (annotation, *get_args(annotation))
            kinds = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        model = next((kind for kind in kinds if kind is CROP_CONFIGS.get(name)), kinds[0])
    return model.model_fields
