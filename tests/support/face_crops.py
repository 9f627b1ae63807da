"""A small preprocessed dataset, made from one portrait, and training as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from skimage.data import astronaut

from preprocessing.generate_diffs import difference
from preprocessing.images import encode_image
from preprocessing.layout import FOLDS_COLUMNS, crop_name
from tests.support import programs

ROOT = Path(__file__).parents[2]
TRAIN_CLASSIFIER = ROOT / "training/pipelines/train_classifier.py"
KILLED_TRAINING = ROOT / "tests/support/killed_training.py"
FOLDS, PAIRS, FRAMES = 3, 6, (0, 10, 20)
# (x, y) of the landmarks in the portrait: left eye, right eye, nose, left and right mouth corner.
LANDMARKS = np.array([[203, 108], [248, 110], [224, 138], [208, 155], [244, 157]])
NETWORK = "DeepFakeClassifier_tf_efficientnet_lite0_0"


def make_dataset(root: Path, folds: int = FOLDS, pairs: int = PAIRS, frames: Iterable[int] = FRAMES) -> Path:
    """Write crops, landmarks, masks and folds.csv with `pairs` real and `pairs` fake videos per fold."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(folds * pairs):
        real, fake, fold = f"{number:03}", f"{number:03}_{number + 1:03}", number // pairs
        for frame in frames:
            face, landmarks = portrait(random)
            changed = swapped_mouth(face, landmarks, random)
            name = crop_name(frame, 0)
            write(root / "crops" / real / name, encode_image(face))
            write(root / "crops" / fake / name, encode_image(changed))
            write(root / "diffs" / fake / name.replace(".png", "_diff.png"), encode_image(difference(face, changed)))
            (root / "landmarks" / real).mkdir(parents=True, exist_ok=True)
            np.save(root / "landmarks" / real / name.replace(".png", ".npy"), landmarks.astype(np.int16))
            rows += [(real, name, 0, real, frame, fold), (fake, name, 1, real, frame, fold)]
    write_folds(root, rows)
    return root


def write_folds(root: Path, rows: Iterable[tuple]) -> Path:
    lines = [",".join(map(str, row)) for row in (FOLDS_COLUMNS, *rows)]
    return write(root / "folds.csv", ("\n".join(lines) + "\n").encode())


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def portrait(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A crop with a face at a random position, size and brightness, and its landmarks."""
    left, top = random.integers(150, 170), random.integers(40, 60)
    width, height = random.integers(125, 140), random.integers(145, 165)
    scale = random.uniform(0.6, 0.9)
    face = cv2.resize(astronaut()[top : top + height, left : left + width], None, fx=scale, fy=scale)
    light = random.uniform(0.6, 1.1)
    return np.clip(face * light, 0, 255).astype(np.uint8), np.rint((LANDMARKS - (left, top)) * scale)


def square_face(random: np.random.Generator) -> np.ndarray:
    """A tight square around the face, as the embedded model needs it, at a random place, size and brightness."""
    side = random.integers(100, 115)
    left, top = np.array([174, 79]) + random.integers(-6, 7, 2) - (side - 104) // 2
    face = astronaut()[top : top + side, left : left + side]
    return np.clip(face * random.uniform(0.8, 1.1), 0, 255).astype(np.uint8)


def swapped_mouth(face: np.ndarray, landmarks: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The face with its mouth replaced by another part of it."""
    middle = landmarks[3:].mean(axis=0)
    width = landmarks[4, 0] - landmarks[3, 0]
    inside = np.zeros(face.shape[:2], np.uint8)
    cv2.ellipse(inside, [int(x) for x in middle], (int(width), int(width * 0.6)), 0, 0, 360, 1, -1)
    other = np.roll(face[::-1, ::-1], random.integers(0, 10), axis=0)
    return np.where(inside[..., None] > 0, other, face)


def config(root: Path, **changes: Any) -> Path:
    """Write tiny.json, a configuration that trains in seconds. `changes`: `section__key` with its value."""
    values = {
        "network": "DeepFakeClassifier",
        "encoder": "tf_efficientnet_lite0",
        "pretrained": str(ROOT / "weights/default_lite0.pt"),
        "size": 64,
        "batches_per_epoch": 4,
        "fp16": False,
        "optimizer": {
            "batch_size": 8,
            "type": "AdamW",
            "learning_rate": 0.001,
            "schedule": {"type": "constant", "mode": "step", "epochs": 2},
        },
        "normalize": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "losses": {"BinaryCrossentropy": 1},
    }
    for key, value in changes.items():
        section = values
        *place, name = key.split("__")
        for part in place:
            section = section[part]
        section[name] = value
    return write(root / "tiny.json", json.dumps(values).encode())


def arguments(root: Path, *options: str | Path) -> list[str]:
    """Arguments of train_classifier.py for a dataset of `make_dataset`. Outputs go to root/weights and root/logs."""
    folders = ("--data-dir", root, "--output-dir", root / "weights", "--logdir", root / "logs")
    return list(map(str, ("--config", root / "tiny.json", *folders, "--device", "cpu", "--workers", 1, *options)))


def command(root: Path, *options: str | Path, processes: int = 0, kill_at: int | None = None) -> list[str]:
    """The training command; with `kill_at`, the last process is killed at this training step."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    kill = [] if kill_at is None else [str(KILLED_TRAINING), str(kill_at)]
    return [sys.executable, *launch, *kill, str(TRAIN_CLASSIFIER), *arguments(root, *options)]


def train(
    root: Path, *options: str | Path, processes: int = 0, kill_at: int | None = None
) -> subprocess.CompletedProcess:
    return programs.run(command(root, *options, processes=processes, kill_at=kill_at), env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def log(root: Path, name: str = NETWORK) -> list[dict[str, Any]]:
    """The metrics of each epoch of a run."""
    return [json.loads(line) for line in (root / "logs" / f"{name}.jsonl").read_text().splitlines()]
