"""compress_videos and extract_images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing import compress_videos, sample_clips
from preprocessing.compress_videos import RATE_FACTORS, compress, rate_factor
from preprocessing.dataset import read_dataset
from preprocessing.video import Clip, iter_frames, read_frames
from preprocessing.x264 import CPU_AVX_512F, reproducible_options
from tests.support.datasets import REAL, fake_of, portrait_frames, records, run_stage, write_part

CPU_AVX2 = 11  # cv::CpuFeatures


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("extras")
    names = {"a.mp4": REAL, "b.mp4": REAL, "d.mp4": fake_of("a.mp4"), "odd.webm": REAL, "bad.mp4": REAL}
    folder = write_part(root, 2, names)
    frames = portrait_frames(31, 320, 240)
    for name in ("a.mp4", "b.mp4", "d.mp4"):
        sample_clips.write_clip(folder / name, frames, dropped=[13])
    sample_clips.write_clip(folder / "odd.webm", (frame[:141, :201] for frame in frames[:11]), "libvpx-vp9")
    (folder / "bad.mp4").write_bytes(b"bad")
    return root


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return cv2.PSNR(np.ascontiguousarray(first), np.ascontiguousarray(second))


def test_compressed_dataset(root: Path):
    finished = run_stage("compress_videos", root)
    assert finished.returncode == 3
    done = records(root, "compressed")
    assert done.pop("bad")["status"] == "unreadable"
    assert {record["status"] for record in done.values()} == {"ok"}, done
    for clip, record in done.items():
        assert record["counts"] == {"frames": 11 if clip == "odd" else 30, f"crf_{rate_factor(clip, 777)}": 1}
    assert read_dataset(root / "compressed").videos.keys() == read_dataset(root).videos.keys()
    for name in ("a.mp4", "b.mp4", "d.mp4", "odd.webm"):
        source, result = (Clip(place / "dfdc_train_part_2" / name) for place in (root, root / "compressed"))
        # x264 writes its settings into the stream.
        assert f"crf={rate_factor(Path(name).stem, 777)}.0".encode() in Path(result.path).read_bytes()
        np.testing.assert_allclose(result.times, source.times, atol=1e-4)
        for before, after in zip(iter_frames(source, range(31)), iter_frames(result, range(31)), strict=True):
            height, width = after.image.shape[:2]
            assert (height, width) == tuple(side // 2 * 2 for side in before.image.shape[:2])
            assert psnr(before.image[:height, :width], after.image) > 25
    assert not (root / "compressed/dfdc_train_part_2/bad.mp4").exists()


def test_compression_is_reproducible(root: Path, tmp_path: Path):
    """x264's AVX-512 code encodes the same frames to different bytes on every run."""
    results = set()
    for number in range(4):
        compress(root / "dfdc_train_part_2/a.mp4", tmp_path / f"{number}.mp4", 28)
        results.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(results) == 1


@pytest.mark.parametrize("avx512", [True, False])
def test_avx512_is_not_used(monkeypatch: pytest.MonkeyPatch, avx512: bool):
    supported = {CPU_AVX2, CPU_AVX_512F} if avx512 else {CPU_AVX2}
    monkeypatch.setattr(cv2, "checkHardwareSupport", supported.__contains__)
    expected = {"crf": "23", "threads": "1"} | ({"x264-params": "asm=avx2"} if avx512 else {})
    assert reproducible_options(23) == expected


@pytest.mark.skipif(
    not cv2.checkHardwareSupport(CPU_AVX2) or cv2.checkHardwareSupport(CPU_AVX_512F),
    reason="needs a CPU with AVX2 and without AVX-512",
)
def test_without_avx512_the_bytes_are_those_of_an_avx2_cpu(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clip = root / "dfdc_train_part_2/a.mp4"
    compress(clip, tmp_path / "automatic.mp4", 28)
    options = {**reproducible_options(28), "x264-params": "asm=avx2"}
    monkeypatch.setattr(compress_videos, "reproducible_options", lambda _: options)
    compress(clip, tmp_path / "avx2.mp4", 28)
    assert (tmp_path / "automatic.mp4").read_bytes() == (tmp_path / "avx2.mp4").read_bytes()


def test_rate_factors_are_uniform_and_seeded():
    names = [f"clip{number}" for number in range(600)]
    sampled = [rate_factor(name, 777) for name in names]
    assert all(150 < sampled.count(factor) < 250 for factor in RATE_FACTORS)  # 200 expected
    assert sampled == [rate_factor(name, 777) for name in names]
    assert sampled != [rate_factor(name, 778) for name in names]


def test_extracted_images(root: Path):
    assert run_stage("extract_images", root, "--images-dir", "frames").returncode == 3
    assert {path.name for path in (root / "frames").iterdir()} == {"a", "b", "d", "odd"}
    frames = read_frames(Clip(root / "dfdc_train_part_2/a.mp4"), range(0, 30, 10))
    assert {path.name for path in (root / "frames/a").iterdir()} == {f"{frame.index}.jpg" for frame in frames}
    for frame in frames:
        image = cv2.imread(str(root / "frames/a" / f"{frame.index}.jpg"))
        assert psnr(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), frame.image) > 32
