"""Shards of predict_folder.py and their merge give what a whole run gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from common.files import lock
from common.shards import Shard
from preprocessing import sample_clips
from tests.support import programs
from tests.support.datasets import file_hashes
from tests.support.details import read_header, read_records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
INTERRUPTED = ROOT / "tests/support/interrupted.py"
FAST = ("--device", "cpu", "--precision", "float32", "--frames", "4", "--workers", "1")
SHARDS = [Shard(index, 4) for index in range(4)]
CLIPS = [f"{number}.mp4" for number in range(7)]
BAD, BELOW = "bad.mp4", "below/\udcff.mp4"
NAMES = {*CLIPS, BAD, BELOW}
# What differs between two runs.
TIMES = ("seconds", "processing_seconds")
OF_THE_START = ("created", "directory", "arguments")

Runs = list[subprocess.CompletedProcess[str]]


def command(videos: Path, output: Path, *options: str | Path) -> list[str]:
    """Run with all outputs; --details and --annotate are beside the CSV."""
    outputs = ("--output", output, "--details", output.with_suffix(".jsonl"), "--annotate", output.with_suffix(""))
    arguments = ("--test-dir", videos, *outputs, *FAST, *options)
    return [sys.executable, str(ROOT / "predict_folder.py"), *map(str, arguments)]


def run(videos: Path, output: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return programs.run(command(videos, output, *options))


def scored(output: Path, shard: Shard) -> list[str]:
    """The videos that a shard has scored, from its progress file."""
    path = output.with_name(f"{output.name}.progress.shard-{shard.index}-of-{shard.count}.jsonl")
    return [json.loads(line)["clip"] for line in path.read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of several sizes, one with a name that is not UTF-8, and a damaged one."""
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(CLIPS):
        sample_clips.face_clip(folder / name, 4 + number, 240 + 16 * number, 240)
    (folder / BAD).write_text("no video")
    (folder / BELOW).parent.mkdir()
    shutil.copy(folder / CLIPS[0], folder / BELOW)
    return folder


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("whole") / "s.csv"
    return output, run(videos, output)


@pytest.fixture(scope="module")
def sharded(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Runs]:
    """Four shards, two of which run at a time. The largest one was killed before."""
    output = tmp_path_factory.mktemp("sharded") / "s.csv"
    largest = max(SHARDS, key=lambda shard: sum(name in shard for name in NAMES))
    python, *script = command(videos, output, "--shard", str(largest))
    killed = programs.run([python, INTERRUPTED, "SIGKILL", "2", *script])
    assert killed.returncode == -signal.SIGKILL
    assert len(scored(output, largest)) == 2 < sum(name in largest for name in NAMES)
    with ThreadPoolExecutor(2) as pool:
        return output, list(pool.map(lambda shard: run(videos, output, "--shard", str(shard)), SHARDS))


@pytest.fixture
def copy(sharded: tuple[Path, Runs], tmp_path: Path) -> Path:
    """The output path in a copy of the results of the shards."""
    shutil.copytree(sharded[0].parent, tmp_path / "copy")
    return tmp_path / "copy" / "s.csv"


