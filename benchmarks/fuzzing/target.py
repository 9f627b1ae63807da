"""What is fuzzed: a target makes an input from a seed and a number, lets the project read it, and judges the result."""

from __future__ import annotations

import random
import shutil
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import ClipError, UserError

# Longest line of an error's message, in characters: a user has to read it.
MAX_LINE = 3000


class Result(NamedTuple):
    """The result of one case.

    Attributes:
        status: how it ended; a status of the project or the name of a documented error.
        problem: what is wrong with that; "" if nothing is.
    """

    status: str
    problem: str = ""


class Problem(Exception):
    """Behavior that the documentation does not allow."""


def expect(condition: bool, problem: str) -> None:
    """Raise Problem unless a condition holds."""
    if not condition:
        raise Problem(problem)


def generator(seed: int, target: str, number: int) -> random.Random:
    """Return the generator of all random choices of a case."""
    return random.Random(f"{seed}/{target}/{number}")


class Target:
    """Base class of the targets.

    Args:
        seeds: folder of the files that inputs are made from, which `prepare` has written.

    Attributes:
        name: name on the command line.
        weight: share of the time, relative to the other targets.
        batch: number of cases that a worker process runs in a row.
        limit: seconds for one case, or for the first one of a batch, far more than any should take.
    """

    name = ""
    weight = 1.0
    batch = 200
    limit = 120.0

    def __init__(self, seeds: Path):
        self.seeds = seeds

    def prepare(self) -> None:
        """Write the files that inputs are made from, once, in the main process."""

    def run(self, seed: int, numbers: Sequence[int], folder: Path) -> Iterator[Result]:
        """Yield the result of each case, in order. Inputs are written to `folder`, which is empty at first."""
        for number in numbers:
            clear(folder)
            rng = generator(seed, self.name, number)
            try:
                self.make(rng, folder)
                yield Result(self.check(rng, folder))
            except (UserError, ClipError) as error:
                yield Result(type(error).__name__, message_problem(str(error)))
            except Problem as problem:
                yield Result("problem", str(problem))
            except Exception:  # noqa: BLE001 any other exception is what the fuzzer looks for
                yield Result("exception", traceback.format_exc())

    def make(self, rng: random.Random, folder: Path) -> None:
        """Write the input of a case."""
        raise NotImplementedError

    def check(self, rng: random.Random, folder: Path) -> str:
        """Let the project read the input of a case. Return how it ended, or raise the project's errors or Problem."""
        raise NotImplementedError


def clear(folder: Path) -> None:
    """Make a folder empty."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def message_problem(message: str) -> str:
    """Return what is wrong with the message of an error; "" if nothing is."""
    longest = max(message.split("\n"), key=len)
    return "" if len(longest) <= MAX_LINE else f"a line of {len(longest)} characters: {longest[:200]}..."
