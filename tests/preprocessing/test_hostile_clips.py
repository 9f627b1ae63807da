"""Clips that an adversary may have made: none hides its frames, reads other files, hangs or takes all memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from common import watchdog
from common.local_executor import run_local
from common.outcome import Job, Outcome
from common.watchdog import TimeLimits
from preprocessing import container
from preprocessing.boxes import read_boxes
from preprocessing.detect_original_faces import detect
from preprocessing.extract_images import extract
from preprocessing.layout import DataRoot
from preprocessing.orientation import is_meaningful, transform
from preprocessing.video import Clip, Frame, VideoError, chunk_frames, iter_frames, read_frames, sample_frames
from tests.support.datasets import REAL, fake_of, records, run_stage, statuses, write_part
from tests.support.hostile_clips import FRAMES, HOSTILE, encoded, jpegs, portrait

READABLE = {name: clip for name, clip in HOSTILE.items() if clip.status == "ok"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the hostile clips."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, clip in HOSTILE.items():
        clip.make(folder / name)
    return folder


def sampled(path: Path) -> list[Frame]:
    return sample_frames(Clip(path), 2 * FRAMES)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    return cv2.PSNR(np.ascontiguousarray(image), np.ascontiguousarray(reference))


@pytest.mark.parametrize("name", HOSTILE)
def test_status(folder: Path, name: str):
    if HOSTILE[name].status == "ok":
        assert sampled(folder / name)
        return
    with pytest.raises(VideoError) as error:
        sampled(folder / name)
    assert error.value.status == HOSTILE[name].status
    assert str(folder / name) in str(error.value)
    assert ("--max-pixels" in str(error.value)) == (error.value.status == "too_large")


@pytest.mark.parametrize("name", READABLE)
def test_all_frames_are_read_as_a_player_shows_them(folder: Path, name: str):
    clip = Clip(folder / name)
    frames = read_frames(clip, range(clip.total))
    if HOSTILE[name].frames:
        assert len(frames) == clip.total == HOSTILE[name].frames
    repeated = HOSTILE[name].frames == FRAMES + 1
    for frame in frames:
        number = max(0, frame.index - repeated) % FRAMES
        assert psnr(frame.image, portrait()[number]) > 30  # neighboring frames: 23
    assert HOSTILE[name].note in "; ".join(clip.notes)
    assert bool(HOSTILE[name].note) == bool(clip.notes)


@pytest.mark.parametrize("name", READABLE)
def test_times_are_sane(folder: Path, name: str):
    clip = Clip(folder / name)
    assert len(clip.times) == clip.total
    assert np.isfinite(clip.times).all()
    assert (np.diff(clip.times) > 0).all()
    assert 1 <= clip.rate <= 1000
    assert clip.total / 1000 <= clip.duration <= clip.total


def test_ordinary_clips_have_no_notes(face_video: Path):
    clip = Clip(face_video)
    sample_frames(clip, 32)
    assert clip.notes == []


def test_mirrors_and_rotations():
    """The eight ways to show a picture without tilting it, at any scale."""
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    turn = np.array([[0, -1], [1, 0]])  # counterclockwise: a step to the right, (1, 0), becomes one up, (0, -1)
    for turns in range(4):
        for mirror in (1, -1):
            matrix = np.zeros((3, 3), np.int32)
            matrix[:2, :2] = np.diag([mirror, 1]) @ np.linalg.matrix_power(turn, turns)
            for scale in (1, 65536, 100000):
                assert is_meaningful(scale * matrix)
                shown = transform(image, scale * matrix)
                np.testing.assert_array_equal(shown, np.rot90(image[:, ::mirror], turns))


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 5, 0, 0), (1, 1, 0, 0), (7, 0, 5, 7), (3, 3, 3, 3)])
def test_meaningless_matrices(matrix: tuple[int, ...]):
    coefficients = np.zeros((3, 3), np.int32)
    coefficients[:2, :2] = np.reshape(matrix, (2, 2))
    assert not is_meaningful(coefficients)


def test_unknown_side_data_does_not_hide_the_display_matrix():
    """PyAV refuses to list any side data of a frame with a kind that it does not know."""
    from av.sidedata.sidedata import Type

    assert Type(6) is Type.DISPLAYMATRIX
    assert Type(10**6) is not Type.DISPLAYMATRIX


def encode(codec: str, side: int, options: dict[str, str]) -> Iterator[av.Packet]:
    """Encode four gray squares; the stream repeats its headers."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = side, side, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.options = Fraction(1, 25), Fraction(25), options
    for number in range(4):
        frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), 50 * number, np.uint8), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        yield from encoder.encode(frame)
    yield from encoder.encode(None)
    if hasattr(os, "sched_setscheduler"):  # for root, SVT-AV1 turns on real-time scheduling, which starves the rest
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("h264.ts", "libx264", {"bf": "0"}),
        ("h264.mkv", "libx264", {"bf": "0"}),
        ("hevc.mkv", "libx265", {"x265-params": "log-level=none:bframes=0"}),
        ("vp9.webm", "libvpx-vp9", {}),
        ("av1.mkv", "libsvtav1", {"preset": "10"}),
        ("mpeg4.avi", "mpeg4", {}),
        ("mpeg2.ts", "mpeg2video", {}),
    ],
)
def test_larger_frames_later_in_the_stream(tmp_path: Path, name: str, codec: str, options: dict[str, str]):
    """The header and the first frames are small."""
    path = tmp_path / name
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number, packet in enumerate([*encode(codec, 64, options), *encode(codec, 512, options)]):
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), number, number
            target.mux(packet)
    sizes = {frame.image.shape for frame in sample_frames(Clip(path), 32)}
    assert sizes == {(64, 64, 3), (512, 512, 3)}
    with pytest.raises(VideoError) as error:
        sample_frames(Clip(path, 64 * 64), 32)
    assert error.value.status == "too_large"


