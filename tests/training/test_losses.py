"""Losses against their definitions in NumPy."""

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
    return loss(logits, labels, valid, loss.counts(labels, valid)).item()


def test_halves() -> None:
    losses = crossentropy(LOGITS, LABELS)
    expected = (losses[LABELS > 0.5].mean() + losses[LABELS < 0.5].mean()) / 2
    assert loss_of(BalancedLoss({"BinaryCrossentropy": 1})) == pytest.approx(expected, rel=1e-6)


def test_focal_loss() -> None:
    """Lin et al. (2017), with hard labels: -(1 - p_t)^2 log p_t."""
    labels = np.round(LABELS)
    p = 1 / (1 + np.exp(-LOGITS))
    right = np.where(labels > 0, p, 1 - p)
    expected = -((1 - right) ** 2) * np.log(right)
    np.testing.assert_allclose(focal_loss(torch.tensor(LOGITS), torch.tensor(labels)).numpy(), expected, rtol=1e-6)


def test_weights() -> None:
    parts = [loss_of(BalancedLoss({name: 1})) for name in ("BinaryCrossentropy", "FocalLoss")]
    both = loss_of(BalancedLoss({"BinaryCrossentropy": 0.7, "FocalLoss": 3}))
    assert both == pytest.approx(0.7 * parts[0] + 3 * parts[1], rel=1e-6)


def test_ohem() -> None:
    losses = crossentropy(LOGITS, LABELS)
    hardest = [np.sort(losses[members])[-2:].mean() for members in (LABELS > 0.5, LABELS < 0.5)]
    assert loss_of(BalancedLoss({"BinaryCrossentropy": 1}, ohem_samples=2)) == pytest.approx(np.mean(hardest), rel=1e-6)
    everything = loss_of(BalancedLoss({"BinaryCrossentropy": 1}))
    assert loss_of(BalancedLoss({"BinaryCrossentropy": 1}, ohem_samples=99)) == pytest.approx(everything, rel=1e-6)


@pytest.mark.parametrize("ohem", [None, 2])
@pytest.mark.parametrize("label", [0.01, 0.99])
def test_one_class(ohem: int | None, label: float) -> None:
    """Fault 32: a batch of one class halved the loss; with OHEM and no fakes it raised."""
    losses = crossentropy(LOGITS, np.full(7, label))
    expected = np.sort(losses)[-2:].mean() if ohem else losses.mean()
    found = loss_of(BalancedLoss({"BinaryCrossentropy": 1}, ohem), labels=np.full(7, label))
    assert found == pytest.approx(expected, rel=1e-6)


def test_nothing_that_counts() -> None:
    logits = torch.zeros(3, requires_grad=True)
    labels, valid = torch.ones(3), torch.zeros(3, dtype=torch.bool)
    loss = BalancedLoss({"BinaryCrossentropy": 1})
    total = loss(logits, labels, valid, loss.counts(labels, valid))
    total.backward()
    assert total == 0
    assert torch.equal(logits.grad, torch.zeros(3))


def test_invalid_samples_count_for_nothing() -> None:
    valid = np.array([True, False, True, True, False, True, True])
    expected = loss_of(BalancedLoss({"FocalLoss": 1}), LOGITS[valid], LABELS[valid])
    assert loss_of(BalancedLoss({"FocalLoss": 1}), valid=valid) == pytest.approx(expected, rel=1e-6)


def test_parts_add_up_to_the_whole() -> None:
    """However a batch is divided, also where a part has one class only: value and gradient are those of the whole."""
    loss = BalancedLoss({"BinaryCrossentropy": 1})
    labels, valid = torch.tensor(LABELS), torch.ones(7, dtype=torch.bool)
    counts = loss.counts(labels, valid)
    whole = torch.tensor(LOGITS, requires_grad=True)
    loss(whole, labels, valid, counts).backward()
    divided = torch.tensor(LOGITS, requires_grad=True)
    order = torch.tensor([0, 2, 4, 1, 3, 6, 5])
    parts = [loss(divided[part], labels[part], valid[part], counts) for part in (order[:3], order[3:5], order[5:])]
    sum(parts).backward()
    assert sum(parts).item() == pytest.approx(loss_of(loss), rel=1e-6)
    torch.testing.assert_close(divided.grad, whole.grad)


def test_mask_loss() -> None:
    """Only where the mask is known; the mean over the pixels."""
    random = np.random.default_rng(0)
    drawn, masks = random.normal(size=(3, 1, 4, 5)), random.integers(0, 256, (3, 4, 5))
    expected = 2 * crossentropy(drawn[:2, 0], masks[:2] / 255).mean()
    known = torch.tensor([True, True, False])
    loss = BalancedLoss({"BinaryCrossentropy": 1, "MaskBinaryCrossentropy": 2})
    assert loss.of_mask(torch.tensor(drawn), torch.tensor(masks), known).item() == pytest.approx(expected, rel=1e-6)
