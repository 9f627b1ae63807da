"""Stage 5: list all crops with their labels and folds.

    python preprocessing/generate_folds.py --root-dir DATA_ROOT [--crop KIND] [--out FILE] [--n-splits 16] [--seed 777]

writes folds.csv (with --crop square: folds_square.csv) with the columns video, file, label (1 = fake), original (for a
real video, its own id), frame, fold.

Rows are shuffled with the seed. A fake and its original are in the same fold, unless an official split separates them.
Of DFDC's originals, only those that some fake names are listed, as in the published code; --all-originals lists all.

DFDC's 50 parts are split into runs of equal length, the last of which takes the remainder: with 16 folds, fold 0 is
parts 0 to 2. In other datasets, official validation videos are fold 0, official test videos are fold -1, and the rest
is distributed over the remaining folds by the seed, keeping the videos of people who are linked by fakes together.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from array import array
from operator import attrgetter
from pathlib import Path

import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli
from common.files import atomic_file, make_folder
from common.outcome import Outcome, StageError
from common.text import plural
from preprocessing import stage
from preprocessing.crops import MarginCrop
from preprocessing.dataset import Dataset, Video
from preprocessing.images import FaceImage, ImageError, list_images
from preprocessing.layout import FOLDS_COLUMNS, FOLDS_CSV, FOLDS_SQUARE_CSV, crop_name

PARTS = 50
N_SPLITS = 16
SEED = 777
HOLDOUT_FOLD, TEST_FOLD = 0, -1

log = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = stage.make_parser(__doc__)
    parser.add_argument("--out", type=Path, help="CSV to write (default: DATA_ROOT/folds.csv, or folds_square.csv)")
    parser.add_argument("--n-splits", type=cli.positive, default=N_SPLITS, help="number of folds")
    parser.add_argument(
        "--seed",
        type=cli.not_negative,
        default=SEED,
        help="random seed of the row order and, except for DFDC, the folds",
    )
    parser.add_argument("--all-originals", action="store_true", help="also list DFDC's originals that no fake names")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the list of crops. Return the exit status."""
    if args.shard:
        raise StageError("--shard: folds.csv lists the crops of all shards. Leave it out, when all shards are finished")
    dataset, root = stage.load_dataset(args), stage.data_root(args)
    folds = assign_folds(dataset, args.n_splits, args.seed)
    check_folds(dataset, folds)
    videos = list_videos(dataset, args.all_originals)
    outcomes, rows = {}, array("i")  # video number, frame, face; compact, as DFDC has millions of crops
    for number, video in enumerate(videos):
        crops = list_crops(root.crops(video.id))
        outcomes[video.id] = outcome_of(dataset, video, crops)
        if isinstance(crops, ImageError):
            if crops.status != "no_crops":
                log.warning("%s", crops)
            continue
        for crop in crops:
            rows.extend((number, crop.frame, crop.face))
    if not rows:
        option = "" if len(videos) == len(dataset.videos) else ", or add --all-originals"
        raise StageError(f"{root.crops('')}: no crops of the listed videos. Run extract_crops.py{option}")
    shuffled = np.random.default_rng(args.seed).permutation(np.reshape(rows, (-1, 3)))
    listed = FOLDS_CSV if args.crop.kind == MarginCrop.kind else FOLDS_SQUARE_CSV
    write_folds(args.out or args.root_dir / listed, videos, folds, shuffled)
    print(format_contents([(folds[video.id], video.fake, outcomes[video.id]) for video in videos], args.n_splits))
    return stage.report(outcomes, "They have no crops: see the messages of extract_crops.py")


def list_videos(dataset: Dataset, all_originals: bool) -> list[Video]:
    """Return the videos to list. Other datasets than DFDC have official test sets with originals that no fake names."""
    videos = list(dataset.videos.values())
    if dataset.layout != "dfdc" or all_originals:
        return videos
    named = {video.original for video in videos if video.fake}
    listed = [video for video in videos if video.fake or video.id in named]
    if len(listed) < len(videos):
        count = plural(len(videos) - len(listed), "original")
        log.info("not listed: %s that no fake names. --all-originals lists them", count)
    return listed


