"""Crops as samples for a classifier: read, parts blacked out, augmented; or, for validation, only resized.

A sample is a function of its crop and of (seed, epoch, place in the epoch): it does not matter which process, of
how many, makes it. Images leave as bytes; `Recipe.normalize` makes the network's input of them on its device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from preprocessing.crops import center_in_square, resize_longer_side
from preprocessing.images import ImageError, read_image
from training.datasets.face_dropout import block_dropout, face_dropout
from training.datasets.folds import Crops, Draw

# A fake counts as changed if more than so many pixels of its mask are above this level.
CHANGED_LEVEL, CHANGED_PIXELS = 20, 32
# A broken image is replaced by another one, and that by another, up to so many times; then by a black one.
REPLACEMENTS = 10
DROPOUTS = ("face", "block", "none")
# The margin of preprocessing's crops is one such part of the face.
PADDING_PART = 3


class Batch(NamedTuple):
    """`images` uint8 (n, size, size, 3), RGB; `labels` float32 (n,), 1 = fake; `rows` int64 (n,) of the crops' list.

    `valid` bool (n,): whether a sample counts. `known` bool (n,): whether it is known what was
    changed; `masks` uint8 (n, size, size): what, 0 where not known; None if not asked for. `broken`: messages of
    the images that could not be read.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    valid: torch.Tensor
    known: torch.Tensor
    masks: torch.Tensor | None
    broken: list[str]


@dataclass(frozen=True)
class Source:
    """Where crops are: `root`/`crops_dir`/VIDEO/FILE, with landmarks and diffs beside the folder of crops."""

    root: Path
    crops_dir: Path
    crops: Crops

    def image(self, row: int) -> np.ndarray:
        """RGB uint8 (height, width, 3), writable. Raises ImageError."""
        return read_image(self.root / self.crops_dir / self.crops.name(row))

    def mask(self, row: int, shape: tuple[int, int]) -> np.ndarray | None:
        """What was changed: uint8 in the shape of the crop; 0 for a real. None where nobody knows."""
        if not self.crops.fake[row]:
            return np.zeros(shape, np.uint8)
        name = Path(self.crops.name(row))
        path = self.root / "diffs" / name.with_name(f"{name.stem}_diff.png")
        if not path.exists():
            return None
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if mask is None or mask.shape != shape:
            raise ImageError(path, f"not an image of {shape[1]} x {shape[0]}; run generate_diffs.py --overwrite")
        return mask

    def landmarks(self, row: int, shape: tuple[int, int]) -> np.ndarray | None:
        """(5, 2), in pixels of a crop of this shape (height, width); those of the original. None if there are none."""
        name = Path(self.crops.original_name(row))
        path = self.root / "landmarks" / name.with_suffix(".npy")
        try:
            landmarks = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            raise ImageError(path, f"damaged ({error}); run generate_landmarks.py --overwrite") from None
        if landmarks.shape != (5, 2):
            raise ImageError(path, f"holds {landmarks.shape}, not five points; run generate_landmarks.py --overwrite")
        return landmarks * self._enlarged(name, shape) if self.crops.fake[row] else landmarks

    def _enlarged(self, original: Path, shape: tuple[int, int]) -> np.ndarray:
        """By what a fake's crop is wider and higher than its original's."""
        try:
            with Image.open(self.root / self.crops_dir / original) as image:
                return np.array(shape[::-1]) / image.size
        except OSError:  # the original's crop is not needed for anything else
            return np.ones(2)


