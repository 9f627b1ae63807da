"""Device, precision and device failures of the networks.

PyTorch is imported on first use, because importing it takes seconds.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from common.errors import UserError

if TYPE_CHECKING:
    import torch

# Names of the PyTorch dtypes that classifiers can run in.
PRECISIONS = ("float32", "float16", "bfloat16")
# Texts of the RuntimeErrors that PyTorch raises when memory runs out: on a GPU, on a CPU (which is not an
# OutOfMemoryError), in a library, or for a data loading worker, which the system then kills.
MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DataLoader worker (pid",
)
# Texts of those that it raises when a device or its libraries fail.
DEVICE_TEXTS = ("CUDA error", "HIP error", "MPS backend", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS", "NCCL error")
# Longest part of PyTorch's message that is repeated.
MAX_REASON = 200


class DeviceError(UserError):
    """A device that is not available, is out of memory or has failed."""


def choose_device(device: str) -> torch.device:
    """Return a device by name, after running an operation on it; `auto` is a CUDA GPU, else an Apple GPU, else the CPU.

    Also makes float32 mean full precision on all devices, see `use_full_float32`. Raises DeviceError.
    """
    import torch

    use_full_float32()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        # Creating a tensor is not enough: it also succeeds on a GPU that this build of PyTorch has no kernels for.
        result = torch.ones(1, device=device) + 1
        result.item()
        return result.device
    except Exception as error:  # noqa: BLE001 PyTorch raises many types for names and devices that it cannot use
        if is_out_of_memory(error):
            raise DeviceError(f"--device {device}: out of memory ({_reason(error)}). Free its memory") from None
        reason = f"PyTorch cannot use it on this machine ({_reason(error)})"
        raise DeviceError(f"--device {device}: {reason}. Use --device auto, or --device cpu") from None


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


def use_full_float32() -> None:
    """Turn TF32 off, which PyTorch uses for float32 convolutions by default and which has 10 bits of precision."""
    import torch

    with warnings.catch_warnings():  # some versions of PyTorch warn that `allow_tf32` is deprecated
        warnings.simplefilter("ignore")
        # torch.compile still reads this flag, and fails if it contradicts the two below.
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]


def one_core_threads(count: int) -> ThreadPoolExecutor:
    """Return threads in which PyTorch uses one CPU core each.

    What they compute does not depend on their number, unlike the result of an operation that uses several cores.

    Args:
        count: number of threads, at least 1.
    """
    import torch

    return ThreadPoolExecutor(max(count, 1), "one_core", torch.set_num_threads, (1,))


@contextmanager
def device_errors(remedy: str) -> Iterator[None]:
    """Turn failures of a device and of memory allocation in the block into DeviceErrors; let other errors pass.

    These failures concern the machine, not the item that is being processed: after most CUDA errors, every further
    operation of the process fails as well.

    Args:
        remedy: what to do, e.g. "Lower --batch-size or use --device cpu".

    Raises:
        DeviceError: out of memory, on a GPU or a CPU, or a failure of a GPU or its libraries.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise DeviceError(f"out of memory ({_reason(error)}). {remedy}") from None
        if is_device_failure(error):
            raise DeviceError(f"the device failed ({_reason(error)}). {remedy}") from None
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on a GPU or a CPU."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY_TEXTS)


def is_device_failure(error: BaseException) -> bool:
    """Return whether a GPU or one of its libraries failed."""
    import torch

    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in DEVICE_TEXTS)


def _reason(error: BaseException) -> str:
    """Return the first line of an error's message without its final period, or the name of its type."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[0], MAX_REASON, placeholder=" ...").removesuffix(".")
