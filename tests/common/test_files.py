"""Atomic writes: an output is either complete or missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.files import OutputError, atomic_file, atomic_folder, atomic_write, make_folder, remove


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
