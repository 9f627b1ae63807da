"""Log of a training run: one JSON line of metrics per epoch, and the same metrics for TensorBoard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import atomic_write


class LogError(UserError):
    """A log that cannot be read."""


class EpochLog:
    """Write LOGDIR/NAME.jsonl and, for TensorBoard, the folder LOGDIR/NAME.

    Args:
        logdir: LOGDIR.
        name: name of the run.
        start: first epoch to log. Entries of earlier epochs are kept, all others are removed.
    """

    def __init__(self, logdir: Path, name: str, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self.path = logdir / f"{name}.jsonl"
        before = [line for line in read_log(self.path) if line["epoch"] < start] if start and self.path.exists() else []
        atomic_write(self.path, "".join(map(_format_line, before)))
        if not start:
            shutil.rmtree(logdir / name, ignore_errors=True)
        self.board = SummaryWriter(str(logdir / name), purge_step=start)

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add an epoch's metrics; `epoch` is its number."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_format_line(metrics))
        for key, value in metrics.items():
            if key != "epoch" and value is not None:
                self.board.add_scalar(key, value, metrics["epoch"])
        self.board.flush()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the metrics of each epoch. An incomplete last line is ignored. Raises LogError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise LogError(f"{path}: cannot be read ({error})") from None
    epochs: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            metrics = json.loads(line)
            if not isinstance(metrics["epoch"], int):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines) and epochs:
                break
            raise LogError(f"{path}: line {number} is not an epoch of a training log (LOGDIR/NAME.jsonl)") from None
        epochs.append(metrics)
    return epochs


def _format_line(metrics: Mapping[str, Any]) -> str:
    return json.dumps(metrics) + "\n"
