"""Atomic writes: files and folders are written under a temporary name and renamed when they are complete.

Runs that write to the same output lock it, so they do not need temporary names of their own.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UserError
from common.shards import WHOLE

log = logging.getLogger(__name__)


class OutputError(UserError):
    """An output that cannot be written (disk full, no permission). The next one would fail too, so the run ends."""

    @classmethod
    def about(cls, path: Path, error: OSError) -> OutputError:
        """Make an OutputError for a path from an OSError."""
        where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        remedy = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Fix that"
        reason = error.strerror or str(error)
        return cls(f"{path}: cannot be written: {reason}{where}. {remedy} and run the same command again")


def read_regular_file(path: Path) -> bytes:
    """Read a file. Raises OSError, also for a named pipe or a device, because reading these might never end."""
    if not path.is_file() and path.exists():
        raise OSError(errno.EINVAL, "not a regular file")
    return path.read_bytes()


def file_facts(path: Path) -> tuple[int | None, str | None]:
    """Return the size of a regular file and its SHA-256; (None, None) if it cannot be read."""
    try:
        if path.is_file():  # not a named pipe or a device, which might have no end
            return path.stat().st_size, sha256(path)
    except OSError:
        pass
    return None, None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8; non-UTF-8 file names in the text keep their bytes. Raises OutputError."""
    if isinstance(content, str):
        content = content.encode("utf-8", errors="surrogateescape")
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` when the block succeeds.

    Raises OutputError, also for an OSError in the block.
    """
    temporary = temporary_path(path)
    try:
        temporary.unlink(missing_ok=True)  # left by a killed run; anything else, such as a link, must not be written to
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError.about(path, error) from None


def temporary_path(path: Path) -> Path:
    """Return the name under which `atomic_file` writes a file."""
    return path.with_name(f".{path.name}.part")


def append(path: Path, content: bytes) -> None:
    """Append to a file; on an error, a part of the content may have been written. Raises OutputError."""
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        raise OutputError.about(path, error) from None


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that replaces the one at `path` when the block succeeds.

    Raises OutputError, also for an OSError in the block.
    """
    new, old = (path.with_name(f".{path.name}.{part}") for part in ("part", "old"))
    try:
        for leftover in (new, old):
            _remove(leftover)
        new.mkdir(parents=True)
        try:
            yield new
            if path.exists() or path.is_symlink():
                path.rename(old)
            new.rename(path)
        finally:
            for folder in (new, old):
                with suppress(OSError):
                    _remove(folder)
    except OSError as error:
        raise OutputError.about(path, error) from None


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents, if it exists. Raises OutputError."""
    try:
        _remove(path)
    except OSError as error:
        raise OutputError.about(path, error) from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder if it does not exist, and check that it is writable. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be created ({error.strerror}). Choose another folder") from None
    if not os.access(path, os.W_OK):
        raise OutputError(f"{path}: is not writable. Choose another folder or change its permissions")


def lock_path(path: Path) -> Path:
    """Return the file that `lock` locks."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def lock(path: Path, part: range = WHOLE.positions) -> Iterator[None]:
    """Lock an output or a part of it, after waiting for any other run that writes to the same part.

    Bytes of the file `.NAME.lock` beside the output are locked, which also works on NFS. The file exists as long as a
    part is locked. The lock of a process that dies is released. A process must not lock the same output twice.

    Args:
        path: the output.
        part: range of positions, see `common.shards`.

    Raises:
        OutputError: the lock file cannot be made.
    """
    target = lock_path(path)
    try:
        handles = _open_locked(target, path, part)
    except OSError as error:
        raise OutputError.about(path, error) from None
    try:
        yield
    finally:
        _remove_if_free(target, handles[0])
        _close(handles)


def _open_locked(target: Path, path: Path, part: range) -> list[int]:
    """Open a lock file, which is created, and lock a part. Return file descriptors; closing any of them unlocks it."""
    while True:
        handles = [os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)]
        try:
            _wait_for_lock(handles[0], path, part)
            # The run that held the lock has removed the lock file; another run may have made a new one since. NFS
            # tells only when the file is opened.
            with suppress(FileNotFoundError):
                handles.append(os.open(target, os.O_RDWR | os.O_NOFOLLOW))
                if os.path.samestat(*map(os.fstat, handles)):
                    return handles
        except BaseException:
            _close(handles)
            raise
        _close(handles)


def _close(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)


def _wait_for_lock(handle: int, path: Path, part: range) -> None:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, len(part), part.start)
    except (BlockingIOError, PermissionError):  # POSIX allows both
        log.warning("%s: another run is writing to it; waiting for that run to finish", path)
        fcntl.lockf(handle, fcntl.LOCK_EX, len(part), part.start)
    except OSError as error:  # a file system without locks
        log.warning("%s: cannot be locked (%s). Make sure that no other run writes to it", path, error.strerror)


def _remove_if_free(target: Path, handle: int) -> None:
    """Remove a lock file, unless another run holds a part of it, which removes it later."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return
    except OSError:
        pass  # a file system without locks
    with suppress(OSError):
        if os.path.samestat(os.fstat(handle), target.lstat()):
            target.unlink()
