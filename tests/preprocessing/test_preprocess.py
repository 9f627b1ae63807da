"""The five stages run by preprocess_data.sh on intact and damaged clips."""

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
from preprocessing.contact_sheet import CELL, LINE
from tests.support import programs
from tests.support.datasets import (
    REAL,
    ROOT,
    STAGES,
    fake_frames,
    fake_of,
    file_hashes,
    portrait_frames,
    preprocess,
    records,
    run_stage,
    statuses,
    three_faces,
    write_part,
)

pytestmark = pytest.mark.slow

FRAMES = 331  # the published code ignores frames after 310
SCALE = ("--detector-scale", "0.5")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, a clip with three faces, one without a face, and damaged ones."""
    root = tmp_path_factory.mktemp("dfdc")
    folder = write_part(root, 0, {"aa.mp4": REAL, "bb.mp4": fake_of("aa.mp4"), "empty.mp4": REAL, "gone.mp4": REAL})
    frames = portrait_frames(FRAMES)
    sample_clips.write_clip(folder / "aa.mp4", frames)
    sample_clips.write_clip(folder / "bb.mp4", fake_frames(frames))
    (folder / "empty.mp4").touch()
    entries = {"three.mp4": REAL, "cup.mp4": REAL, "text.mp4": REAL, "orphan.mp4": fake_of("nowhere.mp4")}
    folder = write_part(root, 4, {**entries, "late.mp4": fake_of("text.mp4")})
    sample_clips.write_clip(folder / "three.mp4", three_faces(31))
    sample_clips.faceless_clip(folder / "cup.mp4", 21)
    (folder / "text.mp4").write_text("no video\n" * 100)
    sample_clips.face_clip(folder / "orphan.mp4", 11)
    sample_clips.face_clip(folder / "late.mp4", 11)
    return root


@pytest.fixture(scope="module")
def done(root: Path) -> subprocess.CompletedProcess:
    return preprocess(root, *SCALE, "--workers", "2", "--preview", "6")


@pytest.fixture(scope="module")
def baseline(root: Path, done: subprocess.CompletedProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair and the clip with three faces, processed by benchmarks/plain_stages.py."""
    assert done.returncode == 3
    place = tmp_path_factory.mktemp("baseline")
    pair = {"aa.mp4": REAL, "bb.mp4": fake_of("aa.mp4")}
    for number, metadata in ((0, pair), (4, {"three.mp4": REAL})):
        folder = write_part(place, number, metadata)
        for name in metadata:
            shutil.copy(root / folder.name / name, folder)
    for name in STAGES:
        command = [sys.executable, "-m", "benchmarks.plain_stages", name, place]
        finished = programs.run(command, cwd=ROOT)
        assert finished.returncode == 0, finished.stderr
    return place


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
    assert "empty.mp4" in records(root, "bboxes")["empty"]["message"]
    assert "detect_original_faces.py" in records(root, "crops")["late"]["message"]
    for name in STAGES:
        assert f"== {name}" in done.stdout
    assert "--retry-failed" in done.stderr


def test_dataset_problems_are_reported_once(done: subprocess.CompletedProcess):
    for name in ("orphan (of nowhere)", "dfdc_train_part_0/gone.mp4"):
        lines = [line for line in done.stderr.splitlines() if line.endswith(f" (1): {name}")]
        assert len(lines) == 1


def test_redirected_output_has_no_progress_bars(done: subprocess.CompletedProcess):
    for output in (done.stdout, done.stderr):
        assert "\r" not in output
        assert "clip/s" not in output


def test_output_files(root: Path, done: subprocess.CompletedProcess):
    """Exactly these files: no temporary files and none of failed clips."""
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
    assert {path.stem for path in (root / "landmarks/three").iterdir()} == {
        f"{frame}_{face}" for frame in (0, 10, 20, 30) for face in (0, 1, 2)
    }
    assert Counter((row["video"], row["label"], row["original"], row["fold"]) for row in rows(root / "folds.csv")) == {
        ("aa", "0", "aa", "0"): len(used),
        ("bb", "1", "aa", "0"): len(used),
    }
    assert {row["frame"] for row in rows(root / "folds.csv") if row["video"] == "bb"} == {str(frame) for frame in used}
    assert all(row["file"].startswith(f"{row['frame']}_") for row in rows(root / "folds.csv"))


