"""Calibrate a network: a temperature and an offset (Platt scaling), folded into its last layer, and verdict bands."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from training.datasets.people import groups_of
from training.pipelines.scoring import read_fold, score_fold
from training.pipelines.submissions import EvaluationError
from training.tools.checkpoint import read_checkpoint, save_checkpoint
from training.tools.metrics import EPS
from training.tools.recipe import Bands
from training.zoo.classifiers import DeepFakeClassifier

# A higher temperature means that the scores say nothing about the class.
MAX_TEMPERATURE = 10.0
# Largest share of the faces of each class that may get the other one's verdict.
MAX_ERROR = 0.05

log = logging.getLogger(__name__)


def calibrate(args: argparse.Namespace) -> dict[str, Any]:
    """Write the calibrated checkpoint with float16 weights, or with --bands-only the same weights. Raises UserError.

    Returns:
        The checkpoint's `calibration`: temperature, offset, and the data and number of crops (with --people, also of
        people) that they come from ({} with --bands-only); and the recipe's `bands`.
    """
    fold = read_fold(args)
    flip, shift = args.flip or fold.recipe.flip, args.shift or fold.recipe.shift
    fold = fold._replace(recipe=replace(fold.recipe, flip=flip, shift=shift))
    rows, scores = score_fold(args, fold)
    crops = fold.source.crops
    scores, fake = np.clip(scores, EPS, 1 - EPS), crops.fake[rows]
    if args.bands_only:
        bands = fit_bands(scores, fake)
        checkpoint = read_checkpoint(args.checkpoint)
        more = {key: checkpoint[key] for key in ("calibration", "trained") if key in checkpoint}
        save_checkpoint(args.output, checkpoint["state_dict"], replace(fold.recipe, bands=bands), **more)
        return {"bands": bands}
    logits = np.log(scores / (1 - scores))
    temperature, offset = fit_platt(logits, fake)
    bands = fit_bands(expit((logits - offset) / temperature), fake)
    data = "public validation" if args.public_validation else f"fold {args.fold}"
    calibration = {"temperature": temperature, "offset": offset, "data": data, "half": args.half, "crops": len(rows)}
    if fold.people is not None:
        calibration["people"] = len(set(groups_of(crops.originals(rows), fold.people)))
    save_checkpoint(
        args.output,
        _calibrated_weights(args.checkpoint, fold.network, temperature, offset),
        replace(fold.recipe, bands=bands),
        calibration=calibration,
        trained=training_of(args.checkpoint),
    )
    return {**calibration, "bands": bands}


def _calibrated_weights(
    path: Path, network: DeepFakeClassifier, temperature: float, offset: float
) -> dict[str, torch.Tensor]:
    """Fold temperature and offset into the last layer and return the weights in float16. Raises EvaluationError."""
    with torch.no_grad():
        network.fc.bias.sub_(offset)
        for parameter in network.fc.parameters():
            parameter.div_(temperature)
    state = {
        key: value.cpu().half() if value.is_floating_point() else value.cpu()
        for key, value in network.state_dict().items()
    }
    if not all(torch.isfinite(value).all() for value in state.values()):
        raise EvaluationError(
            f"{path}: some weights are too large for float16, the type of calibrated checkpoints. Use it without "
            "calibration, or train with a higher optimizer.weight_decay"
        )
    return state


def training_of(path: Path) -> dict[str, Any]:
    """Return how a checkpoint was trained: the epoch and the settings, without paths of pretrained weights.

    These are known of RUN_last.pt and of files made from it; {} for others.
    """
    checkpoint = read_checkpoint(path)
    if isinstance(checkpoint.get("trained"), dict):
        return checkpoint["trained"]
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


def fit_bands(scores: np.ndarray, fake: np.ndarray, error: float = MAX_ERROR) -> Bands:
    """Return the widest verdict bands with at most the share `error` of each class on the wrong side.

    Scores above 0.5 are never likely real, and scores below it never likely fake.

    Args:
        scores: probabilities of being fake (n,).
        fake: labels, bool (n,), with both classes.
        error: share, 0 to 1.
    """
    highest_reals, lowest_fakes = np.sort(scores[~fake])[::-1], np.sort(scores[fake])
    above = highest_reals[int(error * len(highest_reals))]  # the first real face that must not be likely fake
    below = lowest_fakes[int(error * len(lowest_fakes))]
    return Bands(
        real=min(float(np.nextafter(below, 0)), 0.5),
        fake=max(float(np.nextafter(above, 1)), 0.5),
        error=error,
        faces=len(scores),
    )
