"""Heat maps of faces: where the networks see signs of a fake (Grad-CAM).

Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, ICCV 2017, on the
encoder's last convolution after its batch norm and activation. `benchmarks/explain.py` measures how well the heat
agrees with the manipulated region. Read "Explanations" in weights/MODEL_CARD.md before relying on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from common.device import choose_device, device_errors
from preprocessing.crops import center_in_square, cut, resize_longer_side
from training.tools.checkpoint import load_network
from training.tools.recipe import Recipe
from training.zoo.classifiers import DeepFakeClassifier

REMEDY = "Use --device cpu, fewer --models, or no --explain"
# Weight of the colors over the picture where the heat is 1.
OPACITY = 0.7

Window = tuple[int, int, int, int]


class Explainer:
    """Make heat maps with the networks of several checkpoints.

    The networks are loaded in float32, separately from those that score: `Ensemble` folds batch norms and may use a
    lower precision.

    Args:
        checkpoints: files of the networks. Each network has the same weight.
        device: a PyTorch device or its name, or `auto`.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        DeviceError: the device is not available, or too small for the networks.
    """

    def __init__(self, checkpoints: Sequence[str | Path], device: str | torch.device = "cpu"):
        self.device = choose_device(str(device))
        self.networks: list[tuple[DeepFakeClassifier, Recipe]] = []
        for path in checkpoints:
            network, recipe = load_network(path)
            network.requires_grad_(False)  # only the gradient of the features is needed
            with device_errors(REMEDY):
                self.networks.append((network.to(self.device), recipe))

    def window(self, box: Sequence[float]) -> Window:
        """Return the part of a frame that the heat of a face covers: the smallest window with all networks' crops.

        Args:
            box: bounding box (xmin, ymin, xmax, ymax) in pixels of the frame.

        Returns:
            (xmin, ymin, xmax, ymax) in pixels. It may extend beyond the frame.
        """
        windows = np.array([recipe.crop.window(np.asarray(box)) for _, recipe in self.networks])
        xmin, ymin, xmax, ymax = (int(side) for side in (*windows[:, :2].min(axis=0), *windows[:, 2:].max(axis=0)))
        return xmin, ymin, xmax, ymax

    def heat(self, frame: np.ndarray, box: Sequence[float]) -> np.ndarray:
        """Return where the networks see signs of a fake in a face.

        The heat shows the evidence for "fake" whatever the score is: on a face that is scored as real, it shows what
        speaks most against that. It says nothing about how strong the evidence is, because its maximum is always 1.

        Args:
            frame: RGB uint8 (height, width, 3).
            box: bounding box (xmin, ymin, xmax, ymax) in pixels of the frame.

        Returns:
            float32 in the height and width of `cut(frame, window(box))`, the mean of the networks' heat, scaled to a
            maximum of 1; zeros if nothing speaks for "fake", and (0, 0) if the window lies outside of the frame.

        Raises:
            DeviceError: the device fails or is out of memory.
        """
        left, top, right, bottom = _inside(self.window(box), frame)
        total = np.zeros((max(bottom - top, 0), max(right - left, 0)), np.float32)
        for network, recipe in self.networks:
            own = recipe.crop.window(np.asarray(box))
            crop = cut(frame, own)
            if crop is not None:
                xmin, ymin, xmax, ymax = _inside(own, frame)
                total[ymin - top : ymax - top, xmin - left : xmax - left] += self._heat(network, recipe, crop)
        return _normalize(total)

    def heat_of_crop(self, crop: np.ndarray) -> np.ndarray:
        """Return the heat of a crop, RGB uint8 (height, width, 3), that is already what all networks need."""
        return _normalize(sum((self._heat(*network, crop) for network in self.networks), np.zeros(crop.shape[:2])))

    def overlay(self, crop: np.ndarray, heat: np.ndarray) -> np.ndarray:
        """Color a crop by its heat, which must have its height and width. Cold parts stay gray.

        The colors of the map, inferno, differ in lightness, so they are distinguishable without color vision.
        """
        gray = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        levels = np.rint(heat * 255).astype(np.uint8)
        colors = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
        opacity = OPACITY * heat[..., None]
        return np.rint((1 - opacity) * gray + opacity * colors).astype(np.uint8)

    def _heat(self, network: DeepFakeClassifier, recipe: Recipe, crop: np.ndarray) -> np.ndarray:
        """Return one network's heat over its crop: float32 (height, width), with a maximum of about 1."""
        resized = resize_longer_side(crop, recipe.size)
        square = torch.from_numpy(center_in_square(resized, recipe.size)).to(self.device)
        with device_errors(REMEDY):
            evidence = grad_cam(network, recipe.normalize(square[None]), recipe)[0].cpu().numpy()
        # Cells are taken to divide the square evenly. Because of asymmetric padding, their nominal receptive fields are
        # centered half a cell farther to the bottom right, but a trained network's gradients are not.
        heat = cv2.resize(evidence, (recipe.size, recipe.size), interpolation=cv2.INTER_LINEAR)
        (height, width), (rows, columns) = crop.shape[:2], resized.shape[:2]
        top, left = (recipe.size - rows) // 2, (recipe.size - columns) // 2  # as in center_in_square
        return cv2.resize(heat[top : top + rows, left : left + columns], (width, height))


def grad_cam(network: DeepFakeClassifier, images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Return the evidence for "fake" in the cells of a network's last feature map.

    Args:
        network: in evaluation mode, with parameters that need no gradient.
        images: normalized images (n, 3, height, width).
        recipe: what the logit is the mean of. The shifts are less than a cell and opposite, so they are not undone.

    Returns:
        (n, rows, columns), scaled to a maximum of 1 per image; zeros if no cell speaks for "fake".
    """
    # Negative evidence is removed afterwards, because the evidence of all views adds up to the logit.
    shifted = recipe.shifted(images)
    evidence = torch.stack([_evidence(network, view) for view in shifted]).sum(dim=0)
    if recipe.flip:
        evidence = evidence + torch.stack([_evidence(network, view.flip(3)).flip(2) for view in shifted]).sum(dim=0)
    evidence = evidence.relu().nan_to_num(posinf=0)
    return evidence / evidence.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(evidence.dtype).tiny)


def _evidence(network: DeepFakeClassifier, images: torch.Tensor) -> torch.Tensor:
    """Return the evidence for (positive) and against "fake" in the cells of the last feature map."""
    kept: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: tuple, features: torch.Tensor) -> torch.Tensor:
        kept.append(features.detach().requires_grad_())
        return kept[0]

    hook = network.encoder.bn2.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            output = network(images)
    finally:
        hook.remove()
    logits = output[0] if isinstance(output, tuple) else output  # (logits, mask logits)
    (gradient,) = torch.autograd.grad(logits.sum(), kept)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * kept[0].detach()).sum(dim=1)


def _inside(window: Window, frame: np.ndarray) -> Window:
    """Return the part of a window that lies in a frame, as `cut` does."""
    height, width = frame.shape[:2]
    xmin, ymin, xmax, ymax = (max(side, 0) for side in window)
    return min(xmin, width), min(ymin, height), min(xmax, width), min(ymax, height)


def _normalize(heat: np.ndarray) -> np.ndarray:
    """Scale a heat map to a maximum of 1, unless it is all zeros: float32."""
    maximum = heat.max(initial=0)
    return (heat / maximum if maximum > 0 else heat).astype(np.float32)
