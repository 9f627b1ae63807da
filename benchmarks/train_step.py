"""Training steps a second, with and without what makes them fast.

    python -m benchmarks.train_step [--config configs/b7.json] [--batch-size N] [--steps N] [--device D] [--compile]

The same step of the training program (forward, backward, clipping, optimizer) on the same random batch: float32 in
PyTorch's own memory layout, which is the 1 that the ratios refer to; then channels last; freed memory kept (on a CPU);
mixed precision; compiled. With each, the peak memory (on a GPU) and the share of the device's rate in products of
large matrices in the same format, measured here as well.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from common.allocator import keep_freed_memory
from common.device import choose_device
from training.datasets.classifier_dataset import Batch
from training.pipelines import build
from training.pipelines.engine import Learner, train_step
from training.tools.config import Config, read_config
from training.tools.distributed import Distributed

MATRIX = {"cuda": 8192, "cpu": 2048}  # the side of the matrices


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", type=Path, default=Path("configs/b7.json"))
    parser.add_argument("--batch-size", type=int, help="default: the configuration's")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    return parser


def main(args: argparse.Namespace) -> None:
    device = choose_device(args.device)
    sizes = {"optimizer.batch_size": args.batch_size} if args.batch_size else {}
    variants = {
        "plain": {"fp16": False, "channels_last": False},
        "channels last": {"fp16": False},
        "bfloat16": {"fp16": True, "amp_dtype": "bfloat16"},
    }
    if device.type == "cpu" and not torch.cpu.get_capabilities().get("avx512_bf16"):
        del variants["bfloat16"]  # it would be emulated
    if device.type == "cuda":
        variants["float16"] = {"fp16": True}
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads")
    print(f"{'':28}{'images/s':>10}{'ratio':>8}{'TFLOP/s':>9}{'of matmul':>11}{'peak GiB':>10}")
    plain = None
    for kept in (False, True) if device.type == "cpu" else (False,):
        if kept:
            keep_freed_memory()
        for name, changes in variants.items():
            config = read_config(args.config, {"pretrained": False, **sizes, **changes})
            for compiled in (False, True) if args.compile else (False,):
                seconds, flops, peak = measure(config, device, args.steps, compiled)
                plain = plain or seconds
                rate = matrix_rate(device, config)
                label = name + (", memory kept" if kept else "") + (", compiled" if compiled else "")
                print(
                    f"{label:28}{config.optimizer.batch_size / seconds:10.2f}{plain / seconds:8.2f}"
                    f"{flops / seconds / 1e12:9.2f}{flops / seconds / rate:11.0%}{peak / 2**30:10.2f}",
                    flush=True,
                )


def measure(config: Config, device: torch.device, steps: int, compiled: bool) -> tuple[float, float, int]:
    """Seconds and floating-point operations of a step, peak memory in bytes (0 on a CPU)."""
    torch._dynamo.reset()
    learner = make_learner(config, device)
    batch = random_batch(config)
    flops = operations(learner, batch)
    build.wrap_model(learner, frozen=False, compiled=compiled)
    for _ in range(2):
        train_step(learner, batch, 1e-4)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    for _ in range(steps):
        train_step(learner, batch, 1e-4)  # waits for the device: the loss is read
    seconds = (time.perf_counter() - started) / steps
    return seconds, flops, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def operations(learner: Learner, batch: Batch) -> int:
    """Floating-point operations of the convolutions in a step: forward, and twice as many backward.

    (PyTorch's own counter takes depthwise convolutions for full ones.)
    """
    counted = []

    def count(layer: nn.Conv2d, _: object, output: torch.Tensor) -> None:
        counted.append(2 * output.numel() * layer.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in learner.network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        learner.network(learner.recipe.normalize(batch.images[:1].to(learner.dist.device)))
    for hook in hooks:
        hook.remove()
    return 3 * sum(counted) * len(batch.images)


def make_learner(config: Config, device: torch.device) -> Learner:
    torch.manual_seed(0)
    learner = build.build_learner(
        config, build.init_network(config, fresh=False), config.crop_spec(), Distributed(0, 1, device)
    )
    learner.network.train()
    return learner


def random_batch(config: Config) -> Batch:
    generator = torch.Generator().manual_seed(0)
    count, size = config.optimizer.batch_size, config.size
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    true = torch.ones(count, dtype=torch.bool)
    return Batch(images, (torch.arange(count) % 2).float(), torch.arange(count), true, true, None, [])


def matrix_rate(device: torch.device, config: Config) -> float:
    """Floating-point operations a second in products of large matrices, in the format of the step's.

    On a GPU float32 means TF32, as it does for PyTorch's convolutions.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    dtype = getattr(torch, config.amp_dtype) if config.fp16 else torch.float32
    side = MATRIX[device.type]
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        (a @ b)[0, 0].item()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * side**3 / fastest


if __name__ == "__main__":
    main(get_args_parser().parse_args())
