"""Devices are tried before they are used, float32 has full precision, and failures of a device are errors."""

from __future__ import annotations

import warnings

import pytest
import torch

from common.device import DeviceError, choose_device, device_errors

REMEDY = "Lower --batch-size"
# The first line of PyTorch's messages; the others are hints for its developers.
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"
FULL = "CUDA out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 10 GiB"


def failing_ones(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A device that can hold an empty tensor, but on which operations fail."""

    def ones(*_: object, **__: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(torch, "ones", ones)


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_returns_a_device_that_works(name: str) -> None:
    device = choose_device(name)
    assert (torch.ones(1, device=device) + 1).item() == 2


@pytest.mark.parametrize("device", ["cuda:99", "toaster", "meta", "mps:7", "xla", "cuda:" + "9" * 30, "", "a\udcff"])
def test_unusable_device_is_an_error(device: str) -> None:
    """`meta` is a device of PyTorch, but no operation returns values there."""
    with pytest.raises(DeviceError, match=rf"--device {device}: .*\(.+\)") as error:
        choose_device(device)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [torch.AcceleratorError, RuntimeError])
def test_device_without_kernels_is_an_error(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    """A build of PyTorch that does not support a GPU accepts it until the first operation."""
    failing_ones(monkeypatch, kind(f"{NO_KERNEL}\nCompile with TORCH_USE_CUDA_DSA"))
    with pytest.raises(DeviceError, match=rf"--device cpu: .*{NO_KERNEL}") as error:
        choose_device("cpu")
    assert "TORCH_USE_CUDA_DSA" not in str(error.value)


def test_full_device_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_ones(monkeypatch, torch.OutOfMemoryError(FULL))
    with pytest.raises(DeviceError, match=r"--device cpu: out of memory \(.*Tried to allocate") as error:
        choose_device("cpu")
    assert "cannot use" not in str(error.value)


def test_float32_has_full_precision() -> None:
    """PyTorch uses TF32 for convolutions by default. No warning is printed, and the old flag can still be read."""
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_device("cpu")
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cudnn.rnn.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert not torch.backends.cudnn.allow_tf32  # read by torch.compile; raises if it contradicts the others
    assert not torch.backends.cuda.matmul.allow_tf32


def allocate_too_much() -> None:
    torch.empty(10**14)


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(FULL),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("CUDA error: out of memory\nmore"),
        RuntimeError("DataLoader worker (pid 4242) is killed by signal: Killed."),
        MemoryError(),
    ],
)
def test_lack_of_memory_is_a_device_error(error: Exception) -> None:
    with pytest.raises(DeviceError, match=rf"out of memory \(.+\)\. {REMEDY}$") as found, device_errors(REMEDY):
        raising(error)
    assert "\n" not in str(found.value)


def test_lack_of_cpu_memory_is_a_device_error() -> None:
    """PyTorch raises a RuntimeError for it, which is not an OutOfMemoryError."""
    with pytest.raises(DeviceError, match=rf"out of memory \(.*400000000000000 bytes.*\)\. {REMEDY}$"):  # noqa: SIM117
        with device_errors(REMEDY):
            allocate_too_much()


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered\nmore"),
        RuntimeError("CUDA error: an illegal memory access was encountered\nmore"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("MPS backend failed"),
    ],
)
def test_device_failure_is_a_device_error(error: Exception) -> None:
    first_line = str(error).splitlines()[0]
    with pytest.raises(DeviceError, match=rf"the device failed \({first_line}\)\. {REMEDY}$"), device_errors(REMEDY):
        raising(error)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("CUDA error"), KeyboardInterrupt()])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as found, device_errors(REMEDY):
        raising(error)
    assert found.value is error
