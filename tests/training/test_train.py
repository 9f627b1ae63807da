"""Training as a user runs it: a run left alone, one that is killed and taken up, and runs that cannot go on."""

from __future__ import annotations

import csv
import json
import logging
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import UserError
from preprocessing.crops import MarginCrop
from tests.support import face_crops
from tests.support.face_crops import NETWORK
from training.pipelines import engine, train_classifier
from training.tools.checkpoint import CheckpointError, load_network, read_checkpoint
from training.tools.log import read_log
from training.tools.metrics import class_losses, evaluate

EPOCHS = 6
TIMES = ("seconds", "images_per_second")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and in it a run of EPOCHS epochs that was left alone; with a moving average and drop-out."""
    root = face_crops.make_dataset(tmp_path_factory.mktemp("data"))
    face_crops.config(root, ema=0.3, dropout=0.1, batches_per_epoch=9, optimizer__schedule__epochs=EPOCHS)
    finished = face_crops.train(root)
    assert finished.returncode == 0, finished.stderr
    assert [line.split(":")[0] for line in finished.stdout.splitlines()] == [f"epoch {n}/5" for n in range(EPOCHS)]
    return root


@pytest.fixture
def root(data: Path, tmp_path: Path) -> Path:
    """The dataset with a tiny configuration, and nothing trained yet."""
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("weights", "logs"))
    face_crops.config(tmp_path / "data")
    return tmp_path / "data"


def run(root: Path, *options: str | Path) -> int:
    """The training program in this process, without processes that load data."""
    arguments = face_crops.arguments(root, "--workers", 0, *options)
    return train_classifier.main(train_classifier.get_args_parser().parse_args(arguments))


def weights(root: Path, which: str | int = "last", name: str = NETWORK) -> dict[str, torch.Tensor]:
    return read_checkpoint(root / "weights" / f"{name}_{which}.pt")["state_dict"]


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def figures(root: Path) -> list[dict[str, Any]]:
    """The log, without what tells the time."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in face_crops.log(root)]


def test_it_learns(data: Path) -> None:
    """The faces of fold 0 are other than those trained on, and told apart."""
    lines = face_crops.log(data)
    assert min(line["bce"] for line in lines) < 0.3
    assert lines[-1]["auc"] > 0.95
    assert [line["epoch"] for line in lines] == list(range(EPOCHS))
    assert all(line["videos"] == 2 * face_crops.PAIRS and line["broken"] == 0 for line in lines)


def test_checkpoints(data: Path) -> None:
    """One an epoch, the last, the best, in the released format; nothing else is left behind."""
    folder, lines = data / "weights", face_crops.log(data)
    names = [f"{NETWORK}_{which}" for which in (*range(EPOCHS), "best", "last")]
    expected = {f"{name}{suffix}" for name in names for suffix in (".pt", ".csv")} | {f"{NETWORK}.json"}
    assert {path.name for path in folder.iterdir()} == expected
    best = min(lines, key=lambda line: line["bce"])
    assert same_weights(weights(data, "best"), weights(data, best["epoch"]))
    assert same_weights(weights(data, "last"), weights(data, EPOCHS - 1))
    checkpoint = read_checkpoint(folder / f"{NETWORK}_best.pt")
    assert checkpoint["epoch"] == best["epoch"]
    assert checkpoint["bce_best"] == best["bce"]
    assert all(key.startswith(("module.encoder.", "module.fc.")) for key in checkpoint["state_dict"])
    assert "module.encoder.classifier.weight" in checkpoint["state_dict"]
    recipe = load_network(folder / f"{NETWORK}_best.pt")[1]
    assert (recipe.size, recipe.mean, recipe.crop) == (64, (0.5, 0.5, 0.5), MarginCrop())


