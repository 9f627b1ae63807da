"""Faces of fakes with their originals, from a dataset that preprocess_data.sh has prepared: read, score, modify."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from common.errors import UserError
from preprocessing.boxes import face_numbers, read_boxes
from preprocessing.crops import MarginCrop, center_in_square, cut, resize_longer_side
from preprocessing.images import read_image
from preprocessing.layout import FOLDS_CSV, DataRoot

if TYPE_CHECKING:
    from inference.ensemble import Ensemble

# An original whose border (a tenth of the side) differs more from its fake's, in gray levels, was cropped elsewhere.
MAX_BORDER = 6
# Standard deviation of the soft edge of a replaced part, as a fraction of the window's side. A hard edge could itself
# look like a manipulation.
EDGE = 0.02

Window = tuple[int, int, int, int]


class FakeFace(NamedTuple):
    """A face of a fake.

    Attributes:
        video: id of the fake.
        image: a part of the frame around the face, RGB uint8 (height, width, 3).
        box: bounding box in pixels of `image`; None if the whole image is the crop that the networks need.
        original: the same part of the original's frame, in the shape of `image`; None if it is not known.
    """

    video: str
    image: np.ndarray
    box: list[float] | None
    original: np.ndarray | None


def read_fakes(args: argparse.Namespace, left_out: Counter[str]) -> Iterator[FakeFace]:
    """Yield the faces of a fold's fakes.

    Args:
        args: with `root_dir`, `crops_dir`, `fold` and `half`.
        left_out: counts the faces whose original is not used, by reason.

    Raises:
        FoldsError, ImageError, BoxesError, UserError: a file of the dataset is missing or cannot be used.
    """
    from training.datasets.folds import read_folds, validation_rows

    root, crops = DataRoot(args.root_dir, args.crops_dir), read_folds(args.root_dir / FOLDS_CSV)
    folder = args.root_dir / args.crops_dir
    for row in validation_rows(crops, args.fold, half=args.half):
        if not crops.fake[row]:
            continue
        image, original = read_image(folder / crops.name(row)), None
        if not (path := folder / crops.original_name(row)).exists():
            left_out["the original's crop is missing"] += 1
        elif not is_aligned(original := read_image(path), image):
            left_out["the original was cropped elsewhere"] += 1
            original = None
        boxes = root.boxes(crops.videos[crops.original[row]])
        box = box_in_crop(boxes, crops.files[crops.file[row]]) if boxes.exists() else None
        yield FakeFace(crops.videos[crops.video[row]], image, box, original)


def is_aligned(original: np.ndarray, fake: np.ndarray) -> bool:
    """Return whether two crops show the same part of the frame: their borders, which are rarely manipulated, agree."""
    if original.shape != fake.shape:
        return False
    border = np.ones(fake.shape[:2], bool)
    height, width = (max(side // 10, 1) for side in fake.shape[:2])
    border[height:-height, width:-width] = False
    return float(cv2.absdiff(original, fake)[border].mean()) <= MAX_BORDER


def box_in_crop(path: Path, crop: str) -> list[float]:
    """Return the box of the face in a crop of extract_crops.py, in pixels of the crop.

    Args:
        path: boxes of the original, which must have the frame size of the fake.
        crop: file name of the crop.

    Raises:
        BoxesError: the boxes cannot be used.
        UserError: they are not those that the crop was cut with.
    """
    frame, face = (int(number) for number in crop.partition(".")[0].split("_"))
    boxes = read_boxes(path)
    numbers = face_numbers(boxes).get(frame, [])
    if face not in numbers:
        raise UserError(f"{path}: has no box of face {face} in frame {frame}. Run extract_crops.py --overwrite")
    box = np.array(boxes[frame][numbers.index(face)])
    corner = np.maximum(MarginCrop().window(box)[:2], 0)
    return (box - np.tile(corner, 2)).tolist()


def score(ensemble: Ensemble, face: FakeFace) -> float:
    """Return the mean of the networks' scores of a face."""
    squares = {}
    for spec in ensemble.crop_specs:
        crop = face.image if face.box is None else part_of(face.image, spec.rule.window(np.array(face.box)))
        squares[spec] = center_in_square(resize_longer_side(crop, spec.size), spec.size)[None]
    return float(ensemble.score(squares).mean())


def replace(face: FakeFace, window: Window, part: np.ndarray, other: np.ndarray) -> FakeFace:
    """Replace a part, bool, of a window of a face's image with that of another image."""
    image = face.image.copy()
    view = part_of(image, window)
    soft = cv2.GaussianBlur(part.astype(np.float32), (0, 0), EDGE * max(part.shape))[..., None]
    view[:] = np.rint(soft * part_of(other, window) + (1 - soft) * view)
    return face._replace(image=image)


def part_of(image: np.ndarray, window: Window) -> np.ndarray:
    """Return a view of the part of an image (height, width, channels) in a window that overlaps with it."""
    part = cut(image, window)
    if part is None:
        raise UserError(f"the window {window} lies outside of the crop. Run extract_crops.py --overwrite")
    return part
