"""Calibrate a network with a temperature and an offset (Platt scaling) that are folded into its last layer."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from training.pipelines.scoring import read_fold, score_fold
from training.pipelines.submissions import EvaluationError
from training.tools.checkpoint import read_checkpoint, save_checkpoint
from training.tools.metrics import EPS

# A higher temperature means that the scores say nothing about the class.
MAX_TEMPERATURE = 10.0

log = logging.getLogger(__name__)


def calibrate(args: argparse.Namespace) -> dict[str, Any]:
    """Write the calibrated checkpoint with float16 weights. Raises UserError.

    Returns:
        The checkpoint's `calibration`: temperature, offset, and the data and number of crops that they come from.
    """
    fold = read_fold(args)
    rows, scores = score_fold(args, fold)
    scores = np.clip(scores, EPS, 1 - EPS)
    temperature, offset = fit_platt(np.log(scores / (1 - scores)), fold.source.crops.fake[rows])
    with torch.no_grad():
        fold.network.fc.bias.sub_(offset)
        for parameter in fold.network.fc.parameters():
            parameter.div_(temperature)
    state = {
        key: value.cpu().half() if value.is_floating_point() else value.cpu()
        for key, value in fold.network.state_dict().items()
    }
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise EvaluationError(
            f"{args.checkpoint}: some weights are too large for float16, the type of calibrated checkpoints. Use it "
            "without calibration, or train with a higher optimizer.weight_decay"
        )
    data = "public validation" if args.public_validation else f"fold {args.fold}"
    calibration = {"temperature": temperature, "offset": offset, "data": data, "half": args.half, "crops": len(rows)}
    save_checkpoint(args.output, state, fold.recipe, calibration=calibration, trained=training_of(args.checkpoint))
    return calibration


def training_of(path: Path) -> dict[str, Any]:
    """Return the epoch and the settings (without paths of pretrained weights) of RUN_last.pt; {} for others."""
    checkpoint = read_checkpoint(path)
    try:
        settings = checkpoint["training"]["settings"]
        config = {key: value for key, value in settings["config"].items() if key != "pretrained"}
        return {"epoch": checkpoint["epoch"], "settings": {**settings, "config": config}}
    except (KeyError, TypeError, AttributeError):
        return {}


def fit_platt(logits: np.ndarray, fake: np.ndarray) -> tuple[float, float]:
    """Return the temperature and offset that minimize the log loss of (logits - offset) / temperature.

    Platt, Probabilistic Outputs for Support Vector Machines, 1999. Without the offset, this is the temperature scaling
    of Guo et al., On Calibration of Modern Neural Networks, ICML 2017. Logits that separate the classes perfectly do
    not determine a temperature: the result is (1, 0).

    Args:
        logits: (n,).
        fake: labels, bool (n,).

    Raises:
        EvaluationError: the logits say nothing about the labels, or there is only one class.
    """
    if not fake.any() or fake.all():
        raise EvaluationError("--fold: has crops of only one class. Calibration needs real and fake videos")
    if logits[~fake].max() < logits[fake].min():
        log.warning("the %d scores separate the classes perfectly, so they are not calibrated", len(fake))
        return 1.0, 0.0
    fitted = LogisticRegression(C=np.inf, tol=1e-8).fit(logits[:, None], fake)
    slope, intercept = fitted.coef_.item(), fitted.intercept_.item()
    if slope < 1 / MAX_TEMPERATURE:
        raise EvaluationError("--checkpoint: its scores say nothing about the class. Train it longer")
    return 1 / slope, -intercept / slope