def without(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def test_each_shard_writes_its_results(sharded: tuple[Path, Runs]):
    output, finished = sharded
    for shard, done in zip(SHARDS, finished, strict=True):
        assert done.returncode == (3 if BAD in shard else 0), done.stderr
        names = {name for name in NAMES if name in shard}
        records = read_records(output.with_name(f"s.csv.shard-{shard.index}-of-4.jsonl"))
        assert records.keys() == names
        assert all(record["sha256"] for record in records.values())  # for --details
        assert sorted(scored(output, shard)) == sorted(names - {BAD})  # each once, also after the kill
    assert not output.exists()
    assert not output.with_suffix(".jsonl").exists()
    assert not list(output.parent.glob(".*"))


def test_merge_equals_a_whole_run(videos: Path, whole: tuple[Path, subprocess.CompletedProcess[str]], copy: Path):
    (expected, finished), output = whole, copy
    merged = run(videos, output, "--merge")
    assert (merged.returncode, finished.returncode) == (3, 3), merged.stderr
    assert merged.stdout.replace(str(output.parent), str(expected.parent)) == finished.stdout
    assert output.read_bytes() == expected.read_bytes()
    assert file_hashes(output.with_suffix("")) == file_hashes(expected.with_suffix(""))
    details = [path.with_suffix(".jsonl") for path in (output, expected)]
    headers = [read_header(path) for path in details]
    assert list(headers[0]) == list(headers[1])
    assert without(headers[0], OF_THE_START) == without(headers[1], OF_THE_START)
    records = [[without(record, TIMES) for record in read_records(path).values()] for path in details]
    assert list(map(json.dumps, records[0])) == list(map(json.dumps, records[1]))


def test_merge_loads_no_network(videos: Path, copy: Path):
    report = copy.with_suffix(".html")
    python, *script = command(videos, copy, "--merge", "--report", report)
    finished = programs.run([python, "-X", "importtime", *script])
    assert finished.returncode == 3
    assert all(name in report.read_text() for name in CLIPS)
    loaded = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "inference.shard_results" in loaded
    assert "torch" not in loaded


def test_other_runs_score_nothing_again(videos: Path, copy: Path, whole: tuple[Path, subprocess.CompletedProcess[str]]):
    """Runs with another N and without shards read the records of all shards."""
    for shard in (Shard(0, 2), Shard(1, 2)):
        finished = run(videos, copy, "--shard", str(shard))
        assert finished.returncode == (3 if BAD in shard else 0), finished.stderr
        assert scored(copy, shard) == []
    several = run(videos, copy, "--merge")
    assert several.returncode == 2
    assert f"Delete {copy}.shard-*-of-2.jsonl or {copy}.shard-*-of-4.jsonl" in several.stderr
    finished = run(videos, copy)
    assert finished.returncode == 3
    assert "8 of 9 videos" in finished.stderr
    assert copy.read_bytes() == whole[0].read_bytes()


def test_overwrite_scores_the_videos_of_the_shard_again(videos: Path, copy: Path):
    shard = next(shard for shard in SHARDS if CLIPS[0] in shard)
    finished = run(videos, copy, "--shard", str(shard), "--overwrite")
    assert f"of {len(scored(copy, shard))} videos finished" not in finished.stderr
    assert {name for name in NAMES - {BAD} if name in shard} == set(scored(copy, shard))
    finished = run(videos, copy)
    assert "8 of 9 videos" in finished.stderr


def test_merge_names_the_shards_to_run(videos: Path, copy: Path, tmp_path: Path):
    changed = shutil.copytree(videos, tmp_path / "videos", symlinks=True)
    assert run(changed, copy, "--merge").returncode == 3  # a copy has the times of the files
    os.utime(changed / CLIPS[0])
    (changed / CLIPS[1]).unlink()
    shutil.copy(changed / CLIPS[2], changed / "new.mp4")
    (changed / BAD).write_text("still no video")
    outdated = [CLIPS[0], CLIPS[1], "new.mp4", BAD]
    finished = run(changed, copy, "--merge")
    assert finished.returncode == 2
    shards = [str(shard) for shard in SHARDS if any(name in shard for name in outdated)]
    assert finished.stderr.endswith(f"Run the shards {', '.join(shards)} again\n")
    assert all(name in finished.stderr for name in outdated)
    assert not any(name in finished.stderr for name in NAMES - set(outdated))

    for index in (1, 3):
        copy.with_name(f"s.csv.shard-{index}-of-4.jsonl").unlink()
    finished = run(videos, copy, "--merge")
    assert finished.returncode == 2
    assert f"{copy} lacks the results of the shards 1/4, 3/4. " in finished.stderr
    elsewhere = run(videos, copy.with_name("t.csv"), "--merge")
    assert elsewhere.returncode == 2
    assert "t.csv.shard-I-of-N.jsonl" in elsewhere.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--frames", "5"), "--frames: not as in "),
        (("--strategy", "mean", "--aggregate", "person"), "--strategy, --aggregate: not as in "),
        (("--detector-scale", "0.5"), "--detector-scale: not as in "),
        (("--precision", "bfloat16", "--device", "cuda"), "--precision, --device: not as in "),
        (("--backend", "openvino"), "--backend: not as in "),
        (("--models", "{other}"), "--models: not as in "),
        (("--overwrite",), "--merge: processes no clip. Leave out --overwrite"),
    ],
)
def test_merge_with_other_options_is_an_error(videos: Path, copy: Path, options: tuple[str, ...], message: str):
    other = copy.with_name("other.pt")
    other.write_bytes(b"another checkpoint")
    finished = run(videos, copy, "--merge", *(option.format(other=other) for option in options))
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not copy.exists()


def edit_header(path: Path, **changes: Any) -> None:
    header, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(json.dumps({**json.loads(header), **changes}) + "\n" + "".join(lines))


def test_results_of_different_runs_are_not_merged(videos: Path, copy: Path):
    first, *_, last = (copy.with_name(f"s.csv.shard-{index}-of-4.jsonl") for index in range(4))
    original = last.read_text()
    header = read_header(last)
    moved = [{**model, "file": "/elsewhere"} for model in header["models"]]
    edit_header(last, device="cpu:1", directory="/elsewhere", created="2026-01-01T00:00:00+00:00", models=moved)
    assert run(videos, copy, "--merge").returncode == 3
    copy.unlink()
    edit_header(last, device_name="another CPU", packages={**header["packages"], "torch": "0"})
    finished = run(videos, copy, "--merge")
    assert finished.returncode == 2
    assert f"{last}: device_name, packages differ from {first}. " in finished.stderr
    last.write_text(original)
    arguments = {**header["arguments"], "details": None}
    for path in copy.parent.glob("s.csv.shard-*"):
        edit_header(path, arguments=arguments)
    finished = run(videos, copy, "--merge")
    assert finished.returncode == 2
    assert "has no SHA-256 of the videos. Run the shards again with --details" in finished.stderr
    last.write_text(original.replace('"score"', '"scare"', 1))
    finished = run(videos, copy, "--merge")
    assert finished.returncode == 2
    assert f"{last}: line " in finished.stderr
    assert not copy.exists()


def test_merge_waits_for_running_shards(videos: Path, copy: Path, tmp_path: Path):
    messages, shard = tmp_path / "messages", ExitStack()
    shard.enter_context(lock(copy, SHARDS[2].positions))
    with (
        messages.open("w") as errors,
        shard,
        programs.started(command(videos, copy, "--merge"), stderr=errors, stdout=subprocess.DEVNULL) as process,
    ):
        programs.wait_for(lambda: f"{copy}: another run" in messages.read_text(), "a message", process)
        assert not copy.exists()
        shard.close()
        assert process.wait(programs.LIMIT) == 3
    assert copy.exists()
