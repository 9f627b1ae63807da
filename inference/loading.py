"""Load the networks, the face detector and the decoders that score videos."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.collector import no_garbage_collection
from common.device import PRECISIONS
from common.errors import UserError
from inference.aggregation import FRAMES, STRATEGIES
from inference.backends import BACKENDS
from preprocessing.limits import Limits

if TYPE_CHECKING:
    from inference.predictor import Predictor

DEFAULT_MODEL = Path(__file__).resolve().parents[1] / "weights" / "default_lite0.pt"


@no_garbage_collection()
def load_predictor(
    checkpoints: str | Path | Sequence[str | Path] = (DEFAULT_MODEL,),
    device: str = "auto",
    precision: str = "auto",
    *,
    strategy: str = "confident",
    frames: int = FRAMES,
    detector_scale: float | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    limits: Limits | None = None,
    backend: str = BACKENDS[0],
) -> Predictor:
    """Load what scores videos.

    Args:
        checkpoints: the networks; by default the embedded model.
        device: device of the networks: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: floating-point type of the classifiers: `auto`, `float32`, `float16` or `bfloat16`.
        strategy: aggregation of face scores, a key of `inference.aggregation.STRATEGIES`.
        frames: number of frames sampled per video.
        detector_scale: scale of the face detector's input; None chooses it by frame size.
        batch_size: number of faces per forward pass; None chooses by the device.
        workers: number of videos decoded concurrently; None chooses by the number of CPU cores.
        limits: what decoding a video may take; None for the default limits.
        backend: library that runs the classifiers: `torch`, `torch-compile`, `openvino` or `auto`,
            see docs/prediction.md.

    Raises:
        UserError: a strategy, precision or back-end that does not exist, or a number that is not positive.
        BackendError: the back-end is not installed, does not support the device, or computes wrong logits.
        CheckpointError: a checkpoint cannot be used.
        DeviceError: the device is not available, or too small for the networks.
    """
    checkpoints = [checkpoints] if isinstance(checkpoints, (str, Path)) else checkpoints
    _check("strategy", strategy, STRATEGIES)
    _check("precision", precision, ("auto", *PRECISIONS))
    _check("backend", backend, BACKENDS)
    for name, value in (("frames", frames), ("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{name}: {value} is not a positive integer")
    from inference.decoder import Decoder, default_workers

    # The decoders start while PyTorch is imported, which takes seconds.
    decoders = [Decoder(limits or Limits()) for _ in range(workers or default_workers())]

    import torch

    from inference.ensemble import Ensemble
    from inference.predictor import Predictor
    from preprocessing.faces import FaceDetector

    ensemble = Ensemble(checkpoints, device, precision, batch_size, backend)
    threads = torch.get_num_threads() - len(decoders)  # the decoders take a CPU core each
    detector = FaceDetector("inference", ensemble.device, detector_scale, threads)
    return Predictor(ensemble, detector, strategy, frames, decoders)


def _check(name: str, value: str, allowed: Collection[str]) -> None:
    """Raise UserError if a value is not allowed."""
    if value not in allowed:
        raise UserError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
