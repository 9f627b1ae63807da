"""Crops that stage 1 keeps: those that stage 2 would make, used only while they are valid."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from preprocessing import kept_crops, sample_clips
from preprocessing.boxes import face_numbers
from preprocessing.detect_original_faces import detect
from preprocessing.extract_crops import extract
from preprocessing.images import list_images, read_image
from preprocessing.kept_crops import KeptCrops, take
from preprocessing.video import Frame
from tests.support.datasets import portrait_frames


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Paths:
    def __init__(self, folder: Path):
        self.clip, self.boxes = folder / "a.mp4", folder / "a.json"
        self.kept, self.crops = folder / "kept", folder / "crops"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A clip after stage 1."""
    paths = Paths(tmp_path)
    sample_clips.write_clip(paths.clip, portrait_frames(21, 320, 240))
    assert detect(paths.clip, paths.boxes, "auto", "cpu", kept=paths.kept).status == "ok"
    return paths


def test_kept_crops_are_those_of_stage_2(paths: Paths, tmp_path: Path):
    decoded = tmp_path / "decoded"
    expected = extract(paths.clip, paths.boxes, None, decoded)
    assert expected.counts == {"frames": 3, "crops": 3}
    status = paths.clip.stat()
    paths.clip.write_bytes(bytes(status.st_size))  # not a video, so it cannot be decoded again
    os.utime(paths.clip, ns=(status.st_mtime_ns, status.st_mtime_ns))
    paths.crops.mkdir()
    (paths.crops / "old.png").touch()
    assert extract(paths.clip, paths.boxes, None, paths.crops, kept=paths.kept) == expected
    assert contents(paths.crops) == contents(decoded)
    assert not paths.kept.exists()


@pytest.mark.parametrize("change", ["clip", "boxes", "source", "limit"])
def test_kept_crops_of_something_else_are_not_used(paths: Paths, change: str):
    (paths.kept / "990_0.png").touch()  # would show that they are used
    if change == "source":
        (paths.kept / kept_crops.SOURCE).write_text("[")
    elif change != "limit":
        os.utime({"clip": paths.clip, "boxes": paths.boxes}[change])
    limit = 10**6 if change == "limit" else 36 * 10**6
    assert extract(paths.clip, paths.boxes, None, paths.crops, limit, paths.kept).counts["crops"] == 3
    assert {file.frame for file in list_images(paths.crops)} == {0, 10, 20}
    assert not paths.kept.exists()


def test_crops_of_damaged_and_long_clips_are_not_kept(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(paths.clip.read_bytes()[:-2000])
    assert detect(damaged, tmp_path / "b.json", "auto", "cpu", kept=tmp_path / "b").message
    monkeypatch.setattr(kept_crops, "MAX_BYTES", 10_000)
    assert detect(paths.clip, tmp_path / "c.json", "auto", "cpu", kept=tmp_path / "c").status == "ok"
    assert not (tmp_path / "b").exists()
    assert not (tmp_path / "c").exists()


def test_faces_keep_their_numbers(tmp_path: Path):
    """The second face becomes the larger one; a third box is outside of the frame."""
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    left, right, outside = [10.0, 10, 40, 40], [110.0, 10, 140, 43], [300.0, 10, 340, 40]
    boxes = {0: [left, right], 10: [right, left, outside]}
    assert face_numbers(boxes) == {0: [0, 1], 10: [1, 0, 2]}
    crops = KeptCrops()
    for frame, found in boxes.items():
        crops.add(Frame(frame, image), found)
    crops.write(tmp_path / "kept", boxes, {})
    assert take(tmp_path / "kept", {}, tmp_path / "crops") == 4
    for frame in boxes:
        np.testing.assert_array_equal(read_image(tmp_path / f"crops/{frame}_0.png"), image[:50, :50])
        np.testing.assert_array_equal(read_image(tmp_path / f"crops/{frame}_1.png"), image[:54, 100:150])
