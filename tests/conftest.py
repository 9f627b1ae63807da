"""Clips and checkpoints that several tests use, made once a session."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocessing import sample_clips
from tests.support import golden
from training.zoo import build_network

# A shell ignores Ctrl-C for what it starts in the background, and what is ignored stays so in all programs below.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="session")
def face_video(made: Path) -> Path:
    """40 frames of 480 x 360, one face in each."""
    return sample_clips.face_clip(made / "face.mp4")


@pytest.fixture(scope="session")
def b7(made: Path) -> Path:
    """A B7 checkpoint in the released format: names under `module.`, `bce_best` a NumPy scalar."""
    network = golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_b7_ns"))
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "bce_best": np.float64(0.19)}, made / "b7")
    return made / "b7"
