"""Validation, calibration and prediction use the mean logit of a crop, its mirror image and their shifted versions."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.special import expit

from inference.ensemble import Ensemble
from preprocessing.images import encode_image
from tests.support import face_crops, programs
from tests.support.learners import make_learner, random_batch
from training.datasets.folds import half_of
from training.pipelines.calibration import fit_platt
from training.pipelines.engine import score_crops
from training.tools.checkpoint import load_network, read_checkpoint, save_checkpoint
from training.tools.config import read_config

DEFAULT = face_crops.ROOT / "weights/default_lite0.pt"


def test_validation_averages_logits_of_mirror_images(tmp_path: Path) -> None:
    config = read_config(face_crops.config(tmp_path, optimizer__batch_size=4))
    learner, batch = make_learner(config, torch.device("cpu")), random_batch(config)
    rows, scores = score_crops(learner.network, replace(learner.recipe, flip=True), [batch] * 2, learner.dist)
    images = (batch.images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        logits, mirrored = (learner.network(pixels)[:, 0].double() for pixels in (images, images.flip(3)))
    expected = ((logits + mirrored) / 2).sigmoid().numpy()
    assert np.abs(expected - logits.sigmoid().numpy()).max() > 1e-3
    assert rows.tolist() == [0, 1, 2, 3] * 2
    np.testing.assert_allclose(scores, np.tile(expected, 2), atol=1e-5)


def test_validation_averages_logits_of_shifted_crops(tmp_path: Path) -> None:
    """By 0.1 * 64 = 6 pixels up and down, with the first and the last row repeated."""
    config = read_config(face_crops.config(tmp_path, optimizer__batch_size=4))
    learner, batch = make_learner(config, torch.device("cpu")), random_batch(config)
    recipe = replace(learner.recipe, flip=True, shift=0.1)
    _, scores = score_crops(learner.network, recipe, [batch], learner.dist)
    images = batch.images.numpy()
    padded = np.pad(images, ((0, 0), (6, 6), (0, 0), (0, 0)), "edge")
    shifted = [padded[:, 12:], padded[:, :-12]]
    with torch.inference_mode():
        logits = [
            learner.network(recipe.normalize(torch.from_numpy(view.copy())))[:, 0].double()
            for view in [*shifted, *(view[:, :, ::-1] for view in shifted)]
        ]
    expected = torch.stack(logits).mean(dim=0).sigmoid().numpy()
    assert np.abs(expected - (logits[0] + logits[2]).div(2).sigmoid().numpy()).max() > 1e-3
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A dataset of faces with a fold, their crops and their labels, of which no network predicts all."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    size = load_network(DEFAULT)[1].size
    rows, crops = [], []
    for number in [str(n) for n in range(40) if half_of(str(n)) == "calibration"][:12]:
        for label in (0, 1):
            face = cv2.resize(face_crops.square_face(random), (size, size))
            face = cv2.GaussianBlur(face, None, 4) if label ^ (len(crops) % 3 == 0) else face
            crops.append(face)
            video = f"{number}_fake" if label else number
            face_crops.write(root / f"crops/{video}/0_0.png", encode_image(face))
            rows.append((video, "0_0.png", label, number, 0, 0))
    face_crops.write_folds(root, rows)
    return root, np.stack(crops), np.array([row[2] for row in rows], bool)


def calibrate(checkpoint: Path, output: Path, root: Path, *options: str) -> None:
    files = ("--checkpoint", checkpoint, "--output", output, "--data-dir", root)
    run("training/pipelines/calibrate.py", *files, "--device", "cpu", "--workers", "0", *options)


def run(script: str, *options: str | Path) -> None:
    done = programs.run([sys.executable, face_crops.ROOT / script, *options], env=face_crops.environment())
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def flipped(data: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model without shifts, calibrated with flip averaging."""
    folder = tmp_path_factory.mktemp("calibrated")
    recipe = replace(load_network(DEFAULT)[1], flip=False, shift=0.0)
    save_checkpoint(folder / "plain.pt", read_checkpoint(DEFAULT)["state_dict"], recipe)
    calibrate(folder / "plain.pt", folder / "flipped.pt", data[0], "--flip")
    return folder / "flipped.pt"


