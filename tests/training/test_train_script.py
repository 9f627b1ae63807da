"""train.sh and what looks at its results: the five seeds, killed and taken up; plot_loss.py; evaluate."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import plot_loss
from tests.support import face_crops
from training.datasets.folds import half_of
from training.tools.checkpoint import read_checkpoint
from training.tools.log import LogError, read_log

SEEDS = (111, 555, 777, 888, 999)
NAMES = [f"tiny_{seed}_{face_crops.NETWORK}" for seed in SEEDS]


def script(root: Path, *options: str | Path) -> list[str]:
    return list(map(str, (face_crops.ROOT / "train.sh", root, 0, root / "tiny.json", *options)))


def environment() -> dict[str, str]:
    return {**face_crops.environment(), "PYTHON": sys.executable}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five seeds of two epochs each; killed within the second, then by the same command to the end."""
    root = face_crops.make_dataset(tmp_path_factory.mktemp("data"))
    face_crops.config(root, batches_per_epoch=2, optimizer__schedule__epochs=2)
    command = script(root, "--output-dir", root / "weights", "--logdir", root / "logs", "--workers", 0)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    first_epochs = 0
    for line in process.stdout:
        first_epochs += line.startswith("epoch 0/")
        if first_epochs == 2:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.communicate()
    finished = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600)
    assert finished.returncode == 0, finished.stderr
    assert f"{NAMES[0]}: all 2 epochs are done" in finished.stderr
    assert f"taken up from {root / 'weights' / NAMES[1]}_last.pt, at epoch 1" in finished.stderr
    assert finished.stdout.count("epoch 0/1") == 3
    assert finished.stdout.count("epoch 1/1") == 4
    return root


def test_five_logs_and_checkpoints(root: Path) -> None:
    assert sorted(path.stem for path in (root / "logs").glob("*.jsonl")) == NAMES
    settings = [json.loads((root / "weights" / f"{name}.json").read_text())["settings"] for name in NAMES]
    assert tuple(setting["seed"] for setting in settings) == SEEDS
    assert {(setting["fold"], setting["label_smoothing"]) for setting in settings} == {(0, 0.01)}
    weights = [
        read_checkpoint(root / "weights" / f"{name}_best.pt")["state_dict"]["module.fc.weight"] for name in NAMES
    ]
    assert len({tensor.numpy().tobytes() for tensor in weights}) == 5


def test_predict_folder_ensembles_them(root: Path, face_video: Path, tmp_path: Path) -> None:
    options = ("--weights-dir", root / "weights", "--test-dir", face_video, "--output", tmp_path / "out.csv")
    options += ("--frames", 2, "--details", tmp_path / "out.jsonl", "--models", *(f"{name}_best.pt" for name in NAMES))
    done = subprocess.run(
        [sys.executable, str(face_crops.ROOT / "predict_folder.py"), *map(str, options)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "out.csv").open())
    scores = [face["scores"] for face in json.loads((tmp_path / "out.jsonl").read_text())["faces"]]
    assert len(scores[0]) == 5
    assert float(row["label"]) == pytest.approx(np.mean([list(each.values()) for each in scores]), abs=1e-5)


def test_usage() -> None:
    for arguments in ((), ("data",), ("data", "many"), ("--help",)):
        done = subprocess.run([str(face_crops.ROOT / "train.sh"), *arguments], capture_output=True, text=True)
        assert done.returncode == 2
        assert "usage:" in done.stderr
        assert "DATA_ROOT NUM_GPUS [config]" in done.stderr


@pytest.mark.parametrize("option", ["--seed", "--prefix=exp_", "--config"])
def test_the_seeds_are_the_scripts(tmp_path: Path, option: str) -> None:
    """One prefix or seed for all five would make one run of them."""
    done = subprocess.run(script(tmp_path, option, "1"), capture_output=True, text=True)
    assert done.returncode == 2
    assert f"each seed has its own {option.partition('=')[0]}" in done.stderr


def test_logs_of_one_name(tmp_path: Path) -> None:
    logs = [write_log(tmp_path / folder / "run.jsonl", [loss], [loss]) for folder, loss in (("a", 0.2), ("b", 0.4))]
    done = plot("--log-file", *logs, "--output", tmp_path / "loss.png")
    for log, loss in zip(logs, ("0.2400", "0.4800"), strict=True):
        assert f"{log}: best epochs 0 ({loss})" in done.stdout


def test_a_seed_that_fails_stops_the_script(tmp_path: Path) -> None:
    face_crops.config(tmp_path)
    done = subprocess.run(script(tmp_path), capture_output=True, text=True, env=environment())
    assert done.returncode == 2
    assert f"error: {tmp_path}/folds.csv: cannot be read" in done.stderr
    assert "stopped at seed 111 (exit status 2); the same command takes it up" in done.stderr
    assert "seed 555" not in done.stdout


