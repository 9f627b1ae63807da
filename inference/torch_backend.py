"""Run a classifier with PyTorch: prepare its network for one device and one precision."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.zoo.classifiers import DeepFakeClassifier
from training.zoo.efficientnet import BatchNormAct2d
from training.zoo.unet import EfficientUnetClassifier

# In bfloat16, only the encoder's block stages from this index on are converted.
FIRST_BFLOAT16_STAGE = 3


class TorchClassifier:
    """Logits of a network by PyTorch.

    Args:
        network: the network in float32 and evaluation mode, which is changed.
        device: the device to run it on.
        dtype: its floating-point type.
        compiled_batch: compile the network for batches of this size, which takes about a minute; None does not.
    """

    def __init__(
        self, network: DeepFakeClassifier, device: torch.device, dtype: torch.dtype, compiled_batch: int | None = None
    ):
        fold_batch_norms(network)
        network.to(device).to(memory_format=torch.channels_last)
        reduce_precision(network, dtype)
        if device.type == "cpu" and torch.backends.mkldnn.is_available():
            use_onednn(network)
        self.input_dtype = next(network.parameters()).dtype
        self.compiled_batch = compiled_batch
        self.forward: Callable[[torch.Tensor], Any] = network
        if isinstance(network, EfficientUnetClassifier):  # leave out the mask, which nobody needs
            self.forward = partial(DeepFakeClassifier.forward, network)
        if compiled_batch:
            # With CUDA graphs, which need inputs of one shape.
            self.forward = torch.compile(self.forward, mode="reduce-overhead", dynamic=False)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of normalized images: float32 (n,). Does not wait for a GPU."""
        count = len(images)
        images = images.to(self.input_dtype)
        if not self.compiled_batch:
            return self.forward(images)[:, 0].float()
        missing = self.compiled_batch - count
        if missing < 0:
            raise ValueError(
                f"{count} images exceed the batch of {self.compiled_batch} that the network is compiled for"
            )
        padded = nn.functional.pad(images, (0, 0, 0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)
        # A copy, because the next run of a CUDA graph overwrites its output.
        return self.forward(padded)[:count, 0].float().clone()


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
