"""Training as a user runs it: complete runs, runs that are killed and resumed, and runs that end with an error."""

from __future__ import annotations

import csv
import json
import logging
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common import __version__
from common.device import DeviceError
from common.errors import UserError
from preprocessing.crops import MarginCrop
from tests.support import face_crops, programs
from tests.support.face_crops import NETWORK
from tests.support.learners import make_learner, random_batch
from training.datasets.folds import epoch_order, read_folds, training_rows
from training.pipelines import build, engine, samples, train_classifier
from training.pipelines import evaluate as evaluate_script
from training.pipelines.checkpointing import Best, Checkpoints, ResumeError, restore
from training.pipelines.engine import train_step
from training.tools.checkpoint import CheckpointError, load_network, read_checkpoint
from training.tools.config import read_config
from training.tools.log import read_log
from training.tools.metrics import class_losses, evaluate

EPOCHS, BATCHES = 6, 9
DEFAULT = face_crops.ROOT / "weights/default_lite0.pt"
# Keys of the log that depend on the machine.
TIMES = ("seconds", "images_per_second")
# Parameters that training must not change: the noise filters and timm's unused 1000-class head.
FIXED = {"srm_conv.weight", "encoder.classifier.weight", "encoder.classifier.bias"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return face_crops.make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the dataset with an uninterrupted run of EPOCHS epochs, with a moving average and dropout."""
    root = Path(shutil.copytree(dataset, tmp_path_factory.mktemp("finished") / "data"))
    face_crops.config(root, ema=0.3, dropout=0.1, batches_per_epoch=BATCHES, optimizer__schedule__epochs=EPOCHS)
    done = face_crops.train(root)
    assert done.returncode == 0, done.stderr
    epochs = [line.partition(":")[0] for line in done.stdout.splitlines() if line.startswith("epoch")]
    assert epochs == [f"epoch {number} ({number + 1} of {EPOCHS})" for number in range(EPOCHS)]
    assert "\r" not in done.stderr  # no progress bars in redirected output
    return root


@pytest.fixture
def root(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset with a configuration of two epochs with two batches each."""
    shutil.copytree(dataset, tmp_path / "data")
    face_crops.config(tmp_path / "data", batches_per_epoch=2)
    return tmp_path / "data"


def run(root: Path, *options: str | Path) -> int:
    """Train in this process."""
    arguments = face_crops.arguments(root, "--workers", 0, *options)
    return train_classifier.main(train_classifier.get_args_parser().parse_args(arguments))


def weights(root: Path, which: str | int = "last", name: str = NETWORK) -> dict[str, torch.Tensor]:
    return read_checkpoint(root / "weights" / f"{name}_{which}.pt")["state_dict"]


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def reproducible_log(root: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in face_crops.log(root)]


@pytest.mark.slow
def test_learns_to_tell_unseen_faces_apart(finished: Path) -> None:
    lines = face_crops.log(finished)
    assert min(line["bce"] for line in lines) < 0.3
    assert lines[-1]["auc"] > 0.95
    assert [line["epoch"] for line in lines] == list(range(EPOCHS))
    assert all(line["videos"] == 2 * face_crops.PAIRS and line["broken"] == 0 for line in lines)


@pytest.mark.slow
def test_checkpoints_of_a_run(finished: Path) -> None:
    """One per epoch, the best and the last, in the released format, and no temporary files."""
    folder, lines = finished / "weights", face_crops.log(finished)
    names = [f"{NETWORK}_{which}" for which in (*range(EPOCHS), "best", "last")]
    expected = {f"{name}{suffix}" for name in names for suffix in (".pt", ".csv")} | {f"{NETWORK}.json"}
    assert {path.name for path in folder.iterdir()} == expected
    best = min(lines, key=lambda line: line["bce"])
    assert same_weights(weights(finished, "best"), weights(finished, best["epoch"]))
    assert same_weights(weights(finished, "last"), weights(finished, EPOCHS - 1))
    checkpoint = read_checkpoint(folder / f"{NETWORK}_best.pt")
    assert checkpoint["epoch"] == best["epoch"]
    assert checkpoint["bce_best"] == best["bce"]
    assert checkpoint["version"] == __version__
    assert all(key.startswith(("module.encoder.", "module.fc.")) for key in checkpoint["state_dict"])
    assert "module.encoder.classifier.weight" in checkpoint["state_dict"]
    recipe = load_network(folder / f"{NETWORK}_best.pt")[1]
    assert (recipe.size, recipe.mean, recipe.crop) == (64, (0.5, 0.5, 0.5), MarginCrop())


@pytest.mark.slow
def test_scores_beside_a_checkpoint_give_the_metrics_of_the_log(finished: Path) -> None:
    with (finished / "weights" / f"{NETWORK}_1.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores, labels = (np.array([float(row[key]) for row in rows]) for key in ("score", "label"))
    found = evaluate(scores, labels) | class_losses(scores, labels > 0)
    found["bce"] = found.pop("balanced_log_loss")
    line = face_crops.log(finished)[1]
    assert {key: line[key] for key in found} == pytest.approx(found)
    assert {row["video"]: row["frames"] for row in rows}["000_001"] == "2"  # frames 0 and 20, not 10


@pytest.mark.slow
def test_records_settings_and_versions(finished: Path) -> None:
    about = json.loads((finished / "weights" / f"{NETWORK}.json").read_text())
    assert about["settings"]["config"]["optimizer"]["clip_norm"] == 1
    assert about["settings"]["seed"] == 777
    (start,) = about["starts"]
    assert (start["epoch"], start["version"]) == (0, __version__)
    assert start["versions"]["torch"] == torch.__version__.split("+")[0]
    assert start["revision"] is None or len(start["revision"]) >= 40


@pytest.mark.slow
def test_tensorboard_has_the_metrics_of_the_log(finished: Path) -> None:
    events = EventAccumulator(str(finished / "logs" / NETWORK))
    events.Reload()
    for key in ("bce", "fake_loss", "train_loss", "lr"):
        expected = [line[key] for line in face_crops.log(finished)]
        assert [event.value for event in events.Scalars(key)] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_predict_folder_uses_the_checkpoints(finished: Path, face_video: Path, tmp_path: Path) -> None:
    options = ("--weights-dir", finished / "weights", "--models", f"{NETWORK}_best.pt", f"{NETWORK}_last.pt")
    options += ("--test-dir", face_video, "--output", tmp_path / "out.csv", "--frames", "4")
    done = programs.run([sys.executable, face_crops.ROOT / "predict_folder.py", *options])
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "out.csv").open())
    assert 0 < float(row["label"]) < 1
    assert row["label"] != "0.5"


