"""The list of crops (folds.csv): which crops are trained on, which are validated on, and in which order."""

from __future__ import annotations

import hashlib
import reprlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.errors import UserError
from common.text import plural
from preprocessing.layout import FOLDS_COLUMNS
from training.datasets.people import groups_of
from training.options import HALVES

# Validation uses only frames whose numbers are multiples of this.
VALIDATION_STEP = 20
# Ids of the 400 videos of DFDC's public test set.
PUBLIC_VIDEOS = Path(__file__).parents[2] / "configs/public_validation_videos.txt"

TEXT_COLUMNS = ("video", "file", "original")
# Range of each column of integers; the last two are stored as int32.
MAX_INT32 = 2**31 - 1
INTEGER_COLUMNS = {"label": (0, 1), "frame": (0, MAX_INT32), "fold": (-MAX_INT32, MAX_INT32)}
REMEDY = "Run preprocessing/generate_folds.py again"


class FoldsError(UserError):
    """A list of crops that cannot be used."""


@dataclass(frozen=True)
class Crops:
    """The rows of folds.csv as arrays of equal length.

    Names are stored once: the video of a row is `videos[video[row]]`.

    Attributes:
        videos: video ids.
        files: file names.
        video: int32 (n,), indices of the videos.
        file: int32 (n,), indices of the file names.
        original: int32 (n,), indices of the original videos; a real video is its own original.
        fake: bool (n,).
        frame: int32 (n,), frame numbers.
        fold: int32 (n,). Negative folds are official test sets and never trained on.
        digest: SHA-256 of the file.
    """

    videos: list[str]
    files: list[str]
    video: np.ndarray
    file: np.ndarray
    original: np.ndarray
    fake: np.ndarray
    frame: np.ndarray
    fold: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.fake)

    @property
    def face(self) -> np.ndarray:
        """Numbers (n,) that are equal for the crops of the same face and frame of an original and its fakes."""
        return self.original.astype(np.int64) * len(self.files) + self.file

    def name(self, row: int) -> str:
        """Return the path of a crop, relative to the folder of the crops."""
        return f"{self.videos[self.video[row]]}/{self.files[self.file[row]]}"

    def originals(self, rows: np.ndarray) -> list[str]:
        """Return the ids of the originals of some crops."""
        return [self.videos[original] for original in self.original[rows]]

    def original_name(self, row: int) -> str:
        """Return the path of the original's crop of the same face and frame."""
        return f"{self.videos[self.original[row]]}/{self.files[self.file[row]]}"


class SampleIndex(NamedTuple):
    """Index of a training sample.

    Attributes:
        row: row of the crop.
        epoch: epoch of the sample.
        position: position in the epoch. Together with the epoch, it seeds the augmentation.
    """

    row: int
    epoch: int
    position: int


def read_folds(path: Path) -> Crops:
    """Read folds.csv. Ids are strings even if they look like numbers.

    Raises:
        FoldsError: the file cannot be read or is not a list of crops.
    """
    table = _read_table(path)
    _check_table(path, table)
    ids, videos = pd.factorize(pd.concat([table["video"], table["original"]]))
    file, files = pd.factorize(table["file"])
    _check_names(path, table, videos, ("video", "original"))
    _check_names(path, table, files, ("file",))
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


def _read_table(path: Path) -> pd.DataFrame:
    try:
        # Not as categories: their values are parsed as numbers if all of them look like numbers.
        # As objects, which, unlike strings of pandas, may hold the bytes of file names that are not valid UTF-8.
        types = dict.fromkeys(TEXT_COLUMNS, object)
        return pd.read_csv(
            path,
            dtype=types,
            keep_default_na=False,
            low_memory=False,  # otherwise, a column may have several types, with a warning
            encoding="utf-8",
            encoding_errors="surrogateescape",
        )
    except OSError as error:
        raise FoldsError(f"{path}: cannot be read ({error.strerror}). {REMEDY}, or check --folds-csv") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise FoldsError(f"{path}: not a CSV file ({str(error).strip()}). {REMEDY}") from None


