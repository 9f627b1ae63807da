"""How good the scores of videos are: the one home of every figure that is reported.

Scores are probabilities of being fake, float (n,) in 0 to 1; labels are bool or 0 and 1, (n,), 1 = fake.
A figure that needs both classes is None where one is missing.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from common.files import atomic_file

if TYPE_CHECKING:
    from training.datasets.folds import Crops

# Scores are kept so far from 0 and 1, as in the scikit-learn of 2020: a wrong certainty costs 34.5, not infinity.
CLIP = 1e-15
# The score above which a video is called fake.
THRESHOLD = 0.5
# Of the calibration error.
BINS = 15
# Of the confidence intervals.
COVERAGE = 0.95


class VideoScores(NamedTuple):
    """`videos`, `originals`: ids; `scores` (n,): mean probability over the `frames` (n,); `fake`: bool (n,)."""

    videos: list[str]
    originals: list[str]
    scores: np.ndarray
    frames: np.ndarray
    fake: np.ndarray

    @classmethod
    def from_crops(cls, crops: Crops, rows: np.ndarray, scores: np.ndarray) -> VideoScores:
        """From the scores (m,) of the crops in `rows` (m,)."""
        numbers, means, frames = mean_by_video(crops.video[rows], scores)
        first = rows[np.unique(crops.video[rows], return_index=True)[1]]
        videos, originals = ([crops.videos[number] for number in ids] for ids in (numbers, crops.original[first]))
        return cls(videos, originals, means, frames, crops.fake[first])


def write_scores(path: Path, scores: VideoScores) -> None:
    """Write a CSV with the columns video, label (1 = fake), score (probability of fake), frames."""
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("video", "label", "score", "frames"))
        columns = (scores.videos, scores.fake.astype(int), scores.scores, scores.frames)
        rows.writerows(zip(*columns, strict=True))


def evaluate(scores: np.ndarray, labels: np.ndarray) -> dict[str, float | int | None]:
    """The figures of a report, by their names.

    `balanced_log_loss`: the mean of the log losses over the fakes and over the reals, by which the winning solution's
    checkpoints were chosen; of a single class, its loss.
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
    """`fake_loss` and `real_loss`: the log loss over each class."""
    losses = log_losses(scores, labels)
    return {
        name: float(losses[members].mean()) if members.any() else None
        for name, members in (("fake_loss", labels), ("real_loss", ~labels))
    }


def log_losses(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log of the probability given to each label."""
    return -np.log(np.clip(np.where(labels, scores, 1 - scores), CLIP, 1 - CLIP))


def expected_calibration_error(scores: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """How far the scores in bins of equal width are, on average, from the share of fakes among them.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, of the probability of being fake.
    """
    means, shares, counts = reliability(scores, labels, bins)
    return float(np.abs(means - shares) @ counts / len(scores))


def reliability(scores: np.ndarray, labels: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the bins of equal width, those that hold scores: their mean score, the share of fakes, how many."""
    bin_of = np.minimum((scores * bins).astype(int), bins - 1)
    _, shares, counts = mean_by_video(bin_of, labels)
    return mean_by_video(bin_of, scores)[1], shares, counts


def intervals(
    scores: np.ndarray, labels: np.ndarray, originals: Sequence, draws: int, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """The bootstrap interval of each figure of `evaluate`, over `draws` samples of as many originals, with their fakes.

    `originals`: (n,), of each video the original that it is or was made of. Samples that lack a class are drawn again.
    """
    _, number, videos = np.unique(originals, return_inverse=True, return_counts=True)
    videos_of = np.split(np.argsort(number, kind="stable"), np.cumsum(videos)[:-1])
    random = np.random.default_rng(seed)
    drawn = []
    while len(drawn) < draws:
        rows = np.concatenate([videos_of[one] for one in random.integers(len(videos_of), size=len(videos_of))])
        if labels[rows].any() == labels.any() and labels[rows].all() == labels.all():
            drawn.append(evaluate(scores[rows], labels[rows]))
    tails = [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]
    return {
        name: None if value is None else tuple(np.quantile([figures[name] for figures in drawn], tails).tolist())
        for name, value in drawn[0].items()
        if name != "videos"
    }


def mean_by_video(videos: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of frames' scores (n,) and the numbers of their videos (n,): the videos' numbers, mean scores, frame counts."""
    numbers, place, frames = np.unique(videos, return_inverse=True, return_counts=True)
    return numbers, np.bincount(place, weights=scores) / frames, frames
