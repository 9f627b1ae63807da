"""The embedded model: its card, its crops, its calibration, and the script that retrains it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from skimage.data import astronaut

from benchmarks import model_card
from preprocessing import sample_clips
from preprocessing.crops import cut
from preprocessing.images import encode_image
from preprocessing.video import Clip, sample_frames
from tests.support import face_crops, programs
from tests.support.details import read_records
from training.datasets.folds import HALVES, half_of, read_folds, validation_rows
from training.pipelines.calibration import fit_bands, fit_platt
from training.pipelines.submissions import EvaluationError
from training.tools.checkpoint import load_network, read_checkpoint
from training.tools.config import read_config

DEFAULT = face_crops.ROOT / "weights/default_lite0.pt"
CARD = face_crops.ROOT / "weights/MODEL_CARD.md"
PEOPLE = face_crops.ROOT / "weights/people_fold0.csv"
CONFIG = face_crops.ROOT / "configs/default_lite0_2.json"  # that of the last step
TRAINED = f"step2_{face_crops.NETWORK}_last.pt"
# A tight square around the face of the portrait, measured by hand: mid-forehead to chin, ear to ear.
LEFT, TOP, SIDE = 174, 79, 104


def test_card_has_the_hash_of_the_file() -> None:
    assert hashlib.sha256(DEFAULT.read_bytes()).hexdigest() in CARD.read_text()
    assert DEFAULT.stat().st_size < 25_000_000


def test_card_has_the_metrics() -> None:
    """Its tables are those that model_card.py makes of weights/card.json."""
    card = CARD.read_text()
    assert set(re.findall(r"<!-- (\w+) -->", card)) == {*model_card.TABLES, "end"}
    assert model_card.update(card, json.loads((DEFAULT.parent / "card.json").read_text())) == card


def test_was_trained_with_the_configuration() -> None:
    """The weights are those of the last epoch, trained with the options that train_default.sh adds."""
    config = read_config(CONFIG)
    recipe = replace(config.recipe(config.crop_spec()), flip=True, shift=0.04)
    assert replace(load_network(DEFAULT)[1], bands=None) == recipe
    found = read_checkpoint(DEFAULT)["trained"]
    # The run was ended early: its settings have one epoch more.
    settings = config.model_dump(mode="json", exclude={"pretrained"})
    settings["optimizer"]["schedule"]["epochs"] += 1
    assert found["settings"]["config"] == settings
    assert found["epoch"] == config.optimizer.schedule.epochs - 1
    others = {"seed": 777, "fold": 0, "label_smoothing": 0.05, "dropout": "none", "oversample": True}
    assert others.items() <= found["settings"].items()


def test_is_calibrated() -> None:
    found = read_checkpoint(DEFAULT)["calibration"]
    assert (found["data"], found["half"], found["crops"]) == ("fold 0", "calibration", 1098)
    assert 0.5 < found["temperature"] < 2
    assert abs(found["offset"]) < 1


@pytest.mark.slow
def test_crops_are_tight_and_score_alike_in_training_and_inference(face_video: Path, tmp_path: Path) -> None:
    """The crop rule gives the tight squares that the model was trained on."""
    options = ("--test-dir", face_video, "--output", tmp_path / "out.csv", "--frames", 4, "--precision", "float32")
    done = run("predict_folder.py", *options, "--details", tmp_path / "out.jsonl")
    assert str(CARD) in done.stderr
    faces = read_records(tmp_path / "out.jsonl")[face_video.name]["faces"]
    assert len(faces) == 4
    rule, rows, zoom = load_network(DEFAULT)[1].crop, [], 0.9  # the zoom of the clip: 360 of 400 pixels
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


def test_fits_temperature_and_offset() -> None:
    """Logits from which the labels were sampled are calibrated; scaled and shifted, they need the inverse."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 20_000)
    fake = random.random(20_000) < expit(logits)
    assert fit_platt(3 * logits + 1, fake) == pytest.approx((3, 1), abs=0.15)
    assert fit_platt(logits / 2 - 1, fake) == pytest.approx((0.5, -1), abs=0.03)


