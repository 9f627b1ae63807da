"""Convert networks for OpenVINO, which takes seconds, and keep the results in the user's cache folder."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from common.files import OutputError, atomic_folder, lock, make_folder, sha256
from inference.backends import OPENVINO_PRECISIONS, BackendError
from inference.torch_backend import FIRST_BFLOAT16_STAGE
from training.zoo.classifiers import DeepFakeClassifier, DeepFakeClassifierSRM

# Increase it when a conversion changes.
CACHE_VERSION = 1

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """Consecutive layers of a network in one precision.

    Attributes:
        layers: input (1, channels, height, width).
        precision: OpenVINO's name.
    """

    layers: nn.Module
    precision: str


class _Head(nn.Module):
    """The layers of a classifier after its encoder."""

    def __init__(self, network: DeepFakeClassifier):
        super().__init__()
        self.network = network

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.network.classify(features)


def split(network: DeepFakeClassifier, precision: str) -> list[Part]:
    """Return the parts of a network, without the mask of a U-Net.

    In bfloat16, the first stages stay in float32, as with PyTorch: otherwise, the embedded model's logits of 400 real
    faces were off by up to 0.77 instead of 0.04.
    """
    encoder = network.encoder
    filters = [network.srm_conv] if isinstance(network, DeepFakeClassifierSRM) else []
    stages = list(encoder.blocks.children())
    first = nn.Sequential(*filters, encoder.conv_stem, encoder.bn1, *stages[:FIRST_BFLOAT16_STAGE])
    rest = nn.Sequential(*stages[FIRST_BFLOAT16_STAGE:], encoder.conv_head, encoder.bn2, _Head(network))
    if precision == "bfloat16":
        return [Part(first, "f32"), Part(rest, "bf16")]
    return [Part(nn.Sequential(first, rest), OPENVINO_PRECISIONS[precision])]


@torch.no_grad()
def convert(parts: Sequence[Part], image: torch.Tensor) -> list[Any]:
    """Return an OpenVINO model for each part.

    Args:
        parts: result of `split`.
        image: a normalized image (1, 3, size, size).

    Raises:
        BackendError: the releases of OpenVINO and PyTorch do not fit.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # What openvino.convert_model does, except that this also sends usage data to Google.
    frontend = FrontEndManager().load_by_framework("pytorch")
    models = []
    for part in parts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's TorchScript is deprecated
            try:
                decoder = TorchScriptPythonDecoder(part.layers, example_input=(image,))  # must outlive the conversion
                models.append(frontend.convert(frontend.load(decoder)))
            except RuntimeError as error:
                what = f"OpenVINO cannot convert the network ({str(error).strip().splitlines()[-1]})"
                raise BackendError(f"--backend openvino: {what}. Install the release in constraints.txt") from None
        models[-1].reshape(list(image.shape))
        image = part.layers(image)
    return models


def cache_entry(checkpoint: Path, size: int, precision: str) -> Path | None:
    """Return the folder of a converted network, and make the one that it is in; None if that cannot be written to."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(cache) / "dfdc-detector" / "openvino"
        make_folder(folder)
    except (OutputError, RuntimeError) as error:  # RuntimeError: there is no home folder
        log.warning("converted networks are not cached: %s", error)
        return None
    return folder / f"{sha256(checkpoint)}-{version('openvino')}-{precision}-1x3x{size}x{size}-v{CACHE_VERSION}"


def read_models(entry: Path, parts: int) -> list[Any] | None:
    """Return the models of a cache entry; None if there are none, or damaged ones."""
    from openvino import Core

    try:
        return [Core().read_model(entry / f"part{number}.xml") for number in range(parts)]
    except RuntimeError:
        if entry.exists():
            log.warning("%s: is damaged. Converting the network again", entry)
        return None


def write_models(entry: Path, models: Sequence[Any]) -> None:
    """Write a cache entry atomically. A full disk is reported only."""
    from openvino import save_model

    try:
        with lock(entry), atomic_folder(entry) as folder:
            for number, model in enumerate(models):
                save_model(model, folder / f"part{number}.xml", compress_to_fp16=False)
    except (OutputError, RuntimeError) as error:
        log.warning("the converted network is not cached: %s", error)
