"""The embedded model: what its card says of it, the crop that it sees, and how it is made anew."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from skimage.data import astronaut

from preprocessing.images import encode_image
from preprocessing.video import sample_frames
from tests import clips, crops
from training.datasets.folds import HALVES, half_of, read_folds, validation_rows
from training.pipelines.calibrate import temperature
from training.pipelines.evaluate import EvaluationError
from training.tools.checkpoint import load_network, read_checkpoint
from training.tools.config import read_config

DEFAULT = crops.ROOT / "weights/default_lite0.pt"
CARD = crops.ROOT / "weights/MODEL_CARD.md"
CONFIG = crops.ROOT / "configs/default_lite0.json"
# The tight square around the portrait's face, by hand: from the middle of the forehead to the chin, ear to ear.
LEFT, TOP, SIDE = 174, 79, 104


def test_the_card_is_of_this_file() -> None:
    assert hashlib.sha256(DEFAULT.read_bytes()).hexdigest() in CARD.read_text()
    assert DEFAULT.stat().st_size < 25_000_000


def test_it_was_trained_by_the_configuration() -> None:
    config = read_config(CONFIG)
    assert load_network(DEFAULT)[1] == config.recipe(config.crop_rule())


def test_it_is_calibrated() -> None:
    found = read_checkpoint(DEFAULT)["calibration"]
    assert (found["fold"], found["half"]) == (0, "calibration")
    assert 0.5 < found["temperature"] < 2


def test_a_face_that_is_found_and_one_that_is_cut_by_hand(face_video: Path, tmp_path: Path) -> None:
    """The crop rule gives such squares as the model was trained on; training's and inference's paths score alike."""
    rows, zoom = [], 0.9  # the clip's: 360 of 400
    for number, frame in enumerate(sample_frames(face_video, 4)):
        corner = clips.corners(astronaut(), 40, 480, 360, zoom)[frame.index]
        left, top = np.rint(corner + np.array([LEFT, TOP]) * zoom).astype(int)
        side = round(SIDE * zoom)
        crop = frame.image[top : top + side, left : left + side]
        crops.write(tmp_path / f"crops/{number}/0_0.png", encode_image(crop))
        rows.append((number, "0_0.png", 0, number, 0, 0))
    crops.write_folds(tmp_path, rows)
    by_hand = evaluate(tmp_path, "--checkpoint", DEFAULT, "--data-dir", tmp_path)["score"]
    options = ("--test-dir", face_video, "--output", tmp_path / "out.csv", "--frames", 4)
    run("predict_folder.py", *options, "--details", tmp_path / "out.jsonl", "--precision", "float32")
    faces = json.loads((tmp_path / "out.jsonl").read_text())["faces"]
    assert [face["scores"]["default_lite0"] for face in faces] == pytest.approx(by_hand.tolist(), abs=0.1)


def test_a_temperature_is_found_again() -> None:
    """Labels drawn from the probabilities of logits that are then made three times too sure."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 20_000)
    fake = random.random(20_000) < expit(logits)
    assert temperature(3 * logits, fake) == pytest.approx(3, rel=0.05)
    assert temperature(logits / 2, fake) == pytest.approx(0.5, rel=0.05)


def test_nothing_to_calibrate_by(caplog: pytest.LogCaptureFixture) -> None:
    logits, fake = np.array([-1.0, -2.0, 3.0]), np.array([False, False, True])
    assert temperature(logits, fake) == 1
    assert "none of these 3 scores is wrong" in caplog.text
    for labels in (~fake, np.ones(3, bool)):
        with pytest.raises(EvaluationError, match="scores of both classes are needed"):
            temperature(logits, labels)


def test_halves_are_of_people(tmp_path: Path) -> None:
    rows = [(f"{n}_{k}" if k else str(n), "0_0.png", int(k > 0), n, 0, n % 2) for n in range(300) for k in range(3)]
    listed = read_folds(crops.write_folds(tmp_path, rows))
    halves = [set(validation_rows(listed, 0, half=half).tolist()) for half in HALVES]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(validation_rows(listed, 0).tolist())
    assert all(0.4 < len(half) / 450 < 0.6 for half in halves)
    for half, members in zip(HALVES, halves, strict=True):
        assert {half_of(listed.videos[listed.original[row]]) for row in members} == {half}
        assert len(members) == 3 * len({listed.original[row] for row in members})


