"""Status records: which clips a run has finished and with which settings, so that the same command resumes it."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.files import append, atomic_write
from common.text import plural

# Size in bytes and modification time in ns, which change when a file does.
Stamp = list[int]

# Keys of the two kinds of lines, with the types of their values.
SETTINGS_LINE: dict[str, type] = {"settings": dict}
RECORD_LINE: dict[str, type] = {"clip": str, "stamp": object, "settings": str, "record": dict}

log = logging.getLogger(__name__)


class JournalError(UserError):
    """A file that is not a journal, or that cannot be read."""


class _Line(NamedTuple):
    """A line of a journal as it is in the file, and its value."""

    text: bytes
    value: dict[str, Any]


class _Content(NamedTuple):
    """What a journal contains.

    Attributes:
        settings: settings of the last run; {} if they are unknown.
        last_lines: the last line of each clip.
        damaged: number of lines that are not valid, apart from the rest of a killed write.
    """

    settings: dict[str, Any]
    last_lines: dict[str, _Line]
    damaged: int


class Journal:
    """A JSON Lines file: the settings of the last run, then one record per finished clip.

    Each record carries the hash of the settings that it was made with. A clip's last record is valid if its
    settings and its stamp (any JSON value that changes with the clip's inputs) are the current ones.

    Damaged lines are ignored with a warning, and a copy of the file is kept.

    Args:
        path: the file.
        settings: the current settings.
        overwrite: start over instead of reading the file.
        is_valid: tells from a clip's name and its record in the file whether the record is complete.

    Attributes:
        changed: names of the settings that differ from those of the last run.

    Raises:
        JournalError: the file is not a journal or cannot be read.
        OutputError: the file, or the copy of a damaged one, cannot be written.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        is_valid: Callable[[str, dict[str, Any]], bool] = lambda _clip, _record: True,
    ):
        self.path = path
        self.hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        _check_regular(path)
        content = _Content({}, {}, 0) if overwrite else _read(path, self._accepts(is_valid))
        previous, self._last_lines, damaged = content
        self.changed = [key for key in {**previous, **settings} if previous and previous.get(key) != settings.get(key)]
        if damaged:
            copy = _keep_copy(path)
            log.warning("%s: ignored %s; the original is kept as %s", path, plural(damaged, "damaged line"), copy)
        lines = [_format({"settings": dict(settings)}), *(line.text + b"\n" for line in self._last_lines.values())]
        atomic_write(path, b"".join(lines))

    def _accepts(self, is_valid: Callable[[str, dict[str, Any]], bool]) -> Callable[[dict[str, Any]], bool]:
        """Return the check of a record's line. Records of other settings, and so of other versions, may differ."""
        return lambda line: line["settings"] != self.hash or is_valid(line["clip"], line["record"])

    def get(self, clip: str, stamp: Any) -> dict[str, Any] | None:
        """Return the record of a clip that is finished with the current settings and unchanged, else None."""
        line = self._last_lines.get(clip)
        if line is None or (line.value["stamp"], line.value["settings"]) != (stamp, self.hash):
            return None
        return line.value["record"]

    def add(self, clip: str, stamp: Any, record: dict[str, Any]) -> None:
        """Append the record of a finished clip; `stamp` was taken before its inputs were read. Raises OutputError."""
        value = {"clip": clip, "stamp": stamp, "settings": self.hash, "record": record}
        line = _format(value)
        append(self.path, line)
        self._last_lines[clip] = _Line(line.rstrip(), value)


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
    """Return the settings of the last run that wrote a journal; {} if there is none or they are damaged."""
    try:
        return _read(path)[0]
    except JournalError:
        return {}


def _format(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _read(path: Path, accepts: Callable[[dict[str, Any]], bool] = lambda _line: True) -> _Content:
    """Read the valid lines of a journal, if it exists. Raises JournalError."""
    _check_regular(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise JournalError(f"{path}: cannot be read ({error.strerror}). Change its permissions or move it") from None
    settings, last_lines, damaged = None, {}, 0
    for number, text in enumerate(lines, 1):
        value = _parse(text)
        if value and value.keys() == SETTINGS_LINE.keys():
            settings = value["settings"]
        elif value and accepts(value):
            last_lines[value["clip"]] = _Line(text, value)
        elif text.strip() and number < len(lines):  # the last line is incomplete if a run was killed while writing
            damaged += 1
    if settings is None and not last_lines and any(map(bytes.strip, lines)):
        raise JournalError(f"{path}: is not a progress file. Move it, or replace it with --overwrite")
    return _Content(settings or {}, last_lines, damaged)


def _parse(text: bytes) -> dict[str, Any] | None:
    """Return the value of a line; None if it is neither settings nor a record."""
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    for types in (SETTINGS_LINE, RECORD_LINE):
        if isinstance(value, dict) and value.keys() == types.keys():
            return value if all(isinstance(value[key], expected) for key, expected in types.items()) else None
    return None


def _check_regular(path: Path) -> None:
    """Raise JournalError for a folder, a named pipe or a device, which must not be read or replaced."""
    if path.exists() and not path.is_file():
        raise JournalError(f"{path}: is not a regular file, but progress is recorded there. Move it")


def _keep_copy(path: Path) -> Path:
    """Copy a damaged journal to a new file beside it. Return the copy's path. Raises OutputError."""
    suffixes = itertools.chain([""], (f".{number}" for number in itertools.count(2)))
    copies = (path.with_name(f"{path.name}.damaged{suffix}") for suffix in suffixes)
    copy = next(copy for copy in copies if not (copy.exists() or copy.is_symlink()))
    atomic_write(copy, path.read_bytes())
    return copy