@pytest.mark.slow
def test_evaluate_agrees_with_the_validation(finished: Path, tmp_path: Path) -> None:
    options = ("--checkpoint", finished / "weights" / f"{NETWORK}_best.pt", "--data-dir", finished, "--fold", 0)
    options += ("--json", tmp_path / "out.json", "--device", "cpu", "--workers", 0)
    done = programs.run([sys.executable, "-m", "training.pipelines.evaluate", *options], cwd=face_crops.ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    best = min(face_crops.log(finished), key=lambda line: line["bce"])
    assert found.pop("balanced_log_loss") == pytest.approx(best["bce"], rel=1e-4)
    assert found == pytest.approx({key: best[key] for key in found}, rel=1e-4)
    assert set(found) == {"log_loss", "auc", "average_precision", "accuracy", "ece", "videos"}


@pytest.mark.slow
def test_resumes_after_kill_with_the_same_result(finished: Path, tmp_path: Path) -> None:
    """Killed in the middle of epoch 2 and resumed, a run writes the same files as an uninterrupted one.

    The killed and the resumed run share a cache, which the uninterrupted one does not have.
    """
    ignored = shutil.ignore_patterns("weights", "logs")
    root = Path(shutil.copytree(finished, tmp_path / "data", ignore=ignored))
    cache = ("--cache-dir", root / "cache")
    killed = face_crops.train(root, *cache, kill_at=2 * BATCHES + 4)
    assert killed.returncode == -signal.SIGKILL
    assert read_checkpoint(root / "weights" / f"{NETWORK}_last.pt")["epoch"] == 1
    assert not (root / "weights" / f"{NETWORK}_2.pt").exists()
    with (root / "logs" / f"{NETWORK}.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_')  # as if it had been killed while writing the log
    resumed = face_crops.train(root, *cache)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.startswith("epoch 2 (3 of 6): ")
    assert list((root / "cache").glob("*.data"))
    assert reproducible_log(root) == reproducible_log(finished)
    for which in (2, 5, "best", "last"):
        name = f"weights/{NETWORK}_{which}.pt"
        assert (root / name).read_bytes() == (finished / name).read_bytes()
    starts = json.loads((root / "weights" / f"{NETWORK}.json").read_text())["starts"]
    assert [start["epoch"] for start in starts] == [0, 2]


@pytest.mark.slow
def test_finished_run_is_not_changed(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "weights").iterdir()}
    with caplog.at_level(logging.INFO):
        assert run(finished) == 0
    assert f"all {EPOCHS} epochs are done" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in (finished / "weights").iterdir()} == before


