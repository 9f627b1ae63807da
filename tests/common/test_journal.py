"""The journal of finished clips, including journals of earlier versions and damaged ones."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from common.files import OutputError
from common.journal import Journal, JournalError, journal_files, last_settings, stamp_of
from common.shards import Shard, shard_path

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


DAMAGED = ["[]", "{}", '{"clip": 7}', "\0\0\0", "[" * 10**5, '{"clip": "b", "sta', '{"settings": 3}', "\ufeff{}"]


@pytest.mark.parametrize("rest", DAMAGED)
def test_ignores_the_rest_of_a_killed_write(tmp_path: Path, caplog: pytest.LogCaptureFixture, rest: str):
    path = tmp_path / "j.jsonl"
    path.write_text(OLD_JOURNAL + rest)
    journal = Journal(path, OLD_SETTINGS)
    assert journal.get("a", OLD_STAMP) == OLD_RECORD
    journal.add("c", [], RECORD)
    assert Journal(path, OLD_SETTINGS).get("c", []) == RECORD  # not appended to half a line
    assert not caplog.messages
    assert [path.name for path in tmp_path.iterdir()] == ["j.jsonl"]


@pytest.mark.parametrize("damaged", DAMAGED)
@pytest.mark.parametrize("position", [1, 2, 3])
def test_keeps_every_line_that_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: str, position: int):
    """The damaged file is kept, too, and also that of an earlier time."""
    path = tmp_path / "j.jsonl"
    lines = OLD_JOURNAL.splitlines()
    content = "".join(f"{line}\n" for line in (*lines[:position], damaged, *lines[position:], damaged))
    for number in (1, 2):
        path.write_text(content)
        caplog.clear()
        journal = Journal(path, OLD_SETTINGS)
        assert journal.get("a", OLD_STAMP) == OLD_RECORD
        assert journal.get("bad", [[1, 1795478377642610766], None])["status"] == "unreadable"
        assert path.read_text() == OLD_JOURNAL
        copy = tmp_path / ("j.jsonl.damaged" if number == 1 else "j.jsonl.damaged.2")
        assert copy.read_text() == content
        [message] = caplog.messages
        assert "2 damaged lines" in message
        assert message.endswith(str(copy))
    Journal(path, OLD_SETTINGS)
    assert len(list(tmp_path.iterdir())) == 3


def test_records_behind_damaged_settings_are_used(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "j.jsonl"
    path.write_text(OLD_JOURNAL[1:])
    assert last_settings(path) == {}
    journal = Journal(path, OLD_SETTINGS)
    assert journal.changed == []
    assert journal.get("a", OLD_STAMP) == OLD_RECORD
    assert "1 damaged line;" in caplog.text
    assert path.read_text() == OLD_JOURNAL
    assert last_settings(path) == OLD_SETTINGS


def test_incomplete_records_count_as_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Only those with the current settings: records of other versions may differ."""
    path = tmp_path / "j.jsonl"
    Journal(path, {"version": 1}).add("a", [], {"old": 1})
    journal = Journal(path, {"version": 2})
    journal.add("a", [], {"status": "ok", "clip": "a"})
    journal.add("b", [], {"status": "ok", "clip": "c"})
    journal.add("c", [], {"status": "ok", "clip": "c"})
    journal = Journal(path, {"version": 2}, is_valid=lambda clip, record: record.get("clip") == clip)
    assert [journal.get(clip, []) is not None for clip in "abc"] == [True, False, True]
    assert "1 damaged line;" in caplog.text
    caplog.clear()
    Journal(path, {"version": 1}, is_valid=lambda _clip, record: "old" in record)
    assert not caplog.messages


@pytest.mark.parametrize("content", [b"text", b"text\n", b"[1]\n", b'{"settings": 3}\n', bytes(range(256)), bytes(99)])
def test_file_that_is_no_journal_is_an_error(tmp_path: Path, content: bytes):
    """It may be something else, so only --overwrite replaces it."""
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    assert last_settings(path) == {}
    with pytest.raises(JournalError, match=re.escape(str(path))):
        Journal(path, {})
    assert path.read_bytes() == content
    Journal(path, {}, overwrite=True).add("a", [], RECORD)
    assert Journal(path, {}).get("a", []) == RECORD


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_empty_file_is_a_new_journal(tmp_path: Path, content: bytes):
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    Journal(path, {}).add("a", [], RECORD)
    assert Journal(path, {}).get("a", []) == RECORD


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, overwrite: bool):
    path = tmp_path / "j.jsonl"
    {"folder": Path.mkdir, "pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero")}[kind](path)
    before = path.lstat()
    assert last_settings(path) == {}
    with pytest.raises(JournalError, match=re.escape(str(path))):
        Journal(path, {}, overwrite)
    assert path.lstat() == before


def test_full_disk_is_an_output_error(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path, {})
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(OutputError, match=re.escape(str(path))):
        journal.add("a", [], RECORD)


