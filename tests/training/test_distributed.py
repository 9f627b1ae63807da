"""Several processes on a CPU: they train as one does, one that dies ends them all, and the same command goes on."""

from __future__ import annotations

import copy
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn

from tests.support import face_crops, golden
from tests.support.face_crops import NETWORK
from training.tools.distributed import CpuSyncBatchNormAct2d, Distributed
from training.zoo import build_network

STEPS = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and a run of one process with batches of 16: STEPS epochs of one step. Odd validation crops."""
    root = face_crops.make_dataset(tmp_path_factory.mktemp("data"))
    lines = (root / "folds.csv").read_text().splitlines()
    lines.remove("000,0_0.png,0,000,0,0")
    (root / "folds.csv").write_text("\n".join(lines) + "\n")
    config(root, 16)
    finished = face_crops.train(root, "--prefix", "one_", *OPTIONS)
    assert finished.returncode == 0, finished.stderr
    return root


OPTIONS = ("--test-every", 3, "--freeze-epochs", 2)


def config(root: Path, batch_size: int) -> None:
    face_crops.config(
        root,
        batches_per_epoch=1,
        drop_path=0.0,
        optimizer__batch_size=batch_size,
        optimizer__type="SGD",
        optimizer__momentum=0.9,
        optimizer__learning_rate=0.005,
        optimizer__accumulate=2,
        optimizer__schedule={"type": "poly", "epochs": STEPS, "params": {"max_iter": 12}},
    )


def workers_of(launcher: subprocess.Popen) -> list[int]:
    """The training processes that torchrun has started."""
    found = []
    for path in Path(f"/proc/{launcher.pid}/task").glob("*/children"):
        found += map(int, path.read_text().split())
    return [pid for pid in found if b"train_classifier.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_two_processes_train_as_one(root: Path) -> None:
    """Batches of 8 in two processes with SyncBN against 16 in one, in two parts each; killed in between and taken up.

    Losses agree within 0.1 %; the first step of all weights (epoch 2) within 5 % of its length, also in the first
    layer: sums of float32 in another order.
    """
    config(root, 8)
    launcher = subprocess.Popen(
        face_crops.command(root, "--prefix", "two_", *OPTIONS, processes=2),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=face_crops.environment(),
    )
    for line in launcher.stdout:
        if line.startswith("epoch 4/"):
            os.kill(workers_of(launcher)[1], signal.SIGKILL)
            break
    started = time.monotonic()
    launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert time.monotonic() - started < 60
    finished = face_crops.train(root, "--prefix", "two_", *OPTIONS, processes=2)
    assert finished.returncode == 0, finished.stderr
    assert "taken up from" in finished.stderr

    one, two = (face_crops.log(root, f"{name}_{NETWORK}") for name in ("one", "two"))
    assert len(one) == len(two) == STEPS
    np.testing.assert_allclose([line["train_loss"] for line in two], [line["train_loss"] for line in one], rtol=1e-3)
    assert [line["lr"] for line in two] == [line["lr"] for line in one]
    assert ["bce" in line for line in two] == [epoch in (2, 5, 8, 9) for epoch in range(STEPS)]
    assert two[-1]["bce"] == pytest.approx(one[-1]["bce"], rel=1e-2)
    steps = []
    for name in ("one", "two"):
        start, end = (
            torch.load(root / "weights" / f"{name}_{NETWORK}_{epoch}.pt", weights_only=True)["state_dict"]
            for epoch in (1, 2)
        )
        steps.append({key: end[key].double() - start[key].double() for key in end})
    for key in ("conv_stem.weight", "blocks.4.1.conv_pw.weight", "bn2.weight", "blocks.2.0.bn1.running_mean"):
        one, two = (step[f"module.encoder.{key}"] for step in steps)
        assert (one - two).norm() < 0.05 * one.norm(), key


def test_every_validation_crop_counts_once(root: Path) -> None:
    """Of both processes together: no crop is doubled to even out their shares, none is left out."""
    tables = [list(csv.DictReader((root / "weights" / f"{name}_{NETWORK}_last.csv").open())) for name in ("one", "two")]
    frames = [{row["video"]: row["frames"] for row in table} for table in tables]
    assert frames[0] == frames[1]
    assert frames[0]["000"] == "1"
    assert set(frames[0].values()) == {"1", "2"}
    scores = [[float(row["score"]) for row in table] for table in tables]
    np.testing.assert_allclose(scores[0], scores[1], atol=0.01)


def test_a_process_that_fails_ends_all() -> None:
    """Fault 32: the others waited for ever. The error of the one that failed is what is read."""
    started = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            str(face_crops.ROOT / "tests/failing_rank.py"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "error: the disk of this one is full" in done.stderr
    assert time.monotonic() - started < 60


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_batch_norm_by_definition(dtype: torch.dtype, tolerance: float) -> None:
    """Alone, the synchronised one is the plain one: output, gradient and running statistics."""
    plain = BatchNormAct2d(6).train()
    torch.nn.init.uniform_(plain.weight)
    torch.nn.init.uniform_(plain.bias)
    synchronised = Distributed(0, 2, torch.device("cpu")).sync_batch_norms(nn.Sequential(copy.deepcopy(plain)))
    x = torch.randn(5, 6, 7, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    gradients = []
    for norm in (plain, synchronised):
        images = x.to(dtype).requires_grad_()
        output = norm(images)
        assert output.dtype == dtype
        (output.float() ** 2).sum().backward()
        gradients.append((output.float(), images.grad.float()))
    for one, two in zip(*gradients, strict=True):
        assert (one - two).norm() < tolerance * one.norm()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(synchronised.state_dict()[f"0.{key}"], value, rtol=tolerance, atol=tolerance)


def activations(network: nn.Module) -> int:
    return sum(isinstance(module, nn.ReLU6) for module in network.modules())


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_synchronised_batch_norms_keep_their_activations(device: str) -> None:
    """PyTorch's own converter drops them, and nobody notices. (The cuda one can be looked at without a GPU.)"""
    network = golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_lite0"))
    images = golden.crops()[:, :, :96, :96]
    with torch.no_grad():
        before, count = network(images), activations(network)
        converted = Distributed(0, 2, torch.device(device)).sync_batch_norms(network).eval()
        assert torch.equal(converted(images), before)
    kind = CpuSyncBatchNormAct2d if device == "cpu" else SyncBatchNormAct
    assert activations(converted) == count > 0
    assert sum(isinstance(module, kind) for module in converted.modules()) == 49
    assert not any(type(module).__name__ == "BatchNormAct2d" for module in converted.modules())
    wrong = nn.SyncBatchNorm.convert_sync_batchnorm(
        golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_lite0"))
    )
    with torch.no_grad():
        assert not torch.allclose(wrong(images), before, rtol=0.1)
