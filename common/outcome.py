"""What the job runner and its executors exchange: jobs, their outcomes and what the statuses mean."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.journal import Stamped

# Statuses set by the runner itself: an unexpected error; a worker process that died (out of memory, for example).
FAILED, CRASHED = "failed", "crashed"
# Status of a clip that takes too long, which is the clip's fault: the default of ClipError.
STALLED = "unreadable"


class StageError(UserError):
    """A stage that cannot continue."""


class Statuses(NamedTuple):
    """What the statuses of a stage mean. All others are failures, which --retry-failed re-runs.

    Attributes:
        done: the clip has an output.
        skipped: there is nothing to do for the clip; it has no output.
    """

    done: frozenset[str] = frozenset({"ok"})
    skipped: frozenset[str] = frozenset()

    def failed(self, status: str) -> bool:
        """Return whether a status is a failure."""
        return status not in self.done | self.skipped


ONLY_OK = Statuses()


@dataclass(frozen=True)
class Job:
    """One clip of a stage.

    Attributes:
        clip: id of the clip.
        inputs: files and folders that the output is made from; the job runs again when one of them changes.
        output: the file or folder that the function writes.
        arguments: arguments of the stage's function.
    """

    clip: str
    inputs: tuple[Path | Stamped, ...]
    output: Path
    arguments: tuple


@dataclass(frozen=True)
class Outcome:
    """The result of a job.

    Attributes:
        status: `ok` or another status of the stage.
        message: for the log and the journal.
        counts: numbers that the summary adds up per status.
        seconds: processing time.
    """

    status: str
    message: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


# A generator of jobs and their outcomes as they finish, in any order. UserErrors of the function propagate from
# it, and closing it early stops the jobs in flight.
Outcomes = Generator[tuple[Job, Outcome], None, None]
# Runs a function over jobs, in at most this many worker processes; None for as many as there is room for.
Executor = Callable[[Callable[..., Outcome], Iterable[Job], int | None], Outcomes]
