"""Several checkpoints as one scorer of face crops, on a device and in a precision."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.device import choose_device, choose_precision
from common.errors import UserError
from preprocessing.crops import MarginCrop, SquareCrop
from training.tools.checkpoint import load_network

# The first of the encoder's stages of blocks that bfloat16 is used in.
FIRST_BFLOAT16 = 3
# Crops a forward pass.
BATCH_SIZE = {"cpu": 8, "cuda": 32, "mps": 16}

# How a network's input is cut from a frame: the crop rule and the side of the square input in pixels.
CropSpec = tuple[MarginCrop | SquareCrop, int]


class ScoreError(UserError):
    """A network's output that is not a number."""


class Ensemble:
    """Networks loaded from checkpoints; scores crops of faces.

    `names`: one a network, in the order given; the file's, numbered where files share a name.
    `inputs`: the distinct ways of cropping that the networks need.

    Raises CheckpointError for a checkpoint that cannot be used, DeviceError for a device that is not there.
    """

    def __init__(self, paths: Sequence[str | Path], device: str = "auto", precision: str = "auto"):
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32: for speed there is float16
        self.names = _unique([Path(path).name.removesuffix(".pt") for path in paths])
        self.networks, self.recipes = [], []
        for path in paths:
            network, recipe = load_network(path)
            fold_batch_norms(network)
            network.to(self.device, memory_format=torch.channels_last)
            reduce_precision(network, getattr(torch, self.precision))
            self.networks.append(network)
            self.recipes.append(recipe)
        self.inputs: list[CropSpec] = list(dict.fromkeys((r.crop, r.size) for r in self.recipes))

    @torch.inference_mode()
    def score(self, crops: Mapping[CropSpec, np.ndarray]) -> np.ndarray:
        """Probabilities of being fake, float32 (n, networks), for n faces.

        `crops`: for each of `inputs`, the faces' squares, RGB uint8 (n, size, size, 3).

        Raises ScoreError where a network gives a value that is not finite.
        """
        pixels = {key: torch.from_numpy(squares).to(self.device) for key, squares in crops.items()}
        inputs, columns = {}, []
        for name, network, recipe in zip(self.names, self.networks, self.recipes, strict=True):
            input_spec = recipe.crop, recipe.size, recipe.mean, recipe.std
            if input_spec not in inputs:
                inputs[input_spec] = recipe.normalize(pixels[recipe.crop, recipe.size])
            images = inputs[input_spec]
            logits = network(images.to(next(network.parameters()).dtype))
            if isinstance(logits, tuple):  # networks that draw a mask as well
                logits = logits[0]
            logits = logits[:, 0].float()
            if not logits.isfinite().all():
                raise ScoreError(f"{name} gives no finite score in {self.precision}; use --precision float32")
            columns.append(logits.sigmoid().cpu().numpy())
        return np.stack(columns, axis=1)


def fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm of an EfficientNet into the convolution before it, in place; the outputs stay the same."""
    for module in network.modules():
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, norm.act)


def reduce_precision(network: nn.Module, dtype: torch.dtype) -> None:
    """Set a network's precision, in place; of bfloat16, in the encoder's blocks from FIRST_BFLOAT16 on only.

    bfloat16 has 8 bits of precision. In the first blocks, the head and the logit that cost up to 0.02 of a video's
    score (measured with an earlier embedded model on five real clips); in the rest 0.003, of today's model 0.002.
    """
    if dtype != torch.bfloat16:
        network.to(dtype)
        return
    blocks = network.encoder.blocks[FIRST_BFLOAT16:].to(dtype)
    blocks[0].register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16(),))
    network.encoder.conv_head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _unique(names: list[str]) -> list[str]:
    """The names, with #2, #3, ... behind repeated ones."""
    return [name if not (earlier := names[:i].count(name)) else f"{name}#{earlier + 1}" for i, name in enumerate(names)]
