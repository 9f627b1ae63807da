"""Say how good scores are.

    python -m training.pipelines.evaluate --submission CSV --labels metadata.json [--json OUT]
    python -m training.pipelines.evaluate --checkpoint FILE --data-dir ROOT --fold N [--folds-csv CSV] [--json OUT]

The first compares what predict_folder.py wrote with DFDC's labels. The second scores the crops of a fold with a
checkpoint, as training does after an epoch: every 20th frame, the mean of a video's frames. --half takes half of the
original videos, each with the fakes made of it, so that what was chosen and calibrated on the others is measured on
these; RUN_best.pt was chosen on all of them. --bootstrap gives 95 % intervals, over originals with their fakes: where
an actor has many originals, as in DFDC, they are too narrow for other actors.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from preprocessing import command
from preprocessing.crops import MarginCrop
from preprocessing.errors import ReportedError
from preprocessing.output import make_folder, write_whole
from training.datasets.folds import HALVES, half_of, validation_rows
from training.tools.metrics import VideoScores, evaluate, intervals

if TYPE_CHECKING:
    from torch import nn

    from training.datasets.classifier_dataset import Source
    from training.tools.checkpoint import Recipe

CLASSES = {"REAL": False, "FAKE": True}

log = logging.getLogger(__name__)


class EvaluationError(ReportedError):
    """Scores or labels that cannot be used."""


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--submission", type=Path, help="CSV with the columns filename,label (probability of fake)")
    what.add_argument("--checkpoint", type=Path, help="network to score crops with")
    parser.add_argument("--labels", type=Path, help="metadata.json, for --submission")
    parser.add_argument("--half", choices=HALVES, help="only half of the originals, and their fakes")
    parser.add_argument("--bootstrap", type=command.positive, metavar="DRAWS", help="95 %% intervals, e.g. 2000 draws")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file as well")
    parser.add_argument("--predictions", type=Path, metavar="CSV", help="write each video's score to this file")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw roc.png and reliability.png into this folder")
    add_data_arguments(parser.add_argument_group("for --checkpoint").add_argument)
    return parser


def add_data_arguments(add: Callable) -> None:
    """What `of_checkpoint` is asked, but the checkpoint."""
    add("--data-dir", type=Path, help="folder of the dataset")
    add("--crops-dir", type=Path, default=Path("crops"), help="folder of the crops in it")
    add("--folds-csv", type=Path, help="list of the crops (default: folds.csv in the data folder)")
    add("--fold", type=int, default=0, help="the fold to score")
    add("--public-validation", action="store_true", help="score DFDC's 400 public test videos instead")
    add("--batch-size", type=command.positive, default=32, help="crops at a time")
    add("--workers", type=command.not_negative, default=2, help="processes that load data")
    add("--device", default="auto", help="auto, cpu, cuda")


def main(args: argparse.Namespace) -> int:
    if args.submission and not args.labels:
        raise EvaluationError("--submission goes with --labels metadata.json")
    folders = (args.json and args.json.parent, args.predictions and args.predictions.parent, args.plots)
    for folder in filter(None, folders):  # before the work, not after it
        make_folder(folder)
    scores = of_submission(args.submission, args.labels, args.half) if args.submission else of_checkpoint(args)
    figures = evaluate(scores.scores, scores.fake)
    bounds = intervals(scores.scores, scores.fake, scores.originals, args.bootstrap) if args.bootstrap else {}
    for name, value in figures.items():
        print(f"{name:20}{in_words(value)}{'  ({:.5f} to {:.5f})'.format(*bounds[name]) if bounds.get(name) else ''}")
    if args.json:
        write_whole(args.json, json.dumps(figures | ({"intervals": bounds} if bounds else {}), indent=4) + "\n")
    if args.predictions:
        from training.pipelines.run import write_scores

        write_scores(args.predictions, scores)
    if args.plots:
        if figures["auc"] is None:
            raise EvaluationError("--plots: there is nothing to draw of videos of one class")
        from training.tools.plots import draw_reliability, draw_roc, save

        for name, draw in (("roc.png", draw_roc), ("reliability.png", draw_reliability)):
            save(draw(scores.scores, scores.fake), args.plots / name)
    return 0


def in_words(value: float | None) -> str:
    return "one class only" if value is None else f"{value:.5f}" if isinstance(value, float) else str(value)


def of_submission(submission: Path, labels: Path, half: str | None = None) -> VideoScores:
    """The videos that have a score and a label. Raises EvaluationError."""
    scores, truth = read_submission(submission), read_labels(labels)
    for names, text in ((truth.keys() - scores.keys(), "no score"), (scores.keys() - truth.keys(), "no label")):
        if names:
            log.warning("%d videos have %s and are left out: %s", len(names), text, command.some(sorted(names)))
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
        raise EvaluationError(f"{path}: no probability from 0 to 1 for {command.some(list(bad))}")
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


def of_checkpoint(args: argparse.Namespace) -> VideoScores:
    """The videos of a fold. Raises CheckpointError, FoldsError, TrainingError, ..."""
    fold = read_fold(args)
    return VideoScores.of_crops(fold.source.crops, *score_fold(args, fold))


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
    from training.tools.distributed import processes

    with processes(args.device) as world:
        batches = build.validation_loader(
            fold.source, fold.rows, fold.recipe.size, fold.padding_part, args.batch_size, args.workers, world
        )
        return score_crops(fold.network.to(world.device), fold.recipe, batches, world)


if __name__ == "__main__":
    command.main(main, get_args_parser())
