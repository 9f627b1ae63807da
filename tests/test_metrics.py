"""Figures against scikit-learn's log loss, and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss

from training.tools.metrics import class_losses, evaluate, expected_calibration_error, mean_by_video

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.random(400) < 0.3
SCORES = np.clip(LABELS * 0.3 + RANDOM.random(400) * 0.7, 0, 1)


def test_log_losses() -> None:
    figures = evaluate(SCORES, LABELS)
    fake, real = (log_loss(LABELS[m], SCORES[m], labels=[0, 1]) for m in (LABELS, ~LABELS))
    assert figures["log_loss"] == pytest.approx(log_loss(LABELS, SCORES), rel=1e-9)
    assert figures["balanced_log_loss"] == pytest.approx((fake + real) / 2, rel=1e-9)
    assert class_losses(SCORES, LABELS) == pytest.approx({"fake_loss": fake, "real_loss": real})


def test_auc_is_the_share_of_pairs_in_order() -> None:
    fakes, reals = SCORES[LABELS][:, None], SCORES[~LABELS][None]
    assert evaluate(SCORES, LABELS)["auc"] == pytest.approx(np.mean((fakes > reals) + 0.5 * (fakes == reals)))


def test_average_precision() -> None:
    """The mean, over the fakes, of the precision at their score."""
    precisions = [LABELS[score <= SCORES].mean() for score in SCORES[LABELS]]
    assert evaluate(SCORES, LABELS)["average_precision"] == pytest.approx(np.mean(precisions))


def test_accuracy_and_count() -> None:
    figures = evaluate(np.array([0.5, 0.51, 0.2, 0.9]), np.array([False, True, True, True]))
    assert (figures["accuracy"], figures["videos"]) == (0.75, 4)


def test_calibration_error_by_hand() -> None:
    """Bins of 0.5: means 0.2 and 0.8, shares 1/2 and 1, of two and two: (2 * 0.3 + 2 * 0.2) / 4."""
    scores, labels = np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 1, 1, 1])
    assert expected_calibration_error(scores, labels, bins=2) == pytest.approx(0.25)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0


def test_a_calibrated_score_has_little_error() -> None:
    scores = RANDOM.random(200_000)
    assert expected_calibration_error(scores, RANDOM.random(200_000) < scores) < 0.01
    assert expected_calibration_error(scores, RANDOM.random(200_000) < scores**2) > 0.1


@pytest.mark.parametrize("label", [True, False])
def test_one_class(label: bool) -> None:
    """Fault 32: a fold with one class raised. Figures that need both are None."""
    figures = evaluate(np.array([0.2, 0.4]), np.array([label, label]))
    own = figures["balanced_log_loss"]
    assert own == pytest.approx(-np.log([0.2, 0.4] if label else [0.8, 0.6]).mean())
    assert (figures["auc"], figures["average_precision"]) == (None, None)
    assert class_losses(np.array([0.2, 0.4]), np.array([label, label])) == {
        "fake_loss": pytest.approx(own) if label else None,
        "real_loss": None if label else pytest.approx(own),
    }


def test_certainty_has_a_finite_price() -> None:
    assert evaluate(np.array([0.0, 1.0]), np.array([True, True]))["log_loss"] == pytest.approx(-np.log(1e-15) / 2)


def test_mean_by_video() -> None:
    numbers, means, frames = mean_by_video(np.array([7, 2, 7, 7]), np.array([0.1, 0.5, 0.2, 0.6]))
    assert (numbers.tolist(), frames.tolist()) == ([2, 7], [1, 3])
    np.testing.assert_allclose(means, [0.5, 0.3])
