"""train.sh with its five seeds, killed and resumed; plot_loss.py; evaluate.py on submissions."""

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
from tests.support import face_crops, programs
from tests.support.details import read_records
from training.datasets.folds import half_of
from training.pipelines.submissions import EvaluationError, score_submission
from training.tools.checkpoint import read_checkpoint
from training.tools.log import LogError, read_log
from training.tools.metrics import write_scores

SEEDS = (111, 555, 777, 888, 999)
NAMES = [f"tiny_{seed}_{face_crops.NETWORK}" for seed in SEEDS]


def script(root: Path, *options: str | Path) -> list[str]:
    return list(map(str, (face_crops.ROOT / "train.sh", root, 0, root / "tiny.json", *options)))


def environment() -> dict[str, str]:
    return {**face_crops.environment(), "PYTHON": sys.executable}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seeds of two epochs each, killed in the second epoch of the second seed and resumed by the same command."""
    root = face_crops.make_dataset(tmp_path_factory.mktemp("data"))
    face_crops.config(root, batches_per_epoch=2, optimizer__schedule__epochs=2)
    command = script(root, "--output-dir", root / "weights", "--logdir", root / "logs", "--workers", 0)
    killed = programs.run(command, env={**environment(), "PYTHON": str(killing_python(root))})
    assert killed.returncode == 128 + signal.SIGKILL
    assert f"stopped at seed {SEEDS[1]}" in killed.stderr
    assert [read_checkpoint(path)["epoch"] for path in last_checkpoints(root)] == [1, 0]
    resumed = programs.run(command, env=environment())
    assert resumed.returncode == 0, resumed.stderr
    assert f"{NAMES[0]}: all 2 epochs are done" in resumed.stderr
    assert f"resumed from {root / 'weights' / NAMES[1]}_last.pt, at epoch 1" in resumed.stderr
    assert resumed.stdout.count("epoch 0 (1 of 2)") == 3
    assert resumed.stdout.count("epoch 1 (2 of 2)") == 4
    return root


def killing_python(folder: Path) -> Path:
    """A Python interpreter that kills the training of the second seed at its fourth step."""
    text = f"""#!/bin/sh
case "$*" in
    *train_classifier.py*"--seed {SEEDS[1]} "*) exec "{sys.executable}" "{face_crops.KILLED_TRAINING}" 3 "$@" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""
    path = face_crops.write(folder / "python", text.encode())
    path.chmod(0o755)
    return path


def last_checkpoints(root: Path) -> list[Path]:
    """The last checkpoints of the runs so far, in the order of the seeds."""
    return [path for name in NAMES if (path := root / "weights" / f"{name}_last.pt").is_file()]


@pytest.mark.slow
def test_trains_five_seeds(root: Path) -> None:
    assert sorted(path.stem for path in (root / "logs").glob("*.jsonl")) == NAMES
    settings = [json.loads((root / "weights" / f"{name}.json").read_text())["settings"] for name in NAMES]
    assert tuple(setting["seed"] for setting in settings) == SEEDS
    assert {(setting["fold"], setting["label_smoothing"]) for setting in settings} == {(0, 0.01)}
    weights = [
        read_checkpoint(root / "weights" / f"{name}_best.pt")["state_dict"]["module.fc.weight"] for name in NAMES
    ]
    assert len({tensor.numpy().tobytes() for tensor in weights}) == 5


@pytest.mark.slow
def test_predict_folder_averages_the_five(root: Path, face_video: Path, tmp_path: Path) -> None:
    options = ("--weights-dir", root / "weights", "--test-dir", face_video, "--output", tmp_path / "out.csv")
    options += ("--frames", 2, "--details", tmp_path / "out.jsonl", "--models", *(f"{name}_best.pt" for name in NAMES))
    done = programs.run([sys.executable, face_crops.ROOT / "predict_folder.py", *options])
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "out.csv").open())
    scores = [face["scores"] for face in read_records(tmp_path / "out.jsonl")[face_video.name]["faces"]]
    assert len(scores[0]) == 5
    assert float(row["label"]) == pytest.approx(np.mean([list(each.values()) for each in scores]), abs=1e-5)


