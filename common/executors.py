"""Where clips run: the options of the command lines, and the executor that they choose."""

from __future__ import annotations

import argparse
from functools import partial

from common import cli
from common.local_executor import run_local
from common.outcome import Executor
from common.watchdog import CLIP_TIMEOUT, TIMEOUT, TimeLimits


def add_time_limits(parser: argparse._ActionsContainer) -> None:
    """Add the options for the time that a clip may take."""
    parser.add_argument(
        "--timeout",
        type=cli.positive,
        default=round(TIMEOUT),
        metavar="SECONDS",
        help="fail a clip when decoding makes no progress for this long",
    )
    parser.add_argument(
        "--clip-timeout",
        type=cli.positive,
        default=round(CLIP_TIMEOUT),
        metavar="SECONDS",
        help="fail a clip that takes longer than this",
    )


def choose_executor(args: argparse.Namespace) -> Executor:
    """Return the executor that the options choose."""
    return partial(run_local, limits=TimeLimits(args.timeout, args.clip_timeout))
