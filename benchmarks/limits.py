"""What this machine can do at most, measured: the limits that benchmarks compare their times with."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import av
import torch
from torch import nn

# Side of the matrices by device type: large enough to reach the peak rate.
MATRIX_SIDE = {"cuda": 8192, "cpu": 2048, "mps": 4096}
MIB = 2**20


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of large matrix products, the fastest of five.

    On a GPU, float32 uses TF32 if convolutions do.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    side = MATRIX_SIDE[device.type]
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * side**3 / fastest


@torch.no_grad()
def count_flops(network: nn.Module, images: torch.Tensor) -> int:
    """Return the floating-point operations of a network's convolutions in a forward pass; images (n, 3, side, side).

    torch.utils.flop_counter is not used, because it counts depthwise convolutions as full ones.
    """
    counted = []

    def count(layer: nn.Conv2d, _: object, output: torch.Tensor) -> None:
        counted.append(2 * output.numel() * layer.weight[0].numel())

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    network(images)
    for hook in hooks:
        hook.remove()
    return sum(counted)


def decode_seconds(paths: Iterable[Path]) -> float:
    """Return the seconds in which FFmpeg decodes all frames of videos with all cores, like `ffmpeg -i FILE -f null -`.

    Frames are neither converted to RGB nor kept. Decoding fewer frames can be faster.
    """
    started = time.perf_counter()
    for path in paths:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for _ in container.decode(stream):
                pass
    return time.perf_counter() - started


def write_rate(folder: Path, mib: int = 256) -> float:
    """Return the bytes per second at which a new file in a folder is written to its disk, and synchronized."""
    path, block = folder / "write_rate.tmp", os.urandom(MIB)
    started = time.perf_counter()
    try:
        with path.open("wb") as file:
            for _ in range(mib):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return mib * MIB / (time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)
