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

from preprocessing import sample_clips
from preprocessing.crops import cut
from preprocessing.images import encode_image
from preprocessing.video import Clip, sample_frames
from tests.support import face_crops
from training.datasets.folds import HALVES, half_of, read_folds, validation_rows
from training.pipelines.calibrate import platt
from training.pipelines.scoring import EvaluationError
from training.tools.checkpoint import load_network, read_checkpoint
from training.tools.config import read_config

DEFAULT = face_crops.ROOT / "weights/default_lite0.pt"
CARD = face_crops.ROOT / "weights/MODEL_CARD.md"
CONFIG = face_crops.ROOT / "configs/default_lite0.json"
# The tight square around the portrait's face, by hand: from the middle of the forehead to the chin, ear to ear.
LEFT, TOP, SIDE = 174, 79, 104


def test_the_card_is_of_this_file() -> None:
    assert hashlib.sha256(DEFAULT.read_bytes()).hexdigest() in CARD.read_text()
    assert DEFAULT.stat().st_size < 25_000_000


def test_the_card_has_the_figures() -> None:
    """weights/metrics.json, as training/pipelines/evaluate.py wrote and printed them."""
    figures = json.loads((DEFAULT.parent / "metrics.json").read_text())
    card, bounds = CARD.read_text(), figures.pop("intervals")
    assert f"\nvideos              {figures.pop('videos')}\n" in card
    for name, value in figures.items():
        low, high = bounds[name]
        assert f"\n{name:20}{value:.5f}  ({low:.5f} to {high:.5f})\n" in card


def test_it_was_trained_by_the_configuration() -> None:
    """And by what train_default.sh adds to it, to the last epoch."""
    config = read_config(CONFIG)
    assert load_network(DEFAULT)[1] == config.recipe(config.crop_spec())
    found = read_checkpoint(DEFAULT)["trained"]
    assert found["settings"]["config"] == config.model_dump(mode="json", exclude={"pretrained"})
    assert found["epoch"] == config.optimizer.schedule.epochs - 1
    others = {"seed": 777, "fold": 0, "label_smoothing": 0.05, "dropout": "none", "oversample": True}
    assert others.items() <= found["settings"].items()


def test_it_is_calibrated() -> None:
    found = read_checkpoint(DEFAULT)["calibration"]
    assert (found["data"], found["half"], found["crops"]) == ("fold 0", "calibration", 1204)
    assert 0.5 < found["temperature"] < 2
    assert abs(found["offset"]) < 1


def test_the_crop_of_a_face_that_is_found(face_video: Path, tmp_path: Path) -> None:
    """The crop rule gives such squares as the model was trained on; training's and inference's paths score them alike.

    Squares cut by hand are not scored: where the model is not sure, some pixels decide.
    """
    options = ("--test-dir", face_video, "--output", tmp_path / "out.csv", "--frames", 4, "--precision", "float32")
    done = run("predict_folder.py", *options, "--details", tmp_path / "out.jsonl")
    assert str(CARD) in done.stderr
    faces = json.loads((tmp_path / "out.jsonl").read_text())["faces"]
    assert len(faces) == 4
    rule, rows, zoom = load_network(DEFAULT)[1].crop, [], 0.9  # the clip's: 360 of 400
    for number, (frame, face) in enumerate(zip(sample_frames(Clip(face_video), 4), faces, strict=True)):
        window = rule.window(face["box"])
        corner = sample_clips.corners(astronaut(), 40, 480, 360, zoom)[frame.index] + np.array([LEFT, TOP]) * zoom
        side = SIDE * zoom
        assert window == pytest.approx([*corner, *(corner + side)], abs=0.15 * side)
        face_crops.write(tmp_path / f"crops/{number}/0_0.png", encode_image(cut(frame.image, window)))
        rows.append((number, "0_0.png", 0, number, 0, 0))
    face_crops.write_folds(tmp_path, rows)
    scores = evaluate(tmp_path, "--checkpoint", DEFAULT, "--data-dir", tmp_path)["score"]
    assert [face["scores"]["default_lite0"] for face in faces] == pytest.approx(scores.tolist(), abs=1e-3)


