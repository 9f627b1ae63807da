"""Training on a GPU: mixed precision, nccl, torch.compile; the full B7 recipe for a step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.train_step import make_learner, random_batch
from tests.support import face_crops
from tests.support.face_crops import NETWORK
from training.pipelines.engine import train_step
from training.tools.config import read_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


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
def test_it_learns(root: Path, options: tuple, processes: int) -> None:
    if processes > torch.cuda.device_count():
        pytest.skip("nccl needs a GPU for each process")
    finished = face_crops.train(root, "--device", "cuda", *options, processes=processes)
    assert finished.returncode == 0, finished.stderr
    assert min(line["bce"] for line in face_crops.log(root)) < 0.4


def test_taken_up(root: Path) -> None:
    """The scaler of float16 is restored too."""
    for epochs in (1, 2):
        finished = face_crops.train(root, "--device", "cuda", "--set", "fp16=true", "--epochs", epochs)
        assert finished.returncode == 0, finished.stderr
    last = torch.load(root / "weights" / f"{NETWORK}_last.pt", weights_only=True)["training"]
    assert last["scaler"]["scale"] > 1
    assert last["scaler"]["_growth_tracker"] <= last["steps"] == 18


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_step_of_b7(dtype: str) -> None:
    """Batch 12 at 380, as published: a finite loss that falls on one and the same batch."""
    config = read_config(face_crops.ROOT / "configs/b7.json", {"pretrained": False, "amp_dtype": dtype})
    learner = make_learner(config, torch.device("cuda"))
    batch = random_batch(config)
    losses = [train_step(learner, batch, 0.01)[0] for _ in range(20)]
    assert all(map(math.isfinite, losses))
    assert min(losses[-5:]) < losses[0]
