"""Distributed training: one process per GPU, or several processes on a CPU.

torchrun starts the processes and sets their ranks. Without torchrun, the world size is 1 and nothing here has an
effect. If a process fails, torchrun stops the others.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from common import cli
from common.device import choose_device
from common.errors import UserError

Network = TypeVar("Network", bound=nn.Module)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Distributed:
    """This process among all processes of a run.

    Attributes:
        rank: number of this process, counted from 0.
        world_size: number of processes.
        device: device of this process.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the outputs."""
        return self.rank == 0

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all processes, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def check_shared(self, folder: Path) -> None:
        """Raise UserError in all processes if a folder is not the same for all of them."""
        if self.world_size == 1:
            return
        marker = folder / f".{self.all_gather(uuid.uuid4().hex)[0]}.shared"
        if self.is_main_process:
            marker.touch()
        self.all_gather(None)  # waits until it exists
        shared = all(self.all_gather(marker.exists()))
        if self.is_main_process:
            marker.unlink()
        if not shared:
            raise UserError(f"{folder}: is not the same folder on all nodes. Choose one on storage that they share")

    def wrap_ddp(self, network: nn.Module) -> nn.Module:
        """Wrap a network in DistributedDataParallel. Its gradients are averaged, except those of frozen parameters."""
        if self.world_size == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        gpus = [self.device] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(network, device_ids=gpus, gradient_as_bucket_view=True)
        # After the start, the only buffers are the statistics of synchronized batch norms, equal in all processes.
        wrapped.broadcast_buffers = False  # as an argument, it gives a warning in recent versions
        return wrapped

    def sync_batch_norms(self, network: Network, compiled: bool = False) -> Network:
        """Make batch norms use the statistics of all processes' batches. timm's batch norms keep their activations.

        Args:
            network: modified in place.
            compiled: whether it will be compiled.
        """
        if self.world_size == 1:
            return network
        if self.device.type == "cuda" and not compiled:
            return convert_sync_batchnorm(network)
        for module in network.modules():
            if type(module) is BatchNormAct2d:
                module.__class__ = EqualSyncBatchNormAct2d
        return network


@contextmanager
def init_distributed(device: str) -> Iterator[Distributed]:
    """Join the process group if torchrun started this process. Raises DeviceError for an unavailable device.

    If another process is lost, this one exits with status 1, after which torchrun may restart all of them.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    if world_size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    chosen = choose_device(device)
    if world_size == 1:
        yield Distributed(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Distributed(rank, world_size, chosen)
    except UserError:
        # The threads of the process group may abort the exit of the interpreter, and the exit status would be lost.
        atexit.register(os._exit, cli.CANNOT_CONTINUE)
        raise
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "/gloo/" not in str(error):
            raise
        log.error("error: lost the connection to another process (%s)", str(error).partition("\n")[0])
        sys.exit(1)
    torch.distributed.destroy_process_group()  # not after an error: it would wait for the other processes


class EqualSyncBatchNormAct2d(BatchNormAct2d):
    """timm's batch norm, synchronized between processes whose batches have equal sizes.

    PyTorch's version, which timm uses, needs GPUs and allows empty batches: it waits for the GPU in each layer, and
    torch.compile splits the network at each layer. This one is compiled in one piece; not compiled, it is slower.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(self._normalize(x))) if self.training else super().forward(x)

    def _normalize(self, x: torch.Tensor) -> torch.Tensor:
        dtype, x = x.dtype, x.float()  # sums need more precision than bfloat16 has
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        # Summing rows that are zero in all other processes gathers the rows of all, also for the backward pass.
        own = torch.arange(world_size, device=x.device) == rank
        means, variances = sum_over_processes(own[:, None, None] * torch.stack([mean, variance])).unbind(dim=1)
        mean = means.mean(dim=0)
        variance = (variances + (means - mean) ** 2).mean(dim=0)
        count = world_size * x.numel() // x.shape[1]
        with torch.no_grad():
            self._update_statistics(mean, variance * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(dtype)

    def _update_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


# As an operator of its own, because torch.compile in PyTorch 2.11 loses the gradient of an autograd.Function that calls
# all_reduce.
@torch.library.custom_op("dfdc::sum_over_processes", mutates_args=())
def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes. Its gradient is summed, too."""
    values = values.contiguous().clone()
    torch.distributed.all_reduce(values)
    return values


sum_over_processes.register_fake(lambda values: torch.empty_like(values, memory_format=torch.contiguous_format))
sum_over_processes.register_autograd(lambda _, gradient: sum_over_processes(gradient))
