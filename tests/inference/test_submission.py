"""Finding videos, resuming and writing the results, without networks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.journal import Journal
from inference import submission
from inference.predictor import VideoScore

SETTINGS = {"version": submission.RECORD_VERSION, "models": ["abc"], "strategy": "confident"}


class FakePredictor:
    """Scores a video with its size in bytes / 1000; an empty file is unreadable, a file of one byte has no face."""

    def __init__(self) -> None:
        self.scored: list[str] = []

    def predict(self, paths: Iterable[Path]) -> Iterator[VideoScore]:
        for path in paths:
            self.scored.append(path.name)
            size = path.stat().st_size
            status = ("unreadable", "no_face")[size] if size < 2 else "ok"
            yield VideoScore(path, status, "" if size > 1 else f"{path}: nothing", size / 1000 if size > 1 else 0.5)


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
    journal = Journal(tmp_path / "progress.jsonl", {**SETTINGS, **changes})
    return predictor.scored, submission.score_videos(videos, predictor, journal), journal.changed


def test_finds_videos_in_subfolders_once(tmp_path: Path):
    for name in ("z.MP4", "a.ts", "deep/er/b.m4v", "deep/c.mpg", "cover.png", "deep/metadata.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.avi").symlink_to(tmp_path / "nowhere")
    found, others = submission.find_videos(tmp_path)
    assert list(found) == ["a.ts", "deep/c.mpg", "deep/er/b.m4v", "gone.avi", "z.MP4"]
    assert found["deep/c.mpg"] == tmp_path / "deep" / "c.mpg"
    assert others == ["cover.png", "deep/metadata.json"]
    assert submission.find_videos(tmp_path / "a.ts") == ({"a.ts": tmp_path / "a.ts"}, [])


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


@pytest.mark.parametrize("changes", [{"strategy": "mean"}, {"models": ["def"]}, {"version": 4}])
def test_starts_over_with_other_settings(videos: dict[str, Path], tmp_path: Path, changes: dict):
    score(videos, tmp_path)
    scored, _, changed = score(videos, tmp_path, **changes)
    assert scored == list(videos)
    assert changed == list(changes)


@pytest.mark.parametrize("content", [b"123\n", b"[]\n{}\n", b'{"settings": 5}\n', b"\xff\xfe\n", b""])
def test_starts_over_if_the_progress_file_is_damaged(videos: dict[str, Path], tmp_path: Path, content: bytes):
    (tmp_path / "progress.jsonl").write_bytes(content)
    assert score(videos, tmp_path)[0] == list(videos)
    assert score(videos, tmp_path)[0] == ["b.mp4"]


def test_writes_csv_and_details(tmp_path: Path):
    name = os.fsdecode(b'odd, "name" \xff.mp4')
    records = [submission.to_record(name, VideoScore(Path(name), "ok", score=0.25))]
    submission.write_submission(tmp_path / "s.csv", records)
    submission.write_details(tmp_path / "d.jsonl", records)
    assert (tmp_path / "s.csv").read_bytes() == b'filename,label\n"odd, ""name"" \xff.mp4",0.25\n'
    assert json.loads((tmp_path / "d.jsonl").read_text()) == records[0]


def test_outputs_overwrite_neither_videos_nor_each_other(videos: dict[str, Path], tmp_path: Path):
    good = tmp_path / "new" / "s.csv"
    submission.check_outputs([good, tmp_path / "new" / "d.jsonl"], videos)
    assert good.parent.is_dir()
    video = videos["a.mp4"]
    for outputs, named in (([video], video), ([good, good], good), ([tmp_path], tmp_path), ([video / "s.csv"], video)):
        with pytest.raises(UserError, match=re.escape(str(named))):
            submission.check_outputs(outputs, videos)
