"""predict_folder.py on folders and outputs that an adversary or an accident has made."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.files import lock
from tests.support import programs
from tests.support.details import read_records

ROOT = Path(__file__).parents[2]
CONTROL = "\x1b]0;title\x07\n\u202e\x9b.mp4"
FAST = ("--device", "cpu", "--precision", "float32", "--frames", "1")


def command(videos: str | Path, output: str | Path, *options: str | Path) -> list[str | Path]:
    return [sys.executable, ROOT / "predict_folder.py", "--test-dir", videos, "--output", output, *FAST, *options]


@pytest.fixture
def folder(tmp_path: Path, face_video: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One good video among pipes, devices, loops, names that control the terminal and a folder that cannot be listed.

    The path of that folder is too long, which is an error for root, too.
    """
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(face_video, folder / "good.mp4")
    (folder / CONTROL).write_text("not a video")
    for name in ("pipe.mp4", "pipe"):
        os.mkfifo(folder / name)
    links = {
        "loop.mp4": "loop.mp4",
        "loop": "loop",
        "to_pipe.mp4": "pipe",
        "zero.mp4": "/dev/zero",
        "zero": "/dev/zero",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    monkeypatch.chdir(folder)
    for _ in range(20):
        Path("d" * 250).mkdir()
        os.chdir("d" * 250)
    os.chdir(tmp_path)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.mark.slow
def test_scores_the_good_video_and_reports_all_others(folder: Path, tmp_path: Path):
    done = programs.run(command(folder, tmp_path / "s.csv", "--details", tmp_path / "d.jsonl"))
    assert done.returncode == 3
    rows = dict(csv.reader((tmp_path / "s.csv").open(newline="")))
    assert rows.pop("filename") == "label"
    assert rows.pop("good.mp4") not in ("0.5", None)
    assert rows == dict.fromkeys((CONTROL, "loop.mp4", "pipe.mp4", "to_pipe.mp4", "zero.mp4"), "0.5")
    details = read_records(tmp_path / "d.jsonl")
    assert details.keys() == {*rows, "good.mp4"}
    assert {details[name]["status"] for name in rows} == {"unreadable"}
    assert all("not a regular file" in details[name]["message"] for name in ("pipe.mp4", "to_pipe.mp4", "zero.mp4"))
    assert "skipped, not videos: loop, pipe, zero\n" in done.stderr
    assert "d: the folder cannot be listed (File name too long)" in done.stderr
    [summary] = done.stdout.splitlines()
    assert "1 ok, 5 unreadable, 1 folder not listed: " in summary
    assert r"\x1b]0;title\x07\n\u202e\x9b.mp4" in summary
    assert not set("\x1b\x07\u202e\x9b") & set(done.stdout + done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_runs_with_the_same_output_take_turns(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, face_video: Path
):
    output, progress = tmp_path / "s.csv", tmp_path / "s.csv.progress.jsonl"
    messages = tmp_path_factory.mktemp("messages") / "stderr"
    with (
        messages.open("w") as errors,
        lock(output),
        programs.started(command(face_video, output), stderr=errors) as process,
    ):
        programs.wait_for(lambda: f"{output}: another run" in messages.read_text(), "a message", process)
        assert not progress.exists()
        (tmp_path / ".s.csv.lock").unlink()  # the end of this run
        with lock(output):
            pass
    done = programs.run(command(face_video, output))
    assert done.returncode == 0, done.stderr
    first = output.read_text()

    settings, record = progress.read_bytes().splitlines()
    progress.write_bytes(settings[1:] + b"\n\xff\xfe\n" + record + b"\n")
    done = programs.run(command(face_video, output))
    assert done.returncode == 0, done.stderr
    assert f"{progress}: ignored 2 damaged lines; the original is kept as {progress}.damaged" in done.stderr
    assert "1 of 1 video finished" in done.stderr
    assert output.read_text() == first
    assert progress.read_bytes().splitlines() == [settings, record]
    assert {path.name for path in tmp_path.iterdir()} == {output.name, progress.name, f"{progress.name}.damaged"}


@pytest.mark.parametrize(
    ("videos", "output", "named"),
    [
        ("{clip}", "", "."),
        ("{clip}", ".", "."),
        ("{clip}", "/", "/"),
        ("{clip}", "{tmp}", "{tmp}"),
        ("{clip}", "{tmp}/pipe.mp4", "{tmp}/pipe.mp4"),
        ("{clip}", "{clip}/s.csv", "{clip}"),
        ("{clip}", "{clip}/deeper/s.csv", "{clip}/deeper"),
        ("{clip}", "{tmp}/" + "n" * 250, "n"),
        ("{tmp}/pipe.mp4", "{tmp}/s.csv", "{tmp}/pipe.mp4"),
        ("{tmp}/loop.mp4", "{tmp}/s.csv", "{tmp}/loop.mp4"),
        ("{tmp}/a\nb", "{tmp}/s.csv", "{tmp}/a\\nb"),
    ],
)
def test_wrong_paths_are_errors_of_one_line(tmp_path: Path, face_video: Path, videos: str, output: str, named: str):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    videos, output, named = (text.format(tmp=tmp_path, clip=face_video) for text in (videos, output, named))
    done = programs.run(command(videos, output), cwd=tmp_path)
    assert done.returncode == 2
    [message] = done.stderr.splitlines()
    assert message.startswith("error: ")
    assert named in message
    assert not list(tmp_path.glob("*s.csv*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["garbage", "folder", "pipe"])
def test_progress_file_that_is_something_else_is_an_error(tmp_path: Path, face_video: Path, kind: str):
    progress = tmp_path / "s.csv.progress.jsonl"
    {"garbage": lambda path: path.write_bytes(bytes(1000)), "folder": Path.mkdir, "pipe": os.mkfifo}[kind](progress)
    done = programs.run(command(face_video, tmp_path / "s.csv"))
    assert done.returncode == 2
    assert f"error: {progress}: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
