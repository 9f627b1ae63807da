"""The job runner, with functions that fail in every way."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest

from common.files import OutputError
from common.jobs import MAX_CRASHES, run, summarize
from common.local_executor import run_local
from common.outcome import Job, Outcome, StageError
from common.watchdog import TimeLimits
from tests.support.failing_work import make_jobs, work

IMPATIENT = partial(run_local, limits=TimeLimits(stall=1))


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number of threads than that of the workers. The variables get their old values back after the test."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")


def test_each_clip_gets_a_status(tmp_path: Path):
    folder = tmp_path / "out"
    names = ["a", "dies", "raises", "b", "unreadable", "c", "d"]
    outcomes = run(work, make_jobs(folder, *names), folder, {}, workers=2)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        **dict.fromkeys("abcd", "ok"),
        "dies": "crashed",
        "raises": "failed",
        "unreadable": "unreadable",
    }
    assert outcomes["raises"].message == "RuntimeError: unexpected"
    assert "x.mp4" in outcomes["unreadable"].message
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


def test_stalled_calls_fail_their_clips_only(tmp_path: Path):
    """They do not count as crashes, of which MAX_CRASHES in a row end the run."""
    folder = tmp_path / "out"
    stalls = [f"stalls{number}" for number in range(MAX_CRASHES)]
    outcomes = run(work, make_jobs(folder, "a", *stalls, "b"), folder, {}, workers=MAX_CRASHES + 1, execute=IMPATIENT)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        **dict.fromkeys("ab", "ok"),
        **dict.fromkeys(stalls, "unreadable"),
    }
    assert "--timeout" in outcomes["stalls0"].message
    again = run(work, make_jobs(folder, "stalls0"), folder, {}, workers=1, execute=IMPATIENT)
    assert again == {"stalls0": outcomes["stalls0"]}  # from the journal


def test_lack_of_memory_fails_one_clip(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = tmp_path / "out"
    outcomes = run(work, make_jobs(folder, "memory", "a"), folder, {}, workers=1)
    assert [outcome.status for outcome in outcomes.values()] == ["failed", "ok"]
    assert "--workers" in outcomes["memory"].message
    assert "Traceback" not in capfd.readouterr().err


def test_user_errors_end_the_run(tmp_path: Path):
    with pytest.raises(OutputError, match="no space"):
        run(work, make_jobs(tmp_path / "out", "full", "a"), tmp_path / "out", {}, workers=1)


def test_crashes_in_a_row_end_the_run(tmp_path: Path):
    def executor(_function, jobs, _workers):
        for job in jobs:
            yield job, Outcome("ok" if job.clip.startswith("ok") else "crashed")

    folder = tmp_path / "out"
    first, second = ([f"{name}{number}" for number in range(MAX_CRASHES - 1)] for name in "ab")
    run(work, make_jobs(folder, *first, "ok1", *second), folder, {}, workers=1, execute=executor)
    with pytest.raises(StageError, match="--workers"):
        run(work, make_jobs(folder, *first, "c", "ok2"), folder, {}, workers=1, execute=executor)


def test_resumes_unless_settings_change(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "out"
    run(work, make_jobs(folder, "a"), folder, {"scale": 1}, workers=1)
    first = (folder / "a").read_text()
    run(work, make_jobs(folder, "a"), folder, {"scale": 1}, workers=1)
    assert (folder / "a").read_text() == first
    with caplog.at_level("INFO"):
        run(work, make_jobs(folder, "a"), folder, {"scale": 2}, workers=1)
    assert "scale" in caplog.text
    assert (folder / "a").read_text() != first


def test_other_settings_keep_earlier_records(tmp_path: Path):
    """A run with other settings that stops at once leaves what the first settings have finished."""
    folder = tmp_path / "out"
    run(work, make_jobs(folder, "a", "b"), folder, {"scale": 1}, workers=1)
    first = {name: (folder / name).read_text() for name in "ab"}
    with pytest.raises(OutputError):
        run(work, make_jobs(folder, "full", "a"), folder, {"scale": 2}, workers=1)
    run(work, make_jobs(folder, "b"), folder, {"scale": 2}, workers=1)
    run(work, make_jobs(folder, "a", "b"), folder, {"scale": 1}, workers=1)
    assert (folder / "a").read_text() == first["a"]
    assert (folder / "b").read_text() != first["b"]  # overwritten in between, so it ran again


def test_resumes_from_a_journal_of_an_earlier_version(tmp_path: Path):
    folder, source = tmp_path / "out", tmp_path / "a.mp4"
    folder.mkdir()
    (folder / "a").write_text("finished earlier")
    source.write_bytes(bytes(75))
    os.utime(source, ns=(0, 1795478377340965451))
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress/out.jsonl").write_text(
        '{"settings": {"stage": "extract_images", "version": 1}}\n'
        '{"clip": "a", "stamp": [[75, 1795478377340965451]], "settings": "8bbfc136386f", '
        '"record": {"status": "ok", "message": "", "counts": {"images": 4}, "seconds": 0.55}}\n'
    )
    job = Job("a", (source,), folder / "a", ("a", folder / "a"))
    outcomes = run(work, [job], folder, {"stage": "extract_images", "version": 1}, workers=1)
    assert outcomes == {"a": Outcome("ok", "", {"images": 4}, 0.55)}
    assert (folder / "a").read_text() == "finished earlier"


def test_failed_clips_leave_no_output(tmp_path: Path):
    folder = tmp_path / "out"
    run(work, make_jobs(folder, "raises"), folder, {}, workers=1)
    for name in ("dies", "unreadable"):  # left by an earlier run that could read the clip
        (folder / name).mkdir()
        (folder / name / "old").touch()
    run(work, make_jobs(folder, "dies", "unreadable", "a"), folder, {}, workers=1)
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_refuses_the_folder_of_another_stage(tmp_path: Path):
    folder = tmp_path / "out"
    run(work, make_jobs(folder, "a"), folder, {"stage": "one"}, workers=1)
    with pytest.raises(StageError, match=str(folder)):
        run(work, make_jobs(folder, "a"), folder, {"stage": "two"}, workers=1)


def test_clip_that_takes_too_long(tmp_path: Path):
    folder = tmp_path / "out"
    execute = partial(run_local, limits=TimeLimits(clip=6))  # a worker process needs some of it to start
    outcomes = run(work, make_jobs(folder, "a", "sleeps", "b"), folder, {}, workers=1, execute=execute)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        **dict.fromkeys("ab", "ok"),
        "sleeps": "unreadable",
    }
    assert "--clip-timeout" in outcomes["sleeps"].message
    assert 6 < outcomes["sleeps"].seconds < 60


def test_accepts_another_executor(tmp_path: Path):
    def backwards(function, jobs, workers):
        assert workers == 5
        for job in reversed(list(jobs)):
            yield job, Outcome("ok", f"{function.__name__} {job.clip}")

    outcomes = run(work, make_jobs(tmp_path / "out", "a", "b"), tmp_path / "out", {}, workers=5, execute=backwards)
    assert list(outcomes) == ["a", "b"]  # in the order of the jobs
    assert outcomes["b"].message == "work b"


def test_damaged_record_runs_again(tmp_path: Path):
    folder = tmp_path / "out"
    jobs = make_jobs(folder, "a", "b")
    run(work, jobs, folder, {}, workers=1)
    before = {name: (folder / name).stat().st_mtime_ns for name in "ab"}
    path = tmp_path / "progress" / "out.jsonl"
    lines = path.read_text().splitlines()
    damaged = [line.replace('"status"', '"stavus"') if '"clip": "a"' in line else line for line in lines]
    assert damaged != lines
    path.write_text("\n".join(damaged) + "\n")
    outcomes = run(work, jobs, folder, {}, workers=1)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {"a": "ok", "b": "ok"}
    changed = {name: (folder / name).stat().st_mtime_ns != before[name] for name in "ab"}
    assert changed == {"a": True, "b": False}