def test_equals_the_baseline(root: Path, baseline: Path):
    for clip in ("aa", "three"):
        theirs = json.loads((baseline / f"bboxes/{clip}.json").read_text())
        ours = json.loads((root / f"bboxes/{clip}.json").read_text())
        assert list(ours) == [frame for frame in theirs if int(frame) % 10 == 0]
        for frame, boxes in ours.items():
            np.testing.assert_allclose(boxes, theirs[frame], atol=1)
    names = [(clip, path.name) for clip in ("aa", "bb") for path in (baseline / "crops" / clip).iterdir()]
    assert len(names) == 2 * len(range(0, FRAMES, 10))
    distances = []
    for clip, name in names:
        expected, crop = (image(place / "crops" / clip / name) for place in (baseline, root))
        np.testing.assert_allclose(crop.shape, expected.shape, atol=2)
        np.testing.assert_allclose(crop.mean((0, 1)), expected.mean((0, 1)), atol=1)
    for path in (baseline / "landmarks/aa").iterdir():
        points = np.load(root / "landmarks/aa" / path.name)
        assert (points.shape, points.dtype) == ((5, 2), np.int16)
        distances.append(np.abs(points - np.load(path)).max(axis=1))
    assert len(distances) > 30
    assert np.mean(np.concatenate(distances) <= 2) >= 0.95
    for path in (baseline / "diffs/bb").iterdir():
        mask = image(root / "diffs/bb" / path.name)
        assert mask.ndim == 2
        assert abs(mask.mean() - image(path).mean()) <= 1
        assert 0 < (mask > 20).mean() < 0.6  # only the mouth differs


def test_a_face_keeps_its_number(root: Path, done: subprocess.CompletedProcess):
    """Three faces in a row, of which the first becomes smaller than the second."""
    assert done.returncode == 3
    boxes = json.loads((root / "bboxes/three.json").read_text())
    by_size = {frame: [box[0] for box in found] for frame, found in boxes.items()}
    assert by_size["0"] == sorted(by_size["0"])
    assert by_size["30"] != sorted(by_size["30"])  # numbers by size alone would change
    widths = {
        face: [image(root / f"crops/three/{frame}_{face}.png").shape[1] for frame in (0, 10, 20, 30)]
        for face in range(3)
    }
    assert widths[0] == sorted(widths[0], reverse=True)
    assert widths[0][0] > 1.3 * widths[0][-1]
    assert widths[1] == sorted(widths[1])
    assert widths[1][-1] > 1.3 * widths[1][0]


def test_landmarks_form_a_face(root: Path, done: subprocess.CompletedProcess):
    assert done.returncode == 3
    for path in (*(root / "landmarks/aa").iterdir(), *(root / "landmarks/three").iterdir()):
        left_eye, right_eye, nose, left_mouth, right_mouth = np.load(path).tolist()
        assert left_eye[0] < nose[0] < right_eye[0]
        assert left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_contact_sheets(root: Path, done: subprocess.CompletedProcess):
    assert done.returncode == 3
    for name, rows, columns, lines in (("crops", 1, 6, 2), ("landmarks", 1, 6, 1), ("diffs", 2, 9, 2)):
        sheet = image(root / "previews" / f"{name}.png")
        header = lines * LINE
        assert sheet.shape == ((CELL + header) * rows, columns * CELL, 3)
        for left in range(0, sheet.shape[1], CELL):  # an image in each cell
            assert sheet[header : header + CELL, left : left + CELL].std() > 5
        if lines == 2:  # a label above each image
            for left in range(0, sheet.shape[1], CELL):
                assert sheet[LINE:header, left : left + CELL].std() > 5


