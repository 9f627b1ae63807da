"""Finding videos, resuming and writing the results, without networks."""

from __future__ import annotations

import csv
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.journal import Journal
from inference import submission
from inference.video_score import VideoScore
from tests.support.reports import header, scored

SETTINGS = {"version": submission.RECORD_VERSION, "models": ["abc"], "strategy": "confident"}


class FakePredictor:
    """Scores a video with its size in bytes / 1000; an empty file is unreadable, a file of one byte has no face."""

    def __init__(self) -> None:
        self.scored: list[str] = []

    def score(self, videos: Mapping[str, Path]) -> Iterator[tuple[str, VideoScore]]:
        for name, path in videos.items():
            self.scored.append(path.name)
            size = path.stat().st_size
            status = ("unreadable", "no_face")[size] if size < 2 else "ok"
            message = "" if size > 1 else f"{path}: nothing"
            yield name, VideoScore(path, status, message, score=size / 1000 if size > 1 else 0.5)


@pytest.fixture
def videos(tmp_path: Path) -> dict[str, Path]:
    for number, name in enumerate(("a.mp4", "b.mp4", "c.mp4", "d.mp4")):
        (tmp_path / name).write_bytes(b"x" * (10 * number + 100))
    (tmp_path / "b.mp4").write_bytes(b"")
    (tmp_path / "c.mp4").write_bytes(b"x")
    return submission.find_videos(tmp_path)[0]


def score(videos: dict[str, Path], tmp_path: Path, **changes: Any) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    """Score with the same journal each time: the videos scored now, all records, the settings that changed."""
    predictor = FakePredictor()
    journal = Journal(tmp_path / "progress.jsonl", {**SETTINGS, **changes}, is_valid=submission.is_record)
    return predictor.scored, submission.score_videos(videos, predictor.score, journal), journal.changed


def test_finds_videos_in_subfolders_once(tmp_path: Path):
    for name in ("z.MP4", "a.ts", "deep/er/b.m4v", "deep/c.mpg", "cover.png", "deep/metadata.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.avi").symlink_to(tmp_path / "nowhere")
    found, others, unlisted = submission.find_videos(tmp_path)
    assert list(found) == ["a.ts", "deep/c.mpg", "deep/er/b.m4v", "gone.avi", "z.MP4"]
    assert found["deep/c.mpg"] == tmp_path / "deep" / "c.mpg"
    assert others == ["cover.png", "deep/metadata.json"]
    assert not unlisted
    assert submission.find_videos(tmp_path / "a.ts") == ({"a.ts": tmp_path / "a.ts"}, [], {})


