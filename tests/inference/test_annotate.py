"""Annotated copies: frames, times, what is drawn where and when, sound, failures and resuming."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from skimage.data import astronaut

from common.errors import UserError
from common.files import OutputError
from common.outcome import Outcome
from inference import annotate
from inference.annotate import annotate_videos, check_folder, find_labels, find_people, output_paths
from inference.colors import FAKE, REAL, UNDECIDED, score_color
from preprocessing import sample_clips
from preprocessing.limits import Limits
from preprocessing.video import Clip, read_frames
from tests.support.hostile_clips import ONE, display_matrix, patched

FRAMES, RATE = 21, 25
SAMPLED = (0, 5, 10, 15, 20)
# Largest difference of a color from the one that was drawn, after H.264 with half the color resolution.
TOLERANCE = 30


def face(frame: int, box: Sequence[float], score: float, person: int = 1, rate: int = RATE) -> dict[str, Any]:
    return {
        "frame": frame,
        "time": round(frame / rate, 3),
        "box": list(box),
        "person": person,
        "scores": {"a": score, "b": score},
    }


def record(filename: str, faces: Sequence[dict[str, Any]] = (), seen: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
    people = [{"person": 1, "seen": [list(run) for run in seen]}] if faces else []
    return {"filename": filename, "status": "ok" if faces else "no_face", "people": people, "faces": list(faces)}


def moving_box(frame: int) -> tuple[float, ...]:
    return 40 + 2 * frame, 50, 100 + 2 * frame, 120


def annotate_one(path: Path, folder: Path, *faces: dict[str, Any], seen: Sequence = ()) -> tuple[Path, Outcome]:
    outcomes = annotate_videos({path.name: path}, [record(path.name, faces, seen)], folder, Limits(), 1)
    return output_paths(folder, [path.name])[path.name], outcomes[path.name]


def sound_clip(
    path: Path, codec: str, channels: str = "stereo", damaged: bool = False, start: float = 0, frames: int = 50
) -> Path:
    """Write a clip with a tone."""
    rate, size = 48000 if codec == "libopus" else 44100, 1024
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=RATE, width=96, height=64, pix_fmt="yuv420p")
        audio = container.add_stream(codec, rate=rate, layout=channels)
        for number, image in enumerate(sample_clips.moving(astronaut(), frames, 96, 64)):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, RATE)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        for position in range(0, int((frames / RATE - start) * rate) // size * size, size):
            wave = np.sin(2 * np.pi * 440 * (position + np.arange(size)) / rate) / 2
            samples = np.tile((wave * 32767).astype(np.int16), (2 if channels == "stereo" else 1, 1))
            frame = av.AudioFrame.from_ndarray(samples, format="s16p", layout=channels)
            frame.sample_rate, frame.pts, frame.time_base = rate, position + round(start * rate), Fraction(1, rate)
            packets = audio.encode(frame)
            container.mux(list(map(noise, packets)) if damaged else packets)
        container.mux(audio.encode(None))
    return path


def noise(packet: av.Packet) -> av.Packet:
    """Return a packet of noise in place of a packet."""
    result = av.Packet(np.random.default_rng(packet.size).bytes(packet.size))
    result.stream, result.pts, result.dts, result.time_base = packet.stream, packet.pts, packet.dts, packet.time_base
    return result


def sound_packets(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [(float(p.pts * p.time_base), bytes(p)) for p in container.demux(stream) if p.size]


def decode_sound(path: Path) -> tuple[str, float, np.ndarray]:
    """Return the codec, the time of the first sample and the samples of the first channel."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler("fltp", rate=44100)
        frames = [out for frame in container.decode(stream) for out in resampler.resample(frame)]
        return stream.codec_context.name, frames[0].time, np.concatenate([f.to_ndarray()[0] for f in frames])


def streams_of(path: Path) -> list[str]:
    with av.open(str(path)) as container:
        return [stream.type for stream in container.streams]


