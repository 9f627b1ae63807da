"""The three networks of MTCNN, with the weights of facenet-pytorch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, pad, prelu


class Network:
    """P-Net, R-Net or O-Net: convolutions with PReLU and max pooling, then linear layers.

    Args:
        name: `pnet`, `rnet` or `onet`.
        pools: size of the max pooling after each convolution; 0 for none.
        device: device of the weights.

    Attributes:
        columns: number of outputs: logits of background and face, four shifts of the box, and for O-Net five x and
            five y of the points.
    """

    def __init__(self, name: str, pools: Sequence[int], device: torch.device):
        weights = {key: value.to(device) for key, value in read_weights(name).items()}
        self.convolutions: list[tuple[Tensor, Tensor, Tensor, int]] = []
        for number, pool in enumerate(pools, start=1):
            weight, bias, slope = _layer(weights, "conv", number)
            if number == 1:
                weight = pad(weight, (0, 0, 0, 0, 0, 1))  # for the fourth channel of the images
            self.convolutions.append((weight.contiguous(memory_format=torch.channels_last), bias, slope, pool))
        self.hidden = None if name == "pnet" else _layer(weights, "dense", len(pools) + 1)
        heads = sorted(key.removesuffix(".weight") for key in weights if "_" in key and key.endswith(".weight"))
        self.weight = torch.cat([weights[f"{head}.weight"].flatten(1) for head in heads])
        self.bias = torch.cat([weights[f"{head}.bias"] for head in heads])
        self.columns = len(self.bias)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the network's outputs.

        Args:
            images: gray levels, 0 to 255: float32 (n, height, width, 4), where the last channel is not used.

        Returns:
            (n, columns); for P-Net, (n, rows * columns of its places, columns).
        """
        features = self._features((images - 127.5).mul_(0.0078125))
        if self.hidden is None:
            outputs = _convolve(features.permute(0, 3, 1, 2), self.weight[..., None, None], self.bias)
            return outputs.permute(0, 2, 3, 1).flatten(1, 2)
        weight, bias, slope = self.hidden
        features = features.transpose(1, 2).flatten(1)  # the order that the weights were trained with
        return linear(prelu(linear(features, weight, bias), slope), self.weight, self.bias)

    def _features(self, images: Tensor) -> Tensor:
        """Return the output of the convolutions (n, rows, columns, channels)."""
        x = images.permute(0, 3, 1, 2)
        for weight, bias, slope, pool in self.convolutions:
            x = _prelu(_convolve(x, weight, bias), slope)
            if pool:
                x = _max_pool(_max_pool(x, pool, 2), pool, 3)
        return x.permute(0, 2, 3, 1)


def read_weights(name: str) -> dict[str, Tensor]:
    """Return a state dict of facenet-pytorch, without importing it, which would also import torchvision."""
    package = importlib.util.find_spec("facenet_pytorch")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'facenet_pytorch'", name="facenet_pytorch")
    return torch.load(Path(package.origin).parent / "data" / f"{name}.pt", weights_only=True)


def _layer(weights: dict[str, Tensor], kind: str, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight, bias and the slope of the PReLU."""
    return weights[f"{kind}{number}.weight"], weights[f"{kind}{number}.bias"], weights[f"prelu{number}.weight"]


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve without padding. With one thread, PyTorch itself uses oneDNN for large images only."""
    if x.is_cpu and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, weight, bias, (0, 0), (1, 1), (1, 1), 1)
    return conv2d(x, weight, bias)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Return PReLU of x with channels-last memory: a row of pixels at once, which is faster than pixel by pixel."""
    count, channels, rows, columns = x.shape
    values = prelu(x.permute(0, 2, 3, 1).reshape(count * rows, columns * channels), slope.repeat(columns))
    return values.view(count, rows, columns, channels).permute(0, 3, 1, 2)


def _max_pool(x: Tensor, size: int, dim: int) -> Tensor:
    """Return the maximum of windows of `size` values along a dimension, with stride 2; the last one may be incomplete.

    On channels-last memory, this is several times as fast as PyTorch's max pooling.
    """
    count = -(-(x.shape[dim] - size) // 2) + 1
    pooled, *others = (x[(slice(None),) * dim + (slice(offset, offset + 2 * count - 1, 2),)] for offset in range(size))
    for values in others:
        if values.shape[dim] < count:
            values = torch.cat([values, pooled.narrow(dim, count - 1, 1)], dim)
        pooled = torch.maximum(pooled, values)
    return pooled
