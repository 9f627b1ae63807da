"""The runner of clips with functions that go wrong in ways of their own."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from common.files import OutputError, atomic_folder, atomic_write
from common.jobs import MAX_CRASHES, Job, Outcome, StageError, run, summarize
from preprocessing.video import VideoError


def work(name: str, output: Path) -> Outcome:
    if name == "dies":
        os._exit(9)
    if name == "raises":
        raise RuntimeError("nobody foresaw this")
    if name == "unreadable":
        raise VideoError("x.mp4", "is broken")
    if name == "full":
        raise OutputError("no space")
    atomic_write(output, f"{os.getpid()} {threading.active_count()} {os.environ['OMP_NUM_THREADS']}")
    return Outcome("ok", counts={"files": 1})


def jobs_of(folder: Path, *names: str) -> list[Job]:
    return [Job(name, (), folder / name, (name, folder / name)) for name in names]


def test_each_clip_ends_in_a_status(tmp_path: Path):
    folder = tmp_path / "out"
    names = ["a", "dies", "raises", "b", "unreadable", "c", "d"]
    outcomes = run(work, jobs_of(folder, *names), folder, {}, workers=2)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        **dict.fromkeys("abcd", "ok"),
        "dies": "crashed",
        "raises": "failed",
        "unreadable": "unreadable",
    }
    assert outcomes["raises"].message == "RuntimeError: nobody foresaw this"
    assert outcomes["unreadable"].message == "x.mp4: is broken"
    contents = [(folder / name).read_text().split() for name in "abcd"]
    assert len({pid for pid, *_ in contents}) <= 3  # two workers, one of them replaced
    assert str(os.getpid()) not in {pid for pid, *_ in contents}
    assert {threads for *_, threads in contents} == {"1"}
    lines = [json.loads(line) for line in (tmp_path / "progress/out.jsonl").read_text().splitlines()]
    assert {line["clip"] for line in lines[1:]} == set(names) - {"dies"}
    assert len({line["settings"] for line in lines[1:]}) == 1
    assert set(lines[1]["record"]) == {"status", "message", "counts", "seconds"}
    table = summarize(outcomes).splitlines()
    assert table[0].split() == ["status", "clips", "files"]
    assert ["ok", "4", "4"] in [line.split() for line in table]
    assert ["crashed", "1", "0"] in [line.split() for line in table]


def test_what_ends_a_stage(tmp_path: Path):
    folder = tmp_path / "out"
    with pytest.raises(OutputError, match="no space"):
        run(work, jobs_of(folder, "full", "a"), folder, {}, workers=1)
    with pytest.raises(StageError, match="workers in a row died"):
        run(work, [*jobs_of(folder, *["dies"]) * (MAX_CRASHES + 5)], folder, {}, workers=2)


def test_other_settings_start_afresh(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "out"
    run(work, jobs_of(folder, "a"), folder, {"scale": 1}, workers=1)
    first = (folder / "a").read_text()
    run(work, jobs_of(folder, "a"), folder, {"scale": 1}, workers=1)
    assert (folder / "a").read_text() == first
    with caplog.at_level("INFO"):
        run(work, jobs_of(folder, "a"), folder, {"scale": 2}, workers=1)
    assert "another scale" in caplog.text
    assert (folder / "a").read_text() != first


def test_trying_other_settings_loses_nothing(tmp_path: Path):
    """A run with other settings that is stopped at once leaves what was done with the first ones."""
    folder = tmp_path / "out"
    run(work, jobs_of(folder, "a", "b"), folder, {"scale": 1}, workers=1)
    first = {name: (folder / name).read_text() for name in "ab"}
    with pytest.raises(OutputError):
        run(work, jobs_of(folder, "full", "a"), folder, {"scale": 2}, workers=1)
    run(work, jobs_of(folder, "b"), folder, {"scale": 2}, workers=1)
    run(work, jobs_of(folder, "a", "b"), folder, {"scale": 1}, workers=1)
    assert (folder / "a").read_text() == first["a"]
    assert (folder / "b").read_text() != first["b"]  # it was overwritten in between, so it was done again


def test_what_fails_has_no_output(tmp_path: Path):
    folder = tmp_path / "out"
    run(work, jobs_of(folder, "raises"), folder, {}, workers=1)
    for name in ("dies", "unreadable"):  # left by an earlier run, which could read the clip
        (folder / name).mkdir()
        (folder / name / "old").touch()
    run(work, jobs_of(folder, "dies", "unreadable", "a"), folder, {}, workers=1)
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_folder_belongs_to_one_stage(tmp_path: Path):
    folder = tmp_path / "out"
    run(work, jobs_of(folder, "a"), folder, {"stage": "one"}, workers=1)
    with pytest.raises(StageError, match="holds the results of one"):
        run(work, jobs_of(folder, "a"), folder, {"stage": "two"}, workers=1)


def test_another_executor(tmp_path: Path):
    """Anything with the executor's signature will do."""

    def backwards(function, jobs, workers):
        assert workers == 5
        for job in reversed(list(jobs)):
            yield job, Outcome("ok", f"{function.__name__} {job.clip}")

    outcomes = run(work, jobs_of(tmp_path / "out", "a", "b"), tmp_path / "out", {}, workers=5, execute=backwards)
    assert list(outcomes) == ["a", "b"]  # in the order of the jobs, whatever ended first
    assert outcomes["b"].message == "work b"


def test_whole_folder(tmp_path: Path):
    path = tmp_path / "clip"
    with atomic_folder(path) as folder:
        (folder / "1").touch()
        assert not path.exists()
    with pytest.raises(OutputError, match="No such file"), atomic_folder(path) as folder:
        (folder / "2" / "deeper").touch()
    assert [entry.name for entry in path.iterdir()] == ["1"]
    for left_over in (".clip.part", ".clip.old"):
        (tmp_path / left_over).mkdir()
        (tmp_path / left_over / "rubbish").touch()
    with atomic_folder(path) as folder:
        (folder / "3").touch()
    assert [entry.name for entry in path.iterdir()] == ["3"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip"]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"), atomic_folder(tmp_path / "file" / "clip"):
        time.sleep(0)