def _check_table(path: Path, table: pd.DataFrame) -> None:
    missing = [name for name in FOLDS_COLUMNS if name not in table]
    if missing:
        raise FoldsError(f"{path}: missing columns: {', '.join(missing)}. {REMEDY}")
    if table.empty:
        raise FoldsError(f"{path}: lists no crops. {REMEDY}")
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the additional columns in front as row labels
        raise FoldsError(f"{path}: has rows with more values than the header has columns. {REMEDY}")
    for name, (low, high) in INTEGER_COLUMNS.items():
        outside = table[name][~_is_within(table[name], low, high)]
        if len(outside):
            value = reprlib.repr(str(outside.iloc[0]))
            raise FoldsError(f"{path}: column {name} has {value}, not an integer from {low} to {high}. {REMEDY}")


def _is_within(column: pd.Series, low: int, high: int) -> pd.Series:
    """Return which values of a column are integers within these bounds."""
    if pd.api.types.is_integer_dtype(column):
        return column.between(low, high)
    # pandas reads a column as another type because of at least one value that is not an integer of 64 bits.
    return column.astype(str).str.fullmatch(r"-?[0-9]{1,18}")


def _check_names(path: Path, table: pd.DataFrame, names: Iterable[str], columns: Sequence[str]) -> None:
    """Raise FoldsError if one of the distinct names in these columns is empty or leads out of its folder."""
    for name in names:
        parts = PurePath(name).parts
        if not parts or "\0" in name or ".." in parts or PurePath(name).is_absolute():
            column = next(column for column in columns if (table[column] == name).any())
            raise FoldsError(f"{path}: column {column} has {reprlib.repr(name)}, not a name in a folder. {REMEDY}")


def validation_rows(
    crops: Crops,
    fold: int,
    public: bool = False,
    half: str | None = None,
    people: Mapping[str, str] | None = None,
) -> np.ndarray:
    """Return the rows to validate on: every VALIDATION_STEP-th frame of the videos of a fold.

    Args:
        crops: list of the crops.
        fold: fold to validate on.
        public: validate on DFDC's public test set instead of the fold.
        half: keep only originals of this half (one of HALVES) and their fakes.
        people: person by original, to split people instead of originals into halves.

    Raises:
        FoldsError: there are no such crops.
    """
    rows = np.flatnonzero(_is_validated(crops, fold, public) & (crops.frame % VALIDATION_STEP == 0))
    if half:
        rows = rows[[half_of(group) == half for group in groups_of(crops.originals(rows), people)]]
    if not len(rows):
        data = "public test set" if public else f"fold {fold}"
        half_text = f", {half} half" if half else ""
        raise FoldsError(f"{data}{half_text}: no crops to validate on. Choose another --fold ({_list_folds(crops)})")
    return rows


def half_of(group: str) -> str:
    """Return the half of an original video or of a person. It depends only on the id."""
    # Names that are not valid UTF-8, from a file system or from JSON, contain surrogates.
    return HALVES[zlib.crc32(group.encode(errors="surrogatepass")) % 2]


def training_rows(crops: Crops, fold: int, public: bool = False, held_out: Sequence[int] = ()) -> np.ndarray:
    """Return the rows to train on: the other folds, without official test sets and all crops of held-out originals.

    Args:
        crops: list of the crops.
        fold: fold to validate on, which is held out.
        public: whether the validation uses DFDC's public test set instead of the fold.
        held_out: further folds that are held out.

    Raises:
        FoldsError: a class has no crops, or a held-out fold does not exist.
    """
    missing = sorted(set(held_out) - set(crops.fold.tolist()))
    if missing:
        raise FoldsError(f"--hold-out {missing[0]}: no such fold. Choose others ({_list_folds(crops)})")
    evaluated = _is_validated(crops, fold, public) | np.isin(crops.fold, held_out)
    leaking = np.isin(crops.original, np.unique(crops.original[evaluated]))
    rows = np.flatnonzero((crops.fold != fold) & (crops.fold >= 0) & ~leaking)
    fakes = int(crops.fake[rows].sum())
    if not 0 < fakes < len(rows):
        raise FoldsError(
            f"fold {fold}: the other folds have {plural(len(rows) - fakes, 'real crop')} and "
            f"{plural(fakes, 'fake crop')}, but training needs both. Choose another --fold ({_list_folds(crops)}) or "
            "preprocess more videos"
        )
    return rows