def test_limit_of_the_frame_size(tmp_path: Path):
    jpegs(640, 640)(tmp_path / "a.mov")
    assert len(sample_frames(Clip(tmp_path / "a.mov", 640 * 640), 32)) == 2
    for limit in (640 * 640 - 1, 1):
        with pytest.raises(VideoError, match="--max-pixels") as error:
            sample_frames(Clip(tmp_path / "a.mov", limit), 32)
        assert error.value.status == "too_large"
    assert len(sample_frames(Clip(tmp_path / "a.mov", 10**20), 32)) == 2


def test_chunks_of_frames():
    images = [np.zeros((10, 10, 3), np.uint8)] * 7 + [np.zeros((100, 100, 3), np.uint8)] * 2
    frames = [Frame(index, image) for index, image in enumerate(images)]

    def lengths(*limits: int) -> list[int]:
        chunks = list(chunk_frames(iter(frames), *limits))
        assert [frame for chunk in chunks for frame in chunk] == frames
        return list(map(len, chunks))

    assert lengths(4) == [4, 4, 1]
    assert lengths(100) == [9]
    assert lengths(100, 600) == [2, 2, 2, 1, 1, 1]
    assert lengths(100, 299) == [1] * 9
    assert list(chunk_frames([], 4)) == []


@contextmanager
def recorded_calls() -> Iterator[list[str]]:
    """Record the native calls that this process marks."""

    class Recorder(list):
        def start(self) -> None:
            self.append("start")

        def stop(self) -> None:
            self.append("stop")

    calls = Recorder()
    watchdog.watch_this_process(calls)
    try:
        yield calls
    finally:
        watchdog._watchdog = None


