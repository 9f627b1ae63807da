"""Finished videos of a run, one line each, so that the same command takes up where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference.predictor import VideoScore

VERSION = 1
# A file's size in bytes and time of change in ns: what tells that a video is still the same.
Stamp = list[int]


class Journal:
    """The file OUTPUT.progress.jsonl: the run's settings, then a record a finished video.

    Records of a file that has changed since, of other settings, and of videos that could not be read do
    not count. `settings` is anything that JSON holds; `changed` names those that an earlier run had otherwise.
    """

    def __init__(self, path: Path, settings: dict[str, Any], afresh: bool = False):
        self.path = path
        settings = {"version": VERSION, **settings}
        head, *lines = ([] if afresh else _read(path)) or [{"settings": settings}]
        self.changed = [key for key, value in settings.items() if head["settings"].get(key) != value]
        self.done = {} if self.changed else {line["video"]: line for line in lines}
        write_whole(path, "".join(_line(line) for line in ({"settings": settings}, *self.done.values())))

    def finished(self, name: str, stamp: Stamp | None) -> dict[str, Any] | None:
        """The record of a video that was read in an earlier run and has not changed since."""
        line = self.done.get(name)
        return line["record"] if line and line["stamp"] == stamp else None

    def add(self, name: str, stamp: Stamp | None, result: VideoScore) -> dict[str, Any]:
        """Write down a finished video, with its stamp from before it was read; returns its record."""
        record = {
            "filename": name,
            "status": result.status,
            "message": result.message,
            "score": result.score,
            "frames": result.frames,
            "faces": result.faces,
            "seconds": result.seconds,
        }
        if stamp and result.status != "unreadable":
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line({"video": name, "stamp": stamp, "record": record}))
        return record


def stamp_of(path: Path) -> Stamp | None:
    """None for a file that is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all. File names that are not UTF-8 come out as they are."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    temporary.replace(path)


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
        keys = {"video", "stamp", "record"} if lines else {"settings"}
        if not isinstance(value, dict) or set(value) != keys or not isinstance(value.get("settings", {}), dict):
            break
        lines.append(value)
    return lines
