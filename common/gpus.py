"""Spread worker processes over the GPUs of this machine, as many as their free memory has room for."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from common.cores import available_cores

# GPU memory of a worker process in bytes: CUDA's context and libraries, the networks and a batch of 32 frames.
WORKER_MEMORY = 2 * 2**30
# Files of the drivers that PyTorch's `cuda` devices need: NVIDIA's, AMD's, and Microsoft's in WSL.
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
# Which GPUs a process sees, by number or name; they are numbered from 0 there.
VISIBLE = "CUDA_VISIBLE_DEVICES"
# Prints the free memory of each GPU in bytes.
QUERY = "import torch; print(*(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())))"
QUERY_TIMEOUT = 120.0  # seconds

log = logging.getLogger(__name__)


def place_workers(device: str | None, workers: int | None) -> list[dict[str, str]]:
    """Return the environment variables of each worker process. If there are several GPUs, they choose one.

    Args:
        device: `--device` of the worker processes' networks; None if they have none.
        workers: number of worker processes; None for one per CPU core, but only as many as the GPUs have room for.
    """
    kind, _, number = (device or "cpu").partition(":")
    memory = free_memory() if kind in ("auto", "cuda") else []
    rooms = {gpu: size // WORKER_MEMORY for gpu, size in enumerate(memory) if number in ("", str(gpu))}
    if not rooms:
        return [{} for _ in range(workers or available_cores())]
    if workers is None and sum(rooms.values()) < available_cores():
        workers = max(1, sum(rooms.values()))
        log.info("worker processes: %d, which fit in the free GPU memory. --workers N starts another number", workers)
    names = os.environ.get(VISIBLE, "").split(",") if os.environ.get(VISIBLE) else list(map(str, range(len(memory))))
    if len(names) != len(memory):  # another variable selects among them
        return [{} for _ in range(workers or available_cores())]
    environments = []
    for _ in range(workers or available_cores()):
        gpu = max(rooms, key=rooms.__getitem__)
        rooms[gpu] -= 1
        environments.append({} if len(rooms) == 1 else {VISIBLE: names[gpu].strip()})
    return environments


def free_memory() -> list[int]:
    """Return the free memory of each GPU that PyTorch can use, in bytes; [] if there is none.

    A process of its own asks, because asking takes some of the memory of each GPU until the process ends.
    """
    if not any(Path(driver).exists() for driver in DRIVERS):
        return []  # without starting PyTorch, which takes seconds
    try:
        command = [sys.executable, "-P", "-c", QUERY]
        finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=QUERY_TIMEOUT)
        return list(map(int, finished.stdout.split()))
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []
