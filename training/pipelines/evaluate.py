"""Measure how good scores are.

    python -m training.pipelines.evaluate --submission CSV --labels metadata.json [--json OUT]
    python -m training.pipelines.evaluate --checkpoint FILE --data-dir DATA_ROOT --fold N [--json OUT]

The first compares the output of predict_folder.py with DFDC's labels. The second scores the crops of a fold with a
checkpoint like the validation during training: every 20th frame, averaged per video.

--half uses half of the original videos with their fakes, so that a checkpoint that was chosen or calibrated on one half
can be measured on the other; RUN_best.pt was chosen on both. --bootstrap adds 95 % confidence intervals over originals
with their fakes. Where an actor has many originals, as in DFDC, they are too narrow for other actors.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common import cli
from common.files import atomic_write, make_folder
from training.datasets.folds import HALVES
from training.pipelines.scoring import EvaluationError, add_data_arguments, score_checkpoint, score_submission
from training.tools.metrics import evaluate, intervals, write_scores

log = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = cli.make_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--submission", type=Path, metavar="CSV", help="output of predict_folder.py")
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="network to score crops with")
    add = parser.add_argument
    add("--labels", type=Path, metavar="JSON", help="DFDC's metadata.json, for --submission")
    add("--half", choices=HALVES, help="use only this half of the originals, and their fakes")
    add("--bootstrap", type=cli.positive, metavar="N", help="95 %% confidence intervals from N samples, e.g. 2000")
    add("--json", type=Path, metavar="OUT", help="also write the metrics to this file")
    add("--predictions", type=Path, metavar="CSV", help="also write the score of each video to this file")
    add("--plots", type=Path, metavar="DIR", help="also write roc.png and reliability.png to this folder")
    add_data_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the metrics and write what was asked for. Return the exit status."""
    if args.submission and not args.labels:
        raise EvaluationError("--submission: needs labels. Add --labels metadata.json")
    folders = (args.json and args.json.parent, args.predictions and args.predictions.parent, args.plots)
    for folder in filter(None, folders):  # find out before the work
        make_folder(folder)
    scores = score_submission(args.submission, args.labels, args.half) if args.submission else score_checkpoint(args)
    metrics = evaluate(scores.scores, scores.fake)
    bounds = intervals(scores.scores, scores.fake, scores.originals, args.bootstrap) if args.bootstrap else {}
    for name, value in metrics.items():
        print(f"{name:20}{_format(value)}{'  ({:.5f} to {:.5f})'.format(*bounds[name]) if bounds.get(name) else ''}")
    if args.json:
        atomic_write(args.json, json.dumps(metrics | ({"intervals": bounds} if bounds else {}), indent=4) + "\n")
    if args.predictions:
        write_scores(args.predictions, scores)
    if args.plots:
        if metrics["auc"] is None:
            raise EvaluationError("--plots: the videos are of one class. Plots need real and fake videos")
        from training.tools.plots import draw_reliability, draw_roc, save

        for name, draw in (("roc.png", draw_roc), ("reliability.png", draw_reliability)):
            save(draw(scores.scores, scores.fake), args.plots / name)
    return cli.OK


def _format(value: float | None) -> str:
    return "one class only" if value is None else f"{value:.5f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    cli.main(main, get_args_parser())
