"""What this machine can do at most, measured: the limits that benchmarks compare their times with."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import av
import torch
from torch import nn

# Side of the matrices by device type: large enough to reach the peak rate.
MATRIX_SIDE = {"cuda": 8192, "cpu": 2048, "mps": 4096}


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


def copy_seconds(folder: Path) -> float:
    """Return the seconds in which the files of a folder are copied to another folder on the same disk."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as copy:
        started = time.perf_counter()
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        return time.perf_counter() - started
