"""predict_folder.py as a user runs it, on real clips with the embedded model."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.special import logit
from skimage.data import astronaut

from common import __version__
from common.journal import Journal, stamp_of
from inference.aggregation import confident_strategy
from inference.details import sha256
from inference.submission import RECORD_VERSION
from preprocessing import sample_clips
from preprocessing.crops import center_in_square, resize_longer_side
from preprocessing.faces import FaceDetector
from preprocessing.video import Clip, sample_frames
from tests.support import golden, programs
from tests.support.checkpoints import LITE0, Payload
from tests.support.details import read_records
from training.tools.checkpoint import load_network, save_checkpoint
from training.zoo import build_network

ROOT = Path(__file__).parents[2]
INTERRUPTED = ROOT / "tests/support/interrupted.py"
DEFAULT = ROOT / "weights" / "default_lite0.pt"
FAST = ("--device", "cpu", "--precision", "float32", "--frames", "4")
# Batch sizes and folded batch norms change the order of float32 sums, differently on every CPU.
ROUNDING = 1e-4
# Status, fps, seconds, width and height of the clips that the fixture `folder` makes; None: unreadable.
CLIPS = {
    "a_face.mp4": ("ok", 25, 40 / 25, 480, 360),
    "b_truncated.mp4": None,
    "c_empty.mp4": None,
    "d_text.mp4": None,
    "deeper/m_below.avi": ("ok", 25, 8 / 25, 480, 360),
    "e_one_frame.mp4": ("ok", 25, 1 / 25, 480, 360),
    "f_twenty.MP4": ("ok", 10, 20 / 10, 480, 360),
    "g_no_face.mp4": ("no_face", 25, 8 / 25, 480, 360),
    "h_small.mp4": ("ok", 25, 8 / 25, 176, 144),
    "i_portrait.mov": ("ok", 25, 8 / 25, 240, 426),
    'j it\'s "quoted", and spaced.mkv': ("ok", 25, 8 / 25, 480, 360),
    "l_tiny.mp4": ("no_face", 25, 4 / 25, 16, 16),
    "n_gone.mp4": None,
    "o_\udcff.mp4": ("ok", 25, 40 / 25, 480, 360),
    "p_apple.m4v": ("ok", 25, 8 / 25, 480, 360),
    "q_stream.ts": ("ok", 25, 8 / 25, 480, 360),
    "r_mpeg.mpg": ("ok", 25, 8 / 25, 480, 360),
}
HALF = "k_half.mp4"  # its second half is missing; how many frames are left depends on the encoder


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "predict_folder.py"), *map(str, arguments)]


def run(videos: Path, output: Path, *options: str | Path) -> subprocess.CompletedProcess:
    return programs.run(command("--test-dir", videos, "--output", output, *options))


def run_interrupted(number: signal.Signals, moment: str, videos: Path, output: Path) -> subprocess.CompletedProcess:
    """Run until a module is imported or a number of clips is recorded."""
    python, *script = command("--test-dir", videos, "--output", output, *FAST)
    return programs.run([python, INTERRUPTED, number.name, moment, *script])


def read_scores(path: Path) -> dict[str, float]:
    rows = list(csv.reader(io.StringIO(path.read_text(errors="surrogateescape"))))
    assert rows[0] == ["filename", "label"]
    assert [row[0] for row in rows[1:]] == sorted(row[0] for row in rows[1:])
    return {name: float(label) for name, label in rows[1:]}


def finished_clips(journal: Path) -> list[str]:
    """The clips that have a record."""
    return [json.loads(line)["clip"] for line in journal.read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips in many formats, intact and damaged."""
    folder = tmp_path_factory.mktemp("videos")
    data = sample_clips.face_clip(folder / "a_face.mp4").read_bytes()
    (folder / "b_truncated.mp4").write_bytes(data[:300])
    (folder / "c_empty.mp4").touch()
    (folder / "d_text.mp4").write_text("not a video at all\n" * 50)
    sample_clips.face_clip(folder / "e_one_frame.mp4", frames=1)
    sample_clips.write_clip(folder / "f_twenty.MP4", sample_clips.moving(astronaut(), 20, 480, 360, 0.9), rate=10)
    sample_clips.faceless_clip(folder / "g_no_face.mp4", frames=8)
    sample_clips.face_clip(folder / "h_small.mp4", 8, 176, 144)
    sample_clips.face_clip(folder / "i_portrait.mov", 8, 240, 426)
    sample_clips.face_clip(folder / 'j it\'s "quoted", and spaced.mkv', 8)
    (folder / HALF).write_bytes(data[: len(data) // 2])
    sample_clips.face_clip(folder / "l_tiny.mp4", 4, 16, 16)
    (folder / "deeper").mkdir()
    sample_clips.face_clip(folder / "deeper" / "m_below.avi", 8)
    (folder / "metadata.json").write_text("{}")
    (folder / "deeper" / "round").symlink_to(folder)
    (folder / "n_gone.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / os.fsdecode(b"o_\xff.mp4")).write_bytes(data)
    sample_clips.face_clip(folder / "p_apple.m4v", 8)
    sample_clips.face_clip(folder / "q_stream.ts", 8)
    sample_clips.write_clip(folder / "r_mpeg.mpg", sample_clips.moving(astronaut(), 8, 480, 360, 0.9), "mpeg2video")
    return folder


class Run(NamedTuple):
    finished: subprocess.CompletedProcess
    scores: dict[str, float]
    details: dict[str, dict]
    output: Path


@pytest.fixture(scope="module")
def scored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The folder's results. A progress file of the previous version, with wrong scores, existed before the run."""
    output = tmp_path_factory.mktemp("scored")
    write_previous_progress(output / "s.csv.progress.jsonl", folder / "a_face.mp4")
    finished = run(folder, output / "s.csv", "--details", output / "d.jsonl", *FAST)
    return Run(finished, read_scores(output / "s.csv"), read_records(output / "d.jsonl"), output)


def write_previous_progress(path: Path, clip: Path) -> None:
    settings = {
        "version": 2,
        "models": [sha256(DEFAULT)],
        "names": ["default_lite0"],
        "device": "cpu",
        "precision": "float32",
        "frames": 4,
        "strategy": "confident",
        "detector_scale": "auto",
    }
    record = {"filename": clip.name, "status": "ok", "message": "", "score": 0.123, "frames": 4, "faces": []}
    Journal(path, settings).add(clip.name, stamp_of(clip), {**record, "seconds": 0.5})


def test_statuses(scored: Run):
    status = {name: record["status"] for name, record in scored.details.items()}
    assert status == {
        HALF: "ok",
        **{name: expected[0] if expected else "unreadable" for name, expected in CLIPS.items()},
    }
    assert scored.finished.returncode == 3
    unreadable = [name for name, expected in CLIPS.items() if not expected]
    assert all(name in scored.finished.stdout for name in unreadable)
    assert "12 ok" in scored.finished.stdout
    assert "Traceback" not in scored.finished.stderr
    assert "metadata.json" in scored.finished.stderr
    assert {path.name for path in scored.output.iterdir()} == {"s.csv", "d.jsonl", "s.csv.progress.jsonl"}


def test_scores_without_a_face_are_one_half(scored: Run):
    assert scored.scores.keys() == scored.details.keys()
    for name, record in scored.details.items():
        assert record["score"] == scored.scores[name]
        if record["status"] != "ok":
            assert record["score"] == 0.5
            assert record["message"]
            assert not record["faces"]


def test_details_describe_the_video(scored: Run):
    for name, expected in CLIPS.items():
        record = scored.details[name]
        assert record["version"] == __version__
        assert record["processing_seconds"] == record["seconds"]
        video = [record[key] for key in ("fps", "duration", "width", "height")]
        assert video == (pytest.approx(expected[1:], abs=1e-3) if expected else [None] * 4)
    assert scored.details["e_one_frame.mp4"]["frames"] == 1
    assert scored.details["a_face.mp4"]["frames"] == 4
    assert scored.details["a_face.mp4"]["seconds"] > 0


def test_details_describe_the_faces(scored: Run):
    for name, fps in (("a_face.mp4", 25), ("f_twenty.MP4", 10), ("q_stream.ts", 25), ("deeper/m_below.avi", 25)):
        faces = scored.details[name]["faces"]
        assert [face["time"] for face in faces] == pytest.approx([face["frame"] / fps for face in faces], abs=1e-3)
        for face in faces:
            assert face["detector_confidence"] == face["probability"] > 0.9
            assert face["scores"].keys() == {"default_lite0"}
    assert [face["frame"] for face in scored.details["a_face.mp4"]["faces"]] == [0, 13, 26, 39]


def test_score_equals_step_by_step_computation(scored: Run, folder: Path):
    network, recipe = load_network(DEFAULT)
    expected = []
    for frame in sample_frames(Clip(folder / "a_face.mp4"), 4):
        for face in FaceDetector().detect([frame.image])[0]:
            left, top, right, bottom = recipe.crop.window(face.box)
            crop = frame.image[max(top, 0) : bottom, max(left, 0) : right]
            square = center_in_square(resize_longer_side(crop, recipe.size), recipe.size)
            pixels = (torch.from_numpy(square) / 255 - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
            rows = round(recipe.shift * recipe.size)
            padded = np.pad(pixels.numpy(), ((rows, rows), (0, 0), (0, 0)), "edge")
            views = np.stack([padded[2 * rows :], padded[: -2 * rows]])
            views = torch.from_numpy(np.concatenate([views, views[:, :, ::-1]])).permute(0, 3, 1, 2)
            with torch.inference_mode():
                expected.append(network(views).mean().sigmoid().item())
    scores = [face["scores"]["default_lite0"] for face in scored.details["a_face.mp4"]["faces"]]
    np.testing.assert_allclose(scores, expected, atol=ROUNDING)
    assert scored.scores["a_face.mp4"] == pytest.approx(confident_strategy(np.array(expected)), abs=ROUNDING)


def test_progress_of_a_previous_version_is_ignored(scored: Run):
    first, *records = map(json.loads, (scored.output / "s.csv.progress.jsonl").read_text().splitlines())
    assert first["settings"]["version"] == RECORD_VERSION != 2
    assert scored.scores["a_face.mp4"] != 0.123
    assert "version" in scored.finished.stderr
    assert sum(record["clip"] == "a_face.mp4" for record in records) == 2
    assert records[0]["record"]["score"] == 0.123  # kept, and ignored


def test_redirected_output_has_no_progress_bar(scored: Run):
    assert "%|" not in scored.finished.stderr
    assert "/s]" not in scored.finished.stderr


@pytest.mark.slow
def test_score_depends_on_the_video_only(scored: Run, folder: Path, tmp_path: Path):
    """Batch size, number of workers and other videos do not change a score."""
    run(folder, tmp_path / "b.csv", *FAST, "--batch-size", "7", "--workers", "3")
    assert read_scores(tmp_path / "b.csv") == pytest.approx(scored.scores, abs=ROUNDING)
    assert run(folder / "h_small.mp4", tmp_path / "alone.csv", *FAST).returncode == 0
    assert read_scores(tmp_path / "alone.csv") == {
        "h_small.mp4": pytest.approx(scored.scores["h_small.mp4"], abs=ROUNDING)
    }


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_changes_scores_little(scored: Run, folder: Path, tmp_path: Path, precision: str):
    options = ("--precision", precision, "--details", tmp_path / "d.jsonl")
    finished = run(folder / "a_face.mp4", tmp_path / "s.csv", *FAST, *options)
    assert finished.returncode == 0
    assert f"on cpu in {precision}" in finished.stderr
    full, reduced = (
        np.array([face["scores"]["default_lite0"] for face in details["a_face.mp4"]["faces"]])
        for details in (scored.details, read_records(tmp_path / "d.jsonl"))
    )
    assert np.abs(reduced - full).max() < 0.02
    assert np.abs(logit(reduced) - logit(full)).max() > 10 * ROUNDING  # scores near 0 hide differences


@pytest.mark.slow
def test_resumes_after_kill(tmp_path: Path, face_video: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    others = [sample_clips.face_clip(tmp_path / f"{size}.mp4", 8, size, size) for size in (200, 260)]
    for number in range(12):
        shutil.copy((face_video, *others)[number % 3], videos / f"{number:02}.mp4")
    (videos / "05.mp4").write_bytes(b"junk")
    output, journal = tmp_path / "s.csv", tmp_path / "s.csv.progress.jsonl"
    killed = run_interrupted(signal.SIGKILL, "3", videos, output)
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists()
    before = finished_clips(journal)
    assert len(before) == 3

    resumed = run(videos, output, *FAST)
    assert resumed.returncode == 3
    assert "3 of 12" in resumed.stderr
    after = finished_clips(journal)
    assert after[:3] == before
    assert sorted(after) == [f"{number:02}.mp4" for number in range(12) if number != 5]  # each one once
    run(videos, tmp_path / "uninterrupted.csv", *FAST)
    assert read_scores(output) == pytest.approx(read_scores(tmp_path / "uninterrupted.csv"), abs=ROUNDING)


@pytest.mark.slow
def test_starts_over_with_another_strategy(tmp_path: Path, face_video: Path):
    assert run(face_video, tmp_path / "s.csv", *FAST).returncode == 0
    again = run(face_video, tmp_path / "s.csv", *FAST)
    assert "1 of 1 video" in again.stderr
    for options in (("--strategy", "mean"), ("--strategy", "mean", "--overwrite")):
        other = run(face_video, tmp_path / "s.csv", *FAST, *options)
        assert other.returncode == 0
        assert "1 of 1 video" not in other.stderr
    assert len(finished_clips(tmp_path / "s.csv.progress.jsonl")) == 1


@pytest.mark.slow
def test_stops_on_ctrl_c(tmp_path: Path, face_video: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        os.link(face_video, videos / f"{number}.mp4")
    stopped = run_interrupted(signal.SIGINT, "2", videos, tmp_path / "s.csv")
    assert stopped.returncode == 130
    assert "resume" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert len(finished_clips(tmp_path / "s.csv.progress.jsonl")) == 2
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("module", ["common.cli", "torch", "preprocessing.faces"])
def test_ctrl_c_while_loading_prints_nothing(tmp_path: Path, face_video: Path, module: str):
    stopped = run_interrupted(signal.SIGINT, module, face_video, tmp_path / "s.csv")
    assert stopped.returncode == -signal.SIGINT
    assert stopped.stderr == ""
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.slow
def test_more_faces_than_a_batch(tmp_path: Path):
    """Five faces in each of 32 frames: none is lost between batches."""
    row = np.hstack([astronaut()[:160, 140:300]] * 5)
    path = sample_clips.write_clip(tmp_path / "crowd.mp4", sample_clips.moving(row, 32, 840, 200))
    run(path, tmp_path / "s.csv", "--details", tmp_path / "d.jsonl", "--device", "cpu", "--detector-scale", "1")
    faces = read_records(tmp_path / "d.jsonl")["crowd.mp4"]["faces"]
    counts = np.bincount([face["frame"] for face in faces], minlength=32)
    assert len(faces) > 127
    assert counts.min() >= 4


INPUT, OUTPUT = ("--test-dir", "{clip}"), ("--output", "{tmp}/s.csv")
LOADS_PYTORCH = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--test-dir", "{tmp}/none", *OUTPUT), "{tmp}/none"),
        (("--test-dir", "{tmp}/no_videos", *OUTPUT), "{tmp}/no_videos"),
        (("--test-dir", "{tmp}/no_videos/metadata.json", *OUTPUT), "{tmp}/no_videos/metadata.json"),
        (("--test-dir", "{tmp}/cover.png", *OUTPUT), "{tmp}/cover.png"),
        ((*INPUT, "--output", "{tmp}/no_videos"), "{tmp}/no_videos"),
        ((*INPUT, "--output", "{clip}"), "{clip}"),
        ((*INPUT, *OUTPUT, "--details", "{tmp}/s.csv"), "{tmp}/s.csv"),
        ((*INPUT, "--output", "{clip}/s.csv"), "{clip}"),
        ((*INPUT, *OUTPUT, "--models", "nope"), "nope"),
        ((*INPUT, *OUTPUT, "--frames", "0"), "--frames"),
        ((*INPUT, *OUTPUT, "--detector-scale", "-1"), "--detector-scale"),
        (("--output", "s.csv"), "--test-dir"),
        pytest.param((*INPUT, *OUTPUT, "--device", "toaster"), "--device", marks=LOADS_PYTORCH),
        pytest.param((*INPUT, *OUTPUT, "--models", "{tmp}/hostile.pt"), "{tmp}/hostile.pt", marks=LOADS_PYTORCH),
        pytest.param((*INPUT, *OUTPUT, "--models", "{clip}"), "{clip}", marks=LOADS_PYTORCH),
    ],
)
def test_wrong_usage_names_the_file_or_option(tmp_path: Path, face_video: Path, arguments: tuple, named: str):
    (tmp_path / "no_videos").mkdir()
    (tmp_path / "no_videos" / "metadata.json").write_text("{}")
    (tmp_path / "cover.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    torch.save({"state_dict": {}, "extra": Payload(tmp_path / "it_ran")}, tmp_path / "hostile.pt")
    finished = programs.run(command(*(argument.format(tmp=tmp_path, clip=face_video) for argument in arguments)))
    assert finished.returncode == 2
    assert named.format(tmp=tmp_path, clip=face_video) in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "s.csv").exists()
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.slow
def test_score_that_is_not_finite_ends_the_run(tmp_path: Path, face_video: Path):
    state = golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_lite0")).state_dict()
    state["fc.bias"] = torch.tensor([1e6])  # float16 cannot hold it
    save_checkpoint(tmp_path / "huge.pt", state, LITE0)
    options = ("--models", tmp_path / "huge.pt", "--frames", "1", "--device", "cpu")
    finished = run(face_video, tmp_path / "s.csv", *options, "--precision", "float16")
    assert finished.returncode == 2
    assert "huge" in finished.stderr
    assert not (tmp_path / "s.csv").exists()
    assert run(face_video, tmp_path / "s.csv", *options, "--precision", "float32").returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_scores_equal_cpu_scores(scored: Run, folder: Path, tmp_path: Path):
    run(folder, tmp_path / "g.csv", "--frames", "4", "--device", "cuda")
    assert read_scores(tmp_path / "g.csv") == pytest.approx(scored.scores, abs=0.03)
