"""Interrupted stages: the same command resumes them, and the result is that of an uninterrupted run.

To interrupt a stage at a known point, one of its input files is replaced: a crop by a named pipe, at which a worker
process waits until it is killed, and a clip by one that takes long to process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from common.files import lock
from preprocessing import sample_clips
from tests.support import programs
from tests.support.datasets import (
    REAL,
    ROOT,
    STAGES,
    fake_frames,
    fake_of,
    file_hashes,
    portrait_frames,
    records,
    run_stage,
    stage_command,
    write_part,
)

pytestmark = pytest.mark.slow

PAIRS = 3
LAST = PAIRS - 1
OUTPUTS = {
    "detect_original_faces": "bboxes",
    "extract_crops": "crops",
    "generate_landmarks": "landmarks",
    "generate_diffs": "diffs",
    "generate_folds": "folds.csv",
    "compress_videos": "compressed",
    "extract_images": "images",
}
BLOCKING_READS = ROOT / "tests/support/blocking_reads"
# Stage -> the input at which it stalls and the number of clips that it finishes before that.
STALLS = {
    "detect_original_faces": (f"dfdc_train_part_0/{LAST}.mp4", PAIRS - 1),
    "extract_crops": (f"dfdc_train_part_0/fake_{LAST}.mp4", 2 * PAIRS - 1),
    "generate_landmarks": (f"crops/{LAST}/30_0.png", PAIRS - 1),
    "generate_diffs": (f"crops/fake_{LAST}/30_0.png", PAIRS - 1),
    "compress_videos": (f"dfdc_train_part_0/fake_{LAST}.mp4", 2 * PAIRS - 1),
    "extract_images": (f"dfdc_train_part_0/fake_{LAST}.mp4", 2 * PAIRS - 1),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with the outputs of all stages."""
    root = tmp_path_factory.mktemp("uninterrupted")
    names = [f"{number}.mp4" for number in range(PAIRS)]
    folder = write_part(root, 0, dict.fromkeys(names, REAL) | {f"fake_{name}": fake_of(name) for name in names})
    frames = portrait_frames(31 + PAIRS, 320, 240)
    for number, name in enumerate(names):
        sample_clips.write_clip(folder / name, frames[number : number + 31])
        sample_clips.write_clip(folder / f"fake_{name}", fake_frames(frames[number : number + 31]))
    for name in (*STAGES, "compress_videos", "extract_images"):
        finished = run_stage(name, root)
        assert finished.returncode == 0, finished.stderr
    return root


def copy_before(stage: str, uninterrupted: Path, root: Path) -> Path:
    """Copy the dataset without the output and journal of a stage; files keep their times."""
    shutil.copytree(uninterrupted, root)
    shutil.rmtree(root / OUTPUTS[stage])
    journal_of(root, stage).unlink()
    return root


def journal_of(root: Path, stage: str) -> Path:
    return root / "progress" / f"{OUTPUTS[stage]}.jsonl"


def finished_clips(root: Path, stage: str) -> int:
    journal = journal_of(root, stage)
    return max(0, journal.read_text().count("\n") - 1) if journal.is_file() else 0


def descendants(pid: int) -> set[int]:
    children = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children |= {int(child) for child in path.read_text().split()}
    return children.union(*map(descendants, children))


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def write_long_clip(path: Path) -> None:
    """Write a clip that takes several seconds to decode; a broadcast stream can be repeated."""
    part = sample_clips.write_clip(path.with_suffix(".ts"), portrait_frames(31, 320, 240))
    path.write_bytes(400 * part.read_bytes())
    part.unlink()