def test_rerun_changes_nothing(root: Path, done: subprocess.CompletedProcess):
    assert done.returncode == 3
    before = file_hashes(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix in (".json", ".npy")}
    again = preprocess(root, *SCALE)
    assert again.returncode == 3  # the damaged clips are still reported
    assert file_hashes(root) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_new_and_repaired_clips_are_processed(root: Path, done: subprocess.CompletedProcess, tmp_path: Path):
    """So are clips whose outputs were deleted; all others stay untouched."""
    assert done.returncode == 3
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    for name in ("dfdc_train_part_0/empty.mp4", "dfdc_train_part_0/gone.mp4", "dfdc_train_part_4/text.mp4"):
        sample_clips.face_clip(copy / name, 11)
    (copy / "bboxes/three.json").unlink()
    shutil.rmtree(copy / "crops/cup")
    untouched = (copy / "bboxes/aa.json").stat().st_mtime_ns
    again = preprocess(copy, *SCALE, "--workers", "1")
    assert again.returncode == 0, again.stderr
    assert (copy / "bboxes/aa.json").stat().st_mtime_ns == untouched
    assert (copy / "crops/cup").is_dir()
    assert statuses(copy, "diffs") == {"bb": "ok", "late": "ok", "orphan": "no_original"}
    assert {row["video"] for row in rows(copy / "folds.csv")} == {"aa", "bb", "late", "text"}  # originals with a fake
    before = file_hashes(root)
    assert {name: hash for name, hash in file_hashes(copy).items() if "three" in name} == {
        name: hash for name, hash in before.items() if "three" in name
    }
    again = preprocess(copy, *SCALE, "--workers", "1", "--all-originals")
    assert again.returncode == 0, again.stderr
    assert {row["video"] for row in rows(copy / "folds.csv")} > {"aa", "bb", "late", "text", "three"}


def test_errors_that_end_a_stage(tmp_path: Path):
    finished = preprocess(tmp_path / "nowhere")
    assert finished.returncode == 2
    assert str(tmp_path / "nowhere") in finished.stderr
    assert "detect_original_faces" in finished.stderr  # the stage at which preprocess_data.sh stopped
    (tmp_path / "other").mkdir()
    finished = preprocess(tmp_path)
    assert finished.returncode == 2
    assert "dfdc_train_part_" in finished.stderr
    folder = write_part(tmp_path, 1, {"a.mp4": REAL})
    sample_clips.face_clip(folder / "a.mp4", 11)
    for name, output in (("extract_crops", "crops"), ("generate_landmarks", "landmarks"), ("generate_diffs", "diffs")):
        (tmp_path / output).touch()  # a file where the folder should be
        finished = run_stage(name, tmp_path)
        assert finished.returncode == 2
        assert f"{tmp_path / output}: " in finished.stderr
        (tmp_path / output).unlink()
    finished = run_stage("generate_folds", tmp_path)
    assert finished.returncode == 2
    assert "extract_crops.py" in finished.stderr
    assert not (tmp_path / "folds.csv").exists()
    finished = run_stage("detect_original_faces", tmp_path, "--device", "cuda:99")
    assert finished.returncode == 2
    assert "--device cuda:99" in finished.stderr


