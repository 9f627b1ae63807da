"""Checkpoints: a network's weights together with what must be known to use them.

Read: the released files of 2020 (`state_dict` under `module.` names beside `epoch` and `bce_best`) and
ours, which add a `recipe`. Nothing in a file is ever executed.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.errors import UserError
from common.files import atomic_file
from preprocessing.crops import CROPS, MarginCrop, SquareCrop
from training.zoo import build_network

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# `bce_best` of the released files is a NumPy scalar: what its pickle calls, under NumPy's old and new name.
SAFE_GLOBALS = [
    np._core.multiarray.scalar,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]


class CheckpointError(UserError):
    """A checkpoint that cannot be used. The message names the file, what is wrong and what to do."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")


@dataclass(frozen=True)
class Recipe:
    """What a checkpoint's network is and what it is fed.

    `size`: side of the square input in pixels. `mean`, `std`: of RGB in 0 to 1. `crop`: the part of the
    frame around a face. The defaults are those of the released checkpoints, which do not say.
    """

    network: str = "DeepFakeClassifier"
    encoder: str = "tf_efficientnet_b7_ns"
    size: int = 380
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: MarginCrop | SquareCrop = field(default_factory=MarginCrop)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """The network's input: uint8 (n, size, size, 3) to float32 (n, 3, size, size), channels last in memory."""
        mean, std = (torch.tensor(values, device=images.device) for values in (self.mean, self.std))
        return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "crop": {"kind": self.crop.kind, **asdict(self.crop)}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError where a value is missing or wrong."""
        crop = dict(values["crop"])
        mean, std = (tuple(float(channel) for channel in values[key]) for key in ("mean", "std"))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or int(values["size"]) < 32:
            raise ValueError(f"mean {mean}, std {std}, size {values['size']}")
        return cls(
            network=values["network"],
            encoder=values["encoder"],
            size=int(values["size"]),
            mean=mean,
            std=std,
            crop=CROPS[crop.pop("kind")](**crop),
        )


def load_network(path: str | Path) -> tuple[nn.Module, Recipe]:
    """A checkpoint's network, in float32 on the CPU and in evaluation mode, and its recipe.

    Raises CheckpointError for a file that is missing, cut off, not a checkpoint, refused (it would run
    code), for another network than its recipe says, or with weights that are not finite.
    """
    checkpoint = read_checkpoint(path)
    try:
        recipe = Recipe.from_dict(checkpoint["recipe"]) if "recipe" in checkpoint else Recipe()
        with torch.device("meta"):  # the weights come from the file: no time is spent on random ones
            network = build_network(recipe.network, recipe.encoder)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(path, f"its recipe cannot be used ({error!r}); it is of another version") from None
    state = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
    _check_fit(path, state, network, recipe, told="recipe" in checkpoint)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    not_finite = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if not_finite:
        raise CheckpointError(
            path,
            f"{len(not_finite)} tensors hold values that are not finite ({not_finite[0]}, ...); "
            "its training broke down, take an earlier checkpoint",
        )
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval(), recipe


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU, with a dict of tensors under `state_dict`.

    Raises CheckpointError where the file is missing, damaged, no checkpoint, or would run code.
    """
    checkpoint = _read(path)
    if not isinstance(checkpoint, dict) or not _is_state(checkpoint.get("state_dict")):
        raise CheckpointError(path, "holds no weights under `state_dict`; it is of another program")
    return checkpoint


def load_encoder(encoder: nn.Module, path: str | Path) -> None:
    """Set an encoder's weights to those of a file: a checkpoint of this project, or a state dict under timm's names.

    timm's own 1000-class head, which is not used, may be missing. Raises CheckpointError.
    """
    content = _read(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not _is_state(state):
        raise CheckpointError(path, "holds no weights")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    inside = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    head = {f"classifier.{key}": value for key, value in encoder.get_classifier().state_dict().items()}
    try:
        encoder.load_state_dict({**head, **(inside or state)}, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise CheckpointError(path, f"its weights are not those of the configuration's encoder: {first}") from None


def _read(path: str | Path) -> Any:
    """What a file of PyTorch's holds, on the CPU. Raises CheckpointError."""
    if not Path(path).is_file():
        raise CheckpointError(path, "no such checkpoint")
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        call = re.search(r"GLOBAL (\S+)|unrecognized function (\S+)", str(error))
        if call:
            what = call[1] or call[2]
            raise CheckpointError(path, f"refused: it calls {what} when read, weights alone do not") from None
        raise CheckpointError(path, "damaged or not a checkpoint; fetch it again") from None
    except Exception as error:  # noqa: BLE001 torch.load raises whatever its parsers meet in a damaged file
        raise CheckpointError(
            path, f"cut off, damaged or not a checkpoint ({type(error).__name__}); fetch it again"
        ) from None


def _is_state(state: Any) -> bool:
    """Whether this is a dict of tensors by name, and not empty."""
    return (
        isinstance(state, dict)
        and bool(state)
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items())
    )


def save_checkpoint(path: str | Path, state_dict: dict[str, torch.Tensor], recipe: Recipe, **more: Any) -> None:
    """Write a checkpoint that `load_network` reads. The file appears whole or not at all. Raises OutputError."""
    with atomic_file(Path(path)) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"state_dict": state_dict, "recipe": recipe.to_dict(), **more}, file)
        except RuntimeError as error:  # PyTorch's own, raised while it closes a file on a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error  # noqa: B904


def _check_fit(
    path: str | Path, state: dict[str, torch.Tensor], network: nn.Module, recipe: Recipe, told: bool
) -> None:
    """Raise CheckpointError with the first differences where weights are not those of the network."""
    expected = network.state_dict()
    missing = [key for key in expected if key not in state]
    foreign = [key for key in state if key not in expected]
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    faults = [
        f"{len(keys)} {kind} ({', '.join(keys[:2])}{', ...' if len(keys) > 2 else ''})"
        for kind, keys in (("missing", missing), ("unknown", foreign), ("of another shape", misshapen))
        if keys
    ]
    if faults:
        source = "as its recipe says" if told else "which a checkpoint without a recipe must be"
        raise CheckpointError(
            path,
            f"its weights are not those of {recipe.network} with {recipe.encoder}, {source}: {'; '.join(faults)}",
        )


def main() -> int:
    """Say of checkpoints whether they can be used, and how: python -m training.tools.checkpoint FILE ..."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--released", action="store_true", help="only a network of the released kind (B7, 380) will do")
    args = parser.parse_args()
    status = 0
    for path in args.files:
        try:
            recipe = load_network(path)[1]
            if args.released and recipe != Recipe():
                raise CheckpointError(path, f"holds {recipe}, not a released checkpoint")
            print(f"{path}: {recipe.network} with {recipe.encoder}, input {recipe.size} x {recipe.size}")
        except CheckpointError as error:
            print(error, file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
