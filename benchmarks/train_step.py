"""Measure training speed with each optimization: channels last, mixed precision, compilation, allocator.

    python -m benchmarks.train_step [--config configs/b7.json] [--batch-size N] [--steps N] [--device D] [--compile]
        [--json FILE]

Every row times the same step (forward, backward, gradient clipping, optimizer) on the same random batch. Ratios are
relative to the first row, float32 in contiguous memory format. "of matmul" is the step's FLOP/s as a fraction of the
rate of large matrix products with the same dtype on the same device.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import limits, results
from common import cli
from common.allocator import keep_freed_memory
from common.device import choose_device
from training.datasets.classifier_dataset import Batch
from training.pipelines import build
from training.pipelines.engine import Learner, train_step
from training.tools.config import Config, read_config
from training.tools.distributed import Distributed

# Largest difference of the first step's loss between the rows that is due to rounding.
LOSS_TOLERANCE = 0.02


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--config", type=Path, default=Path("configs/b7.json"), help="configuration of the network and the optimizer")
    add("--batch-size", type=cli.positive, metavar="N", help="batch size (default: the configuration's)")
    add("--steps", type=cli.positive, default=10, metavar="N", help="number of steps per measurement")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    add("--compile", action="store_true", help="also measure each row with torch.compile")
    results.add_json_option(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure the variants and print a row for each. Return the exit status."""
    device = choose_device(args.device)
    sizes = {"optimizer.batch_size": args.batch_size} if args.batch_size else {}
    variants = {
        "plain": {"fp16": False, "channels_last": False},
        "channels last": {"fp16": False},
        "bfloat16": {"fp16": True, "amp_dtype": "bfloat16"},
    }
    if device.type == "cpu" and not torch.cpu.get_capabilities().get("avx512_bf16"):
        del variants["bfloat16"]  # this CPU would emulate it
    if device.type == "cuda":
        variants["float16"] = {"fp16": True}
    print(torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads")
    print(f"{'':28}{'images/s':>10}{'ratio':>8}{'TFLOP/s':>9}{'of matmul':>11}{'peak GiB':>10}")
    stages: dict[str, dict[str, Any]] = {}
    losses = []
    for keep in (False, True) if device.type == "cpu" else (False,):
        if keep:
            keep_freed_memory()
        for name, changes in variants.items():
            config = read_config(args.config, {"pretrained": False, **sizes, **changes})
            for compiled in (False, True) if args.compile else (False,):
                seconds, flops, peak, loss = measure(config, device, args.steps, compiled)
                losses.append(loss)
                dtype = config.amp_dtype if config.fp16 else "float32"
                rate = limits.matmul_rate(device, getattr(torch, dtype))
                speed, first = config.optimizer.batch_size / seconds, next(iter(stages.values()), None)
                ratio = speed / first["images_per_s"] if first else 1.0
                label = name + (", allocator" if keep else "") + (", compiled" if compiled else "")
                stages[label] = {
                    "images_per_s": speed,
                    "ratio": ratio,
                    "share": flops / seconds / rate,
                    "limited_by": f"{rate / 1e12:.2f} TFLOP/s in {dtype}",
                }
                print(
                    f"{label:28}{speed:10.2f}{ratio:8.2f}{flops / seconds / 1e12:9.2f}{flops / seconds / rate:11.0%}"
                    f"{peak / 2**30:10.2f}",
                    flush=True,
                )
    equal = max(losses) - min(losses) < LOSS_TOLERANCE
    print(f"losses of the first step: {'equal' if equal else 'different'} ({min(losses):.4f} to {max(losses):.4f})")
    work = f"A step of {config.encoder}, {config.size} pixels, batch {config.optimizer.batch_size}"
    ratio = max(stage["ratio"] for stage in stages.values())
    result = {"ratio": ratio, "stages": stages, "outputs_equal": equal, "headings": {"images_per_s": "Speed"}}
    results.write_json(args.json, work, result)
    return cli.OK if equal else cli.CLIPS_FAILED


def measure(config: Config, device: torch.device, steps: int, compiled: bool) -> tuple[float, float, int, float]:
    """Measure steps.

    Returns:
        Seconds and floating-point operations per step, peak memory in bytes (0 on a CPU), loss of the first step.
    """
    torch._dynamo.reset()
    learner = make_learner(config, device)
    batch = random_batch(config)
    flops = count_flops(learner, batch)
    build.wrap_model(learner, frozen=False, compiled=compiled)
    loss = train_step(learner, batch).loss
    train_step(learner, batch)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    for _ in range(steps):
        train_step(learner, batch)  # reads the loss, so it waits for the device
    seconds = (time.perf_counter() - started) / steps
    return seconds, flops, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0, loss


def count_flops(learner: Learner, batch: Batch) -> int:
    """Return the operations of a step's convolutions. The backward pass counts twice the forward pass."""
    images = learner.recipe.normalize(batch.images[:1].to(learner.dist.device))
    return 3 * limits.count_flops(learner.network, images) * len(batch.images)


def make_learner(config: Config, device: torch.device) -> Learner:
    """Build a configuration's network with random weights and its optimizer."""
    torch.manual_seed(0)
    learner = build.build_learner(
        config, build.init_network(config, fresh=False), config.crop_spec(), Distributed(0, 1, device)
    )
    learner.network.train()
    return learner


def random_batch(config: Config) -> Batch:
    """Return a batch of random images, alternately real and fake."""
    generator = torch.Generator().manual_seed(0)
    count, size = config.optimizer.batch_size, config.size
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    valid = torch.ones(count, dtype=torch.bool)
    return Batch(images, (torch.arange(count) % 2).float(), torch.arange(count), valid, valid, None, [])


if __name__ == "__main__":
    cli.main(main, get_args_parser())
