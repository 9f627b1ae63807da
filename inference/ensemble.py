"""Score face crops with the networks of several checkpoints, on one device and in one precision."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.device import choose_device, choose_precision, device_errors
from common.errors import UserError
from preprocessing.crops import MarginCrop, SquareCrop
from training.tools.checkpoint import Recipe, load_network
from training.zoo.efficientnet import BatchNormAct2d

# In bfloat16, only the encoder's block stages from this index on are converted.
FIRST_BFLOAT16_STAGE = 3
# Default number of crops per forward pass, by device type, and its limit.
BATCH_SIZE, MAX_BATCH = {"cpu": 8, "cuda": 32, "mps": 16}, 128


class CropSpec(NamedTuple):
    """How a network's input is cut from a frame.

    Attributes:
        rule: selects the part of the frame around a face.
        size: side of the square input in pixels.
    """

    rule: MarginCrop | SquareCrop
    size: int


class ScoreError(UserError):
    """The networks cannot score a batch: a score is not finite."""


class Ensemble:
    """Networks loaded from checkpoints, ready for inference.

    Args:
        paths: the checkpoints.
        device: a PyTorch device name, or `auto`.
        precision: `float32`, `float16`, `bfloat16` or `auto`.
        batch_size: number of faces per forward pass, at most MAX_BATCH; None chooses by the device.

    Attributes:
        device: the device that the networks are on.
        precision: name of the floating-point type.
        paths: the checkpoints.
        names: one name per network in the order of `paths`: the file name without .pt, numbered if it repeats.
        networks: the networks in evaluation mode.
        recipes: one recipe per network.
        crop_specs: the distinct crops that the networks need.
        batch_size: number of faces per forward pass.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        DeviceError: the device is not available, or too small for the networks.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
    ):
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.paths = list(map(Path, paths))
        self.names = _number_duplicates([Path(path).name.removesuffix(".pt") for path in paths])
        self.networks: list[nn.Module] = []
        self.recipes: list[Recipe] = []
        for path in paths:
            network, recipe = load_network(path)
            with device_errors("Use fewer --models or --device cpu"):
                fold_batch_norms(network)
                network.to(self.device).to(memory_format=torch.channels_last)
                reduce_precision(network, getattr(torch, self.precision))
            if self.device.type == "cpu" and torch.backends.mkldnn.is_available():
                use_onednn(network)
            self.networks.append(network)
            self.recipes.append(recipe)
        self.crop_specs = list(dict.fromkeys(CropSpec(recipe.crop, recipe.size) for recipe in self.recipes))
        self.batch_size = min(batch_size or BATCH_SIZE.get(self.device.type, 1), MAX_BATCH)

    @torch.inference_mode()
    def score(self, crops: Mapping[CropSpec, np.ndarray]) -> np.ndarray:
        """Return the probability that each face is fake, per network: float32 (n, networks).

        Args:
            crops: the crops of n faces for each of `crop_specs`, RGB uint8 (n, size, size, 3).

        Raises:
            ScoreError: a network's output is not finite.
        """
        pixels = {spec: torch.from_numpy(images).to(self.device) for spec, images in crops.items()}
        normalized: dict[tuple, torch.Tensor] = {}  # networks with the same recipe share their input
        columns = []
        for name, network, recipe in zip(self.names, self.networks, self.recipes, strict=True):
            key = recipe.crop, recipe.size, recipe.mean, recipe.std
            if key not in normalized:
                normalized[key] = recipe.normalize(pixels[CropSpec(recipe.crop, recipe.size)])
            logits = network(normalized[key].to(next(network.parameters()).dtype))
            if isinstance(logits, tuple):  # (logits, mask)
                logits = logits[0]
            logits = logits[:, 0].float()
            if not logits.isfinite().all():
                raise ScoreError(f"{name}: a score is not finite in {self.precision}. {self._remedy()}")
            columns.append(logits.sigmoid().cpu().numpy())
        return np.stack(columns, axis=1)

    def _remedy(self) -> str:
        if self.precision == "float32":
            return "Choose another checkpoint"
        return "Use --precision float32, or another checkpoint if its scores are not finite there either"


def fold_batch_norms(network: nn.Module) -> None:
    """Fold each batch norm of an EfficientNet into the preceding convolution, in place. Outputs change by rounding."""
    for module in network.modules():
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, norm.act)


class OneDnnConv2d(nn.Conv2d):
    """A convolution without padding by oneDNN.

    PyTorch computes 1x1 convolutions in float32 with oneDNN only if it uses several threads. With one thread, it calls
    another library, with which B7 takes 1.6 times as long and scores differ by rounding errors.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mkldnn_convolution(x, self.weight, self.bias, (0, 0), self.stride, self.dilation, self.groups)


def use_onednn(network: nn.Module) -> None:
    """Compute the 1x1 convolutions of a network that are in float32 with oneDNN, in place."""
    for module in network.modules():
        is_plain = type(module) is nn.Conv2d and module.padding == (0, 0)
        if is_plain and module.kernel_size == (1, 1) and module.weight.dtype == torch.float32:
            module.__class__ = OneDnnConv2d


def reduce_precision(network: nn.Module, dtype: torch.dtype) -> None:
    """Convert a network to a dtype, in place; to bfloat16, only the stages from FIRST_BFLOAT16_STAGE on.

    bfloat16 has 8 bits of precision. On five real clips, converting the whole network changed video scores by up to
    0.02, and converting only these stages by up to 0.003 (measured with an earlier embedded model).
    """
    if dtype != torch.bfloat16:
        network.to(dtype)
        return
    stages = list(network.get_submodule("encoder.blocks").children())[FIRST_BFLOAT16_STAGE:]
    for stage in stages:
        stage.to(dtype)
    stages[0].register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16(),))
    network.get_submodule("encoder.conv_head").register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _number_duplicates(names: list[str]) -> list[str]:
    """Append #2, #3, ... to repeated names."""
    return [name if not (earlier := names[:i].count(name)) else f"{name}#{earlier + 1}" for i, name in enumerate(names)]