@pytest.fixture(scope="module")
def made_anew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train_default.sh, twice, with a small network's settings."""
    root = crops.make_dataset(tmp_path_factory.mktemp("data"))
    small = {"size": 64, "batches_per_epoch": 6, "optimizer.batch_size": 8, "optimizer.schedule.epochs": 2}
    small |= {"pretrained": DEFAULT, "optimizer.schedule.params.total_iters": 12, "ema": 0.5}
    small |= {"optimizer.schedule.params.warmup_iters": 0}
    changes = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    command = ["train_default.sh", root, root / "out", *changes, "--device", "cpu", "--workers", 0]
    first = run(*command)
    assert "epoch 1/1" in first.stdout
    again = run(*command)
    assert "all 2 epochs are done" in again.stderr
    assert again.stdout.splitlines() == [line for line in first.stdout.splitlines() if not line.startswith("epoch ")]
    return root


def test_the_temperature_is_in_the_last_layer(made_anew: Path) -> None:
    """Logits of the packed model are those of the trained one, divided; in half of the bytes."""
    trained, packed = made_anew / "out" / f"{crops.NETWORK}_last.pt", made_anew / "out/model.pt"
    found = read_checkpoint(packed)["calibration"]["temperature"]
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        before, after = (load_network(path)[0](images) for path in (trained, packed))
    torch.testing.assert_close(after, before / found, rtol=0.01, atol=0.01)
    assert all(value.dtype == torch.float16 for value in read_checkpoint(packed)["state_dict"].values() if value.ndim)
    assert load_network(packed)[1] == load_network(trained)[1]


def test_what_is_calibrated_needs_no_temperature(made_anew: Path, tmp_path: Path) -> None:
    """But for what float16 rounds off, which was seen to move it by 1.4 %."""
    found = read_checkpoint(made_anew / "out/model.pt")["calibration"]["temperature"]
    assert found != pytest.approx(1, rel=0.2)  # or this would show nothing
    options = ("--checkpoint", made_anew / "out/model.pt", "--data-dir", made_anew, "--output", tmp_path / "again.pt")
    run("training/pipelines/calibrate.py", *options, "--workers", 0)
    assert read_checkpoint(tmp_path / "again.pt")["calibration"]["temperature"] == pytest.approx(1, rel=0.03)


def test_the_report_is_of_the_other_half(made_anew: Path, tmp_path: Path) -> None:
    figures = json.loads((made_anew / "out/figures.json").read_text())
    scores = evaluate(tmp_path, "--checkpoint", made_anew / "out/model.pt", "--data-dir", made_anew)
    assert len(scores) == 2 * crops.PAIRS
    reported = scores[scores["video"].str.split("_").str[0].map(half_of) == "report"]
    assert figures["videos"] == len(reported) == 8
    right = np.where(reported["label"] == 1, reported["score"], 1 - reported["score"])
    assert figures["log_loss"] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert figures["accuracy"] == pytest.approx((right > 0.5).mean())
    low, high = figures["intervals"]["log_loss"]
    assert low < figures["log_loss"] < high


def test_plots(made_anew: Path) -> None:
    for name in ("roc.png", "reliability.png"):
        assert min(cv2.imread(str(made_anew / "out" / name)).shape[:2]) >= 500


def test_usage() -> None:
    for arguments in ((), ("--help",)):
        done = subprocess.run([str(crops.ROOT / "train_default.sh"), *arguments], capture_output=True, text=True)
        assert done.returncode == 2
        assert "usage:" in done.stderr
    done = subprocess.run([str(crops.ROOT / "train_default.sh"), "x", "--fold=1"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--fold is the recipe's" in done.stderr


def evaluate(folder: Path, *options: str | Path) -> pd.DataFrame:
    """The scores that python training/pipelines/evaluate.py writes."""
    run("training/pipelines/evaluate.py", *options, "--predictions", folder / "scores.csv", "--workers", 0)
    return pd.read_csv(folder / "scores.csv", dtype={"video": str})


def run(program: str, *options: str | Path | int) -> subprocess.CompletedProcess:
    launch = [sys.executable] if program.endswith(".py") else []
    command = [*launch, str(crops.ROOT / program), *map(str, options)]
    environment = {**crops.environment(), "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done
