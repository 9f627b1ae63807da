"""Small datasets of real clips, and the stages run as a user runs them."""

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
from tests.support import programs

ROOT = Path(__file__).parents[2]
STAGES = ("detect_original_faces", "extract_crops", "generate_landmarks", "generate_diffs", "generate_folds")
REAL = {"label": "REAL", "split": "train"}


def fake_of(original: str) -> dict[str, str]:
    return {"label": "FAKE", "split": "train", "original": original}


def write_part(root: Path, number: int, metadata: Mapping[str, Any]) -> Path:
    """Make the folder of a DFDC part with its metadata.json and return it."""
    folder = root / f"dfdc_train_part_{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def stage_command(name: str, root: Path, *options: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "preprocessing" / f"{name}.py"), "--root-dir", str(root), *map(str, options)]


def run_stage(name: str, root: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return programs.run(stage_command(name, root, *options))


def preprocess(root: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """Run preprocess_data.sh."""
    command = [ROOT / "preprocess_data.sh", root, *options]
    return programs.run(command, env={**os.environ, "PYTHON": sys.executable})


def records(root: Path, output: str) -> dict[str, dict]:
    """Return the last record of each clip in the journal of an output folder."""
    lines = (root / "progress" / f"{output}.jsonl").read_text().splitlines()[1:]
    return {line["clip"]: line["record"] for line in map(json.loads, lines)}


def statuses(root: Path, output: str) -> dict[str, str]:
    """Return the recorded status of each clip."""
    return {clip: record["status"] for clip, record in records(root, output).items()}


def file_hashes(root: Path) -> dict[str, str]:
    """Return the hash of every file of a dataset, except in progress/: journals, which hold times, and kept crops."""
    files = (path for path in root.rglob("*") if path.is_file() and "progress" not in path.relative_to(root).parts)
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def portrait_frames(frames: int, width: int = 480, height: int = 360) -> list[np.ndarray]:
    """Return frames with one face each."""
    return list(sample_clips.moving(astronaut(), frames, width, height, min(width, height) / 400))


def fake_frames(frames: list[np.ndarray]) -> list[np.ndarray]:
    """Return frames in which the mouth is replaced by another part of the frame."""
    mouth = np.zeros(frames[0].shape[:2], np.uint8)
    height, width = mouth.shape
    cv2.ellipse(mouth, (round(width * 0.47), round(height * 0.22)), (width // 24, height // 30), 0, 0, 360, 255, -1)
    return [np.where(mouth[..., None] > 0, np.rot90(frame, 2), frame) for frame in frames]


def three_faces(frames: int) -> Iterator[np.ndarray]:
    """Yield 800 x 400 frames with three faces. The left one shrinks; the middle one grows beyond it."""
    face = astronaut()[:300, 80:380]
    for progress in np.linspace(0, 1, frames):
        canvas = np.full((400, 800, 3), 90, np.uint8)
        sides = (round(300 - 100 * progress), round(200 + 100 * progress), 160)
        for side, left in zip(sides, (0, 310, 630), strict=True):
            canvas[40 : 40 + side, left : left + side] = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
        yield canvas
