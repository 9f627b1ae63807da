"""Make a checkpoint's scores mean what they say, and pack it for use.

    python -m training.pipelines.calibrate --checkpoint RUN_last.pt --data-dir ROOT --fold 0 --output model.pt

A temperature that the logits are divided by is fitted to the fold's videos of one half of the people (see evaluate's
--half), so that the other half can say how good the result is. It goes into the last layer: whoever uses the
checkpoint need not know of it. The weights are written in float16, without what only training needs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from preprocessing import command
from preprocessing.output import make_folder
from training.pipelines.evaluate import EvaluationError, add_data_arguments, score_fold
from training.tools.checkpoint import load_network, save_checkpoint
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
    network, recipe = load_network(args.checkpoint)
    crops, rows, scores = score_fold(args, network, recipe)
    scores = np.clip(scores, CLIP, 1 - CLIP)
    found = temperature(np.log(scores / (1 - scores)), crops.fake[rows])
    with torch.no_grad():
        for parameter in network.fc.parameters():
            parameter /= found
    state = {
        key: value.cpu().half() if value.is_floating_point() else value.cpu()
        for key, value in network.state_dict().items()
    }
    make_folder(args.output.parent)
    save_checkpoint(
        args.output, state, recipe, calibration={"temperature": found, "fold": args.fold, "half": args.half}
    )
    print(f"temperature {found:.4f}, by {len(rows)} crops; {args.output}: {args.output.stat().st_size / 1e6:.1f} MB")
    return 0


def temperature(logits: np.ndarray, fake: np.ndarray) -> float:
    """What logits (n,) are to be divided by for the lowest log loss; 1 where none is wrong, so that nothing is known.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017. Raises EvaluationError where they say nothing of
    the labels, `fake`, bool (n,).
    """
    if ((logits > 0) == fake).all():
        log.warning("none of these %d scores is wrong: they are left as they are", len(fake))
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(log_losses(expit(logits / np.exp(log_temperature)), fake).mean())

    found = float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))
    if not fake.any() or fake.all() or found > 0.99 * TEMPERATURES[1]:
        raise EvaluationError("scores of both classes are needed, and such that say something of them; train on")
    return found


if __name__ == "__main__":
    command.main(main, get_args_parser())