def assign_folds(dataset: Dataset, n_splits: int, seed: int) -> dict[str, int]:
    """Return the fold of each video by id. Raises StageError."""
    videos = dataset.videos.values()
    if dataset.layout == "dfdc":
        if n_splits > PARTS:
            raise StageError(f"--n-splits {n_splits}: there are only {PARTS} parts. Choose a smaller number")
        return {video.id: min(int(video.group) // (PARTS // n_splits), n_splits - 1) for video in videos}
    first = int(any(video.split == "val" for video in videos) and n_splits > 1)
    groups = np.random.default_rng(seed).permutation(sorted({video.group for video in videos}))
    assigned = {group: first + number % (n_splits - first) for number, group in enumerate(groups.tolist())}
    official = {"val": HOLDOUT_FOLD, "test": TEST_FOLD}
    return {video.id: official.get(video.split or "", assigned[video.group]) for video in videos}


def check_folds(dataset: Dataset, folds: dict[str, int]) -> None:
    """Check that an original and its fakes share a fold. Raises StageError; official splits may separate them."""
    fold_of: dict[str, int] = {}
    separated = 0
    for video in sorted(dataset.videos.values(), key=attrgetter("fake")):  # originals first
        expected = fold_of.setdefault(video.original or video.id, folds[video.id])
        if folds[video.id] != expected and dataset.layout == "dfdc":
            raise StageError(
                f"{video.path}: is in fold {folds[video.id]}, but other videos of its original are in fold {expected}"
            )
        separated += folds[video.id] != expected
    if separated:
        log.warning("videos that the official split puts in a different fold than their original: %d", separated)


def list_crops(folder: Path) -> list[FaceImage] | ImageError:
    """Return a video's crops, or the error if its folder of crops cannot be read."""
    try:
        return list_images(folder)
    except ImageError as error:
        return error


def outcome_of(dataset: Dataset, video: Video, crops: list[FaceImage] | ImageError) -> Outcome:
    """Return the outcome of a video with these crops."""
    if isinstance(crops, ImageError):
        no_original = crops.status == "no_crops" and video.fake and not dataset.original_of(video)
        return Outcome("no_original" if no_original else crops.status)
    return Outcome("ok", counts={"rows": len(crops)}) if crops else Outcome("no_face")


def write_folds(path: Path, videos: list[Video], folds: dict[str, int], rows: np.ndarray) -> None:
    """Write folds.csv from rows (n, 3): video number, frame, face."""
    make_folder(path.parent)
    with atomic_file(path) as temporary, temporary.open("w", newline="", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FOLDS_COLUMNS)
        for number, frame, face in rows:
            video = videos[number]
            original = video.original or video.id
            writer.writerow((video.id, crop_name(frame, face), int(video.fake), original, frame, folds[video.id]))


def format_contents(videos: list[tuple[int, bool, Outcome]], n_splits: int) -> str:
    """Format a table of the folds that have rows, and list the empty ones; `videos`: (fold, fake, outcome) each."""
    sums = {fold: [0, 0, 0] for fold, _, outcome in videos if outcome.counts}
    for fold, fake, outcome in videos:
        if outcome.counts:
            sums[fold][fake] += 1
            sums[fold][2] += outcome.counts["rows"]
    lines = [f"{'fold':>4}{'real':>8}{'fake':>8}{'rows':>10}"]
    lines += [f"{fold:4}{real:8}{fake:8}{rows:10}" for fold, (real, fake, rows) in sorted(sums.items())]
    empty = [str(fold) for fold in range(n_splits) if fold not in sums]
    return "\n".join(lines + ([f"empty folds: {', '.join(empty)}"] if empty else []))


if __name__ == "__main__":
    cli.main(main, get_args_parser())
