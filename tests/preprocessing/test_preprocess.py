"""The five stages through preprocess_data.sh, on real clips, good ones and bad ones."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from preprocessing import sample_clips
from tests.support.datasets import (
    REAL,
    ROOT,
    STAGES,
    crowd,
    fake_of,
    part,
    portrait,
    preprocess,
    records,
    stage,
    swapped,
    tree,
)

FRAMES = 331  # the published code dropped what comes after frame 310
SCALE = ("--detector-scale", "0.5")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, three faces, a clip without a face, and all kinds of bad clips."""
    root = tmp_path_factory.mktemp("dfdc")
    folder = part(root, 0, {"aa.mp4": REAL, "bb.mp4": fake_of("aa.mp4"), "empty.mp4": REAL, "gone.mp4": REAL})
    frames = portrait(FRAMES)
    sample_clips.write_clip(folder / "aa.mp4", frames)
    sample_clips.write_clip(folder / "bb.mp4", swapped(frames))
    (folder / "empty.mp4").touch()
    entries = {"three.mp4": REAL, "cup.mp4": REAL, "text.mp4": REAL, "orphan.mp4": fake_of("nowhere.mp4")}
    folder = part(root, 4, {**entries, "late.mp4": fake_of("text.mp4")})
    sample_clips.write_clip(folder / "three.mp4", crowd(31))
    sample_clips.faceless_clip(folder / "cup.mp4", 21)
    (folder / "text.mp4").write_text("no video\n" * 100)
    sample_clips.face_clip(folder / "orphan.mp4", 11)
    sample_clips.face_clip(folder / "late.mp4", 11)
    return root


@pytest.fixture(scope="module")
def done(root: Path) -> subprocess.CompletedProcess:
    return preprocess(root, *SCALE, "--workers", "2", "--preview", "6")


