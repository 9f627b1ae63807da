"""Fail in one of two processes while the other waits for it. test_distributed.py runs this with torchrun."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from common import cli
from common.errors import UserError
from training.tools.distributed import init_distributed


def main(_: argparse.Namespace) -> int:
    with init_distributed("cpu") as dist:
        dist.all_reduce(torch.ones(1))
        if dist.rank == 1:
            raise UserError("rank 1 fails")
        dist.all_reduce(torch.ones(1))
    return cli.OK


if __name__ == "__main__":
    cli.main(main, argparse.ArgumentParser())
