"""Log of a training run: one JSON line of metrics per epoch, and the same metrics for TensorBoard."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import append, atomic_write, make_folder

# Epochs that matplotlib can plot and TensorBoard can store.
MAX_EPOCH = 2**31 - 1
# Largest finite float32.
FLOAT32_MAX = (2 - 2**-23) * 2.0**127


class LogError(UserError):
    """A log that cannot be read."""


class EpochLog:
    """Write LOGDIR/NAME.jsonl and, for TensorBoard, the folder LOGDIR/NAME. Raises LogError, OutputError.

    Args:
        logdir: LOGDIR.
        name: name of the run.
        start: first epoch to log. Entries of earlier epochs are kept, all others are removed.
    """

    def __init__(self, logdir: Path, name: str, start: int):
        self.path = logdir / f"{name}.jsonl"
        before = [line for line in read_log(self.path) if line["epoch"] < start] if start and self.path.exists() else []
        atomic_write(self.path, "".join(map(_format_line, before)))
        if not start:
            shutil.rmtree(logdir / name, ignore_errors=True)
        self.events = EventFile(logdir / name, start)

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add an epoch's metrics; `epoch` is its number. Raises OutputError."""
        append(self.path, _format_line(metrics).encode())
        scalars = {key: value for key, value in metrics.items() if key != "epoch" and value is not None}
        self.events.add(metrics["epoch"], scalars)


class EventFile:
    """A file of scalars that TensorBoard reads.

    PyTorch's SummaryWriter writes in a thread of its own, which prints a traceback when the disk is full.

    Args:
        folder: folder of the file, made if it does not exist.
        start: first epoch; TensorBoard discards the entries of this and later epochs in the folder's other files.
    """

    def __init__(self, folder: Path, start: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        make_folder(folder)
        # TensorBoard reads the files of a folder in the order of their names.
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        session = SessionLog(status=SessionLog.START)
        self._append(Event(file_version="brain.Event:2"), Event(step=start, session_log=session))

    def add(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Add an epoch's scalars. Raises OutputError."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._append(Event(step=epoch, summary=Summary(value=values)))

    def _append(self, *events: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        content = io.BytesIO()
        records = RecordWriter(content)
        for event in events:
            event.wall_time = time.time()
            records.write(event.SerializeToString())
        append(self.path, content.getvalue())


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the metrics of each epoch: numbers, which may be NaN or infinite, or None. Epochs increase.

    The last line is ignored if it is incomplete, because the run was killed while writing it. Raises LogError.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror}). Choose LOGDIR/NAME.jsonl of a run") from None
    epochs: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            metrics = json.loads(line.decode())
        except (ValueError, RecursionError):
            if number == len(lines) and (epochs or not line):  # what follows the last line break
                break
            metrics = None
        if problem := _problem(metrics, epochs[-1]["epoch"] if epochs else -1):
            raise LogError(f"{path}: line {number} {problem}. Correct it, or choose LOGDIR/NAME.jsonl of a run")
        epochs.append(metrics)
    return epochs


def _problem(metrics: Any, previous: int) -> str:
    """Return what is wrong with the value of a line that follows a previous epoch; "" if nothing is."""
    if not isinstance(metrics, dict) or "epoch" not in metrics:
        return "is not an epoch of a training log"
    not_numbers = [key for key, value in metrics.items() if not (value is None or _is_number(value))]
    if not_numbers:
        return f"has a {not_numbers[0]!r} that is not a number in the range of float32"
    epoch = metrics["epoch"]
    if type(epoch) is not int or not 0 <= epoch <= MAX_EPOCH:
        return f"has an epoch that is not an integer from 0 to {MAX_EPOCH}"
    return "" if epoch > previous else f"has epoch {epoch} after epoch {previous}"


def _is_number(value: Any) -> bool:
    """Return whether a JSON value is a number that a loss can be: within the range of float32, NaN or infinite."""
    return type(value) in (int, float) and not FLOAT32_MAX < abs(value) < math.inf


def _format_line(metrics: Mapping[str, Any]) -> str:
    return json.dumps(metrics) + "\n"
