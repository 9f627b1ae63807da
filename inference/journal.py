"""Finished videos of a run, one line each, so that the same command takes up where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference.predictor import VideoScore

VERSION = 1


class Journal:
    """The file OUTPUT.progress.jsonl: the run's settings, then a record a finished video.

    Records of another file (by size and time), of other settings, and of videos that could not be read
    do not count. `settings` is anything that JSON holds.
    """

    def __init__(self, path: Path, settings: dict[str, Any], afresh: bool = False):
        self.path = path
        self.settings = {"version": VERSION, **settings}
        earlier = [] if afresh else _read(path)
        self.changed = [
            key for key, value in self.settings.items() if earlier and earlier[0].get("settings", {}).get(key) != value
        ]
        kept = [] if self.changed else [line for line in earlier[1:] if "video" in line]
        self.done = {line["video"]: line for line in kept}
        write_whole(path, "".join(_line(line) for line in ({"settings": self.settings}, *self.done.values())))

    def finished(self, name: str, path: Path) -> dict[str, Any] | None:
        """The record of a video that was read in an earlier run and has not changed since."""
        line = self.done.get(name)
        return line["record"] if line and line["stamp"] == _stamp(path) else None

    def add(self, name: str, result: VideoScore) -> dict[str, Any]:
        """Write down a finished video; returns its record."""
        record = {
            "filename": name,
            "status": result.status,
            "message": result.message,
            "score": result.score,
            "frames": result.frames,
            "faces": result.faces,
            "seconds": result.seconds,
        }
        if result.status != "unreadable":
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line({"video": name, "stamp": _stamp(result.path), "record": record}))
        return record


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal up to the first that was not written to its end."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