def test_fits_verdict_bands() -> None:
    """The widest ones with at most 5 % of each class on the wrong side, around 0.5."""
    random = np.random.default_rng(0)
    fake = random.random(2000) < 0.5
    scores = expit(random.normal(2, 1.5, 2000) * np.where(fake, 1, -1))
    bands = fit_bands(scores, fake)
    assert (bands.error, bands.faces) == (0.05, 2000)
    assert bands.real < 0.5 < bands.fake
    for wrong, limit in ((scores[~fake] >= bands.fake, bands.fake), (scores[fake] <= bands.real, bands.real)):
        assert 0.045 < wrong.mean() <= 0.05
        assert abs(scores - limit).min() < 0.01
    separable = fit_bands(np.where(fake, 0.9, 0.1), fake)
    assert (separable.real, separable.fake) == (0.5, 0.5)


@pytest.mark.slow
def test_bands_only_changes_no_score(tmp_path: Path) -> None:
    face = encode_image(cut(astronaut(), (LEFT, TOP, LEFT + SIDE, TOP + SIDE)))
    number = next(str(n) for n in range(40) if half_of(str(n)) == "calibration")
    for video in (number, f"{number}_fake"):
        face_crops.write(tmp_path / f"crops/{video}/0_0.png", face)
    rows = [(number, "0_0.png", 0, number, 0, 0), (f"{number}_fake", "0_0.png", 1, number, 0, 0)]
    face_crops.write_folds(tmp_path, rows)
    options = ("--checkpoint", DEFAULT, "--output", tmp_path / "out.pt", "--data-dir", tmp_path, "--device", "cpu")
    run("training/pipelines/calibrate.py", *options, "--workers", 0, "--bands-only")
    before, after = read_checkpoint(DEFAULT), read_checkpoint(tmp_path / "out.pt")
    assert all(torch.equal(value, after["state_dict"][key]) for key, value in before["state_dict"].items())
    assert (after["calibration"], after["trained"]) == (before["calibration"], before["trained"])
    assert after["recipe"]["bands"]["faces"] == 2


def test_scores_that_cannot_be_calibrated(caplog: pytest.LogCaptureFixture) -> None:
    """Perfect scores are kept, with a warning. Scores of only one class, or worse than chance, are an error."""
    logits, fake = np.array([-1.0, -2.0, 3.0]), np.array([False, False, True])
    assert fit_platt(logits, fake) == fit_platt(logits + 9, fake) == (1, 0)
    assert "not calibrated" in caplog.text
    for labels, option in ((~fake, "--checkpoint"), (np.ones(3, bool), "--fold"), (np.zeros(3, bool), "--fold")):
        with pytest.raises(EvaluationError, match=option):
            fit_platt(logits, labels)


