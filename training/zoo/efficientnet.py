"""EfficientNet for evaluation: the same layers, state dict and outputs as timm's, without importing timm.

Importing timm takes longer than scoring a short video: it loads torchvision, the Hugging Face client, the compiler of
PyTorch and hundreds of other models. Training uses timm's, which has drop path, initialization and pretrained weights.

Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

# timm's head for the classes of ImageNet, which is part of the released checkpoints.
CLASSES = 1000
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
# TensorFlow's epsilon for batch norms.
EPS = 1e-3


class Stage(NamedTuple):
    """Blocks of one resolution in B0; the first has the stride, and the channels of its input are multiplied."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class EfficientNet(nn.Module):
    """The network in TensorFlow's variant. Input: normalized images (n, 3, height, width).

    Args:
        width: factor of the channels.
        depth: factor of the number of blocks.
        lite: without squeeze-and-excitation, and ReLU6 instead of SiLU. Only Lite0 is implemented, which is not scaled.

    Attributes:
        num_features: channels of the last feature map.
    """

    def __init__(self, width: float = 1.0, depth: float = 1.0, lite: bool = False):
        super().__init__()
        act = nn.ReLU6 if lite else nn.SiLU
        channels = round_channels(STEM_CHANNELS * width)
        self.conv_stem = conv2d(3, channels, 3, stride=2)
        self.bn1 = BatchNormAct2d(channels, act(inplace=True))
        stages = []
        for stage in STAGES:
            blocks: list[nn.Module] = []
            for number in range(math.ceil(stage.repeats * depth)):
                stride = 1 if number else stage.stride
                after = round_channels(stage.channels * width)
                kind = SeparableBlock if stage.expansion == 1 else InvertedBlock
                blocks.append(kind(channels, after, stage._replace(stride=stride), act, squeeze=not lite))
                channels = after
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.num_features = round_channels(HEAD_CHANNELS * width)
        self.conv_head = conv2d(channels, self.num_features, 1)
        self.bn2 = BatchNormAct2d(self.num_features, act(inplace=True))
        self.classifier = nn.Linear(self.num_features, CLASSES)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the last feature map (n, num_features, height / 32, width / 32)."""
        return self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(images)))))


class SeparableBlock(nn.Module):
    """A depthwise and a pointwise convolution."""

    def __init__(self, channels: int, after: int, stage: Stage, act: type[nn.Module], squeeze: bool):
        super().__init__()
        self.has_skip = stage.stride == 1 and channels == after
        self.conv_dw = conv2d(channels, channels, stage.kernel, stage.stride, groups=channels)
        self.bn1 = BatchNormAct2d(channels, act(inplace=True))
        self.se = SqueezeExcite(channels, channels, act) if squeeze else nn.Identity()
        self.conv_pw = conv2d(channels, after, 1)
        self.bn2 = BatchNormAct2d(after, nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.bn2(self.conv_pw(self.se(self.bn1(self.conv_dw(x)))))
        return features + x if self.has_skip else features


class InvertedBlock(nn.Module):
    """A pointwise convolution to more channels, a depthwise one, and a pointwise one to few channels (MBConv)."""

    def __init__(self, channels: int, after: int, stage: Stage, act: type[nn.Module], squeeze: bool):
        super().__init__()
        self.has_skip = stage.stride == 1 and channels == after
        wide = round_channels(channels * stage.expansion)
        self.conv_pw = conv2d(channels, wide, 1)
        self.bn1 = BatchNormAct2d(wide, act(inplace=True))
        self.conv_dw = conv2d(wide, wide, stage.kernel, stage.stride, groups=wide)
        self.bn2 = BatchNormAct2d(wide, act(inplace=True))
        self.se = SqueezeExcite(wide, channels, act) if squeeze else nn.Identity()
        self.conv_pwl = conv2d(wide, after, 1)
        self.bn3 = BatchNormAct2d(after, nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.se(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x)))))
        features = self.bn3(self.conv_pwl(features))
        return features + x if self.has_skip else features


class SqueezeExcite(nn.Module):
    """Weight channels by their means, with a quarter as many channels as the block's input has in between."""

    def __init__(self, channels: int, block_channels: int, act: type[nn.Module]):
        super().__init__()
        squeezed = round(block_channels / 4)
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.act1 = act(inplace=True)
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class BatchNormAct2d(nn.BatchNorm2d):
    """A batch norm and an activation, in one module as the names of the weights ask for."""

    def __init__(self, channels: int, act: nn.Module):
        super().__init__(channels, eps=EPS)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(super().forward(x))


class SamePaddedConv2d(nn.Conv2d):
    """A convolution with a stride, padded like TensorFlow's: by one more pixel at the end if the padding is odd."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = (self._padding(side) for side in x.shape[2:])
        x = nn.functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)

    def _padding(self, side: int) -> int:
        """Return the padding of a side, so that the result has one pixel for each stride that begins."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        return max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)


def conv2d(channels: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution with TensorFlow's padding and no bias."""
    if stride == 1:
        return nn.Conv2d(channels, after, kernel, padding=kernel // 2, groups=groups, bias=False)
    return SamePaddedConv2d(channels, after, kernel, stride, groups=groups, bias=False)


def round_channels(channels: float) -> int:
    """Return the nearest multiple of 8 that is at least 90 % of a number of channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