def close(color: Sequence[float], score: float) -> bool:
    return bool(np.abs(np.array(color, float) - score_color(score)).max() < TOLERANCE)


def test_colors() -> None:
    assert [score_color(score) for score in (0, 0.5, 1)] == [REAL, UNDECIDED, FAKE]
    assert score_color(0.25) == tuple(round((a + b) / 2) for a, b in zip(REAL, UNDECIDED, strict=True))
    lightness = [float(np.dot(score_color(score), (0.299, 0.587, 0.114))) for score in np.linspace(0, 0.5, 11)]
    assert lightness == sorted(lightness)


@pytest.mark.parametrize(("width", "height"), [(240, 180), (241, 179), (2, 2)])
def test_frames_times_and_size(tmp_path: Path, width: int, height: int) -> None:
    path = sample_clips.write_clip(
        tmp_path / "clip.mkv", sample_clips.moving(astronaut(), FRAMES, width, height), "ffv1"
    )
    copy, outcome = annotate_one(path, tmp_path / "out", face(0, (0, 0, 1, 1), 0.5), seen=[(0, 0)])
    assert (outcome.status, outcome.message, outcome.counts) == ("ok", "", {"frames": FRAMES})
    assert copy == tmp_path / "out" / "clip.mkv.mp4"
    clip, original = Clip(copy), Clip(path)
    assert clip.total == FRAMES
    assert clip.times == pytest.approx(original.times, abs=1e-4)
    assert clip.duration == pytest.approx(original.duration, abs=1e-3)
    with av.open(str(copy)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (width + width % 2, height + height % 2)
        assert float(stream.duration * stream.time_base) == pytest.approx(FRAMES / RATE, abs=1e-3)
    last = FRAMES - 1
    [before], [after] = read_frames(original, [last]), read_frames(clip, [last])
    difference = np.abs(after.image[:height, :width].astype(float) - before.image)
    assert difference.mean() < 4
    assert np.abs(after.image.astype(float).mean((0, 1)) - before.image.mean((0, 1))).max() < 3


def test_variable_frame_rate(tmp_path: Path) -> None:
    frames = sample_clips.moving(astronaut(), 30, 128, 96)
    path = sample_clips.write_clip(tmp_path / "clip.mp4", frames, dropped={3, 4, 5, 11, 20, 21})
    copy, _ = annotate_one(path, tmp_path / "out")
    assert copy == tmp_path / "out" / "clip.mp4"
    times = Clip(path).times
    assert len({round(b - a, 3) for a, b in pairwise(times)}) > 1
    assert Clip(copy).times == pytest.approx(times, abs=1e-4)


def test_rotated_video_is_upright_without_a_display_matrix(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    patched(display_matrix(0, ONE, -ONE, 0), stored=np.rot90)(path)
    [upright, *_] = read_frames(Clip(path), [5])
    height, width = upright.image.shape[:2]
    assert width > height  # the stored frames are higher than wide
    copy, _ = annotate_one(path, tmp_path / "out", face(5, (40, 50, 100, 120), 1.0), seen=[(0.2, 0.2)])
    with av.open(str(copy)) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, frame.rotation) == (width, height, 0)
    [annotated] = read_frames(Clip(copy), [5])
    assert close(annotated.image[70:110, 39:42].reshape(-1, 3).mean(0), 1.0)
    assert np.abs(annotated.image[130:, 120:].astype(float) - upright.image[130:, 120:]).mean() < 4


def test_box_follows_the_person_and_has_the_color_of_the_score(tmp_path: Path) -> None:
    path = sample_clips.face_clip(tmp_path / "clip.mp4", FRAMES, 240, 180)
    scores = dict(zip(SAMPLED, (0.0, 0.5, 1.0, 1.0, 1.0), strict=True))
    # Frame 15 was sampled, but the person was not found in it.
    faces = [face(index, moving_box(index), score) for index, score in scores.items() if index != 15]
    copy, _ = annotate_one(path, tmp_path / "out", *faces, seen=[(0, 0.4), (0.8, 0.8)])
    originals = read_frames(Clip(path), range(FRAMES))
    for frame, original in zip(read_frames(Clip(copy), range(FRAMES)), originals, strict=True):
        index = frame.index
        if 10 < index < 20:
            assert np.abs(frame.image.astype(float) - original.image).mean() < 4
            assert np.abs(frame.image.astype(float) - original.image).max() < 90
            continue
        left, top, right, bottom = (round(side) for side in moving_box(index))
        score = float(np.interp(index, list(scores), list(scores.values())))
        outline = [
            frame.image[80:110, left - 1 : left + 2],
            frame.image[80:110, right - 1 : right + 2],
            frame.image[bottom - 1 : bottom + 2, left + 10 : right - 10],
        ]
        for line in outline:
            assert close(line.reshape(-1, 3).mean(0), score), index
        label = frame.image[top - 18 : top - 3, left : left + 40].reshape(-1, 3)
        assert close(np.median(label, axis=0), score), index
        assert label.max() - label.min() > 100  # the text


def test_labels_are_interpolated_over_time() -> None:
    faces = [face(0, (0, 0, 10, 10), 0.2), face(2, (30, 0, 40, 10), 0.8), face(1, (5, 5, 9, 9), 0.9, person=2)]
    people = [{"person": 1, "seen": [[0, 0.08]]}, {"person": 2, "seen": [[0.04, 0.04]]}]
    found = find_people({"people": people, "faces": faces})
    second, first = sorted(find_labels(found, [0, 0.02, 0.06], 1), key=lambda label: -label.person)
    assert first.box.tolist() == pytest.approx([10, 0, 20, 10])  # a third of the time, not half
    assert first.score == pytest.approx(0.4)
    assert (second.person, second.box.tolist(), second.score) == (2, [5, 5, 9, 9], 0.9)
    assert [label.person for label in find_labels(found, [0, 0.02, 0.06], 1)] == [1, 2]  # the highest score on top
    assert [label.person for label in find_labels(found, [0, 0.02, 0.06], 2)] == [1]
    assert not find_labels(found, [0], 0)  # the video has become shorter


def test_boxes_beyond_the_frame(tmp_path: Path) -> None:
    path = sample_clips.face_clip(tmp_path / "clip.mp4", 3, 96, 64)
    far = face(0, (-1e6, -1e6, 1e6, 1e6), 0.7)
    copy, outcome = annotate_one(path, tmp_path / "out", far, seen=[(0, 0)])
    assert outcome.status == "ok"
    assert Clip(copy).total == 3


@pytest.mark.parametrize(
    ("name", "codec"),
    [("aac.mp4", "aac"), ("adts.ts", "aac"), ("mp3.avi", "libmp3lame"), ("opus.mkv", "libopus"), ("flac.mkv", "flac")],
)
def test_sound_is_copied(tmp_path: Path, name: str, codec: str) -> None:
    path = sound_clip(tmp_path / name, codec)
    copy, outcome = annotate_one(path, tmp_path / "out")
    assert "sound" not in outcome.message
    original, copied = sound_packets(path), sound_packets(copy)
    if name.endswith(".ts"):  # every packet has a header there
        original = [(time - Clip(path).times[0], packet[7:]) for time, packet in original]
    assert len(original) - 2 <= len(copied) <= len(original)  # the sound ends with the video
    assert [packet for _, packet in copied] == [packet for _, packet in original[: len(copied)]]
    assert [time for time, _ in copied] == pytest.approx([time for time, _ in original[: len(copied)]], abs=2e-3)


@pytest.mark.parametrize(
    ("name", "codec", "channels"),
    [
        ("pcm.mov", "pcm_s16le", "stereo"),
        ("pcm.avi", "pcm_s16le", "mono"),
        ("mp2.ts", "mp2", "mono"),
    ],
)
def test_other_sound_becomes_aac(tmp_path: Path, name: str, codec: str, channels: str) -> None:
    path = sound_clip(tmp_path / name, codec, channels)
    copy, outcome = annotate_one(path, tmp_path / "out")
    assert outcome.message == ""
    name, start, samples = decode_sound(copy)
    assert name == "aac"
    assert start == pytest.approx(0, abs=0.1)
    assert len(samples) / 44100 == pytest.approx(2, abs=0.1)
    spectrum = np.abs(np.fft.rfft(samples[11025:77175]))
    assert np.argmax(spectrum) * 44100 / 66150 == pytest.approx(440, abs=1)
    assert samples[11025:77175].std() == pytest.approx(0.5 / 2**0.5, rel=0.1)


@pytest.mark.parametrize(("name", "codec"), [("clip.mp4", "aac"), ("clip.mov", "pcm_s16le")])
def test_sound_that_starts_late_stays_in_sync(tmp_path: Path, name: str, codec: str) -> None:
    copy, _ = annotate_one(sound_clip(tmp_path / name, codec, start=0.8), tmp_path / "out")
    _, start, samples = decode_sound(copy)
    assert start + np.argmax(np.abs(samples) > 0.1) / 44100 == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("codec", ["mp2", "libopus"])
def test_damaged_sound_costs_no_frame(tmp_path: Path, codec: str) -> None:
    copy, outcome = annotate_one(sound_clip(tmp_path / "noise.mkv", codec, damaged=True), tmp_path / "out")
    assert (outcome.status, Clip(copy).total) == ("ok", 50)
    if codec == "mp2":
        assert "sound: left out" in outcome.message
        assert streams_of(copy) == ["video"]


def test_sound_that_cannot_be_written_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sound_clip(tmp_path / "sound.mp4", "aac", frames=5)
    drawn = tmp_path / "drawn.json"
    drawn.write_text("{}")

    def fail(*_: object) -> None:
        raise av.error.InvalidDataError(1, "malformed")

    monkeypatch.setattr(annotate.Sound, "mux", fail)
    outcome = annotate.annotate(path, tmp_path / "copy.mp4", drawn)
    assert outcome.status == "ok"
    assert "without sound" in outcome.message
    assert streams_of(tmp_path / "copy.mp4") == ["video"]
    assert Clip(tmp_path / "copy.mp4").total == 5


def test_frame_that_h264_cannot_hold_costs_one_video(tmp_path: Path) -> None:
    path = sample_clips.write_clip(tmp_path / "wide.mkv", [np.zeros((2, 16500, 3), np.uint8)] * 2, "ffv1")
    _, outcome = annotate_one(path, tmp_path / "out")
    assert outcome.status == "failed"
    assert "cannot be encoded as H.264" in outcome.message


def test_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sample_clips.face_clip(tmp_path / "clip.mp4", 5, 96, 64)
    drawn = tmp_path / "drawn.json"
    drawn.write_text("{}")

    def fail(*_: object) -> None:
        raise av.error.OSError(28, "No space left on device")

    monkeypatch.setattr(annotate, "draw", fail)
    with pytest.raises(OutputError, match="No space left"):
        annotate.annotate(path, tmp_path / "copy.mp4", drawn)
    assert not list(tmp_path.glob("*copy*"))


def test_failures_and_resuming(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    videos = {
        "good.mp4": sample_clips.face_clip(tmp_path / "good.mp4", 5, 96, 64),
        "sub/none.mp4": sample_clips.faceless_clip(tmp_path / "none.mp4", 5, 96, 64),
        "broken.mp4": tmp_path / "broken.mp4",
        "skipped.mp4": tmp_path / "skipped.mp4",
        "n" * 247 + ".mp4": tmp_path / "good.mp4",
    }
    videos["broken.mp4"].write_bytes(b"not a video")
    records = [record(name) for name in videos]
    records[0] = record("good.mp4", [face(0, (20, 20, 50, 50), 0.9)], [(0, 0)])
    records[3]["status"] = "unreadable"

    def run() -> dict[str, int]:
        outcomes = annotate_videos(videos, records, folder, Limits(), 2)
        statuses = {name[:20]: outcome.status for name, outcome in outcomes.items()}
        expected = {"good.mp4": "ok", "sub/none.mp4": "ok", "broken.mp4": "unreadable", "n" * 20: "failed"}
        assert statuses == expected
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
        return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}

    first = run()
    assert {name for name in first if name.endswith(".mp4")} == {"good.mp4", "sub/none.mp4"}
    assert {path.name for path in folder.iterdir()} == {"good.mp4", "sub", "progress"}
    assert run() == first

    records[0] = record("good.mp4", [face(0, (20, 20, 50, 50), 0.1)], [(0, 0)])
    second = run()
    assert {name for name in first if second[name] != first[name]} == {"good.mp4", "progress/good.mp4.json"}

    (folder / "sub" / "none.mp4").unlink()
    third = run()
    assert {name for name in second if third[name] != second[name]} == {"sub/none.mp4"}


@pytest.mark.parametrize(
    ("names", "failed"),
    [
        (["a.mov", "a.mov.mp4/b.mp4"], {"a.mov.mp4/b.mp4"}),
        (["a.mp4", "a.mp4.json/b.mp4"], {"a.mp4.json/b.mp4"}),
        (["a.mp4", ".a.mp4.part/b.mp4"], {".a.mp4.part/b.mp4"}),
        (["progress/progress.jsonl/a.mp4"], {"progress/progress.jsonl/a.mp4"}),
        (["progress/a.mp4", "a.mp4", "x\ny\udcff.mp4"], set()),
    ],
)
def test_names_cost_one_video_at_most(tmp_path: Path, names: list[str], failed: set[str]) -> None:
    path = sample_clips.face_clip(tmp_path / "clip.mp4", 3, 96, 64)
    folder = tmp_path / "out"
    outcomes = annotate_videos(dict.fromkeys(names, path), [record(name) for name in names], folder, Limits(), 1)
    assert {name for name, outcome in outcomes.items() if outcome.status == "failed"} == failed
    copies = output_paths(folder, names)
    assert all(copies[name].is_file() for name in set(names) - failed)


def test_names_of_copies_differ() -> None:
    names = ["a.mp4", "a.mov", "a.mov.mp4", "b.MP4", "c/a.mov"]
    paths = output_paths(Path("out"), names)
    assert list(map(str, map(paths.get, names))) == [
        "out/a.mp4",
        "out/a.mov.mp4.mp4",
        "out/a.mov.mp4",
        "out/b.MP4.mp4",
        "out/c/a.mov.mp4",
    ]


def test_copies_replace_nothing_else(tmp_path: Path) -> None:
    """The folder must be new, empty or that of an earlier run, and no copy may have the path of another file."""
    videos = {"a.mp4": tmp_path / "videos/a.mp4"}
    (tmp_path / "videos").mkdir()
    check_folder(tmp_path / "new", videos, [])
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty", videos, [])
    videos["a.mp4"].touch()
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "videos", tmp_path / "file"):
        with pytest.raises(UserError, match=f"--annotate {folder}: "):
            check_folder(folder, videos, [])
    with pytest.raises(UserError, match="would replace"):
        check_folder(tmp_path / "new", videos, [tmp_path / "new/a.mp4"])
    earlier = tmp_path / "earlier"
    (earlier / "progress").mkdir(parents=True)
    (earlier / "progress/progress.jsonl").touch()
    check_folder(earlier, videos, [])
    (earlier / "a.mp4").touch()
    with pytest.raises(UserError, match="would replace"):
        check_folder(earlier, {"a.mp4": earlier / "a.mp4"}, [])
