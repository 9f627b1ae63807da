"""Score the crops of a fold with a checkpoint, for evaluate.py, calibrate.py and the robustness benchmark."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from common.device import device_errors
from preprocessing.crops import DEFAULT_CROP, MarginCrop, SquareCrop
from training.datasets.classifier_dataset import ValidationDataset
from training.datasets.crop_source import CropSource
from training.datasets.folds import validation_rows
from training.datasets.people import read_people, report_unknown
from training.options import PADDING_PART
from training.pipelines import build
from training.pipelines.engine import score_crops
from training.pipelines.submissions import EvaluationError
from training.tools.checkpoint import Recipe, load_network
from training.tools.distributed import init_distributed
from training.tools.metrics import VideoScores
from training.zoo.classifiers import DeepFakeClassifier

# What to do if memory runs out or the device fails.
REMEDY = "Lower --batch-size or use --device cpu"

log = logging.getLogger(__name__)


def score_checkpoint(args: argparse.Namespace) -> VideoScores:
    """Score the videos of a fold with a checkpoint. Raises UserError."""
    fold = read_fold(args)
    rows, scores = score_fold(args, fold)
    return VideoScores.from_crops(fold.source.crops, rows, scores, fold.people)


class Fold(NamedTuple):
    """A network and the crops to score with it.

    Attributes:
        network: the network in evaluation mode.
        recipe: the network's recipe.
        source: the crops of the dataset.
        rows: rows of the crops to score.
        padding_part: the crops' margin is reduced to 1/padding_part of the face.
        people: person by original; None without --people.
    """

    network: DeepFakeClassifier
    recipe: Recipe
    source: CropSource
    rows: np.ndarray
    padding_part: int
    people: Mapping[str, str] | None


def read_fold(args: argparse.Namespace) -> Fold:
    """Load the checkpoint and the list of crops. `args`: --checkpoint, `half` and the options of add_data_arguments.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        EvaluationError: --data-dir is missing, or the checkpoint needs a larger or otherwise different margin.
        FoldsError: the list of crops cannot be used, or has no crops to score.
        PeopleError: the list of people cannot be used.
        SetupError: the folder of the crops is missing, or holds crops of another kind than the checkpoint's.
    """
    if not args.data_dir:
        raise EvaluationError("--checkpoint: needs crops to score. Add --data-dir DATA_ROOT")
    network, recipe = load_network(args.checkpoint)
    padding_part = PADDING_PART
    if isinstance(recipe.crop, MarginCrop):
        padding_part = max(PADDING_PART, round(1 / recipe.crop.margin))
        if abs(1 / padding_part - recipe.crop.margin) > 1e-6:
            raise EvaluationError(
                f"{args.checkpoint}: needs crops with a margin of {recipe.crop.margin:.3f}, which cannot be cut from "
                f"crops with a margin of 1/{PADDING_PART}. Use predict_folder.py and evaluate.py --submission"
            )
    source = build.read_source(args)
    is_square = isinstance(recipe.crop, SquareCrop)
    if not build.check_kind(source, recipe.crop if is_square else DEFAULT_CROP) and is_square:
        log.warning("%s: needs specially cut crops (%s). Check --crops-dir", args.checkpoint, recipe.crop)
    crops, people = source.crops, read_people(args.people) if args.people else None
    rows = validation_rows(crops, args.fold, args.public_validation, args.half, people)
    report_unknown(crops.originals(rows), people)
    return Fold(network, recipe, source, rows, padding_part, people)


def score_fold(args: argparse.Namespace, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
    """Score the crops of a fold. Raises DeviceError, TrainingError.

    Returns:
        Rows (n,) of the crops in the order they were scored, and their probabilities (n,) of being fake.
    """
    dataset = ValidationDataset(fold.source, fold.recipe.size, fold.padding_part)
    with init_distributed(args.device) as dist, device_errors(REMEDY):
        batches = build.build_validation_loader(dataset, fold.rows, args.batch_size, args.workers, dist)
        return score_crops(fold.network.to(dist.device), fold.recipe, batches, dist)
