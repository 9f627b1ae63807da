"""Classifiers of face crops: encoder, pooling, dropout and one logit (positive = fake).

Attribute names are the keys of the released checkpoints' state dicts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training.zoo.encoders import build_encoder

# Noise filters for manipulation detection (Zhou et al., Learning Rich Features for Image Manipulation Detection,
# CVPR 2018): a second-order horizontal difference, a 3x3 high-pass filter and a 5x5 high-pass filter.
SRM_KERNELS = (
    torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, -2, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]) / 2,
    torch.tensor([[0, 0, 0, 0, 0], [0, -1, 2, -1, 0], [0, 2, -4, 2, 0], [0, -1, 2, -1, 0], [0, 0, 0, 0, 0]]) / 4,
    torch.tensor([[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]])
    / 12,
)


class DeepFakeClassifier(nn.Module):
    """The winning solution's network and the base class of all others.

    Input: normalized images (n, 3, height, width). Output: logits (n, 1).

    Args:
        encoder: key of `training.zoo.encoders.ENCODERS`.
        dropout_rate: dropout rate before the last layer.
        options: further arguments of `training.zoo.encoders.build_encoder`.
    """

    def __init__(self, encoder: str, dropout_rate: float = 0.0, **options: Any):
        super().__init__()
        self.encoder = build_encoder(encoder, **options)
        self.avg_pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(self.encoder.num_features, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the logits; networks with a decoder return (logits, mask logits)."""
        return self.classify(self.encoder.forward_features(images))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, 1) of the encoder's last feature map."""
        return self.fc(self.dropout(self.avg_pool(features).flatten(1)))


class DeepFakeClassifierSRM(DeepFakeClassifier):
    """DeepFakeClassifier on the output of three fixed noise filters (SRM)."""

    def __init__(self, encoder: str, dropout_rate: float = 0.5, **options: Any):
        super().__init__(encoder, dropout_rate, **options)
        self.srm_conv = nn.Conv2d(3, 3, kernel_size=5, padding=2, bias=False)
        # Each filter has the same kernel for all three colors.
        kernels = torch.stack(SRM_KERNELS)[:, None].repeat(1, 3, 1, 1)
        self.srm_conv.weight = nn.Parameter(kernels, requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the filtered images."""
        return super().forward(self.srm_conv(images))


class DeepFakeClassifierGWAP(DeepFakeClassifier):
    """DeepFakeClassifier with global weighted average pooling."""

    def __init__(self, encoder: str, dropout_rate: float = 0.5, **options: Any):
        super().__init__(encoder, dropout_rate, **options)
        self.avg_pool = GlobalWeightedAveragePool(self.encoder.num_features)


class GlobalWeightedAveragePool(nn.Module):
    """Average feature maps (n, channels, height, width) with learned spatial weights to (n, channels, 1, 1).

    Qiu, Global Weighted Average Pooling Bridges Pixel-level Localization and Image-level Classification, 2018.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        weights = self.conv(features).sigmoid().exp()
        weights = weights / weights.sum(dim=(2, 3), keepdim=True)
        return (weights * features).sum(dim=(2, 3), keepdim=True)