def test_halves_divide_originals_with_their_fakes(tmp_path: Path) -> None:
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
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train_default.sh, run twice with settings that train in seconds, in folders with spaces in their names."""
    root = face_crops.make_dataset(tmp_path_factory.mktemp("small data"))
    small = {"size": 64, "batches_per_epoch": 6, "optimizer.batch_size": 8, "optimizer.schedule.epochs": 2}
    small |= {"pretrained": DEFAULT, "optimizer.schedule.params.total_iters": 12, "ema": 0.5}
    small |= {"optimizer.schedule.params.warmup_iters": 0}
    changes = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    command = ["train_default.sh", root.name, f"{root.name}/out", *changes, "--device", "cpu", "--workers", 0]
    first = run(*command, cwd=root.parent)
    assert first.stdout.count("epoch 1 (2 of 2)") == 2
    again = run(*command, cwd=root.parent)
    assert again.stderr.count("all 2 epochs are done") == 2
    assert again.stdout.splitlines() == [line for line in first.stdout.splitlines() if not line.startswith("epoch ")]
    return root


@pytest.mark.slow
def test_calibration_is_in_the_last_layer(retrained: Path) -> None:
    """The calibrated checkpoint gives the logits of the trained one, shifted and scaled, with float16 weights."""
    trained, packed = retrained / "out" / TRAINED, retrained / "out/model.pt"
    found = read_checkpoint(packed)["calibration"]
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        before, after = (load_network(path)[0](images) for path in (trained, packed))
    torch.testing.assert_close(after, (before - found["offset"]) / found["temperature"], rtol=0.01, atol=0.01)
    assert all(value.dtype == torch.float16 for value in read_checkpoint(packed)["state_dict"].values() if value.ndim)
    assert replace(load_network(packed)[1], bands=None, flip=False, shift=0.0) == load_network(trained)[1]
    assert load_network(packed)[1].bands is not None


@pytest.mark.slow
def test_calibrated_model_needs_no_calibration(tmp_path: Path) -> None:
    """Faces are real and gray crops fake, but a third of the labels are wrong, so that no network separates them."""
    face = encode_image(cut(astronaut(), (LEFT, TOP, LEFT + SIDE, TOP + SIDE)))
    gray = encode_image(np.full((SIDE, SIDE, 3), 128, np.uint8))
    rows = []
    for index, number in enumerate([str(n) for n in range(40) if half_of(str(n)) == "calibration"][:12]):
        crops = (face, gray) if index % 3 else (gray, face)
        for video, label in ((number, 0), (f"{number}_fake", 1)):
            face_crops.write(tmp_path / f"crops/{video}/0_0.png", crops[label])
            rows.append((video, "0_0.png", label, number, 0, 0))
    face_crops.write_folds(tmp_path, rows)

    def calibrate(checkpoint: Path, output: Path) -> tuple[float, float]:
        options = ("--checkpoint", checkpoint, "--output", output, "--data-dir", tmp_path, "--device", "cpu")
        run("training/pipelines/calibrate.py", *options, "--workers", 0)
        found = read_checkpoint(output)["calibration"]
        return found["temperature"], found["offset"]

    first = calibrate(DEFAULT, tmp_path / "first.pt")
    assert first != pytest.approx((1, 0), abs=0.2)  # otherwise this would test nothing
    assert calibrate(tmp_path / "first.pt", tmp_path / "again.pt") == pytest.approx((1, 0), abs=0.03)


def test_calibrate_does_not_overwrite_its_input(tmp_path: Path) -> None:
    last = face_crops.write(tmp_path / "last.pt", b"a checkpoint")
    done = run("training/pipelines/calibrate.py", "--checkpoint", last, "--output", last, expected=2)
    assert f"error: --output {last}: " in done.stderr
    assert last.read_bytes() == b"a checkpoint"


@pytest.mark.slow
def test_report_is_measured_on_the_other_half(retrained: Path, tmp_path: Path) -> None:
    metrics = json.loads((retrained / "out/metrics.json").read_text())
    scores = evaluate(tmp_path, "--checkpoint", retrained / "out/model.pt", "--data-dir", retrained)
    assert len(scores) == 2 * face_crops.PAIRS
    # The originals are not in the list of people, so each is a person of its own.
    originals = "original " + scores["video"].str.split("_").str[0]
    reported = scores[originals.map(half_of) == "report"]
    assert metrics["videos"] == len(reported) == 8
    right = np.where(reported["label"] == 1, reported["score"], 1 - reported["score"])
    assert metrics["log_loss"] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert metrics["accuracy"] == pytest.approx((right > 0.5).mean())
    low, high = metrics["intervals"]["log_loss"]
    assert low < metrics["log_loss"] < high


def robustness(root: Path, checkpoint: Path, *more: str | Path) -> list[list[str]]:
    """AUC, log loss, true and false positive rates for each modification of the crops, starting with none."""
    options = ("--checkpoint", checkpoint, "--data-dir", root, "--workers", 0, "--json", root / "robustness.json")
    done = programs.run([sys.executable, "-m", "benchmarks.robustness", *options, *more], cwd=face_crops.ROOT)
    assert done.returncode == 0, done.stderr
    printed = [line.split()[-4:] for line in done.stdout.splitlines()[1:]]
    written = json.loads((root / "robustness.json").read_text()).values()
    for values, metrics in zip(printed, written, strict=True):
        assert values[:2] == [f"{metrics[name]:.3f}" for name in ("auc", "log_loss")]
        assert values[2:] == [f"{metrics[name]:.1%}" for name in ("true_positives", "false_positives")]
    return printed


@pytest.mark.slow
def test_robustness_starts_with_the_report(retrained: Path) -> None:
    """Unchanged crops give the metrics of the report. Every modification except JPEG compression changes the loss."""
    (auc, log_loss, *_), *changed = robustness(retrained, retrained / "out/model.pt", "--people", PEOPLE)
    metrics = json.loads((retrained / "out/metrics.json").read_text())
    assert (auc, log_loss) == (f"{metrics['auc']:.3f}", f"{metrics['log_loss']:.3f}")
    assert len(changed) == 12
    assert sum(line[1] == log_loss for line in changed[3:]) <= 1  # a small change can be lost in rounding


@pytest.mark.slow
def test_robustness_modifies_crops_as_named(tmp_path: Path) -> None:
    """Resizing, rotating and shifting uniformly gray crops keeps their scores; noise and darkening do not."""
    ids = [str(number) for number in range(20) if half_of(str(number)) == "report"][:4]
    rows = []
    for number in ids:
        for video, label, level in ((number, 0, 128), (f"{number}_fake", 1, 40)):
            face_crops.write(tmp_path / f"crops/{video}/0_0.png", encode_image(np.full((224, 224, 3), level, np.uint8)))
            rows.append((video, "0_0.png", label, number, 0, 0))
    face_crops.write_folds(tmp_path, rows)
    losses = [float(line[1]) for line in robustness(tmp_path, DEFAULT)]
    unchanged, _, _, _, half, quarter, noise, dark, gray, *geometry = losses
    assert [half, quarter, gray, *geometry] == pytest.approx([unchanged] * 7, abs=0.002)
    assert abs(noise - unchanged) > 0.005
    assert abs(dark - unchanged) > 0.003


@pytest.mark.slow
def test_plots_of_the_report(retrained: Path) -> None:
    for name in ("roc.png", "reliability.png"):
        assert min(cv2.imread(str(retrained / "out" / name)).shape[:2]) >= 500


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "usage:"),
        (("data", "--fold=1"), "--fold: "),
        (("data", "--preview", "x.png"), "--preview: "),
        (("data", "--set", "encoder=tf_efficientnet_b2_ns"), "encoder: "),
        pytest.param(("data", "--output", "elsewhere"), "--output", id="abbreviated"),  # of --output-dir
    ],
)
def test_wrong_arguments_of_train_default(arguments: tuple[str, ...], named: str) -> None:
    assert named in run("train_default.sh", *arguments, expected=2).stderr


@pytest.mark.parametrize("arguments", [("--help",), ("data", "out", "-h")])
def test_help_of_train_default(arguments: tuple[str, ...]) -> None:
    assert "usage:" in run("train_default.sh", *arguments).stdout


def evaluate(folder: Path, *options: str | Path) -> pd.DataFrame:
    """The scores of the videos that evaluate.py writes."""
    run("training/pipelines/evaluate.py", *options, "--predictions", folder / "scores.csv", "--workers", 0)
    return pd.read_csv(folder / "scores.csv", dtype={"video": str})


def run(
    program: str, *options: str | Path | int, cwd: Path | None = None, expected: int = 0
) -> subprocess.CompletedProcess:
    launch = [sys.executable] if program.endswith(".py") else []
    command = [*launch, face_crops.ROOT / program, *options]
    done = programs.run(command, env={**face_crops.environment(), "PYTHON": sys.executable}, cwd=cwd)
    assert done.returncode == expected, done.stderr
    return done
