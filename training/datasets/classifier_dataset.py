"""Datasets of face crops: augmented samples for training, resized ones for validation.

A training sample depends only on its crop, the seed, the epoch and its position in the epoch, not on the number of
worker processes. Images are uint8; `Recipe.normalize` turns them into the network's input on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from preprocessing.crops import center_in_square, resize_longer_side
from preprocessing.images import ImageError
from training.datasets.blending import self_blend
from training.datasets.crop_source import CropSource
from training.datasets.face_dropout import block_dropout, face_dropout
from training.datasets.folds import SampleIndex
from training.options import PADDING_PART

# A fake counts as unchanged if at most CHANGED_PIXELS pixels of its mask are above CHANGED_LEVEL.
CHANGED_LEVEL, CHANGED_PIXELS = 20, 32
# Number of random replacements to try for a crop that cannot be read, before falling back to a black image.
MAX_REPLACEMENTS = 10


class Batch(NamedTuple):
    """One or more samples.

    Attributes:
        images: uint8 (n, size, size, 3), RGB.
        labels: float32 (n,), 1 = fake; smoothed labels lie between 0 and 1.
        rows: int64 (n,), rows of the list of crops.
        valid: bool (n,), whether a sample counts in the loss.
        mask_known: bool (n,), whether the sample's mask has been read. Real faces have a mask of zeros.
        masks: uint8 (n, size, size), 0 = not manipulated or unknown; None if the dataset returns no masks.
        broken: messages about crops that could not be read, including replacements.
        broken_images: number of samples whose own crop could not be read.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    valid: torch.Tensor
    mask_known: torch.Tensor
    masks: torch.Tensor | None
    broken: list[str]
    broken_images: int = 0


