"""The command line, run as a user runs it, on real clips with the embedded network."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.aggregation import confident_strategy
from preprocessing import sample_clips
from preprocessing.crops import center_in_square, resize_longer_side
from preprocessing.faces import FaceDetector
from preprocessing.video import Clip, sample_frames
from tests.support import golden
from tests.support.checkpoints import LITE0, Payload
from training.tools.checkpoint import load_network, save_checkpoint
from training.zoo import build_network

ROOT = Path(__file__).parents[2]
DEFAULT = ROOT / "weights" / "default_lite0.pt"
FAST = ("--device", "cpu", "--precision", "float32", "--frames", "4")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "predict_folder.py"), *map(str, arguments)]


def run(videos: Path, output: Path, *options: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        command("--test-dir", videos, "--output", output, *options),
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=600,
    )


def table(path: Path) -> dict[str, float]:
    rows = list(csv.reader(io.StringIO(path.read_text(errors="surrogateescape"))))
    assert rows[0] == ["filename", "label"]
    assert [row[0] for row in rows[1:]] == sorted(row[0] for row in rows[1:])
    return {name: float(label) for name, label in rows[1:]}


def details(path: Path) -> dict[str, dict]:
    return {record["filename"]: record for record in map(json.loads, path.read_text().splitlines())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good clips and all kinds of bad ones."""
    folder = tmp_path_factory.mktemp("videos")
    sound = sample_clips.face_clip(folder / "a_face.mp4")
    data = sound.read_bytes()
    (folder / "b_truncated.mp4").write_bytes(data[:300])
    (folder / "c_empty.mp4").touch()
    (folder / "d_text.mp4").write_text("not a video at all\n" * 50)
    sample_clips.face_clip(folder / "e_one_frame.mp4", frames=1)
    sample_clips.face_clip(folder / "f_twenty.MP4", frames=20)
    sample_clips.faceless_clip(folder / "g_no_face.mp4", frames=8)
    sample_clips.face_clip(folder / "h_small.mp4", 8, 176, 144)
    sample_clips.face_clip(folder / "i_portrait.mov", 8, 240, 426)
    sample_clips.face_clip(folder / 'j it\'s "quoted", and spaced.mkv', 8)
    (folder / "k_half.mp4").write_bytes(data[: len(data) // 2])
    sample_clips.face_clip(folder / "l_tiny.mp4", 4, 16, 16)
    (folder / "deeper").mkdir()
    sample_clips.face_clip(folder / "deeper" / "m_below.avi", 8)
    (folder / "metadata.json").write_text("{}")
    (folder / "deeper" / "round").symlink_to(folder)
    (folder / "n_gone.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / os.fsdecode(b"o_\xff.mp4")).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def scored(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("scored")
    finished = run(folder, out / "s.csv", "--details", out / "d.jsonl", *FAST)
    return finished, table(out / "s.csv"), details(out / "d.jsonl"), out


def test_statuses(scored):
    finished, rows, records, out = scored
    status = {name: record["status"] for name, record in records.items()}
    assert finished.returncode == 3
    assert status == {
        "a_face.mp4": "ok",
        "b_truncated.mp4": "unreadable",
        "c_empty.mp4": "unreadable",
        "d_text.mp4": "unreadable",
        "deeper/m_below.avi": "ok",
        "e_one_frame.mp4": "ok",
        "f_twenty.MP4": "ok",
        "g_no_face.mp4": "no_face",
        "h_small.mp4": "ok",
        "i_portrait.mov": "ok",
        'j it\'s "quoted", and spaced.mkv': "ok",
        "k_half.mp4": "ok",
        "l_tiny.mp4": "no_face",
        "n_gone.mp4": "unreadable",
        "o_\udcff.mp4": "ok",
    }
    assert set(rows) == set(status)
    bad = "b_truncated.mp4, c_empty.mp4, d_text.mp4, n_gone.mp4"
    assert f"9 ok, 2 no face, 4 unreadable: {bad}" in finished.stdout
    assert "metadata.json" in finished.stderr
    assert "Traceback" not in finished.stderr
    for name, record in records.items():
        assert set(record) == {"filename", "status", "message", "score", "frames", "faces", "seconds"}
        assert record["score"] == rows[name]
        if record["status"] != "ok":
            assert record["score"] == 0.5
            assert record["message"]
            assert not record["faces"]
    assert "empty" in records["c_empty.mp4"]["message"]
    assert records["e_one_frame.mp4"]["frames"] == 1
    assert records["a_face.mp4"]["frames"] == 4
    assert {path.name for path in out.iterdir()} == {"s.csv", "d.jsonl", "s.csv.progress.jsonl"}


def test_score_is_worked_out_by_hand(scored, folder: Path):
    """One clip, face by face, with the pieces put together anew."""
    _, rows, records, _ = scored
    network, recipe = load_network(DEFAULT)
    scores = []
    for frame in sample_frames(Clip(folder / "a_face.mp4"), 4):
        for face in FaceDetector().detect([frame.image])[0]:
            left, top, right, bottom = recipe.crop.window(face.box)
            crop = frame.image[max(top, 0) : bottom, max(left, 0) : right]
            square = center_in_square(resize_longer_side(crop, recipe.size), recipe.size)
            pixels = (torch.from_numpy(square) / 255 - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
            with torch.inference_mode():
                scores.append(network(pixels.permute(2, 0, 1)[None]).sigmoid().item())
    faces = records["a_face.mp4"]["faces"]
    np.testing.assert_allclose([face["scores"]["default_lite0"] for face in faces], scores, atol=1e-5)
    assert rows["a_face.mp4"] == pytest.approx(confident_strategy(np.array(scores)), abs=1e-5)
    assert [face["frame"] for face in faces] == [0, 13, 26, 39]
    assert all(face["probability"] > 0.9 for face in faces)


def test_score_depends_on_nothing_else(scored, folder: Path, tmp_path: Path):
    """Neither on batch size, nor on workers, nor on the other videos."""
    _, rows, _, _ = scored
    run(folder, tmp_path / "b.csv", *FAST, "--batch-size", "7", "--workers", "3")
    together = table(tmp_path / "b.csv")
    assert set(together) == set(rows)
    for name, score in together.items():
        assert score == pytest.approx(rows[name], abs=1e-5)
    for name in ("a_face.mp4", "h_small.mp4"):
        assert run(folder / name, tmp_path / "alone.csv", *FAST).returncode == 0
        assert table(tmp_path / "alone.csv") == {name: pytest.approx(rows[name], abs=1e-5)}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision(scored, folder: Path, tmp_path: Path, precision: str):
    _, rows, _, _ = scored
    run(folder / "a_face.mp4", tmp_path / "r.csv", *FAST, "--precision", precision)
    assert table(tmp_path / "r.csv")["a_face.mp4"] == pytest.approx(rows["a_face.mp4"], abs=0.01)


def test_killed_and_taken_up(tmp_path: Path, face_video: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    others = [sample_clips.face_clip(tmp_path / f"{size}.mp4", 8, size, size) for size in (200, 260)]
    for number in range(12):
        shutil.copy((face_video, *others)[number % 3], videos / f"{number:02}.mp4")
    (videos / "05.mp4").write_bytes(b"junk")
    out, straight = tmp_path / "s.csv", tmp_path / "straight.csv"
    arguments = ("--test-dir", videos, "--output", out, "--details", tmp_path / "d.jsonl", *FAST)
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / "s.csv.progress.jsonl"
    while not journal.is_file() or len(journal.read_text().splitlines()) < 4:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with journal.open("a") as file:
        file.write('{"video": "11.mp4", "sta')  # killed while it wrote a line
    done = [json.loads(line)["clip"] for line in journal.read_text().splitlines()[1:-1]]
    assert 3 <= len(done) < 12

    resumed = run(videos, out, "--details", tmp_path / "d.jsonl", *FAST)
    assert resumed.returncode == 3
    assert f"{len(done)} of 12 were done in an earlier run" in resumed.stderr
    lines = [json.loads(line)["clip"] for line in journal.read_text().splitlines()[1:]]
    assert sorted(lines) == [f"{number:02}.mp4" for number in range(12) if number != 5]  # each once
    run(videos, straight, *FAST)
    assert out.read_text() == straight.read_text()

    again = run(videos, out, *FAST)
    assert "11 of 12 were done" in again.stderr  # the unreadable one is tried again
    (videos / "05.mp4").unlink()
    shutil.copy(face_video, videos / "05.mp4")
    sample_clips.face_clip(videos / "03.mp4", 6)
    changed = run(videos, out, *FAST)
    assert changed.returncode == 0
    assert "10 of 12 were done" in changed.stderr
    other = run(videos, out, *FAST, "--strategy", "mean")
    assert "starting afresh: another strategy" in other.stderr
    assert "were done" not in other.stderr
    forced = run(videos, out, *FAST, "--strategy", "mean", "--overwrite")
    assert "were done" not in forced.stderr


def test_ctrl_c(tmp_path: Path, face_video: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(30):
        os.link(face_video, videos / f"{number:02}.mp4")
    arguments = command("--test-dir", videos, "--output", tmp_path / "s.csv", *FAST)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "s.csv.progress.jsonl"
    while not journal.is_file() or len(journal.read_text().splitlines()) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command takes up" in errors
    assert "Traceback" not in errors


def test_more_faces_than_a_batch_all_count(tmp_path: Path):
    """160 faces in 32 frames: none is dropped, and each frame has its share."""
    from skimage.data import astronaut

    face = astronaut()[:160, 140:300]
    row = np.hstack([face] * 5)
    path = sample_clips.write_clip(tmp_path / "crowd.mp4", sample_clips.moving(row, 32, 840, 200))
    run(path, tmp_path / "s.csv", "--details", tmp_path / "d.jsonl", "--device", "cpu", "--detector-scale", "1")
    record = details(tmp_path / "d.jsonl")["crowd.mp4"]
    counts = np.bincount([face["frame"] for face in record["faces"]], minlength=32)
    assert len(record["faces"]) > 127
    assert counts.min() >= 4


def test_odd_journal_is_no_hindrance(tmp_path: Path, face_video: Path):
    journal = tmp_path / "s.csv.progress.jsonl"
    for content in (b"123\n", b"[]\n{}\n", b'{"settings": 5}\n', b"\xff\xfe\n", b""):
        journal.write_bytes(content)
        assert run(face_video, tmp_path / "s.csv", *FAST).returncode == 0
        assert len(journal.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--test-dir", "{tmp}/none", "--output", "{tmp}/s.csv"), "none: no such file or folder"),
        (("--test-dir", "{tmp}/bare", "--output", "{tmp}/s.csv"), "bare: holds no video"),
        (("--test-dir", "{clip}", "--output", "{tmp}/bare"), "bare: is not a file"),
        (("--test-dir", "{clip}", "--output", "{clip}"), "would overwrite"),
        (("--test-dir", "{clip}", "--output", "{tmp}/s.csv", "--details", "{tmp}/s.csv"), "would overwrite"),
        (("--test-dir", "{clip}", "--output", "{clip}/s.csv"), "cannot be made"),
        (("--test-dir", "{clip}", "--output", "{tmp}/s.csv", "--models", "nope"), "download_weights.sh"),
        (("--test-dir", "{clip}", "--output", "{tmp}/s.csv", "--device", "toaster"), "no device 'toaster'"),
        (("--test-dir", "{clip}", "--output", "{tmp}/s.csv", "--frames", "0"), "0 is not a positive number"),
        (("--test-dir", "{clip}", "--output", "{tmp}/s.csv", "--detector-scale", "-1"), "-1 is not auto"),
        (("--test-dir", "{clip}", "--output", "{tmp}/s.csv", "--models", "{tmp}/hostile.pt"), "refused"),
        (("--test-dir", "{clip}", "--output", "{tmp}/s.csv", "--models", "{clip}"), "not a checkpoint"),
        (("--output", "s.csv"), "required: --test-dir"),
    ],
)
def test_wrong_usage(tmp_path: Path, face_video: Path, arguments: tuple, message: str):
    (tmp_path / "bare").mkdir()
    torch.save({"state_dict": {}, "extra": Payload(tmp_path / "it_ran")}, tmp_path / "hostile.pt")
    finished = subprocess.run(
        command(*(argument.format(tmp=tmp_path, clip=face_video) for argument in arguments)),
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "s.csv").exists()
    assert not (tmp_path / "it_ran").exists()


def test_breakdown_is_not_a_score(tmp_path: Path, face_video: Path):
    """A network that gives no number ends the run with an error; no cell of a CSV is empty."""
    state = golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_lite0")).state_dict()
    state["fc.bias"] = torch.tensor([1e6])
    save_checkpoint(tmp_path / "huge.pt", state, LITE0)
    models = ("--models", tmp_path / "huge.pt", "--frames", "1", "--device", "cpu")
    finished = run(face_video, tmp_path / "s.csv", *models, "--precision", "float16")
    assert finished.returncode == 2
    assert "no finite score" in finished.stderr
    assert not (tmp_path / "s.csv").exists()
    assert run(face_video, tmp_path / "s.csv", *models, "--precision", "float32").returncode == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu(scored, folder: Path, tmp_path: Path):
    _, rows, _, _ = scored
    run(folder, tmp_path / "g.csv", "--frames", "4", "--device", "cuda")
    for name, score in table(tmp_path / "g.csv").items():
        assert score == pytest.approx(rows[name], abs=0.03)
