"""Drawings of how good scores are: arguments as in `training.tools.metrics`, results matplotlib figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score, roc_curve

from common.files import atomic_file
from training.tools.metrics import BINS, THRESHOLD, reliability


def draw_roc(scores: np.ndarray, labels: np.ndarray) -> Figure:
    """The share of fakes found against that of reals called fake, and where the threshold is. Both classes needed."""
    false, found, _ = roc_curve(labels, scores)
    called = scores > THRESHOLD
    at_threshold = called[~labels].mean(), called[labels].mean()
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="gray", label="chance")
    axes.plot(false, found, label=f"area under the curve {roc_auc_score(labels, scores):.3f}")
    text = "score above {}: {:.1%} of reals, {:.1%} of fakes".format(THRESHOLD, *at_threshold)
    axes.plot(*at_threshold, "o", color="black", label=text)
    axes.set(xlabel="reals called fake", ylabel="fakes found", aspect="equal", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def draw_reliability(scores: np.ndarray, labels: np.ndarray) -> Figure:
    """The share of fakes among the videos of each bin of scores; below, how many videos there are in it."""
    means, shares, _ = reliability(scores, labels)
    figure = Figure(figsize=(6, 7), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=(5, 1), sharex=True)
    axes.plot([0, 1], [0, 1], "--", color="gray", label="calibrated")
    axes.plot(means, shares, "o-", label="these scores")
    axes.set(ylabel="share of fakes", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    below.hist(scores, np.linspace(0, 1, BINS + 1), color="gray")
    below.set(xlabel="score (probability that the video is fake)", ylabel="videos")
    return figure


def save(figure: Figure, path: Path) -> None:
    """As PNG, whole or not at all. Raises OutputError."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
