"""Train a small network with the published recipe, on generated faces, in one process and in two.

    python -m tests.reproduce_training [--epochs 8] [--drop-path 0]

Both runs have the same samples and the same batches. Prints their learning rates and losses side by side: the curves
differ by the random numbers of stochastic depth, which each process generates for its own images, and agree without it.
The recipe is configs/b7.json with the embedded model's encoder, a small input and short epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from common import cli
from common.errors import UserError
from tests.support import face_crops

BATCH_SIZE, BATCHES = 12, 8


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--epochs", type=cli.positive, default=8, help="number of epochs")
    parser.add_argument("--drop-path", type=float, default=0.2, metavar="RATE", help="stochastic depth rate")
    return parser


def main(args: argparse.Namespace) -> int:
    """Train both and print the curves. Return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        root = face_crops.make_dataset(Path(folder) / "data")
        one, two = (train(root, processes, args) for processes in (1, 2))
    print(f"{'':7}{'learning rate':>15}{'training loss':>24}{'validation loss':>26}")
    print(f"{'epoch':7}{'':15}" + f"{'1 process':>14}{'2 processes':>12}" * 2)
    for first, second in zip(one, two, strict=True):
        losses = "".join(f"{first[key]:14.4f}{second[key]:12.4f}" for key in ("train_loss", "bce"))
        print(f"{first['epoch']:<7}{first['lr']:15.2e}{losses}")
    return cli.OK


def train(root: Path, processes: int, args: argparse.Namespace) -> list[dict]:
    """Train with batches that are divided among processes. Return the log."""
    changes = {
        "encoder": "tf_efficientnet_lite0",
        "pretrained": str(face_crops.ROOT / "weights/default_lite0.pt"),
        "size": 64,
        "fp16": False,  # needs a GPU
        "drop_path": args.drop_path,
        "batches_per_epoch": BATCHES,
        "optimizer.batch_size": BATCH_SIZE // processes,
        # As in the recipe, the learning rate would reach 0 shortly after the last epoch.
        "optimizer.schedule.params.max_iter": round(BATCHES * args.epochs * 1.005) + 1,
    }
    options = [text for key, value in changes.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    prefix = f"{processes}_"
    config = (
        "--config",
        face_crops.ROOT / "configs/b7.json",
        "--epochs",
        args.epochs,
        "--seed",
        111,
        "--prefix",
        prefix,
    )
    finished = face_crops.train(root, *config, *options, processes=processes if processes > 1 else 0)
    if finished.returncode:
        raise UserError(finished.stderr)
    return face_crops.log(root, f"{prefix}{face_crops.NETWORK}")


if __name__ == "__main__":
    os.chdir(face_crops.ROOT)
    cli.main(main, get_args_parser())
