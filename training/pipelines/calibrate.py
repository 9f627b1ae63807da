"""Make a checkpoint's scores mean what they say, and pack it for use.

    python -m training.pipelines.calibrate --checkpoint RUN_last.pt --data-dir ROOT --fold 0 --output model.pt

An offset that is taken from the logits and a temperature that they are then divided by are fitted to one half of the
fold's originals and their fakes (see evaluate's --half), so that the other half can say how good the result is: of
RUN_last.pt, for RUN_best.pt was chosen on both. They go into the last layer: whoever uses the checkpoint need not know
of them. The weights are written in float16, without what only resuming the training needs.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from common import cli
from common.files import make_folder
from training.pipelines.scoring import EvaluationError, add_data_arguments, read_fold, score_fold
from training.tools.checkpoint import read_checkpoint, save_checkpoint
from training.tools.metrics import CLIP

# A higher temperature means that the scores say nothing.
HIGHEST = 10.0

log = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="what training wrote")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    add_data_arguments(parser)
    parser.set_defaults(half="calibration")
    return parser


def main(args: argparse.Namespace) -> int:
    if args.output.resolve() == args.checkpoint.resolve():
        raise EvaluationError(f"{args.output}: training goes on from this file; give the packed one another name")
    make_folder(args.output.parent)
    fold = read_fold(args)
    rows, scores = score_fold(args, fold)
    scores = np.clip(scores, CLIP, 1 - CLIP)
    temperature, offset = platt(np.log(scores / (1 - scores)), fold.source.crops.fake[rows])
    with torch.no_grad():
        fold.network.fc.bias -= offset
        for parameter in fold.network.fc.parameters():
            parameter /= temperature
    state = {
        key: value.cpu().half() if value.is_floating_point() else value.cpu()
        for key, value in fold.network.state_dict().items()
    }
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise EvaluationError(f"{args.checkpoint}: some weights are too large for float16")
    where = "public validation" if args.public_validation else f"fold {args.fold}"
    calibration = {"temperature": temperature, "offset": offset, "data": where, "half": args.half, "crops": len(rows)}
    save_checkpoint(args.output, state, fold.recipe, calibration=calibration, trained=trained(args.checkpoint))
    size = args.output.stat().st_size / 1e6
    print(f"temperature {temperature:.4f}, offset {offset:.4f}, by {len(rows)} crops; {args.output}: {size:.1f} MB")
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


def platt(logits: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    """The temperature and the offset for which (logits - offset) / temperature has the lowest log loss.

    Platt, Probabilistic Outputs for Support Vector Machines, 1999; without the offset it is the temperature scaling of
    Guo et al., On Calibration of Modern Neural Networks, ICML 2017. Logits (n,) that tell the classes apart without a
    mistake do not say how sure they may be: 1 and 0. Raises EvaluationError where they say nothing of the labels,
    `fake`, bool (n,).
    """
    useless = EvaluationError("scores of both classes are needed, and such that say something of them; train on")
    if not fake.any() or fake.all():
        raise useless
    if logits[~fake].max() < logits[fake].min():
        log.warning("a threshold divides these %d scores without a mistake: they are left as they are", len(fake))
        return 1.0, 0.0
    fitted = LogisticRegression(C=np.inf, tol=1e-8).fit(logits[:, None], fake)
    slope, intercept = fitted.coef_.item(), fitted.intercept_.item()
    if slope < 1 / HIGHEST:
        raise useless
    return 1 / slope, -intercept / slope


if __name__ == "__main__":
    cli.main(main, get_args_parser())
