"""Small datasets of real clips, and the stages as a user runs them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from skimage.data import astronaut

from preprocessing import sample_clips

ROOT = Path(__file__).parents[2]
STAGES = ("detect_original_faces", "extract_crops", "generate_landmarks", "generate_diffs", "generate_folds")
REAL = {"label": "REAL", "split": "train"}


def fake_of(original: str) -> dict[str, str]:
    return {"label": "FAKE", "split": "train", "original": original}


def command(name: str, root: Path, *options: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "preprocessing" / f"{name}.py"), "--root-dir", str(root), *map(str, options)]


def stage(name: str, root: Path, *options: str | Path, **keywords: Any) -> subprocess.CompletedProcess:
    return subprocess.run(command(name, root, *options), capture_output=True, text=True, timeout=600, **keywords)


def preprocess(root: Path, *options: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(ROOT / "preprocess_data.sh"), str(root), *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
        timeout=600,
    )


def part(root: Path, number: int, metadata: Mapping[str, Any]) -> Path:
    """A part's folder with its metadata.json."""
    folder = root / f"dfdc_train_part_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def records(root: Path, name: str) -> dict[str, dict]:
    """What the journal of an output folder says of each clip."""
    lines = (root / "progress" / f"{name}.jsonl").read_text().splitlines()[1:]
    return {line["clip"]: line["record"] for line in map(json.loads, lines)}


def tree(root: Path) -> dict[str, str]:
    """The hash of every file of a dataset, but of the journals, which tell the time taken."""
    files = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "progress")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def portrait(frames: int, width: int = 480, height: int = 360) -> list[np.ndarray]:
    """A face in each frame."""
    return list(sample_clips.moving(astronaut(), frames, width, height, min(width, height) / 400))


def swapped(frames: list[np.ndarray]) -> list[np.ndarray]:
    """The same frames with something else where the mouth is."""
    mouth = np.zeros(frames[0].shape[:2], np.uint8)
    height, width = mouth.shape
    cv2.ellipse(mouth, (round(width * 0.47), round(height * 0.22)), (width // 24, height // 30), 0, 0, 360, 255, -1)
    return [np.where(mouth[..., None] > 0, np.rot90(frame, 2), frame) for frame in frames]


def crowd(frames: int) -> Iterator[np.ndarray]:
    """Three faces in 800 x 400; the left one shrinks, the middle one grows until it is the larger."""
    face = astronaut()[:300, 80:380]
    for progress in np.linspace(0, 1, frames):
        canvas = np.full((400, 800, 3), 90, np.uint8)
        sides = (round(300 - 100 * progress), round(200 + 100 * progress), 160)
        for side, left in zip(sides, (0, 310, 630), strict=True):
            canvas[40 : 40 + side, left : left + side] = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
        yield canvas
