"""Frames by index: the right ones, with the right numbers, from sound and from damaged clips."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing import sample_clips
from preprocessing.video import Clip, VideoError, evenly_spaced, read_frames, sample_frames

IDENTITY = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
QUARTER_TURN = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)


def opencv_frames(path: Path) -> list[np.ndarray]:
    """All frames by another reader, RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (grabbed := capture.read())[0]:
        frames.append(cv2.cvtColor(grabbed[1], cv2.COLOR_BGR2RGB))
    return frames


def numbered(count: int, width: int = 160, height: int = 120) -> list[np.ndarray]:
    """Frames that show their number as a gray level: 3 n + 30, on a little noise that needs bits."""
    noise = np.random.default_rng(0).integers(-8, 8, (count, height, width, 1))
    return [np.repeat(np.clip(3 * n + 30 + noise[n], 0, 255), 3, 2).astype(np.uint8) for n in range(count)]


def shown_number(image: np.ndarray) -> int:
    return round((image.mean() - 30 + 0.5) / 3)


@pytest.mark.parametrize("count", [1, 2, 20, 32])
@pytest.mark.parametrize("total", [1, 2, 20, 31, 32, 33, 63, 64, 300, 18000])
def test_evenly_spaced(total: int, count: int):
    indices = evenly_spaced(total, count)
    assert len(indices) == len(set(indices)) == min(total, count)
    assert indices == sorted(indices)
    assert indices[0] == 0
    if count > 1:
        assert indices[-1] == total - 1
    ideal = [k * (total - 1) / max(1, len(indices) - 1) for k in range(len(indices))]
    assert all(0 <= exact - index < 1 for index, exact in zip(indices, ideal, strict=True))


def test_frames_equal_another_readers(face_video: Path):
    reference = opencv_frames(face_video)
    frames = sample_frames(Clip(face_video), 32)
    assert [frame.index for frame in frames] == np.linspace(0, 39, 32, dtype=int).tolist()
    for frame in frames:
        np.testing.assert_array_equal(frame.image, reference[frame.index])


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("short_groups.mp4", "libx264", {"g": "6"}),
        ("open_groups.mp4", "libx264", {"g": "6", "x264-params": "open-gop=1:bframes=3"}),
        ("hevc.mov", "libx265", {"x265-params": "log-level=none:keyint=7"}),
        ("matroska.mkv", "libx264", {"g": "9"}),
        ("b_frames.avi", "libx264", {}),
        ("mpeg4.avi", "mpeg4", {}),
        ("vp8.webm", "libvpx", {}),
    ],
)
def test_what_is_skipped_changes_nothing(tmp_path: Path, name: str, codec: str, options: dict):
    path = sample_clips.write_clip(tmp_path / name, numbered(50), codec, **options)
    reference = opencv_frames(path)
    clip = Clip(path)
    assert clip.total == len(reference)
    frames = read_frames(clip, [0, 17, 23, clip.total - 1])
    assert [frame.index for frame in frames] == [0, 17, 23, clip.total - 1]
    for frame in frames:
        np.testing.assert_array_equal(frame.image, reference[frame.index])


@pytest.mark.parametrize("total", [1, 2, 20])
def test_short_clips_give_each_frame_once(tmp_path: Path, total: int):
    path = sample_clips.write_clip(tmp_path / "short.mp4", numbered(total))
    assert [frame.index for frame in sample_frames(Clip(path), 32)] == list(range(total))


def test_header_that_lies(tmp_path: Path):
    """The header tells of 60 frames; the file ends in the middle."""
    path = sample_clips.write_clip(tmp_path / "lies.mp4", numbered(60), g="10", crf="10")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    frames = sample_frames(Clip(path), 8)
    there = frames[-1].index + 1
    assert 25 < there < 45
    assert len(frames) == 8
    steps = np.diff([frame.index for frame in frames])
    assert steps.max() - steps.min() <= 2
    assert [shown_number(frame.image) for frame in frames] == [frame.index for frame in frames]


def test_hole_loses_neither_the_rest_nor_the_count(tmp_path: Path):
    path = sample_clips.write_clip(tmp_path / "hole.mp4", numbered(60, 320, 240), g="10", crf="10", bf="0")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20_000] = bytes(20_000)
    path.write_bytes(data)
    frames = sample_frames(Clip(path), 32)
    assert len(frames) == 32
    assert frames[0].index == 0
    assert frames[-1].index == 59
    right = [shown_number(frame.image) == frame.index for frame in frames]
    assert sum(right) >= 26  # those in the hole may be patched up by the decoder
    assert all(right[-5:])


def test_rotation_metadata(tmp_path: Path):
    path = sample_clips.write_clip(tmp_path / "turned.mp4", numbered(3))
    upright = sample_frames(Clip(path), 1)[0].image
    data = path.read_bytes()
    track = data.index(b"tkhd")
    place = data.index(IDENTITY, track)
    path.write_bytes(data[:place] + QUARTER_TURN + data[place + len(IDENTITY) :])
    turned = sample_frames(Clip(path), 1)[0].image
    assert turned.shape == (160, 120, 3)
    np.testing.assert_array_equal(turned, opencv_frames(path)[0])
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"this is a text, not a video\n" * 40, "not a video"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n", "not a video"),
    ],
)
def test_errors_name_the_file_and_the_fault(tmp_path: Path, content: bytes | None, what: str):
    path = tmp_path / "bad 'clip'.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=what) as error:
        sample_frames(Clip(path), 32)
    assert str(path) in str(error.value)


def test_sound_without_pictures(tmp_path: Path):
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        sample_frames(Clip(path), 32)


@pytest.mark.parametrize("name", ["12:30 o'clock.mp4", 'a "quoted" name.mp4', "100% é.mp4", "-dash.mp4"])
def test_odd_names(tmp_path: Path, name: str):
    path = sample_clips.write_clip(tmp_path / "plain.mp4", numbered(2)).rename(tmp_path / name)
    assert len(sample_frames(Clip(path), 32)) == 2