def test_native_calls_are_marked(face_video: Path, monkeypatch: pytest.MonkeyPatch):
    opened = av.open
    with recorded_calls() as calls:

        def open_watched(*args, **kwargs):
            assert calls[-1] == "start"
            return opened(*args, **kwargs)

        monkeypatch.setattr(av, "open", open_watched)
        frames = sample_frames(Clip(face_video), 40)
    assert calls[::2] == ["start"] * (len(calls) // 2)
    assert calls[1::2] == ["stop"] * (len(calls) // 2)
    # two passes that open the file and read each packet, then each frame is decoded and converted
    assert len(calls) / 2 >= 2 * (1 + len(frames)) + 2 * len(frames)


def read(path: Path, _output: Path) -> Outcome:
    """Read a clip; the one named `endless` never opens."""
    if path.stem == "endless":
        container.av.open = lambda *_, **__: threading.Event().wait()
    sample_frames(Clip(path), 2)
    return Outcome("ok")


def test_a_decoder_that_makes_no_progress_costs_one_clip(face_video: Path, tmp_path: Path):
    names = ("a", "endless", "b", "c", "d")
    for name in names:
        (tmp_path / f"{name}.mp4").symlink_to(face_video)
    paths = [tmp_path / f"{name}.mp4" for name in names]
    todo = [Job(path.stem, (path,), tmp_path / "out", (path, tmp_path / "out")) for path in paths]
    results = list(run_local(read, todo, 2, TimeLimits(stall=1)))
    outcomes = {job.clip: outcome for job, outcome in results}
    assert [job.clip for job, _ in results].index("endless") > 0  # the others go on meanwhile
    assert "--timeout" in outcomes["endless"].message
    assert {clip: outcome.status for clip, outcome in outcomes.items()} == {
        **dict.fromkeys("abcd", "ok"),
        "endless": "unreadable",
    }


def test_stages_record_a_status_for_each_clip(tmp_path: Path):
    part = write_part(tmp_path, 0, dict.fromkeys(HOSTILE, REAL))
    for name, clip in HOSTILE.items():
        clip.make(part / name)
    expected = {Path(name).stem: clip for name, clip in HOSTILE.items()}
    outputs = {"detect_original_faces": "bboxes", "extract_images": "images", "compress_videos": "compressed"}
    for stage, output in outputs.items():
        finished = run_stage(stage, tmp_path, "--workers", "2", "--timeout", "20")
        assert finished.returncode == 3, finished.stderr
        assert "Traceback" not in finished.stderr
        assert statuses(tmp_path, output) == {clip: hostile.status for clip, hostile in expected.items()}
        for clip, record in records(tmp_path, output).items():
            assert expected[clip].note in record["message"], clip
    root = DataRoot(tmp_path)
    for clip, hostile in expected.items():
        if hostile.frames:
            boxes = read_boxes(root.boxes(clip))
            assert list(boxes) == list(range(0, hostile.frames, 10)), clip
    finished = run_stage("extract_crops", tmp_path, "--workers", "2")
    assert finished.returncode == 3
    assert "Traceback" not in finished.stderr
    done = statuses(tmp_path, "crops")
    assert {done[clip] for clip, hostile in expected.items() if hostile.status == "ok"} == {"ok"}


def test_large_clips_are_tried_again_with_a_higher_limit(tmp_path: Path):
    part = write_part(tmp_path, 0, {"a.mov": REAL, "b.mp4": REAL})
    jpegs(640, 640)(part / "a.mov")
    (part / "b.mp4").write_bytes(encoded())
    arguments = ("extract_images", tmp_path, "--workers", "1")
    assert run_stage(*arguments, "--max-pixels", "100000").returncode == 3
    assert statuses(tmp_path, "images") == {"a": "too_large", "b": "ok"}
    before = (tmp_path / "images/b").stat().st_mtime_ns
    assert run_stage(*arguments, "--retry-failed").returncode == 0
    assert statuses(tmp_path, "images") == {"a": "ok", "b": "ok"}
    assert (tmp_path / "images/b").stat().st_mtime_ns == before


def test_notes_are_recorded(folder: Path, tmp_path: Path):
    outcome = detect(folder / "decoy_first.mp4", tmp_path / "boxes.json", "auto", "cpu")
    assert (outcome.status, outcome.counts["faces"]) == ("ok", 3)
    assert "2 video streams" in outcome.message
    assert "display matrix" in extract(folder / "zero_matrix.mp4", tmp_path / "images").message


def test_pipes_and_links_in_a_dataset(tmp_path: Path):
    """A pipe named metadata.json, and symbolic links to themselves in place of folders."""
    part = write_part(tmp_path, 0, {"a.mp4": REAL})
    (part / "a.mp4").write_bytes(encoded())
    (tmp_path / "dfdc_train_part_1").mkdir()
    os.mkfifo(tmp_path / "dfdc_train_part_1/metadata.json")
    os.mkfifo(tmp_path / "split.json")
    for name in ("dfdc_train_part_2", "loop.json"):
        (tmp_path / name).symlink_to(name)
    for stage in ("extract_images", "compress_videos"):
        finished = run_stage(stage, tmp_path, "--workers", "1")
        assert finished.returncode == 0, finished.stderr
        assert "metadata files that cannot be read (2): dfdc_train_part_1/metadata.json" in finished.stderr
    (tmp_path / "crops").symlink_to("crops")
    finished = run_stage("extract_crops", tmp_path, "--workers", "1")
    assert finished.returncode == 2
    assert str(tmp_path / "crops") in finished.stderr
    assert "Traceback" not in finished.stderr


def test_pipes_in_place_of_what_a_stage_reads(tmp_path: Path):
    part = write_part(tmp_path, 0, {"a.mp4": REAL, "b.mp4": REAL, "c.mp4": fake_of("a.mp4")})
    for name in "abc":
        (part / f"{name}.mp4").write_bytes(encoded())

    def replace_with_pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    assert run_stage("detect_original_faces", tmp_path).returncode == 0
    replace_with_pipe(tmp_path / "bboxes/b.json")
    finished = run_stage("extract_crops", tmp_path)
    assert finished.returncode == 3
    assert str(tmp_path / "bboxes/b.json") in finished.stderr
    assert statuses(tmp_path, "crops") == {"a": "ok", "b": "no_boxes", "c": "ok"}
    replace_with_pipe(tmp_path / "crops/a/0_0.png")
    for stage in ("generate_landmarks", "generate_diffs"):
        finished = run_stage(stage, tmp_path)
        assert finished.returncode == 3
        assert str(tmp_path / "crops/a/0_0.png") in finished.stderr


def test_iterating_a_clip_that_is_deleted(tmp_path: Path):
    path = tmp_path / "a.mp4"
    path.write_bytes(encoded())
    clip = Clip(path)
    path.unlink()
    with pytest.raises(VideoError) as error:
        list(iter_frames(clip, range(3)))
    assert error.value.status == "missing"
