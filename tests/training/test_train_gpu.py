"""Training on a GPU: mixed precision, NCCL, torch.compile, and steps of the full B7 recipe."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.support import face_crops
from tests.support.face_crops import NETWORK
from tests.support.learners import make_learner, random_batch
from training.pipelines.engine import train_step
from training.tools.config import read_config

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = face_crops.make_dataset(tmp_path)
    face_crops.config(root, batches_per_epoch=9, optimizer__schedule__epochs=6)
    return root


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        (("--set", "fp16=true"), 0),
        (("--set", "fp16=true", "--set", "amp_dtype=bfloat16", "--compile"), 0),
        (("--set", "fp16=true"), 2),
        (("--opt-level", "O0", "--set", "optimizer.accumulate=2"), 2),
    ],
)
def test_learns_to_tell_unseen_faces_apart(root: Path, options: tuple, processes: int) -> None:
    if processes > torch.cuda.device_count():
        pytest.skip("NCCL needs one GPU per process")
    finished = face_crops.train(root, "--device", "cuda", *options, processes=processes)
    assert finished.returncode == 0, finished.stderr
    assert min(line["bce"] for line in face_crops.log(root)) < 0.4


def test_resumes_with_the_state_of_the_gradient_scaler(root: Path) -> None:
    for epochs in (1, 2):
        finished = face_crops.train(root, "--device", "cuda", "--set", "fp16=true", "--epochs", epochs)
        assert finished.returncode == 0, finished.stderr
    last = torch.load(root / "weights" / f"{NETWORK}_last.pt", weights_only=True)["training"]
    assert last["scaler"]["scale"] > 1
    skipped = sum(line["skipped_steps"] for line in face_crops.log(root))
    assert last["scaler"]["_growth_tracker"] <= last["steps"] == 18 - skipped


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_b7_fits_a_batch(dtype: str) -> None:
    """Batch size 12 at 380 pixels, as published: the loss stays finite and decreases when a batch is repeated."""
    config = read_config(face_crops.ROOT / "configs/b7.json", {"pretrained": False, "amp_dtype": dtype})
    learner = make_learner(config, torch.device("cuda"))
    batch = random_batch(config)
    losses = [train_step(learner, batch)[0] for _ in range(20)]
    assert all(map(math.isfinite, losses))
    assert min(losses[-5:]) < losses[0]