def _is_validated(crops: Crops, fold: int, public: bool) -> np.ndarray:
    if not public:
        return crops.fold == fold
    public_videos = set(PUBLIC_VIDEOS.read_text().split())
    return np.isin(crops.video, [index for index, video in enumerate(crops.videos) if video in public_videos])


def _list_folds(crops: Crops) -> str:
    return f"the folds are {', '.join(map(str, np.unique(crops.fold)))}"


def epoch_order(fake: np.ndarray, seed: int, epoch: int, oversample: bool = True) -> np.ndarray:
    """Return an epoch's crops in training order. The result depends only on the arguments.

    Args:
        fake: bool (n,), the labels of all training crops.
        seed: seed of the run.
        epoch: epoch, from 0.
        oversample: use all reals and an equal number of random fakes without replacement; if there are fewer fakes
            than reals, repeat all of them equally often and fill up with random ones. Otherwise use each crop once.

    Returns:
        Indices into `fake`, (2 * number of reals,) or (n,).
    """
    rng = np.random.default_rng((seed, epoch))
    if not oversample:
        return rng.permutation(len(fake))
    reals, fakes = np.flatnonzero(~fake), np.flatnonzero(fake)
    repeats, remainder = divmod(len(reals), len(fakes))
    extra = rng.permutation(fakes)[:remainder]
    return rng.permutation(np.concatenate([reals, np.tile(fakes, repeats), extra]))


def paired_order(crops: Crops, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return an epoch's crops in training order: each real followed by one of its own fakes, in random order.

    A real without a fake of the same face and frame is followed by a random fake. The result depends only on the
    arguments.

    Args:
        crops: list of the crops.
        rows: rows of the training crops (n,).
        seed: seed of the run.
        epoch: epoch, from 0.

    Returns:
        Indices into `rows`, (2 * number of reals,).
    """
    rng = np.random.default_rng((seed, epoch))
    fake, face = crops.fake[rows], crops.face[rows]
    reals, fakes = np.flatnonzero(~fake), rng.permutation(np.flatnonzero(fake))
    fakes = fakes[np.argsort(face[fakes], kind="stable")]
    first, last = (np.searchsorted(face[fakes], face[reals], side) for side in ("left", "right"))
    own = rng.integers(first, np.maximum(last, first + 1))
    chosen = np.where(first < last, own, rng.integers(len(fakes), size=len(reals)))
    order = rng.permutation(len(reals))
    return np.stack([reals[order], fakes[chosen[order]]], axis=1).ravel()


class EpochBatchSampler:
    """Batches of one process in one epoch. Set `epoch` before each epoch.

    The batches of all processes together are those of a single process with batch size `batch_size * world_size`.
    The last, incomplete batch is dropped.

    Args:
        crops: list of the crops.
        rows: (n,), rows of the training crops.
        batch_size: number of samples per batch and process.
        max_batches: largest number of batches per epoch.
        seed: seed of the run.
        oversample: see `epoch_order`.
        pairs: order the crops by `paired_order` instead.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        FoldsError: an epoch has fewer crops than a batch.
    """

    def __init__(
        self,
        crops: Crops,
        rows: np.ndarray,
        batch_size: int,
        max_batches: int,
        seed: int,
        oversample: bool = True,
        pairs: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.crops, self.rows, self.seed, self.oversample, self.pairs = crops, rows, seed, oversample, pairs
        self.rank, self.world_size = rank, world_size
        self.global_batch_size = batch_size * world_size
        self.epoch = 0
        count = len(self._order())
        self.length = min(max_batches, count // self.global_batch_size)
        if not self.length:
            raise FoldsError(
                f"optimizer.batch_size: a batch of {self.global_batch_size} is larger than an epoch of "
                f"{plural(count, 'crop')}. Lower it"
            )

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        order = self._order()
        for first in range(0, self.length * self.global_batch_size, self.global_batch_size):
            positions = range(first + self.rank, first + self.global_batch_size, self.world_size)
            yield [SampleIndex(int(self.rows[order[position]]), self.epoch, position) for position in positions]

    def _order(self) -> np.ndarray:
        if self.pairs:
            return paired_order(self.crops, self.rows, self.seed, self.epoch)
        return epoch_order(self.crops.fake[self.rows], self.seed, self.epoch, self.oversample)