@pytest.mark.slow
def test_refuses_to_resume_with_other_settings(finished: Path) -> None:
    with pytest.raises(UserError, match=rf"{NETWORK}_last\.pt: .*seed was 777, is 5"):
        run(finished, "--seed", 5)
    with pytest.raises(UserError, match=r"config\.optimizer\.learning_rate was 0\.001, is 0\.1"):
        run(finished, "--set", "optimizer.learning_rate=0.1")


@pytest.mark.slow
def test_resumes_for_more_epochs_and_in_another_folder(root: Path) -> None:
    """One epoch and then another, in place or from a copy of the checkpoint, equals two epochs at once."""
    assert run(root, "--epochs", 1, "--prefix", "a_") == 0
    copy = shutil.copy(root / "weights" / f"a_{NETWORK}_last.pt", root / "copy.pt")
    assert run(root, "--epochs", 2, "--prefix", "a_") == 0
    assert run(root, "--epochs", 2, "--prefix", "b_", "--resume", copy, "--logdir", root / "other") == 0
    assert run(root, "--epochs", 2, "--prefix", "c_") == 0
    straight = weights(root, name=f"c_{NETWORK}")
    assert same_weights(weights(root, name=f"a_{NETWORK}"), straight)
    assert same_weights(weights(root, name=f"b_{NETWORK}"), straight)
    assert not same_weights(weights(root, 0, f"c_{NETWORK}"), straight)
    (line,) = read_log(root / "other" / f"b_{NETWORK}.jsonl")
    assert line["epoch"] == 1