def test_temperature_and_offset_are_found_again() -> None:
    """Labels drawn from the probabilities of logits that are then made three times too sure, and moved."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 20_000)
    fake = random.random(20_000) < expit(logits)
    assert platt(3 * logits + 1, fake) == pytest.approx((3, 1), abs=0.15)
    assert platt(logits / 2 - 1, fake) == pytest.approx((0.5, -1), abs=0.03)


def test_nothing_to_calibrate_by(caplog: pytest.LogCaptureFixture) -> None:
    logits, fake = np.array([-1.0, -2.0, 3.0]), np.array([False, False, True])
    assert platt(logits, fake) == platt(logits + 9, fake) == (1, 0)
    assert "a threshold divides these 3 scores without a mistake" in caplog.text
    for scores, labels in ((logits, ~fake), (logits, np.ones(3, bool)), (np.abs(logits), np.ones(3, bool))):
        with pytest.raises(EvaluationError, match="scores of both classes are needed"):
            platt(scores, labels)


def test_halves_are_of_originals(tmp_path: Path) -> None:
    rows = [(f"{n}_{k}" if k else str(n), "0_0.png", int(k > 0), n, 0, n % 2) for n in range(300) for k in range(3)]
    listed = read_folds(face_crops.write_folds(tmp_path, rows))
    halves = [set(validation_rows(listed, 0, half=half).tolist()) for half in HALVES]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(validation_rows(listed, 0).tolist())
    assert all(0.4 < len(half) / 450 < 0.6 for half in halves)
    for half, members in zip(HALVES, halves, strict=True):
        assert {half_of(listed.videos[listed.original[row]]) for row in members} == {half}
        assert len(members) == 3 * len({listed.original[row] for row in members})


@pytest.fixture(scope="module")
def made_anew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train_default.sh, twice, with a small network's settings, in folders with blanks in their names."""
    root = face_crops.make_dataset(tmp_path_factory.mktemp("small data"))
    small = {"size": 64, "batches_per_epoch": 6, "optimizer.batch_size": 8, "optimizer.schedule.epochs": 2}
    small |= {"pretrained": DEFAULT, "optimizer.schedule.params.total_iters": 12, "ema": 0.5}
    small |= {"optimizer.schedule.params.warmup_iters": 0}
    changes = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    command = ["train_default.sh", root.name, f"{root.name}/out", *changes, "--device", "cpu", "--workers", 0]
    first = run(*command, cwd=root.parent)
    assert "epoch 1/1" in first.stdout
    again = run(*command, cwd=root.parent)
    assert "all 2 epochs are done" in again.stderr
    assert again.stdout.splitlines() == [line for line in first.stdout.splitlines() if not line.startswith("epoch ")]
    return root


def test_the_calibration_is_in_the_last_layer(made_anew: Path) -> None:
    """Logits of the packed model are those of the trained one, moved and divided; in half of the bytes."""
    trained, packed = made_anew / "out" / f"{face_crops.NETWORK}_last.pt", made_anew / "out/model.pt"
    found = read_checkpoint(packed)["calibration"]
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        before, after = (load_network(path)[0](images) for path in (trained, packed))
    torch.testing.assert_close(after, (before - found["offset"]) / found["temperature"], rtol=0.01, atol=0.01)
    assert all(value.dtype == torch.float16 for value in read_checkpoint(packed)["state_dict"].values() if value.ndim)
    assert load_network(packed)[1] == load_network(trained)[1]


