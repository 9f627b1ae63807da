"""A folder of downloaded files whose total size is limited, shared by threads and processes on one machine.

Whoever writes or reads a file holds a lock on it. When there is no room for another file, those that nobody has locked
are removed, the least recently used first. A file that is being written has its final size from the start, which
reserves the room; when its process dies, it is unlocked, and removed like any other.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError
from common.files import OutputError, make_folder, temporary_path

# Seconds between looks at a folder that is full of files in use.
POLL_INTERVAL = 0.1
# Names of files in a cache, and their temporary names. Other files in the folder are never touched.
_OWN_NAME = re.compile(r"\.?object-[0-9a-f]{40}(\.\w{1,8})?(\.part)?")

NEVER = threading.Event()


class Cancelled(Exception):
    """Waiting for room was cancelled."""


@dataclass(frozen=True)
class FileCache:
    """A cache of files.

    Attributes:
        folder: its folder, which is created, on a local disk.
        limit: total size of its files in bytes.
    """

    folder: Path
    limit: int

    def acquire(self, digest: str, suffix: str, size: int, cancelled: threading.Event = NEVER) -> Slot:
        """Return a locked file, which is complete or has to be written. Waits for room, and for others who write it.

        Threads that hold several files must acquire them in the order in which they are released, or they would wait
        for each other.

        Args:
            digest: what identifies the content, 40 hexadecimal digits.
            suffix: suffix of the file name, with the dot, at most 8 characters.
            size: size of the file in bytes, at most `limit`.
            cancelled: ends the wait.

        Raises:
            Cancelled: the wait has been cancelled.
            UserError: the folder cannot be written to or locked.
        """
        path = self.folder / f"object-{digest}{suffix}"
        while True:
            with self.locked():
                if slot := self._find(path, size) or self._make(path, size):
                    return slot
            if cancelled.wait(POLL_INTERVAL):
                raise Cancelled

    def shrink(self, room: int = 0) -> bool:
        """Remove files until there is room for so many bytes. Return whether there is. The cache must be locked."""
        files = [(status, path) for path in self.folder.iterdir() if (status := _own_status(path))]
        used = sum(status.st_size for status, _ in files)
        for status, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if used + room <= self.limit:
                break
            if _remove_unused(path):
                used -= status.st_size
        return used + room <= self.limit

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the list of files. Raises UserError, also for an OSError in the block."""
        make_folder(self.folder)
        try:
            handle = os.open(self.folder, os.O_RDONLY)
            try:
                _lock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)
        except OSError as error:
            raise OutputError.about(self.folder, error) from None

    def _find(self, path: Path, size: int) -> Slot | None:
        """Return a file that is complete, and mark it as used."""
        try:
            file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
        except OSError:
            return None
        if os.fstat(file.fileno()).st_size != size:  # damaged by something else
            file.close()
            return None
        _lock(file.fileno(), fcntl.LOCK_SH)
        os.utime(file.fileno())
        return Slot(self, path, file, None)

    def _make(self, path: Path, size: int) -> Slot | None:
        """Return a file to write, if there is room and nobody else writes it."""
        part = temporary_path(path)
        if not (_remove_unused(path) and _remove_unused(part) and self.shrink(size)):
            return None
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+b")
        _lock(file.fileno(), fcntl.LOCK_SH)
        file.truncate(size)
        return Slot(self, path, file, part)


class Slot:
    """A file in a cache that is locked until `close`.

    Attributes:
        path: the file, once it is complete.
        complete: whether it is.
    """

    def __init__(self, cache: FileCache, path: Path, file: BinaryIO, part: Path | None):
        self.path, self.complete = path, part is None
        self._cache, self._file, self._part = cache, file, part
        self.close = weakref.finalize(self, _release, file, part)  # also if it is dropped, and at exit

    def write(self, content: bytes) -> None:
        """Append to the file. Raises OutputError."""
        try:
            self._file.write(content)
        except OSError as error:
            raise OutputError.about(self._cache.folder, error) from None

    def finish(self) -> None:
        """Give a file that is complete its name. Raises UserError."""
        assert self._part
        with self._cache.locked():
            self._file.flush()
            self._part.replace(self.path)
        self.complete = True


@contextmanager
def open_cache(folder: Path | None, limit: int) -> Iterator[FileCache]:
    """Yield a cache in a folder, or in a temporary one that is removed at the end. Raises UserError."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="videos-", ignore_cleanup_errors=True) as temporary:
            yield FileCache(Path(temporary), limit)
        return
    cache = FileCache(folder, limit)
    with cache.locked():
        cache.shrink()
    yield cache


def _own_status(path: Path) -> os.stat_result | None:
    """Return the status of a file of the cache; None for any other file."""
    with suppress(OSError):
        if _OWN_NAME.fullmatch(path.name) and stat.S_ISREG((status := path.lstat()).st_mode):
            return status
    return None


def _remove_unused(path: Path) -> bool:
    """Remove a file that nobody has locked. Return whether it does not exist any more."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(handle)


def _lock(handle: int, kind: int) -> None:
    try:
        fcntl.flock(handle, kind)
    except OSError as error:
        raise UserError(f"--cache-dir: cannot lock files ({error.strerror}). Choose a folder on a local disk") from None


def _release(file: BinaryIO, part: Path | None) -> None:
    """Unlock a file; remove it unless it has been completed."""
    with suppress(OSError):
        if part and os.path.samestat(os.fstat(file.fileno()), part.lstat()):
            part.unlink()
    with suppress(OSError):
        file.close()
