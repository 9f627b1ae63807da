"""Train a classifier on face crops.

    python training/pipelines/train_classifier.py --config configs/lite0.json --data-dir DATA_ROOT
    torchrun --nproc-per-node 4 training/pipelines/train_classifier.py --config configs/b7.json --data-dir DATA_ROOT

DATA_ROOT is a dataset prepared by preprocess_data.sh. Every epoch prints its metrics and writes a checkpoint that
predict_folder.py can use. After an interruption, the same command resumes after the last finished epoch and ends with
the same result as an uninterrupted run. --preview FILE.png writes a contact sheet of augmented samples instead of
training.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common import cli
from training import options


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.allow_abbrev = False  # train.sh and train_default.sh must recognize their own options among the user's
    add = parser.add_argument_group("model").add_argument
    add("--config", type=Path, required=True, metavar="JSON", help="configuration, see configs/")
    add(
        "--set",
        type=options.parse_change,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of the configuration, e.g. optimizer.batch_size=8; may be repeated",
    )
    add("--epochs", type=cli.positive, help="short for --set optimizer.schedule.epochs=N")
    add(
        "--opt-level",
        choices=("O0", "O1", "O2", "O3"),
        help="O0: float32; O1: mixed precision; O2, O3: same as O1 (default: the configuration's fp16)",
    )
    add(
        "--freeze-epochs",
        type=cli.not_negative,
        default=0,
        help="number of initial epochs in which the encoder is frozen",
    )
    add("--seed", type=options.seed, default=777, help="random seed")
    add = parser.add_argument_group("data").add_argument
    add("--data-dir", type=Path, required=True, metavar="DATA_ROOT", help="folder of the dataset")
    add("--crops-dir", type=Path, default=Path("crops"), metavar="DIR", help="folder of the crops within DATA_ROOT")
    add("--folds-csv", type=Path, metavar="CSV", help="list of the crops (default: folds.csv in DATA_ROOT)")
    add("--fold", type=int, default=0, help="fold to validate on; the others are trained on")
    add(
        "--hold-out",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="further folds that are not trained on, to evaluate the network on them",
    )
    add("--public-validation", action="store_true", help="validate on the 400 videos of DFDC's public test set instead")
    add("--label-smoothing", type=options.label_smoothing, default=0.01, help="distance of the labels from 0 and 1")
    add(
        "--padding-part",
        type=options.padding_part,
        default=options.PADDING_PART,
        metavar="N",
        help="reduce the margin of the crops to 1/N of the face",
    )
    add("--no-oversample", action="store_true", help="use every crop once per epoch instead of as many fakes as reals")
    add("--no-hardcore", action="store_true", help="same as --dropout none")
    add(
        "--dropout",
        choices=options.DROPOUTS,
        default="face",
        help="face: black out parts of the face; block: black out one side of the image",
    )
    add("--cache-dir", type=Path, metavar="DIR", help="folder for decoded crops, on a local disk or /dev/shm")
    add(
        "--cache-gib",
        type=cli.positive,
        metavar="N",
        help="largest size of the cache (default: half of the free space)",
    )
    add("--only-changed-frames", action="store_true", help="ignore fakes whose mask shows no change")
    add = parser.add_argument_group("run").add_argument
    add("--output-dir", type=Path, default=Path("weights"), metavar="DIR", help="folder of the checkpoints")
    add(
        "--keep",
        choices=("all", "best"),
        default="all",
        help="checkpoints to keep: those of all epochs, or only best and last",
    )
    add("--logdir", type=Path, default=Path("logs"), metavar="DIR", help="folder of the logs")
    add(
        "--prefix",
        type=options.prefix,
        help="start of the run's name, which is <prefix><network>_<encoder>_<fold> (default: the configuration's)",
    )
    add(
        "--resume",
        default="auto",
        metavar="auto|none|FILE",
        help="auto: resume from the run's own last checkpoint, if any; none: start over; FILE: resume from this "
        "checkpoint if the run has none of its own; if it has weights only, with the next epoch and a new optimizer",
    )
    add("--from-zero", action="store_true", help="take only the weights from --resume FILE and start at epoch 0")
    add("--zero-score", action="store_true", help="when resuming, forget the best score so far")
    add("--test-every", type=cli.positive, default=1, metavar="N", help="validate every N epochs")
    add(
        "--workers",
        type=cli.not_negative,
        default=options.default_workers(),
        help="number of worker processes that load data, per training process",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    add("--compile", action="store_true", help="compile the network with torch.compile")
    add("--preview", type=Path, metavar="FILE.png", help="write a contact sheet of training samples, and do not train")
    return parser


def main(args: argparse.Namespace) -> int:
    """Train, or write the contact sheet. Return the exit status."""
    from training.pipelines import training_run  # loads PyTorch, which takes seconds

    return training_run.run(args, config_changes(args))


def config_changes(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of the configuration that the command line sets, dotted, with their values."""
    changes = dict(args.set)
    if args.epochs is not None:
        changes["optimizer.schedule.epochs"] = args.epochs
    if args.opt_level is not None:
        changes["fp16"] = args.opt_level != "O0"
    return changes


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
