"""compress_videos and extract_images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing import sample_clips
from preprocessing.compress_videos import RATE_FACTORS, rate_factor
from preprocessing.dataset import read_dataset
from preprocessing.video import Clip, iter_frames, read_frames
from tests.support.datasets import REAL, fake_of, part, portrait, records, stage


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("extras")
    names = {"a.mp4": REAL, "b.mp4": REAL, "d.mp4": fake_of("a.mp4"), "odd.webm": REAL, "bad.mp4": REAL}
    folder = part(root, 2, names)
    frames = portrait(31, 320, 240)
    for name in ("a.mp4", "b.mp4", "d.mp4"):
        sample_clips.write_clip(folder / name, frames, dropped=[13])
    sample_clips.write_clip(folder / "odd.webm", (frame[:141, :201] for frame in frames[:11]), "libvpx-vp9")
    (folder / "bad.mp4").write_bytes(b"bad")
    return root


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return cv2.PSNR(np.ascontiguousarray(first), np.ascontiguousarray(second))


def test_compressed(root: Path):
    finished = stage("compress_videos", root)
    assert finished.returncode == 3
    done = records(root, "compressed")
    assert done.pop("bad")["status"] == "unreadable"
    assert {record["status"] for record in done.values()} == {"ok"}, done
    for clip, record in done.items():
        assert record["counts"] == {"frames": 11 if clip == "odd" else 30, f"crf_{rate_factor(clip, 777)}": 1}
    assert read_dataset(root / "compressed").videos.keys() == read_dataset(root).videos.keys()
    for name in ("a.mp4", "b.mp4", "d.mp4", "odd.webm"):
        source, result = (Clip(place / "dfdc_train_part_2" / name) for place in (root, root / "compressed"))
        # x264 writes its settings into the stream
        assert f"crf={rate_factor(Path(name).stem, 777)}.0".encode() in Path(result.path).read_bytes()
        np.testing.assert_allclose(result.times, source.times, atol=1e-4)
        for before, after in zip(iter_frames(source, range(31)), iter_frames(result, range(31)), strict=True):
            height, width = after.image.shape[:2]
            assert (height, width) == tuple(side // 2 * 2 for side in before.image.shape[:2])
            assert psnr(before.image[:height, :width], after.image) > 25
    assert not (root / "compressed/dfdc_train_part_2/bad.mp4").exists()


def test_rate_factors():
    names = [f"clip{number}" for number in range(600)]
    drawn = [rate_factor(name, 777) for name in names]
    assert all(150 < drawn.count(factor) < 250 for factor in RATE_FACTORS)  # 200 are expected
    assert drawn == [rate_factor(name, 777) for name in names]
    assert drawn != [rate_factor(name, 778) for name in names]


def test_images(root: Path):
    assert stage("extract_images", root, "--images-dir", "frames").returncode == 3
    assert {path.name for path in (root / "frames").iterdir()} == {"a", "b", "d", "odd"}
    frames = read_frames(Clip(root / "dfdc_train_part_2/a.mp4"), range(0, 30, 10))
    assert {path.name for path in (root / "frames/a").iterdir()} == {f"{frame.index}.jpg" for frame in frames}
    for frame in frames:
        image = cv2.imread(str(root / "frames/a" / f"{frame.index}.jpg"))
        assert psnr(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), frame.image) > 32
