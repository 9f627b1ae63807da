"""Decoding in worker processes: the same frames, and a failure costs one video."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inference.decoder import Decoder, DecoderError, SampledFrame, StartOver
from preprocessing import sample_clips
from preprocessing.limits import Limits
from preprocessing.video import Clip, VideoError, evenly_spaced, read_frames
from tests.support import programs
from tests.support.hostile_clips import HOSTILE

TIMEOUT = 2


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(Limits(timeout=TIMEOUT))
    yield decoder
    decoder.kill()


def decode(decoder: Decoder, path: Path, count: int) -> list[SampledFrame]:
    decoder.open(path, count)
    try:
        return list(decoder.frames())
    except StartOver:
        return list(decoder.frames())


@pytest.mark.parametrize("size", [(480, 360), (202, 150)])  # rows of the second one are padded in memory
def test_frames_are_those_of_the_clip(decoder: Decoder, tmp_path: Path, size: tuple[int, int]):
    path = sample_clips.face_clip(tmp_path / "clip.mp4", 40, *size)
    info = decoder.open(path, 6)
    clip = Clip(path)
    assert (info.fps, info.duration) == (25, clip.duration)
    frames = list(decoder.frames())
    assert [frame.index for frame in frames] == evenly_spaced(40, 6)
    for frame, reference in zip(frames, read_frames(clip, evenly_spaced(40, 6)), strict=True):
        assert frame.time == pytest.approx(frame.index / 25)
        assert np.array_equal(frame.image, reference.image)
    assert decoder.notes == []


def test_samples_again_among_the_frames_that_can_be_decoded(decoder: Decoder, tmp_path: Path):
    frames = sample_clips.moving(sample_clips.coffee(), 60, 320, 240)
    path = sample_clips.write_clip(tmp_path / "hole.mp4", frames, g="10", crf="10", bf="0")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = bytes(20_000)
    path.write_bytes(data)
    decodable = [index for index, _ in Clip(path).decode()]
    assert 20 < len(decodable) < 60
    decoder.open(path, 32)
    with pytest.raises(StartOver):
        list(decoder.frames())
    sampled = [frame.index for frame in decoder.frames()]
    assert sampled == [decodable[i] for i in evenly_spaced(len(decodable), min(32, len(decodable)))]
    assert f"{len(decodable)} of 60 frames" in decoder.notes[0]


@pytest.mark.parametrize(
    ("failure", "status", "reason"),
    [
        ("crashes", "unreadable", "crashed"),
        ("hangs", "unreadable", "--timeout"),
        ("takes_memory", "too_large", "--decoder-memory"),
        ("has_a_bug", "unreadable", "unexpected"),
    ],
)
def test_failure_costs_one_video(
    face_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str, status: str, reason: str
):
    monkeypatch.setattr(Decoder, "MODULE", "tests.support.failing_decoder")
    decoder = Decoder(Limits(timeout=TIMEOUT))
    path = Path(shutil.copy(face_video, tmp_path / f"{failure}.mp4"))
    with pytest.raises(VideoError, match=reason) as error:
        decode(decoder, path, 4)
    assert error.value.status == status
    assert str(path) in str(error.value)
    assert len(decode(decoder, face_video, 4)) == 4
    decoder.kill()


def test_video_that_takes_too_long(face_video: Path):
    """Even if the worker process does not run at all."""
    decoder = Decoder(Limits(clip_timeout=3))
    assert len(decode(decoder, face_video, 4)) == 4  # the limit starts over with each video
    os.kill(decoder._process.pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(VideoError, match="--clip-timeout") as error:
        decode(decoder, face_video, 4)
    assert error.value.status == "unreadable"
    assert 3 <= time.monotonic() - start < 60
    assert len(decode(decoder, face_video, 4)) == 4
    decoder.kill()


@pytest.mark.parametrize("name", HOSTILE)
def test_statuses_of_hostile_clips(decoder: Decoder, tmp_path: Path, name: str):
    expected = HOSTILE[name]
    expected.make(tmp_path / name)
    if expected.status != "ok":
        with pytest.raises(VideoError) as error:
            decode(decoder, tmp_path / name, 64)
        assert error.value.status == expected.status
        return
    frames = decode(decoder, tmp_path / name, 64)
    assert expected.frames in (0, len(frames))
    assert expected.note in "; ".join(decoder.notes)


def test_program_without_a_guard_of_its_main_module(face_video: Path, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from pathlib import Path\n"
        "from inference.decoder import Decoder\n"
        "from preprocessing.limits import Limits\n"
        "decoder = Decoder(Limits())\n"
        f"decoder.open(Path({str(face_video)!r}), 3)\n"
        "print(len(list(decoder.frames())))\n"
    )
    finished = programs.run([sys.executable, script], cwd=tmp_path)
    assert (finished.stdout, finished.stderr) == ("3\n", "")


def test_process_that_cannot_start_ends_the_run(face_video: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Decoder, "MODULE", "no_such_module")
    with pytest.raises(DecoderError):
        Decoder(Limits()).open(face_video, 4)
