"""What training minimises.

Losses are values a sample, of logits (n,) and labels (n,) in 0 to 1 (1: fake; smoothed ones lie between).
`BalancedLoss` averages them: fakes and reals count half and half, however many there are of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

GAMMA = 2  # of the focal loss, as in its paper


def binary_crossentropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return binary_cross_entropy_with_logits(logits, labels, reduction="none")


def focal_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(1 - p)^2 * -log p, with p the probability given to the label. Lin et al., Focal Loss, ICCV 2017."""
    crossentropy = binary_crossentropy(logits, labels)
    return (1 - torch.exp(-crossentropy)) ** GAMMA * crossentropy


LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "BinaryCrossentropy": binary_crossentropy,
    "FocalLoss": focal_loss,
}
# Of the mask that a network draws, beside those of its logit.
MASK_LOSS = "MaskBinaryCrossentropy"


class BalancedLoss:
    """The weighted sum of losses, averaged over the fakes and over the reals, and these two half and half.

    `weights`: by the losses' names. `ohem_samples`: only so many of the hardest of each class count, in each
    process (online hard example mining, Shrivastava et al., CVPR 2016).

    Where a batch is divided among processes, or into parts, each divides its sum by the `counts` of the whole
    batch: so the sum over all is the loss of the whole batch, whatever class is missing in one of them.
    """

    def __init__(self, weights: Mapping[str, float], ohem_samples: int | None = None):
        self.weights = {LOSSES[name]: weight for name, weight in weights.items() if name != MASK_LOSS}
        self.mask_weight = weights.get(MASK_LOSS, 0.0)
        self.ohem_samples = ohem_samples

    def counts(self, labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Float (2,): how many reals and fakes count, of labels (n,) and bool (n,) `valid`."""
        classes = torch.stack([members.sum() for members in _classes(labels, valid)]).float()
        return classes.clamp(max=self.ohem_samples) if self.ohem_samples else classes

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """This part's share of the loss of the batch with these counts; a scalar, 0 where nothing counts."""
        losses = sum(weight * loss(logits, labels) for loss, weight in self.weights.items())
        total = losses.new_zeros(())
        for members, count in zip(_classes(labels, valid), counts, strict=True):
            chosen = losses[members]
            if self.ohem_samples:
                chosen = chosen.topk(min(self.ohem_samples, len(chosen)), sorted=False).values
            total = total + chosen.sum() / count.clamp(min=1)
        return total / (counts > 0).sum().clamp(min=1)

    def of_mask(self, drawn: torch.Tensor, masks: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of mask logits (n, 1, height, width) with masks (n, height, width) uint8, where known (n,)."""
        losses = binary_crossentropy(drawn[:, 0], masks.float() / 255).mean(dim=(1, 2))
        return self.mask_weight * (losses * known).sum() / known.sum().clamp(min=1)


def _classes(labels: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    fake = labels > 0.5
    return ~fake & valid, fake & valid
