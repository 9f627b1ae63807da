"""Score a folder of videos: find them, score those that are not finished, write the submission and the details."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from common import __version__
from common.errors import UserError
from common.files import atomic_write, make_folder
from common.journal import Journal, stamp_of
from common.text import abbreviate, plural
from preprocessing.layout import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from inference.predictor import Predictor, VideoScore

STATUSES = ("ok", "no_face", "unreadable")
# Increase this when scores or records change, so that old records are not mixed with new ones.
RECORD_VERSION = 3

log = logging.getLogger(__name__)


class UsageError(UserError):
    """Arguments that name missing or unsuitable files."""


def find_videos(path: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the videos, by name and sorted, and the names of the other files.

    A name is the path relative to the folder, with forward slashes.

    Args:
        path: a folder, searched with its subfolders, or one video.

    Raises:
        UsageError: the path does not exist, is a file of another kind or contains no video.
    """
    if path.is_file():
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise UsageError(f"{path}: is not a video (expected {_suffixes()}). Choose a video or a folder of videos")
        return {path.name: path}, []
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder. Choose a video or a folder of videos")
    files = {file.relative_to(path).as_posix(): file for file in _files_under(path, set())}
    videos = {name: files[name] for name in sorted(files) if files[name].suffix.lower() in VIDEO_SUFFIXES}
    if not videos:
        raise UsageError(f"{path}: contains no video ({_suffixes()}). Choose another folder")
    return videos, sorted(files.keys() - videos.keys())


def find_checkpoints(models: Sequence[str], weights_dir: Path) -> list[Path]:
    """Return the paths of checkpoints given as paths or as names in `weights_dir`. Raises UsageError."""
    paths = [path if (path := Path(model)).is_file() else weights_dir / model for model in models]
    missing = [str(path) for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        raise UsageError(
            f"{', '.join(missing)}: no such checkpoint. ./download_weights.sh downloads the released ones to weights/; "
            "leave out --models to use the embedded model"
        )
    return paths


def check_outputs(outputs: Sequence[Path], videos: dict[str, Path]) -> None:
    """Check that the outputs can be written and overwrite neither a video nor each other; make their folders.

    Raises:
        UsageError: an output is not a file or would overwrite something.
        OutputError: an output's folder cannot be created or written to.
    """
    taken = {path.resolve() for path in videos.values()}
    for path in outputs:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is not a file. Choose a file name for the output")
        if path.resolve() in taken:
            raise UsageError(f"{path}: would overwrite a video or another output. Choose another name")
        taken.add(path.resolve())
        make_folder(path.parent)


def journal_path(output: Path) -> Path:
    """Return the path of the status records of a submission."""
    return output.with_name(f"{output.name}.progress.jsonl")


def score_videos(videos: dict[str, Path], predictor: Predictor, journal: Journal) -> list[dict[str, Any]]:
    """Score the videos that have no record in the journal and add theirs. Return the records of all, in order."""
    stamps = {name: stamp_of(path) for name, path in videos.items()}
    finished = {name: record for name, stamp in stamps.items() if (record := journal.get(name, stamp))}
    todo = [name for name in videos if name not in finished]
    if finished:
        log.info("resuming: %d of %s finished by an earlier run", len(finished), plural(len(videos), "video"))
    scored = {}
    # disable=None: no progress bar if the output is redirected
    with tqdm(total=len(videos), initial=len(finished), unit="video", disable=None if todo else True) as progress:
        for name, result in zip(todo, predictor.predict(videos[name] for name in todo), strict=True):
            scored[name] = to_record(name, result)
            if result.status != "ok":
                log.warning("%s: %s", name, result.message.removeprefix(f"{result.path}: "))
            if result.status != "unreadable":  # the next run tries these again
                journal.add(name, stamps[name], scored[name])
            progress.update()
    return [{**finished, **scored}[name] for name in videos]


def to_record(name: str, result: VideoScore) -> dict[str, Any]:
    """Return a video's record, which is its line of --details. docs/formats.md describes the keys."""
    return {
        "filename": name,
        "status": result.status,
        "message": result.message,
        "score": result.score,
        "frames": result.frames,
        "fps": result.fps,
        "duration": result.duration,
        "width": result.width,
        "height": result.height,
        "faces": result.faces,
        "seconds": result.seconds,  # kept for scripts that read it; easily mistaken for the duration
        "processing_seconds": result.seconds,
        "version": __version__,
    }


def write_submission(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write the CSV with the columns filename and label. Raises OutputError."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("filename", "label"))
    rows.writerows((record["filename"], record["score"]) for record in records)
    atomic_write(path, table.getvalue())


def write_details(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write one JSON line per video. Raises OutputError."""
    atomic_write(path, "".join(json.dumps(record) + "\n" for record in records))


def summarize(records: Sequence[dict[str, Any]]) -> str:
    """Return a line with the number of videos per status and the names of the unreadable ones."""
    names = {status: [r["filename"] for r in records if r["status"] == status] for status in STATUSES}
    parts = [f"{len(names[status])} {status.replace('_', ' ')}" for status in STATUSES if names[status]]
    return ", ".join(parts) + (f": {abbreviate(names['unreadable'])}" if names["unreadable"] else "")


def log_start(videos: dict[str, Path], others: Sequence[str], models: Sequence[str], where: str) -> None:
    """Log the number of videos, the skipped files, the models and where they run."""
    if others:
        log.info("skipped, not videos: %s", abbreviate(others))
    log.info("%s, %s on %s", plural(len(videos), "video"), abbreviate(models), where)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _suffixes() -> str:
    return ", ".join(sorted(VIDEO_SUFFIXES))


def _files_under(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield all files and broken links below a folder; follow links to folders, but visit each folder once."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files_under(path, seen)
        elif path.is_file() or path.is_symlink():
            yield path
