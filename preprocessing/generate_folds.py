"""Stage 5: list all crops with their label and fold.

    python preprocessing/generate_folds.py --root-dir DATA_ROOT [--out FILE] [--n-splits 16] [--seed 777]

writes folds.csv with the columns video, file, label (1 = fake), original (of a real video: itself), frame, fold;
the order of the rows is drawn with the seed. A fake and its original are in one fold.

DFDC's 50 parts are cut into runs of equal length, of which the last takes what is left: with 16 folds, fold 0
is parts 0 to 2. Other datasets: official validation videos are fold 0, official test videos fold -1, and the
rest is dealt to the other folds by the seed, videos of one person or pair of persons together.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from array import array
from pathlib import Path

import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from preprocessing import command
from preprocessing.dataset import Dataset, Video
from preprocessing.images import FaceImage, ImageError, image_name, list_images
from preprocessing.jobs import Outcome, StageError
from preprocessing.output import make_folder, whole_file

COLUMNS = ("video", "file", "label", "original", "frame", "fold")
PARTS = 50
N_SPLITS = 16
SEED = 777
HOLDOUT = 0
TEST = -1

log = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__)
    command.add_crops_dir(parser)
    parser.add_argument("--out", type=Path, help="CSV to write (default: folds.csv in the root folder)")
    parser.add_argument("--n-splits", type=command.positive, default=N_SPLITS, help="number of folds")
    parser.add_argument("--seed", type=command.not_negative, default=SEED, help="of the order of the rows")
    return parser


def main(args: argparse.Namespace) -> int:
    dataset = command.load(args)
    folds = assign_folds(dataset, args.n_splits, args.seed)
    check_folds(dataset, folds)
    videos = list(dataset.videos.values())
    outcomes, rows = {}, array("i")
    for number, video in enumerate(videos):
        crops = list_crops(args.root_dir / args.crops_dir, video)
        outcomes[video.id] = outcome(dataset, video, crops)
        for crop in crops or []:
            rows.extend((number, crop.frame, crop.face))
    if not rows:
        raise StageError(f"{args.root_dir / args.crops_dir}: no crops of the dataset's videos; run extract_crops.py")
    out = args.out or args.root_dir / "folds.csv"
    make_folder(out.parent)
    with whole_file(out) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for number, frame, face in np.random.default_rng(args.seed).permutation(np.reshape(rows, (-1, 3))):
            video = videos[number]
            crop = (video.id, image_name(frame, face), int(video.fake), video.original or video.id, frame)
            writer.writerow((*crop, folds[video.id]))
    print(contents([(folds[video.id], video.fake, outcomes[video.id]) for video in videos], args.n_splits))
    return command.finish(outcomes, "they have no crops; see what extract_crops.py said of them")


def assign_folds(dataset: Dataset, n_splits: int, seed: int) -> dict[str, int]:
    """The fold of each video, by id."""
    videos = dataset.videos.values()
    if dataset.layout == "dfdc":
        if n_splits > PARTS:
            raise StageError(f"--n-splits {n_splits}: there are {PARTS} parts to divide")
        return {video.id: min(int(video.group) // (PARTS // n_splits), n_splits - 1) for video in videos}
    first = int(any(video.split == "val" for video in videos) and n_splits > 1)
    groups = np.random.default_rng(seed).permutation(sorted({video.group for video in videos}))
    dealt = {group: first + number % (n_splits - first) for number, group in enumerate(groups.tolist())}
    official = {"val": HOLDOUT, "test": TEST}
    return {video.id: official.get(video.split, dealt[video.group]) for video in videos}


def check_folds(dataset: Dataset, folds: dict[str, int]) -> None:
    """Raises StageError where fakes of one original, or they and it, are in several folds; an official split may."""
    fold_of: dict[str, int] = {}
    divided = 0
    for video in dataset.videos.values():
        together = fold_of.setdefault(video.original or video.id, folds[video.id])
        if folds[video.id] != together and dataset.layout == "dfdc":
            raise StageError(f"{video.path}: is in fold {folds[video.id]}, others of its original in {together}")
        divided += folds[video.id] != together
    if divided:
        log.warning("%d videos are in another fold than others of their original, by the official split", divided)


def list_crops(crops: Path, video: Video) -> list[FaceImage] | None:
    """None where the folder of the video's crops is not there."""
    try:
        return list_images(crops / video.id)
    except ImageError:
        return None


def outcome(dataset: Dataset, video: Video, crops: list[FaceImage] | None) -> Outcome:
    if crops:
        return Outcome("ok", counts={"rows": len(crops)})
    if crops is not None:
        return Outcome("no_face")
    return Outcome("no_original" if video.fake and not dataset.original_of(video) else "no_crops")


def contents(videos: list[tuple[int, bool, Outcome]], n_splits: int) -> str:
    """A table of the folds that have any rows, and those that have none; `videos`: fold, fake, outcome of each."""
    sums = {fold: [0, 0, 0] for fold, _, ended in videos if ended.counts}
    for fold, fake, ended in videos:
        if ended.counts:
            sums[fold][fake] += 1
            sums[fold][2] += ended.counts["rows"]
    lines = [f"{'fold':>4}{'real':>8}{'fake':>8}{'rows':>10}"]
    lines += [f"{fold:4}{real:8}{fake:8}{rows:10}" for fold, (real, fake, rows) in sorted(sums.items())]
    empty = [str(fold) for fold in range(n_splits) if fold not in sums]
    return "\n".join(lines + ([f"empty folds: {', '.join(empty)}"] if empty else []))


if __name__ == "__main__":
    command.main(main, get_args_parser())
