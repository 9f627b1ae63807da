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
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import nn

from common import __version__, cli
from common.errors import UserError
from common.files import atomic_file
from common.text import abbreviate
from training.tools.recipe import Recipe
from training.zoo import build_network
from training.zoo.classifiers import DeepFakeClassifier

# What the released files contain besides tensors: `bce_best` is a NumPy scalar, pickled under NumPy's old or new name.
NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
SAFE_GLOBALS = [
    NUMPY_SCALAR,
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]
# dtypes that a network's floating-point and integer weights may be stored in.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class CheckpointError(UserError):
    """A checkpoint that cannot be used. The message starts with its path."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")


def load_network(path: str | Path) -> tuple[DeepFakeClassifier, Recipe]:
    """Load the network of a checkpoint, in float32 on the CPU and in evaluation mode, and its recipe.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, would run code, has a recipe with unusable
            values, the weights of a network other than its recipe's, or weights of another type or that are not finite.
    """
    checkpoint = read_checkpoint(path)
    try:
        recipe = Recipe.from_dict(checkpoint["recipe"]) if "recipe" in checkpoint else Recipe()
    except ValueError as error:
        reason = f"its recipe cannot be used ({error}). Use the version of this project that wrote it"
        raise CheckpointError(path, reason) from None
    with torch.device("meta"):  # skips random initialization; the file's weights replace these
        network = build_network(recipe.network, recipe.encoder, for_training=False)
    state = {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}
    why = "its recipe" if "recipe" in checkpoint else "the released format, because it has no recipe"
    state = fit_weights(path, state, network, f"{recipe.network} with {recipe.encoder} ({why})")
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval(), recipe


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; `state_dict` is a dict of tensors of any kind, see `fit_weights`.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, or would run code.
    """
    checkpoint = _read(path)
    if not isinstance(checkpoint, dict) or not _is_state_dict(checkpoint.get("state_dict")):
        raise CheckpointError(path, "has no weights under `state_dict`, so it is not a checkpoint of a classifier")
    return checkpoint


def load_encoder(encoder: nn.Module, path: str | Path) -> None:
    """Load an encoder's weights from a checkpoint of this project or a state dict with timm's names.

    timm's 1000-class head, which is not used, and the counters of the batch norms may be missing. Raises
    CheckpointError.
    """
    content = _read(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not _is_state_dict(state):
        raise CheckpointError(path, "has no weights. Use a checkpoint or a state dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    of_encoder = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    optional = {
        key: value
        for key, value in encoder.state_dict().items()
        if key.startswith("classifier.") or key.endswith(".num_batches_tracked")
    }
    state = fit_weights(path, {**optional, **(of_encoder or state)}, encoder, "the encoder")
    encoder.load_state_dict(state, strict=True)


def _read(path: str | Path) -> Any:
    """Read a file that PyTorch wrote, on the CPU. Raises CheckpointError."""
    if not Path(path).is_file():
        raise CheckpointError(path, "no such checkpoint")
    if _is_inflated(path):
        raise CheckpointError(
            path, "its content is larger than the file, which PyTorch never writes. Download it again"
        )
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, and about tensors that are refused later
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


def _is_inflated(path: str | Path) -> bool:
    """Return whether a file is an archive whose parts are compressed or overlap, and so could take all memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(part.file_size for part in archive.infolist()) > Path(path).stat().st_size
    except Exception:  # noqa: BLE001 zipfile raises many types for damaged files, and PyTorch reads other formats
        return False


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


def fit_weights(
    path: str | Path, state: Mapping[str, torch.Tensor], network: nn.Module, name: str
) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint in the dtypes of a network, which may be on the meta device.

    Args:
        path: the checkpoint.
        state: its weights, under the network's names.
        network: the network that they are for.
        name: what the network is, for messages.

    Raises:
        CheckpointError: names, shapes or kinds of dtypes differ, or a weight is not a dense tensor or not finite.
    """
    expected = network.state_dict()
    _check_plain(path, state)
    _check_fit(path, state, expected, name)
    converted = {key: to_plain(value, expected[key].dtype) for key, value in state.items()}
    check_finite(path, converted)
    return converted


def check_finite(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError if a tensor has values that are not finite."""
    not_finite = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if not_finite:
        reason = f"has values that are not finite in {abbreviate(not_finite, 2)}. Use an earlier checkpoint"
        raise CheckpointError(path, reason)


def _check_plain(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError if a tensor is not dense and in memory: sparse, quantized, nested or without data."""
    odd = [key for key, value in tensors.items() if not is_plain(value)]
    if odd:
        raise CheckpointError(path, f"has weights that are not dense tensors: {abbreviate(odd, 2)}. Use another file")


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is dense and on the CPU, and not of a subclass with behavior of its own."""
    return (
        type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
    )


def is_same_kind(dtype: torch.dtype, expected: torch.dtype) -> bool:
    """Return whether weights of one dtype may be converted to another: both floating-point or both integers."""
    return dtype in (FLOATS if expected.is_floating_point else INTEGERS)


def to_plain(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert a tensor; the result has no gradient, and its elements do not share memory."""
    tensor = tensor.detach().resolve_neg().to(dtype)
    # Keep the memory format: it decides which kernels run, and so the rounding of the scores.
    dense = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return tensor if dense else tensor.contiguous()


def _check_fit(
    path: str | Path, state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], name: str
) -> None:
    """Raise CheckpointError with the first differences if a state dict does not fit a network's."""
    common = [key for key in expected if key in state]
    differences = {
        "missing": [key for key in expected if key not in state],
        "unknown": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in common
            if state[key].shape != expected[key].shape
        ],
        "of another type": [
            f"{key} {_dtype_name(state[key].dtype)} instead of {_dtype_name(expected[key].dtype)}"
            for key in common
            if not is_same_kind(state[key].dtype, expected[key].dtype)
        ],
    }
    found = [f"{len(keys)} {kind} ({abbreviate(keys, 2)})" for kind, keys in differences.items() if keys]
    if found:
        raise CheckpointError(path, f"does not fit {name}: {'; '.join(found)}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
                raise CheckpointError(path, f"not a released checkpoint: {_differences(recipe, Recipe())}")
            print(f"{path}: {recipe.network} with {recipe.encoder}, input {recipe.size} x {recipe.size}")
        except CheckpointError as error:
            print(error, file=sys.stderr)
            status = cli.CANNOT_CONTINUE
    return status


def _differences(recipe: Recipe, expected: Recipe) -> str:
    """Format how a recipe differs from another."""
    values, others = recipe.to_dict(), expected.to_dict()
    return ", ".join(f"{key} is {values[key]} instead of {others[key]}" for key in values if values[key] != others[key])


if __name__ == "__main__":
    cli.main(main, get_args_parser())