class ClassifierDataset(Dataset[Batch]):
    """Augmented training samples by SampleIndex. Each is a Batch of one.

    Args:
        source: where the crops are.
        rows: rows of the crops that may replace a crop that cannot be read.
        augment: maps (image, mask or None, seed) to the augmented image and mask of the network's input size.
        seed: seed of all random choices.
        label_smoothing: distance of the labels from 0 and 1.
        dropout: "face", "block" or "none", see `training.datasets.face_dropout`.
        padding_part: cut the crops' margin down to 1/padding_part of the face.
        only_changed: mark fakes without visible changes as not valid.
        self_blended: share of the fakes that are replaced by self-blended images of their originals. A fake whose
            original has no training crop or no landmarks is never replaced.
        masks: return masks.
    """

    def __init__(
        self,
        source: CropSource,
        rows: np.ndarray,
        augment: Callable,
        seed: int,
        label_smoothing: float = 0.0,
        dropout: str = "face",
        padding_part: int = PADDING_PART,
        only_changed: bool = False,
        self_blended: float = 0.0,
        masks: bool = False,
    ):
        self.source, self.rows, self.augment, self.seed = source, rows, augment, seed
        self.label_smoothing, self.dropout = label_smoothing, dropout
        self.padding_part, self.only_changed, self.masks = padding_part, only_changed, masks
        self.self_blended = self_blended
        fake, self.face = source.crops.fake[rows], source.crops.face
        reals = rows[~fake]
        self.rows_by_class = reals, rows[fake]
        self.reals_by_face = reals[np.argsort(self.face[reals], kind="stable")]
        self.faces_of_reals = self.face[self.reals_by_face]

    def __getitem__(self, index: SampleIndex) -> Batch:
        """Return the sample, made from another crop of its class if its own cannot be read."""
        seeds = np.random.SeedSequence((self.seed, index.epoch, index.position))
        replacement_seed, dropout_seed, augment_seed, blend_seed = seeds.spawn(4)
        replacement_rng = np.random.default_rng(replacement_seed)
        row, broken = index.row, list[str]()
        while len(broken) <= MAX_REPLACEMENTS:
            try:
                sample = self._sample(row, dropout_seed, augment_seed, blend_seed)
                return sample._replace(broken=broken, broken_images=int(bool(broken)))
            except ImageError as error:
                broken.append(str(error))
                same_class = self.rows_by_class[int(self.source.crops.fake[row])]
                row = int(replacement_rng.choice(same_class))
        black, _ = self.augment(np.zeros((1, 1, 3), np.uint8), None, augment_seed)
        sample = _to_batch(row, black, 0.0, valid=False, masks=self.masks)
        return sample._replace(broken=broken, broken_images=1)

    def _sample(
        self,
        row: int,
        dropout_seed: np.random.SeedSequence,
        augment_seed: np.random.SeedSequence,
        blend_seed: np.random.SeedSequence,
    ) -> Batch:
        """Make a sample from a crop. Raises ImageError."""
        rng = np.random.default_rng(dropout_seed)
        fake = bool(self.source.crops.fake[row])
        image, mask = self._read(row, rng, np.random.default_rng(blend_seed))
        valid = not (self.only_changed and fake and mask is not None and _is_unchanged(mask))
        image, mask = self.augment(image, mask, augment_seed)
        if self.dropout == "block":
            black_out(block_dropout(image.shape[:2], fake, lambda: mask, rng), image, mask)
        label = float(np.clip(float(fake), self.label_smoothing, 1 - self.label_smoothing))
        return _to_batch(row, image, label, valid, mask, self.masks)

    def _read(
        self, row: int, rng: np.random.Generator, blend_rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Read or blend a crop and, if it is needed, its mask; apply face dropout and cut the margin."""
        blended = self._self_blend(row, blend_rng)
        image = blended[0] if blended else self.source.image(row)
        shape = image.shape[:2]
        # Face dropout needs the mask of few crops: read it when it is first used.
        read_mask = functools.cache(lambda: blended[1] if blended else self.source.mask(row, shape))
        region = None
        if self.dropout == "face":
            landmarks = self.source.landmarks(row, shape)
            region = face_dropout(shape, landmarks, bool(self.source.crops.fake[row]), read_mask, rng)
        mask = read_mask() if self.masks or self.only_changed or self.dropout == "block" else None
        black_out(region, image, mask)
        window = padding_window(shape, self.padding_part)
        return image[window], None if mask is None else mask[window]

    def _self_blend(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a self-blended image of a fake's original and its mask, or None if the crop is to be used itself."""
        if not self.source.crops.fake[row] or rng.random() >= self.self_blended:
            return None
        place = np.searchsorted(self.faces_of_reals, self.face[row])
        if place == len(self.faces_of_reals) or self.faces_of_reals[place] != self.face[row]:
            return None
        real = int(self.reals_by_face[place])
        image = self.source.image(real)
        landmarks = self.source.landmarks(real, image.shape[:2])
        return None if landmarks is None else self_blend(image, landmarks, rng)


class ValidationDataset(Dataset[Batch]):
    """Crops by row, resized as in inference. Each is a Batch of one, or an empty one if the crop cannot be read."""

    def __init__(self, source: CropSource, size: int, padding_part: int = PADDING_PART):
        self.source, self.size, self.padding_part = source, size, padding_part

    def __getitem__(self, row: int) -> Batch:
        try:
            image = self.source.image(row)
        except ImageError as error:
            return _empty_batch(self.size)._replace(broken=[str(error)], broken_images=1)
        image = image[padding_window(image.shape[:2], self.padding_part)]
        square = center_in_square(resize_longer_side(image, self.size), self.size)
        return _to_batch(row, square, float(self.source.crops.fake[row]))


def collate(batches: Sequence[Batch]) -> Batch:
    """Concatenate batches (the DataLoader's collate_fn)."""
    images, labels, rows, valid, mask_known, masks, broken, broken_images = zip(*batches, strict=True)
    return Batch(
        images=_concatenate(images),
        labels=torch.cat(labels),
        rows=torch.cat(rows),
        valid=torch.cat(valid),
        mask_known=torch.cat(mask_known),
        masks=None if masks[0] is None else _concatenate(masks),
        broken=[message for messages in broken for message in messages],
        broken_images=sum(broken_images),
    )


def _concatenate(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Concatenate tensors; in a worker process, directly in the memory that it shares with the main process."""
    rows = [row for part in parts for row in part]
    return default_collate(rows) if rows else torch.cat(parts)


def black_out(region: np.ndarray | None, *images: np.ndarray | None) -> None:
    """Set the region's pixels to 0, in place. None stands for an empty region or a missing image."""
    for image in images:
        if region is not None and image is not None:
            cv2.bitwise_xor(image, image, dst=image, mask=region.astype(np.uint8))  # faster than image[region] = 0


def padding_window(shape: tuple[int, int], part: int) -> tuple[slice, slice]:
    """Return the rows and columns of a crop that remain when its margin of 1/3 of the face is cut down to 1/`part`."""
    height, width = shape
    # The face is 3/5 of a crop, its margin 1/5 on each side.
    top, left = (side // 5 - 3 * side // (5 * part) for side in shape)
    return slice(top, height - top), slice(left, width - left)


def _is_unchanged(mask: np.ndarray) -> bool:
    return bool(np.count_nonzero(mask > CHANGED_LEVEL) <= CHANGED_PIXELS)


def _to_batch(
    row: int,
    image: np.ndarray,
    label: float,
    valid: bool = True,
    mask: np.ndarray | None = None,
    masks: bool = False,
) -> Batch:
    """Make a Batch of one. `masks`: whether it has masks; an unknown mask is then all zeros."""
    stored_mask = np.zeros(image.shape[:2], np.uint8) if mask is None else mask
    return Batch(
        images=torch.from_numpy(np.ascontiguousarray(image))[None],
        labels=torch.tensor([label]),
        rows=torch.tensor([row]),
        valid=torch.tensor([valid]),
        mask_known=torch.tensor([mask is not None]),
        masks=torch.from_numpy(stored_mask)[None] if masks else None,
        broken=[],
    )


def _empty_batch(size: int) -> Batch:
    return Batch(
        images=torch.empty((0, size, size, 3), dtype=torch.uint8),
        labels=torch.empty(0),
        rows=torch.empty(0, dtype=torch.int64),
        valid=torch.empty(0, dtype=torch.bool),
        mask_known=torch.empty(0, dtype=torch.bool),
        masks=None,
        broken=[],
    )
