"""Measure the embedded model and write the tables of its card.

    python -m benchmarks.model_card --data-dir DATA_ROOT [--checkpoint FILE] [--people CSV] [--output-dir weights]

measures a checkpoint on the report half of fold 0: single faces with confidence intervals by person, verdicts,
modified crops, and face swaps of a kind that it was not trained on (see training.pipelines.face_swaps; they are made in
DATA_ROOT/swaps first). Writes card.json, roc.png and reliability.png. If the output folder has a MODEL_CARD.md, its
tables, which stand between `<!-- NAME -->` and `<!-- end -->`, are replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import robustness
from benchmarks.processes import ROOT
from benchmarks.processes import measure as run_program
from common import cli
from common.errors import UserError
from common.files import atomic_write, make_folder
from training.options import add_data_arguments
from training.pipelines.scoring import score_checkpoint
from training.tools.checkpoint import load_network
from training.tools.metrics import VideoScores, bootstrap_intervals, evaluate
from training.tools.plots import plot_reliability, plot_roc, save_plot
from training.tools.recipe import Bands

BOOTSTRAP_SAMPLES = 2000
CARD = "MODEL_CARD.md"
TABLE = re.compile(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, default=ROOT / "weights/default_lite0.pt", help="calibrated checkpoint")
    add("--output-dir", type=Path, default=ROOT / "weights", metavar="DIR", help="folder to write")
    add_data_arguments(parser)
    parser.set_defaults(half="report")
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure the checkpoint and write the files. Return the exit status."""
    make_folder(args.output_dir)
    bands = load_network(args.checkpoint)[1].bands
    if bands is None:
        raise UserError(f"{args.checkpoint}: has no verdict bands. Calibrate it with training.pipelines.calibrate")
    scores = score_checkpoint(args)
    result = {
        "faces": measure(scores),
        "verdicts": count_verdicts(scores, bands),
        "swaps": measure(score_swaps(args)),
        "modified": robustness.measure(args),
    }
    atomic_write(args.output_dir / "card.json", json.dumps(result, indent=4) + "\n")
    for name, plot in (("roc.png", plot_roc), ("reliability.png", plot_reliability)):
        save_plot(plot(scores.scores, scores.fake), args.output_dir / name)
    card = args.output_dir / CARD
    if card.is_file():
        atomic_write(card, update(card.read_text(), result))
    print(f"{args.output_dir / 'card.json'}: AUC {result['faces']['auc']:.3f}")
    return cli.OK


def measure(scores: VideoScores) -> dict[str, Any]:
    """Return the metrics of some scores with their intervals and the number of people that these are by."""
    intervals = bootstrap_intervals(scores.scores, scores.fake, scores.groups, BOOTSTRAP_SAMPLES)
    return {**evaluate(scores.scores, scores.fake), "people": len(set(scores.groups)), "intervals": intervals}


def count_verdicts(scores: VideoScores, bands: Bands) -> dict[str, dict[str, float]]:
    """Return the share of each verdict among the real and the fake faces."""
    counts = {}
    for name, members in (("real", ~scores.fake), ("fake", scores.fake)):
        real, fake = scores.scores[members] <= bands.real, scores.scores[members] >= bands.fake
        shares = {"likely_real": real, "inconclusive": ~real & ~fake, "likely_fake": fake}
        counts[name] = {"faces": int(members.sum()), **{key: float(np.mean(value)) for key, value in shares.items()}}
    return counts


def score_swaps(args: argparse.Namespace) -> VideoScores:
    """Score the real crops and their face swaps, which are made if DATA_ROOT has none."""
    swaps = args.data_dir / "swaps.csv"
    if not swaps.exists():
        options = ["--data-dir", args.data_dir, "--crops-dir", args.crops_dir, "--folds", args.fold]
        options += ["--folds-csv", args.folds_csv] if args.folds_csv else []
        # In a process of its own: data loading workers that are forked after OpenCV has started threads hang.
        run_program("-m", "training.pipelines.face_swaps", *map(str, options))
    changes = {"crops_dir": Path("swaps"), "folds_csv": swaps}
    return score_checkpoint(argparse.Namespace(**{**vars(args), **changes}))


def update(card: str, result: Mapping[str, Any]) -> str:
    """Return a card with the tables of a result. Raises UserError for a table that does not exist."""

    def replace(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise UserError(f"{CARD}: unknown table {match[2]}. Choose one of {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[match[2]](result)}\n{match[3]}"

    return TABLE.sub(replace, card)


def faces_table(result: Mapping[str, Any]) -> str:
    """Return the metrics on single faces and on face swaps, with intervals."""
    faces, swaps = result["faces"], result["swaps"]
    lines = ["| Metric | DFDC fakes | Face swaps |", "|---|---|---|"]
    for key, name in METRICS.items():
        lines.append(f"| {name} | {_with_interval(faces, key)} | {_with_interval(swaps, key)} |")
    return "\n".join([*lines, f"| Faces | {faces['videos']:,} | {swaps['videos']:,} |"])


def verdicts_table(result: Mapping[str, Any]) -> str:
    """Return the share of each verdict."""
    lines = ["| | Likely real | Inconclusive | Likely fake |", "|---|---|---|---|"]
    for name, shares in result["verdicts"].items():
        cells = [f"{shares[key]:.1%}" for key in ("likely_real", "inconclusive", "likely_fake")]
        lines.append(f"| {shares['faces']} {name} faces | {' | '.join(cells)} |")
    return "\n".join(lines)


def modified_table(result: Mapping[str, Any]) -> str:
    """Return the metrics for each modification of the crops."""
    lines = ["| Modification | AUC | Log loss | True positive rate | False positive rate |", "|---|---|---|---|---|"]
    for name, values in result["modified"].items():
        rates = f"{values['true_positives']:.1%} | {values['false_positives']:.1%}"
        lines.append(f"| {name} | {values['auc']:.3f} | {values['log_loss']:.3f} | {rates} |")
    return "\n".join(lines)


def _with_interval(metrics: Mapping[str, Any], key: str) -> str:
    low, high = metrics["intervals"][key]
    return f"{metrics[key]:.3f} ({low:.3f} to {high:.3f})"


METRICS = {
    "auc": "AUC",
    "log_loss": "Log loss",
    "average_precision": "Average precision",
    "accuracy": "Accuracy at 0.5",
    "ece": "Calibration error",
}
TABLES = {"faces": faces_table, "verdicts": verdicts_table, "modified": modified_table}


if __name__ == "__main__":
    cli.main(main, get_args_parser())
