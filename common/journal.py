"""Status records: which clips a run has finished and with which settings, so that the same command resumes it.

Runs over shards write files of their own and read those of all others, see `journal_files`.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from common.errors import UserError
from common.files import append, atomic_write
from common.shards import Shard, find_shards, shard_path
from common.text import plural

# JSON value that changes when a file does: its size in bytes and its modification time in ns.
Stamp = list[Any]

# Keys of the two kinds of lines, with the types of their values.
SETTINGS_LINE: dict[str, type] = {"settings": dict}
RECORD_LINE: dict[str, type] = {"clip": str, "stamp": object, "settings": str, "record": dict, "revision": int}
# Lines of earlier versions lack this key and count as revision 0.
OPTIONAL = {"revision"}

log = logging.getLogger(__name__)


class Stamped(Protocol):
    """A file that has a stamp of its own, such as one in an object store."""

    @property
    def stamp(self) -> Stamp:
        """Changes when the file does."""


class JournalError(UserError):
    """A file that is not a journal, or that cannot be read."""


class _Line(NamedTuple):
    """A line of a journal as it is in the file, and its value."""

    text: bytes
    value: dict[str, Any]

    @property
    def revision(self) -> int:
        """Number of the record among all records of the clip; the highest one is valid."""
        return self.value.get("revision", 0)


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

    Each record carries the hash of the settings that it was made with. A clip's newest record, in whichever file of
    `journal_files`, is valid if its settings and its stamp (any JSON value that changes with the clip's inputs) are the
    current ones. A run writes its own file only, so other runs can write to theirs meanwhile.

    Damaged lines are ignored with a warning, and a copy of the run's own file is kept.

    Args:
        path: the file of a run over all clips.
        settings: the current settings.
        overwrite: start over instead of reading the run's own file; records of `clips` in others become invalid.
        is_valid: tells from a clip's name and its record in the file whether the record is complete.
        shard: the shard that is processed, which has a file of its own.
        clips: the clips of the run. The records of others in other files are not needed.

    Attributes:
        path: the run's own file.
        changed: names of the settings that differ from those of the last run.

    Raises:
        JournalError: a file is not a journal or cannot be read.
        OutputError: the file, or the copy of a damaged one, cannot be written.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        is_valid: Callable[[str, dict[str, Any]], bool] = lambda _clip, _record: True,
        shard: Shard | None = None,
        clips: Collection[str] = (),
    ):
        self.path = shard_path(path, shard)
        self.hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        _check_regular(self.path)
        accepts = self._accepts(is_valid)
        previous, lines, damaged = _Content({}, {}, 0) if overwrite else _read(self.path, accepts)
        self.changed = [key for key in {**previous, **settings} if previous and previous.get(key) != settings.get(key)]
        if damaged:
            copy = _keep_copy(self.path)
            log.warning("%s: ignored %s; the original is kept as %s", self.path, plural(damaged, "damaged line"), copy)
        self._newest = lines.copy()
        for other in set(journal_files(path)) - {self.path}:
            self._add_newer(other, accepts, clips)
        if overwrite:
            self._newest = {clip: self._line(clip, None, "", {}) for clip in self._newest}
            lines = self._newest
        content = [_format({"settings": dict(settings)}), *(line.text + b"\n" for line in lines.values())]
        self._write(b"".join(content), overwrite)

    def _write(self, content: bytes, overwrite: bool) -> None:
        """Replace the run's own file, unless it has this content: other runs may be reading it."""
        if overwrite or not self.path.exists() or self.path.read_bytes() != content:
            atomic_write(self.path, content)

    def _add_newer(self, path: Path, accepts: Callable[[dict[str, Any]], bool], clips: Collection[str]) -> None:
        """Add the records in the file of another run, which may be in progress. Raises JournalError."""
        _, lines, damaged = _read(path, accepts, clips)
        if damaged:
            log.warning("%s: ignored %s", path, plural(damaged, "damaged line"))
        for clip, line in lines.items():
            if clip not in self._newest or line.revision > self._newest[clip].revision:
                self._newest[clip] = line

    def _line(self, clip: str, stamp: Any, settings: str, record: dict[str, Any]) -> _Line:
        """Return a line that is newer than all others of its clip."""
        revision = self._newest[clip].revision + 1 if clip in self._newest else 1
        value = {"clip": clip, "stamp": stamp, "settings": settings, "record": record, "revision": revision}
        return _Line(_format(value).rstrip(), value)

    def _accepts(self, is_valid: Callable[[str, dict[str, Any]], bool]) -> Callable[[dict[str, Any]], bool]:
        """Return the check of a record's line. Records of other settings, and so of other versions, may differ."""
        return lambda line: line["settings"] != self.hash or is_valid(line["clip"], line["record"])

    def get(self, clip: str, stamp: Any) -> dict[str, Any] | None:
        """Return the record of a clip that is finished with the current settings and unchanged, else None."""
        line = self._newest.get(clip)
        if line is None or (line.value["stamp"], line.value["settings"]) != (stamp, self.hash):
            return None
        return line.value["record"]

    def add(self, clip: str, stamp: Any, record: dict[str, Any]) -> None:
        """Append the record of a finished clip; `stamp` was taken before its inputs were read. Raises OutputError."""
        line = self._line(clip, stamp, self.hash, record)
        append(self.path, line.text + b"\n")
        self._newest[clip] = line


def journal_files(path: Path) -> list[Path]:
    """Return the files that hold records: that of runs over all clips, and those that exist of shards of them."""
    return [path, *find_shards(path).values()]


def stamp_of(path: Path | Stamped) -> Stamp | None:
    """Return the stamp of a file or folder; None if it does not exist.

    The size of a folder depends on the file system, not on its contents, and is recorded as 0.
    """
    if not isinstance(path, Path):
        return path.stamp
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


def _read(
    path: Path,
    accepts: Callable[[dict[str, Any]], bool] = lambda _line: True,
    clips: Collection[str] | None = None,
) -> _Content:
    """Read the valid lines of a journal, if it exists; of `clips` only, if given. Raises JournalError."""
    lines = _read_lines(path)
    settings, last_lines, damaged, valid = {}, {}, 0, False
    for number, text in enumerate(lines, 1):
        value = _parse(text)
        if value and value.keys() == SETTINGS_LINE.keys():
            settings, valid = value["settings"], True
        elif value and accepts(value):
            valid = True
            if clips is None or value["clip"] in clips:
                last_lines[value["clip"]] = _Line(text, value)
        elif text.strip() and number < len(lines):  # the last line is incomplete if a run was killed while writing
            damaged += 1
    if not valid and any(map(bytes.strip, lines)):
        raise JournalError(f"{path}: is not a progress file. Move it, or give --overwrite to the run that writes it")
    return _Content(settings, last_lines, damaged)


def _read_lines(path: Path, attempts: int = 3) -> list[bytes]:
    """Return the lines of a file; [] if it does not exist. Raises JournalError."""
    _check_regular(path)
    try:
        return path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno == errno.ESTALE and attempts > 1:  # on NFS: the run that writes it has just replaced it
            return _read_lines(path, attempts - 1)
        raise JournalError(f"{path}: cannot be read ({error.strerror}). Change its permissions or move it") from None


def _parse(text: bytes) -> dict[str, Any] | None:
    """Return the value of a line; None if it is neither settings nor a record."""
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    for types in (SETTINGS_LINE, RECORD_LINE):
        if isinstance(value, dict) and types.keys() - OPTIONAL <= value.keys() <= types.keys():
            return value if all(isinstance(value[key], types[key]) for key in value) else None
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
