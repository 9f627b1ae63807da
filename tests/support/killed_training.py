"""Run a training script and kill one of its processes with SIGKILL at the start of a training step.

    python tests/support/killed_training.py STEP SCRIPT [arguments of the script]

STEP is counted from 0 over all epochs of the process. The environment variable KILLED_RANK is the rank of the process,
by default the last one.
"""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training.pipelines import engine


def main(kill_at: int, script: str, *arguments: str) -> None:
    train_step, steps = engine.train_step, itertools.count()
    killed_rank = os.environ.get("KILLED_RANK", int(os.environ.get("WORLD_SIZE", 1)) - 1)
    killed = int(os.environ.get("RANK", 0)) == int(killed_rank)

    def train_step_or_die(*args: Any) -> engine.Step:
        if next(steps) == kill_at and killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(*args)

    engine.train_step = train_step_or_die
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
