"""Metrics of video scores.

Scores are probabilities of being fake, float (n,), 0 to 1. Labels are bool or 0 and 1, (n,), 1 = fake. Metrics that
need both classes are None if one is missing.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from common.files import atomic_file
from training.datasets.people import groups_of

if TYPE_CHECKING:
    from training.datasets.folds import Crops

Metrics = dict[str, float | int | None]

# Scores are clipped to [EPS, 1 - EPS] as in the scikit-learn of 2020: a wrong score of 0 or 1 costs 34.5.
EPS = 1e-15
# A video counts as fake if its score is above this.
THRESHOLD = 0.5
# Number of bins of the calibration error and of the reliability diagram.
BINS = 15
# Confidence level of the bootstrap intervals.
CONFIDENCE_LEVEL = 0.95


class VideoScores(NamedTuple):
    """Scores and labels of n videos.

    Attributes:
        videos: ids.
        groups: what each video is resampled with: the person in it or, if people are not known, its original; a real
            video is its own original.
        scores: (n,), mean score of a video's frames.
        frames: (n,), number of frames.
        fake: bool (n,).
    """

    videos: list[str]
    groups: list[str]
    scores: np.ndarray
    frames: np.ndarray
    fake: np.ndarray

    @classmethod
    def from_crops(
        cls, crops: Crops, rows: np.ndarray, scores: np.ndarray, people: Mapping[str, str] | None = None
    ) -> VideoScores:
        """Average the scores (m,) of the crops in `rows` (m,) by video. `people`: person by original, if known."""
        ids, means, frames = group_means(crops.video[rows], scores)
        first = rows[np.unique(crops.video[rows], return_index=True)[1]]
        return cls(
            videos=[crops.videos[video] for video in ids],
            groups=groups_of(crops.originals(first), people),
            scores=means,
            frames=frames,
            fake=crops.fake[first],
        )


def write_scores(path: Path, scores: VideoScores) -> None:
    """Write a CSV file with the columns video, label (1 = fake), score and frames. Raises OutputError.

    Names of videos that are not valid UTF-8 keep their bytes.
    """
    with (
        atomic_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("video", "label", "score", "frames"))
        columns = (scores.videos, scores.fake.astype(int), scores.scores, scores.frames)
        rows.writerows(zip(*columns, strict=True))


def evaluate(scores: np.ndarray, labels: np.ndarray) -> Metrics:
    """Compute all metrics by name.

    `balanced_log_loss` is the mean of the log losses of real and fake videos, by which the winning solution selected
    checkpoints; with a single class, it is that class' log loss.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, bool)
    by_class = [loss for loss in class_losses(scores, labels).values() if loss is not None]
    both = len(by_class) == 2
    return {
        "balanced_log_loss": float(np.mean(by_class)),
        "log_loss": float(log_losses(scores, labels).mean()),
        "auc": float(roc_auc_score(labels, scores)) if both else None,
        "average_precision": float(average_precision_score(labels, scores)) if both else None,
        "accuracy": float(np.mean((scores > THRESHOLD) == labels)),
        "ece": expected_calibration_error(scores, labels),
        "videos": len(scores),
    }


def class_losses(scores: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Compute `fake_loss` and `real_loss`, the log loss of each class."""
    losses = log_losses(scores, labels)
    return {
        name: float(losses[members].mean()) if members.any() else None
        for name, members in (("fake_loss", labels), ("real_loss", ~labels))
    }


def log_losses(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the log loss of each video (n,)."""
    return -np.log(np.clip(np.where(labels, scores, 1 - scores), EPS, 1 - EPS))


def expected_calibration_error(scores: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Compute the mean distance between the scores and the fractions of fakes in bins of equal width.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, applied to the probability of being fake.
    """
    means, fractions, counts = reliability(scores, labels, bins)
    return float(np.abs(means - fractions) @ counts / len(scores))


def reliability(scores: np.ndarray, labels: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the mean score, the fraction of fakes and the number of videos of each bin that is not empty."""
    bin_of = np.minimum((scores * bins).astype(int), bins - 1)
    _, means, counts = group_means(bin_of, scores)
    _, fractions, _ = group_means(bin_of, labels)
    return means, fractions, counts


def bootstrap_intervals(
    scores: np.ndarray, labels: np.ndarray, groups: Sequence, samples: int, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """Compute the percentile bootstrap interval of each metric, resampling groups of videos.

    Samples that lack a class that the data has are discarded.

    Args:
        scores: (n,).
        labels: (n,).
        groups: (n,), the group of each video, see `VideoScores`.
        samples: number of bootstrap samples.
        seed: random seed.

    Returns:
        (low, high) by metric; None where the metric is None.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    rng = np.random.default_rng(seed)
    results: list[Metrics] = []
    while len(results) < samples:
        rows = np.concatenate([members[index] for index in rng.integers(len(members), size=len(members))])
        if labels[rows].any() == labels.any() and labels[rows].all() == labels.all():
            results.append(evaluate(scores[rows], labels[rows]))
    return {name: _interval([result[name] for result in results]) for name in results[0] if name != "videos"}


def _interval(values: list[float | int | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = np.quantile(known, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return float(low), float(high)


def group_means(groups: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average values (n,) by their integer groups (n,). Return the groups in order, the means and the counts."""
    ids, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return ids, np.bincount(index, weights=values) / counts, counts
