"""One process of several fails while the others wait for it: run by torchrun from tests/test_distributed.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from preprocessing import command
from preprocessing.errors import ReportedError
from training.tools.distributed import processes


def main(_: argparse.Namespace) -> int:
    with processes("cpu") as world:
        world.sum(torch.ones(1))
        if world.rank == 1:
            raise ReportedError("the disk of this one is full")
        world.sum(torch.ones(1))
    return 0


if __name__ == "__main__":
    command.main(main, argparse.ArgumentParser())
