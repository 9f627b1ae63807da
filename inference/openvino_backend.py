"""Run a classifier with OpenVINO on a CPU, which is faster than PyTorch. OpenVINO is an optional package.

Whenever a network is loaded, its logits of a few faces are compared with PyTorch's in float32: OpenVINO's bfloat16 is
reported to be wrong on some CPUs (openvinotoolkit/openvino#38256).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from inference.backends import BackendError
from inference.openvino_models import cache_entry, convert, read_models, split, write_models
from inference.torch_backend import fold_batch_norms
from training.tools.recipe import Recipe
from training.zoo.classifiers import DeepFakeClassifier

# Largest difference of a logit from PyTorch's in float32. In float32, it is less than 1e-5. In bfloat16, it is up to
# 0.04 on 400 real faces, with PyTorch 0.05. A score differs by a quarter of the logit's difference at most.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
# More cores per face would mostly wait for each other. The others score further faces at the same time.
CORES_PER_FACE = 4

log = logging.getLogger(__name__)


class OpenVinoClassifier:
    """Logits of a network by OpenVINO.

    Faces are scored one by one, which is faster than in batches, and so their logits do not depend on a batch.

    Args:
        path: the checkpoint.
        network: its network in float32 and evaluation mode, which is changed.
        recipe: its recipe.
        precision: `float32` or `bfloat16`.
        batch_size: largest number of faces per call.

    Raises:
        BackendError: OpenVINO cannot convert or compile the network, or computes wrong logits.
    """

    def __init__(self, path: Path, network: DeepFakeClassifier, recipe: Recipe, precision: str, batch_size: int):
        fold_batch_norms(network)
        self.lanes = max(min(torch.get_num_threads() // CORES_PER_FACE, batch_size), 1)
        self.pool = ThreadPoolExecutor(self.lanes, "openvino")
        images = recipe.normalize(torch.from_numpy(sample_faces(recipe.size)))
        with torch.inference_mode():
            logits = network(images)
        expected = (logits[0] if isinstance(logits, tuple) else logits)[:, 0]
        parts = split(network, precision)
        precisions = [part.precision for part in parts]
        entry = cache_entry(path, recipe.size, precision)
        if entry and (models := read_models(entry, len(parts))):
            problem = self._use(models, precisions, images, expected, TOLERANCES[precision])
            if not problem:
                return
            log.warning("%s: %s. Converting the network again", entry, problem)
        models = convert(parts, images[:1])
        if problem := self._use(models, precisions, images, expected, TOLERANCES[precision]):
            remedy = "Use --backend torch" if precision == "float32" else "Use --precision float32 or --backend torch"
            raise BackendError(f"--backend openvino: {path.name} in {precision} on this CPU: {problem}. {remedy}")
        if entry:
            write_models(entry, models)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of normalized images: float32 (n,)."""
        arrays = [np.ascontiguousarray(image)[None] for image in images.numpy()]
        logits = np.empty(len(arrays), np.float32)
        shares = [arrays[lane :: self.lanes] for lane in range(self.lanes)]
        for lane, values in enumerate(self.pool.map(_infer, self.requests, shares)):
            logits[lane :: self.lanes] = values
        return torch.from_numpy(logits)

    def _use(
        self,
        models: Sequence[Any],
        precisions: Sequence[str],
        images: torch.Tensor,
        expected: torch.Tensor,
        tolerance: float,
    ) -> str:
        """Compile the models of the parts. Return what is wrong with them or their logits of images, if anything is."""
        try:
            self._compile(models, precisions)
            difference = float((self(images) - expected).abs().max())
        except RuntimeError as error:
            return f"cannot be run ({str(error).strip().splitlines()[-1]})"
        is_close = difference <= tolerance  # and not NaN
        return "" if is_close else f"the logits differ from PyTorch's by {difference:.2g}"

    def _compile(self, models: Sequence[Any], precisions: Sequence[str]) -> None:
        """Compile the models of the parts, and connect their requests in a chain for each lane. Raises RuntimeError."""
        from openvino import Core

        threads = max(torch.get_num_threads() // self.lanes, 1) * self.lanes
        # Pinned threads of several processes would share some cores and leave others idle.
        options = {"NUM_STREAMS": self.lanes, "INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        compiled = [
            # OpenVINO chooses bfloat16 by itself unless it is told the precision.
            Core().compile_model(model, "CPU", {**options, "INFERENCE_PRECISION_HINT": precision})
            for model, precision in zip(models, precisions, strict=True)
        ]
        self.requests = [[model.create_infer_request() for model in compiled] for _ in range(self.lanes)]
        for chain in self.requests:
            for earlier, later in itertools.pairwise(chain):
                later.set_input_tensor(earlier.get_output_tensor())


def _infer(chain: Sequence[Any], images: Sequence[np.ndarray]) -> list[float]:
    """Return the logits of images, each (1, 3, size, size), by a chain of requests."""
    logits = []
    for image in images:
        chain[0].infer([image])
        for request in chain[1:]:
            request.infer()
        logits.append(chain[-1].get_output_tensor().data.item())
    return logits


def sample_faces(size: int) -> np.ndarray:
    """Return four crops of a face that differ in scale, light and side: RGB uint8 (4, size, size, 3)."""
    from skimage.data import astronaut

    near, far = (
        cv2.resize(astronaut()[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)
        for top, left, side in ((30, 150, 150), (0, 90, 270))
    )
    return np.stack([near, far, near[:, ::-1] // 2, 255 - (255 - far[:, ::-1]) // 2])
