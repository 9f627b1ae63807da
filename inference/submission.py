"""Score a folder of videos: find them, score those that are not finished, write the submission and the details."""

from __future__ import annotations

import csv
import io
import logging
import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Generic, NamedTuple, TypeVar

from tqdm import tqdm

from common import __version__
from common.errors import UserError
from common.file_cache import open_cache
from common.files import atomic_write, make_folder, temporary_path
from common.journal import Journal, stamp_of
from common.object_store import GIB, File, list_files
from common.text import abbreviate, plural, printable, shorten
from inference.details import PEOPLE_DISAGREE, complete
from inference.video_score import VideoScore
from preprocessing.layout import VIDEO_SUFFIXES

AnyFile = TypeVar("AnyFile", bound=File, covariant=True)
# Yields the name and the result of each video, in any order.
Score = Callable[[Mapping[str, File]], Iterator[tuple[str, VideoScore]]]

# Statuses of videos that were read. Videos with another status have failed, and the next run tries them again.
READ = ("ok", "no_face")
STATUSES = (*READ, "unreadable", "too_large")
# Increase this when scores or records change, so that old records are not mixed with new ones.
RECORD_VERSION = 6

log = logging.getLogger(__name__)


class UsageError(UserError):
    """Arguments that name missing or unsuitable files."""


class Found(NamedTuple, Generic[AnyFile]):
    """What a folder or an object store contains.

    Attributes:
        videos: file by name, sorted by name; also broken links, pipes and devices that are named like a video.
        others: names of the other files.
        unlisted: reason by name of the subfolders that cannot be listed.
    """

    videos: Mapping[str, AnyFile]
    others: list[str]
    unlisted: dict[str, str]


@contextmanager
def open_videos(source: Path | str, cache_folder: Path | None, cache_size: float) -> Iterator[Found[File]]:
    """Yield the videos, whose copies in the cache can be used within the block.

    Args:
        source: a path, see `find_videos`, or the URL of a video or of a folder in an object store.
        cache_folder: folder of the copies of files in an object store; None for a temporary one.
        cache_size: total size of the copies at most in GiB.

    Raises:
        UsageError: there is no video.
        UserError: an object store cannot be listed, or the cache cannot be written to.
    """
    if isinstance(source, Path):
        yield find_videos(source)
        return
    with open_cache(cache_folder, int(cache_size * GIB)) as cache:
        files = list_files(source, cache)
        videos = {name: files[name] for name in _named_like_videos(files)}
        if not videos:
            raise UsageError(f"{source}: contains no video ({_suffixes()}). Correct the URL")
        yield Found(videos, sorted(files.keys() - videos.keys()), {})


def find_videos(path: Path) -> Found[Path]:
    """Find the videos without opening any file. A name is the path relative to the folder, with forward slashes.

    Args:
        path: a folder, searched with its subfolders, or one video.

    Raises:
        UsageError: the path does not exist, is a file of another kind or contains no video.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}. Choose a video or a folder of videos") from None
    if stat.S_ISDIR(mode):
        return _find_in_folder(path)
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path}: is not a regular file. Choose a video or a folder of videos")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UsageError(f"{path}: is not a video (expected {_suffixes()}). Choose a video or a folder of videos")
    return Found({path.name: path}, [], {})


def _find_in_folder(path: Path) -> Found[Path]:
    paths, reasons = _walk(path)
    if path in reasons:
        raise UsageError(f"{path}: cannot be listed ({reasons[path]}). Change its permissions or choose another folder")
    files = {file.relative_to(path).as_posix(): file for file in paths}
    unlisted = {folder.relative_to(path).as_posix(): reasons[folder] for folder in sorted(reasons)}
    videos = {name: files[name] for name in _named_like_videos(files)}
    if not videos:
        but = f", but cannot list {abbreviate(list(unlisted))}" if unlisted else ""
        raise UsageError(f"{path}: contains no video ({_suffixes()}){but}. Choose another folder")
    return Found(videos, sorted(files.keys() - videos.keys()), unlisted)


def _named_like_videos(names: Iterable[str]) -> list[str]:
    return [name for name in sorted(names) if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES]


def _walk(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Return everything below a folder that is not a folder, and the reason for each folder that cannot be listed.

    Links to folders are followed, but each folder is listed once, preferably under its own name.
    """
    files: list[Path] = []
    unlisted: dict[Path, str] = {}
    seen = set()
    todo = deque([folder])
    while todo:
        current = todo.popleft()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                for entry in entries:
                    if not _is_folder(entry):
                        files.append(Path(entry.path))
                    elif entry.is_symlink():
                        todo.append(Path(entry.path))
                    else:
                        todo.appendleft(Path(entry.path))
        except OSError as error:
            unlisted[current] = error.strerror or str(error)
    return files, unlisted


def _is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder or a link to one. A link that leads nowhere is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


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


def check_outputs(outputs: Sequence[Path], videos: Mapping[str, File]) -> None:
    """Check that the outputs can be written and overwrite neither a video nor each other; make their folders.

    Raises:
        UsageError: an output is not a file or would overwrite something.
        OutputError: an output's folder cannot be created or written to.
    """
    taken = {os.path.realpath(video) for video in videos.values() if isinstance(video, Path)}
    for path in outputs:
        if not path.name or path.is_dir() or temporary_path(path).is_dir():
            raise UsageError(f"{path}: is a folder. Choose a file name for the output")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is not a regular file. Choose a file name for the output")
        written = {os.path.realpath(path), os.path.realpath(temporary_path(path))}
        if written & taken:
            raise UsageError(f"{path}: would overwrite a video or another output. Choose another name")
        taken |= written
        make_folder(path.parent)