def test_names_are_those_of_the_folders_not_of_the_links(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").touch()
    for name in "az":
        (tmp_path / name).symlink_to("real")
    assert list(submission.find_videos(tmp_path).videos) == ["real/a.mp4"]


def test_special_files_are_listed_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is limited in length
    for name in ("pipe", "pipe.mp4"):
        os.mkfifo(name)
    for name in ("socket", "socket.mkv"):
        socket.socket(socket.AF_UNIX).bind(name)
    links = {"loop": "loop", "loop.avi": "loop.avi", "zero.mov": "/dev/zero", "zero": "/dev/zero", "to.ts": "pipe"}
    for name, target in links.items():
        Path(name).symlink_to(target)
    found = submission.find_videos(tmp_path)
    assert list(found.videos) == ["loop.avi", "pipe.mp4", "socket.mkv", "to.ts", "zero.mov"]
    assert found.others == ["loop", "pipe", "socket", "zero"]
    submission.check_outputs([tmp_path / "s.csv"], found.videos)
    for name in (*found.videos, *found.others, "loop/a.mp4"):
        with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
            submission.find_videos(tmp_path / name)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Permissions do not apply to root, so become another user."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folders_without_permission_do_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Listing needs the permission to read, and looking at what is inside needs the permission to search."""
    modes = {"open": 0o755, "closed": 0o000, "names only": 0o444, "no list.mp4": 0o111}
    for name in modes:
        (tmp_path / name / "deeper").mkdir(parents=True)
        (tmp_path / name / "a.mp4").touch()
    for name, mode in modes.items():
        (tmp_path / name).chmod(mode)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the folders above are those of the first user
    with without_privileges():
        found = submission.find_videos(Path())
        for name in ("closed", "no list.mp4", "closed/a.mp4"):
            with pytest.raises(UserError, match=name):
                submission.find_videos(Path(name))
    for name in modes:
        (tmp_path / name).chmod(0o755)
    assert list(found.videos) == ["names only/a.mp4", "open/a.mp4"]
    assert list(found.unlisted) == ["closed", "names only/deeper", "no list.mp4"]
    assert set(found.unlisted.values()) == {"Permission denied"}


@pytest.fixture
def deep_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, which is removed after the test: shutil cannot remove deep folders."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    os.chdir(tmp_path)
    subprocess.run(["rm", "-rf", "d"], check=True)


def test_deep_folders(deep_folder: Path):
    """Deeper than Python's recursion limit, and then longer than a path can be."""
    for name in ("a.mp4", "b.mp4"):
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        Path(name).touch()
    found = submission.find_videos(deep_folder)
    assert list(found.videos) == ["d/" * 1500 + "a.mp4"]
    assert list(found.unlisted.values()) == ["File name too long"]


def test_resumes_with_the_unfinished_videos(videos: dict[str, Path], tmp_path: Path):
    scored, records, _ = score(videos, tmp_path)
    assert scored == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert [record["status"] for record in records] == ["ok", "unreadable", "no_face", "ok"]
    assert [record["score"] for record in records] == [0.1, 0.5, 0.5, 0.13]

    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write('{"clip": "b.mp4", "sta')  # killed while writing a line
    scored, resumed, changed = score(videos, tmp_path)
    assert scored == ["b.mp4"]  # unreadable videos are tried again
    assert resumed == records
    assert not changed

    (tmp_path / "d.mp4").write_bytes(b"x" * 777)
    (tmp_path / "b.mp4").write_bytes(b"x" * 50)
    scored, records, _ = score(videos, tmp_path)
    assert scored == ["b.mp4", "d.mp4"]
    assert [record["score"] for record in records] == [0.1, 0.05, 0.5, 0.777]
    assert not score(videos, tmp_path)[0]


@pytest.mark.parametrize(
    "changes", [{"strategy": "mean"}, {"models": ["def"]}, {"version": submission.RECORD_VERSION + 1}]
)
def test_starts_over_with_other_settings(videos: dict[str, Path], tmp_path: Path, changes: dict):
    score(videos, tmp_path)
    scored, _, changed = score(videos, tmp_path, **changes)
    assert scored == list(videos)
    assert changed == list(changes)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"score": 0.1', '"score": NaN'),
        ('"score": 0.1', '"score": true'),
        ('"score": 0.1', f'"score": {10**400}'),
        ('"score": 0.1', '"scone": 0.1'),
        ('"filename": "a.mp4"', '"filename": "z.mp4"'),
        ('"status": "ok"', '"status": ["ok"]'),
        ('{"clip": "a', '{"clip": "a"'),
    ],
)
def test_scores_the_videos_of_damaged_records_again(
    videos: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, before: str, after: str
):
    _, expected, _ = score(videos, tmp_path)
    progress = tmp_path / "progress.jsonl"
    content = progress.read_text()
    assert before in content
    progress.write_text(content.replace(before, after, 1))
    scored, records, changed = score(videos, tmp_path)
    assert (scored, records, changed) == (["a.mp4", "b.mp4"], expected, [])  # unreadable videos are tried again
    assert f"{progress}: ignored 1 damaged line" in caplog.text
    assert (tmp_path / "progress.jsonl.damaged").read_text() == content.replace(before, after, 1)


def test_writes_csv(tmp_path: Path):
    name = os.fsdecode(b'odd, "name" \xff.mp4')
    records = [submission.to_record(name, VideoScore(Path(name), "ok", score=0.25))]
    submission.write_submission(tmp_path / "s.csv", records)
    assert (tmp_path / "s.csv").read_bytes() == b'filename,label\n"odd, ""name"" \xff.mp4",0.25\n'


def test_csv_keeps_every_name(tmp_path: Path):
    names = ["a\nb.mp4", "a\rb.mp4", "\x1b[2J.mp4", "\u202eb.mp4", os.fsdecode(b"\xff.mp4"), '"', " a ", "\u2028"]
    write = submission.write_submission
    write(tmp_path / "s.csv", [submission.to_record(name, VideoScore(Path(name), "ok")) for name in names])
    with (tmp_path / "s.csv").open(newline="", errors="surrogateescape") as file:
        assert [row[0] for row in csv.reader(file)] == ["filename", *names]


