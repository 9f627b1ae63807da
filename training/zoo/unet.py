"""A classifier that also draws where the face was changed: a U-Net decoder on the encoder.

Attribute names and the order of the decoder's blocks are an interface: checkpoints are loaded by them.
"""

from __future__ import annotations

import torch
from torch import nn

from training.zoo.classifiers import DeepFakeClassifier

# Channels of the decoder's blocks, from the finest (half the input's resolution) to the coarsest.
DECODER_FILTERS = (64, 128, 256, 256)
# The encoder's blocks end a level (the resolution is halved behind them) at these positions.
LEVELS = ((0, 2), (2, 3), (3, 5), (5, None))


class EfficientUnetClassifier(DeepFakeClassifier):
    """Input (n, 3, height, width), sides divisible by 32; output (n, 1) logits and mask logits like the input."""

    def __init__(
        self, encoder: str, dropout_rate: float = 0.5, pretrained: bool = False, drop_path: float | None = None
    ):
        super().__init__(encoder, dropout_rate, pretrained, drop_path)
        self.decoder = Decoder(self._skip_channels(), self.encoder.num_features)
        self.final = nn.Conv2d(DECODER_FILTERS[0], 1, kernel_size=1, bias=False)
        for module in (*self.decoder.modules(), self.final):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *skips, features = self._encode(images)
        mask = self.final(self.decoder(features, skips))
        return self.fc(self.dropout(self.avg_pool(features).flatten(1))), mask

    def _encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution."""
        levels = [self.encoder.bn1(self.encoder.conv_stem(images))]
        for first, last in LEVELS:
            levels.append(self.encoder.blocks[first:last](levels[-1]))
        levels[-1] = self.encoder.bn2(self.encoder.conv_head(levels[-1]))
        return levels

    def _skip_channels(self) -> list[int]:
        blocks = [info["num_chs"] for info in self.encoder.feature_info]
        return [self.encoder.conv_stem.out_channels, *blocks[1:4]]


class Decoder(nn.Module):
    """Upsamples step by step; after each step the encoder's features of that resolution join in."""

    def __init__(self, skip_channels: list[int], features: int):
        super().__init__()
        below = (*DECODER_FILTERS[1:], features)
        self.decoder_stages = nn.ModuleList(
            Upsample(coarse, fine) for coarse, fine in zip(below, DECODER_FILTERS, strict=True)
        )
        # Unlike the stages, listed from the coarsest to the finest.
        self.bottlenecks = nn.ModuleList(
            Join(skip + filters, filters)
            for skip, filters in zip(reversed(skip_channels), reversed(DECODER_FILTERS), strict=True)
        )
        self.last = nn.UpsamplingBilinear2d(scale_factor=2)

    def forward(self, features: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        for upsample, join, skip in zip(reversed(self.decoder_stages), self.bottlenecks, reversed(skips), strict=True):
            features = join(upsample(features), skip)
        return self.last(features)


class Upsample(nn.Module):
    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.layer = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(inplace=True)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features)


class Join(nn.Module):
    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.seq = nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(inplace=True))

    def forward(self, decoded: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.seq(torch.cat([decoded, skip], dim=1))