@pytest.mark.slow
def test_calibration_fits_the_mean_logits(data: tuple, flipped: Path) -> None:
    _, crops, fake = data
    network, recipe = load_network(DEFAULT)
    with torch.inference_mode():
        logits, mirrored = (
            network(recipe.normalize(torch.from_numpy(images)))[:, 0].double().numpy()
            for images in (crops, crops[:, :, ::-1].copy())
        )
    temperature, offset = fit_platt((logits + mirrored) / 2, fake)
    assert (temperature, offset) != pytest.approx(fit_platt(logits, fake), rel=0.05)  # otherwise this tests nothing
    found = read_checkpoint(flipped)
    assert found["calibration"]["temperature"] == pytest.approx(temperature, rel=1e-3)
    assert found["calibration"]["offset"] == pytest.approx(offset, rel=1e-3)
    bands, scores = found["recipe"]["bands"], expit(((logits + mirrored) / 2 - offset) / temperature)
    assert bands["fake"] == pytest.approx(max(scores[~fake].max(), 0.5), abs=1e-3)
    assert bands["real"] == pytest.approx(min(scores[fake].min(), 0.5), abs=1e-3)
    assert replace(load_network(flipped)[1], bands=None) == replace(recipe, bands=None, flip=True, shift=0.0)


@pytest.mark.slow
def test_bands_only_keeps_flip(data: tuple, flipped: Path, tmp_path: Path) -> None:
    """The bands come from the same scores as before, up to the rounding of the weights to float16."""
    calibrate(flipped, tmp_path / "bands.pt", data[0], "--bands-only")
    before, after = load_network(flipped)[1], load_network(tmp_path / "bands.pt")[1]
    assert after.flip
    assert before.bands is not None
    assert after.bands is not None
    assert (after.bands.real, after.bands.fake) == pytest.approx((before.bands.real, before.bands.fake), abs=2e-3)


@pytest.mark.slow
def test_calibration_with_shift(data: tuple, flipped: Path, tmp_path: Path) -> None:
    """Views that the checkpoint averages already are kept."""
    calibrate(flipped, tmp_path / "shifted.pt", data[0], "--shift", "0.05")
    before, after = load_network(flipped)[1], load_network(tmp_path / "shifted.pt")[1]
    assert replace(after, bands=None) == replace(before, bands=None, shift=0.05)


@pytest.mark.parametrize("option", [("--flip",), ("--shift", "0.04")])
def test_views_are_refused_with_bands_only(tmp_path: Path, option: tuple[str, ...]) -> None:
    script, output = face_crops.ROOT / "training/pipelines/calibrate.py", tmp_path / "out.pt"
    command = [sys.executable, script, "--checkpoint", DEFAULT, "--output", output, *option, "--bands-only"]
    done = programs.run(command)
    assert done.returncode == 2
    assert f"error: {option[0]}: " in done.stderr
    assert not output.exists()


@pytest.mark.slow
def test_prediction_gives_a_face_and_its_mirror_image_the_same_score(
    data: tuple, flipped: Path, tmp_path: Path
) -> None:
    recipe = replace(load_network(flipped)[1], flip=False)
    save_checkpoint(tmp_path / "plain.pt", read_checkpoint(flipped)["state_dict"], recipe)
    ensemble, crops = Ensemble([flipped, tmp_path / "plain.pt"], "cpu", "float32"), data[1]
    scores, mirrored = (
        ensemble.score({ensemble.crop_specs[0]: images}) for images in (crops, crops[:, :, ::-1].copy())
    )
    difference = np.abs(scores - mirrored).max(axis=0)
    assert difference[0] < 1e-4
    assert difference[1] > 1e-2