def test_predictions(data: Path) -> None:
    """The scores beside a checkpoint give the figures of the log."""
    with (data / "weights" / f"{NETWORK}_1.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores, labels = (np.array([float(row[key]) for row in rows]) for key in ("score", "label"))
    found = evaluate(scores, labels) | class_losses(scores, labels > 0)
    found["bce"] = found.pop("balanced_log_loss")
    line = face_crops.log(data)[1]
    assert {key: line[key] for key in found} == pytest.approx(found)
    assert {row["video"]: row["frames"] for row in rows}["000_001"] == "2"  # frames 0 and 20, not 10


def test_what_was_run_is_written_down(data: Path) -> None:
    about = json.loads((data / "weights" / f"{NETWORK}.json").read_text())
    assert about["settings"]["config"]["optimizer"]["clip_norm"] == 1
    assert about["settings"]["seed"] == 777
    (start,) = about["starts"]
    assert (start["epoch"], start["versions"]["torch"]) == (0, torch.__version__.split("+")[0])
    assert start["revision"] is None or len(start["revision"]) >= 40


def test_tensorboard(data: Path) -> None:
    events = EventAccumulator(str(data / "logs" / NETWORK))
    events.Reload()
    for key in ("bce", "fake_loss", "train_loss", "lr"):
        expected = [line[key] for line in face_crops.log(data)]
        assert [event.value for event in events.Scalars(key)] == pytest.approx(expected, rel=1e-6)


def test_predict_folder_takes_it(data: Path, face_video: Path, tmp_path: Path) -> None:
    options = ("--weights-dir", data / "weights", "--models", f"{NETWORK}_best.pt", f"{NETWORK}_last.pt")
    options += ("--test-dir", face_video, "--output", tmp_path / "out.csv", "--frames", "4")
    done = subprocess.run(
        [sys.executable, str(face_crops.ROOT / "predict_folder.py"), *map(str, options)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "out.csv").open())
    assert 0 < float(row["label"]) < 1
    assert row["label"] != "0.5"


def test_evaluate_says_the_same(data: Path, tmp_path: Path) -> None:
    """python -m training.pipelines.evaluate, of a checkpoint."""
    options = ("--checkpoint", data / "weights" / f"{NETWORK}_best.pt", "--data-dir", data, "--fold", 0)
    options += ("--json", tmp_path / "out.json", "--device", "cpu", "--workers", 0)
    done = subprocess.run(
        [sys.executable, "-m", "training.pipelines.evaluate", *map(str, options)],
        capture_output=True,
        text=True,
        cwd=face_crops.ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    best = min(face_crops.log(data), key=lambda line: line["bce"])
    assert found.pop("balanced_log_loss") == pytest.approx(best["bce"], rel=1e-4)
    assert found == pytest.approx({key: best[key] for key in found}, rel=1e-4)
    assert set(found) == {"log_loss", "auc", "average_precision", "accuracy", "ece", "videos"}


def test_killed_and_taken_up(data: Path, tmp_path: Path) -> None:
    """Fault 28: a resumed run restored neither optimizer nor schedule. Here it ends as if it had been left alone."""
    root = Path(shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("weights", "logs")))
    process = subprocess.Popen(
        face_crops.command(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=face_crops.environment(),
    )
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            time.sleep(0.5)  # somewhere in epoch 2
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with (root / "logs" / f"{NETWORK}.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_')  # as if it had been killed while it wrote
    finished = face_crops.train(root)
    assert finished.returncode == 0, finished.stderr
    assert "taken up from" in finished.stderr
    assert figures(root) == figures(data)
    for which in (2, 5, "best", "last"):
        assert same_weights(weights(root, which), weights(data, which))
    starts = json.loads((root / "weights" / f"{NETWORK}.json").read_text())["starts"]
    assert [start["epoch"] for start in starts] == [0, 2]
    before, after = (
        read_checkpoint(place / "weights" / f"{NETWORK}_last.pt")["training"]["optimizer"]["state"]
        for place in (data, root)
    )
    assert all(torch.equal(before[key]["exp_avg"], after[key]["exp_avg"]) for key in before)


def test_a_finished_run_is_left_alone(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in (data / "weights").iterdir()}
    with caplog.at_level(logging.INFO):
        assert run(data) == 0
    assert "all 6 epochs are done" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in (data / "weights").iterdir()} == before


def test_other_settings_are_another_run(data: Path) -> None:
    with pytest.raises(UserError, match=r"seed was 777, is 5\); .*--prefix, or start afresh with --resume none"):
        run(data, "--seed", 5)
    with pytest.raises(UserError, match=r"config\.optimizer\.learning_rate was 0\.001, is 0\.1"):
        run(data, "--set", "optimizer.learning_rate=0.1")


def test_more_epochs_and_another_place(root: Path) -> None:
    """Taken up for a second epoch: by the run, and from a copy in another folder of logs; as two epochs at once."""
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


def test_own_checkpoint_first(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(data, "--resume", data / "weights" / f"{NETWORK}_0.pt", "--from-zero") == 0
    assert f"{NETWORK}_0.pt is not used: the run goes on from its own" in caplog.text


def test_a_damaged_last_checkpoint(root: Path) -> None:
    face_crops.write(root / "weights" / f"{NETWORK}_last.pt", b"PK not a checkpoint")
    with pytest.raises(UserError, match=r"_last\.pt: .*, or remove it: then the run starts afresh"):
        run(root)
    torch.save(
        {"state_dict": {"a": torch.ones(1)}, "training": {"settings": {}}}, root / "weights" / f"{NETWORK}_last.pt"
    )
    with pytest.raises(UserError, match=r"_last\.pt: does not fit this run .*--resume none starts afresh"):
        run(root)


def test_a_full_disk(root: Path) -> None:
    """Here: a limit on the files' size. An error that names the file, and nothing half written."""
    limited = f"ulimit -f 4000; exec {shlex.join(face_crops.command(root, '--epochs', 1))}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, env=face_crops.environment())
    assert done.returncode == 2, done.stderr
    assert f"error: {root}/weights/{NETWORK}_0.pt: cannot be written: File too large" in done.stderr
    assert not list((root / "weights").glob("*.p*t"))


def test_masks_that_are_not_there(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(root / "diffs")
    shutil.rmtree(root / "landmarks")
    for options in (("--only-changed-frames",), ("--dropout", "block")):
        with pytest.raises(UserError, match=r"diffs: no such folder, and masks are needed; run generate_diffs\.py"):
            run(root, *options)
    assert run(root, "--epochs", 1) == 0
    assert "no landmarks, so no eyes, mouths and noses are blacked out" in caplog.text
    assert "no diffs, so halves are blacked out of reals alone; see --no-hardcore" in caplog.text


def test_a_rate_of_zero_is_said(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    schedule = '{"type": "cosine", "mode": "epoch", "epochs": 1, "params": {"total_iters": 1}}'
    assert run(root, "--set", f"optimizer.schedule={schedule}") == 0
    assert "the learning rate falls to 0" not in caplog.text
    assert run(root, "--set", f"optimizer.schedule={schedule}", "--epochs", 2) == 0
    assert "the learning rate falls to 0" in caplog.text


def test_weights_of_another_run(data: Path, root: Path) -> None:
    """--from-zero starts a new run with them; without it, a checkpoint that holds weights only is refused."""
    best = data / "weights" / f"{NETWORK}_best.pt"
    with pytest.raises(UserError, match="holds weights only; --from-zero"):
        run(root, "--resume", best)
    with pytest.raises(UserError, match="--from-zero goes with --resume FILE"):
        run(root, "--from-zero")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        run(root, "--resume", data / "none.pt", "--from-zero")
    with pytest.raises(CheckpointError, match=r"are not those of the configuration's network"):
        run(root, "--resume", best, "--from-zero", "--set", "encoder=tf_efficientnet_b0_ns")
    small = ("--set", "optimizer.learning_rate=1e-12", "--set", "batches_per_epoch=1")
    assert run(root, "--resume", best, "--from-zero", "--epochs", 1, *small) == 0
    found, given = weights(root), weights(data, "best")
    key = "module.encoder.conv_head.weight"
    torch.testing.assert_close(found[key], given[key], rtol=0, atol=1e-6)


def test_zero_score(root: Path) -> None:
    assert run(root, "--epochs", 1) == 0
    path = root / "weights" / f"{NETWORK}_last.pt"
    torch.save({**torch.load(path, weights_only=True), "bce_best": 1e-9}, path)
    assert run(root, "--epochs", 2) == 0
    assert face_crops.log(root)[-1]["bce"] > read_checkpoint(path)["bce_best"] == 1e-9
    assert run(root, "--epochs", 3, "--zero-score") == 0
    assert read_checkpoint(path)["bce_best"] == face_crops.log(root)[-1]["bce"]


def test_freezing_keeps_the_encoder(root: Path) -> None:
    """Fault 31: model.train() undid it, and the batch norms moved."""
    given = load_network(face_crops.ROOT / "weights/default_lite0.pt")[0].encoder.state_dict()
    assert run(root, "--freeze-epochs", 1) == 0
    frozen, thawed = weights(root, 0), weights(root, 1)
    for key, value in given.items():
        assert torch.equal(frozen[f"module.encoder.{key}"], value)
    assert not torch.equal(frozen["module.fc.weight"], thawed["module.fc.weight"])
    for key in ("conv_stem.weight", "bn1.running_mean", "blocks.3.0.bn2.weight"):
        assert not torch.equal(thawed[f"module.encoder.{key}"], given[key])


def test_a_loss_that_is_not_finite(root: Path) -> None:
    """Stops the run and says where; what was done before is kept."""
    assert run(root, "--epochs", 1) == 0
    before = weights(root, 0)
    face_crops.config(root, losses__BinaryCrossentropy=1e39)
    with pytest.raises(engine.TrainingError, match=r"is inf in epoch 0, batch 0 \(.*_0\.png.*learning rate"):
        run(root, "--prefix", "x_")
    face_crops.config(root, losses__BinaryCrossentropy=1e37)
    with pytest.raises(engine.TrainingError, match=r"or its gradient, is (inf|nan) in epoch 0, batch 0 "):
        run(root, "--prefix", "x_")
    assert not list((root / "weights").glob("x_*.pt"))
    assert same_weights(weights(root, 0), before)


def test_too_many_broken_images(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A few are named and replaced; more stop the run."""
    for number in range(face_crops.PAIRS, 2 * face_crops.PAIRS):
        (root / f"crops/{number:03}/10_0.png").write_bytes(b"")
    assert run(root, "--epochs", 1) == 0
    assert 0 < face_crops.log(root)[0]["broken"] <= 10
    assert "replaced by another: " in caplog.text
    assert f"crops/{face_crops.PAIRS:03}/10_0.png" in caplog.text
    for path in (root / "crops").rglob("10_0.png"):
        path.unlink()
    with pytest.raises(engine.TrainingError, match=r"of an epoch's 48 images cannot be read"):
        run(root, "--prefix", "b_", "--set", "batches_per_epoch=6")


def test_one_class_to_validate_on(root: Path) -> None:
    """Fault 32: raised after the epoch."""
    lines = (root / "folds.csv").read_text().splitlines()
    kept = [line for line in lines if not (line.endswith(",0") and ",1," in line)]
    (root / "folds.csv").write_text("\n".join(kept) + "\n")
    assert run(root, "--epochs", 1) == 0
    (line,) = face_crops.log(root)
    assert (line["fake_loss"], line["auc"], line["videos"]) == (None, None, face_crops.PAIRS)
    assert line["bce"] == line["real_loss"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fold", 9), "no crops to validate on: fold 9 has none"),
        (("--crops-dir", "nowhere"), "nowhere: no such folder; run preprocessing/extract_crops.py"),
        (("--folds-csv", "none.csv"), r"none\.csv: cannot be read"),
        (("--set", "optimizer.batch_size=500"), "72 crops an epoch are less than a batch of 500"),
        (("--set", "optimizer.type=FusedSGD"), "FusedSGD is NVIDIA apex's, which is not installed"),
        (("--set", "pretrained=none.pt"), r"none\.pt: no such checkpoint"),
        (("--padding-part", 4, "--set", 'crop={"kind": "square", "side": 1.0, "center": 0.5}'), "--padding-part cuts"),
        (("--device", "cuda:7"), "PyTorch can use no device 'cuda:7'"),
    ],
)
def test_wrong_arguments(root: Path, options: tuple, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(root, *options)
    assert not list((root / "weights").glob("*"))


@pytest.mark.parametrize(
    "options",
    [
        ("--set", "network=DeepFakeClassifierSRM"),
        ("--set", "network=DeepFakeClassifierGWAP", "--dropout", "block"),
        ("--set", "network=EfficientUnetClassifier", "--set", "losses.MaskBinaryCrossentropy=0.5"),
        ("--set", "optimizer.accumulate=4", "--only-changed-frames", "--no-oversample"),
        ("--set", 'losses={"FocalLoss": 1}', "--set", "ohem_samples=2", "--padding-part", 5),
        ("--set", "optimizer.type=SGD", "--set", "optimizer.momentum=0.9", "--set", "optimizer.nesterov=true"),
        ("--set", "optimizer.type=RMSprop", "--set", "channels_last=false", "--no-hardcore"),
        ("--set", "fp16=true", "--set", "amp_dtype=bfloat16", "--set", "size=32"),
    ],
)
def test_variants(root: Path, options: tuple) -> None:
    """Each trains all that it should, and leaves a checkpoint of itself."""
    small = ("--set", "batches_per_epoch=2", "--epochs", 1)
    assert run(root, *small, *options) == 0
    (path,) = (root / "weights").glob("*_best.pt")
    network, recipe = load_network(path)
    unet = recipe.network == "EfficientUnetClassifier"
    assert recipe.crop == MarginCrop(1 / 5 if "--padding-part" in options else 1 / 3)
    torch.manual_seed(777)
    encoder = load_network(face_crops.ROOT / "weights/default_lite0.pt")[0].encoder.state_dict()
    for key in ("conv_stem.weight", "conv_head.weight", "blocks.6.0.bn3.weight"):
        assert not torch.equal(network.encoder.state_dict()[key], encoder[key])
    output = network(torch.zeros(2, 3, 64, 64))
    assert (output[1].shape == (2, 1, 64, 64)) if unet else (output.shape == (2, 1))


def test_accumulation_is_the_same_batch_in_parts(root: Path) -> None:
    """Without batch norms in the way (frozen), four parts give the step of the whole."""
    options = ("--freeze-epochs", 1, "--epochs", 1, "--set", "optimizer.type=SGD", "--set", "drop_path=0")
    for parts in (1, 4):
        assert run(root, *options, "--set", f"optimizer.accumulate={parts}", "--prefix", f"p{parts}_") == 0
    whole, parts = (weights(root, name=f"p{parts}_{NETWORK}")["module.fc.weight"] for parts in (1, 4))
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-7)
    start = load_network(face_crops.ROOT / "weights/default_lite0.pt")[0].fc.weight
    assert not torch.equal(whole, start)


def test_clipping(root: Path) -> None:
    """A plain SGD step of rate 1 moves the weights by the gradient, whose norm is cut."""
    options = ("--epochs", 1, "--set", "batches_per_epoch=1", "--set", "optimizer.type=SGD", "--freeze-epochs", 1)
    moved = []
    for norm in (1e-3, 1e-9):
        step = ("--set", "optimizer.learning_rate=1.0", "--set", f"optimizer.clip_norm={norm}")
        assert run(root, *options, *step, "--prefix", f"{norm}_") == 0
        found = weights(root, name=f"{norm}_{NETWORK}")
        moved.append(torch.cat([found["module.fc.weight"].flatten(), found["module.fc.bias"]]).double())
    assert (moved[0] - moved[1]).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_preview(root: Path) -> None:
    import cv2

    assert run(root, "--preview", root / "sheet.png") == 0
    sheet = cv2.imread(str(root / "sheet.png"))
    assert sheet.shape[0] > 1000
    assert sheet.std() > 30
    assert not (root / "weights").exists()
