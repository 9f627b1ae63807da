"""What a run has finished, one line a clip, so that the same command takes up where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preprocessing.output import OutputError, write_whole

# A file's (or folder's) size in bytes and time of change in ns: what tells that it is still the same.
Stamp = list[int]


class Journal:
    """A file of JSON lines: the run's settings, then a record a finished clip, each with the settings' hash.

    Records made with other settings do not count, nor does one whose `stamp` (any JSON value that changes
    with what the clip is made from) has changed. `changed` names the settings that an earlier run had otherwise.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], afresh: bool = False):
        self.path = path
        self.hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        head, *lines = ([] if afresh else _read(path)) or [{"settings": dict(settings)}]
        self.changed = [
            key for key in {**head["settings"], **settings} if head["settings"].get(key) != settings.get(key)
        ]
        self.done = {} if self.changed else {line["clip"]: line for line in lines}
        write_whole(path, "".join(map(_line, ({"settings": dict(settings)}, *self.done.values()))))

    def finished(self, clip: str, stamp: Any) -> dict[str, Any] | None:
        """The record of a clip that an earlier run finished and that has not changed since."""
        line = self.done.get(clip)
        return line["record"] if line and line["stamp"] == stamp else None

    def add(self, clip: str, stamp: Any, record: dict[str, Any]) -> None:
        """Write down a finished clip, with its stamp from before it was read. Raises OutputError."""
        line = {"clip": clip, "stamp": stamp, "settings": self.hash, "record": record}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(line))
        except OSError as error:
            raise OutputError.about(self.path, error) from None


def stamp_of(path: Path) -> Stamp | None:
    """None for a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal, up to the first that was not written to its end; none if it is no journal."""
    lines = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            break
        keys = {"clip", "stamp", "settings", "record"} if lines else {"settings"}
        if not isinstance(value, dict) or set(value) != keys or not (lines or isinstance(value["settings"], dict)):
            break
        lines.append(value)
    return lines
