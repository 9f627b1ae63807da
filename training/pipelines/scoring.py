"""Scores to evaluate: those of a submission, or those of the crops of a fold with a checkpoint."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from common import cli
from common.errors import UserError
from common.text import abbreviate
from preprocessing.crops import MarginCrop
from training.datasets.folds import half_of, validation_rows
from training.tools.metrics import VideoScores

if TYPE_CHECKING:
    from torch import nn

    from training.datasets.classifier_dataset import Source
    from training.tools.checkpoint import Recipe

CLASSES = {"REAL": False, "FAKE": True}

log = logging.getLogger(__name__)


class EvaluationError(UserError):
    """Scores or labels that cannot be used."""


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_fold` and `score_fold` need besides --checkpoint."""
    add = parser.add_argument_group("data for --checkpoint").add_argument
    add("--data-dir", type=Path, help="folder of the dataset")
    add("--crops-dir", type=Path, default=Path("crops"), help="folder of the crops in it")
    add("--folds-csv", type=Path, help="list of the crops (default: folds.csv in the data folder)")
    add("--fold", type=int, default=0, help="the fold to score")
    add("--public-validation", action="store_true", help="score DFDC's 400 public test videos instead")
    add("--batch-size", type=cli.positive, default=32, help="crops at a time")
    add("--workers", type=cli.not_negative, default=2, help="processes that load data")
    add("--device", default="auto", help="auto, cpu, cuda")


def score_submission(submission: Path, labels: Path, half: str | None = None) -> VideoScores:
    """The videos that have a score and a label. Raises EvaluationError."""
    scores, truth = read_submission(submission), read_labels(labels)
    for names, text in ((truth.keys() - scores.keys(), "no score"), (scores.keys() - truth.keys(), "no label")):
        if names:
            log.warning("%d videos have %s and are left out: %s", len(names), text, abbreviate(sorted(names)))
    names = sorted(name for name in scores.keys() & truth.keys() if half in (None, half_of(truth[name].original)))
    if not names:
        which = f" in the {half} half" if half else ""
        raise EvaluationError(f"{submission} and {labels} have no video in common{which}")
    return VideoScores(
        names,
        [truth[name].original for name in names],
        np.array([scores[name] for name in names]),
        np.ones(len(names), int),
        np.array([truth[name].fake for name in names]),
    )


def read_submission(path: Path) -> dict[str, float]:
    """Probabilities by the files' names, without folders. Raises EvaluationError."""
    try:
        table = pd.read_csv(path, dtype={"filename": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read as CSV ({error})") from None
    if not {"filename", "label"} <= set(table):
        raise EvaluationError(f"{path}: the columns filename and label are wanted, not {', '.join(table)}")
    scores = pd.to_numeric(table["label"], errors="coerce")
    bad = table["filename"][~scores.between(0, 1)]
    if len(bad):
        raise EvaluationError(f"{path}: no probability from 0 to 1 for {abbreviate(list(bad))}")
    names = [Path(name).name for name in table["filename"]]
    if len(set(names)) < len(names):
        raise EvaluationError(f"{path}: several videos have one name; evaluate them apart")
    return dict(zip(names, scores.tolist(), strict=True))


class Label(NamedTuple):
    fake: bool
    original: str  # the id of the real video that it was made of; its own, of a real one or where it is not known


def read_labels(path: Path) -> dict[str, Label]:
    """By the files' names, without folders. Raises EvaluationError."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {
            Path(name).name: Label(CLASSES[entry["label"]], Path(entry.get("original") or name).stem)
            for name, entry in entries.items()
        }
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: cannot be read as JSON ({error})") from None
    except (AttributeError, KeyError, TypeError):
        raise EvaluationError(f'{path}: {{"NAME.mp4": {{"label": "REAL" or "FAKE"}}, ...}} is wanted') from None


def score_checkpoint(args: argparse.Namespace) -> VideoScores:
    """The videos of a fold. Raises CheckpointError, FoldsError, TrainingError, ..."""
    fold = read_fold(args)
    return VideoScores.from_crops(fold.source.crops, *score_fold(args, fold))


class Fold(NamedTuple):
    """A network, the crops (rows of the source's list) to score with it, and the margin that it sees of them."""

    network: nn.Module
    recipe: Recipe
    source: Source
    rows: np.ndarray
    padding_part: int


def read_fold(args: argparse.Namespace) -> Fold:
    """Raises CheckpointError, EvaluationError, FoldsError, SetupError."""
    from training.datasets.classifier_dataset import PADDING_PART
    from training.pipelines import build
    from training.tools.checkpoint import load_network

    if not args.data_dir:
        raise EvaluationError("--checkpoint goes with --data-dir, the folder of the dataset")
    network, recipe = load_network(args.checkpoint)
    padding_part = PADDING_PART
    if isinstance(recipe.crop, MarginCrop):
        padding_part = max(PADDING_PART, round(1 / recipe.crop.margin))
        if abs(1 / padding_part - recipe.crop.margin) > 1e-6:
            raise EvaluationError(
                f"{args.checkpoint}: cannot cut its margin of {recipe.crop.margin:.3f} from the crops"
            )
    else:
        log.warning("%s was trained on crops of its own, %s: these must be such", args.checkpoint, recipe.crop)
    source = build.read_source(args)
    rows = validation_rows(source.crops, args.fold, args.public_validation, args.half)
    return Fold(network, recipe, source, rows, padding_part)


def score_fold(args: argparse.Namespace, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
    """The rows (n,) of the crops, in the order in which they were scored, and their probabilities (n,)."""
    from training.pipelines import build
    from training.pipelines.engine import score_crops
    from training.tools.distributed import init_distributed

    with init_distributed(args.device) as dist:
        batches = build.build_validation_loader(
            fold.source, fold.rows, fold.recipe.size, fold.padding_part, args.batch_size, args.workers, dist
        )
        return score_crops(fold.network.to(dist.device), fold.recipe, batches, dist)
