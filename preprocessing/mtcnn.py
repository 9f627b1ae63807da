"""MTCNN (Zhang et al., 2016) with the weights of facenet-pytorch, but without its loops over candidates.

Networks, image pyramid, thresholds and suppression of overlapping boxes are those of facenet-pytorch, so boxes agree
within 0.001 pixels. What differs is how they are computed: the candidates of a whole batch are cropped and resized in
one operation, and each network's outputs are copied to the host once per batch. Boxes are suppressed there, frame by
frame, so that the faces of a frame do not depend on the other frames of its batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from preprocessing.mtcnn_networks import Network
from preprocessing.summed_area import crop, fits_narrow, narrow, resize, summed_area_tables

# Smallest face to detect, in pixels of the input.
MIN_FACE = 20
# P-Net's window and stride in pixels, and the ratio of successive scales of the image pyramid.
WINDOW, STRIDE, FACTOR = 12, 2, 0.709
# Sides of the inputs of R-Net and O-Net in pixels.
RNET_SIZE, ONET_SIZE = 24, 48
# Overlap above which a box is suppressed: by one of the same level of the pyramid, and by any other.
SAME_LEVEL, SAME_FACE = 0.5, 0.7
# Candidates per forward pass at most, and what their number is rounded up to: libraries prepare each shape once.
MAX_CANDIDATES, CANDIDATE_STEP = 512, 4
# Pixels of P-Net's input per forward pass on a CPU: what it computes from them stays in the cache.
CACHED_PIXELS = 40_000


class Detections(NamedTuple):
    """The faces in a frame, largest first, in pixels of the input.

    Attributes:
        boxes: xmin, ymin, xmax, ymax: float32 (n, 4).
        probabilities: float32 (n,).
        points: left eye, right eye, nose, left and right mouth corner: float32 (n, 5, 2), (x, y).
    """

    boxes: np.ndarray
    probabilities: np.ndarray
    points: np.ndarray


class Candidates(NamedTuple):
    """Boxes in which a network sees a face.

    Attributes:
        frames: position of each box's frame in the batch: int64 (n,).
        boxes: the regions that the network saw: float32 (n, 4).
        probabilities: float32 (n,).
        outputs: the network's outputs for each box: float32 (n, columns).
    """

    frames: np.ndarray
    boxes: np.ndarray
    probabilities: np.ndarray
    outputs: np.ndarray

    def take(self, chosen: np.ndarray) -> Candidates:
        """Return some of the candidates, by index or mask."""
        return Candidates(*(values[chosen] for values in self))

    def by_frame(self, count: int) -> list[np.ndarray]:
        """Return the indices of the candidates of each of `count` frames."""
        order = np.argsort(self.frames, kind="stable")
        return np.split(order, np.searchsorted(self.frames[order], np.arange(1, count)))

    def refined(self, border: int) -> np.ndarray:
        """Return the boxes after the network's regression. `border`: what is added to a box's size, as in training."""
        sizes = self.boxes[:, 2:] - self.boxes[:, :2] + np.float32(border)
        return self.boxes + self.outputs[:, 2:6] * np.tile(sizes, 2)

    def points(self) -> np.ndarray:
        """Return the five points that O-Net places in each box: (n, 5, 2)."""
        sizes = self.boxes[:, None, 2:] - self.boxes[:, None, :2] + 1
        return sizes * self.outputs[:, 6:].reshape(-1, 2, 5).swapaxes(1, 2) + self.boxes[:, None, :2] - 1


class Level(NamedTuple):
    """A level of the image pyramid.

    Attributes:
        scale: its size / the size of the frame.
        shape: height and width in pixels.
        places: rows and columns of P-Net's outputs.
    """

    scale: float
    shape: tuple[int, int]
    places: tuple[int, int]


class Mtcnn:
    """Detects faces in batches of frames.

    Args:
        thresholds: smallest probability of a face, for each of the three networks.
        device: device of the networks.
    """

    def __init__(self, thresholds: Sequence[float], device: torch.device):
        self.thresholds = thresholds
        self.device = device
        self.pnet = Network("pnet", (2, 0, 0), device)
        self.rnet = Network("rnet", (3, 3, 0), device)
        self.onet = Network("onet", (3, 3, 2, 0), device)

    @torch.inference_mode()
    def detect(self, frames: np.ndarray) -> list[Detections]:
        """Return the faces of each frame. `frames`: RGB uint8 (n, height, width, 3), each side at least MIN_FACE."""
        tables = summed_area_tables(frames, self.device)
        proposed = self._propose(tables, pyramid(*frames.shape[1:3]))
        seen = self._classify(self.rnet, self.thresholds[1], RNET_SIZE, tables, proposed.frames, proposed.refined(0))
        chosen = seen.take(suppress(seen, SAME_FACE, len(frames)))
        found = self._classify(self.onet, self.thresholds[2], ONET_SIZE, tables, chosen.frames, chosen.refined(1))
        boxes, points = found.refined(1), found.points()
        detections = []
        for indices in found.by_frame(len(frames)):
            kept = indices[keep_outer(boxes[indices], found.probabilities[indices])]
            areas = (boxes[kept, 2:] - boxes[kept, :2]).prod(axis=1)
            kept = kept[np.argsort(areas)[::-1]]
            detections.append(Detections(boxes[kept], found.probabilities[kept], points[kept]))
        return detections

    def _propose(self, tables: Tensor, levels: Sequence[Level]) -> Candidates:
        """Return the windows in which P-Net sees a face."""
        narrow_tables, size = narrow(tables), (tables.shape[1] - 1, tables.shape[2] - 1)
        outputs = torch.cat(
            [
                self._apply_pnet(narrow_tables if fits_narrow(size, level.shape) else tables, level.shape)
                for level in levels
            ],
            dim=1,
        )
        # The probability is computed where the difference of the logits is large enough, give or take rounding.
        threshold = self.thresholds[0]
        is_likely = outputs[..., 1] - outputs[..., 0] > math.log(threshold / (1 - threshold)) - 1e-3
        indices = is_likely.nonzero(as_tuple=True)
        frames, places, likely = (values.cpu() for values in (*indices, outputs[indices]))
        probabilities = likely[:, :2].softmax(1)[:, 1].numpy()
        boxes, numbers = windows(places.numpy(), levels)
        accepted = probabilities >= np.float32(threshold)
        candidates = Candidates(frames.numpy(), boxes, probabilities, likely.numpy()).take(accepted)
        candidates = candidates.take(suppress(candidates, SAME_LEVEL, len(tables), numbers[accepted]))
        return candidates.take(suppress(candidates, SAME_FACE, len(tables)))

    def _apply_pnet(self, tables: Tensor, shape: tuple[int, int]) -> Tensor:
        """Return P-Net's outputs for frames resized to a shape: (n, places, columns)."""
        parts = tables.split(max(CACHED_PIXELS // math.prod(shape), 1)) if tables.is_cpu else [tables]
        return torch.cat([self.pnet(resize(part, shape)) for part in parts])

    def _classify(
        self, network: Network, threshold: float, size: int, tables: Tensor, frames: np.ndarray, boxes: np.ndarray
    ) -> Candidates:
        """Return the boxes, made square, in which R-Net or O-Net sees a face.

        Args:
            network: the network.
            threshold: smallest probability.
            size: side of the network's input in pixels.
            tables: summed-area tables of the frames.
            frames: position of each box's frame.
            boxes: (n, 4).
        """
        boxes = square(boxes)
        regions = pixel_regions(boxes, tables.shape[1] - 1, tables.shape[2] - 1)
        not_empty = (regions[:, 2:] > regions[:, :2]).all(axis=1)
        frames, boxes, regions = frames[not_empty], boxes[not_empty], regions[not_empty]
        parts = [
            network(crop(tables, frames[indices], regions[indices], size))[:count].cpu()
            for count, indices in batches(len(boxes))
        ]
        outputs = torch.cat([torch.zeros(0, network.columns), *parts])
        probabilities = outputs[:, :2].softmax(1)[:, 1].numpy()
        return Candidates(frames, boxes, probabilities, outputs.numpy()).take(probabilities > np.float32(threshold))


@functools.lru_cache(maxsize=64)
def pyramid(height: int, width: int) -> list[Level]:
    """Return the levels of the image pyramid of a frame; at least one if a face of MIN_FACE pixels fits."""
    levels = []
    scale = WINDOW / MIN_FACE
    side = min(height, width) * scale
    while side >= WINDOW:
        shape = int(height * scale + 1), int(width * scale + 1)
        levels.append(Level(scale, shape, ((shape[0] - 1) // 2 - 4, (shape[1] - 1) // 2 - 4)))
        scale, side = scale * FACTOR, side * FACTOR
    return levels


def windows(places: np.ndarray, levels: Sequence[Level]) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows that P-Net's outputs see, float32 (n, 4), and the numbers of their levels.

    Args:
        places: positions in the outputs of all levels, each row by row.
        levels: the levels.
    """
    ends = np.cumsum([math.prod(level.places) for level in levels])
    numbers = np.searchsorted(ends, places, side="right")
    columns = np.array([level.places[1] for level in levels])[numbers]
    starts = np.array([0, *ends])[numbers]
    corners = np.stack(np.divmod(places - starts, columns)[::-1], axis=1).astype(np.float32) * STRIDE
    scales = np.array([level.scale for level in levels], np.float32)[numbers, None]
    return np.floor(np.concatenate([corners + 1, corners + WINDOW], axis=1) / scales), numbers


def square(boxes: np.ndarray) -> np.ndarray:
    """Return squares with the centers of boxes (n, 4) and their longer sides."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    sides = sizes.max(axis=1, keepdims=True)
    corners = boxes[:, :2] + sizes * np.float32(0.5) - sides * np.float32(0.5)
    return np.concatenate([corners, corners + sides], axis=1)


def pixel_regions(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the pixels of a frame in boxes whose coordinates count from 1: int64 (n, 4), the last two exclusive."""
    corners = boxes.astype(np.int64)
    return np.concatenate([np.maximum(corners[:, :2] - 1, 0), np.minimum(corners[:, 2:], (width, height))], axis=1)


def batches(count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield batches of `count` items: the number of items, and their indices, the last of which may be repeated."""
    for start in range(0, count, MAX_CANDIDATES):
        size = min(count - start, MAX_CANDIDATES)
        padded = -(-size // CANDIDATE_STEP) * CANDIDATE_STEP
        yield size, np.minimum(np.arange(start, start + padded), count - 1)


def suppress(candidates: Candidates, threshold: float, count: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Suppress boxes that overlap a more probable one of the same frame (non-maximum suppression).

    Args:
        candidates: the boxes.
        threshold: intersection over union above which a box is suppressed.
        count: number of frames.
        groups: boxes of different groups do not suppress each other; None for one group.

    Returns:
        Indices of the others, the most probable first within each frame.
    """
    # OpenCV compares in double precision with a threshold in single precision; an overlap equal to it is allowed.
    limit = float(np.nextafter(np.float32(threshold), np.float32(1)))
    boxes = candidates.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    groups = np.zeros(len(boxes), np.int64) if groups is None else groups
    kept = [
        indices[cv2.dnn.NMSBoxesBatched(boxes[indices], candidates.probabilities[indices], groups[indices], 0.0, limit)]
        for indices in candidates.by_frame(count)
        if len(indices)
    ]
    return np.concatenate([np.zeros(0, np.int64), *kept])


def keep_outer(boxes: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Suppress boxes that share more than SAME_FACE of the smaller one's area with a more probable one.

    Returns:
        Indices of the others, the most probable first.
    """
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    waiting, kept = np.argsort(probabilities), []
    while len(waiting):
        best, waiting = waiting[-1], waiting[:-1]
        kept.append(best)
        corners = np.maximum(boxes[best, :2], boxes[waiting, :2]), np.minimum(boxes[best, 2:], boxes[waiting, 2:])
        shared = np.maximum(corners[1] - corners[0] + 1, 0).prod(axis=1)
        waiting = waiting[shared / np.minimum(areas[best], areas[waiting]) <= SAME_FACE]
    return np.array(kept, np.int64)
