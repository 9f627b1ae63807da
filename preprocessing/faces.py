"""Faces in frames: MTCNN (Zhang et al. 2016, the networks and weights of facenet-pytorch)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from facenet_pytorch import MTCNN
from torch.nn.functional import interpolate

# Score thresholds of MTCNN's three networks, by use (the winning solution's).
THRESHOLDS = {
    "inference": (0.7, 0.8, 0.8),
    "originals": (0.85, 0.95, 0.95),
    "landmarks": (0.65, 0.75, 0.75),
}
# Scale of the detector's input by the wider side of the frame: the last row that it exceeds counts.
SCALES = ((0, 2.0), (299, 1.0), (1000, 0.5), (1900, 0.33))
# The smallest face that the detector looks for, in pixels of its input. Smaller inputs hold none.
MIN_FACE = 20
# Frames a detector call. A batch lets boxes of different frames share one suppression of overlaps, where ties
# may fall another way than in a frame alone (1 of 100 boxes moved by some pixels): on a CPU, where a batch
# saves little, there is none.
BATCH = {"cpu": 1, "cuda": 32}


class Face(NamedTuple):
    """A face in a frame.

    box: (xmin, ymin, xmax, ymax), float32, in pixels of the full frame; may reach over its edge.
    probability: the detector's, 0 to 1.
    points: left eye, right eye, nose, left and right mouth corner; float32 (5, 2), (x, y) in pixels of the full frame.
    """

    box: np.ndarray
    probability: float
    points: np.ndarray


def detector_scale(width: int, height: int) -> float:
    """How much a frame of this size in pixels is scaled for the detector."""
    return [scale for above, scale in SCALES if max(width, height) > above][-1]


class FaceDetector:
    """MTCNN on a device, with a preset of THRESHOLDS and either the scale rule or a constant `scale`."""

    def __init__(self, preset: str = "inference", device: str | torch.device = "cpu", scale: float | None = None):
        # MTCNN's pooling to sizes that do not divide is not there on Apple's GPUs.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self.scale = scale
        self.batch = BATCH.get(self.device.type, 1)
        self.mtcnn = MTCNN(
            margin=0,
            min_face_size=MIN_FACE,
            thresholds=list(THRESHOLDS[preset]),
            keep_all=True,
            device=self.device,
        ).eval()
        if self.device.type == "cpu":
            self.mtcnn.to(memory_format=torch.channels_last)

    def shrink(self, image: np.ndarray) -> np.ndarray:
        """The detector's input for a frame (height, width, 3) uint8: resized by the bicubic filter, antialiased.

        PyTorch's is Pillow's, which the published code uses, but for a grey level in places at scale 0.33, in a fifth
        of the time.
        """
        height, width = image.shape[:2]
        scale = self.scale or detector_scale(width, height)
        if scale == 1:
            return image
        size = max(1, int(height * scale)), max(1, int(width * scale))
        planes = torch.from_numpy(image).permute(2, 0, 1)[None]
        return interpolate(planes, size, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()

    def detect(self, frames: Sequence[np.ndarray], shrunk: Sequence[np.ndarray] | None = None) -> list[list[Face]]:
        """The faces of each frame (RGB uint8, height x width x 3), largest first.

        `shrunk` are the same frames after `shrink`, where the caller has them already.
        """
        shrunk = shrunk or [self.shrink(frame) for frame in frames]
        faces = []
        pairs = zip(frames, shrunk, strict=True)
        for (full, small), group in groupby(pairs, key=lambda pair: (pair[0].shape, pair[1].shape)):
            inputs = [small_frame for _, small_frame in group]
            ratio = np.array([full[1] / small[1], full[0] / small[0]], np.float32)
            for start in range(0, len(inputs), self.batch):
                faces += self._detect(np.stack(inputs[start : start + self.batch]), ratio)
        return faces

    def _detect(self, batch: np.ndarray, ratio: np.ndarray) -> list[list[Face]]:
        """Faces of a batch of inputs of one size; coordinates times `ratio` (x, y) are those of the full frame."""
        if min(batch.shape[1:3]) < MIN_FACE:
            return [[] for _ in batch]
        # In planes of one colour: that makes the pyramid of sizes faster.
        planes = torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            found = zip(*self.mtcnn.detect(planes.permute(0, 2, 3, 1), landmarks=True), strict=True)
        faces = []
        for boxes, probabilities, points in found:
            if boxes is None:
                faces.append([])
                continue
            # MTCNN's arrays are of objects where all frames of a batch have as many faces.
            boxes = boxes.astype(np.float32) * np.tile(ratio, 2)
            points = points.astype(np.float32) * ratio
            faces.append([Face(*face) for face in zip(boxes, map(float, probabilities), points, strict=True)])
        return faces
