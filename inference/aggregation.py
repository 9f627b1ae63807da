"""From the scores of a video's faces to one probability that the video is fake."""

from __future__ import annotations

import numpy as np

# Constants of the winning solution.
FRAMES = 32  # per video
CONFIDENT_FAKE = 0.8
CONFIDENT_REAL = 0.2
MIN_FAKES = 11
FAKE_SHARE = 2.5
REAL_SHARE = 0.9


def confident_strategy(scores: np.ndarray) -> float:
    """The mean of the confident scores where they are many, else of all. `scores`: (n,), n >= 1, 0 to 1.

    Fakes are many when more than MIN_FAKES and more than n // FAKE_SHARE exceed CONFIDENT_FAKE; reals
    when more than REAL_SHARE of all lie under CONFIDENT_REAL. A swap may be seen in a part of the frames
    only, so fakes are asked first and in a smaller share.
    """
    scores = _checked(scores)
    fakes = scores[scores > CONFIDENT_FAKE]
    reals = scores[scores < CONFIDENT_REAL]
    if len(fakes) > len(scores) // FAKE_SHARE and len(fakes) > MIN_FAKES:
        return float(fakes.mean())
    if len(reals) > REAL_SHARE * len(scores):
        return float(reals.mean())
    return float(scores.mean())


def mean_strategy(scores: np.ndarray) -> float:
    """The plain mean. `scores`: (n,), n >= 1, 0 to 1."""
    return float(_checked(scores).mean())


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"need a row of finite scores, got {scores}")
    return scores


STRATEGIES = {"confident": confident_strategy, "mean": mean_strategy}
