"""Status records: which clips a run has finished and with which settings, so that the same command resumes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import OutputError, atomic_write

# Size in bytes and modification time in ns, which change when a file does.
Stamp = list[int]


class Journal:
    """A JSON Lines file: the settings of the last run, then one record per finished clip.

    Each record carries the hash of the settings that it was made with. A clip's last record is valid if its
    settings and its stamp (any JSON value that changes with the clip's inputs) are the current ones.

    Attributes:
        changed: names of the settings that differ from those of the last run.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], overwrite: bool = False):
        self.path = path
        self.hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        previous, lines = ({}, []) if overwrite else _read(path)
        self.changed = [key for key in {**previous, **settings} if previous and previous.get(key) != settings.get(key)]
        self._last_lines = {line["clip"]: line for line in lines}
        atomic_write(path, "".join(map(_format, ({"settings": dict(settings)}, *self._last_lines.values()))))

    def get(self, clip: str, stamp: Any) -> dict[str, Any] | None:
        """Return the record of a clip that is finished with the current settings and unchanged, else None."""
        line = self._last_lines.get(clip)
        return line["record"] if line and (line["stamp"], line["settings"]) == (stamp, self.hash) else None

    def add(self, clip: str, stamp: Any, record: dict[str, Any]) -> None:
        """Append the record of a finished clip; `stamp` was taken before its inputs were read. Raises OutputError."""
        line = {"clip": clip, "stamp": stamp, "settings": self.hash, "record": record}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_format(line))
        except OSError as error:
            raise OutputError.about(self.path, error) from None


def stamp_of(path: Path) -> Stamp | None:
    """Return the stamp of a file or folder; None if it does not exist.

    The size of a folder depends on the file system, not on its contents, and is recorded as 0.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return [0 if path.is_dir() else status.st_size, status.st_mtime_ns]


def last_settings(path: Path) -> dict[str, Any]:
    """Return the settings of the last run that wrote a journal; {} if there is none."""
    return _read(path)[0]


def _format(value: dict[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the settings and records up to the first incomplete line; ({}, []) for a file that is not a journal."""
    lines: list[dict[str, Any]] = []
    for text in path.read_bytes().splitlines() if path.is_file() else []:
        types = {"clip": str, "stamp": object, "settings": str, "record": dict} if lines else {"settings": dict}
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or line.keys() != types.keys():
            break
        if not all(isinstance(line[key], expected) for key, expected in types.items()):
            break
        lines.append(line)
    return (lines[0]["settings"], lines[1:]) if lines else ({}, [])
