"""Atomic writes: an output is either complete or missing."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from common.files import (
    OutputError,
    append,
    atomic_file,
    atomic_folder,
    atomic_write,
    lock,
    lock_path,
    make_folder,
    remove,
    temporary_path,
)
from common.shards import WHOLE, Shard
from tests.support import programs


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_halfway(path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("another half")
        raise OSError(28, "No space left on device")


def test_atomic_file_appears_when_complete(tmp_path: Path):
    path = tmp_path / "a.csv"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    with pytest.raises(OutputError):
        fail_halfway(path)
    assert path.read_text() == "half"
    assert names(tmp_path) == ["a.csv"]


def test_atomic_write_keeps_the_bytes_of_file_names(tmp_path: Path):
    atomic_write(tmp_path / "a", b"caf\xe9.mp4".decode("utf-8", "surrogateescape"))
    assert (tmp_path / "a").read_bytes() == b"caf\xe9.mp4"


def test_atomic_folder_appears_when_complete(tmp_path: Path):
    path = tmp_path / "clip"
    with atomic_folder(path) as folder:
        (folder / "1").touch()
        assert not path.exists()
    with pytest.raises(OutputError), atomic_folder(path) as folder:
        (folder / "2" / "deeper").touch()
    assert names(path) == ["1"]
    with atomic_folder(path) as folder:
        (folder / "3").touch()
    assert names(path) == ["3"]
    assert names(tmp_path) == ["clip"]


def test_atomic_folder_removes_leftovers_of_a_killed_run(tmp_path: Path):
    for leftover in (".clip.part", ".clip.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "incomplete").touch()
    with atomic_folder(tmp_path / "clip") as folder:
        (folder / "1").touch()
    assert names(tmp_path) == ["clip"]
    assert names(tmp_path / "clip") == ["1"]


def test_temporary_file_is_new(tmp_path: Path):
    """What is at its name, such as a link to another file or a named pipe, is not written to."""
    path, other = tmp_path / "a.csv", tmp_path / "other"
    other.write_text("other")
    temporary_path(path).symlink_to(other)
    atomic_write(path, "first")
    os.mkfifo(temporary_path(path))
    atomic_write(path, "second")
    temporary_path(path).write_text("left by a killed run")
    atomic_write(path, "third")
    assert (path.read_text(), other.read_text()) == ("third", "other")
    assert names(tmp_path) == ["a.csv", "other"]


def test_outputs_of_similar_names_do_not_collide(tmp_path: Path):
    with atomic_file(tmp_path / "a.csv.part") as first, atomic_file(tmp_path / "a.csv") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.csv.part").read_text() == "first"
    assert (tmp_path / "a.csv").read_text() == "second"


def test_atomic_folder_replaces_links_and_files(tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    for leftover in (".clip.part", ".clip.old", "clip"):
        (tmp_path / leftover).symlink_to(other)
    with atomic_folder(tmp_path / "clip") as folder:
        (folder / "1").touch()
    assert names(tmp_path) == ["clip", "other"]
    assert (names(tmp_path / "clip"), names(other)) == (["1"], ["file"])


def test_full_disk_names_the_file_and_the_remedy(tmp_path: Path):
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=f"{tmp_path}/full: .*[Ff]ree"):
        append(tmp_path / "full", b"line")
    append(tmp_path / "log", b"1\n")
    append(tmp_path / "log", b"2\n")
    assert (tmp_path / "log").read_bytes() == b"1\n2\n"


FORK = multiprocessing.get_context("fork")


def add_one(path: Path, output: Path) -> None:
    """Add 1 to the number in a file, slowly."""
    with lock(output):
        number = int(path.read_text())
        time.sleep(0.1)
        path.write_text(str(number + 1))


def test_lock_admits_one_process_at_a_time(tmp_path: Path):
    """Also when the lock file is removed while several processes wait for it."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [FORK.Process(target=add_one, args=(counter, tmp_path / "output")) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert counter.read_text() == "8"
    assert names(tmp_path) == ["counter"]


def hold(output: Path, part: range, messages: Path, entered: Event, leave: Event) -> None:
    """Lock a part of an output until told to leave; log to a file."""
    logging.basicConfig(filename=messages, force=True)
    with lock(output, part):
        entered.set()
        leave.wait(60)


@contextmanager
def holder(output: Path, part: range, messages: Path) -> Iterator[tuple[Event, Event]]:
    """A process that locks a part. Yields the events that say that it has the lock, and that tell it to leave."""
    entered, leave = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold, args=(output, part, messages, entered, leave), daemon=True)
    process.start()
    try:
        yield entered, leave
    finally:
        leave.set()
        process.join(60)
        assert process.exitcode == 0


WAITING = [(WHOLE, WHOLE), (WHOLE, Shard(2, 4)), (Shard(2, 4), WHOLE), (Shard(2, 4), Shard(1, 2)), (Shard(1, 3),) * 2]


@pytest.mark.parametrize(("first", "second"), WAITING, ids=str)
def test_locks_of_overlapping_parts_wait(tmp_path: Path, first: Shard, second: Shard):
    output, messages = tmp_path / "output", tmp_path / "messages"
    with holder(output, first.positions, messages) as (entered, leave):
        assert entered.wait(60)
        with holder(output, second.positions, messages) as (entered, _):
            programs.wait_for(lambda: f"{output}: another run" in messages.read_text(), "a message")
            assert not entered.is_set()
            with lock(tmp_path / "another"):  # in the same folder
                pass
            leave.set()
            assert entered.wait(60)
    assert names(tmp_path) == ["messages"]


def test_locks_of_other_shards_do_not_wait(tmp_path: Path):
    """The lock file is removed by the last one only."""
    output, messages = tmp_path / "output", tmp_path / "messages"
    with holder(output, Shard(1, 4).positions, messages) as (entered, _):
        assert entered.wait(60)
        for shard in (Shard(0, 4), Shard(2, 4), Shard(3, 4), Shard(1, 2), Shard(0, 5)):
            with holder(output, shard.positions, messages) as (entered, _):
                assert entered.wait(60)
            assert lock_path(output).exists()
        assert messages.read_text() == ""
    assert names(tmp_path) == ["messages"]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int
):
    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.lockf", fail)
    with lock(tmp_path / "output"):
        pass
    [message] = caplog.messages
    assert message.startswith(f"{tmp_path}/output: cannot be locked ({os.strerror(error)}). Make sure")
    assert names(tmp_path) == []


def test_lock_of_a_killed_process_is_released(tmp_path: Path):
    (tmp_path / ".output.lock").touch()
    with lock(tmp_path / "output"):
        pass
    assert names(tmp_path) == []
    (tmp_path / ".output.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=str(tmp_path / "output")), lock(tmp_path / "output"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_errors_name_the_output(tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    below = file / "below"
    with pytest.raises(OutputError, match=str(below)), atomic_folder(below):
        pass
    with pytest.raises(OutputError, match=str(below)):
        atomic_write(below, "")
    with pytest.raises(OutputError, match=str(below)):
        make_folder(below)
    with pytest.raises(OutputError, match=str(file)):
        make_folder(file)


def test_remove(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "file").touch()
    for name in ("folder", "file", "missing"):
        remove(tmp_path / name)
    assert names(tmp_path) == []
