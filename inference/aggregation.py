"""Aggregation of a video's face scores into the probability that the video is fake."""

from __future__ import annotations

import numpy as np

# Constants of the winning solution.
FRAMES = 32  # frames sampled per video
CONFIDENT_FAKE = 0.8  # scores above are confident fakes
CONFIDENT_REAL = 0.2  # scores below are confident reals
MIN_FAKES = 11  # for n scores, confident fakes decide if there are more than this
FAKE_DIVISOR = 2.5  # ... and more than n // FAKE_DIVISOR
REAL_FRACTION = 0.9  # otherwise, confident reals decide if they are more than this fraction of n


def confident_strategy(scores: np.ndarray) -> float:
    """Return the mean of the confident scores if there are enough of them, else the mean of all scores.

    Confident fakes are checked first and need a smaller fraction than confident reals, because a face swap may be
    visible in some frames only.

    Args:
        scores: (n,), n >= 1, probabilities from 0 to 1.

    Raises:
        ValueError: the scores are empty, not finite or not one-dimensional.
    """
    scores = _check(scores)
    fakes = scores[scores > CONFIDENT_FAKE]
    reals = scores[scores < CONFIDENT_REAL]
    if len(fakes) > len(scores) // FAKE_DIVISOR and len(fakes) > MIN_FAKES:
        return float(fakes.mean())
    if len(reals) > REAL_FRACTION * len(scores):
        return float(reals.mean())
    return float(scores.mean())


def mean_strategy(scores: np.ndarray) -> float:
    """Return the mean of all scores. Arguments and errors are those of `confident_strategy`."""
    return float(_check(scores).mean())


def _check(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"expected a non-empty 1-D array of finite scores, got {scores}")
    return scores


STRATEGIES = {"confident": confident_strategy, "mean": mean_strategy}