FIRST, SECOND = Shard(0, 2), Shard(1, 2)
FAILED = RECORD | {"status": "failed"}


def test_every_run_reads_the_records_of_all_shards(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    for clip, shard in (("a", FIRST), ("b", SECOND), ("c", None)):
        Journal(path, {}, shard=shard).add(clip, [], RECORD)
    assert journal_files(path) == [path, shard_path(path, FIRST), shard_path(path, SECOND)]
    before = {file: file.read_bytes() for file in journal_files(path)}
    for shard in (FIRST, SECOND, None, Shard(2, 3)):
        journal = Journal(path, {}, shard=shard, clips="abcd")
        assert [journal.get(clip, []) for clip in "abcd"] == [RECORD, RECORD, RECORD, None]
        assert journal.path == shard_path(path, shard)
    assert {file: file.read_bytes() for file in before} == before


def test_records_of_clips_that_are_not_needed_are_not_kept(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    other = Journal(path, {}, shard=FIRST)
    for clip in "ab":
        other.add(clip, [], RECORD)
    journal = Journal(path, {}, clips="b")
    assert [journal.get(clip, []) for clip in "ab"] == [None, RECORD]


def test_the_newest_record_of_all_files_counts(tmp_path: Path):
    """Whichever file it is in, and also if it was made with other settings, because the output was replaced."""
    path = tmp_path / "j.jsonl"
    Journal(path, {}, shard=SECOND, clips="a").add("a", [], FAILED)
    Journal(path, {}, clips="a").add("a", [], RECORD)
    for shard in (FIRST, SECOND, None):
        assert Journal(path, {}, shard=shard, clips="a").get("a", []) == RECORD
    Journal(path, {}, shard=FIRST, clips="a").add("a", [], FAILED)
    Journal(path, {"scale": 2}, shard=SECOND, clips="a").add("a", [], RECORD)
    for shard in (FIRST, SECOND, None):
        assert Journal(path, {}, shard=shard, clips="a").get("a", []) is None
        assert Journal(path, {"scale": 2}, shard=shard, clips="a").get("a", []) == RECORD


@pytest.mark.parametrize("shard", [FIRST, None], ids=str)
def test_overwrite_invalidates_the_records_of_other_files(tmp_path: Path, shard: Shard | None):
    """Also in the next run, if the one with --overwrite is interrupted; but not those of other clips."""
    path = tmp_path / "j.jsonl"
    other = Journal(path, {}, shard=SECOND)
    for clip in "ab":
        other.add(clip, [], RECORD)
    Journal(path, {}, overwrite=True, shard=shard, clips="a")
    for reader in (FIRST, SECOND, None):
        journal = Journal(path, {}, shard=reader, clips="ab")
        assert [journal.get(clip, []) for clip in "ab"] == [None, RECORD]
    Journal(path, {}, shard=shard, clips="a").add("a", [], FAILED)
    assert Journal(path, {}, shard=SECOND, clips="ab").get("a", []) == FAILED


def test_files_of_other_runs_are_not_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Another run may be appending a line at this moment."""
    path = tmp_path / "j.jsonl"
    other = shard_path(path, FIRST)
    other.write_text(OLD_JOURNAL + OLD_JOURNAL.splitlines()[1][:50])
    assert Journal(path, OLD_SETTINGS, clips="a").get("a", OLD_STAMP) == OLD_RECORD
    assert not caplog.messages
    content = f"junk\n{OLD_JOURNAL}"
    other.write_text(content)
    assert Journal(path, OLD_SETTINGS, clips="a").get("a", OLD_STAMP) == OLD_RECORD
    assert caplog.messages == [f"{other}: ignored 1 damaged line"]
    assert other.read_text() == content
    other.write_text("junk\n")
    with pytest.raises(JournalError, match=re.escape(str(other))):
        Journal(path, OLD_SETTINGS, clips="a")


def test_file_is_not_replaced_without_need(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    Journal(path, {}).add("a", [], RECORD)
    before = path.stat()
    Journal(path, {}).add("b", [], RECORD)
    assert path.stat().st_ino == before.st_ino


def test_file_that_its_owner_replaces_on_nfs_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "j.jsonl"
    Journal(path, {"scale": 1})
    errors, read_bytes = [], Path.read_bytes

    def stale(self: Path) -> bytes:
        if len(errors) < 2:
            errors.append(OSError(errno.ESTALE, os.strerror(errno.ESTALE)))
            raise errors[-1]
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", stale)
    assert last_settings(path) == {"scale": 1}
    assert len(errors) == 2


def test_stamps(tmp_path: Path):
    path = tmp_path / "file"
    assert stamp_of(path) is None
    path.write_text("abc")
    before = stamp_of(path)
    assert before == [3, path.stat().st_mtime_ns]
    path.write_text("abcd")
    assert stamp_of(path) != before
    assert stamp_of(tmp_path) == [0, tmp_path.stat().st_mtime_ns]
