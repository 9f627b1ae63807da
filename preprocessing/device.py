"""The device that the networks run on."""

from __future__ import annotations

import torch

from preprocessing.errors import ReportedError


class DeviceError(ReportedError):
    """A device that is not there."""


def choose_device(device: str) -> torch.device:
    """`auto` is a CUDA GPU, else Apple's, else the CPU. Raises DeviceError for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError):
        raise DeviceError(f"PyTorch can use no device {device!r} on this machine; take --device auto") from None
