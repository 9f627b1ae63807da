"""Reproducible weights and inputs, to compare networks by their logits."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from skimage.data import astronaut
from torch import nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def fill(network: nn.Module) -> nn.Module:
    """Fill a network in place with random weights seeded by their names, and switch it to evaluation mode.

    The fixed SRM kernels are kept.
    """
    state = network.state_dict()
    for key, value in state.items():
        if "srm_conv" not in key:
            state[key] = torch.from_numpy(_values(key, tuple(value.shape))).to(value.dtype)
    network.load_state_dict(state)
    return network.eval()


def _values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    name = key.rsplit(".", 1)[-1]
    if name == "num_batches_tracked":
        return np.zeros(shape)
    if name == "running_mean":
        return 0.1 * rng.standard_normal(shape)
    if name == "running_var":
        return rng.uniform(0.8, 1.25, shape)
    if len(shape) == 4:
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    if len(shape) == 2:
        return rng.standard_normal(shape) * np.sqrt(1 / shape[1])
    if name == "weight":
        # The factor keeps the activations of deep networks in range.
        return rng.uniform(0.7, 1.3, shape) * (0.56 if ".bn3." in key else 1)
    return 0.1 * rng.standard_normal(shape)


def crops(padding: int = 0) -> torch.Tensor:
    """Return three normalized 380 x 380 crops of a portrait, (3, 3, height, width), zero-padded right and below."""
    image = astronaut()
    corners = ((0, 0), (30, 66), (100, 132))
    images = np.stack([image[y : y + 380, x : x + 380] for y, x in corners]) / 255
    normalized = (images - IMAGENET_MEAN) / IMAGENET_STD
    tensor = torch.from_numpy(normalized).float().permute(0, 3, 1, 2)
    return nn.functional.pad(tensor, (0, padding, 0, padding))
