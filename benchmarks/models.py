"""A checkpoint with the released architecture, for benchmarks whose results do not depend on the weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from training.tools.checkpoint import Recipe, save_checkpoint
from training.zoo import build_network


def add_models_option(parser: argparse.ArgumentParser) -> None:
    """Add the option --models."""
    parser.add_argument(
        "--models",
        nargs="+",
        default=["1"],
        metavar="N|CHECKPOINT",
        help="number of B7 networks with random weights, or checkpoints",
    )


def find_models(models: Sequence[str], folder: Path) -> list[Path]:
    """Return the checkpoints that --models names, or write as many random ones as it says to a folder."""
    if len(models) == 1 and models[0].isdecimal():
        return [write_random_b7(folder / f"b7_{seed}", seed) for seed in range(int(models[0]))]
    return [Path(model) for model in models]


def write_random_b7(path: Path, seed: int = 0) -> Path:
    """Write a checkpoint of the released network (DeepFakeClassifier, B7, 380 pixels) with random weights.

    The weights are the same on every call with the same seed.
    """
    recipe = Recipe()
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build_network(recipe.network, recipe.encoder).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    save_checkpoint(path, {key: _random(key, shape, generator) for key, shape in shapes.items()}, recipe)
    return path


def _random(key: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Return random values for a tensor of the state dict, scaled so that activations keep their magnitude."""
    name = key.rpartition(".")[2]
    if name == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.long)
    if name == "running_var":
        return torch.empty(shape).uniform_(0.8, 1.25, generator=generator)
    if len(shape) > 1:  # convolutions and linear layers
        gain = 2 if len(shape) == 4 else 1
        return torch.randn(shape, generator=generator) * (gain / shape[1:].numel()) ** 0.5
    if name == "weight":
        # Each residual block adds the output of its bn3: unscaled, activations would grow with the depth.
        scale = 0.56 if ".bn3." in key else 1.0
        return torch.empty(shape).uniform_(0.7, 1.3, generator=generator) * scale
    return 0.1 * torch.randn(shape, generator=generator)
