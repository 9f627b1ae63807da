"""The two kinds of expected errors: those that end a program and those that fail one clip."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """An error that the user can fix. `common.cli.main` prints it and exits with status 2.

    The message is `<file or option>: <what is wrong>. <What to do>.` Several arguments are several messages.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ClipError(Exception):
    """A clip, or a file made from it, that cannot be used. It fails that clip, and the run continues.

    Attributes:
        status: the status that is recorded for the clip.
    """

    def __init__(self, path: str | Path, reason: str, status: str = "unreadable"):
        super().__init__(f"{path}: {reason}")
        self.status = status
