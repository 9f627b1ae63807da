"""One process a GPU, or several on a CPU: the one place that knows how they are started and how they talk.

torchrun starts them and tells each its number; without torchrun there is one process, and nothing here does much.
A process that fails ends, torchrun then ends the others: nobody is left waiting.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from preprocessing.device import choose_device


@dataclass(frozen=True)
class Processes:
    """This process' number, how many there are, and its device."""

    rank: int
    total: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.total > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, in their order, in all of them."""
        values = [value] * self.total
        if self.total > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def share(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over the processes; those that are frozen now stay out."""
        if self.total == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        gpus = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=gpus, gradient_as_bucket_view=True)

    def synchronise_batch_norms(self, network: nn.Module) -> nn.Module:
        """Batch norms that see the batches of all processes as one; the activations inside timm's are kept."""
        if self.total == 1:
            return network
        if self.device.type == "cuda":
            return convert_sync_batchnorm(network)
        for module in network.modules():
            if type(module) is BatchNormAct2d:
                module.__class__ = CpuSyncBatchNormAct2d
        return network


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the other processes, if torchrun has started any. Raises DeviceError for a device that is not there."""
    total = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    if total > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    chosen = choose_device(device)
    if total == 1:
        yield Processes(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    yield Processes(rank, total, chosen)
    torch.distributed.destroy_process_group()  # not after an error: it would wait for the others


class CpuSyncBatchNormAct2d(BatchNormAct2d):
    """timm's batch norm, synchronised on a CPU, for which neither PyTorch nor timm have one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(self._normalised(x))) if self.training else super().forward(x)

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        dtype, x = x.dtype, x.float()  # sums of bfloat16 would not do
        count = _Sum.apply(x.new_tensor([x.numel() / x.shape[1]]))
        mean = _Sum.apply(x.sum(dim=(0, 2, 3))) / count
        deviations = x - mean[:, None, None]
        variance = _Sum.apply((deviations**2).sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (deviations * scale[:, None, None] + self.bias[:, None, None]).to(dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return _Sum.forward(None, gradient)