def test_summary_is_printable_and_counts_failures():
    statuses = {"a.mp4": "ok", "\x1b[2J.mp4": "unreadable", "b.mp4": "no_face", "c\n.mp4": "too_large"}
    records = [
        {**submission.to_record(name, VideoScore(Path(name), status)), "low_evidence": []}
        for name, status in statuses.items()
    ]
    expected = r"1 ok, 1 no face, 1 unreadable, 1 too large, 1 folder not listed: \x1b[2J.mp4, c\n.mp4, sub\t"
    assert submission.summarize(records, {"sub\t": "Permission denied"}) == expected
    assert submission.summarize(records[:1], {}) == "1 ok"
    divided = [{**records[0], "low_evidence": ["people disagree"]}]
    assert submission.summarize(divided, {}) == "1 ok\npeople disagree in 1 video: a.mp4"


def test_videos_that_failed_are_tried_again(videos: dict[str, Path], tmp_path: Path):
    def fail(videos: Mapping[str, Path]) -> Iterator[tuple[str, VideoScore]]:
        return ((name, VideoScore(path, "too_large", "too large")) for name, path in videos.items())

    journal = Journal(tmp_path / "progress.jsonl", SETTINGS)
    submission.score_videos(videos, fail, journal)
    assert score(videos, tmp_path)[0] == list(videos)


def test_outputs_overwrite_neither_videos_nor_each_other(videos: dict[str, Path], tmp_path: Path):
    good = tmp_path / "new" / "s.csv"
    submission.check_outputs([good, tmp_path / "new" / "d.jsonl"], videos)
    assert good.parent.is_dir()
    video = videos["a.mp4"]
    for outputs, named in (([video], video), ([good, good], good), ([tmp_path], tmp_path), ([video / "s.csv"], video)):
        with pytest.raises(UserError, match=re.escape(str(named))):
            submission.check_outputs(outputs, videos)
    temporary = tmp_path / ".s.csv.part"
    with pytest.raises(UserError, match=re.escape(str(temporary))):
        submission.check_outputs([tmp_path / "s.csv", temporary], videos)


@pytest.mark.parametrize("output", ["", ".", "..", "/", "folder", "pipe", "/dev/null", "a.mp4/s.csv", "a.mp4/b/s.csv"])
def test_output_must_be_a_file(videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    named = Path(output).parent if output.startswith("a.mp4") else Path(output)
    with pytest.raises(UserError, match=re.escape(str(named))):
        submission.check_outputs([Path(output), submission.journal_path(Path(output))], videos)
    submission.check_outputs([Path("link.csv")], videos)
    Path("link.csv").symlink_to("link.csv")
    submission.check_outputs([Path("link.csv")], videos)


def test_damaged_record_of_an_earlier_run_is_an_error(videos: dict[str, Path], tmp_path: Path):
    run = header()
    journal = Journal(tmp_path / "progress.jsonl", SETTINGS, is_valid=submission.is_record)
    record = {**scored("a.mp4", [0.9, 0.2]), "people": [{"person": 1}]}
    with pytest.raises(UserError, match=rf"{journal.path}: the record of a\.mp4 is damaged.*--overwrite"):
        submission.complete_records([record], run, videos, journal, hash_files=False)


def test_file_that_has_changed_since_it_was_scored_has_no_hash(videos: dict[str, Path], tmp_path: Path):
    journal = Journal(tmp_path / "progress.jsonl", SETTINGS, is_valid=submission.is_record)
    record, videos = scored("a.mp4", [0.9]), {"a.mp4": videos["a.mp4"]}
    journal.add("a.mp4", submission.stamp_of(videos["a.mp4"]), record)
    [before] = submission.complete_records([record], header(), videos, journal, hash_files=True)
    videos["a.mp4"].write_bytes(b"another video")
    [after] = submission.complete_records([record], header(), videos, journal, hash_files=True)
    assert (len(before["sha256"]), before["bytes"]) == (64, 100)
    assert (after["sha256"], after["bytes"], after["score"]) == (None, None, before["score"])
