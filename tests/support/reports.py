"""Synthetic --details for tests of the report: several people and models, failures, hostile names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MODELS = ("lite0", "b7_<i>'\"")
BANDS = {"real": 0.2, "fake": 0.7, "error": 0.05, "faces": 1204}
SCRIPT = "<script>window.pwned = 1; alert(1)</script>.mp4"
HOSTILE = (
    SCRIPT,
    '" onmouseover="window.pwned = 1" x=\'.mp4',
    "<img src=x onerror=window.pwned=1>.mp4",
    "</script></style></details><h1>.mp4",
    "{{ 7 * 191 }}{% raw %}.mp4",
    "n" * 200 + ".mp4",
    "line\nbreak\u2028.mp4",
    "\u202egpj.mp4",
    "surrogate_\udcff.mp4",
)
FRAMES, SECONDS, WIDTH, HEIGHT = 32, 10.0, 480, 360


def header(models: Sequence[str] = MODELS, bands: dict[str, Any] | None = None) -> dict[str, Any]:
    """A header as `inference.details.describe_run` writes it."""
    return {
        "record": "run",
        "schema_version": 2,
        "version": "1.1.0",
        "created": "2026-11-25T08:40:00+00:00",
        "directory": "/home/user",
        "arguments": {
            "test_dir": "my videos",
            "output": "out.csv",
            "models": list(models),
            "overwrite": True,
            "x": None,
        },
        "models": [
            {"name": name, "file": f"weights/{name}.pt", "sha256": f"{number:x}" * 64, "recipe": {}}
            for number, name in enumerate(models)
        ],
        "bands": bands,
        "backend": "torch",
        "device": "cpu",
        "device_name": "a CPU",
        "precision": "float32",
        "decoder": "PyAV 17.0.1, libavcodec 62.11.100",
        "packages": {"python": "3.11.2", "torch": "2.15.0"},
        "method": {"frames": FRAMES, "strategy": "confident", "aggregate": "video", "detector_scale": "auto"},
    }


def failure(name: str, status: str = "unreadable", message: str = "is empty (0 bytes)") -> dict[str, Any]:
    """A record of a video without faces: a failure, or no_face."""
    return {
        "record": "video",
        "filename": name,
        "status": status,
        "message": f"/videos/{name}: {message}",
        "notes": [],
        "score": 0.5,
        "video_score": 0.5,
        "verdict": None,
        "model_scores": {},
        "low_evidence": [],
        "people": [],
        "sha256": None,
        "bytes": None,
        "codec": None,
        "frames": 0,
        "fps": None,
        "duration": None,
        "width": None,
        "height": None,
        "faces": [],
        "seconds": 0.1,
        "processing_seconds": 0.1,
        "version": "1.1.0",
    }


def scored(
    name: str,
    people: Sequence[float],
    models: Sequence[str] = MODELS,
    bands: dict[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """A record of a video in which each person's faces have about a given score."""
    rng = np.random.default_rng(seed)
    times = [round(float(time), 3) for time in np.linspace(0, SECONDS, FRAMES)]
    faces = [
        {
            "frame": 8 * index,
            "time": time,
            "box": [60.0 + 100 * person, 100.0, 120.0 + 100 * person, 180.0],
            "person": person + 1,
            "detector_confidence": 0.99,
            "probability": 0.99,
            "scores": {model: float(np.clip(score + rng.normal(0, 0.05), 0, 1)) for model in models},
        }
        for index, time in enumerate(times)
        for person, score in enumerate(people)
    ]
    score = float(np.mean(people))
    divided = max(people) - min(people) > 0.3
    verdict = "likely_real" if score <= 0.2 else "likely_fake" if score >= 0.7 else "inconclusive"
    return {
        **failure(name),
        "status": "ok",
        "message": "",
        "score": score,
        "video_score": score,
        "verdict": verdict if bands else None,
        "model_scores": dict.fromkeys(models, score),
        "low_evidence": ["people disagree"] if divided else [],
        "people": [
            {
                "person": number,
                "score": score,
                "scores": dict.fromkeys(models, score),
                "faces": FRAMES,
                "height": 80.0,
                "seen": [[0.0, SECONDS]],
            }
            for number, score in enumerate(people, 1)
        ],
        "sha256": "ab" * 32,
        "bytes": 1234567,
        "codec": "h264",
        "frames": FRAMES,
        "fps": 25.0,
        "duration": SECONDS,
        "width": WIDTH,
        "height": HEIGHT,
        "faces": faces,
    }


def run(bands: dict[str, Any] | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run with one video per hostile name and one of each status."""
    people = ([0.9], [0.05], [0.88, 0.1, 0.12], [0.5, 0.45], [0.02], [0.3], [0.97], [0.6], [0.15])
    records = [
        scored(name, scores, bands=bands, seed=seed)
        for seed, (name, scores) in enumerate(zip(HOSTILE, people, strict=True))
    ]
    records += [
        failure("no_face.mp4", "no_face", "no face in 32 frames"),
        failure("empty.mp4"),
        failure("huge.mp4", "too_large", "has frames of 9000 x 9000 pixels. Raise --max-pixels"),
    ]
    return header(bands=bands), records


def write_details(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """Write lines as --details does."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
