"""Limits of the predictor: memory, latency, and failures of the device."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from common.device import DeviceError
from inference import predictor
from inference.decoder import Decoder, DecoderError
from inference.ensemble import Ensemble
from inference.predictor import MAX_WAITING, Predictor
from preprocessing import sample_clips
from preprocessing.faces import FaceDetector
from preprocessing.limits import Limits
from tests.support import programs
from tests.support.details import read_records
from tests.support.hostile_clips import HOSTILE, write_all

ROOT = Path(__file__).parents[2]
DEFAULT = ROOT / "weights" / "default_lite0.pt"
MEMORY = 2 * 2**30


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return Ensemble([DEFAULT], "cpu", "float32")


def test_answers_do_not_wait_for_a_huge_batch(ensemble: Ensemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clip = sample_clips.face_clip(tmp_path / "clip.mp4", 1)
    requested = 0

    def paths() -> Iterator[Path]:
        nonlocal requested
        for _ in range(3 * MAX_WAITING):
            requested += 1
            yield clip

    predictor = Predictor(ensemble, FaceDetector(), decoders=[Decoder(Limits())])
    predictor.shares_batches = True  # as on a GPU
    monkeypatch.setattr(ensemble, "batch_size", 10**5)
    results = predictor.predict(paths())
    assert next(results).status == "ok"
    assert requested <= MAX_WAITING + 3
    assert len({result.score for result in results}) == 1


def test_batches_overlap_on_a_gpu(
    ensemble: Ensemble, tmp_path: Path, face_video: Path, monkeypatch: pytest.MonkeyPatch
):
    """The next batch is started before the results of the last one are read, and each face gets its own score."""
    portrait = sample_clips.face_clip(tmp_path / "portrait.mp4", 5)
    events = []

    def record(name: str) -> None:
        method = getattr(ensemble, name)
        monkeypatch.setattr(ensemble, name, lambda argument: (events.append(name), method(argument))[1])

    def faces() -> list:
        results = Predictor(ensemble, FaceDetector(), frames=8, decoders=[Decoder(Limits())]).predict(
            [face_video, portrait, face_video]
        )
        return [face for result in results for face in result.faces]

    expected = faces()
    record("start")
    record("finish")
    monkeypatch.setattr(ensemble, "batch_size", 3)
    monkeypatch.setattr(ensemble, "device", torch.device("meta"))  # as on a GPU
    monkeypatch.setattr(ensemble, "_upload", torch.from_numpy)
    overlapped = faces()
    assert events == ["start", *["start", "finish"] * 6, "finish"]
    assert [face["box"] for face in overlapped] == [face["box"] for face in expected]
    names = ensemble.names
    scores, others = ([[face["scores"][name] for name in names] for face in run] for run in (overlapped, expected))
    np.testing.assert_allclose(scores, others, atol=1e-4)


def test_chunks_change_no_score(ensemble: Ensemble, face_video: Path, monkeypatch: pytest.MonkeyPatch):
    def scores() -> list:
        [result] = Predictor(ensemble, FaceDetector(), frames=8).predict([face_video])
        return [(face["frame"], face["box"], face["scores"]) for face in result.faces]

    whole = scores()
    assert len(whole) == 8
    monkeypatch.setattr(predictor, "CHUNK_BYTES", 1)
    assert scores() == whole
    monkeypatch.setattr(predictor, "LARGE_FRAME", 1)
    assert scores() == whole


def test_failure_of_the_device_ends_the_run(ensemble: Ensemble, face_video: Path, monkeypatch: pytest.MonkeyPatch):
    detector = FaceDetector()

    def fail(*_: object) -> list:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(detector, "detect", fail)
    with pytest.raises(DeviceError, match="illegal memory access"):
        list(Predictor(ensemble, detector).predict([face_video]))


def test_unexpected_error_costs_one_video(ensemble: Ensemble, face_video: Path, monkeypatch: pytest.MonkeyPatch):
    detector = FaceDetector()
    predictor = Predictor(ensemble, detector, frames=8, decoders=[Decoder(Limits())])
    [expected] = predictor.predict([face_video])
    shrink = detector.shrink

    def fail_once(_: np.ndarray) -> np.ndarray:
        monkeypatch.setattr(detector, "shrink", shrink)
        raise RuntimeError("unexpected")

    monkeypatch.setattr(detector, "shrink", fail_once)
    failed, result = predictor.predict([face_video, face_video])
    assert (failed.status, failed.score) == ("unreadable", 0.5)
    assert (result.status, result.score, result.frames) == ("ok", expected.score, 8)


def test_scores_do_not_depend_on_other_videos(ensemble: Ensemble, tmp_path: Path, face_video: Path):
    """On a CPU, to the last bit."""
    portrait = sample_clips.face_clip(tmp_path / "portrait.mp4", 3)

    def scores(*paths: Path, threads: int = 1) -> dict[Path, list]:
        predictor = Predictor(ensemble, FaceDetector(threads=threads), frames=6, decoders=[Decoder(Limits())])
        results = predictor.predict(paths)
        return {result.path: [(face["box"], face["scores"]) for face in result.faces] for result in results}

    expected = scores(face_video) | scores(portrait)
    assert all(len(faces) % ensemble.batch_size for faces in expected.values())  # the last batch is not full
    assert scores(portrait, face_video) == expected
    assert scores(face_video, portrait, threads=3) == expected


def test_decoder_that_cannot_start_ends_the_run(ensemble: Ensemble, face_video: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Decoder, "MODULE", "no_such_module")
    with pytest.raises(DecoderError):
        list(Predictor(ensemble, FaceDetector()).predict([face_video]))


def test_bug_in_the_detector_costs_one_video(ensemble: Ensemble, face_video: Path, monkeypatch: pytest.MonkeyPatch):
    detector = FaceDetector()
    detect = detector.detect

    def fail_once(*_: object) -> list:
        monkeypatch.setattr(detector, "detect", detect)
        raise ValueError("unexpected")

    monkeypatch.setattr(detector, "detect", fail_once)
    statuses = [result.status for result in Predictor(ensemble, detector, frames=2).predict([face_video] * 2)]
    assert statuses == ["unreadable", "ok"]


def memory_of(process: int) -> int:
    """Return the resident memory of a process and its children in bytes."""
    try:
        total = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        return total + sum(memory_of(int(child)) for task in tasks for child in (task / "children").read_text().split())
    except OSError:  # it has ended
        return 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_for_8k(tmp_path: Path):
    picture = cv2.resize(astronaut(), (4320, 4320))
    frames = sample_clips.moving(picture, 6, 7680, 4320)
    sample_clips.write_clip(tmp_path / "videos.mp4", frames, preset="superfast")
    command = [sys.executable, ROOT / "predict_folder.py", "--test-dir", tmp_path / "videos.mp4", "--workers", "1"]
    command += ["--output", tmp_path / "out.csv", "--details", tmp_path / "details.jsonl"]
    peak = 0

    def has_ended() -> bool:
        nonlocal peak
        peak = max(peak, memory_of(program.pid))
        return program.poll() is not None

    with programs.started(command) as program:
        programs.wait_for(has_ended, "end of the program")
    assert program.returncode == 0
    assert '"status": "ok"' in (tmp_path / "details.jsonl").read_text()
    assert peak < MEMORY


@pytest.mark.slow
def test_hostile_folder(tmp_path: Path):
    write_all(tmp_path / "videos")
    command = [sys.executable, ROOT / "predict_folder.py", "--test-dir", tmp_path / "videos", "--frames", "4"]
    command += ["--precision", "float32", "--output", tmp_path / "out.csv", "--details", tmp_path / "details.jsonl"]
    finished = programs.run(command)
    assert finished.returncode == 3
    assert "Traceback" not in finished.stderr
    records = read_records(tmp_path / "details.jsonl")
    assert records.keys() >= HOSTILE.keys()
    expected = {name: "unreadable" if clip.status == "missing" else clip.status for name, clip in HOSTILE.items()}
    assert {name: records[name]["status"].replace("no_face", "ok") for name in HOSTILE} == expected
    scores = [records[name]["score"] for name in HOSTILE if records[name]["status"] == "ok"]
    assert len(scores) > 10
    assert np.ptp(scores) < 0.2
