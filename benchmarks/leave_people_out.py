"""Compare training settings on people that a network has not seen.

    python -m benchmarks.leave_people_out --data-dir DATA_ROOT --settings JSON --folds 1 2 3 --output DIR
                                          [--swaps-csv CSV --swaps-dir DIR]

Trains a network per setting, validated on fold 0 and without --folds, and evaluates its last checkpoint on each of
these folds. Metrics are means over the folds, with their standard deviation. No person may be in several folds.

The swaps are face swaps by another method, with the real faces: crops for the same folds, listed like folds.csv. They
show whether a network has learned more than the artifacts of the fakes that it was trained on.

The settings are {"common": [OPTION, ...], "runs": {NAME: [OPTION, ...], ...}}, with options of train_classifier.py. A
run is trained with the common options and its own. Networks, logs and results.json are written to DIR; after an
interruption, the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.processes import ROOT, ProgramError
from benchmarks.results import write_json
from benchmarks.tables import table
from common import cli
from common.errors import UserError
from common.files import make_folder
from training.options import add_crops_arguments


class Run(NamedTuple):
    """A setting to train with.

    Attributes:
        name: name of the setting and of its folder.
        options: options of train_classifier.py, common ones included.
    """

    name: str
    options: list[str]


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add_crops_arguments(parser)
    add = parser.add_argument
    add("--settings", type=Path, required=True, metavar="JSON", help="settings to compare")
    add("--folds", type=int, nargs="+", required=True, metavar="N", help="folds to evaluate on, at least two")
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the networks, logs and results.json")
    add("--swaps-csv", type=Path, metavar="CSV", help="list of the crops of the swaps")
    add("--swaps-dir", type=Path, metavar="DIR", help="folder of the crops of the swaps")
    add("--workers", type=cli.not_negative, default=2, help="number of worker processes that load data")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    return parser


def main(args: argparse.Namespace) -> int:
    """Train, evaluate and print the table. Return the exit status."""
    if len(set(args.folds)) < 2:
        raise UserError("--folds: names one fold, but a spread needs several. Add another")
    if bool(args.swaps_csv) != bool(args.swaps_dir):
        raise UserError("--swaps-csv, --swaps-dir: need each other. Add the missing one")
    runs = read_settings(args.settings)
    make_folder(args.output)
    path = args.output / "results.json"
    stages = json.loads(path.read_text())["stages"] if path.exists() else {}
    for run in runs:
        settings = {"options": run.options, "folds": args.folds, "swaps": bool(args.swaps_csv)}
        if not settings.items() <= stages.get(run.name, {}).items():
            stages[run.name] = settings | measure(args, run)
            folds = ", ".join(map(str, args.folds))
            write_json(path, f"Means and standard deviations over the folds {folds}", {"stages": stages})
    print(table(json.loads(path.read_text())))
    return cli.OK


def read_settings(path: Path) -> list[Run]:
    """Read the settings. Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # Strings instead of lists raise TypeError.
        runs = [Run(name, [] + content["common"] + options) for name, options in content["runs"].items()]
        texts = [text for run in runs for text in run.options]
        valid = bool(runs) and all(isinstance(text, str) for text in texts)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}). Check --settings") from None
    except (AttributeError, KeyError, TypeError):
        valid = False
    if not valid:
        form = '{"common": [OPTION, ...], "runs": {NAME: [OPTION, ...], ...}}'
        raise UserError(f"{path}: needs the form {form}. Correct it")
    for run in runs:
        if Path(run.name).name != run.name or run.name in ("", ".."):
            raise UserError(f"{path}: {run.name!r} is not the name of a folder. Choose another name for this run")
    return runs


def measure(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Train a network, unless this is done, and evaluate it. Raises UserError.

    Returns:
        `crops_seen` in training, the mean and standard deviation of each metric, and its values `by_fold`.
    """
    checkpoint, crops_seen = train(args, run)
    by_fold = [evaluate_fold(args, checkpoint, fold) for fold in args.folds]
    spreads = {}
    for name in by_fold[0]:
        values = [metrics[name] for metrics in by_fold]
        spreads[name] = (statistics.mean(values), statistics.stdev(values))
    return {"crops_seen": crops_seen, **spreads, "by_fold": by_fold}


def train(args: argparse.Namespace, run: Run) -> tuple[Path, int]:
    """Train a network or finish its training. Return its last checkpoint and the number of crops that it has seen.

    Raises:
        ProgramError: training failed.
    """
    from training.pipelines.train_classifier import config_changes
    from training.pipelines.train_classifier import get_args_parser as training_parser
    from training.pipelines.training_run import run_name
    from training.tools.config import read_config
    from training.tools.log import read_log

    folder = args.output / run.name
    options = [*run.options, *data_options(args, args.crops_dir, args.folds_csv)]
    options += ["--output-dir", folder, "--logdir", folder, "--keep", "best", "--fold", "0", "--hold-out", *args.folds]
    texts = list(map(str, options))
    if subprocess.run([sys.executable, ROOT / "training/pipelines/train_classifier.py", *texts]).returncode:
        raise ProgramError(f"{run.name}: training failed, see above. Run the same command again after fixing this")
    training = training_parser().parse_args(texts)
    name = run_name(training, read_config(training.config, config_changes(training)))
    crops = sum(epoch["images_per_second"] * epoch["seconds"] for epoch in read_log(folder / f"{name}.jsonl"))
    return folder / f"{name}_last.pt", round(crops)


def evaluate_fold(args: argparse.Namespace, checkpoint: Path, fold: int) -> dict[str, float]:
    """Return the metrics of a fold that are compared. Raises UserError."""
    metrics = evaluate_crops(args, checkpoint, fold, args.crops_dir, args.folds_csv)
    values = {name: metrics[name] for name in ("auc", "log_loss")}
    if args.swaps_csv:
        swaps = evaluate_crops(args, checkpoint, fold, args.swaps_dir.resolve(), args.swaps_csv)
        values["swaps_auc"] = swaps["auc"]
    return values


def evaluate_crops(
    args: argparse.Namespace, checkpoint: Path, fold: int, crops_dir: Path, folds_csv: Path | None
) -> Mapping[str, Any]:
    """Return the metrics of a checkpoint on the crops of a fold. Raises UserError."""
    from training.pipelines.evaluate import get_args_parser as evaluation_parser
    from training.pipelines.scoring import score_checkpoint
    from training.tools.metrics import evaluate

    options = ["--checkpoint", checkpoint, "--fold", fold, *data_options(args, crops_dir, folds_csv)]
    scores = score_checkpoint(evaluation_parser().parse_args(list(map(str, options))))
    metrics = evaluate(scores.scores, scores.fake)
    if metrics["auc"] is None:
        where = folds_csv or args.data_dir
        raise UserError(f"{where}: fold {fold} has only one class. Choose other --folds")
    return metrics


def data_options(args: argparse.Namespace, crops_dir: Path, folds_csv: Path | None) -> list[Any]:
    """Return the options that training and evaluation have in common."""
    lists = ["--folds-csv", folds_csv] if folds_csv else []
    place = ["--data-dir", args.data_dir, "--crops-dir", crops_dir, *lists]
    return [*place, "--workers", args.workers, "--device", args.device]


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
