"""Frames by index: the right frames with the right numbers, from intact and from damaged videos."""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from preprocessing import sample_clips
from preprocessing.video import Clip, Frame, VideoError, evenly_spaced, read_frames, sample_frames

IDENTITY = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
# Largest difference in gray levels. PyAV and OpenCV have different versions of FFmpeg, whose code for converting colors
# agrees on x86 only.
PIXEL_TOLERANCE = 0 if platform.machine() in ("x86_64", "AMD64") else 3
QUARTER_TURN = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)

# Enough bits for the frames' gray levels, and B-frames.
MPEG = {"b": "8000000", "bf": "2"}


def opencv_frames(path: Path) -> list[np.ndarray]:
    """Read all frames with OpenCV, RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (grabbed := capture.read())[0]:
        frames.append(cv2.cvtColor(grabbed[1], cv2.COLOR_BGR2RGB))
    return frames


def assert_frames_equal(frames: Iterable[Frame], reference: list[np.ndarray]) -> None:
    for frame in frames:
        np.testing.assert_allclose(frame.image.astype(int), reference[frame.index], atol=PIXEL_TOLERANCE)


def numbered(count: int, width: int = 160, height: int = 120) -> list[np.ndarray]:
    """Return frames whose mean gray level is 3 n + 30, with noise so that they take up space."""
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


def test_frames_equal_opencvs(face_video: Path):
    frames = sample_frames(Clip(face_video), 32)
    assert [frame.index for frame in frames] == np.linspace(0, 39, 32, dtype=int).tolist()
    assert_frames_equal(frames, opencv_frames(face_video))


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
        ("h264.m4v", "libx264", {}),
        ("h264.ts", "libx264", {"g": "12"}),
        ("open_groups.ts", "libx264", {"g": "6", "x264-params": "open-gop=1:bframes=3"}),
        ("mpeg2.ts", "mpeg2video", MPEG),
        ("mpeg2.mpg", "mpeg2video", MPEG),
        ("mpeg1.mpeg", "mpeg1video", MPEG),
    ],
)
def test_skipping_packets_changes_no_frame(tmp_path: Path, name: str, codec: str, options: dict):
    path = sample_clips.write_clip(tmp_path / name, numbered(50), codec, **options)
    reference = opencv_frames(path)
    clip = Clip(path)
    assert clip.total == len(reference)
    frames = read_frames(clip, [0, 17, 23, clip.total - 1])
    assert [frame.index for frame in frames] == [0, 17, 23, clip.total - 1]
    assert_frames_equal(frames, reference)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.m4v", "libx264"), ("a.ts", "libx264"), ("b.ts", "mpeg2video"), ("a.mpg", "mpeg2video")]
)
def test_frame_numbers_and_times(tmp_path: Path, name: str, codec: str):
    """Times of MPEG streams do not start at 0."""
    options = MPEG if codec == "mpeg2video" else {}
    clip = Clip(sample_clips.write_clip(tmp_path / name, numbered(50), codec, **options))
    frames = read_frames(clip, range(50))
    assert [frame.index for frame in frames] == list(range(50)) == [shown_number(frame.image) for frame in frames]
    assert (clip.total, clip.rate, clip.lost) == (50, 25, 0)
    np.testing.assert_allclose(np.diff(clip.times), 1 / 25, atol=1e-4)
    assert clip.duration == pytest.approx(2)


def test_stream_that_starts_between_keyframes(tmp_path: Path):
    """Broadcast recordings do. The frames before the first keyframe cannot be decoded."""
    path = sample_clips.write_clip(tmp_path / "whole.ts", numbered(50), "mpeg2video", **MPEG)
    content = path.read_bytes()
    packet = 188  # bytes
    path.write_bytes(content[len(content) // packet // 4 * packet :])
    frames = sample_frames(Clip(path), 8)
    numbers = [shown_number(frame.image) for frame in frames]
    offset = numbers[0] - frames[0].index
    assert 5 < offset < 25
    assert [number - offset for number in numbers] == [frame.index for frame in frames]
    assert numbers[-1] == 49


@pytest.mark.parametrize("total", [1, 2, 20])
def test_short_clips_return_each_frame_once(tmp_path: Path, total: int):
    path = sample_clips.write_clip(tmp_path / "short.mp4", numbered(total))
    assert [frame.index for frame in sample_frames(Clip(path), 32)] == list(range(total))


def test_truncated_file(tmp_path: Path):
    """The header counts 60 frames, but the file ends halfway through."""
    path = sample_clips.write_clip(tmp_path / "truncated.mp4", numbered(60), g="10", crf="10")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    frames = sample_frames(Clip(path), 8)
    assert 25 < frames[-1].index < 45
    assert len(frames) == 8
    steps = np.diff([frame.index for frame in frames])
    assert steps.max() - steps.min() <= 2
    assert [shown_number(frame.image) for frame in frames] == [frame.index for frame in frames]


@pytest.mark.parametrize("size", [2**31 - 1, 2**32 - 1])
def test_packet_with_an_absurd_size_ends_the_clip(face_video: Path, tmp_path: Path, size: int):
    """FFmpeg reports a lack of memory."""
    path = tmp_path / "fragmented.mp4"
    with (
        av.open(str(face_video)) as source,
        av.open(str(path), "w", options={"movflags": "frag_every_frame+empty_moov"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        sizes = [packet.size for packet in packets]
        for packet in packets:
            packet.stream = stream
            target.mux(packet)
    data = bytearray(path.read_bytes())
    place = 0
    for stored in sizes[:8]:  # each fragment has the size of its only packet
        place = data.index(struct.pack(">I", stored), data.index(b"traf", place))
    struct.pack_into(">I", data, place, size)
    path.write_bytes(data)
    clip = Clip(path)
    assert clip.total == 7
    assert "absurd size" in clip.notes[0]
    assert len(read_frames(clip, range(clip.total))) > 3


def test_overwritten_packets_change_no_other_frame(tmp_path: Path):
    path = sample_clips.write_clip(tmp_path / "hole.mp4", numbered(60, 320, 240), g="10", crf="10", bf="0")
    with av.open(str(path)) as container:
        positions = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in positions[33:35]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    frames = sample_frames(Clip(path), 32)
    assert len(frames) == 32
    assert (frames[0].index, frames[-1].index) == (0, 59)
    intact = [frame for frame in frames if not 33 <= frame.index < 40]  # the others depend on what was overwritten
    assert len(intact) > 25
    assert [shown_number(frame.image) for frame in intact] == [frame.index for frame in intact]


def test_rotation_metadata(tmp_path: Path):
    path = sample_clips.write_clip(tmp_path / "turned.mp4", numbered(3))
    upright = sample_frames(Clip(path), 1)[0].image
    data = path.read_bytes()
    track = data.index(b"tkhd")
    place = data.index(IDENTITY, track)
    path.write_bytes(data[:place] + QUARTER_TURN + data[place + len(IDENTITY) :])
    [turned] = sample_frames(Clip(path), 1)
    assert turned.image.shape == (160, 120, 3)
    assert_frames_equal([turned], opencv_frames(path))
    np.testing.assert_array_equal(turned.image, np.rot90(upright, -1))


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (None, "missing"),
        (b"", "unreadable"),
        (b"this is a text, not a video\n" * 40, "unreadable"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n", "unreadable"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, content: bytes | None, status: str):
    path = tmp_path / "bad 'clip'.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError) as error:
        Clip(path)
    assert str(path) in str(error.value)
    assert error.value.status == status


def test_file_without_a_video_stream(tmp_path: Path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"sound\.mp4"):
        Clip(path)


@pytest.mark.parametrize("name", ["12:30 o'clock.mp4", 'a "quoted" name.mp4', "100% é.mp4", "-dash.mp4"])
def test_unusual_file_names(tmp_path: Path, name: str):
    path = sample_clips.write_clip(tmp_path / "plain.mp4", numbered(2)).rename(tmp_path / name)
    assert len(sample_frames(Clip(path), 32)) == 2
