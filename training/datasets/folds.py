"""The list of crops, folds.csv: what is trained on, what is validated on, and in which order."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.errors import UserError
from preprocessing.layout import FOLDS_COLUMNS

# Of the validation videos, only frames with such numbers are looked at.
VALIDATION_STEP = 20
# The originals of a fold in two halves: what is chosen and calibrated on one is reported on the other.
HALVES = ("calibration", "report")
# The ids of the 400 videos of DFDC's public test set.
PUBLIC_VIDEOS = Path(__file__).parents[2] / "configs/public_validation_videos.txt"

REMEDY = "make it again with preprocessing/generate_folds.py"


class FoldsError(UserError):
    """A list of crops that cannot be used."""


@dataclass(frozen=True)
class Crops:
    """The rows of folds.csv, as arrays of one length. Names are kept once: `videos[video[row]]`.

    `fake`: bool. `fold`: negative ones are official test sets, which are not trained on.
    """

    videos: list[str]
    files: list[str]
    video: np.ndarray
    file: np.ndarray
    original: np.ndarray  # numbers in `videos`; of a real video its own
    fake: np.ndarray
    frame: np.ndarray
    fold: np.ndarray
    digest: str  # of the file's content

    def __len__(self) -> int:
        return len(self.fake)

    def name(self, row: int) -> str:
        """The crop's file in the folder of crops."""
        return f"{self.videos[self.video[row]]}/{self.files[self.file[row]]}"

    def original_name(self, row: int) -> str:
        """The same crop of the original."""
        return f"{self.videos[self.original[row]]}/{self.files[self.file[row]]}"


class Draw(NamedTuple):
    """A crop to be drawn as a sample: its row, and the epoch and the place in it that seed its augmentation."""

    row: int
    epoch: int
    place: int


def read_folds(path: Path) -> Crops:
    """Raises FoldsError for a file that is not there or not such a list; ids are texts, also numeric ones."""
    names = ("video", "file", "original")
    try:
        # As texts: the type "category" takes ids for numbers where all of them look so.
        table = pd.read_csv(path, dtype=dict.fromkeys(names, str), keep_default_na=False, encoding="utf-8")
    except OSError as error:
        raise FoldsError(f"{path}: cannot be read ({error.strerror}); {REMEDY}, or name another --folds-csv") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise FoldsError(f"{path}: not a CSV file ({str(error).strip()}); {REMEDY}") from None
    missing = [name for name in FOLDS_COLUMNS if name not in table]
    if missing:
        raise FoldsError(f"{path}: has no column {', '.join(missing)}; {REMEDY}")
    if table.empty:
        raise FoldsError(f"{path}: lists no crops; {REMEDY}")
    for name in ("label", "frame", "fold"):
        if not pd.api.types.is_integer_dtype(table[name]):
            raise FoldsError(f"{path}: column {name} holds other things than whole numbers; {REMEDY}")
    if not table["label"].isin((0, 1)).all():
        raise FoldsError(f"{path}: labels are 0 (real) and 1 (fake), and nothing else; {REMEDY}")
    ids, videos = pd.factorize(pd.concat([table["video"], table["original"]]))
    file, files = pd.factorize(table["file"])
    return Crops(
        videos=list(videos),
        files=list(files),
        video=ids[: len(table)].astype(np.int32),
        file=file.astype(np.int32),
        original=ids[len(table) :].astype(np.int32),
        fake=table["label"].to_numpy() == 1,
        frame=table["frame"].to_numpy(np.int32),
        fold=table["fold"].to_numpy(np.int32),
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def validation_rows(crops: Crops, fold: int, public: bool = False, half: str | None = None) -> np.ndarray:
    """Every VALIDATION_STEP-th frame of the videos of a fold, or with `public` of DFDC's public test set.

    `half`: only originals in this half, and their fakes. Raises FoldsError where there are none.
    """
    rows = np.flatnonzero(_validated(crops, fold, public) & (crops.frame % VALIDATION_STEP == 0))
    if half:
        rows = rows[[half_of(crops.videos[original]) == half for original in crops.original[rows]]]
    if not len(rows):
        where = "the public validation videos" if public else f"fold {fold}"
        where = f"the {half} half of {where}" if half else where
        raise FoldsError(f"no crops to validate on: {where} has none; the list's folds are {_folds(crops)}, see --fold")
    return rows


def half_of(original: str) -> str:
    """The half that an original video, by its id, is in, whatever others there are."""
    return HALVES[zlib.crc32(original.encode()) % 2]


def training_rows(crops: Crops, fold: int, public: bool = False) -> np.ndarray:
    """All crops of the other folds, without official test sets, and without originals that are validated on.

    Raises FoldsError where there is not one of each class.
    """
    validated = _validated(crops, fold, public)
    leaking = np.isin(crops.original, np.unique(crops.original[validated]))
    rows = np.flatnonzero((crops.fold != fold) & (crops.fold >= 0) & ~validated & ~leaking)
    fakes = int(crops.fake[rows].sum())
    if not 0 < fakes < len(rows):
        raise FoldsError(
            f"{len(rows) - fakes} real and {fakes} fake crops to train on, outside fold {fold}; both are needed. "
            f"The list's folds are {_folds(crops)}: choose another --fold, or preprocess more videos"
        )
    return rows


def _validated(crops: Crops, fold: int, public: bool) -> np.ndarray:
    if not public:
        return crops.fold == fold
    listed = set(PUBLIC_VIDEOS.read_text().split())
    return np.isin(crops.video, [number for number, video in enumerate(crops.videos) if video in listed])


def _folds(crops: Crops) -> str:
    return ", ".join(map(str, np.unique(crops.fold)))


def epoch_order(fake: np.ndarray, seed: int, epoch: int, oversample: bool = True) -> np.ndarray:
    """An epoch's indices into `fake` (bool), in the order of training; a function of its arguments alone.

    With `oversample` all reals and as many fakes, drawn without repetition; if there are fewer fakes, each occurs
    as often as the others, or once more. Otherwise everything once.
    """
    random = np.random.default_rng((seed, epoch))
    if not oversample:
        return random.permutation(len(fake))
    reals, fakes = np.flatnonzero(~fake), np.flatnonzero(fake)
    times, rest = divmod(len(reals), len(fakes))
    drawn = random.permutation(fakes)[:rest]
    return random.permutation(np.concatenate([reals, np.tile(fakes, times), drawn]))


class EpochBatches:
    """The batches of one process in an epoch, lists of Draw; `epoch` is to be set before each.

    The batches of all processes together are those that a single process with `batch_size * processes` has.
    The last ones, which are not full, are left out.
    """

    def __init__(
        self,
        rows: np.ndarray,
        fake: np.ndarray,
        batch_size: int,
        limit: int,
        seed: int,
        oversample: bool = True,
        rank: int = 0,
        processes: int = 1,
    ):
        self.rows, self.fake, self.seed, self.oversample = rows, fake, seed, oversample
        self.rank, self.processes = rank, processes
        self.together = batch_size * processes
        self.epoch = 0
        total = len(rows) if not oversample else 2 * int((~fake).sum())
        self.length = min(limit, total // self.together)
        if not self.length:
            raise FoldsError(
                f"{total} crops an epoch are less than a batch of {self.together}; lower optimizer.batch_size"
            )

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[Draw]]:
        order = epoch_order(self.fake, self.seed, self.epoch, self.oversample)
        for first in range(0, self.length * self.together, self.together):
            places = range(first + self.rank, first + self.together, self.processes)
            yield [Draw(int(self.rows[order[place]]), self.epoch, place) for place in places]
