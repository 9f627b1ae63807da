"""Training in two processes on a CPU: equals one process, resumes after a kill, stops if a process fails."""

from __future__ import annotations

import copy
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn

from tests.support import face_crops, golden, programs
from tests.support.face_crops import NETWORK
from training.tools.checkpoint import read_checkpoint
from training.tools.distributed import Distributed, EqualSyncBatchNormAct2d
from training.zoo import build_network

STEPS = 10
OPTIONS = ("--test-every", 3, "--freeze-epochs", 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with an odd number of validation crops and two runs of STEPS epochs of one step each.

    `one` trains in one process with a batch of 16. `two` trains in two processes with batches of 8 and SyncBN; it is
    killed and resumed.
    """
    root = face_crops.make_dataset(tmp_path_factory.mktemp("data"))
    lines = (root / "folds.csv").read_text().splitlines()
    lines.remove("000,0_0.png,0,000,0,0")
    (root / "folds.csv").write_text("\n".join(lines) + "\n")
    config(root, 16)
    finished = face_crops.train(root, "--prefix", "one_", *OPTIONS)
    assert finished.returncode == 0, finished.stderr
    config(root, 8)
    killed = face_crops.train(root, "--prefix", "two_", *OPTIONS, processes=2, kill_at=5)
    assert killed.returncode != 0
    assert read_checkpoint(root / "weights" / f"two_{NETWORK}_last.pt")["epoch"] in (3, 4)
    resumed = face_crops.train(root, "--prefix", "two_", *OPTIONS, processes=2)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from" in resumed.stderr
    return root


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


@pytest.mark.slow
def test_two_processes_equal_one(root: Path) -> None:
    """The order of floating-point sums differs.

    Losses agree within 0.1 %, and the update of the first step that trains all weights (epoch 2) agrees within 5 % of
    its norm, even in the first layer.
    """
    one, two = (face_crops.log(root, f"{name}_{NETWORK}") for name in ("one", "two"))
    assert len(one) == len(two) == STEPS
    np.testing.assert_allclose([line["train_loss"] for line in two], [line["train_loss"] for line in one], rtol=1e-3)
    assert [line["lr"] for line in two] == [line["lr"] for line in one]
    assert ["bce" in line for line in two] == [epoch in (2, 5, 8, 9) for epoch in range(STEPS)]
    assert two[-1]["bce"] == pytest.approx(one[-1]["bce"], rel=1e-2)
    steps = []
    for name in ("one", "two"):
        start, end = (
            read_checkpoint(root / "weights" / f"{name}_{NETWORK}_{epoch}.pt")["state_dict"] for epoch in (1, 2)
        )
        steps.append({key: end[key].double() - start[key].double() for key in end})
    for key in ("conv_stem.weight", "blocks.4.1.conv_pw.weight", "bn2.weight", "blocks.2.0.bn1.running_mean"):
        one, two = (step[f"module.encoder.{key}"] for step in steps)
        assert (one - two).norm() < 0.05 * one.norm(), key


@pytest.mark.slow
def test_validation_scores_every_crop_once(root: Path) -> None:
    """An odd number of crops in two processes: none is repeated, none is left out."""
    tables = [list(csv.DictReader((root / "weights" / f"{name}_{NETWORK}_last.csv").open())) for name in ("one", "two")]
    frames = [{row["video"]: row["frames"] for row in table} for table in tables]
    assert frames[0] == frames[1]
    assert frames[0]["000"] == "1"
    assert set(frames[0].values()) == {"1", "2"}
    scores = [[float(row["score"]) for row in table] for table in tables]
    np.testing.assert_allclose(scores[0], scores[1], atol=0.01)


@pytest.mark.slow
def test_failing_process_stops_all() -> None:
    """The error of the failing process is printed. In the published code, the other processes waited forever."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = programs.run([*launch, face_crops.ROOT / "tests/support/failing_rank.py"])
    assert done.returncode != 0
    assert "error: rank 1 fails" in done.stderr


OVERFLOW_IN_ONE_PROCESS = """
import sys
import torch
from tests.support.learners import random_batch
from training.pipelines import build
from training.pipelines.engine import train_step
from training.tools.config import read_config
from training.tools.distributed import init_distributed

config = read_config(sys.argv[1])
with init_distributed("cpu") as dist:
    torch.manual_seed(0)
    learner = build.build_learner(config, build.init_network(config, fresh=False), config.crop_spec(), dist)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    learner.network.train()
    build.wrap_model(learner, frozen=False, compiled=False)
    loss, overflows = learner.loss, dist.rank == 1
    original = type(loss).__call__
    type(loss).__call__ = lambda self, *args: original(self, *args) * (torch.inf if overflows else 1)
    batch = random_batch(config)
    batch = batch._replace(images=batch.images // (1 + dist.rank))
    steps = [train_step(learner, batch)]
    overflows = False
    steps.append(train_step(learner, batch))
    weights = torch.cat([value.flatten().float() for value in learner.network.state_dict().values()])
    results = dist.all_gather(([step.skipped for step in steps], learner.steps, learner.scaler.get_scale(), weights))
    assert all(torch.equal(result[3], weights) for result in results)
    if dist.is_main_process:
        print([result[:3] for result in results])
"""


def run_in_two_processes(program: str, folder: Path) -> str:
    """Run a program with a small configuration as its argument and return its output."""
    script = face_crops.write(folder / "program.py", program.encode())
    config = face_crops.config(folder, pretrained=False, optimizer__batch_size=4, size=32)
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    path = {"PYTHONPATH": str(face_crops.ROOT)}
    done = programs.run([*launch, script, config], env={**face_crops.environment(), **path})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_step_that_overflows_in_one_process_is_skipped_in_all(tmp_path: Path) -> None:
    """Afterwards, weights and running statistics, which are not broadcast, are equal."""
    output = run_in_two_processes(OVERFLOW_IN_ONE_PROCESS, tmp_path)
    assert output.strip() == str([([True, False], 1, 512.0)] * 2)


LOSS_SCOPES = """
import sys
import torch
from tests.support.learners import random_batch
from training.pipelines import build
from training.pipelines.engine import forward, train_step
from training.tools.config import read_config
from training.tools.distributed import init_distributed

with init_distributed("cpu") as dist:
    for scope in ("global", "process"):
        config = read_config(sys.argv[1], {"loss_scope": scope})
        torch.manual_seed(0)
        learner = build.build_learner(config, build.init_network(config, fresh=False), config.crop_spec(), dist)
        learner.network.eval()  # the batch norms of the processes do not mix their images
        learner.network.fc.weight.data *= 100  # so that the logits of different images differ
        build.wrap_model(learner, frozen=False, compiled=False)
        batch = random_batch(config)
        # One process has 1 fake and 3 reals, the other 3 fakes and 1 real.
        labels = torch.tensor([1.0, 0, 0, 0] if dist.rank == 0 else [1.0, 1, 1, 0])
        batch = batch._replace(labels=labels, images=batch.images // (1 + 3 * dist.rank))
        with torch.no_grad():
            logits, _ = forward(learner.network, learner.recipe, batch.images)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        sums = torch.stack([losses[labels == kind].sum() for kind in (0, 1)])
        counts = torch.stack([(labels == kind).sum() for kind in (0, 1)])
        if scope == "global":
            expected = (dist.all_reduce(sums) / dist.all_reduce(counts.float())).mean().item()
        else:
            expected = dist.all_reduce((sums / counts).mean()).item() / 2
        loss = train_step(learner, batch).loss
        if dist.is_main_process:
            print(scope, loss, expected)
"""


@pytest.mark.slow
def test_scope_of_the_loss(tmp_path: Path) -> None:
    """The loss is averaged over all processes ("global") or in each one ("process"), as in the published code."""
    lines = run_in_two_processes(LOSS_SCOPES, tmp_path).splitlines()
    values = {line.split()[0]: list(map(float, line.split()[1:])) for line in lines}
    for scope in ("global", "process"):
        assert values[scope][0] == pytest.approx(values[scope][1], rel=1e-4)
    assert values["global"][0] != pytest.approx(values["process"][0], rel=1e-3)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A process group of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_sync_batch_norm_of_one_process_equals_batch_norm(dtype: torch.dtype, tolerance: float) -> None:
    """Outputs, gradients and running statistics agree."""
    plain = BatchNormAct2d(6).train()
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.uniform_(plain.weight, generator=generator)
    torch.nn.init.uniform_(plain.bias, generator=generator)
    synchronized = Distributed(0, 2, torch.device("cpu")).sync_batch_norms(nn.Sequential(copy.deepcopy(plain)))
    x = torch.randn(5, 6, 7, 4, generator=generator) * 3 + 1
    gradients = []
    for norm in (plain, synchronized):
        images = x.to(dtype).requires_grad_()
        output = norm(images)
        assert output.dtype == dtype
        (output.float() ** 2).sum().backward()
        gradients.append((output.float(), images.grad.float()))
    for one, two in zip(*gradients, strict=True):
        assert (one - two).norm() < tolerance * one.norm()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(synchronized.state_dict()[f"0.{key}"], value, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("process_group")
def test_sync_batch_norm_is_compiled_in_one_piece() -> None:
    """PyTorch's version splits the network at each layer. Outputs, gradients and running statistics are equal."""
    torch.manual_seed(0)
    layers = [layer for _ in range(2) for layer in (nn.Conv2d(4, 4, 3), BatchNormAct2d(4))]
    network = Distributed(0, 2, torch.device("cuda")).sync_batch_norms(nn.Sequential(*layers), compiled=True)
    results = []
    for compiled in (False, True):
        copied = copy.deepcopy(network)
        model = torch.compile(copied, backend="aot_eager", fullgraph=True) if compiled else copied
        images = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
        output = model(images)
        (output**2).sum().backward()
        gradients = [parameter.grad for parameter in copied.parameters()]
        results.append([output, images.grad, *gradients, *copied.buffers()])
    for eager, found in zip(*results, strict=True):
        torch.testing.assert_close(found, eager)


def activations(network: nn.Module) -> int:
    return sum(isinstance(module, nn.ReLU6) for module in network.modules())


@pytest.mark.parametrize(("device", "compiled"), [("cuda", False), ("cuda", True), ("cpu", False)])
def test_sync_batch_norms_keep_their_activations(device: str, compiled: bool) -> None:
    """PyTorch's own converter drops them silently. (Converting for CUDA does not need a GPU.)"""
    network = golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_lite0"))
    images = golden.crops()[:, :, :96, :96]
    with torch.no_grad():
        before, count = network(images), activations(network)
        converted = Distributed(0, 2, torch.device(device)).sync_batch_norms(network, compiled).eval()
        assert torch.equal(converted(images), before)
    kind = EqualSyncBatchNormAct2d if compiled or device == "cpu" else SyncBatchNormAct
    assert activations(converted) == count > 0
    assert sum(isinstance(module, kind) for module in converted.modules()) == 49
    assert not any(type(module).__name__ == "BatchNormAct2d" for module in converted.modules())
    wrong = nn.SyncBatchNorm.convert_sync_batchnorm(
        golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_lite0"))
    )
    with torch.no_grad():
        assert not torch.allclose(wrong(images), before, rtol=0.1)
