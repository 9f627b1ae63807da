"""Evaluate video scores.

    python -m training.pipelines.evaluate --submission CSV --labels metadata.json [--json OUT]
    python -m training.pipelines.evaluate --checkpoint FILE --data-dir DATA_ROOT --fold N [--json OUT]

The first compares the output of predict_folder.py with DFDC's labels. The second scores the crops of a fold with a
checkpoint as validation during training does: every 20th frame, averaged per video.

--half uses half of the original videos with their fakes, so that a checkpoint that was selected or calibrated on one
half can be measured on the other; RUN_best.pt was selected on both. --bootstrap adds 95 % confidence intervals by
resampling originals with their fakes. In a dataset with many originals per actor, such as DFDC, the same actors are in
both halves, and the intervals are too narrow for new actors. If --people lists the actor of each original, halves and
bootstrap samples are made of actors with all their originals.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common import cli
from common.errors import UserError
from common.files import atomic_write, make_folder
from training.options import HALVES, add_data_arguments

if TYPE_CHECKING:
    from training.tools.metrics import VideoScores

log = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--submission", type=Path, metavar="CSV", help="output of predict_folder.py")
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="checkpoint to score crops with")
    add = parser.add_argument
    add("--labels", type=Path, metavar="JSON", help="DFDC's metadata.json, for --submission")
    add("--half", choices=HALVES, help="use only this half of the originals, and their fakes")
    add("--bootstrap", type=cli.positive, metavar="N", help="add 95 %% confidence intervals from N bootstrap samples")
    add("--json", type=Path, metavar="OUT", help="also write the metrics to this file")
    add("--predictions", type=Path, metavar="CSV", help="also write the score of each video to this file")
    add("--plots", type=Path, metavar="DIR", help="also write roc.png and reliability.png to this folder")
    add_data_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the metrics and write the requested files. Return the exit status."""
    if args.submission and not args.labels:
        raise UserError("--submission: needs labels. Add --labels metadata.json")
    folders = (args.json and args.json.parent, args.predictions and args.predictions.parent, args.plots)
    for folder in filter(None, folders):  # report an unusable folder before the work, not after
        make_folder(folder)

    # These load scikit-learn and pandas, which takes seconds, so wrong arguments are reported first.
    from training.pipelines.submissions import EvaluationError
    from training.tools.metrics import bootstrap_intervals, evaluate, write_scores

    scores = _read_scores(args)
    metrics = evaluate(scores.scores, scores.fake)
    bounds = {}
    groups = len(set(scores.groups))
    if args.people:
        metrics["people"] = groups
    if args.bootstrap and groups > 1:
        bounds = bootstrap_intervals(scores.scores, scores.fake, scores.groups, args.bootstrap)
    elif args.bootstrap:
        kind = "person" if args.people else "original"
        log.warning("--bootstrap: all videos belong to one %s, so there are no confidence intervals", kind)
    for name, value in metrics.items():
        print(f"{name:20}{_format(value, bounds.get(name))}")
    if args.json:
        atomic_write(args.json, json.dumps(metrics | ({"intervals": bounds} if bounds else {}), indent=4) + "\n")
    if args.predictions:
        write_scores(args.predictions, scores)
    if args.plots:
        if metrics["auc"] is None:
            raise EvaluationError("--plots: all videos have the same class. Plots need real and fake videos")
        from training.tools.plots import plot_reliability, plot_roc, save_plot

        for name, plot in (("roc.png", plot_roc), ("reliability.png", plot_reliability)):
            save_plot(plot(scores.scores, scores.fake), args.plots / name)
    return cli.OK


def _read_scores(args: argparse.Namespace) -> VideoScores:
    """Return the scores of the submission, or compute those of the checkpoint."""
    if args.submission:
        from training.pipelines.submissions import score_submission

        return score_submission(args.submission, args.labels, args.half, args.people)
    from training.pipelines.scoring import score_checkpoint  # loads PyTorch, which a submission does not need

    return score_checkpoint(args)


def _format(value: float | None, interval: tuple[float, float] | None) -> str:
    """Format a metric and its confidence interval."""
    if value is None:
        return "one class only"
    text = f"{value:.5f}" if isinstance(value, float) else str(value)
    return f"{text}  ({interval[0]:.5f} to {interval[1]:.5f})" if interval else text


if __name__ == "__main__":
    cli.main(main, get_args_parser())
