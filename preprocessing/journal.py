"""What a run has finished, one line a clip, so that the same command takes up where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preprocessing.output import OutputError, write_whole

# A file's size in bytes and time of change in ns: what tells that it is still the same.
Stamp = list[int]


class Journal:
    """A file of JSON lines: the last run's settings, then a record a finished clip, each with its settings' hash.

    A clip's last record counts, if it was made with the same settings and `stamp` (any JSON value that changes
    with what the clip is made from). `changed` names the settings that the last run had otherwise.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], afresh: bool = False):
        self.path = path
        self.hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        before, lines = ({}, []) if afresh else _read(path)
        self.changed = [key for key in {**before, **settings} if before and before.get(key) != settings.get(key)]
        self.done = {line["clip"]: line for line in lines}
        write_whole(path, "".join(map(_line, ({"settings": dict(settings)}, *self.done.values()))))

    def finished(self, clip: str, stamp: Any) -> dict[str, Any] | None:
        """The record of a clip that an earlier run finished with these settings, if it has not changed since."""
        line = self.done.get(clip)
        return line["record"] if line and (line["stamp"], line["settings"]) == (stamp, self.hash) else None

    def add(self, clip: str, stamp: Any, record: dict[str, Any]) -> None:
        """Write down a finished clip, with its stamp from before it was read. Raises OutputError."""
        line = {"clip": clip, "stamp": stamp, "settings": self.hash, "record": record}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(line))
        except OSError as error:
            raise OutputError.about(self.path, error) from None


def stamp_of(path: Path) -> Stamp | None:
    """None for a file that is not there. The size of a folder is its file system's own affair, and left out."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [0 if path.is_dir() else status.st_size, status.st_mtime_ns]


def last_settings(path: Path) -> dict[str, Any]:
    """The settings of the last run that wrote a journal; empty if there is none."""
    return _read(path)[0]


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and lines of a journal, up to the first that was not written to its end; none if it is no journal."""
    lines = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        kinds = {"clip": str, "stamp": object, "settings": str, "record": dict} if lines else {"settings": dict}
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict) or value.keys() != kinds.keys():
            break
        if not all(isinstance(value[key], kind) for key, kind in kinds.items()):
            break
        lines.append(value)
    return (lines[0]["settings"], lines[1:]) if lines else ({}, [])