def test_full_disk(root: Path, done: subprocess.CompletedProcess, tmp_path: Path):
    """A limit on file sizes stands in for a full disk. Without it, the same command succeeds."""
    assert done.returncode == 3
    write_part(tmp_path, 0, {"aa.mp4": REAL})
    for name in ("dfdc_train_part_0/aa.mp4", "bboxes/aa.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    limit = ["bash", "-c", 'ulimit -f 10; exec "$@"', "bash", sys.executable]
    finished = programs.run([*limit, ROOT / "preprocessing/extract_crops.py", "--root-dir", tmp_path])
    assert finished.returncode == 2
    assert f"{tmp_path / 'crops/aa'}: " in finished.stderr
    assert list((tmp_path / "crops").iterdir()) == []
    assert run_stage("extract_crops", tmp_path).returncode == 0
    assert len(list((tmp_path / "crops/aa").iterdir())) == 34


def test_malformed_boxes(root: Path, done: subprocess.CompletedProcess, tmp_path: Path):
    assert done.returncode == 3
    names = ("cut", "list", "text", "short", "nan", "odd")
    folder = write_part(tmp_path, 0, {f"{name}.mp4": REAL for name in names})
    for name in names:
        shutil.copy(root / "dfdc_train_part_4/three.mp4", folder / f"{name}.mp4")
    (tmp_path / "bboxes").mkdir()
    contents = ('{"0": [[1, 2', "[1]", '{"0": "many"}', '{"0": [[1, 2, 3]]}', '{"0": [[1, 2, NaN, 4]]}')
    for name, content in zip(names, contents, strict=False):
        (tmp_path / f"bboxes/{name}.json").write_text(content)
    # outside the frame, empty, inverted, and of a video that is not in the dataset
    odd = {"0": [[-500, -500, -400, -400], [100, 100, 100, 100]], "10": [[300, 200, 100, 100]], "5": [[0, 0, 50, 50]]}
    (tmp_path / "bboxes/odd.json").write_text(json.dumps(odd))
    (tmp_path / "bboxes/unknown.json").write_text("{}")
    finished = run_stage("extract_crops", tmp_path)
    assert finished.returncode == 3
    assert statuses(tmp_path, "crops") == {**dict.fromkeys(names, "no_boxes"), "odd": "no_face"}
    assert ["no_video", "1"] in [line.split()[:2] for line in finished.stdout.splitlines()]
    for name in names[:-1]:
        assert f"{tmp_path / 'bboxes' / name}.json: " in finished.stderr


def test_outputs_of_clips_that_became_unusable_are_removed(
    root: Path, done: subprocess.CompletedProcess, tmp_path: Path
):
    assert done.returncode == 3
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    (copy / "dfdc_train_part_0/aa.mp4").write_bytes(b"")
    sample_clips.face_clip(copy / "dfdc_train_part_4/text.mp4", 11)
    metadata = json.loads((copy / "dfdc_train_part_4/metadata.json").read_text())
    write_part(copy, 4, {**metadata, "three.mp4": fake_of("nowhere.mp4")})
    assert preprocess(copy, *SCALE, "--workers", "1").returncode == 3
    bad = {"three": "no_original", "aa": "unreadable", "bb": "no_boxes"}
    assert bad.items() <= statuses(copy, "crops").items()
    assert {path.name for path in (copy / "crops").iterdir()} == {"cup", "text", "late"}
    assert not (copy / "bboxes/aa.json").exists()
    assert [path.name for path in (copy / "diffs").iterdir()] == ["late"]
    assert {row["video"] for row in rows(copy / "folds.csv")} == {"text", "late"}


def test_truncated_clips_are_recorded_as_such(root: Path, tmp_path: Path):
    folder = write_part(tmp_path, 0, {"half.mp4": REAL})
    data = (root / "dfdc_train_part_0/aa.mp4").read_bytes()
    (folder / "half.mp4").write_bytes(data[: len(data) // 2])
    assert run_stage("detect_original_faces", tmp_path, *SCALE, "--workers", "1").returncode == 0
    record = records(tmp_path, "bboxes")["half"]
    remaining = FRAMES - record["counts"]["lost_frames"]
    assert 100 < remaining < 230
    assert f"{remaining} of {FRAMES}" in record["message"]


def test_a_damaged_crop(root: Path, done: subprocess.CompletedProcess, tmp_path: Path):
    assert done.returncode == 3
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    crop = copy / "crops/bb/0_0.png"
    os.truncate(crop, 100)
    finished = run_stage("generate_diffs", copy, "--preview", "40")  # only the contact sheet needs it
    assert finished.returncode == 3
    assert str(crop) in finished.stderr
    finished = run_stage("generate_diffs", copy, "--overwrite")
    assert statuses(copy, "diffs")["bb"] == "unreadable"
    assert f"Delete {crop.parent}" in finished.stderr
    shutil.rmtree(crop.parent)
    assert run_stage("extract_crops", copy).returncode == 3
    run_stage("generate_diffs", copy)
    assert statuses(copy, "diffs")["bb"] == "ok"


def test_refuses_folders_that_hold_something_else(root: Path, done: subprocess.CompletedProcess):
    assert done.returncode == 3
    before = file_hashes(root)
    for option in (".", ".."):
        finished = run_stage("extract_crops", root, "--crops-dir", option)
        assert finished.returncode == 2
        assert str(root / option) in finished.stderr
    finished = run_stage("extract_images", root, "--images-dir", "crops")
    assert finished.returncode == 2
    assert str(root / "crops") in finished.stderr
    assert file_hashes(root) == before


def test_usage():
    for arguments in (["--device", "cpu"], ["data", "--nonsense"], ["data", "--workers"]):
        finished = preprocess(*arguments)
        assert finished.returncode == 2
        assert "usage: " in finished.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu(root: Path, done: subprocess.CompletedProcess, tmp_path: Path):
    """Boxes and landmarks agree up to rounding."""
    assert done.returncode == 3
    folder = write_part(tmp_path, 0, {"aa.mp4": REAL, "three.mp4": REAL})
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