def journal_path(output: Path) -> Path:
    """Return the path of the status records of a submission. Raises UsageError."""
    if not output.name:
        raise UsageError(f"{output}: is a folder. Choose a file name for the output")
    return output.with_name(f"{output.name}.progress.jsonl")


def is_record(name: str, record: dict[str, Any]) -> bool:
    """Return whether a record of the progress file is complete enough for the outputs."""
    score = record.get("score")
    is_score = isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1
    is_complete = {"video_score", "model_scores", "people", "faces"} <= record.keys()
    return is_score and is_complete and record.get("filename") == name and record.get("status") in READ


def score_videos(videos: Mapping[str, File], score: Score, journal: Journal) -> list[dict[str, Any]]:
    """Score the videos that have no record in the journal and add theirs. Return the records of all, in order."""
    stamps = {name: stamp_of(path) for name, path in videos.items()}
    finished = {name: record for name, stamp in stamps.items() if (record := journal.get(name, stamp))}
    todo = [name for name in videos if name not in finished]
    if finished:
        log.info("resuming: %d of %s finished by an earlier run", len(finished), plural(len(videos), "video"))
    scored = {}
    # disable=None: no progress bar if the output is redirected
    with tqdm(total=len(videos), initial=len(finished), unit="video", disable=None if todo else True) as progress:
        for name, result in score({name: videos[name] for name in todo}):
            scored[name] = to_record(name, result)
            if result.status != "ok":
                log.warning("%s: %s", name, result.message.removeprefix(f"{result.path}: "))
            if result.status in READ:
                journal.add(name, stamps[name], scored[name])
            progress.update()
    return [{**finished, **scored}[name] for name in videos]


def to_record(name: str, result: VideoScore) -> dict[str, Any]:
    """Return a video's record, which is its line of --details. docs/formats.md describes the keys."""
    record = {
        "filename": name,
        "status": result.status,
        "message": result.message,
        "notes": result.notes,
        "score": result.score,
        "video_score": result.score,
        "model_scores": result.model_scores,
        "people": result.people,
        "codec": result.codec,
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
    return record | ({"sha256": result.sha256, "bytes": result.bytes} if result.sha256 else {})


def complete_records(
    records: Sequence[dict[str, Any]],
    header: Mapping[str, Any],
    videos: Mapping[str, File],
    journal: Journal,
    hash_files: bool,
) -> list[dict[str, Any]]:
    """Return the records as they are in --details, see `inference.details.complete`.

    Args:
        records: result of `score_videos`.
        header: header of --details.
        videos: file by name.
        journal: the status records of the run.
        hash_files: whether to add the size and the SHA-256 of each file; those in an object store have them.

    Raises:
        UsageError: a record that an earlier run has stored is damaged.
    """
    completed = []
    for record in records:
        name = record["filename"]
        file = videos[name] if hash_files else None
        if file and record["status"] in READ and journal.get(name, stamp_of(file)) is None:
            file = None  # the file has changed since it was scored
        try:
            completed.append(complete(record, header, file))
        except (LookupError, TypeError, ValueError, AttributeError):
            reason = f"the record of {shorten(printable(name))} is damaged"
            raise UsageError(f"{journal.path}: {reason}. Start over with --overwrite") from None
    return completed


def write_submission(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write the CSV with the columns filename and label. Raises OutputError."""
    rows = [("filename", "label"), *((record["filename"], record["score"]) for record in records)]
    atomic_write(path, "".join(map(_csv_line, rows)))


def summarize(records: Sequence[dict[str, Any]], unlisted: Mapping[str, str]) -> str:
    """Format the number of videos per status, with the names of those that failed and the unlisted folders.

    A second line names the videos whose people disagree.
    """
    counts = Counter(record["status"] for record in records)
    parts = [f"{counts[status]} {status.replace('_', ' ')}" for status in STATUSES if counts[status]]
    parts += [f"{plural(len(unlisted), 'folder')} not listed"] if unlisted else []
    failed = [record["filename"] for record in records if record["status"] not in READ] + list(unlisted)
    divided = [record["filename"] for record in records if PEOPLE_DISAGREE in record["low_evidence"]]
    return (
        ", ".join(parts)
        + (f": {abbreviate(failed)}" if failed else "")
        + (f"\npeople disagree in {plural(len(divided), 'video')}: {abbreviate(divided)}" if divided else "")
    )


def warn_of_unlisted(found: Found) -> None:
    """Log the folders that cannot be listed."""
    for name, reason in found.unlisted.items():
        log.warning("%s: the folder cannot be listed (%s). The videos in it are left out", name, reason)


def log_start(found: Found, models: Sequence[str], where: str) -> None:
    """Log the number of videos, the skipped files and folders, the models and where they run."""
    warn_of_unlisted(found)
    if found.others:
        log.info("skipped, not videos: %s", abbreviate(found.others))
    log.info("%s, %s on %s", plural(len(found.videos), "video"), abbreviate(models), where)


def _csv_line(row: tuple) -> str:
    """Format a row. Fields with a line break are quoted; with its lineterminator "\\n", csv does not quote "\\r"."""
    line = io.StringIO()
    csv.writer(line).writerow(row)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _suffixes() -> str:
    return ", ".join(sorted(VIDEO_SUFFIXES))
