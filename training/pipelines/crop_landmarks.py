"""Detect the facial landmarks in crops that have come without their videos.

    python -m training.pipelines.crop_landmarks --data-dir DATA_ROOT [--crops-dir DIR] [--folds-csv CSV]

writes DATA_ROOT/landmarks/ as stage 3 of preprocessing does, for the real crops that folds.csv lists. Of several faces
in a crop, the one that covers it best is used. After an interruption, the same command resumes.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from common import cli, jobs
from common.collector import no_garbage_collection
from common.files import atomic_folder
from common.outcome import Job, Outcome
from preprocessing import stage
from preprocessing.boxes import overlap
from preprocessing.images import read_image
from preprocessing.landmark_files import encode_landmarks
from preprocessing.layout import FOLDS_CSV, LANDMARKS, landmarks_name
from training.options import add_crops_arguments

VERSION = 1


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add_crops_arguments(parser)
    add = parser.add_argument
    add("--workers", type=cli.positive, help="number of worker processes (default: one per CPU core)")
    add("--retry-failed", action="store_true", help="re-run the videos that failed in an earlier run")
    return parser


def main(args: argparse.Namespace) -> int:
    """Detect the landmarks of all real crops. Return the exit status."""
    from training.datasets.folds import read_folds  # loads pandas

    crops = read_folds(args.folds_csv or args.data_dir / FOLDS_CSV)
    files = defaultdict[str, list[str]](list)
    for row in np.flatnonzero(~crops.fake):
        files[crops.videos[crops.video[row]]].append(crops.files[crops.file[row]])
    output = args.data_dir / LANDMARKS
    todo = []
    for video, names in files.items():
        folder = args.data_dir / args.crops_dir / video
        todo.append(Job(video, (folder,), output / video, (folder, sorted(names), output / video)))
    settings = {"stage": Path(__file__).stem, "version": VERSION, "crops": str(args.crops_dir)}
    outcomes = jobs.run(landmarks, todo, output, settings, args.workers, stage.STATUSES, args.retry_failed)
    return stage.report(outcomes, "Fix the cause and re-run with --retry-failed")


def landmarks(crops: Path, names: list[str], output: Path) -> Outcome:
    """Write the landmarks of the crops of one video."""
    with no_garbage_collection():
        from preprocessing.faces import find_faces, get_detector  # loads PyTorch, which takes seconds

    detector = get_detector("landmarks", None, "cpu")
    found = 0
    with atomic_folder(output) as folder:
        for name in names:
            image = read_image(crops / name)
            height, width = image.shape[:2]
            whole = np.array([0, 0, width, height])
            faces = find_faces(detector, [image])[0]
            if faces:
                best = max(faces, key=lambda face: overlap(face.box, whole))
                (folder / landmarks_name(name)).write_bytes(encode_landmarks(best.points))
                found += 1
    counts = {"crops": len(names), "landmarks": found, "without": len(names) - found}
    return Outcome("ok" if found else "no_face", counts=counts)


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