@pytest.mark.slow
def test_own_checkpoint_wins_over_resume(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = finished / "weights" / f"{NETWORK}_0.pt"
    assert run(finished, "--resume", path, "--from-zero") == 0
    assert f"--resume {path}: is not used" in caplog.text


def test_damaged_last_checkpoint_is_an_error(root: Path) -> None:
    path = face_crops.write(root / "weights" / f"{NETWORK}_last.pt", b"PK not a checkpoint")
    with pytest.raises(UserError, match=rf"{path}: .*--resume none"):
        run(root)
    torch.save({"state_dict": {"a": torch.ones(1)}, "training": {"settings": {}}}, path)
    with pytest.raises(UserError, match=rf"{path}: .*--resume none"):
        run(root)


@pytest.mark.slow
def test_full_disk_leaves_no_partial_files(root: Path) -> None:
    """A limit on file sizes stands in for a full disk."""
    limited = f"ulimit -f 4000; exec {shlex.join(face_crops.command(root, '--epochs', 1))}"
    done = programs.run(["bash", "-c", limited], env=face_crops.environment())
    assert done.returncode == 2, done.stderr
    assert f"error: {root}/weights/{NETWORK}_0.pt: cannot be written: File too large" in done.stderr
    assert not list((root / "weights").glob("*.p*t"))


def test_says_what_it_trains_on_and_what_to_do_next(
    root: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert run(root, "--epochs", 1) == 0
    crops = 2 * face_crops.PAIRS * len(face_crops.FRAMES)  # of each class, in the two folds to train on
    assert "training on cpu, float32" in caplog.text
    assert f"{crops} real images, {crops} fake images" in caplog.text
    assert f"{face_crops.PAIRS} real videos, {face_crops.PAIRS} fake videos" in caplog.text
    epoch, best, *commands = capsys.readouterr().out.splitlines()
    assert epoch.startswith("epoch 0 (1 of 1): ")
    assert epoch.endswith(str(root / "weights" / f"{NETWORK}_0.pt"))
    assert str(root / "weights" / f"{NETWORK}_best.pt") in best
    assert f"plot_loss.py --log-file {root}/logs/{NETWORK}.jsonl" in commands[0]
    assert f"predict_folder.py --models {root}/weights/{NETWORK}_best.pt" in commands[1]


@pytest.mark.slow
def test_keeps_only_best_and_last(root: Path) -> None:
    """With --keep best. Resumed without it, the same run keeps all further checkpoints."""
    assert run(root, "--keep", "best", "--epochs", 1) == 0
    best_and_last = {f"{NETWORK}_{which}{suffix}" for which in ("best", "last") for suffix in (".pt", ".csv")}
    assert {path.name for path in (root / "weights").iterdir()} == best_and_last | {f"{NETWORK}.json"}
    assert run(root, "--epochs", 2) == 0
    assert (root / "weights" / f"{NETWORK}_1.pt").exists()
    assert not (root / "weights" / f"{NETWORK}_0.pt").exists()


def test_missing_masks_and_landmarks(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are an error if the run needs masks, otherwise a warning."""
    shutil.rmtree(root / "diffs")
    shutil.rmtree(root / "landmarks")
    for options in (("--only-changed-frames",), ("--dropout", "block")):
        with pytest.raises(UserError, match=rf"{root}/diffs: .*generate_diffs\.py"):
            run(root, *options)
    assert run(root, "--epochs", 1, "--set", "batches_per_epoch=1") == 0
    for name in ("landmarks", "diffs"):
        assert f"{root}/{name}: no such folder" in caplog.text
    with pytest.raises(UserError, match=rf"{root}/landmarks: .*generate_landmarks\.py"):
        run(root, "--no-hardcore", "--set", "self_blended=0.5", "--resume", "none")


@pytest.mark.slow
def test_warns_of_a_learning_rate_of_zero(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    schedule = '{"type": "cosine", "mode": "epoch", "epochs": 1, "params": {"total_iters": 1}}'
    options = ("--set", f"optimizer.schedule={schedule}", "--set", "batches_per_epoch=1")
    assert run(root, *options) == 0
    assert "optimizer.schedule.params" not in caplog.text
    assert run(root, *options, "--epochs", 2) == 0
    assert "optimizer.schedule.params: the learning rate is 0" in caplog.text


def test_starts_from_the_weights_of_another_run(root: Path) -> None:
    """--from-zero takes only the weights."""
    with pytest.raises(UserError, match=r"--from-zero: .*--resume FILE"):
        run(root, "--from-zero")
    with pytest.raises(CheckpointError, match=rf"{root}/none\.pt: no such checkpoint"):
        run(root, "--resume", root / "none.pt", "--from-zero")
    with pytest.raises(CheckpointError, match=rf"{DEFAULT}: .*configuration's network"):
        run(root, "--resume", DEFAULT, "--from-zero", "--set", "encoder=tf_efficientnet_b0_ns")
    small = ("--set", "optimizer.learning_rate=1e-12", "--set", "batches_per_epoch=1", "--set", "pretrained=false")
    with pytest.raises(ResumeError, match=rf"{DEFAULT}: holds no epoch .*--from-zero"):
        run(root, "--resume", DEFAULT, *small)
    assert run(root, "--resume", DEFAULT, "--from-zero", "--epochs", 1, *small) == 0
    given = load_network(DEFAULT)[0].state_dict()
    for key in ("encoder.conv_head.weight", "fc.weight"):
        torch.testing.assert_close(weights(root)[f"module.{key}"], given[key], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_continues_from_weights_only(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The checkpoint of an epoch continues with the next one, a released one at the number that it holds."""
    caplog.set_level(logging.INFO)
    small = ("--set", "batches_per_epoch=1", "--set", "optimizer.learning_rate=1e-12")
    assert run(root, *small, "--epochs", 2, "--prefix", "a_") == 0
    path = root / "weights" / f"a_{NETWORK}_0.pt"
    checkpoint = read_checkpoint(path)
    assert run(root, *small, "--epochs", 3, "--prefix", "b_", "--resume", path) == 0
    assert [line["epoch"] for line in face_crops.log(root, f"b_{NETWORK}")] == [1, 2]
    assert any(f"{path}: has weights only" in line and "optimizer" in line for line in caplog.messages)
    for key in ("module.encoder.conv_head.weight", "module.fc.weight"):
        after = weights(root, name=f"b_{NETWORK}")[key]
        torch.testing.assert_close(after, checkpoint["state_dict"][key], rtol=0, atol=1e-6)
    released = root / "released"
    torch.save({"state_dict": checkpoint["state_dict"], "epoch": 2, "bce_best": np.float64(1e-3)}, released)
    assert run(root, *small, "--epochs", 3, "--prefix", "c_", "--resume", released) == 0
    assert [line["epoch"] for line in face_crops.log(root, f"c_{NETWORK}")] == [2]
    last = read_checkpoint(root / "weights" / f"c_{NETWORK}_last.pt")
    assert (last["bce_best"], last["training"]["best_epoch"]) == (1e-3, None)  # no epoch was better
    assert not (root / "weights" / f"c_{NETWORK}_best.pt").exists()
    assert run(root, *small, "--epochs", 4, "--prefix", "c_") == 0
    assert read_checkpoint(root / "weights" / f"c_{NETWORK}_last.pt")["bce_best"] == 1e-3
    with pytest.raises(ResumeError, match=rf"{released}: continues with epoch 2, .*--epochs.*--from-zero"):
        run(root, *small, "--epochs", 2, "--prefix", "d_", "--resume", released)
    torch.save({"state_dict": checkpoint["state_dict"], "epoch": "first"}, released)
    with pytest.raises(ResumeError, match=rf"{released}: .*epoch"):
        run(root, *small, "--prefix", "d_", "--resume", released)


@pytest.mark.parametrize(
    ("stored", "best"), [(np.float32(0.25), 0.25), (float("nan"), None), ("low", None), (torch.ones(2), None)]
)
def test_best_score_of_a_checkpoint_with_weights_only(
    root: Path, stored: Any, best: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be of any numeric type; what is not a finite number is ignored."""
    caplog.set_level(logging.INFO)
    config = read_config(face_crops.config(root))
    learner = make_learner(config, torch.device("cpu"))
    path = root / "foreign.pt"
    torch.save({"state_dict": learner.network.state_dict(), "epoch": 3, "bce_best": stored}, path)
    assert restore(learner, path, {}) == (3, Best(None, best))
    assert any("--zero-score" in line for line in caplog.messages) == (best is not None)


def test_cycled_momentum_must_be_in_the_checkpoint(root: Path) -> None:
    """RMSprop has no momentum of its own, but a cyclic schedule gives it one."""
    schedule = {"type": "cyclic", "epochs": 1, "params": {"max_lr": 0.1}}
    changes = {"optimizer.type": "RMSprop", "optimizer.nesterov": False, "optimizer.momentum": 0.0}
    config = read_config(face_crops.config(root), {**changes, "optimizer.schedule": schedule, "ema": None})
    learner = make_learner(config, torch.device("cpu"))
    assert learner.optimizer.param_groups[0]["momentum"] == 0.9
    train_step(learner, random_batch(config))
    settings = {"processes": 1}
    Checkpoints(root, "run").save(learner, 0, Best(), settings, None)
    path = root / "run_last.pt"
    assert restore(make_learner(config, torch.device("cpu")), path, settings) == (1, Best())
    checkpoint = torch.load(path, weights_only=True)
    for state in checkpoint["training"]["optimizer"]["state"].values():
        del state["momentum_buffer"]
    torch.save(checkpoint, path)
    with pytest.raises(ResumeError, match=rf"{path}: .*incomplete"):
        restore(make_learner(config, torch.device("cpu")), path, settings)


def test_short_epochs_follow_the_schedule(root: Path) -> None:
    """The data have fewer batches than batches_per_epoch. The last batch of each epoch sets the logged rate."""
    schedule = '{"type": "poly", "mode": "step", "epochs": 2, "params": {"max_iter": 300}}'
    options = ("--set", f"optimizer.schedule={schedule}", "--set", "batches_per_epoch=100", "--freeze-epochs", 2)
    assert run(root, *options, "--set", "optimizer.classifier_lr=0.002", "--test-every", 2) == 0
    crops = read_folds(root / "folds.csv")
    rows = training_rows(crops, 0)
    batches = 2 * int((~crops.fake[rows]).sum()) // 8
    assert batches < 50
    for epoch, line in enumerate(face_crops.log(root)):
        factor = (1 - (100 * epoch + batches - 1) / 300) ** 0.9
        assert (line["lr"], line["classifier_lr"]) == (pytest.approx(0.001 * factor), pytest.approx(0.002 * factor))


def test_held_out_fold(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of the two other folds is trained on, and the run does not resume with both."""
    caplog.set_level("INFO")
    options = ("--set", "batches_per_epoch=1", "--freeze-epochs", 2)
    assert run(root, *options, "--epochs", 1, "--hold-out", 2) == 0
    assert "training data: 18 real images, 18 fake images" in caplog.text
    assert "validation data: 6 real videos, 6 fake videos" in caplog.text
    with pytest.raises(ResumeError, match=r"hold_out was \[2\], is null"):
        run(root, *options, "--epochs", 2)
    assert run(root, *options, "--epochs", 2, "--hold-out", 2, 2) == 0
    assert [line["epoch"] for line in face_crops.log(root)] == [0, 1]


def test_prefix_of_the_configuration(root: Path) -> None:
    options = ("--set", "batches_per_epoch=1", "--epochs", 1, "--freeze-epochs", 1, "--set", "prefix=mine_")
    assert run(root, *options) == run(root, *options, "--prefix", "") == 0
    assert {path.name for path in (root / "weights").glob("*_last.pt")} == {
        f"mine_{NETWORK}_last.pt",
        f"{NETWORK}_last.pt",
    }


@pytest.mark.slow
def test_prefix_cannot_choose_a_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(root, "--prefix", "../a_")
    assert "--prefix: ../a_ contains a slash" in capsys.readouterr().err


def test_zero_score_forgets_the_best_score(root: Path) -> None:
    small = ("--set", "batches_per_epoch=1")
    assert run(root, *small, "--epochs", 1) == 0
    path = root / "weights" / f"{NETWORK}_last.pt"
    torch.save({**torch.load(path, weights_only=True), "bce_best": 1e-9}, path)
    assert run(root, *small, "--epochs", 2) == 0
    assert face_crops.log(root)[-1]["bce"] > read_checkpoint(path)["bce_best"] == 1e-9
    assert run(root, *small, "--epochs", 3, "--zero-score") == 0
    assert read_checkpoint(path)["bce_best"] == face_crops.log(root)[-1]["bce"]


def test_freezing_keeps_the_encoder(root: Path) -> None:
    """This includes the running statistics of batch norms, which the published code updated in frozen epochs."""
    given = load_network(DEFAULT)[0].encoder.state_dict()
    assert run(root, "--freeze-epochs", 1) == 0
    frozen, unfrozen = weights(root, 0), weights(root, 1)
    for key, value in given.items():
        assert torch.equal(frozen[f"module.encoder.{key}"], value)
    assert not torch.equal(frozen["module.fc.weight"], unfrozen["module.fc.weight"])
    for key in ("conv_stem.weight", "bn1.running_mean", "blocks.3.0.bn2.weight"):
        assert not torch.equal(unfrozen[f"module.encoder.{key}"], given[key])


@pytest.mark.slow
def test_frozen_stages_keep_their_weights_and_statistics(root: Path) -> None:
    given = load_network(DEFAULT)[0].encoder.state_dict()
    options = ("--epochs", 1, "--set", "frozen_stages=2", "--set", "pairs=true", "--set", "self_blended=0.5")
    assert run(root, *options) == 0
    trained = weights(root, 0)
    frozen = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")
    for key, value in given.items():
        unchanged = torch.equal(trained[f"module.encoder.{key}"], value)
        if key.startswith(frozen):
            assert unchanged, key
        elif key.endswith(("conv_pw.weight", "running_mean")):
            assert not unchanged, key


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_the_run(root: Path) -> None:
    """So does a gradient that is not finite. Checkpoints of other runs are kept."""
    assert run(root, "--epochs", 1) == 0
    before = weights(root, 0)
    for weight, value in ((1e39, "inf"), (1e37, "(inf|nan)")):
        face_crops.config(root, losses__BinaryCrossentropy=weight)
        with pytest.raises(engine.TrainingError, match=rf"epoch 0, batch 0: .* {value} \(.*_0\.png"):
            run(root, "--prefix", "x_")
    assert not list((root / "weights").glob("x_*.pt"))
    assert same_weights(weights(root, 0), before)


@pytest.mark.slow
def test_few_broken_images_are_replaced_and_many_stop_the_run(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(face_crops.PAIRS, 2 * face_crops.PAIRS):
        (root / f"crops/{number:03}/10_0.png").write_bytes(b"")
    assert run(root, "--epochs", 1, "--set", "batches_per_epoch=4") == 0
    assert 0 < face_crops.log(root)[0]["broken"] <= 10
    assert f"crops/{face_crops.PAIRS:03}/10_0.png" in caplog.text
    for path in (root / "crops").rglob("10_0.png"):
        path.unlink()
    with pytest.raises(engine.TrainingError, match=r"--crops-dir: \d+ of 48 images"):
        run(root, "--prefix", "b_", "--set", "batches_per_epoch=6")


CPU_ALLOCATION = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: 9 bytes"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_ALLOCATION)])
def test_lack_of_memory_names_the_options(root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """In training and in evaluation, on a GPU and on a CPU."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(engine, "train_step", fail)
    with pytest.raises(DeviceError, match=r"out of memory .*optimizer\.batch_size.*optimizer\.accumulate"):
        run(root)
    monkeypatch.setattr(engine, "forward", fail)
    options = ("--checkpoint", DEFAULT, "--data-dir", root, "--workers", 0, "--device", "cpu")
    with pytest.raises(DeviceError, match=r"out of memory .*--batch-size"):
        evaluate_script.main(evaluate_script.get_args_parser().parse_args(list(map(str, options))))


@pytest.mark.slow
def test_deleted_crops_are_counted_as_images(root: Path) -> None:
    """Replacements that cannot be read either were counted as well: 44 of an epoch's 12 images."""
    shutil.rmtree(root / "crops")
    (root / "crops").mkdir()
    small = ("--set", "optimizer.batch_size=4", "--set", "batches_per_epoch=3")
    with pytest.raises(engine.TrainingError, match=r"--crops-dir: 12 of 12 images"):
        run(root, *small)


def test_validates_on_one_class_with_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = (root / "folds.csv").read_text().splitlines()
    kept = [line for line in lines if not (line.endswith(",0") and ",1," in line)]
    (root / "folds.csv").write_text("\n".join(kept) + "\n")
    assert run(root, "--epochs", 1, "--set", "batches_per_epoch=1") == 0
    assert "--fold: validation has only real videos" in caplog.text
    (line,) = face_crops.log(root)
    assert (line["fake_loss"], line["auc"], line["videos"]) == (None, None, face_crops.PAIRS)
    assert line["bce"] == line["real_loss"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--fold", 9), "fold 9"),
        (("--hold-out", 1, 9), "--hold-out 9: .*0, 1, 2"),
        (("--crops-dir", "nowhere"), r"nowhere: .*extract_crops\.py"),
        (("--folds-csv", "none.csv"), r"none\.csv: "),
        (("--set", "optimizer.batch_size=500"), r"optimizer\.batch_size"),
        (("--set", "optimizer.type=FusedSGD"), r"optimizer\.type: FusedSGD"),
        (("--set", "pretrained=none.pt"), r"none\.pt: "),
        (("--padding-part", 4, "--set", 'crop={"kind": "square", "side": 1.0, "center": 0.5}'), "--padding-part: "),
        (("--device", "cuda:99"), "--device cuda:99: "),
    ],
)
def test_wrong_options_are_errors(root: Path, options: tuple, named: str) -> None:
    with pytest.raises(UserError, match=named):
        run(root, *options)
    assert not list((root / "weights").glob("*"))


@pytest.mark.parametrize(
    "options",
    [
        ("--set", "network=EfficientUnetClassifier", "--set", "losses.MaskBinaryCrossentropy=0.5"),
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in (
                ("--set", "network=DeepFakeClassifierSRM"),
                ("--set", "network=DeepFakeClassifierGWAP", "--dropout", "block"),
                ("--set", "optimizer.accumulate=4", "--only-changed-frames", "--no-oversample"),
                ("--set", 'losses={"FocalLoss": 1}', "--set", "ohem_samples=2", "--padding-part", 5),
                ("--set", "optimizer.type=SGD", "--set", "optimizer.momentum=0.9", "--set", "optimizer.nesterov=true"),
                ("--set", "optimizer.type=RMSprop", "--set", "channels_last=false", "--no-hardcore"),
                ("--set", "fp16=true", "--set", "amp_dtype=bfloat16", "--set", "size=32"),
            )
        ),
    ],
)
def test_trains_all_parameters_but_the_fixed_ones(root: Path, options: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and running statistics of every layer change; noise filters and timm's unused head do not.

    The biases that end a block may stay: batch norm cancels them in the next block, so they have no gradient.
    """
    before: dict[str, torch.Tensor] = {}
    build_learner = build.build_learner

    def remember(config: Any, network: torch.nn.Module, *args: Any) -> engine.Learner:
        before.update({key: value.clone() for key, value in network.state_dict().items()})
        return build_learner(config, network, *args)

    monkeypatch.setattr(build, "build_learner", remember)
    assert run(root, "--epochs", 1, *options) == 0
    (path,) = (root / "weights").glob("*_best.pt")
    network, recipe = load_network(path)
    after = network.state_dict()
    assert after.keys() == before.keys()
    unchanged = {key for key in after if torch.equal(after[key], before[key])}
    assert {key for key in unchanged if not key.endswith((".bn3.bias", "blocks.0.0.bn2.bias"))} == FIXED & after.keys()
    assert recipe.crop == MarginCrop(1 / 5 if "--padding-part" in options else 1 / 3)


@pytest.mark.slow
def test_accumulation_equals_the_whole_batch(root: Path) -> None:
    """Batch norms are frozen; otherwise, they would normalize smaller batches."""
    options = ("--freeze-epochs", 1, "--epochs", 1, "--set", "optimizer.type=SGD", "--set", "drop_path=0")
    for parts in (1, 4):
        assert run(root, *options, "--set", f"optimizer.accumulate={parts}", "--prefix", f"p{parts}_") == 0
    whole, divided = (weights(root, name=f"p{parts}_{NETWORK}")["module.fc.weight"] for parts in (1, 4))
    torch.testing.assert_close(whole, divided, rtol=1e-5, atol=1e-7)
    assert not torch.equal(whole, load_network(DEFAULT)[0].fc.weight)


def test_clips_the_gradient(root: Path) -> None:
    """An SGD step with learning rate 1 changes the weights by the clipped gradient."""
    options = ("--epochs", 1, "--set", "batches_per_epoch=1", "--set", "optimizer.type=SGD", "--freeze-epochs", 1)
    options += ("--set", "optimizer.momentum=0")
    results = []
    for norm in (1e-3, 1e-9):
        step = ("--set", "optimizer.learning_rate=1.0", "--set", f"optimizer.clip_norm={norm}")
        assert run(root, *options, *step, "--prefix", f"{norm}_") == 0
        found = weights(root, name=f"{norm}_{NETWORK}")
        results.append(torch.cat([found["module.fc.weight"].flatten(), found["module.fc.bias"]]).double())
    assert (results[0] - results[1]).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_preview_shows_the_samples_of_an_epoch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without oversampling, another order than with it."""
    shown: dict[bool, list[str]] = {}
    for oversample in (True, False):
        names = shown[oversample] = []
        monkeypatch.setattr(
            samples, "draw_sheet", lambda sheet, names=names: names.extend(sheet) or np.zeros((9, 9, 3), np.uint8)
        )
        run(root, "--preview", root / "sheet.png", *(() if oversample else ("--no-oversample",)))
    crops = read_folds(root / "folds.csv")
    rows = training_rows(crops, 0)
    for oversample, sheet in shown.items():
        order = epoch_order(crops.fake[rows], 777, 0, oversample)[: samples.SAMPLES]
        assert [sample[0].rpartition(" ")[2] for sample in sheet] == [crops.name(rows[index]) for index in order]


def test_preview_writes_a_contact_sheet_and_trains_nothing(root: Path) -> None:
    assert run(root, "--preview", root / "sheet.png") == 0
    sheet = cv2.imread(str(root / "sheet.png"))
    assert sheet.shape[0] > 1000
    assert sheet.std() > 30
    assert not (root / "weights").exists()
