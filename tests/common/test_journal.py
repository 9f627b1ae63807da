"""The journal of finished clips, including journals of earlier versions and damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.journal import Journal, last_settings, stamp_of

RECORD = {"status": "ok", "message": "", "counts": {"crops": 4}, "seconds": 0.5}
# Written by this project before it had a version number.
OLD_SETTINGS = {"stage": "extract_crops", "version": 1}
OLD_STAMP = [[75881, 1795478377340965451], [352, 1795478385067333741]]
OLD_RECORD = {"status": "ok", "message": "", "counts": {"frames": 4, "crops": 4}, "seconds": 0.55}
OLD_JOURNAL = """\
{"settings": {"stage": "extract_crops", "version": 1}}
{"clip": "a", "stamp": [[75881, 1795478377340965451], [352, 1795478385067333741]], "settings": "c69e35ce9e9c", \
"record": {"status": "ok", "message": "", "counts": {"frames": 4, "crops": 4}, "seconds": 0.55}}
{"clip": "bad", "stamp": [[1, 1795478377642610766], null], "settings": "c69e35ce9e9c", \
"record": {"status": "unreadable", "message": "bad.mp4: not a video", "counts": {}, "seconds": 0.028}}
"""


def test_keeps_records_across_runs(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    Journal(path, {"scale": 1}).add("a", [1, 2], RECORD)
    journal = Journal(path, {"scale": 1})
    assert journal.get("a", [1, 2]) == RECORD
    assert journal.get("a", [1, 3]) is None  # its input has changed
    assert journal.get("b", [1, 2]) is None
    assert journal.changed == []
    assert last_settings(path) == {"scale": 1}


def test_keeps_the_records_of_other_settings(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    Journal(path, {"scale": 1, "version": 1}).add("a", [], RECORD)
    other = Journal(path, {"scale": 2, "version": 1})
    assert other.changed == ["scale"]
    assert other.get("a", []) is None
    other.add("b", [], RECORD)
    first = Journal(path, {"version": 1, "scale": 1})
    assert first.get("a", []) == RECORD
    assert first.get("b", []) is None


def test_overwrite_starts_over(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    Journal(path, {}).add("a", [], RECORD)
    assert Journal(path, {}, overwrite=True).get("a", []) is None
    assert Journal(path, {}).get("a", []) is None


def test_the_last_record_counts(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, {})
    journal.add("a", [], RECORD | {"status": "failed"})
    journal.add("a", [], RECORD)
    assert Journal(path, {}).get("a", []) == RECORD
    assert len(path.read_text().splitlines()) == 2  # settings and one record


def test_reads_journals_of_earlier_versions(tmp_path: Path):
    path = tmp_path / "crops.jsonl"
    path.write_text(OLD_JOURNAL)
    journal = Journal(path, OLD_SETTINGS)
    assert journal.changed == []
    assert journal.get("a", OLD_STAMP) == OLD_RECORD
    assert journal.get("bad", [[1, 1795478377642610766], None])["status"] == "unreadable"
    assert path.read_text() == OLD_JOURNAL


@pytest.mark.parametrize("rest", ['{"clip": "b", "sta', "[]", "{}", '{"clip": 7}', "\0\0\0", "[" * 10**5])
def test_reads_up_to_a_damaged_line(tmp_path: Path, rest: str):
    path = tmp_path / "j.jsonl"
    path.write_text(OLD_JOURNAL + rest + "\n")
    journal = Journal(path, OLD_SETTINGS)
    assert journal.get("a", OLD_STAMP) == OLD_RECORD
    journal.add("c", [], RECORD)
    assert Journal(path, OLD_SETTINGS).get("c", []) == RECORD  # not appended to half a line


@pytest.mark.parametrize("content", ["", "text", "[1]\n", '{"settings": 3}\n'])
def test_starts_over_with_a_file_that_is_no_journal(tmp_path: Path, content: str):
    path = tmp_path / "j.jsonl"
    path.write_text(content)
    journal = Journal(path, {})
    journal.add("a", [], RECORD)
    assert Journal(path, {}).get("a", []) == RECORD


def test_stamps(tmp_path: Path):
    path = tmp_path / "file"
    assert stamp_of(path) is None
    path.write_text("abc")
    before = stamp_of(path)
    assert before == [3, path.stat().st_mtime_ns]
    path.write_text("abcd")
    assert stamp_of(path) != before
    assert stamp_of(tmp_path) == [0, tmp_path.stat().st_mtime_ns]
