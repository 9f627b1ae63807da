"""Files and folders that appear whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preprocessing.errors import ReportedError


class OutputError(ReportedError):
    """A result that cannot be written: no space, no permission. What failed once fails for the next clip too."""

    @classmethod
    def about(cls, path: Path, error: OSError) -> OutputError:
        where = f" ({error.filename})" if error.filename else ""
        return cls(f"{path}: cannot be written: {error.strerror}{where}; mend that and run the same command again")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file. File names in a text that are not UTF-8 come out as they are. Raises OutputError."""
    if isinstance(content, str):
        content = content.encode("utf-8", errors="surrogateescape")
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well. Raises OutputError."""
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
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of the one at `path` when the block ends well.

    Raises OutputError for what cannot be written in the block.
    """
    new, old = (path.with_name(f".{path.name}.{part}") for part in ("part", "old"))
    try:
        for left_over in (new, old):
            if left_over.exists():
                shutil.rmtree(left_over)
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
    """Remove a file, or a folder with all that is in it, if it is there. Raises OutputError."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError.about(path, error) from None


def make_folder(path: Path) -> None:
    """Make a folder, if it is not there, and see that it can be written to. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be made ({error.strerror}); name another place") from None
    if not os.access(path, os.W_OK):
        raise OutputError(f"{path}: is not writable; name another place, or change its permissions")
