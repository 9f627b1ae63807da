"""Crops without videos: their landmarks, and a test set of face swaps made from them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from preprocessing.images import read_image
from tests.support import face_crops, programs
from training.datasets.folds import read_folds
from training.pipelines.face_swaps import Face, find_partner

PIPELINES = face_crops.ROOT / "training/pipelines"


# Landmarks that MTCNN finds in the whole portrait.
DETECTED = np.array([[205, 102], [247, 104], [225, 129], [202, 139], [245, 142]])


def placement(landmarks: np.ndarray) -> np.ndarray:
    """The scale and the offset (x, y) that map the portrait to a crop with these landmarks."""
    shift = np.tile(np.eye(2), (5, 1))
    return np.linalg.lstsq(np.column_stack([face_crops.LANDMARKS.ravel(), shift]), landmarks.ravel(), rcond=None)[0]


def run(program: str, *options: str | Path, expected: int = 0) -> subprocess.CompletedProcess:
    done = programs.run([sys.executable, PIPELINES / program, *options], env=face_crops.environment())
    assert done.returncode == expected, done.stderr
    return done


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return face_crops.make_dataset(tmp_path / "data", folds=2, pairs=2, frames=(0, 20))


@pytest.mark.slow
def test_landmarks_of_crops_without_videos(root: Path) -> None:
    """They are those of the portrait that the crops are parts of. A damaged crop fails; the others are kept."""
    expected = shutil.copytree(root / "landmarks", root / "expected")
    shutil.rmtree(root / "landmarks")
    (root / "crops/001/0_0.png").write_bytes(b"damaged")
    options = ("--data-dir", root, "--workers", "1")
    assert "001/0_0.png" in run("crop_landmarks.py", *options, expected=3).stderr
    face_crops.write(root / "crops/001/0_0.png", (root / "crops/001/20_0.png").read_bytes())
    run("crop_landmarks.py", *options, "--retry-failed")
    reals = {path.relative_to(expected) for path in expected.rglob("*.npy")}
    assert {path.relative_to(root / "landmarks") for path in (root / "landmarks").rglob("*.npy")} == reals
    for path in reals - {Path("001/0_0.npy")}:
        found = np.load(root / "landmarks" / path)
        assert found.dtype == np.int16
        scale, *offset = placement(np.load(expected / path))
        assert np.abs(found - (DETECTED * scale + offset)).mean() < 4  # pixels; a face is 60 to 100 wide


@pytest.mark.slow
def test_swaps_of_two_folds(root: Path) -> None:
    run("face_swaps.py", "--data-dir", root, "--folds", "0", "1")
    crops = read_folds(root / "swaps.csv")
    assert [crops.fake.sum(), len(crops)] == [8, 16]
    assert sorted(set(crops.fold.tolist())) == [0, 1]
    for row in range(len(crops)):
        image, original = (read_image(root / folder / crops.original_name(row)) for folder in ("swaps", "crops"))
        np.testing.assert_array_equal(image, original)
        shown = read_image(root / "swaps" / crops.name(row))
        assert shown.shape == original.shape
        changed = (shown != original).any(axis=2).mean()
        assert (0.05 < changed < 0.9) if crops.fake[row] else changed == 0
    before = (root / "swaps/000_swap/0_0.png").read_bytes()
    run("face_swaps.py", "--data-dir", root, "--folds", "0", "1")
    assert (root / "swaps/000_swap/0_0.png").read_bytes() == before
    predictions = root / "scores.csv"
    options = ("--checkpoint", face_crops.ROOT / "weights/default_lite0.pt", "--data-dir", root, "--workers", "0")
    options += ("--crops-dir", "swaps", "--folds-csv", root / "swaps.csv", "--predictions", predictions)
    run("evaluate.py", *options)
    assert list(pd.read_csv(predictions)["label"]) == [0, 1, 0, 1]


def test_swaps_need_landmarks(root: Path) -> None:
    shutil.rmtree(root / "landmarks")
    assert "landmarks" in run("face_swaps.py", "--data-dir", root, expected=2).stderr
    assert not (root / "swaps.csv").exists()


def test_partner_is_the_most_similar_face_of_another_video() -> None:
    shape = face_crops.LANDMARKS / 40

    def face(row: int, shift: float, brightness: float) -> Face:
        return Face(row, face_crops.LANDMARKS, shape + shift, brightness)

    faces = [face(0, 0, 100), face(1, 0, 100), face(2, 0.3, 100), face(3, 0.1, 100), face(4, 0, 190)]
    original = np.array([7, 7, 8, 9, 9])
    assert find_partner(faces[0], faces, original, np.random.default_rng(0)) is faces[3]
