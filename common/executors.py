"""Where clips run: the options of the command lines, and the executor that they choose."""

from __future__ import annotations

import argparse
from functools import partial

from common import cli
from common.errors import UserError
from common.local_executor import run_local
from common.outcome import Executor
from common.ray_cluster import Resources, connect, has_gpus
from common.watchdog import CLIP_TIMEOUT, TIMEOUT, TimeLimits

EXECUTORS = ("local", "ray")
# Memory reserved for each worker on Ray in GiB. With the embedded model, a video in 1080p takes 1.1, one in 8K 2.
RAY_MEMORY = 2.0


def add_executor_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose where clips run."""
    add = parser.add_argument_group("where clips run, see docs/cluster.md").add_argument
    add("--executor", choices=EXECUTORS, default="local", help="processes on this machine, or a Ray cluster")
    add("--ray-address", default="auto", metavar="ADDRESS", help="Ray cluster; auto: the one that this machine is in")
    add("--ray-cpus", type=cli.positive, default=1, metavar="N", help="CPU cores reserved per worker on Ray")
    add(
        "--ray-gpus",
        type=cli.not_negative_number,
        metavar="N",
        help="GPUs reserved per worker on Ray, such as 0.5 (default: 1 if it uses the --device and there are GPUs)",
    )
    add(
        "--ray-memory",
        type=cli.positive_number,
        default=RAY_MEMORY,
        metavar="GIB",
        help="memory reserved per worker on Ray, which limits the number of workers per node",
    )


def add_time_limits(parser: argparse._ActionsContainer) -> None:
    """Add the options for the time that a clip may take."""
    for option, limit, text in (
        ("--timeout", TIMEOUT, "fail a clip when decoding makes no progress for this long"),
        ("--clip-timeout", CLIP_TIMEOUT, "fail a clip that takes longer than this"),
    ):
        parser.add_argument(option, type=cli.positive, default=round(limit), metavar="SECONDS", help=text)


def choose_executor(args: argparse.Namespace, uses_device: bool = False) -> Executor:
    """Return the executor that the options choose, see `ray_resources`."""
    limits = TimeLimits(args.timeout, args.clip_timeout)
    if args.executor == "local":
        return partial(run_local, limits=limits, device=args.device if uses_device else None)
    from common.ray_executor import run_on_ray

    return partial(run_on_ray, address=args.ray_address, resources=ray_resources(args, uses_device), limits=limits)


def ray_resources(args: argparse.Namespace, uses_device: bool) -> Resources:
    """Join the cluster and return what to reserve for each worker.

    Args:
        args: arguments with the options.
        uses_device: whether workers run networks on `--device`.

    Raises:
        UserError: Ray is not installed, or there is no cluster.
    """
    connect(args.ray_address)
    gpus = args.ray_gpus
    if gpus is None:
        gpus = 1.0 if args.device != "cpu" and has_gpus() else 0.0
    if gpus > 1 and gpus % 1:
        raise UserError(f"--ray-gpus {gpus:g}: more than one GPU must be a whole number")
    return Resources(args.ray_cpus, gpus if uses_device else 0.0, args.ray_memory)
