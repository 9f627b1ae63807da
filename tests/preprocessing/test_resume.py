"""Every stage killed at some moment and started again ends in the tree of a run that was left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from preprocessing import sample_clips
from tests.support.datasets import REAL, STAGES, command, fake_of, part, portrait, records, stage, swapped, tree

OUTPUTS = {
    "detect_original_faces": "bboxes",
    "extract_crops": "crops",
    "generate_landmarks": "landmarks",
    "generate_diffs": "diffs",
    "generate_folds": "folds.csv",
    "compress_videos": "compressed",
    "extract_images": "images",
}
PAIRS = 4
# Once is enough where PyTorch has to be loaded each time, and where there is one file.
SLOW_TWICE = {("detect_original_faces", 0), ("generate_landmarks", 0), ("generate_folds", 1)}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset after all stages, none of which was disturbed."""
    root = tmp_path_factory.mktemp("untouched")
    names = [f"{number}.mp4" for number in range(PAIRS)]
    folder = part(root, 0, dict.fromkeys(names, REAL) | {f"fake_{name}": fake_of(name) for name in names})
    frames = portrait(61, 320, 240)
    for number, name in enumerate(names):
        sample_clips.write_clip(folder / name, frames[number:])
        sample_clips.write_clip(folder / f"fake_{name}", swapped(frames[number:]))
    for name in (*STAGES, "compress_videos", "extract_images"):
        finished = stage(name, root)
        assert finished.returncode == 0, finished.stderr
    return root


def before(untouched: Path, place: Path, name: str) -> Path:
    """The dataset as it was before a stage, with the times of its files."""
    shutil.copytree(untouched, place)
    output = place / OUTPUTS[name]
    output.unlink() if output.is_file() else shutil.rmtree(output)
    (place / "progress" / f"{OUTPUTS[name]}.jsonl").unlink(missing_ok=True)
    return place


def children(process: subprocess.Popen) -> set[int]:
    """A process' descendants."""
    found, todo = set(), [process.pid]
    while todo:
        pid = todo.pop()
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            new = {int(child) for child in path.read_text().split()} - found
            found |= new
            todo += new
    return found


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)


def finished_lines(root: Path, name: str) -> int:
    path = root / "progress" / f"{OUTPUTS[name]}.jsonl"
    return max(0, len(path.read_text().splitlines()) - 1) if path.is_file() else 0


@pytest.mark.parametrize(
    ("name", "lines"),
    [(name, lines) for name in OUTPUTS for lines in (0, 1) if (name, lines) not in SLOW_TWICE],
)
def test_killed_and_resumed(name: str, lines: int, untouched: Path, tmp_path: Path):
    """Killed in the middle of the first clips, and of later ones; nothing that was done is done again."""
    root = before(untouched, tmp_path / "root", name)
    process = subprocess.Popen(command(name, root, "--workers", "2") if "folds" not in name else command(name, root),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    output = root / OUTPUTS[name]
    wait_for(lambda: (finished_lines(root, name) >= lines and output.exists()) or process.poll() is not None)
    time.sleep(0.02)
    workers = children(process)
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, workers)), 10)
    assert not any(map(alive, workers))
    done = finished_lines(root, name)
    journal = root / "progress" / f"{OUTPUTS[name]}.jsonl"
    kept = journal.read_text().splitlines() if done else []
    again = stage(name, root)
    assert again.returncode == 0, again.stderr
    assert tree(root) == tree(untouched)
    if kept:
        assert journal.read_text().splitlines()[: len(kept)] == kept


def test_stopped_by_ctrl_c(untouched: Path, tmp_path: Path):
    root = before(untouched, tmp_path / "root", "compress_videos")
    process = subprocess.Popen(
        command("compress_videos", root, "--workers", "2"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: finished_lines(root, "compress_videos") >= 1)
    workers = children(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped; the same command takes up where this run was" in errors
    assert "Traceback" not in errors
    wait_for(lambda: not any(map(alive, workers)), 10)
    assert not any(map(alive, workers))
    assert stage("compress_videos", root).returncode == 0
    assert tree(root) == tree(untouched)


def test_two_at_once(untouched: Path, tmp_path: Path):
    """The second waits for the first, then finds all done."""
    root = before(untouched, tmp_path / "root", "extract_images")
    both = [
        subprocess.Popen(command("extract_images", root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("another run is writing there" in text for text in errors) == 1
    assert finished_lines(root, "extract_images") == 2 * PAIRS
    assert tree(root) == tree(untouched)


def test_a_killed_worker_fails_its_clip_only(untouched: Path, tmp_path: Path):
    root = before(untouched, tmp_path / "root", "detect_original_faces")
    process = subprocess.Popen(
        command("detect_original_faces", root, "--workers", "1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    worker = None

    def loading() -> bool:
        """The worker has PyTorch open: it is on its first clip."""
        nonlocal worker
        for pid in children(process):
            maps = Path(f"/proc/{pid}/maps")
            if alive(pid) and "libtorch" in maps.read_text():
                worker = pid
        return worker is not None

    wait_for(loading)
    os.kill(worker, signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "0: crashed: its worker died" in errors
    assert "crashed" in output
    assert set(records(root, "bboxes")) == {"1", "2", "3"}
    again = stage("detect_original_faces", root)  # tried again without being asked to
    assert again.returncode == 0
    assert tree(root) == tree(untouched)


def test_retry_and_overwrite(untouched: Path, tmp_path: Path):
    root = tmp_path / "root"
    shutil.copytree(untouched, root)
    clip = root / "dfdc_train_part_0/1.mp4"
    sound = clip.read_bytes()
    clip.write_bytes(sound[:400])
    times = clip.stat().st_mtime_ns
    assert stage("extract_images", root).returncode == 3
    assert records(root, "images")["1"]["status"] == "unreadable"
    assert stage("extract_images", root).returncode == 3  # known to be bad: not tried again
    assert finished_lines(root, "extract_images") == 2 * PAIRS
    assert stage("extract_images", root, "--retry-failed").returncode == 3
    assert finished_lines(root, "extract_images") == 2 * PAIRS + 1
    assert json.loads((root / "progress/images.jsonl").read_text().splitlines()[-1])["clip"] == "1"
    clip.write_bytes(sound)
    os.utime(clip, ns=(times, times))
    assert stage("extract_images", root).returncode == 0  # another file now
    assert {name: digest for name, digest in tree(root).items() if name.startswith("images")} == {
        name: digest for name, digest in tree(untouched).items() if name.startswith("images")
    }
    stamp = (root / "images/0").stat().st_mtime_ns
    assert stage("extract_images", root, "--overwrite").returncode == 0
    assert (root / "images/0").stat().st_mtime_ns > stamp
    assert len(records(root, "images")) == 2 * PAIRS
