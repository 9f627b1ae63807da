"""Training losses.

Losses take logits (n,) and labels (n,), 1 = fake, and return one value per sample. Smoothed labels lie between 0 and 1.
`BalancedLoss` combines the losses and averages over the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

# Focusing parameter of the focal loss in the winning solution. The paper recommends 2.
GAMMA = 3.0


def binary_crossentropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of each element."""
    return binary_cross_entropy_with_logits(logits, labels, reduction="none")


def focal_loss(logits: torch.Tensor, labels: torch.Tensor, gamma: float = GAMMA) -> torch.Tensor:
    """Return (1 - p)^gamma * -log p, where p is the probability of the label (Lin et al., Focal Loss, ICCV 2017)."""
    crossentropy = binary_crossentropy(logits, labels)
    return (1 - torch.exp(-crossentropy)) ** gamma * crossentropy


LOSSES: dict[str, Callable[..., torch.Tensor]] = {"BinaryCrossentropy": binary_crossentropy, "FocalLoss": focal_loss}
# Name of the loss on a network's mask, which is added to the losses on its logit.
MASK_LOSS = "MaskBinaryCrossentropy"


class BalancedLoss:
    """Weighted sum of losses in which the mean over fakes and the mean over reals have equal weight.

    A batch may be divided among processes or into parts. Each part divides its sum by the `class_counts` of the whole
    batch, so that the results add up to the loss of the whole batch even if a part lacks a class.

    Args:
        weights: weights of the losses, by name (keys of LOSSES, and MASK_LOSS).
        ohem_samples: number of hardest samples of each class to use per process (online hard example mining,
            Shrivastava et al., CVPR 2016); None for all.
        focal_gamma: focusing parameter of the focal loss.
    """

    def __init__(self, weights: Mapping[str, float], ohem_samples: int | None = None, focal_gamma: float = GAMMA):
        losses = LOSSES | {"FocalLoss": partial(focal_loss, gamma=focal_gamma)}
        self.weights = {losses[name]: weight for name, weight in weights.items() if name != MASK_LOSS}
        self.mask_weight = weights.get(MASK_LOSS, 0.0)
        self.ohem_samples = ohem_samples

    def class_counts(self, labels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return the numbers of real and fake samples that contribute to the loss, float32 (2,).

        Args:
            labels: (n,).
            valid: bool (n,), samples that may contribute.
        """
        counts = torch.stack([members.sum() for members in _split_classes(labels, valid)]).float()
        return counts.clamp(max=self.ohem_samples) if self.ohem_samples else counts

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, valid: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """Return the contribution of these samples to the loss of the batch, a scalar; 0 if no sample counts.

        Args:
            logits: (n,).
            labels: (n,).
            valid: bool (n,), samples that may contribute.
            counts: `class_counts` of the whole batch.
        """
        weighted = (weight * loss(logits, labels) for loss, weight in self.weights.items())
        losses = sum(weighted, start=torch.zeros_like(logits))
        total = losses.new_zeros(())
        for members, count in zip(_split_classes(labels, valid), counts, strict=True):
            # Sizes that depend on values, as of losses[members], would wait for the GPU.
            class_losses = losses.where(members, 0)
            if self.ohem_samples:
                hardest = losses.where(members, -torch.inf).topk(min(self.ohem_samples, len(losses)), sorted=False)
                class_losses = class_losses[hardest.indices]
            total = total + class_losses.sum() / count.clamp(min=1)
        return total / (counts > 0).sum().clamp(min=1)

    def mask_loss(self, mask_logits: torch.Tensor, masks: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean cross-entropy of the known masks, a scalar; 0 if no mask is known.

        Args:
            mask_logits: (n, 1, height, width).
            masks: uint8 (n, height, width), 255 = manipulated.
            known: bool (n,).
        """
        losses = binary_crossentropy(mask_logits[:, 0], masks.float() / 255).mean(dim=(1, 2))
        return self.mask_weight * (losses * known).sum() / known.sum().clamp(min=1)


def _split_classes(labels: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which samples are (valid and real, valid and fake), bool (n,) each."""
    fake = labels > 0.5
    return ~fake & valid, fake & valid
