"""Plots of video scores: ROC curve and reliability diagram. Arguments are as in `training.tools.metrics`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score, roc_curve

from common.files import atomic_file
from training.tools.metrics import BINS, THRESHOLD, reliability


def plot_roc(scores: np.ndarray, labels: np.ndarray) -> Figure:
    """Plot the ROC curve and the point at the threshold. Both classes are needed."""
    false_positives, true_positives, _ = roc_curve(labels, scores)
    called_fake = scores > THRESHOLD
    at_threshold = called_fake[~labels].mean(), called_fake[labels].mean()
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="gray", label="chance")
    axes.plot(false_positives, true_positives, label=f"area under the curve {roc_auc_score(labels, scores):.3f}")
    text = "score above {}: {:.1%} of reals, {:.1%} of fakes".format(THRESHOLD, *at_threshold)
    axes.plot(*at_threshold, "o", color="black", label=text)
    axes.set(xlabel="false positive rate (reals called fake)", ylabel="true positive rate (fakes found)")
    axes.set(aspect="equal", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def plot_reliability(scores: np.ndarray, labels: np.ndarray) -> Figure:
    """Plot the fraction of fakes in each bin of scores, above a histogram of the scores."""
    means, fractions, _ = reliability(scores, labels)
    figure = Figure(figsize=(6, 7), layout="constrained")
    axes, histogram = figure.subplots(2, 1, height_ratios=(5, 1), sharex=True)
    axes.plot([0, 1], [0, 1], "--", color="gray", label="perfectly calibrated")
    axes.plot(means, fractions, "o-", label="these scores")
    axes.set(ylabel="fraction of fakes", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    histogram.hist(scores, np.linspace(0, 1, BINS + 1), color="gray")
    histogram.set(xlabel="score (probability that the video is fake)", ylabel="videos")
    return figure


def save_plot(figure: Figure, path: Path) -> None:
    """Write a plot as PNG, atomically. Raises OutputError."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
