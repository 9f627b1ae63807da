"""Score face crops with the networks of several checkpoints, on one device and in one precision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.device import choose_device, choose_precision, device_errors
from common.errors import UserError
from inference.backends import BackendError, choose_backend
from inference.torch_backend import TorchClassifier
from preprocessing.crops import MarginCrop, SquareCrop
from training.tools.checkpoint import Recipe, load_network
from training.zoo.classifiers import DeepFakeClassifier

# Default number of crops per forward pass, by device type, and its limit.
BATCH_SIZE, MAX_BATCH = {"cpu": 8, "cuda": 32, "mps": 16}, 128

log = logging.getLogger(__name__)


class CropSpec(NamedTuple):
    """How a network's input is cut from a frame.

    Attributes:
        rule: selects the part of the frame around a face.
        size: side of the square input in pixels.
    """

    rule: MarginCrop | SquareCrop
    size: int


class ScoreError(UserError):
    """The networks cannot score a batch: a score is not finite."""


class Ensemble:
    """Networks loaded from checkpoints, ready for inference.

    Args:
        paths: the checkpoints.
        device: a PyTorch device name, or `auto`.
        precision: `float32`, `float16`, `bfloat16` or `auto`.
        batch_size: number of faces per forward pass, at most MAX_BATCH; None chooses by the device.
        backend: library that runs the networks, one of `inference.backends.BACKENDS`.

    Attributes:
        device: the device that the networks are on.
        precision: name of the floating-point type.
        paths: the checkpoints.
        names: one name per network in the order of `paths`: the file name without .pt, numbered if it repeats.
        backend: `torch`, `torch-compile` or `openvino`.
        classifiers: what computes the logits (n,) of normalized images (n, 3, size, size), one per network.
        recipes: one recipe per network.
        crop_specs: the distinct crops that the networks need.
        batch_size: number of faces per forward pass.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        DeviceError: the device is not available, or too small for the networks.
        BackendError: the back-end is not installed, does not support the device, or computes wrong logits.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        backend: str = "torch",
    ):
        self.device = choose_device("cpu" if backend == "openvino" and device == "auto" else device)
        self.precision = choose_precision(precision, self.device)
        self.paths = list(map(Path, paths))
        self.names = _number_duplicates([Path(path).name.removesuffix(".pt") for path in paths])
        self.batch_size = min(batch_size or BATCH_SIZE.get(self.device.type, 1), MAX_BATCH)
        self.backend = choose_backend(backend, self.device, self.precision)
        try:
            self._load()
        except BackendError as error:
            if backend != "auto":
                raise
            log.warning("%s. Using PyTorch", error)
            self.backend = "torch"
            self._load()
        self.crop_specs = list(dict.fromkeys(CropSpec(recipe.crop, recipe.size) for recipe in self.recipes))

    def _load(self) -> None:
        """Load the networks and their recipes. Raises UserError."""
        self.classifiers: list[Callable[[torch.Tensor], torch.Tensor]] = []
        self.recipes: list[Recipe] = []
        for path in self.paths:
            network, recipe = load_network(path)
            with device_errors("Use fewer --models or --device cpu"):
                self.classifiers.append(self._prepare(path, network, recipe))
            self.recipes.append(recipe)

    def _prepare(self, path: Path, network: DeepFakeClassifier, recipe: Recipe) -> Callable[..., torch.Tensor]:
        """Return what computes the logits of a network, which is changed. Raises BackendError."""
        if self.backend == "openvino":
            from inference.openvino_backend import OpenVinoClassifier

            return OpenVinoClassifier(path, network, recipe, self.precision, self.batch_size)
        compiled_batch = self.batch_size if self.backend == "torch-compile" else None
        return TorchClassifier(network, self.device, getattr(torch, self.precision), compiled_batch)

    def score(self, crops: Mapping[CropSpec, np.ndarray]) -> np.ndarray:
        """Return the probability that each face is fake, per network: float32 (n, networks).

        Args:
            crops: the crops of n faces for each of `crop_specs`, RGB uint8 (n, size, size, 3).

        Raises:
            ScoreError: a network's output is not finite.
        """
        return self.finish(self.start(crops))

    @torch.inference_mode()
    def start(self, crops: Mapping[CropSpec, np.ndarray]) -> torch.Tensor:
        """Return the logits (networks, n) for `finish`, without waiting for a GPU to compute them."""
        pixels = {spec: self._upload(images) for spec, images in crops.items()}
        normalized: dict[tuple, torch.Tensor] = {}  # networks with the same recipe share their input
        rows = []
        for classifier, recipe in zip(self.classifiers, self.recipes, strict=True):
            key = recipe.crop, recipe.size, recipe.mean, recipe.std
            if key not in normalized:
                normalized[key] = recipe.normalize(pixels[CropSpec(recipe.crop, recipe.size)])
            views = recipe.views(normalized[key])
            rows.append(torch.stack([classifier(view) for view in views]).mean(dim=0))
        return torch.stack(rows)

    @torch.inference_mode()
    def finish(self, logits: torch.Tensor) -> np.ndarray:
        """Return the result of `score`, after waiting for a GPU once. Raises ScoreError."""
        logits = logits.cpu()
        for name, row in zip(self.names, logits, strict=True):
            if not row.isfinite().all():
                raise ScoreError(f"{name}: a score is not finite in {self.precision}. {self._remedy()}")
        return logits.sigmoid().numpy().T

    def _upload(self, images: np.ndarray) -> torch.Tensor:
        """Copy crops to the device."""
        pixels = torch.from_numpy(images)
        if self.device.type == "cuda":  # from pinned memory, the CPU need not wait for the copy
            return pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels.to(self.device)

    def _remedy(self) -> str:
        if self.precision == "float32":
            return "Choose another checkpoint"
        return "Use --precision float32, or another checkpoint if its scores are not finite there either"


def _number_duplicates(names: list[str]) -> list[str]:
    """Append #2, #3, ... to repeated names."""
    return [name if not (earlier := names[:i].count(name)) else f"{name}#{earlier + 1}" for i, name in enumerate(names)]
