"""Score every video of a folder: the probability that its faces are fake.

    python predict_folder.py --test-dir VIDEOS --output submission.csv [--models A B ...]

writes a CSV with the columns filename and label, one row a video. Without --models the small model
that ships in weights/ is used. Stopped half-way, the same command takes up where it was.

Exit status: 0 all videos were read (no face found in some, perhaps); 3 some could not be read; 2 wrong
usage or a checkpoint that cannot be used; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from inference.aggregation import STRATEGIES
from inference.options import FRAMES, PRECISIONS
from preprocessing import command
from preprocessing.allocator import keep_freed_memory
from preprocessing.command import detector_scale, positive, some
from preprocessing.errors import ReportedError
from preprocessing.journal import Journal, stamp_of
from preprocessing.output import make_folder, write_whole
from preprocessing.video import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from inference.predictor import Predictor, VideoScore

ROOT = Path(__file__).resolve().parent
DEFAULT_MODEL = ROOT / "weights" / "default_lite0.pt"
MODEL_CARD = ROOT / "weights" / "MODEL_CARD.md"
STATUSES = ("ok", "no_face", "unreadable")
# To be raised when a change of the code changes scores or records, so that old ones are not mixed with new ones.
VERSION = 2

log = logging.getLogger("predict_folder")


class UsageError(ReportedError):
    """What the user asked for cannot be done. The message says what to do instead."""


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n", 2)[2], formatter_class=_HelpFormatter
    )
    parser.add_argument("--test-dir", type=Path, required=True, help="folder of videos (with subfolders), or one file")
    parser.add_argument("--output", type=Path, required=True, help="CSV to write")
    parser.add_argument("--details", type=Path, help="also write one JSON line a video: status, frames, faces, scores")
    parser.add_argument("--models", nargs="+", metavar="CHECKPOINT", help="files, or names in --weights-dir")
    parser.add_argument("--weights-dir", type=Path, default=ROOT / "weights", help="where checkpoints are looked up")
    method = parser.add_argument_group("method")
    method.add_argument("--frames", type=positive, default=FRAMES, help="frames looked at, spread over the clip")
    method.add_argument("--strategy", choices=STRATEGIES, default="confident", help="from face scores to a video's")
    method.add_argument(
        "--detector-scale",
        type=detector_scale,
        default="auto",
        help="scale of the face detector's input: auto (by the frame's size) or a number; "
        "the released checkpoints were made with 0.5",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    machine.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto", help="of the classifiers")
    machine.add_argument("--batch-size", type=positive, help="faces a forward pass (default: by device)")
    machine.add_argument("--workers", type=positive, help="clips decoded at once (default: by cores)")
    parser.add_argument("--overwrite", action="store_true", help="start afresh, whatever an earlier run has done")
    return parser


def main(args: argparse.Namespace) -> int:
    keep_freed_memory()
    videos, others = find_videos(args.test_dir)
    if others:
        log.info("skipped, not videos: %s", some(others))
    if not videos:
        raise UsageError(f"{args.test_dir}: holds no video ({', '.join(sorted(VIDEO_SUFFIXES))})")
    journal_path = args.output.with_name(f"{args.output.name}.progress.jsonl")
    check_results([args.output, journal_path, *([args.details] if args.details else [])], videos)
    checkpoints = find_checkpoints(args.models, args.weights_dir)

    # PyTorch takes seconds to load: not before the arguments are known to be good.
    from inference.ensemble import Ensemble
    from inference.predictor import Predictor
    from preprocessing.faces import FaceDetector

    ensemble = Ensemble(checkpoints, args.device, args.precision)
    scale = None if args.detector_scale == "auto" else args.detector_scale
    detector = FaceDetector("inference", ensemble.device, scale)
    predictor = Predictor(ensemble, detector, args.strategy, args.frames, args.workers, args.batch_size)
    settings = {
        "version": VERSION,
        "models": [_sha256(path) for path in checkpoints],
        "names": ensemble.names,
        "device": ensemble.device.type,
        "precision": ensemble.precision,
        "frames": args.frames,
        "strategy": args.strategy,
        "detector_scale": args.detector_scale,
    }
    journal = Journal(journal_path, settings, args.overwrite)
    if journal.changed:
        log.info("starting afresh: another %s than in the earlier run", ", ".join(journal.changed))
    log.info("%d videos, %s on %s in %s", len(videos), some(ensemble.names), ensemble.device, ensemble.precision)
    if args.models is None:
        log.warning("the embedded model is a small one, often wrong: %s says how often, and on what", MODEL_CARD)

    records = score(videos, predictor, journal)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("filename", "label"))
    rows.writerows((record["filename"], record["score"]) for record in records)
    write_whole(args.output, table.getvalue())
    if args.details:
        write_whole(args.details, "".join(json.dumps(record) + "\n" for record in records))
    print(summary(records))
    return 3 if any(record["status"] == "unreadable" for record in records) else 0


def find_videos(place: Path) -> tuple[dict[str, Path], list[str]]:
    """The videos under a folder, or the one file, by name, in order; and the names of the other files there.

    The name of a video in a subfolder begins with the subfolder's. A file that is asked for itself is a video.
    """
    if place.is_file():
        return {place.name: place}, []
    if not place.is_dir():
        raise UsageError(f"{place}: no such file or folder")
    files = {path.relative_to(place).as_posix(): path for path in _files_under(place, set())}
    videos = {name: files[name] for name in sorted(files) if files[name].suffix.lower() in VIDEO_SUFFIXES}
    return videos, sorted(files.keys() - videos.keys())


def find_checkpoints(models: list[str] | None, weights_dir: Path) -> list[Path]:
    """The files of the models that are asked for; the embedded one where none is."""
    if models is None:
        return [DEFAULT_MODEL]
    paths = [path if (path := Path(model)).is_file() else weights_dir / model for model in models]
    missing = [str(path) for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        raise UsageError(
            f"no such checkpoint: {', '.join(missing)}. ./download_weights.sh fetches the released ones "
            "into weights/; without --models the small model that ships with the project is used"
        )
    return paths


def check_results(results: list[Path], videos: dict[str, Path]) -> None:
    """Find out before the work, not after it, that a result cannot be written, or would overwrite something else."""
    inputs = {path.resolve() for path in videos.values()}
    for number, path in enumerate(results):
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is not a file (a folder, perhaps); name a file")
        if path.resolve() in inputs | {other.resolve() for other in results[:number]}:
            raise UsageError(f"{path}: would overwrite one of the videos or another result; name another file")
        make_folder(path.parent)


def score(videos: dict[str, Path], predictor: Predictor, journal: Journal) -> list[dict]:
    """The records of all videos, in order: those of an earlier run and the new ones, which are journalled."""
    stamps = {name: stamp_of(path) for name, path in videos.items()}
    records = {name: journal.finished(name, stamp) for name, stamp in stamps.items()}
    names = [name for name, record in records.items() if record is None]
    if len(names) < len(videos):
        log.info("%d of %d were done in an earlier run", len(videos) - len(names), len(videos))
    with tqdm(total=len(videos), initial=len(videos) - len(names), unit="video") as bar:
        for name, result in zip(names, predictor.predict(videos[name] for name in names), strict=True):
            records[name] = record_of(name, result)
            if result.status != "ok":
                log.warning("%s: %s", name, result.message.removeprefix(f"{result.path}: "))
            if result.status != "unreadable":  # those are tried again
                journal.add(name, stamps[name], records[name])
            bar.update()
    return list(records.values())


def record_of(name: str, result: VideoScore) -> dict:
    """A video's line of --details, which the journal keeps."""
    return {
        "filename": name,
        "status": result.status,
        "message": result.message,
        "score": result.score,
        "frames": result.frames,
        "faces": result.faces,
        "seconds": result.seconds,
    }


def summary(records: list[dict]) -> str:
    """One line: how many videos ended how, with the names of those that could not be read."""
    names = {status: [r["filename"] for r in records if r["status"] == status] for status in STATUSES}
    parts = [f"{len(names[status])} {status.replace('_', ' ')}" for status in STATUSES if names[status]]
    return ", ".join(parts) + (f": {some(names['unreadable'])}" if names["unreadable"] else "")


def _files_under(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """All files (and links that lead nowhere) below a folder; through links to folders too, but each folder once."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files_under(path, seen)
        elif path.is_file() or path.is_symlink():
            yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in the help, and the text as it was written."""


if __name__ == "__main__":
    command.main(main, get_args_parser())
