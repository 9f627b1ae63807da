"""Say how good scores are.

    python -m training.pipelines.evaluate --submission CSV --labels metadata.json [--json OUT]
    python -m training.pipelines.evaluate --checkpoint FILE --data-dir ROOT --fold N [--folds-csv CSV] [--json OUT]

The first compares what predict_folder.py wrote with DFDC's labels. The second scores the crops of a fold with a
checkpoint, as training does after an epoch: every 20th frame, the mean of a video's frames.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from preprocessing import command
from preprocessing.errors import ReportedError
from preprocessing.output import make_folder, write_whole
from training.tools.metrics import evaluate

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
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures to this file as well")
    add = parser.add_argument_group("for --checkpoint").add_argument
    add("--data-dir", type=Path, help="folder of the dataset")
    add("--crops-dir", type=Path, default=Path("crops"), help="folder of the crops in it")
    add("--folds-csv", type=Path, help="list of the crops (default: folds.csv in the data folder)")
    add("--fold", type=int, default=0, help="the fold to score")
    add("--public-validation", action="store_true", help="score DFDC's 400 public test videos instead")
    add("--predictions", type=Path, metavar="CSV", help="write each video's score to this file")
    add("--batch-size", type=command.positive, default=32, help="crops at a time")
    add("--workers", type=command.not_negative, default=2, help="processes that load data")
    add("--device", default="auto", help="auto, cpu, cuda")
    return parser


def main(args: argparse.Namespace) -> int:
    if args.submission and not args.labels:
        raise EvaluationError("--submission goes with --labels metadata.json")
    if args.checkpoint and not args.data_dir:
        raise EvaluationError("--checkpoint goes with --data-dir, the folder of the dataset")
    figures = of_submission(args.submission, args.labels) if args.submission else of_checkpoint(args)
    for name, value in figures.items():
        print(
            f"{name:20}{'one class only' if value is None else f'{value:.5f}' if isinstance(value, float) else value}"
        )
    if args.json:
        make_folder(args.json.parent)
        write_whole(args.json, json.dumps(figures, indent=4) + "\n")
    return 0


def of_submission(submission: Path, labels: Path) -> dict[str, Any]:
    """Figures of the videos that have a score and a label. Raises EvaluationError."""
    scores, fake = read_submission(submission), read_labels(labels)
    common = sorted(scores.keys() & fake.keys())
    for names, text in ((fake.keys() - scores.keys(), "no score"), (scores.keys() - fake.keys(), "no label")):
        if names:
            log.warning("%d videos have %s and are left out: %s", len(names), text, command.some(sorted(names)))
    if not common:
        raise EvaluationError(f"{submission} and {labels} have no video in common")
    return evaluate(np.array([scores[name] for name in common]), np.array([fake[name] for name in common]))


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


def read_labels(path: Path) -> dict[str, bool]:
    """Whether each file is fake. Raises EvaluationError."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {Path(name).name: CLASSES[entry["label"]] for name, entry in entries.items()}
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: cannot be read as JSON ({error})") from None
    except (AttributeError, KeyError, TypeError):
        raise EvaluationError(f'{path}: {{"NAME.mp4": {{"label": "REAL" or "FAKE"}}, ...}} is wanted') from None


def of_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    """Figures of a fold's videos. Raises CheckpointError, FoldsError, TrainingError, ..."""
    from preprocessing.crops import MarginCrop
    from training.datasets.classifier_dataset import PADDING_PART
    from training.pipelines import build
    from training.pipelines.engine import score_videos
    from training.pipelines.run import write_scores
    from training.tools.checkpoint import load_network
    from training.tools.distributed import processes

    network, recipe = load_network(args.checkpoint)
    args.padding_part = PADDING_PART
    if isinstance(recipe.crop, MarginCrop):
        args.padding_part = max(PADDING_PART, round(1 / recipe.crop.margin))
        if abs(1 / args.padding_part - recipe.crop.margin) > 1e-6:
            raise EvaluationError(
                f"{args.checkpoint}: cannot cut its margin of {recipe.crop.margin:.3f} from the crops"
            )
    else:
        log.warning("%s was trained on crops of its own, %s: these must be such", args.checkpoint, recipe.crop)
    source = build.read_source(args)
    with processes(args.device) as world:
        batches = build.validation_loader(args, source, recipe.size, args.batch_size, world)
        scores = score_videos(network.to(world.device), recipe, batches, source.crops, world)
    if args.predictions:
        make_folder(args.predictions.parent)
        write_scores(args.predictions, scores)
    return evaluate(scores.scores, scores.fake)


if __name__ == "__main__":
    command.main(main, get_args_parser())
