"""Clips and checkpoints that several tests use, made once per session."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocessing import sample_clips
from tests.support import golden
from training.zoo import build_network

# Programs started by a shell in the background ignore Ctrl-C, and so would the programs that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files of this module's fixtures."""
    return tmp_path_factory.mktemp("shared_files")


@pytest.fixture(scope="session")
def face_video(shared_files: Path) -> Path:
    """A clip with one face in each of its 40 frames, 480 x 360."""
    return sample_clips.face_clip(shared_files / "face.mp4")


@pytest.fixture(scope="session")
def b7(shared_files: Path) -> Path:
    """A B7 checkpoint in the released format: keys start with `module.`, `bce_best` is a NumPy scalar."""
    network = golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_b7_ns"))
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "bce_best": np.float64(0.19)}, shared_files / "b7")
    return shared_files / "b7"
