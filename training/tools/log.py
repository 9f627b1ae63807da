"""A run's log: one JSON line an epoch, and the same figures for TensorBoard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import atomic_write


class LogError(UserError):
    """A log that cannot be read."""


class EpochLog:
    """LOGDIR/NAME.jsonl and the folder LOGDIR/NAME, of a run that begins at epoch `start`.

    What an earlier run wrote of epochs from `start` on is removed: they are done again.
    """

    def __init__(self, logdir: Path, name: str, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path = logdir / f"{name}.jsonl"
        before = [line for line in read_log(self.path) if line["epoch"] < start] if start and self.path.exists() else []
        atomic_write(self.path, "".join(map(_line, before)))
        if not start:
            shutil.rmtree(logdir / name, ignore_errors=True)
        self.board = SummaryWriter(str(logdir / name), purge_step=start)

    def add(self, figures: dict[str, Any]) -> None:
        """Add an epoch's figures, of which `epoch` is its number."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(figures))
        for key, value in figures.items():
            if key != "epoch" and value is not None:
                self.board.add_scalar(key, value, figures["epoch"])
        self.board.flush()


def read_log(path: Path) -> list[dict[str, Any]]:
    """An epoch's figures a line; a last line that was cut off is left out. Raises LogError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise LogError(f"{path}: cannot be read ({error})") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            figures = json.loads(line)
            if not isinstance(figures["epoch"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines) and found:
                break
            raise LogError(f"{path}: line {number} is not an epoch of a training log (LOGDIR/NAME.jsonl)") from None
        found.append(figures)
    return found


def _line(figures: dict[str, Any]) -> str:
    return json.dumps(figures) + "\n"