def test_what_is_calibrated_needs_no_calibration(made_anew: Path, tmp_path: Path) -> None:
    """But for what float16 rounds off, which was seen to move the temperature by 1.4 %."""
    found = read_checkpoint(made_anew / "out/model.pt")["calibration"]
    assert found["temperature"] != pytest.approx(1, rel=0.2)  # or this would show nothing
    options = ("--checkpoint", made_anew / "out/model.pt", "--data-dir", made_anew, "--output", tmp_path / "again.pt")
    run("training/pipelines/calibrate.py", *options, "--workers", 0)
    again = read_checkpoint(tmp_path / "again.pt")["calibration"]
    assert (again["temperature"], again["offset"]) == pytest.approx((1, 0), abs=0.03)


def test_calibrating_leaves_the_run_as_it_is(made_anew: Path) -> None:
    last = made_anew / "out" / f"{face_crops.NETWORK}_last.pt"
    before = last.read_bytes()
    options = ("--checkpoint", last, "--data-dir", made_anew, "--output", last)
    done = run("training/pipelines/calibrate.py", *options, expected=2)
    assert "training goes on from this file" in done.stderr
    assert last.read_bytes() == before


def test_the_report_is_of_the_other_half(made_anew: Path, tmp_path: Path) -> None:
    figures = json.loads((made_anew / "out/metrics.json").read_text())
    scores = evaluate(tmp_path, "--checkpoint", made_anew / "out/model.pt", "--data-dir", made_anew)
    assert len(scores) == 2 * face_crops.PAIRS
    reported = scores[scores["video"].str.split("_").str[0].map(half_of) == "report"]
    assert figures["videos"] == len(reported) == 8
    right = np.where(reported["label"] == 1, reported["score"], 1 - reported["score"])
    assert figures["log_loss"] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert figures["accuracy"] == pytest.approx((right > 0.5).mean())
    low, high = figures["intervals"]["log_loss"]
    assert low < figures["log_loss"] < high


def test_robustness_begins_with_the_report(made_anew: Path) -> None:
    """Unchanged, the crops get the figures of the report; changed, others."""
    options = ("--checkpoint", made_anew / "out/model.pt", "--data-dir", made_anew, "--workers", 0)
    command = [sys.executable, "-m", "benchmarks.robustness", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=face_crops.ROOT, check=True)
    lines = done.stdout.splitlines()[1:]
    figures = json.loads((made_anew / "out/metrics.json").read_text())
    assert lines[0].startswith(f"{'as they are':24}{figures['auc']:7.3f}{figures['log_loss']:10.3f}")
    losses = [float(line[31:41]) for line in lines]
    assert len(losses) == 13
    assert all(loss != losses[0] for loss in losses[4:])


def test_plots(made_anew: Path) -> None:
    for name in ("roc.png", "reliability.png"):
        assert min(cv2.imread(str(made_anew / "out" / name)).shape[:2]) >= 500


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "usage:"),
        (("--help",), "usage:"),
        (("data", "out", "-h"), "usage:"),
        (("data", "--fold=1"), "--fold is the recipe's"),
        (("data", "--preview", "x.png"), "--preview is the recipe's"),
        (("data", "--set", "encoder=tf_efficientnet_b2_ns"), "encoder is the recipe's"),
        (("data", "--output", "elsewhere"), "unrecognized arguments: --output"),  # no short form that is not seen
    ],
)
def test_usage(arguments: tuple[str, ...], said: str) -> None:
    assert said in run("train_default.sh", *arguments, expected=2).stderr


def evaluate(folder: Path, *options: str | Path) -> pd.DataFrame:
    """The scores that python training/pipelines/evaluate.py writes."""
    run("training/pipelines/evaluate.py", *options, "--predictions", folder / "scores.csv", "--workers", 0)
    return pd.read_csv(folder / "scores.csv", dtype={"video": str})


def run(
    program: str, *options: str | Path | int, cwd: Path | None = None, expected: int = 0
) -> subprocess.CompletedProcess:
    launch = [sys.executable] if program.endswith(".py") else []
    command = [*launch, str(face_crops.ROOT / program), *map(str, options)]
    environment = {**face_crops.environment(), "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, cwd=cwd)
    assert done.returncode == expected, done.stderr
    return done
