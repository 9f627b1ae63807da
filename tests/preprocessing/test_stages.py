"""The stages' functions on one short pair, and what the stages print."""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import termios
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from preprocessing import sample_clips
from preprocessing.boxes import read_boxes
from preprocessing.detect_original_faces import detect
from preprocessing.extract_crops import extract
from preprocessing.generate_diffs import diffs
from preprocessing.generate_landmarks import landmarks
from preprocessing.images import list_images, read_image
from preprocessing.layout import DIFF_SUFFIX, LANDMARKS_SUFFIX, DataRoot
from tests.support import programs
from tests.support.datasets import (
    REAL,
    ROOT,
    STAGES,
    fake_frames,
    fake_of,
    portrait_frames,
    run_stage,
    stage_command,
    write_part,
)

PROGRESS_BAR = re.compile(r"clip/s|s/clip")


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    root = DataRoot(tmp_path)
    folder = write_part(tmp_path, 0, {"real.mp4": REAL, "fake.mp4": fake_of("real.mp4")})
    frames = portrait_frames(11, 320, 240)
    sample_clips.write_clip(folder / "real.mp4", frames)
    sample_clips.write_clip(folder / "fake.mp4", fake_frames(frames))
    return root


def test_outputs_of_a_pair(root: DataRoot):
    real, fake = (root.root / f"dfdc_train_part_0/{name}.mp4" for name in ("real", "fake"))
    for folder in (root.boxes("").parent, root.crops(""), root.landmarks(""), root.diffs("")):
        folder.mkdir()
    boxes = root.boxes("real")
    assert detect(real, boxes, "auto", "cpu").counts == {"frames": 2, "faces": 2, "lost_frames": 0}
    assert {frame: len(found) for frame, found in read_boxes(boxes).items()} == {0: 1, 10: 1}
    assert extract(real, boxes, None, root.crops("real")).counts == {"frames": 2, "crops": 2}
    assert extract(fake, boxes, real, root.crops("fake")).counts == {"frames": 2, "crops": 2}
    outcome = landmarks(root.crops("real"), boxes, root.landmarks("real"), None, "cpu")
    assert outcome.counts == {"crops": 2, "landmarks": 2, "without": 0}
    outcome = diffs(root.crops("fake"), root.crops("real"), root.diffs("fake"))
    assert outcome.counts == {"masks": 2, "unpaired": 0}
    for file in list_images(root.landmarks("real"), LANDMARKS_SUFFIX):
        left_eye, right_eye, nose, *_ = np.load(file.path)
        assert left_eye[0] < nose[0] < right_eye[0]
    for file in list_images(root.diffs("fake"), DIFF_SUFFIX):
        mask = read_image(file.path)
        assert 0 < (mask > 50).mean() < 0.5  # only the mouth differs


def test_missing_inputs_have_a_status(root: DataRoot, tmp_path: Path):
    clip = root.root / "dfdc_train_part_0/real.mp4"
    assert extract(clip, None, None, tmp_path / "out").status == "no_original"
    assert diffs(root.crops("fake"), None, tmp_path / "out").status == "no_original"
    assert not (tmp_path / "out").exists()


def test_stages_load_only_what_they_need():
    """Each process of each stage loads these; PyTorch, SciPy or scikit-image would take longer than a short clip."""
    slow = {"torch", "torchvision", "scipy", "skimage", "pandas", "facenet_pytorch", "matplotlib"}
    code = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    for name in STAGES:
        finished = programs.run([sys.executable, "-c", code, f"preprocessing.{name}"], cwd=ROOT)
        unwanted = slow if name in ("detect_original_faces", "extract_crops") else slow | {"av"}
        assert not unwanted & set(finished.stdout.split()), name


def run_on_terminal(command: list[str]) -> str:
    """Return the output of a command whose standard output and error are a terminal."""
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))  # without a width, tqdm draws nothing
    output = b""
    with programs.started(command, stdout=end, stderr=end) as process, os.fdopen(terminal, "rb", 0) as reader:
        os.close(end)
        with suppress(OSError):  # Linux reports the end of a terminal as an error
            while select.select([reader], [], [], programs.LIMIT)[0] and (data := reader.read(4096)):
                output += data
        assert process.wait(programs.LIMIT) == 0, output
    return output.decode()


def test_progress_bar_is_for_terminals_and_unfinished_runs(root: DataRoot):
    command = stage_command("extract_images", root.root, "--workers", "1")
    assert PROGRESS_BAR.search(run_on_terminal(command))
    assert not PROGRESS_BAR.search(run_on_terminal(command))
    redirected = run_stage("extract_images", root.root, "--workers", "1", "--overwrite")
    assert redirected.returncode == 0
    assert not PROGRESS_BAR.search(redirected.stdout + redirected.stderr)
    assert "ok" in redirected.stdout
