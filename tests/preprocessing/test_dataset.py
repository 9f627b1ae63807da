"""Datasets in three layouts, valid and malformed, and the folds they are divided into."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from preprocessing.dataset import Dataset, DatasetError, Video, read_dataset
from preprocessing.generate_folds import assign_folds, check_folds
from tests.support.datasets import REAL, fake_of, run_stage, write_part


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def touch(root: Path, *names: str) -> None:
    """Make empty files with their folders."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def touch_crops(root: Path, *clips: str) -> None:
    """Make two empty crops per clip; only their names matter here."""
    for clip in clips:
        touch(root, f"crops/{clip}/0_0.png", f"crops/{clip}/10_0.png")


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 parts with a real clip and a fake each, after generate_folds.py."""
    root = tmp_path_factory.mktemp("fifty")
    for number in range(50):
        folder = write_part(root, number, {f"r{number}.mp4": REAL, f"f{number}.mp4": fake_of(f"r{number}.mp4")})
        touch(folder, f"r{number}.mp4", f"f{number}.mp4")
        touch_crops(root, f"r{number}", f"f{number}")
    (root / "dfdc_notes").mkdir()  # not a part
    finished = run_stage("generate_folds", root)
    assert finished.returncode == 0, finished.stderr
    return root


def test_folds_of_fifty_parts(fifty: Path):
    table = rows(fifty / "folds.csv")
    assert list(table[0]) == ["video", "file", "label", "original", "frame", "fold"]
    assert len(table) == 200
    assert {row["fold"] for row in table} == {str(fold) for fold in range(16)}
    for row in table:
        number = int(row["video"][1:])
        assert int(row["fold"]) == (15 if number >= 45 else number // 3)
        assert row["label"] == str(int(row["video"][0] == "f"))
        assert row["original"] == f"r{number}"
        assert row["file"] == f"{row['frame']}_0.png"
    assert {(row["video"], row["frame"]) for row in table} == {
        (f"{kind}{number}", frame) for kind in "rf" for number in range(50) for frame in ("0", "10")
    }


def test_originals_without_a_fake_are_listed_on_request(tmp_path: Path):
    """Whether the crops of the fake exist does not matter."""
    metadata = dict.fromkeys(("a.mp4", "b.mp4", "c.mp4", "d.mp4"), REAL) | {"e.mp4": fake_of("a.mp4")}
    metadata |= {"f.mp4": fake_of("b.mp4"), "g.mp4": fake_of("elsewhere.mp4")}
    touch(write_part(tmp_path, 0, metadata), *metadata)
    touch_crops(tmp_path, *"abcde")
    finished = run_stage("generate_folds", tmp_path)
    assert finished.returncode == 3  # f and g have no crops
    assert {row["video"] for row in rows(tmp_path / "folds.csv")} == set("abe")
    assert "2 originals" in finished.stderr
    assert "--all-originals" in finished.stderr
    finished = run_stage("generate_folds", tmp_path, "--all-originals")
    assert {row["video"] for row in rows(tmp_path / "folds.csv")} == set("abcde")
    assert "--all-originals" not in finished.stderr


def test_only_originals_without_a_fake(tmp_path: Path):
    touch(write_part(tmp_path, 0, {"a.mp4": REAL}), "a.mp4")
    touch_crops(tmp_path, "a")
    finished = run_stage("generate_folds", tmp_path)
    assert finished.returncode == 2
    assert "--all-originals" in finished.stderr.splitlines()[-1]


def test_seed_determines_the_row_order(fifty: Path, tmp_path: Path):
    first = (fifty / "folds.csv").read_text()
    for name, seed in (("again", 777), ("other", 778)):
        assert run_stage("generate_folds", fifty, "--out", tmp_path / name, "--seed", seed).returncode == 0
    assert (tmp_path / "again").read_text() == first
    other = (tmp_path / "other").read_text()
    assert other != first
    assert sorted(other.splitlines()) == sorted(first.splitlines())
    videos = [row["video"] for row in rows(fifty / "folds.csv")]
    assert videos != sorted(videos)
    assert len(set(videos[:40])) > 25  # shuffled, not in runs


@pytest.mark.parametrize(("splits", "run"), [(1, 50), (5, 10), (7, 7)])
def test_parts_are_divided_into_runs(fifty: Path, tmp_path: Path, splits: int, run: int):
    finished = run_stage("generate_folds", fifty, "--out", tmp_path / "f.csv", "--n-splits", splits)
    assert finished.returncode == 0
    table = rows(tmp_path / "f.csv")
    assert all(int(row["fold"]) == min(int(row["video"][1:]) // run, splits - 1) for row in table)


def test_too_many_folds(fifty: Path, tmp_path: Path):
    finished = run_stage("generate_folds", fifty, "--out", tmp_path / "f.csv", "--n-splits", "51")
    assert finished.returncode == 2
    assert "--n-splits 51" in finished.stderr
    assert not (tmp_path / "f.csv").exists()


def test_malformed_metadata(tmp_path: Path):
    """Every problem is reported and the rest is used."""
    entries = {
        "good.mp4": REAL,
        "fake.mp4": fake_of("good.mp4"),
        "wrong.mp4": {"label": "MAYBE"},
        "none.mp4": {"split": "train"},
        "list.mp4": [1, 2],
        "number.mp4": {"label": "FAKE", "original": 7},
        "../../escape.mp4": REAL,
        "/etc/passwd.mp4": REAL,
        "..": REAL,
        "": REAL,
        "a\\b.mp4": REAL,
        "notes.txt": REAL,
        "lost.mp4": fake_of("nowhere.mp4"),
        "nameless.mp4": {"label": "FAKE", "split": "train", "original": None},
        "of_a_fake.mp4": fake_of("fake.mp4"),
        "absent.mp4": REAL,
        f"{'x' * 220}.mp4": REAL,
    }
    write_part(tmp_path, 0, entries)
    names = [name for name in entries if name.endswith(".mp4") and not set("/\\") & set(name) and len(name) < 100]
    touch(tmp_path, *(f"dfdc_train_part_0/{name}" for name in {*names, "unlisted.mp4"} - {"absent.mp4"}))
    write_part(tmp_path, 7, {"good.mp4": REAL, "elsewhere.mp4": fake_of("good.mp4")})
    touch(tmp_path, "dfdc_train_part_7/good.mp4", "dfdc_train_part_7/elsewhere.mp4")
    for number, content in (
        (8, "{cut"),
        (9, "[]"),
        (11, '{"twice.mp4": {"label": "REAL"}, "twice.mp4": {"label": "REAL"}}'),
    ):
        write_part(tmp_path, number, {})
        (tmp_path / f"dfdc_train_part_{number}/metadata.json").write_text(content)
    (tmp_path / "dfdc_train_part_10").mkdir()
    touch(tmp_path, "dfdc_train_part_11/twice.mp4")
    problems = read_dataset(tmp_path).problems
    part_0 = "dfdc_train_part_0"
    expected = [
        [f"{part_0}/wrong.mp4", f"{part_0}/none.mp4"],
        [f"{part_0}/list.mp4", f"{part_0}/number.mp4"],
        [f"{part_0}/{name}" for name in ("../../escape.mp4", "/etc/passwd.mp4", "..", "", "a\\b.mp4")],
        [f"{part_0}/notes.txt"],
        [f"{part_0}/{'x' * 220}.mp4"],
        [f"{part_0}/unlisted.mp4"],
        ["lost (of nowhere)", "nameless (of None)", "of_a_fake (of fake)"],
        [f"{part_0}/absent.mp4"],
        ["dfdc_train_part_7/good.mp4", "dfdc_train_part_11/twice.mp4"],
    ]
    unreadable = problems.pop("metadata files that cannot be read")
    assert sorted(problems.values()) == sorted(expected)
    assert [name.split()[0] for name in unreadable] == [
        f"dfdc_train_part_{number}/metadata.json" for number in (8, 9, 10)
    ]
    touch_crops(tmp_path, "good", "fake", "elsewhere", "twice")
    (tmp_path / "crops/lost").mkdir()
    finished = run_stage("generate_folds", tmp_path, "--all-originals")
    assert finished.returncode == 3  # absent.mp4 has no crops
    assert "Traceback" not in finished.stderr
    for kind, names in problems.items():
        assert f"{kind} ({len(names)}): {names[0]}" in finished.stderr
    assert any("failed" in line and "absent" in line for line in finished.stderr.splitlines())
    folds = {row["video"]: row["fold"] for row in rows(tmp_path / "folds.csv")}
    assert folds == {"good": "0", "fake": "0", "elsewhere": "0", "twice": "3"}  # a fake goes with its original
    silent = run_stage("generate_folds", tmp_path, "--all-originals", "--no-dataset-report")
    assert silent.returncode == 3
    assert not any(kind in silent.stderr for kind in problems)


def test_fakes_of_one_missing_original_stay_together(tmp_path: Path):
    for number in (0, 20, 40):
        write_part(tmp_path, number, {f"f{number}.mp4": fake_of("nowhere.mp4")})
        touch(tmp_path, f"dfdc_train_part_{number}/f{number}.mp4")
    dataset = read_dataset(tmp_path)
    assert set(assign_folds(dataset, 16, 777).values()) == {0}


def test_parts_beyond_the_fiftieth(tmp_path: Path):
    write_part(tmp_path, 50, {"a.mp4": REAL})
    write_part(tmp_path, 120, {"b.mp4": REAL})
    assert assign_folds(read_dataset(tmp_path), 16, 777) == {"a": 15, "b": 15}


def test_no_dataset(tmp_path: Path):
    with pytest.raises(DatasetError, match=str(tmp_path / "nowhere")):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"dfdc_train_part_.*original_sequences.*Celeb-real"):
        read_dataset(tmp_path)
    write_part(tmp_path, 0, {})
    with pytest.raises(DatasetError, match=str(tmp_path)):
        read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="celebdf"):
        read_dataset(tmp_path, "celebdf")
    (tmp_path / "Celeb-real").mkdir()
    with pytest.raises(DatasetError, match=r"--layout dfdc\|celebdf"):
        read_dataset(tmp_path)


def test_suffixes_of_videos(tmp_path: Path):
    names = ["a.mp4", "b.M4V", "c.ts", "d.mpg", "e.mpeg", "f.mov", "g.avi", "h.mkv", "i.webm"]
    touch(write_part(tmp_path, 0, dict.fromkeys(names, REAL)), *names)
    dataset = read_dataset(tmp_path)
    assert [video.path.name for video in dataset.videos.values()] == names
    assert not dataset.problems


def make_faceforensics(root: Path) -> None:
    for number in range(8):
        touch(root, f"original_sequences/youtube/c23/videos/{number:03}.mp4")
        for method in ("Deepfakes", "FaceSwap"):
            touch(root, f"manipulated_sequences/{method}/c23/videos/{number:03}_{number ^ 1:03}.mp4")
    touch(root, "original_sequences/actors/c23/videos/01__kitchen.mp4", "original_sequences/youtube/raw/videos/000.mp4")
    touch(root, "manipulated_sequences/DeepFakeDetection/c23/videos/01_02__kitchen__ABC.mp4")


def test_faceforensics(tmp_path: Path):
    make_faceforensics(tmp_path)
    dataset = read_dataset(tmp_path)
    assert (dataset.layout, dataset.problems) == ("ffpp", {})
    assert len(dataset.videos) == 8 + 16 + 2
    fake = dataset.videos["FaceSwap_003_002"]
    assert (fake.fake, fake.original) == (True, "003")
    assert dataset.original_of(fake).path == tmp_path / "original_sequences/youtube/c23/videos/003.mp4"
    assert dataset.videos["DeepFakeDetection_01_02__kitchen__ABC"].original == "01__kitchen"
    folds = assign_folds(dataset, 3, 777)
    assert set(folds.values()) == {0, 1, 2}
    for number in range(8):  # both persons of a swap and all fakes of them share a fold
        first, second = f"{number:03}", f"{number ^ 1:03}"
        together = {
            folds[name] for name in (first, second, f"Deepfakes_{first}_{second}", f"FaceSwap_{second}_{first}")
        }
        assert len(together) == 1
    assert folds == assign_folds(dataset, 3, 777)
    assert any(assign_folds(dataset, 3, seed) != folds for seed in range(3))


def test_faceforensics_with_official_splits(tmp_path: Path):
    make_faceforensics(tmp_path)
    (tmp_path / "splits").mkdir()
    for name, pairs in (
        ("train", [["000", "001"], ["002", "003"]]),
        ("val", [["004", "005"]]),
        ("test", [["006", "007"]]),
    ):
        (tmp_path / "splits" / f"{name}.json").write_text(json.dumps(pairs))
    folds = assign_folds(read_dataset(tmp_path), 16, 777)
    assert {folds["004"], folds["Deepfakes_005_004"]} == {0}
    assert {folds["006"], folds["FaceSwap_006_007"]} == {-1}
    assert all(folds[name] > 0 for name in ("000", "001", "Deepfakes_002_003", "01__kitchen"))
    assert folds["000"] == folds["001"] == folds["FaceSwap_000_001"]


def test_celeb_df(tmp_path: Path):
    touch(tmp_path, *(f"Celeb-real/id{person}_{number:04}.mp4" for person in range(4) for number in range(3)))
    touch(tmp_path, *(f"Celeb-synthesis/id{person}_id{person ^ 1}_0000.mp4" for person in range(4)))
    touch(tmp_path, *(f"YouTube-real/{number:05}.mp4" for number in range(5)), "Celeb-synthesis/odd.mp4")
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "celebdf"
    assert list(dataset.problems.values()) == [["Celeb-synthesis/odd.mp4"]]
    assert len(dataset.videos) == 12 + 4 + 5
    assert dataset.videos["id2_id3_0000"].original == "id2_0000"
    assert not dataset.videos["00003"].fake
    folds = assign_folds(dataset, 3, 777)
    for person in range(4):
        assert (
            len({folds[f"id{person}_{number:04}"] for number in range(3)} | {folds[f"id{person}_id{person ^ 1}_0000"]})
            == 1
        )
    (tmp_path / "List_of_testing_videos.txt").write_text(
        "1 YouTube-real/00003.mp4\n0 Celeb-synthesis/id1_id0_0000.mp4\n"
    )
    official = assign_folds(read_dataset(tmp_path), 3, 777)
    assert {name for name, fold in official.items() if fold == -1} == {"00003", "id1_id0_0000"}
    touch_crops(tmp_path, *dataset.videos)
    finished = run_stage("generate_folds", tmp_path, "--layout", "celebdf", "--n-splits", "3")
    assert finished.returncode == 0
    assert "official split" in finished.stderr  # it separates a fake from its original
    assert {row["video"]: int(row["fold"]) for row in rows(tmp_path / "folds.csv")} == official


def test_unusual_names_and_folders_of_crops(tmp_path: Path):
    """Names that are not valid UTF-8 or do not fit into numbers, and a file in place of a folder."""
    name = "caf\udce9"  # a file name in Latin-1
    touch(tmp_path, f"original_sequences/youtube/c23/videos/{name}.mp4", "original_sequences/youtube/c23/videos/b.mp4")
    touch_crops(tmp_path, name)
    touch(tmp_path, f"crops/{name}/99999999999_0.png", f"crops/{name}/0_{'9' * 200}.png", "crops/b")
    finished = run_stage("generate_folds", tmp_path)
    assert finished.returncode == 3
    assert "Traceback" not in finished.stderr
    assert f"{tmp_path / 'crops/b'}: cannot be read" in finished.stderr
    assert ["unreadable", "1", "0"] in [line.split() for line in finished.stdout.splitlines()]
    lines = (tmp_path / "folds.csv").read_text(errors="surrogateescape").splitlines()[1:]
    assert sorted(line.split(",")[:2] for line in lines) == [[name, "0_0.png"], [name, "10_0.png"]]


def test_originals_with_invalid_names(tmp_path: Path):
    metadata = {"a.mp4": REAL, "b.mp4": fake_of("\ud800.mp4"), "c.mp4": fake_of("a\x00.mp4")}
    touch(write_part(tmp_path, 0, metadata), *metadata)
    touch_crops(tmp_path, "a", "b", "c")
    dataset = read_dataset(tmp_path)
    assert list(dataset.videos) == ["a"]
    assert dataset.problems["malformed entries of metadata.json"] == [f"dfdc_train_part_0/{name}.mp4" for name in "bc"]
    assert run_stage("generate_folds", tmp_path, "--all-originals").returncode == 0


def test_split_files_that_cannot_be_read(tmp_path: Path):
    make_faceforensics(tmp_path)
    (tmp_path / "train.json").write_text("[" * 100_000)
    (tmp_path / "val.json").write_text("[[1, ")
    assert len(read_dataset(tmp_path).problems["split files that cannot be read"]) == 2


def test_videos_apart_from_their_original_are_counted(caplog: pytest.LogCaptureFixture):
    """Whatever the order of the videos."""
    dataset = Dataset("celeb-df")
    for name, original in (("a_fake", "real"), ("b_fake", "real"), ("real", None)):
        dataset.videos[name] = Video(name, Path(f"{name}.mp4"), original is not None, original, name)
    check_folds(dataset, {"a_fake": 1, "b_fake": 1, "real": 0})
    assert caplog.messages[-1].endswith(": 2")
