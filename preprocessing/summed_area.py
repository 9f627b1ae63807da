"""Means over rectangles of images from summed-area tables, on any device.

An entry of a table is the sum of all pixels above and to the left, so the sum over any rectangle follows from four
entries. Sums are 32-bit integers: in images so large that they overflow, differences are still exact.
"""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

# Type of the integers in an entry, by the entry's type.
SUM_TYPES = {torch.complex128: torch.int32, torch.int64: torch.int16}
ENTRY_TYPES = {value: key for key, value in SUM_TYPES.items()}


def summed_area_tables(images: np.ndarray, device: torch.device) -> Tensor:
    """Return the tables of RGB images (n, height, width, 3) uint8: complex128 (n, height + 1, width + 1).

    An entry holds four 32-bit integers, the last one unused. As a single number, it is copied at once.
    """
    if device.type == "cpu":
        tables = [cv2.integral(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), sdepth=cv2.CV_32S) for image in images]
        return _entries(torch.from_numpy(np.stack(tables)))
    pixels = torch.from_numpy(images)
    pixels = (pixels.pin_memory() if device.type == "cuda" else pixels).to(device, non_blocking=True)
    sums = pixels.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    return _entries(pad(sums, (0, 1, 1, 0, 1, 0)))


def narrow(tables: Tensor) -> Tensor:
    """Return tables with 16-bit integers, int64 (n, height + 1, width + 1), which `resize` reads in half the time."""
    return _entries(_sums(tables).short())


def fits_narrow(size: tuple[int, int], shape: tuple[int, int]) -> bool:
    """Return whether `resize` to a shape is exact with narrow tables of images of a size (both height, width)."""
    area = math.prod(length // count + 2 for length, count in zip(size, shape, strict=True))
    return 255 * area < 2**15


def resize(tables: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize whole images (n, height, width, 3) to a shape, as adaptive average pooling does.

    Returns:
        float32 (n, *shape, 4); the last channel is not used.
    """
    top, bottom = _bounds(tables.shape[1] - 1, shape[0], tables.device)
    left, right = _bounds(tables.shape[2] - 1, shape[1], tables.device)
    rows = _entries(_sums(tables.index_select(1, bottom)) - _sums(tables.index_select(1, top)))
    sums = _sums(rows.index_select(2, right)) - _sums(rows.index_select(2, left))
    # With a divisor for every sum, PyTorch divides a whole row at once.
    widths = (right - left).float().repeat_interleave(4).view(-1, 4)
    return sums.float().div_((bottom - top).float()[:, None, None] * widths)


def crop(tables: Tensor, images: np.ndarray, regions: np.ndarray, size: int) -> Tensor:
    """Crop regions and resize each to a square, as adaptive average pooling does.

    Args:
        tables: of n images.
        images: position of each region's image: int64 (k,).
        regions: xmin, ymin, xmax, ymax in pixels, the last two exclusive: int64 (k, 4), not empty.
        size: side of the squares.

    Returns:
        float32 (k, size, size, 4); the last channel is not used.
    """
    height, width = tables.shape[1:3]
    xmin, ymin, xmax, ymax = torch.from_numpy(regions).to(tables.device).T[..., None]
    step = torch.arange(size, device=tables.device)
    top, bottom = (ymin + edge for edge in _edges(step, ymax - ymin, size))
    left, right = (xmin + edge for edge in _edges(step, xmax - xmin, size))
    first = torch.from_numpy(images).to(tables.device)[:, None] * height

    def entries(rows: Tensor, columns: Tensor) -> Tensor:
        indices = ((first + rows) * width)[:, :, None] + columns[:, None]
        return _sums(tables.flatten().index_select(0, indices.flatten())).view(*indices.shape, 4)

    sums = entries(bottom, right) - entries(top, right) - entries(bottom, left) + entries(top, left)
    return sums.float().div_(((bottom - top)[:, :, None] * (right - left)[:, None]).float()[..., None])


def _sums(entries: Tensor) -> Tensor:
    """Return the four integers of each entry, in a new last dimension."""
    return entries.view(SUM_TYPES[entries.dtype]).unflatten(-1, (-1, 4))


def _entries(sums: Tensor) -> Tensor:
    """Return each four integers as one entry."""
    return sums.view(ENTRY_TYPES[sums.dtype])[..., 0]


@functools.lru_cache(maxsize=64)
def _bounds(length: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where the windows of adaptive average pooling start and end, in pixels."""
    start, end = _edges(torch.arange(count), torch.tensor(length), count)
    return start.to(device), end.to(device)


def _edges(step: Tensor, length: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return start and end of the windows `step` of `count` windows that cover `length` pixels and may overlap."""
    return step * length // count, ((step + 1) * length + count - 1) // count
