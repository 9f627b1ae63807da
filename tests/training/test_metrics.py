"""Metrics equal scikit-learn's or their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss

from training.tools.metrics import (
    bootstrap_intervals,
    class_losses,
    evaluate,
    expected_calibration_error,
    group_means,
    reliability,
)
from training.tools.plots import plot_reliability, plot_roc

RNG = np.random.default_rng(0)
LABELS = RNG.random(400) < 0.3
SCORES = np.clip(LABELS * 0.3 + RNG.random(400) * 0.7, 0, 1)


def test_log_losses() -> None:
    metrics = evaluate(SCORES, LABELS)
    fake, real = (log_loss(LABELS[m], SCORES[m], labels=[0, 1]) for m in (LABELS, ~LABELS))
    assert metrics["log_loss"] == pytest.approx(log_loss(LABELS, SCORES), rel=1e-9)
    assert metrics["balanced_log_loss"] == pytest.approx((fake + real) / 2, rel=1e-9)
    assert class_losses(SCORES, LABELS) == pytest.approx({"fake_loss": fake, "real_loss": real})


def test_auc_is_the_share_of_ordered_pairs() -> None:
    fakes, reals = SCORES[LABELS][:, None], SCORES[~LABELS][None]
    assert evaluate(SCORES, LABELS)["auc"] == pytest.approx(np.mean((fakes > reals) + 0.5 * (fakes == reals)))


def test_average_precision() -> None:
    """The precision at the score of each fake, averaged over the fakes."""
    precisions = [LABELS[score <= SCORES].mean() for score in SCORES[LABELS]]
    assert evaluate(SCORES, LABELS)["average_precision"] == pytest.approx(np.mean(precisions))


def test_accuracy_uses_the_threshold() -> None:
    metrics = evaluate(np.array([0.5, 0.51, 0.2, 0.9]), np.array([False, True, True, True]))
    assert (metrics["accuracy"], metrics["videos"]) == (0.75, 4)


def test_calibration_error_of_two_bins() -> None:
    """Means 0.2 and 0.8, shares of fakes 1/2 and 1, two scores each: (2 * 0.3 + 2 * 0.2) / 4."""
    scores, labels = np.array([0.1, 0.3, 0.7, 0.9]), np.array([0, 1, 1, 1])
    assert expected_calibration_error(scores, labels, bins=2) == pytest.approx(0.25)
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([0, 1])) == 0


def test_calibrated_scores_have_little_error() -> None:
    scores = RNG.random(200_000)
    assert expected_calibration_error(scores, RNG.random(200_000) < scores) < 0.01
    assert expected_calibration_error(scores, RNG.random(200_000) < scores**2) > 0.1


@pytest.mark.parametrize("label", [True, False])
def test_one_class(label: bool) -> None:
    """Metrics that need both classes are None; the published code failed on a fold with one class."""
    metrics = evaluate(np.array([0.2, 0.4]), np.array([label, label]))
    loss = metrics["balanced_log_loss"]
    assert loss == pytest.approx(-np.log([0.2, 0.4] if label else [0.8, 0.6]).mean())
    assert (metrics["auc"], metrics["average_precision"]) == (None, None)
    assert class_losses(np.array([0.2, 0.4]), np.array([label, label])) == {
        "fake_loss": pytest.approx(loss) if label else None,
        "real_loss": None if label else pytest.approx(loss),
    }


def test_log_loss_of_a_certain_error_is_finite() -> None:
    assert evaluate(np.array([0.0, 1.0]), np.array([True, True]))["log_loss"] == pytest.approx(-np.log(1e-15) / 2)


def test_group_means() -> None:
    numbers, means, frames = group_means(np.array([7, 2, 7, 7]), np.array([0.1, 0.5, 0.2, 0.6]))
    assert (numbers.tolist(), frames.tolist()) == ([2, 7], [1, 3])
    np.testing.assert_allclose(means, [0.5, 0.3])


def test_reliability_of_four_bins() -> None:
    """The second bin is empty; a score of 1 is in the last one."""
    means, shares, counts = reliability(np.array([0.1, 0.2, 0.6, 0.8, 1.0]), np.array([0, 1, 1, 0, 1]), bins=4)
    assert means == pytest.approx([0.15, 0.6, 0.9])
    assert shares == pytest.approx([0.5, 1, 0.5])
    assert counts.tolist() == [2, 1, 2]


def test_interval_of_independent_videos() -> None:
    """With one video per original, the accuracy has the normal approximation of the binomial interval."""
    scores = np.where(np.arange(400) < 280, 0.9, 0.1)
    low, high = bootstrap_intervals(scores, np.ones(400, bool), np.arange(400), samples=2000)["accuracy"]
    half = 1.96 * np.sqrt(0.7 * 0.3 / 400)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.006)


def test_originals_are_resampled_with_all_their_fakes() -> None:
    """Ten videos of one original that are all right or all wrong count like one video."""
    right, originals = np.repeat(np.arange(40) < 28, 10), np.repeat(np.arange(40), 10)
    low, high = bootstrap_intervals(np.where(right, 0.9, 0.1), np.ones(400, bool), originals, samples=1000)["accuracy"]
    half = 1.96 * np.sqrt(0.7 * 0.3 / 40)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.03)


def test_intervals_contain_the_metrics() -> None:
    metrics, bounds = evaluate(SCORES, LABELS), bootstrap_intervals(SCORES, LABELS, np.arange(400), samples=200)
    assert bounds.keys() == metrics.keys() - {"videos"}
    for name in ("auc", "log_loss", "average_precision"):
        assert bounds[name][0] < metrics[name] < bounds[name][1]
    assert bootstrap_intervals(SCORES[LABELS], LABELS[LABELS], np.arange(LABELS.sum()), samples=20)["auc"] is None


def test_samples_without_a_class_are_discarded() -> None:
    """With one fake at 0.02, every sample that has a fake has a balanced loss of at least half of -log 0.02."""
    scores, labels = np.array([0.01, 0.01, 0.02, 0.02]), np.array([False, False, False, True])
    low, high = bootstrap_intervals(scores, labels, np.arange(4), samples=300)["balanced_log_loss"]
    assert -np.log(0.02) / 2 < low <= high < -np.log(0.02) / 2 + 0.02


def test_plots_show_the_metrics() -> None:
    """The area under the curve, the point of the threshold with its legend, and the bins."""
    _, curve, threshold = plot_roc(SCORES, LABELS).axes[0].lines
    assert np.trapezoid(*curve.get_data()[::-1]) == pytest.approx(evaluate(SCORES, LABELS)["auc"])
    fakes, reals = np.mean(SCORES[LABELS] > 0.5), np.mean(SCORES[~LABELS] > 0.5)
    assert np.ravel(threshold.get_data()) == pytest.approx([reals, fakes])
    assert threshold.get_label() == f"score above 0.5: {reals:.1%} of reals, {fakes:.1%} of fakes"
    axes, histogram = plot_reliability(SCORES, LABELS).axes
    means, shares, counts = reliability(SCORES, LABELS)
    assert np.stack(axes.lines[1].get_data()) == pytest.approx(np.stack([means, shares]))
    assert [bar.get_height() for bar in histogram.patches if bar.get_height()] == counts.tolist()