def test_usage() -> None:
    """Wrong arguments print it to stderr with status 2; --help prints it to stdout with status 0."""
    for arguments in ((), ("data",), ("data", "many"), ("--help",)):
        done = programs.run([face_crops.ROOT / "train.sh", *arguments])
        assert done.returncode == (0 if arguments == ("--help",) else 2)
        assert "DATA_ROOT NUM_GPUS" in (done.stderr if done.returncode else done.stdout)


@pytest.mark.parametrize("option", ["--seed", "--prefix=exp_", "--config"])
def test_refuses_options_that_it_sets_for_each_seed(tmp_path: Path, option: str) -> None:
    """With one prefix or seed, the five runs would be one."""
    done = programs.run(script(tmp_path, option, "1"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"{option.partition('=')[0]}: ")


def test_plot_distinguishes_logs_of_the_same_name(tmp_path: Path) -> None:
    logs = [write_log(tmp_path / folder / "run.jsonl", [loss], [loss]) for folder, loss in (("a", 0.2), ("b", 0.4))]
    done = plot("--log-file", *logs, "--output", tmp_path / "loss.png")
    for log, loss in zip(logs, ("0.2400", "0.4800"), strict=True):
        assert f"{log}: best epochs 0 ({loss})" in done.stdout


@pytest.mark.slow
def test_failing_seed_stops_the_script(tmp_path: Path) -> None:
    face_crops.config(tmp_path)
    done = programs.run(script(tmp_path), env=environment())
    assert done.returncode == 2
    assert f"error: {tmp_path}/folds.csv: " in done.stderr
    assert "stopped at seed 111 (exit status 2)" in done.stderr
    assert "seed 555" not in done.stdout


def write_log(path: Path, fake: list[float | None], real: list[float | None]) -> Path:
    lines = [{"epoch": n, "fake_loss": f, "real_loss": r} for n, (f, r) in enumerate(zip(fake, real, strict=True))]
    return face_crops.write(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def plot(*options: str | Path) -> subprocess.CompletedProcess:
    no_display = {key: value for key, value in os.environ.items() if "DISPLAY" not in key}
    return programs.run([sys.executable, face_crops.ROOT / "plot_loss.py", *options], env=no_display)


@pytest.mark.slow
def test_plots_short_runs_without_a_display(root: Path, tmp_path: Path) -> None:
    """The published script needed a display and at least 16 epochs."""
    logs = [root / "logs" / f"{name}.jsonl" for name in NAMES]
    done = plot("--log-file", *logs, "--output", tmp_path / "loss.png")
    assert done.returncode == 0, done.stderr
    picture = cv2.imread(str(tmp_path / "loss.png"))
    assert picture.shape[:2] == (720, 1200)
    assert (picture.reshape(-1, 3) != 255).any(axis=1).mean() > 0.01
    best = dict(line.split(": best epochs ") for line in done.stdout.splitlines() if ": best" in line)
    for log in logs:
        weighted = {line["epoch"]: (1.4 * line["fake_loss"] + line["real_loss"]) / 2 for line in read_log(log)}
        best_first = sorted(weighted, key=weighted.get)
        assert best[log.stem] == ", ".join(f"{epoch} ({weighted[epoch]:.4f})" for epoch in best_first)


def test_five_best_epochs_after_the_first_sixteen(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    fake, real = random.random((2, 30)).round(3).tolist()
    fake[3] = real[3] = 0.0  # the lowest loss, but too early
    found, best_in_training = plot_loss.read_run(write_log(tmp_path / "a.jsonl", fake, real), fake_weight=2.0)
    assert best_in_training == 3
    weighted = {n: (2 * fake[n] + real[n]) / 2 for n in range(30)}
    assert found == pytest.approx(weighted)
    assert plot_loss.best_epochs(found) == sorted(range(16, 30), key=weighted.get)[:5]
    early = {n: weighted[n] for n in range(16)}
    assert plot_loss.best_epochs(early) == sorted(early, key=weighted.get)[:5]


def test_plots_validated_epochs_and_warns_of_one_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The published script combined the fake_loss of one epoch with the real_loss of another."""
    path = write_log(tmp_path / "a.jsonl", [0.5, None, 0.3, 0.2], [0.7, None, 0.3, None])
    assert plot_loss.read_run(path, 2.0).losses == pytest.approx({0: 0.85, 2: 0.45, 3: 0.2})
    assert f"{path}: validated on one class only in epochs 3" in caplog.text


def test_epochs_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    """NaN is not less than any loss, so it was best if it came first."""
    nan, inf = float("nan"), float("inf")
    log = write_log(tmp_path / "a.jsonl", [nan, 0.4, inf, 0.3, -inf], [0.1, 0.4, 0.1, nan, 0.1])
    name = face_crops.write(tmp_path / "$x^$\x1b[2J.jsonl", log.read_bytes())
    done = plot("--log-file", log, name, "--output", tmp_path / "loss.png")
    assert done.returncode == 0, done.stderr
    assert f"{log}: left out" in done.stderr
    assert done.stderr.count("epochs 0, 2, 3, 4\n") == 2
    assert "a: best epochs 1 (0.4800)\n" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    run = plot_loss.read_run(log, 1.4)
    assert (run.losses, run.best_in_training) == ({1: pytest.approx(0.48)}, 1)


def test_reports_if_training_selected_another_epoch(tmp_path: Path) -> None:
    """Weighting fakes by 1.4 moves the best epoch from 0 to 1."""
    other = write_log(tmp_path / "other.jsonl", [0.5, 0.4], [0.3, 0.41])
    same = write_log(tmp_path / "same.jsonl", [0.5, 0.4], [0.3, 0.3])
    done = plot("--log-file", other, same, "--output", tmp_path / "loss.png")
    assert "other: best epochs 1 (0.4850), 0 (0.5000)\n" in done.stdout
    assert "other: training selected epoch 0" in done.stdout
    assert "same: training" not in done.stdout


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"epoch 0 loss 0.3\nepoch 1 loss 0.2\n", b'{"epoch": 0}\n', b""),
        *(b'{"epoch": 0, "fake_loss": NaN}\n', b'{"epoch": 0, "fake_loss": "0.3"}\n', b"[1]\n[2]\n"),
    ],
    ids=["missing", "not a log", "not validated", "empty", "not finite", "text", "lists"],
)
def test_unusable_log_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_bytes(content)
    done = plot("--log-file", path)
    assert done.returncode == 2
    assert f"error: {path}: " in done.stderr


def test_ignores_a_last_line_that_is_truncated(tmp_path: Path) -> None:
    path = face_crops.write(tmp_path / "a.jsonl", b'{"epoch": 0}\n{"epoch": 1}\n{"epo')
    assert [line["epoch"] for line in read_log(path)] == [0, 1]
    with pytest.raises(LogError, match="line 2"):
        read_log(face_crops.write(path, b'{"epoch": 0}\n{"epo\n{"epoch": 2}\n'))


def evaluate(*options: str | Path) -> subprocess.CompletedProcess:
    return programs.run([sys.executable, "-m", "training.pipelines.evaluate", *options], cwd=face_crops.ROOT)


def test_evaluates_a_submission(tmp_path: Path) -> None:
    """Metrics calculated by hand, for fakes at 0.9 and 0.4 and reals at 0.2 and 0.5."""
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
    assert "1 video without a score left out: unscored.mp4" in done.stderr
    assert "1 video without a label left out: unknown.mp4" in done.stderr
    assert f"auc                 {0.75:.5f}" in done.stdout


@pytest.mark.slow
def test_halves_and_bootstrap_keep_fakes_with_their_original(tmp_path: Path) -> None:
    """All videos of an original are right or all are wrong, so samples of two originals range from 0 to 1."""
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


def test_one_class_has_no_plots(tmp_path: Path) -> None:
    """Metrics that are defined for a single class are still printed."""
    face_crops.write(tmp_path / "metadata.json", b'{"a.mp4": {"label": "REAL"}}')
    face_crops.write(tmp_path / "out.csv", b"filename,label\na.mp4,0.2\n")
    options = ("--submission", tmp_path / "out.csv", "--labels", tmp_path / "metadata.json", "--plots", tmp_path / "p")
    done = evaluate(*options)
    assert done.returncode == 2
    assert f"log_loss            {-np.log(0.8):.5f}" in done.stdout
    assert "auc                 one class only" in done.stdout
    assert "error: --plots: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "p").iterdir())


def test_bootstrap_of_one_original_gives_no_intervals(tmp_path: Path) -> None:
    """The intervals would have zero width."""
    entries = {"a.mp4": {"label": "REAL"}, "b.mp4": {"label": "FAKE", "original": "a.mp4"}}
    face_crops.write(tmp_path / "metadata.json", json.dumps(entries).encode())
    face_crops.write(tmp_path / "out.csv", b"filename,label\na.mp4,0.2\nb.mp4,0.7\n")
    options = ("--submission", tmp_path / "out.csv", "--labels", tmp_path / "metadata.json", "--bootstrap", 100)
    done = evaluate(*options, "--json", tmp_path / "f.json")
    assert done.returncode == 0
    assert "--bootstrap: " in done.stderr
    assert " to " not in done.stdout
    assert "intervals" not in json.loads((tmp_path / "f.json").read_text())


@pytest.mark.parametrize(
    ("submission", "labels", "named"),
    [
        ("filename,label\na.mp4,1.5\n", "{}", r"out\.csv: .* a\.mp4"),
        ("filename,label\na.mp4,\n", "{}", r"out\.csv: .* a\.mp4"),
        ("name,score\na.mp4,1\n", "{}", r"out\.csv: .* filename and label"),
        ("filename,label\nx/a.mp4,1\ny/a.mp4,1\n", "{}", r"out\.csv: .* same name"),
        ("", "{}", r"out\.csv: .* CSV"),
        ("filename,label\na.mp4,1\n", "{", r"metadata\.json: .* JSON"),
        ("filename,label\na.mp4,1\n", '{"a.mp4": {"label": "PERHAPS"}}', r'metadata\.json: .* "REAL" or "FAKE"'),
        ("filename,label\na.mp4,1\n", '{"b.mp4": {"label": "REAL"}}', r"out\.csv: .*metadata\.json"),
    ],
)
def test_unusable_submission_or_labels_are_errors(tmp_path: Path, submission: str, labels: str, named: str) -> None:
    out = face_crops.write(tmp_path / "out.csv", submission.encode())
    metadata = face_crops.write(tmp_path / "metadata.json", labels.encode())
    with pytest.raises(EvaluationError, match=named):
        score_submission(out, metadata)


@pytest.mark.parametrize("half", [None, "calibration", "report"])
def test_names_that_are_not_valid_unicode(tmp_path: Path, half: str | None) -> None:
    """Of a file, as predict_folder.py writes it, and of an original in metadata.json, which has no valid name."""
    out = face_crops.write(tmp_path / "out.csv", b"filename,label\na.mp4,1\nb\xe9.mp4,0.5\n")
    labels = {"a.mp4": {"label": "FAKE", "original": "\ud800.mp4"}, "b\udce9.mp4": {"label": "REAL"}}
    metadata = face_crops.write(tmp_path / "metadata.json", json.dumps(labels).encode())
    halves = {"a.mp4": half_of("\ud800"), "b\udce9.mp4": half_of("b\udce9")}
    expected = [name for name in labels if half in (None, halves[name])]
    if not expected:
        with pytest.raises(EvaluationError, match=rf"{half} half"):
            score_submission(out, metadata, half)
        return
    scores = score_submission(out, metadata, half)
    assert scores.videos == expected
    write_scores(tmp_path / "scores.csv", scores)
    names = [line.split(b",")[0] for line in (tmp_path / "scores.csv").read_bytes().splitlines()[1:]]
    assert names == list(map(os.fsencode, expected))