class ClassifierDataset(Dataset):
    """Training samples, by Draw; each is a Batch of one.

    `rows`: those that may take the place of a broken one. `augment`: (image, mask or None, seed) to the same in
    the network's size. `masks`: whether samples have masks. `only_changed`: whether fakes in which nothing is
    changed are not `valid`. The other parameters are those of the command line.
    """

    def __init__(
        self,
        source: Source,
        rows: np.ndarray,
        augment: Callable,
        seed: int,
        label_smoothing: float = 0.0,
        dropout: str = "face",
        padding_part: int = PADDING_PART,
        only_changed: bool = False,
        masks: bool = False,
    ):
        self.source, self.rows, self.augment, self.seed = source, rows, augment, seed
        self.label_smoothing, self.dropout = label_smoothing, dropout
        self.padding_part, self.only_changed, self.masks = padding_part, only_changed, masks
        fake = source.crops.fake[rows]
        self.classes = rows[~fake], rows[fake]

    def __getitem__(self, draw: Draw) -> Batch:
        row, broken = draw.row, []
        seed, *seeds = np.random.SeedSequence((self.seed, draw.epoch, draw.place)).spawn(3)
        others = np.random.default_rng(seed)
        while len(broken) <= REPLACEMENTS:
            try:
                return self._sample(row, seeds)._replace(broken=broken)
            except ImageError as error:
                broken.append(str(error))
                row = int(others.choice(self.classes[int(self.source.crops.fake[row])]))
        black, _ = self.augment(np.zeros((1, 1, 3), np.uint8), None, seeds[1])
        return _batch(row, black, 0.0, valid=False, masks=self.masks)._replace(broken=broken)

    def _sample(self, row: int, seeds: Sequence[np.random.SeedSequence]) -> Batch:
        random = np.random.default_rng(seeds[0])
        fake = bool(self.source.crops.fake[row])
        image = self.source.image(row)
        shape = image.shape[:2]
        read_mask = functools.cache(lambda: self.source.mask(row, shape))
        black = None
        if self.dropout == "face":
            black = face_dropout(shape, self.source.landmarks(row, shape), fake, read_mask, random)
        mask = read_mask() if self.masks or self.only_changed or self.dropout == "block" else None
        black_out(black, image, mask)
        window = padding_window(shape, self.padding_part)
        image, mask = image[window], None if mask is None else mask[window]
        unchanged = fake and mask is not None and np.count_nonzero(mask > CHANGED_LEVEL) <= CHANGED_PIXELS
        image, mask = self.augment(image, mask, seeds[1])
        if self.dropout == "block":
            black_out(block_dropout(image.shape[:2], fake, lambda: mask, random), image, mask)
        label = min(max(float(fake), self.label_smoothing), 1 - self.label_smoothing)
        return _batch(row, image, label, not (self.only_changed and unchanged), mask, self.masks)


class ValidationDataset(Dataset):
    """Crops by row, resized as in inference; each is a Batch of one, or of none where the image is broken."""

    def __init__(self, source: Source, size: int, padding_part: int = PADDING_PART):
        self.source, self.size, self.padding_part = source, size, padding_part

    def __getitem__(self, row: int) -> Batch:
        try:
            image = self.source.image(row)
        except ImageError as error:
            one = _batch(row, np.zeros((self.size, self.size, 3), np.uint8), 0.0)
            return Batch(*(field if field is None else field[:0] for field in one[:-1]), [str(error)])
        image = image[padding_window(image.shape[:2], self.padding_part)]
        square = center_in_square(resize_longer_side(image, self.size), self.size)
        return _batch(row, square, float(self.source.crops.fake[row]))


def concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch of several (the DataLoader's collate_fn)."""
    fields = list(zip(*batches, strict=True))
    broken = [message for messages in fields[-1] for message in messages]
    return Batch(*(None if parts[0] is None else torch.cat(parts) for parts in fields[:-1]), broken)


def black_out(black: np.ndarray | None, *images: np.ndarray | None) -> None:
    """Set pixels to 0, in place."""
    for image in images:
        if black is not None and image is not None:
            image[black] = 0


def padding_window(shape: tuple[int, int], part: int) -> tuple[slice, slice]:
    """The part of a crop, whose margin is a third of the face, that has one `part`-th of it as margin."""
    cuts = [side // 5 - 3 * side // (5 * part) for side in shape]
    return tuple(slice(cut, side - cut) for cut, side in zip(cuts, shape, strict=True))


def _batch(
    row: int,
    image: np.ndarray,
    label: float,
    valid: bool = True,
    mask: np.ndarray | None = None,
    masks: bool = False,
) -> Batch:
    if masks:
        drawn = torch.from_numpy(np.zeros(image.shape[:2], np.uint8) if mask is None else mask)[None]
    return Batch(
        images=torch.from_numpy(np.ascontiguousarray(image))[None],
        labels=torch.tensor([label]),
        rows=torch.tensor([row]),
        valid=torch.tensor([bool(valid)]),
        known=torch.tensor([mask is not None]),
        masks=drawn if masks else None,
        broken=[],
    )