def write_log(path: Path, fake: list[float | None], real: list[float | None]) -> Path:
    lines = [{"epoch": n, "fake_loss": f, "real_loss": r} for n, (f, r) in enumerate(zip(fake, real, strict=True))]
    return face_crops.write(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def plot(*options: str | Path) -> subprocess.CompletedProcess:
    screenless = {key: value for key, value in os.environ.items() if "DISPLAY" not in key}
    return subprocess.run(
        [sys.executable, str(face_crops.ROOT / "plot_loss.py"), *map(str, options)],
        capture_output=True,
        text=True,
        env=screenless,
    )


def test_plot_of_the_five(root: Path, tmp_path: Path) -> None:
    """Fault 34: it needed a screen and at least 16 epochs."""
    logs = [root / "logs" / f"{name}.jsonl" for name in NAMES]
    done = plot("--log-file", *logs, "--output", tmp_path / "loss.png")
    assert done.returncode == 0, done.stderr
    picture = cv2.imread(str(tmp_path / "loss.png"))
    assert picture.shape[:2] == (720, 1200)
    assert (picture.reshape(-1, 3) != 255).any(axis=1).mean() > 0.01
    said = dict(line.split(": best epochs ") for line in done.stdout.splitlines() if ": best" in line)
    for log in logs:
        weighted = {line["epoch"]: (1.4 * line["fake_loss"] + line["real_loss"]) / 2 for line in read_log(log)}
        best_first = sorted(weighted, key=weighted.get)
        assert said[log.stem] == ", ".join(f"{epoch} ({weighted[epoch]:.4f})" for epoch in best_first)


def test_the_five_best_behind_the_first_sixteen(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    fake, real = random.random((2, 30)).round(3).tolist()
    fake[3] = real[3] = 0.0  # the best of all, too early
    found = plot_loss.losses(write_log(tmp_path / "a.jsonl", fake, real), fake_weight=2.0)
    weighted = {n: (2 * fake[n] + real[n]) / 2 for n in range(30)}
    assert found == pytest.approx(weighted)
    assert plot_loss.best_epochs(found) == sorted(range(16, 30), key=weighted.get)[:5]
    early = {n: weighted[n] for n in range(16)}
    assert plot_loss.best_epochs(early) == sorted(early, key=weighted.get)[:5]


def test_epochs_without_validation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fault 34: series of unequal length were broadcast. Here the losses of a line belong together."""
    path = write_log(tmp_path / "a.jsonl", [0.5, None, 0.3, 0.2], [0.7, None, 0.3, None])
    assert plot_loss.losses(path, 2.0) == pytest.approx({0: 0.85, 2: 0.45, 3: 0.2})
    assert "one class in places, where the curve is its fake_loss alone" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (b"epoch 0 loss 0.3\nepoch 1 loss 0.2\n", "line 1 is not an epoch of a training log"),
        (b'{"epoch": 0}\n', "no epoch has a fake_loss or a real_loss"),
        (b"", "no epoch has a fake_loss"),
    ],
)
def test_not_a_log(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_bytes(content)
    done = plot("--log-file", path)
    assert done.returncode == 2
    assert f"error: {path}: {said}" in done.stderr


def test_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = face_crops.write(tmp_path / "a.jsonl", b'{"epoch": 0}\n{"epoch": 1}\n{"epo')
    assert [line["epoch"] for line in read_log(path)] == [0, 1]
    with pytest.raises(LogError, match="line 2"):
        read_log(face_crops.write(path, b'{"epoch": 0}\n{"epo\n{"epoch": 2}\n'))


def evaluate(*options: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "training.pipelines.evaluate", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, cwd=face_crops.ROOT)


def test_evaluate_a_submission(tmp_path: Path) -> None:
    """Figures worked out by hand: fakes at 0.9 and 0.4, reals at 0.2 and 0.5."""
    labels = {"a.mp4": "FAKE", "b.mp4": "FAKE", "c.mp4": "REAL", "d.mp4": "REAL", "unscored.mp4": "REAL"}
    metadata = json.dumps({name: {"label": label, "split": "train"} for name, label in labels.items()})
    face_crops.write(tmp_path / "metadata.json", metadata.encode())
    rows = "filename,label\npart/a.mp4,0.9\nb.mp4,0.4\nc.mp4,0.2\nd.mp4,0.5\nunknown.mp4,0.7\n"
    face_crops.write(tmp_path / "out.csv", rows.encode())
    done = evaluate(
        *("--submission", tmp_path / "out.csv", "--labels", tmp_path / "metadata.json"), "--json", tmp_path / "f.json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    fake, real = -np.log([0.9, 0.4]).mean(), -np.log([0.8, 0.5]).mean()
    assert found == pytest.approx(
        {
            "balanced_log_loss": (fake + real) / 2,
            "log_loss": (fake + real) / 2,
            "auc": 0.75,
            "average_precision": (1 + 2 / 3) / 2,
            "accuracy": 0.75,
            "ece": (0.1 + 0.6 + 0.2 + 0.5) / 4,
            "videos": 4,
        }
    )
    assert "1 videos have no score and are left out: unscored.mp4" in done.stderr
    assert "1 videos have no label and are left out: unknown.mp4" in done.stderr
    assert f"auc                 {0.75:.5f}" in done.stdout


def test_a_submission_by_originals(tmp_path: Path) -> None:
    """Fakes are in the half of their original, and drawn with it: of four, all right or all wrong, so none or all."""
    originals = [name for name in "abcdefgh" if half_of(name) == "report"]
    assert len(originals) == 4
    entries, rows = {}, ["filename,label"]
    for name in "abcdefgh":
        fakes = [f"{name}{copy}.mp4" for copy in range(4)]
        entries |= {f"{name}.mp4": {"label": "REAL"}}
        entries |= {fake: {"label": "FAKE", "original": f"{name}.mp4"} for fake in fakes}
        right = name in originals[:2]
        rows += [f"{name}.mp4,{0.1 if right else 0.9}", *(f"{fake},{0.9 if right else 0.1}" for fake in fakes)]
    face_crops.write(tmp_path / "metadata.json", json.dumps(entries).encode())
    face_crops.write(tmp_path / "out.csv", "\n".join(rows).encode())
    options = ("--submission", tmp_path / "out.csv", "--labels", tmp_path / "metadata.json", "--half", "report")
    done = evaluate(*options, "--bootstrap", 200, "--json", tmp_path / "f.json", "--predictions", tmp_path / "p.csv")
    assert done.returncode == 0, done.stderr
    names = pd.read_csv(tmp_path / "p.csv")["video"].tolist()
    assert names == sorted(f"{name}{copy}.mp4" for name in originals for copy in ("", *range(4)))
    found = json.loads((tmp_path / "f.json").read_text())
    assert (found["videos"], found["accuracy"], found["intervals"]["accuracy"]) == (20, 0.5, [0, 1])


def test_one_class_cannot_be_drawn(tmp_path: Path) -> None:
    """The figures that one class has are printed all the same."""
    face_crops.write(tmp_path / "metadata.json", b'{"a.mp4": {"label": "REAL"}}')
    face_crops.write(tmp_path / "out.csv", b"filename,label\na.mp4,0.2\n")
    options = ("--submission", tmp_path / "out.csv", "--labels", tmp_path / "metadata.json", "--plots", tmp_path / "p")
    done = evaluate(*options)
    assert done.returncode == 2
    assert f"log_loss            {-np.log(0.8):.5f}" in done.stdout
    assert "auc                 one class only" in done.stdout
    assert "--plots: there is nothing to draw of videos of one class" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "p").iterdir())


@pytest.mark.parametrize(
    ("submission", "labels", "said"),
    [
        ("filename,label\na.mp4,1.5\n", "{}", "out.csv: no probability from 0 to 1 for a.mp4"),
        ("filename,label\na.mp4,\n", "{}", "out.csv: no probability from 0 to 1 for a.mp4"),
        ("name,score\na.mp4,1\n", "{}", "the columns filename and label are wanted, not name, score"),
        ("filename,label\nx/a.mp4,1\ny/a.mp4,1\n", "{}", "several videos have one name"),
        ("", "{}", "out.csv: cannot be read as CSV"),
        ("filename,label\na.mp4,1\n", "{", "metadata.json: cannot be read as JSON"),
        ("filename,label\na.mp4,1\n", '{"a.mp4": {"label": "PERHAPS"}}', '"REAL" or "FAKE"'),
        ("filename,label\na.mp4,1\n", '{"b.mp4": {"label": "REAL"}}', "have no video in common"),
    ],
)
def test_nothing_to_evaluate(tmp_path: Path, submission: str, labels: str, said: str) -> None:
    from training.pipelines import evaluate

    out = face_crops.write(tmp_path / "out.csv", submission.encode())
    metadata = face_crops.write(tmp_path / "metadata.json", labels.encode())
    with pytest.raises(evaluate.EvaluationError) as error:
        evaluate.score_submission(out, metadata)
    assert said in str(error.value)
