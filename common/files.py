"""Atomic writes: files and folders are written under a temporary name and renamed when they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError


class OutputError(UserError):
    """An output that cannot be written (disk full, no permission). The next one would fail too, so the run ends."""

    @classmethod
    def about(cls, path: Path, error: OSError) -> OutputError:
        """Make an OutputError for a path from an OSError."""
        where = f" ({error.filename})" if error.filename else ""
        return cls(f"{path}: cannot be written: {error.strerror}{where}. Fix that and run the same command again")


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
    temporary = path.with_name(f"{path.name}.part")
    try:
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
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
            if leftover.exists():
                shutil.rmtree(leftover)
        new.mkdir(parents=True)
        try:
            yield new
            if path.exists():
                path.rename(old)
            new.rename(path)
        finally:
            for folder in (new, old):
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise OutputError.about(path, error) from None


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents, if it exists. Raises OutputError."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError.about(path, error) from None


def make_folder(path: Path) -> None:
    """Make a folder if it does not exist, and check that it is writable. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be created ({error.strerror}). Choose another folder") from None
    if not os.access(path, os.W_OK):
        raise OutputError(f"{path}: is not writable. Choose another folder or change its permissions")
