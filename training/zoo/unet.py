"""A classifier that also predicts which pixels were manipulated: a U-Net decoder on the encoder.

Attribute names and the order of the decoder's blocks are part of the checkpoint format.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training.zoo.classifiers import DeepFakeClassifier

# Channels of the decoder's stages, from the finest (half the input's resolution) to the coarsest.
DECODER_CHANNELS = (64, 128, 256, 256)
# Ranges of the encoder's blocks; each range ends at the last block of a resolution.
LEVELS = ((0, 2), (2, 3), (3, 5), (5, None))


class EfficientUnetClassifier(DeepFakeClassifier):
    """DeepFakeClassifier with a decoder for the mask of manipulated pixels.

    Input: normalized images (n, 3, height, width), height and width divisible by 32. Output: logits (n, 1) and mask
    logits (n, 1, height, width).
    """

    def __init__(self, encoder: str, dropout_rate: float = 0.5, **options: Any):
        super().__init__(encoder, dropout_rate, **options)
        self.decoder = Decoder(self._skip_channels(), self.encoder.num_features)
        self.final = nn.Conv2d(DECODER_CHANNELS[0], 1, kernel_size=1, bias=False)
        for module in (*self.decoder.modules(), self.final, self.fc):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits, mask logits)."""
        *skips, features = self._encode(images)
        mask_logits = self.final(self.decoder(features, skips))
        return self.classify(features), mask_logits

    def _encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the input's resolution."""
        levels = [self.encoder.bn1(self.encoder.conv_stem(images))]
        for first, last in LEVELS:
            levels.append(self.encoder.blocks[first:last](levels[-1]))
        levels[-1] = self.encoder.bn2(self.encoder.conv_head(levels[-1]))
        return levels

    def _skip_channels(self) -> list[int]:
        """Return the channels of the first four feature maps of `_encode`."""
        stages: Any = self.encoder.blocks
        blocks = [stages[last - 1][-1] for _, last in LEVELS if last]
        return [self.encoder.conv_stem.out_channels, *(block.conv_pwl.out_channels for block in blocks)]


class Decoder(nn.Module):
    """Upsample step by step and concatenate the encoder's feature map of the same resolution after each step.

    Args:
        skip_channels: channels of the encoder's feature maps, from the finest to the coarsest.
        in_channels: channels of the encoder's last feature map.
    """

    def __init__(self, skip_channels: list[int], in_channels: int):
        super().__init__()
        coarser = (*DECODER_CHANNELS[1:], in_channels)
        # From the finest to the coarsest, like the published code.
        self.decoder_stages = nn.ModuleList(
            UpsampleBlock(from_channels, to_channels)
            for from_channels, to_channels in zip(coarser, DECODER_CHANNELS, strict=True)
        )
        # From the coarsest to the finest, like the published code.
        self.bottlenecks = nn.ModuleList(
            SkipBlock(skip + channels, channels)
            for skip, channels in zip(reversed(skip_channels), reversed(DECODER_CHANNELS), strict=True)
        )
        self.last = nn.UpsamplingBilinear2d(scale_factor=2)

    def forward(self, features: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        for upsample, merge, skip in zip(reversed(self.decoder_stages), self.bottlenecks, reversed(skips), strict=True):
            features = merge(upsample(features), skip)
        return self.last(features)


class UpsampleBlock(nn.Module):
    """Double the resolution, then a 3x3 convolution and ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(inplace=True)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features)


class SkipBlock(nn.Module):
    """Concatenate decoded features with the encoder's, then a 3x3 convolution and ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.seq = nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.ReLU(inplace=True))

    def forward(self, decoded: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.seq(torch.cat([decoded, skip], dim=1))
