"""Choose the library that runs the classifiers."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from typing import TYPE_CHECKING

from common.errors import UserError

if TYPE_CHECKING:
    import torch

# The first one is the default.
BACKENDS = ("torch", "torch-compile", "openvino", "auto")
# Precisions that OpenVINO supports, and its names for them.
OPENVINO_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class BackendError(UserError):
    """A back-end that is not installed, cannot be used with other options, or computes wrong logits."""


def choose_backend(backend: str, device: torch.device, precision: str) -> str:
    """Return the back-end that runs the networks: one of BACKENDS except `auto`.

    Args:
        backend: one of BACKENDS. `auto` is OpenVINO where it is installed and known to be faster: on x86-64 CPUs.
        device: device of the networks.
        precision: precision of the networks.

    Raises:
        BackendError: OpenVINO is not installed, or the back-end does not support the device or the precision.
    """
    if backend == "torch-compile" and device.type != "cuda":
        remedy = "Use --backend openvino on a CPU, or --backend torch"
        raise BackendError(f"--backend torch-compile: needs a CUDA GPU, not {device.type}. {remedy}")
    installed, usable = find_spec("openvino") is not None, device.type == "cpu" and precision in OPENVINO_PRECISIONS
    if backend == "auto":
        return "openvino" if installed and usable and platform.machine() in ("x86_64", "AMD64") else "torch"
    if backend == "openvino" and not installed:
        remedy = "Run pip install -r requirements-openvino.txt, or use --backend torch"
        raise BackendError(f"--backend openvino: OpenVINO is not installed. {remedy}")
    if backend == "openvino" and not usable:
        remedy = f"Use --device cpu and --precision {' or '.join(OPENVINO_PRECISIONS)}, or --backend torch"
        raise BackendError(f"--backend openvino: cannot run on {device.type} in {precision}. {remedy}")
    return backend
