"""Augmentation and dropout have the distributions of an independent implementation of their description."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.support.compare_augmentations import COMPARISONS, distribution, share

SAMPLES = 1000


@pytest.mark.parametrize("compare", COMPARISONS)
def test_distributions(compare: Callable) -> None:
    rows = list(compare(SAMPLES, np.random.default_rng(1)))
    assert rows
    assert [row for row in rows if not row.agrees] == []


def test_wrong_distributions_are_noticed() -> None:
    """Half of a probability, a range that is a fifth wider, and another shape with the same mean."""
    rng = np.random.default_rng(0)
    assert share("", list(rng.random(SAMPLES) < 0.2), 0.2).agrees
    assert not share("", list(rng.random(SAMPLES) < 0.1), 0.2).agrees
    uniform = list(rng.uniform(0, 1, SAMPLES))
    assert distribution("", uniform, list(rng.uniform(0, 1, SAMPLES))).agrees
    assert not distribution("", uniform, list(rng.uniform(0, 1.2, SAMPLES))).agrees
    assert not distribution("", uniform, list(rng.normal(0.5, 0.15, SAMPLES))).agrees
