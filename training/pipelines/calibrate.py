"""Make a checkpoint's scores mean what they say, and pack it for use.

    python -m training.pipelines.calibrate --checkpoint RUN_last.pt --data-dir ROOT --fold 0 --output model.pt

A temperature that the logits are divided by is fitted to one half of the fold's originals and their fakes (see
evaluate's --half), so that the other half can say how good the result is: of RUN_last.pt, for RUN_best.pt was chosen
on both. It goes into the last layer: whoever uses the checkpoint need not know of it. The weights are written in
float16, without what only resuming the training needs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from preprocessing import command
from preprocessing.output import make_folder
from training.pipelines.evaluate import EvaluationError, add_data_arguments, read_fold, score_fold
from training.tools.checkpoint import read_checkpoint, save_checkpoint
from training.tools.metrics import CLIP, log_losses

# Temperatures that are looked at; the highest means that the scores say nothing.
TEMPERATURES = (0.1, 10.0)

log = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="what training wrote")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    add_data_arguments(parser.add_argument_group("data").add_argument)
    parser.set_defaults(half="calibration")
    return parser


def main(args: argparse.Namespace) -> int:
    if args.output.resolve() == args.checkpoint.resolve():
        raise EvaluationError(f"{args.output}: training goes on from this file; give the packed one another name")
    make_folder(args.output.parent)
    fold = read_fold(args)
    rows, scores = score_fold(args, fold)
    scores = np.clip(scores, CLIP, 1 - CLIP)
    found = temperature(np.log(scores / (1 - scores)), fold.source.crops.fake[rows])
    with torch.no_grad():
        for parameter in fold.network.fc.parameters():
            parameter /= found
    state = {
        key: value.cpu().half() if value.is_floating_point() else value.cpu()
        for key, value in fold.network.state_dict().items()
    }
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise EvaluationError(f"{args.checkpoint}: some weights are too large for float16")
    where = "public validation" if args.public_validation else f"fold {args.fold}"
    calibration = {"temperature": found, "data": where, "half": args.half, "crops": len(rows)}
    save_checkpoint(args.output, state, fold.recipe, calibration=calibration, trained=trained(args.checkpoint))
    print(f"temperature {found:.4f}, by {len(rows)} crops; {args.output}: {args.output.stat().st_size / 1e6:.1f} MB")
    return 0


def trained(path: Path) -> dict[str, Any]:
    """The epoch of a run's last checkpoint and the run's settings, but not where its start lay; {} for other files."""
    checkpoint = read_checkpoint(path)
    try:
        settings = checkpoint["training"]["settings"]
        config = {key: value for key, value in settings["config"].items() if key != "pretrained"}
        return {"epoch": checkpoint["epoch"], "settings": {**settings, "config": config}}
    except (KeyError, TypeError, AttributeError):
        return {}


def temperature(logits: np.ndarray, fake: np.ndarray) -> float:
    """What logits (n,) are to be divided by for the lowest log loss; 1 where none is wrong, so that nothing is known.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017. Raises EvaluationError where they say nothing of
    the labels, `fake`, bool (n,).
    """
    useless = EvaluationError("scores of both classes are needed, and such that say something of them; train on")
    if not fake.any() or fake.all():
        raise useless
    if ((logits > 0) == fake).all():
        log.warning("none of these %d scores is wrong: they are left as they are", len(fake))
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(log_losses(expit(logits / np.exp(log_temperature)), fake).mean())

    found = float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))
    if found > 0.99 * TEMPERATURES[1]:
        raise useless
    return found


if __name__ == "__main__":
    command.main(main, get_args_parser())
