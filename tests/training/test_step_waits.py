"""A training step waits for a GPU only once, and what a GPU uses instead gives the same result."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import face_crops
from tests.support.learners import make_learner, random_batch
from training.pipelines.engine import score_crops, train_step
from training.tools.config import Config, read_config
from training.tools.optimizers import FUSED, build_optimizer

CPU = torch.device("cpu")
# Operators that copy a value from a GPU to the processor, whose result's size depends on values, or that copy a
# constant to a GPU.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "is_nonzero"}


class WaitingOperators(TorchDispatchMode):
    """Counts the operators that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING or (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    optimizer = {"type": "SGD", "batch_size": 4, "momentum": 0.9}
    changes = {f"optimizer__{key}": value for key, value in optimizer.items()}
    return read_config(face_crops.config(tmp_path, pretrained=False, size=32, ema=0.5, ohem_samples=1, **changes))


def test_step_reads_no_value_before_its_end(config: Config) -> None:
    learner, batch = make_learner(config, CPU), random_batch(config)
    train_step(learner, batch)  # makes the constants and the optimizer's state
    with WaitingOperators() as operators:
        step = train_step(learner, batch)
    assert not operators.found
    assert step.images == 4


def test_validation_reads_the_scores_at_its_end(config: Config) -> None:
    learner, batch = make_learner(config, CPU), random_batch(config)
    with WaitingOperators() as operators:
        rows, scores = score_crops(learner.network, learner.recipe, [batch] * 3, learner.dist)
    assert not operators.found
    assert rows.tolist() == [0, 1, 2, 3] * 3
    assert scores[:4].tolist() == scores[4:8].tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("fp16", [False, True])
def test_step_waits_once_on_a_gpu(config: Config, fp16: bool) -> None:
    learner = make_learner(config.model_copy(update={"fp16": fp16}), torch.device("cuda"))
    batch = random_batch(config)
    batch = batch._replace(
        **{name: getattr(batch, name).pin_memory() for name in ("images", "labels", "valid", "mask_known")}
    )
    for _ in range(3):
        train_step(learner, batch)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as warnings:
            train_step(learner, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(warnings) == 1


@pytest.mark.parametrize("name", FUSED)
def test_fused_optimizers_equal_the_others(name: str) -> None:
    """PyTorch has them for a CPU as well. The state of one continues with the other."""
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(7, 50, generator=generator)
    results = []
    for fused in ((False,) * 6, (True,) * 6, (False,) * 3 + (True,) * 3):
        parameter, optimizer = torch.nn.Parameter(start.clone()), None
        for gradient, use in zip(gradients, fused, strict=True):
            before = optimizer
            if before is None or bool(before.param_groups[0]["fused"]) != use:
                optimizer = build_optimizer(name, [parameter], 0.1, 0.01, fused=use, momentum=0.9, nesterov=True)
                if before:
                    groups = optimizer.state_dict()["param_groups"]
                    optimizer.load_state_dict({"state": before.state_dict()["state"], "param_groups": groups})
            parameter.grad = gradient.clone()
            optimizer.step()
        assert bool(optimizer.param_groups[0]["fused"]) == fused[-1]
        results.append(parameter.detach())
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=1e-5, atol=1e-6)
