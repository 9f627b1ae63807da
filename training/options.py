"""Options that several command lines share. Imports no heavy library, so that --help and usage errors are fast."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from common import cli

# Kinds of dropout on training samples, see training.datasets.face_dropout.
DROPOUTS = ("face", "block", "none")
# Halves of a fold's originals: a model that is selected or calibrated on one half is measured on the other.
HALVES = ("calibration", "report")
# The margin of the crops that preprocessing writes is the face's size divided by this.
PADDING_PART = 3
MAX_PADDING_PART = 1000
# Largest shift of a crop whose logits are averaged, as a fraction of its side.
MAX_SHIFT = 0.25
MAX_WORKERS = 16
# Largest seed of PyTorch's generator.
MAX_SEED = 2**64 - 1


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `training.pipelines.scoring.read_fold` and `score_fold` need besides --checkpoint."""
    parser.add_argument(
        "--people",
        type=Path,
        metavar="CSV",
        help="the person in each original, columns original and person: split and resample by person, not by original",
    )
    add = parser.add_argument_group("data for --checkpoint").add_argument
    add("--data-dir", type=Path, metavar="DATA_ROOT", help="folder of the dataset")
    add("--crops-dir", type=Path, default=Path("crops"), metavar="DIR", help="folder of the crops within DATA_ROOT")
    add("--folds-csv", type=Path, metavar="CSV", help="list of the crops (default: folds.csv in DATA_ROOT)")
    add("--fold", type=int, default=0, help="fold to score")
    add("--public-validation", action="store_true", help="score the 400 videos of DFDC's public test set instead")
    add("--batch-size", type=cli.positive, default=32, help="number of crops per forward pass")
    add("--workers", type=cli.not_negative, default=2, help="number of worker processes that load data")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1")


def add_crops_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a list of crops, of which the first is required."""
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, metavar="DATA_ROOT", help="folder of the dataset")
    add("--crops-dir", type=Path, default=Path("crops"), metavar="DIR", help="folder of the crops within DATA_ROOT")
    add("--folds-csv", type=Path, metavar="CSV", help="list of the crops (default: folds.csv in DATA_ROOT)")


def default_workers() -> int:
    """Return the number of data loading workers of a process: its share of the CPU cores, at most MAX_WORKERS."""
    return max(1, min(MAX_WORKERS, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def parse_change(text: str) -> tuple[str, Any]:
    """Argument type: KEY=VALUE of a configuration; the value is JSON or, if it is not valid JSON, a string."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
    except RecursionError:
        raise argparse.ArgumentTypeError(f"{key}: the value is nested too deeply") from None


def prefix(text: str) -> str:
    """Argument type: the start of a file name."""
    if "/" in text:
        raise argparse.ArgumentTypeError(f"{text} contains a slash. Choose the folder with --output-dir")
    return text


def seed(text: str) -> int:
    """Argument type: a seed of PyTorch's generator."""
    if not 0 <= int(text) <= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text} is not an integer from 0 to {MAX_SEED}")
    return int(text)


def label_smoothing(text: str) -> float:
    """Argument type: a number in [0, 0.5)."""
    if not 0 <= float(text) < 0.5:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 0.5)")
    return float(text)


def shift(text: str) -> float:
    """Argument type: a number from 0 to MAX_SHIFT."""
    if not 0 <= float(text) <= MAX_SHIFT:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {MAX_SHIFT}")
    return float(text)


def padding_part(text: str) -> int:
    """Argument type: an integer from PADDING_PART to MAX_PADDING_PART."""
    if int(text) < PADDING_PART:
        raise argparse.ArgumentTypeError(f"{text} is below {PADDING_PART}: the margin cannot be enlarged")
    if int(text) > MAX_PADDING_PART:
        raise argparse.ArgumentTypeError(f"{text} is above {MAX_PADDING_PART}")
    return int(text)
