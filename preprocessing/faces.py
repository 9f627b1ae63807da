"""Face detection in frames of any size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain, groupby, repeat
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate

from common.device import choose_device, device_errors, one_core_threads
from preprocessing.detector_scale import scale_for
from preprocessing.mtcnn import MIN_FACE, Mtcnn

# Thresholds of MTCNN's three networks by use, from the winning solution.
THRESHOLDS = {
    "inference": (0.7, 0.8, 0.8),
    "originals": (0.85, 0.95, 0.95),
    "landmarks": (0.65, 0.75, 0.75),
}
# Frames per batch. On a CPU, a batch is processed by one thread, and larger ones no longer fit in its cache.
BATCH = {"cpu": 4, "cuda": 32}


class Face(NamedTuple):
    """A face in a frame.

    Attributes:
        box: (xmin, ymin, xmax, ymax), float32, in pixels of the full frame; may extend beyond it.
        probability: the detector's confidence, 0 to 1.
        points: left eye, right eye, nose, left and right mouth corner: float32 (5, 2), (x, y) in pixels of the frame.
    """

    box: np.ndarray
    probability: float
    points: np.ndarray


class FaceDetector:
    """MTCNN on a device.

    Args:
        preset: key of THRESHOLDS.
        device: device of the networks; the CPU is used instead of an Apple GPU.
        scale: scale of the input; None chooses it by frame size.
        threads: number of batches to process concurrently on a CPU.
    """

    def __init__(
        self,
        preset: str = "inference",
        device: str | torch.device = "cpu",
        scale: float | None = None,
        threads: int = 1,
    ):
        # On Apple GPUs, PyTorch's adaptive pooling supports only output sizes that divide the input size.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self.scale = scale
        self.threads = max(threads, 1)
        self.batch = BATCH.get(self.device.type, 1)
        self.mtcnn = Mtcnn(THRESHOLDS[preset], self.device)
        self._map: Callable = one_core_threads(self.threads).map if self.device.type == "cpu" else map
        # Without a stream of its own, detection on a GPU would wait for the classifiers.
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if self._stream:  # the networks' weights are prepared in the current stream
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    def shrink(self, image: np.ndarray) -> np.ndarray:
        """Return the detector's input for a frame (height, width, 3) uint8: resized with an antialiased bicubic filter.

        The published code uses Pillow's filter. PyTorch's takes a fifth of the time and differs by at most one gray
        level, only in places and only at scale 0.33.
        """
        height, width = image.shape[:2]
        scale = self.scale or scale_for(width, height)
        if scale == 1:
            return image
        size = max(1, int(height * scale)), max(1, int(width * scale))
        planes = torch.from_numpy(image).permute(2, 0, 1)[None]
        return cv2.merge(list(interpolate(planes, size, mode="bicubic", antialias=True)[0].numpy()))

    def detect(self, frames: Sequence[np.ndarray], shrunk: Sequence[np.ndarray] | None = None) -> list[list[Face]]:
        """Return the faces of each frame, largest first.

        Args:
            frames: RGB uint8 (height, width, 3).
            shrunk: the frames after `shrink`, if the caller has them already.
        """
        shrunk = shrunk or [self.shrink(frame) for frame in frames]
        faces: list[list[Face]] = []
        pairs = zip(frames, shrunk, strict=True)
        for (full, small), group in groupby(pairs, key=lambda pair: (pair[0].shape, pair[1].shape)):
            inputs = [small_frame for _, small_frame in group]
            ratio = np.array([full[1] / small[1], full[0] / small[0]], np.float32)
            batches = [np.stack(inputs[start : start + self.batch]) for start in range(0, len(inputs), self.batch)]
            faces += chain.from_iterable(self._map(self._detect, batches, repeat(ratio)))
        return faces

    def _detect(self, batch: np.ndarray, ratio: np.ndarray) -> list[list[Face]]:
        """Detect faces in inputs of one size; `ratio` (x, y) converts coordinates to pixels of the full frame."""
        if min(batch.shape[1:3]) < MIN_FACE:
            return [[] for _ in batch]
        # On a CPU, torch.cuda.stream(None) would still initialize CUDA where there is a GPU.
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            detections = self.mtcnn.detect(batch)
        return [
            [
                Face(box, probability, points)
                for box, probability, points in zip(
                    found.boxes * np.tile(ratio, 2), found.probabilities.tolist(), found.points * ratio, strict=True
                )
            ]
            for found in detections
        ]


@functools.cache
def get_detector(preset: str, scale: float | None, device: str) -> FaceDetector:
    """Return a FaceDetector that is created once per process."""
    return FaceDetector(preset, choose_device(device), scale)


def find_faces(detector: FaceDetector, images: list[np.ndarray]) -> list[list[Face]]:
    """Return `detector.detect(images)`. Raises DeviceError if the device fails or is out of memory."""
    with device_errors("Lower --workers or use --device cpu"):
        return detector.detect(images)
