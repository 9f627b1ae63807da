"""Reads what a sample is made of: a crop, the mask of its manipulated pixels and its landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from common.files import read_regular_file
from preprocessing.images import ImageError, decode_image, read_image
from preprocessing.layout import DIFFS, LANDMARKS, diff_name, landmarks_name
from training.datasets.crop_cache import CropCache
from training.datasets.folds import Crops

LANDMARKS_REMEDY = "Run preprocessing/generate_landmarks.py --overwrite"


@dataclass(frozen=True)
class CropSource:
    """Reads crops and their landmarks and masks.

    Attributes:
        root: DATA_ROOT.
        crops_dir: folder of the crops, relative to `root`.
        crops: list of the crops.
        cache: cache of decoded crops, if used.
    """

    root: Path
    crops_dir: Path
    crops: Crops
    cache: CropCache | None = None

    def image(self, row: int) -> np.ndarray:
        """Read a crop as RGB uint8 (height, width, 3). Raises ImageError."""
        path = self.root / self.crops_dir / self.crops.name(row)
        return self.cache.read(row, path) if self.cache else read_image(path)

    def mask(self, row: int, shape: tuple[int, int]) -> np.ndarray | None:
        """Read the mask of manipulated pixels of a crop of this shape, or return None if a fake has none.

        Returns:
            uint8 (height, width); zeros for a real face.

        Raises:
            ImageError: the mask is damaged or has another shape.
        """
        if not self.crops.fake[row]:
            return np.zeros(shape, np.uint8)
        path = self.root / DIFFS / diff_name(self.crops.name(row))
        if not path.exists():
            return None
        mask = decode_image(path, cv2.IMREAD_GRAYSCALE)
        if mask is None or mask.shape != shape:
            height, width = shape
            raise ImageError(
                path, f"not an image of {width} x {height} pixels. Run preprocessing/generate_diffs.py --overwrite"
            )
        return mask

    def landmarks(self, row: int, shape: tuple[int, int]) -> np.ndarray | None:
        """Read the landmarks (5, 2) of the original, in pixels of a crop of this shape; None if it has none.

        Raises:
            ImageError: the landmarks are damaged.
        """
        original = self.crops.original_name(row)
        path = self.root / LANDMARKS / landmarks_name(original)
        try:
            landmarks = _load_landmarks(path)
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 np.load raises many types for damaged files
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ImageError(path, f"damaged ({reason}). {LANDMARKS_REMEDY}") from None
        if self.crops.fake[row]:
            landmarks = landmarks * self._scale_from(original, shape)
        # Beyond this, they cannot be of a face in this crop, and OpenCV would be slow or fail.
        side = max(shape)
        if not ((-side <= landmarks) & (landmarks <= 2 * side)).all():
            raise ImageError(path, f"landmarks far outside of the crop. {LANDMARKS_REMEDY}")
        return landmarks

    def _scale_from(self, original: str, shape: tuple[int, int]) -> np.ndarray:
        """Return (x, y) scale factors from the original's crop to a fake's crop of this shape."""
        path = self.root / self.crops_dir / original
        try:
            if path.is_file():  # opening a named pipe would wait for a writer
                with Image.open(path) as image:
                    return np.array(shape[::-1]) / image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            pass
        return np.ones(2)  # assume the same size: nothing else of the original is needed


def _npy(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


# generate_landmarks.py writes five points as int16. Comparing the header is ten times faster than parsing it.
_LANDMARKS = np.zeros((5, 2), np.int16)
LANDMARKS_BYTES = len(_npy(_LANDMARKS))
LANDMARKS_HEADER = _npy(_LANDMARKS)[: -_LANDMARKS.nbytes]


def _load_landmarks(path: Path) -> np.ndarray:
    """Load an array of five finite points. Raises ValueError for other arrays, and what np.load raises."""
    content = read_regular_file(path)
    if len(content) == LANDMARKS_BYTES and content.startswith(LANDMARKS_HEADER):
        return np.frombuffer(content, np.int16, offset=len(LANDMARKS_HEADER)).reshape(5, 2)
    landmarks = np.load(BytesIO(content), allow_pickle=False)
    if not isinstance(landmarks, np.ndarray):  # an .npz archive, whatever its name
        raise ValueError("not an array")
    if landmarks.dtype.kind not in "iuf":
        raise ValueError(f"values of type {landmarks.dtype} instead of numbers")
    if landmarks.shape != (5, 2):
        raise ValueError(f"shape {landmarks.shape} instead of (5, 2)")
    if not np.isfinite(landmarks).all():
        raise ValueError("values that are not finite")
    return landmarks