@pytest.fixture(scope="module")
def plain(root: Path, done: subprocess.CompletedProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good pair and the three faces by the plain procedure of benchmarks/preprocess.py, another code."""
    assert done.returncode == 3
    place = tmp_path_factory.mktemp("plain")
    pair = {"aa.mp4": REAL, "bb.mp4": fake_of("aa.mp4")}
    for number, metadata in ((0, pair), (4, {"three.mp4": REAL})):
        folder = part(place, number, metadata)
        for name in metadata:
            shutil.copy(root / folder.name / name, folder)
    for name in STAGES:
        command = [sys.executable, "-m", "benchmarks.preprocess", "--root-dir", str(place), "--plain", name]
        subprocess.run(command, cwd=ROOT, check=True)
    return place


def statuses(root: Path, name: str) -> dict[str, str]:
    return {clip: record["status"] for clip, record in sorted(records(root, name).items())}


def image(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_statuses(root: Path, done: subprocess.CompletedProcess):
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    bad = {"empty": "unreadable", "gone": "missing", "text": "unreadable"}
    assert statuses(root, "bboxes") == {"aa": "ok", "cup": "no_face", "three": "ok", **bad}
    assert statuses(root, "crops") == {
        **{"aa": "ok", "bb": "ok", "cup": "no_face", "three": "ok", "orphan": "no_original", "late": "no_boxes"},
        **dict.fromkeys(bad, "unreadable"),
        "gone": "missing",
    }
    lost = dict.fromkeys(bad, "no_boxes")
    assert statuses(root, "landmarks") == {"aa": "ok", "cup": "no_face", "three": "ok", **lost}
    assert statuses(root, "diffs") == {"bb": "ok", "late": "no_crops", "orphan": "no_original"}
    message = records(root, "bboxes")["empty"]["message"]
    assert "empty.mp4" in message
    assert "0 bytes" in message
    assert "detect_original_faces" in records(root, "crops")["late"]["message"]
    assert "1 fakes without a real original in the dataset: orphan (of nowhere)" in done.stderr
    assert "1 videos listed, but not there: dfdc_train_part_0/gone.mp4" in done.stderr
    for name in STAGES:
        assert f"== {name}" in done.stdout
    assert "--retry-failed" in done.stderr


def test_tree(root: Path, done: subprocess.CompletedProcess):
    """What is there, and nothing else: no temporary files, no folder of a clip that failed."""
    assert done.returncode == 3
    used = range(0, FRAMES, 10)
    assert {path.name for path in root.iterdir()} == {
        *("bboxes", "crops", "landmarks", "diffs", "folds.csv", "previews", "progress"),
        *("dfdc_train_part_0", "dfdc_train_part_4"),
    }
    assert {path.name for path in (root / "bboxes").iterdir()} == {"aa.json", "cup.json", "three.json"}
    assert {path.name for path in (root / "crops").iterdir()} == {"aa", "bb", "cup", "three"}
    names = {"crops/aa": ".png", "crops/bb": ".png", "landmarks/aa": ".npy", "diffs/bb": "_diff.png"}
    for clip, suffix in names.items():
        assert {path.name for path in (root / clip).iterdir()} == {f"{frame}_0{suffix}" for frame in used}
    assert json.loads((root / "bboxes/cup.json").read_text()) == {"0": None, "10": None, "20": None}
    # from the third face on, too
    assert {path.stem for path in (root / "landmarks/three").iterdir()} == {
        f"{frame}_{face}" for frame in (0, 10, 20, 30) for face in (0, 1, 2)
    }
    assert Counter((row["video"], row["label"], row["original"], row["fold"]) for row in rows(root / "folds.csv")) == {
        ("aa", "0", "aa", "0"): len(used),
        ("bb", "1", "aa", "0"): len(used),
        ("three", "0", "three", "1"): 12,
    }
    assert {row["frame"] for row in rows(root / "folds.csv") if row["video"] == "bb"} == {str(frame) for frame in used}
    assert all(row["file"].startswith(f"{row['frame']}_") for row in rows(root / "folds.csv"))


def test_the_plain_procedures_results(root: Path, plain: Path):
    for clip in ("aa", "three"):
        theirs = json.loads((plain / f"bboxes/{clip}.json").read_text())
        ours = json.loads((root / f"bboxes/{clip}.json").read_text())
        assert list(ours) == [frame for frame in theirs if int(frame) % 10 == 0]
        for frame, boxes in ours.items():
            np.testing.assert_allclose(boxes, theirs[frame], atol=1)
    names = [(clip, path.name) for clip in ("aa", "bb") for path in (plain / "crops" / clip).iterdir()]
    assert len(names) == 2 * len(range(0, FRAMES, 10))
    off = []
    for clip, name in names:
        expected, crop = (image(place / "crops" / clip / name) for place in (plain, root))
        np.testing.assert_allclose(crop.shape, expected.shape, atol=2)
        np.testing.assert_allclose(crop.mean((0, 1)), expected.mean((0, 1)), atol=1)
    for path in (plain / "landmarks/aa").iterdir():
        points = np.load(root / "landmarks/aa" / path.name)
        assert (points.shape, points.dtype) == ((5, 2), np.int16)
        off.append(np.abs(points - np.load(path)).max(axis=1))
    assert len(off) > 30
    assert np.mean(np.concatenate(off) <= 2) >= 0.95
    for path in (plain / "diffs/bb").iterdir():
        mask = image(root / "diffs/bb" / path.name)
        assert mask.ndim == 2
        assert abs(mask.mean() - image(path).mean()) <= 1
        assert 0 < (mask > 20).mean() < 0.6  # the mouth differs, the rest does not


def test_a_face_keeps_its_number(root: Path, done: subprocess.CompletedProcess):
    """Three equal pictures in a row, of which the first shrinks below the second."""
    assert done.returncode == 3
    boxes = json.loads((root / "bboxes/three.json").read_text())
    by_size = {frame: [box[0] for box in found] for frame, found in boxes.items()}
    assert by_size["0"] == sorted(by_size["0"])
    assert by_size["30"] != sorted(by_size["30"])  # by size alone the numbers would change
    widths = {
        face: [image(root / f"crops/three/{frame}_{face}.png").shape[1] for frame in (0, 10, 20, 30)]
        for face in range(3)
    }
    assert widths[0] == sorted(widths[0], reverse=True)
    assert widths[0][0] > 1.3 * widths[0][-1]
    assert widths[1] == sorted(widths[1])
    assert widths[1][-1] > 1.3 * widths[1][0]


def test_landmarks_are_where_they_belong(root: Path, done: subprocess.CompletedProcess):
    assert done.returncode == 3
    for path in (*(root / "landmarks/aa").iterdir(), *(root / "landmarks/three").iterdir()):
        left_eye, right_eye, nose, left_mouth, right_mouth = np.load(path).tolist()
        assert left_eye[0] < nose[0] < right_eye[0]
        assert left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_previews(root: Path, done: subprocess.CompletedProcess):
    assert done.returncode == 3
    cell, caption = 180, 16
    for name, width in (("crops", 6), ("landmarks", 6), ("diffs", 9)):
        sheet = image(root / "previews" / f"{name}.png")
        assert sheet.shape == ((cell + caption) * (6 * (3 if name == "diffs" else 1) // width), width * cell, 3)
        for left in range(0, sheet.shape[1], cell):  # each cell holds a picture
            assert sheet[caption : caption + cell, left : left + cell].std() > 5


def test_twice_changes_nothing(root: Path, done: subprocess.CompletedProcess):
    assert done.returncode == 3
    before = tree(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix in (".json", ".npy")}
    again = preprocess(root, *SCALE)
    assert again.returncode == 3  # what failed still stands
    assert tree(root) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_mended_clips_are_taken_up(root: Path, done: subprocess.CompletedProcess, tmp_path: Path):
    """A clip that has come, or that is another now, is done; so is what was deleted. The rest stays."""
    assert done.returncode == 3
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    for name in ("dfdc_train_part_0/empty.mp4", "dfdc_train_part_0/gone.mp4", "dfdc_train_part_4/text.mp4"):
        sample_clips.face_clip(copy / name, 11)
    (copy / "bboxes/three.json").unlink()
    shutil.rmtree(copy / "crops/cup")
    untouched = (copy / "bboxes/aa.json").stat().st_mtime_ns
    again = preprocess(copy, *SCALE)
    assert again.returncode == 0, again.stderr
    assert (copy / "bboxes/aa.json").stat().st_mtime_ns == untouched
    assert (copy / "crops/cup").is_dir()
    assert statuses(copy, "diffs") == {"bb": "ok", "late": "ok", "orphan": "no_original"}
    assert {row["video"] for row in rows(copy / "folds.csv")} == {"aa", "bb", "three", "late", "empty", "gone", "text"}
    before = tree(root)
    assert {name: hash for name, hash in tree(copy).items() if "three" in name} == {
        name: hash for name, hash in before.items() if "three" in name
    }


def test_stages_stop_where_nothing_can_be_done(tmp_path: Path):
    finished = preprocess(tmp_path / "nowhere")
    assert finished.returncode == 2
    assert "nowhere: no such folder" in finished.stderr
    assert "stopped at detect_original_faces" in finished.stderr
    (tmp_path / "other").mkdir()
    finished = preprocess(tmp_path)
    assert finished.returncode == 2
    assert "dfdc_train_part_" in finished.stderr
    folder = part(tmp_path, 1, {"a.mp4": REAL})
    sample_clips.face_clip(folder / "a.mp4", 11)
    for name, output in (("extract_crops", "crops"), ("generate_landmarks", "landmarks"), ("generate_diffs", "diffs")):
        (tmp_path / output).touch()  # a file where the folder should be
        finished = stage(name, tmp_path)
        assert (finished.returncode, f"{tmp_path / output}: cannot be made" in finished.stderr) == (2, True)
        (tmp_path / output).unlink()
    finished = stage("generate_folds", tmp_path)
    assert finished.returncode == 2
    assert "run extract_crops.py" in finished.stderr
    assert not (tmp_path / "folds.csv").exists()
    finished = stage("detect_original_faces", tmp_path, "--device", "cuda:99")
    assert finished.returncode == 2
    assert "no device 'cuda:99'" in finished.stderr


def test_no_space(root: Path, done: subprocess.CompletedProcess, tmp_path: Path):
    """A limit on the size of files stands for the full disk. With room again the same command goes on."""
    assert done.returncode == 3
    part(tmp_path, 0, {"aa.mp4": REAL})
    for name in ("dfdc_train_part_0/aa.mp4", "bboxes/aa.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    limit = ["bash", "-c", 'ulimit -f 10; exec "$@"', "bash", sys.executable]
    command = [*limit, str(ROOT / "preprocessing/extract_crops.py"), "--root-dir", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 2
    assert f"{tmp_path / 'crops/aa'}: cannot be written: File too large" in finished.stderr
    assert list((tmp_path / "crops").iterdir()) == []
    assert stage("extract_crops", tmp_path).returncode == 0
    assert len(list((tmp_path / "crops/aa").iterdir())) == 34


def test_boxes_that_are_not_boxes(root: Path, done: subprocess.CompletedProcess, tmp_path: Path):
    assert done.returncode == 3
    names = ("cut", "list", "text", "short", "nan", "odd")
    folder = part(tmp_path, 0, {f"{name}.mp4": REAL for name in names})
    for name in names:
        shutil.copy(root / "dfdc_train_part_4/three.mp4", folder / f"{name}.mp4")
    (tmp_path / "bboxes").mkdir()
    contents = ('{"0": [[1, 2', "[1]", '{"0": "many"}', '{"0": [[1, 2, 3]]}', '{"0": [[1, 2, NaN, 4]]}')
    for name, content in zip(names, contents, strict=False):
        (tmp_path / f"bboxes/{name}.json").write_text(content)
    # outside the frame, of no size, wrong way round, and one of a video that is not there
    odd = {"0": [[-500, -500, -400, -400], [100, 100, 100, 100]], "10": [[300, 200, 100, 100]], "5": [[0, 0, 50, 50]]}
    (tmp_path / "bboxes/odd.json").write_text(json.dumps(odd))
    (tmp_path / "bboxes/unknown.json").write_text("{}")
    finished = stage("extract_crops", tmp_path)
    assert finished.returncode == 3
    assert statuses(tmp_path, "crops") == {**dict.fromkeys(names, "no_boxes"), "odd": "no_face"}
    assert ["no_video", "1"] in [line.split()[:2] for line in finished.stdout.splitlines()]
    for name in names[:-1]:
        assert f"{tmp_path / 'bboxes' / name}.json: holds no boxes" in finished.stderr


def test_what_went_bad_is_not_used(root: Path, done: subprocess.CompletedProcess, tmp_path: Path):
    """A clip that was fine and is so no longer takes its boxes, crops, masks and rows along."""
    assert done.returncode == 3
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    (copy / "dfdc_train_part_0/aa.mp4").write_bytes(b"")
    sample_clips.face_clip(copy / "dfdc_train_part_4/text.mp4", 11)
    metadata = json.loads((copy / "dfdc_train_part_4/metadata.json").read_text())
    part(copy, 4, {**metadata, "three.mp4": fake_of("nowhere.mp4")})
    assert preprocess(copy, *SCALE).returncode == 3
    bad = {"three": "no_original", "aa": "unreadable", "bb": "no_boxes"}
    assert bad.items() <= statuses(copy, "crops").items()
    assert {path.name for path in (copy / "crops").iterdir()} == {"cup", "text", "late"}
    assert not (copy / "bboxes/aa.json").exists()
    assert [path.name for path in (copy / "diffs").iterdir()] == ["late"]
    assert {row["video"] for row in rows(copy / "folds.csv")} == {"text", "late"}


def test_a_cut_off_clip_is_said_to_be_so(root: Path, tmp_path: Path):
    folder = part(tmp_path, 0, {"half.mp4": REAL})
    data = (root / "dfdc_train_part_0/aa.mp4").read_bytes()
    (folder / "half.mp4").write_bytes(data[: len(data) // 2])
    assert stage("detect_original_faces", tmp_path).returncode == 0
    record = records(tmp_path, "bboxes")["half"]
    there = FRAMES - record["counts"]["lost_frames"]
    assert 100 < there < 230
    assert record["message"] == f"cut off: {there} of {FRAMES} frames are there"


def test_a_damaged_crop(root: Path, done: subprocess.CompletedProcess, tmp_path: Path):
    assert done.returncode == 3
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    crop = copy / "crops/bb/0_0.png"
    os.truncate(crop, 100)
    finished = stage("generate_diffs", copy, "--preview", "40")  # all is done: only the preview needs it
    assert finished.returncode == 3
    assert f"{crop}: not an image" in finished.stderr
    finished = stage("generate_diffs", copy, "--overwrite")
    assert statuses(copy, "diffs")["bb"] == "unreadable"
    assert f"delete {crop.parent} and run extract_crops.py again" in finished.stderr
    shutil.rmtree(crop.parent)
    assert stage("extract_crops", copy).returncode == 3
    stage("generate_diffs", copy)
    assert statuses(copy, "diffs")["bb"] == "ok"
    for option in (".", ".."):
        finished = stage("extract_crops", copy, "--crops-dir", option)
        assert finished.returncode == 2
        assert "a folder of their own" in finished.stderr
    finished = stage("extract_images", copy, "--images-dir", "crops")
    assert finished.returncode == 2
    assert "holds the results of extract_crops" in finished.stderr


def test_usage():
    for arguments in ([], ["--device", "cpu"], ["data", "--nonsense"], ["data", "--workers"]):
        finished = preprocess(*arguments) if arguments else subprocess.run(
            [str(ROOT / "preprocess_data.sh")], capture_output=True, text=True
        )  # fmt: skip
        assert finished.returncode == 2
        assert "usage: " in finished.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(root: Path, done: subprocess.CompletedProcess, tmp_path: Path):
    """The same faces and landmarks as on the CPU, but for rounding."""
    assert done.returncode == 3
    folder = part(tmp_path, 0, {"aa.mp4": REAL, "three.mp4": REAL})
    shutil.copy(root / "dfdc_train_part_0/aa.mp4", folder)
    shutil.copy(root / "dfdc_train_part_4/three.mp4", folder)
    finished = preprocess(tmp_path, *SCALE, "--device", "cuda", "--workers", "2")
    assert finished.returncode == 0, finished.stderr
    for clip in ("aa", "three"):
        ours, expected = (json.loads((place / f"bboxes/{clip}.json").read_text()) for place in (tmp_path, root))
        assert ours.keys() == expected.keys()
        for frame, boxes in ours.items():
            np.testing.assert_allclose(boxes, expected[frame], atol=1)
        for path in (root / "landmarks" / clip).iterdir():
            np.testing.assert_allclose(np.load(tmp_path / "landmarks" / clip / path.name), np.load(path), atol=2)
