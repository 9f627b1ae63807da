"""From face scores to a video's score."""

from __future__ import annotations

import numpy as np
import pytest

from inference.aggregation import STRATEGIES, confident_strategy, mean_strategy


@pytest.mark.parametrize(
    ("fakes", "others", "other_score", "expected"),
    [
        (12, 17, 0.5, "fakes"),  # 29 // 2.5 = 11, and 12 > 11
        (12, 18, 0.5, "all"),  # 30 // 2.5 = 12, and 12 is not more
        (13, 18, 0.5, "fakes"),  # 31 // 2.5 = 12
        (11, 0, 0.5, "all"),  # 11 is not more than 11
        (12, 0, 0.5, "fakes"),
        (1, 0, 0.5, "all"),
        (0, 1, 0.1, "reals"),
        (3, 29, 0.1, "reals"),  # 29 of 32 exceed 28.8
        (4, 28, 0.1, "all"),
        (2, 18, 0.1, "all"),  # 18 of 20 do not exceed 18
        (0, 32, 0.2, "all"),  # 0.2 is not below 0.2
    ],
)
def test_confident_strategy(fakes: int, others: int, other_score: float, expected: str):
    scores = np.array([0.9] * fakes + [other_score] * others)
    scores += np.linspace(-0.01, 0, len(scores)) * (other_score != 0.2)
    np.random.default_rng(0).shuffle(scores)
    chosen = {"fakes": scores[scores > 0.8], "reals": scores[scores < 0.2], "all": scores}[expected]
    assert confident_strategy(scores) == pytest.approx(sum(chosen.tolist()) / len(chosen), abs=1e-12)


def test_mean_strategy():
    assert mean_strategy(np.array([0.9] * 12 + [0.1])) == pytest.approx((0.9 * 12 + 0.1) / 13)


@pytest.mark.parametrize("strategy", STRATEGIES.values())
@pytest.mark.parametrize("scores", [[], [0.5, float("nan")], [[0.5]]])
def test_invalid_scores_are_an_error(strategy, scores: list):
    with pytest.raises(ValueError, match="finite scores"):
        strategy(np.array(scores))
