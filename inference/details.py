"""Complete the records of videos, and describe the run: the lines of --details, see `inference.schema`."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import __version__
from common.errors import UserError
from common.files import atomic_write, file_facts, sha256
from common.object_store import File, RemoteFile
from inference.people import are_apart, disagree, most_suspicious

if TYPE_CHECKING:
    from inference.predictor import Predictor
    from training.tools.recipe import Recipe

# Version of the format. Increase it when a key is removed or changes its meaning.
SCHEMA_VERSION = 2
# A video with fewer faces, or smaller ones (median height of the boxes in pixels), is weak evidence: networks see faces
# enlarged to 160 pixels or more.
FEW_FACES, SMALL_FACE = 8, 64
# How a video is scored: from all its faces, or by its most suspicious person.
AGGREGATES = ("video", "person")
# A reason of `low_evidence`.
PEOPLE_DISAGREE = "people disagree"


def describe_run(
    arguments: Mapping[str, Any], description: Mapping[str, Any], aggregate: str = "video"
) -> dict[str, Any]:
    """Return the header of --details.

    Args:
        arguments: arguments of the command line.
        description: result of `describe_predictor`.
        aggregate: one of AGGREGATES.

    Raises:
        UserError: there is no such aggregate.
    """
    if aggregate not in AGGREGATES:
        raise UserError(f"aggregate: {aggregate!r} is not one of {', '.join(AGGREGATES)}")
    return {
        "record": "run",
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "directory": str(Path.cwd()),
        "arguments": {key: _to_json(value) for key, value in arguments.items()},
        **description,
        "method": {**description["method"], "aggregate": aggregate},
    }


def describe_predictor(predictor: Predictor) -> dict[str, Any]:
    """Return the part of the header of --details that the scores depend on."""
    import av

    from common.versions import package_versions

    ensemble = predictor.ensemble
    models = zip(ensemble.names, ensemble.paths, ensemble.recipes, strict=True)
    optional = ["openvino"] if ensemble.backend == "openvino" else []
    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    return {
        "models": [
            {"name": name, "file": str(path), "sha256": sha256(path), "recipe": recipe.to_dict()}
            for name, path, recipe in models
        ],
        "bands": bands_of(ensemble.recipes),
        "backend": ensemble.backend,
        "device": str(ensemble.device),
        "device_name": device_name(ensemble.device.type),
        "precision": ensemble.precision,
        "decoder": f"PyAV {av.__version__}, libavcodec {libavcodec}",
        "packages": package_versions(*optional),
        "method": {
            "frames": predictor.frames,
            "strategy": predictor.strategy,
            "detector_scale": predictor.detector.scale or "auto",
        },
    }


def complete(record: dict[str, Any], header: Mapping[str, Any], file: File | None = None) -> dict[str, Any]:
    """Return a video's record as it is in --details: with the score and the verdict that the run asks for.

    Args:
        record: result of `inference.submission.to_record`.
        header: result of `describe_run`.
        file: the file, to add its size and SHA-256, which the record has if the file is in an object store; None leaves
            them out, as for a file that has changed since.
    """
    has_score = record["status"] == "ok"
    score, faces, model_scores = record["video_score"], record["faces"], record["model_scores"]
    if has_score and header["method"]["aggregate"] == "person":
        person = most_suspicious(record["people"])
        score, model_scores = person["score"], person["scores"]
        faces = [face for face in faces if face["person"] == person["person"]]
    size, digest = file_facts(file) if isinstance(file, Path) else (None, None)
    if isinstance(file, RemoteFile):
        size, digest = record.get("bytes"), record.get("sha256")
    return {
        "record": "video",
        **record,
        "score": score,
        "verdict": verdict(score, header["bands"]) if has_score else None,
        "low_evidence": low_evidence(faces, model_scores, record["people"]) if has_score else [],
        "sha256": digest,
        "bytes": size,
    }


def verdict(score: float, bands: Mapping[str, float] | None) -> str | None:
    """Return the verdict of a score; None without bands."""
    if bands is None:
        return None
    return "likely_real" if score <= bands["real"] else "likely_fake" if score >= bands["fake"] else "inconclusive"


def low_evidence(
    faces: Sequence[Mapping[str, Any]], model_scores: Mapping[str, float], people: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return the reasons to trust the score of a video less.

    Args:
        faces: the faces that the score comes from.
        model_scores: the score by model.
        people: all people in the video.
    """
    reasons = []
    if len(faces) < FEW_FACES:
        reasons.append(f"few faces ({len(faces)})")
    height = float(np.median([face["box"][3] - face["box"][1] for face in faces]))
    if height < SMALL_FACE:
        reasons.append(f"small faces (median height {height:.0f} pixels)")
    if disagree(people):
        reasons.append(PEOPLE_DISAGREE)
    if are_apart(model_scores.values()):
        reasons.append("models disagree")
    return reasons


def bands_of(recipes: Sequence[Recipe]) -> dict[str, Any] | None:
    """Return the verdict bands; None unless there is one network, because bands are calibrated for its scores alone."""
    return asdict(recipes[0].bands) if len(recipes) == 1 and recipes[0].bands else None


def device_name(kind: str) -> str:
    """Return the name of the first GPU or of the CPU."""
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write_details(path: Path, header: Mapping[str, Any], records: Sequence[dict[str, Any]]) -> None:
    """Write the header and one JSON line per video. Raises OutputError."""
    atomic_write(path, "".join(json.dumps(line) + "\n" for line in (header, *records)))


def _to_json(value: Any) -> Any:
    """Return an argument as a JSON value."""
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