@contextmanager
def stalled(stage: str, root: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run a stage until it has finished all clips but one and is in the middle of that one."""
    name, finished = STALLS[stage]
    (root / name).unlink()
    if name.endswith(".mp4"):
        write_long_clip(root / name)
    else:
        os.mkfifo(root / name)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BLOCKING_READS), str(ROOT)])}
    with programs.started(
        stage_command(stage, root, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        programs.wait_for(lambda: finished_clips(root, stage) == finished, f"{finished} clips", process)
        if stage != "detect_original_faces":  # it writes a file at the end of each clip
            programs.wait_for(lambda: any((root / OUTPUTS[stage]).rglob(".*.part")), "a temporary output", process)
        yield process


def restore_input(stage: str, uninterrupted: Path, root: Path) -> None:
    name, _ = STALLS[stage]
    (root / name).unlink()
    shutil.copy2(uninterrupted / name, root / name)


def assert_resumes(stage: str, uninterrupted: Path, root: Path) -> None:
    """Resume a run that stalled and was stopped: only the unfinished clip is processed."""
    journal = journal_of(root, stage)
    kept = journal.read_text().splitlines()
    _, finished = STALLS[stage]
    assert len(kept) == 1 + finished
    restore_input(stage, uninterrupted, root)
    resumed = run_stage(stage, root)
    assert resumed.returncode == 0, resumed.stderr
    lines = journal.read_text().splitlines()
    assert lines[:-1] == kept
    assert len(lines) == len(kept) + 1
    assert file_hashes(root) == file_hashes(uninterrupted)


@pytest.mark.parametrize("stage", STALLS)
def test_resumes_after_kill(stage: str, uninterrupted: Path, tmp_path: Path):
    root = copy_before(stage, uninterrupted, tmp_path / "root")
    with stalled(stage, root, "--workers", "2") as process:
        workers = descendants(process.pid)
        assert workers
        process.kill()
        programs.wait_for(lambda: not any(map(is_alive, workers)), "end of the worker processes")
    assert process.returncode == -signal.SIGKILL
    assert_resumes(stage, uninterrupted, root)


def test_resumes_after_ctrl_c(uninterrupted: Path, tmp_path: Path):
    root = copy_before("compress_videos", uninterrupted, tmp_path / "root")
    with stalled("compress_videos", root, "--workers", "2") as process:
        workers = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=programs.LIMIT)
        programs.wait_for(lambda: not any(map(is_alive, workers)), "end of the worker processes")
    assert process.returncode == 130
    assert "resume" in errors
    assert "Traceback" not in errors
    assert_resumes("compress_videos", uninterrupted, root)


def test_a_killed_worker_fails_its_clip_only(uninterrupted: Path, tmp_path: Path):
    """This happens when the system runs out of memory. The next run tries the clip again without --retry-failed."""
    root = copy_before("extract_images", uninterrupted, tmp_path / "root")
    with stalled("extract_images", root, "--workers", "1") as process:
        [worker] = (pid for pid in descendants(process.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(worker, signal.SIGKILL)
        output, _ = process.communicate(timeout=programs.LIMIT)
    assert process.returncode == 3
    assert ["crashed", "1"] in [line.split()[:2] for line in output.splitlines()]
    assert f"fake_{LAST}" not in records(root, "images")
    assert_resumes("extract_images", uninterrupted, root)


def test_waits_for_a_run_that_writes_to_the_same_folder(uninterrupted: Path, tmp_path: Path):
    root = copy_before("extract_images", uninterrupted, tmp_path / "root")
    journal = journal_of(root, "extract_images")
    messages = tmp_path / "messages"
    other_run = ExitStack()
    other_run.enter_context(lock(journal))
    with (
        messages.open("w") as errors,
        other_run,
        programs.started(stage_command("extract_images", root), stdout=subprocess.DEVNULL, stderr=errors) as process,
    ):
        programs.wait_for(lambda: str(journal) in messages.read_text(), "a message", process)
        with pytest.raises(subprocess.TimeoutExpired):  # without the lock, it would continue at once
            process.wait(1)
        assert not journal.exists()
        other_run.close()
        assert process.wait(programs.LIMIT) == 0
    assert file_hashes(root) == file_hashes(uninterrupted)


def test_retry_failed_and_overwrite(uninterrupted: Path, tmp_path: Path):
    root = tmp_path / "root"
    shutil.copytree(uninterrupted, root)
    clip, journal = root / "dfdc_train_part_0/1.mp4", journal_of(root, "extract_images")
    content, times = clip.read_bytes(), clip.stat().st_mtime_ns
    clip.write_bytes(content[:400])
    assert run_stage("extract_images", root).returncode == 3
    assert records(root, "images")["1"]["status"] == "unreadable"
    assert not (root / "images/1").exists()
    assert run_stage("extract_images", root).returncode == 3  # still failed, but not tried again
    assert finished_clips(root, "extract_images") == 2 * PAIRS
    assert run_stage("extract_images", root, "--retry-failed").returncode == 3
    assert finished_clips(root, "extract_images") == 2 * PAIRS + 1
    assert json.loads(journal.read_text().splitlines()[-1])["clip"] == "1"
    clip.write_bytes(content)
    os.utime(clip, ns=(times, times))
    assert run_stage("extract_images", root).returncode == 0  # the clip has changed, so it is tried again
    assert file_hashes(root) == file_hashes(uninterrupted)
    stamp = (root / "images/0").stat().st_mtime_ns
    assert run_stage("extract_images", root, "--overwrite").returncode == 0
    assert (root / "images/0").stat().st_mtime_ns > stamp
    assert len(records(root, "images")) == 2 * PAIRS
