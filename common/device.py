"""Device and precision of the networks. PyTorch is imported on first use, because importing it takes seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import UserError

if TYPE_CHECKING:
    import torch

# Names of the PyTorch dtypes that classifiers can run in.
PRECISIONS = ("float32", "float16", "bfloat16")


class DeviceError(UserError):
    """A device that is not available."""


def choose_device(device: str) -> torch.device:
    """Return a device by name; `auto` is a CUDA GPU, else an Apple GPU, else the CPU. Raises DeviceError."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError):
        raise DeviceError(f"--device {device}: not available to PyTorch on this machine. Use --device auto") from None


def choose_precision(precision: str, device: torch.device) -> str:
    """Return one of PRECISIONS; `auto` is float16 on CUDA, bfloat16 on a CPU with AVX-512 BF16, else float32."""
    import torch

    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "float16"
    if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False):
        return "bfloat16"
    return "float32"
