"""Losses equal their definitions in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.losses import BalancedLoss, focal_loss

LOGITS = np.array([-3.0, -0.5, 0.2, 1.5, 4.0, -2.0, 0.0])
LABELS = np.array([0.01, 0.99, 0.01, 0.99, 0.01, 0.99, 0.01])


def crossentropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    p = 1 / (1 + np.exp(-logits))
    return -labels * np.log(p) - (1 - labels) * np.log(1 - p)


def loss_of(loss: BalancedLoss, logits=LOGITS, labels=LABELS, valid=None) -> float:
    logits, labels = torch.tensor(logits), torch.tensor(labels)
    valid = torch.ones(len(labels), dtype=torch.bool) if valid is None else torch.tensor(valid)
    return loss(logits, labels, valid, loss.class_counts(labels, valid)).item()


def test_classes_have_equal_weight() -> None:
    losses = crossentropy(LOGITS, LABELS)
    expected = (losses[LABELS > 0.5].mean() + losses[LABELS < 0.5].mean()) / 2
    assert loss_of(BalancedLoss({"BinaryCrossentropy": 1})) == pytest.approx(expected, rel=1e-6)


def test_focal_loss_equals_the_paper() -> None:
    """With labels of 0 and 1: -(1 - p_t)^gamma log p_t. The published gamma is 3, the paper's 2."""
    labels = np.round(LABELS)
    p = 1 / (1 + np.exp(-LOGITS))
    right = np.where(labels > 0, p, 1 - p)
    for options, gamma in (({}, 3), ({"gamma": 2}, 2)):
        expected = -((1 - right) ** gamma) * np.log(right)
        found = focal_loss(torch.tensor(LOGITS), torch.tensor(labels), **options)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_losses_are_weighted() -> None:
    parts = [loss_of(BalancedLoss({name: 1})) for name in ("BinaryCrossentropy", "FocalLoss")]
    both = loss_of(BalancedLoss({"BinaryCrossentropy": 0.7, "FocalLoss": 3}))
    assert both == pytest.approx(0.7 * parts[0] + 3 * parts[1], rel=1e-6)


def test_gamma_of_the_configured_focal_loss() -> None:
    losses = [loss_of(BalancedLoss({"FocalLoss": 1}, focal_gamma=gamma)) for gamma in (0, 2, 3)]
    assert losses[0] == pytest.approx(loss_of(BalancedLoss({"BinaryCrossentropy": 1})), rel=1e-6)
    assert losses[0] > losses[1] > losses[2] == loss_of(BalancedLoss({"FocalLoss": 1}))


def test_ohem_keeps_the_hardest_of_each_class() -> None:
    losses = crossentropy(LOGITS, LABELS)
    hardest = [np.sort(losses[members])[-2:].mean() for members in (LABELS > 0.5, LABELS < 0.5)]
    assert loss_of(BalancedLoss({"BinaryCrossentropy": 1}, ohem_samples=2)) == pytest.approx(np.mean(hardest), rel=1e-6)
    everything = loss_of(BalancedLoss({"BinaryCrossentropy": 1}))
    assert loss_of(BalancedLoss({"BinaryCrossentropy": 1}, ohem_samples=99)) == pytest.approx(everything, rel=1e-6)


@pytest.mark.parametrize("ohem", [None, 2])
@pytest.mark.parametrize("label", [0.01, 0.99])
def test_batch_of_one_class(ohem: int | None, label: float) -> None:
    """In the published code, a batch of one class had half the loss, and OHEM failed without fakes."""
    losses = crossentropy(LOGITS, np.full(7, label))
    expected = np.sort(losses)[-2:].mean() if ohem else losses.mean()
    found = loss_of(BalancedLoss({"BinaryCrossentropy": 1}, ohem), labels=np.full(7, label))
    assert found == pytest.approx(expected, rel=1e-6)


def test_no_valid_samples_give_zero_loss_and_gradient() -> None:
    logits = torch.zeros(3, requires_grad=True)
    labels, valid = torch.ones(3), torch.zeros(3, dtype=torch.bool)
    loss = BalancedLoss({"BinaryCrossentropy": 1})
    total = loss(logits, labels, valid, loss.class_counts(labels, valid))
    total.backward()
    assert total == 0
    assert torch.equal(logits.grad, torch.zeros(3))


def test_invalid_samples_are_ignored() -> None:
    valid = np.array([True, False, True, True, False, True, True])
    expected = loss_of(BalancedLoss({"FocalLoss": 1}), LOGITS[valid], LABELS[valid])
    assert loss_of(BalancedLoss({"FocalLoss": 1}), valid=valid) == pytest.approx(expected, rel=1e-6)


def test_parts_add_up_to_the_whole_batch() -> None:
    """Loss and gradient do not depend on how a batch is divided, even if a part has a single class."""
    loss = BalancedLoss({"BinaryCrossentropy": 1})
    labels, valid = torch.tensor(LABELS), torch.ones(7, dtype=torch.bool)
    counts = loss.class_counts(labels, valid)
    whole = torch.tensor(LOGITS, requires_grad=True)
    loss(whole, labels, valid, counts).backward()
    divided = torch.tensor(LOGITS, requires_grad=True)
    order = torch.tensor([0, 2, 4, 1, 3, 6, 5])
    parts = [loss(divided[part], labels[part], valid[part], counts) for part in (order[:3], order[3:5], order[5:])]
    sum(parts).backward()
    assert sum(parts).item() == pytest.approx(loss_of(loss), rel=1e-6)
    torch.testing.assert_close(divided.grad, whole.grad)


def test_mask_loss_is_the_mean_over_known_masks() -> None:
    rng = np.random.default_rng(0)
    mask_logits, masks = rng.normal(size=(3, 1, 4, 5)), rng.integers(0, 256, (3, 4, 5))
    expected = 2 * crossentropy(mask_logits[:2, 0], masks[:2] / 255).mean()
    known = torch.tensor([True, True, False])
    loss = BalancedLoss({"BinaryCrossentropy": 1, "MaskBinaryCrossentropy": 2})
    found = loss.mask_loss(torch.tensor(mask_logits), torch.tensor(masks), known)
    assert found.item() == pytest.approx(expected, rel=1e-6)
