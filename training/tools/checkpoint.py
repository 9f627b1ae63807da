"""Checkpoints: the weights of a network with everything that is needed to use them.

Two formats are read: the released files of 2020 (`state_dict` with names that start with `module.`, `epoch` and
`bce_best`) and this project's, which add a `recipe` and the project's `version`. Nothing in a file is ever executed.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from timm.models.efficientnet import EfficientNet
from torch import nn

from common import __version__, cli
from common.errors import UserError
from common.files import atomic_file
from common.text import abbreviate
from preprocessing.crops import CROP_TYPES, MarginCrop, SquareCrop
from training.zoo import build_network
from training.zoo.classifiers import DeepFakeClassifier

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# What the released files contain besides tensors: `bce_best` is a NumPy scalar, pickled under NumPy's old or new name.
NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
SAFE_GLOBALS = [
    NUMPY_SCALAR,
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]


class CheckpointError(UserError):
    """A checkpoint that cannot be used. The message starts with its path."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")


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
    """

    network: str = "DeepFakeClassifier"
    encoder: str = "tf_efficientnet_b7_ns"
    size: int = 380
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop: MarginCrop | SquareCrop = field(default_factory=MarginCrop)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Normalize uint8 (n, size, size, 3) to float32 (n, 3, size, size) in channels-last memory format."""
        mean, std = (torch.tensor(values, device=images.device) for values in (self.mean, self.std))
        return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as it is stored in a checkpoint."""
        return {**asdict(self), "crop": {"kind": self.crop.kind, **asdict(self.crop)}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Make a recipe from the result of `to_dict`. Raises KeyError, TypeError or ValueError if it is not one."""
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
            crop=CROP_TYPES[crop.pop("kind")](**crop),
        )


def load_network(path: str | Path) -> tuple[DeepFakeClassifier, Recipe]:
    """Load the network of a checkpoint, in float32 on the CPU and in evaluation mode, and its recipe.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, would run code, has the weights of a network
            other than its recipe's, or weights that are not finite.
    """
    checkpoint = read_checkpoint(path)
    try:
        recipe = Recipe.from_dict(checkpoint["recipe"]) if "recipe" in checkpoint else Recipe()
        with torch.device("meta"):  # skips random initialization; the file's weights replace these
            network = build_network(recipe.network, recipe.encoder)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"its recipe cannot be used ({error!r}). Use the version of this project that wrote it"
        raise CheckpointError(path, reason) from None
    state = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
    _check_fit(path, state, network, recipe, has_recipe="recipe" in checkpoint)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    not_finite = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if not_finite:
        raise CheckpointError(
            path, f"has values that are not finite in {abbreviate(not_finite, 2)}. Use an earlier checkpoint"
        )
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval(), recipe


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; `state_dict` is a dict of tensors.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, or would run code.
    """
    checkpoint = _read(path)
    if not isinstance(checkpoint, dict) or not _is_state_dict(checkpoint.get("state_dict")):
        raise CheckpointError(path, "has no weights under `state_dict`, so it is not a checkpoint of a classifier")
    return checkpoint


def load_encoder(encoder: EfficientNet, path: str | Path) -> None:
    """Load an encoder's weights from a checkpoint of this project or a state dict with timm's names.

    timm's 1000-class head, which is not used, may be missing. Raises CheckpointError.
    """
    content = _read(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not _is_state_dict(state):
        raise CheckpointError(path, "has no weights. Use a checkpoint or a state dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    of_encoder = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    head = {f"classifier.{key}": value for key, value in encoder.get_classifier().state_dict().items()}
    try:
        encoder.load_state_dict({**head, **(of_encoder or state)}, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise CheckpointError(path, f"does not fit the configuration's encoder: {first}") from None


def _read(path: str | Path) -> Any:
    """Read a file that PyTorch wrote, on the CPU. Raises CheckpointError."""
    if not Path(path).is_file():
        raise CheckpointError(path, "no such checkpoint")
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        call = re.search(r"GLOBAL (\S+)|unrecognized function (\S+)", str(error))
        if call:
            reason = f"refused, because reading it would call {call[1] or call[2]}. Use a weights-only file"
            raise CheckpointError(path, reason) from None
        raise CheckpointError(path, "damaged or not a checkpoint. Download it again") from None
    except Exception as error:  # noqa: BLE001 torch.load raises many types for damaged files
        reason = f"truncated, damaged or not a checkpoint ({type(error).__name__}). Download it again"
        raise CheckpointError(path, reason) from None


def _is_state_dict(value: Any) -> TypeGuard[dict[str, torch.Tensor]]:
    """Return whether a value is a non-empty dict of tensors by name."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items())
    )


def save_checkpoint(path: str | Path, state_dict: dict[str, torch.Tensor], recipe: Recipe, **more: Any) -> None:
    """Write a checkpoint that `load_network` reads, with the project's version. Raises OutputError.

    Args:
        path: file to write, atomically.
        state_dict: the network's weights.
        recipe: the network and its input.
        more: additional keys with their values.
    """
    content = {"state_dict": state_dict, "recipe": recipe.to_dict(), "version": __version__, **more}
    with atomic_file(Path(path)) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # raised by PyTorch when it closes a file on a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error  # noqa: B904


def _check_fit(
    path: str | Path, state: dict[str, torch.Tensor], network: nn.Module, recipe: Recipe, has_recipe: bool
) -> None:
    """Raise CheckpointError with the first differences if a state dict does not fit a network."""
    expected = network.state_dict()
    differences = {
        "missing": [key for key in expected if key not in state],
        "unknown": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
    }
    found = [f"{len(keys)} {kind} ({abbreviate(keys, 2)})" for kind, keys in differences.items() if keys]
    if found:
        why = "its recipe" if has_recipe else "the released format, because it has no recipe"
        raise CheckpointError(path, f"does not fit {recipe.network} with {recipe.encoder} ({why}): {'; '.join(found)}")


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser("Check whether checkpoints can be used: python -m training.tools.checkpoint FILE ...")
    parser.add_argument("files", nargs="+", metavar="FILE", help="checkpoint")
    parser.add_argument("--released", action="store_true", help="accept only the released network (B7, 380 pixels)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the network of each checkpoint, or what is wrong with it. Return the exit status."""
    status = cli.OK
    for path in args.files:
        try:
            recipe = load_network(path)[1]
            if args.released and recipe != Recipe():
                raise CheckpointError(path, f"not a released checkpoint, but {recipe}")
            print(f"{path}: {recipe.network} with {recipe.encoder}, input {recipe.size} x {recipe.size}")
        except CheckpointError as error:
            print(error, file=sys.stderr)
            status = cli.CANNOT_CONTINUE
    return status


if __name__ == "__main__":
    cli.main(main, get_args_parser())
