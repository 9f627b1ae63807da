"""Loss scaling of float16 training: steps that overflow are skipped, and training that cannot learn ends.

The gradient scaler works on a CPU as well; the overflow is provoked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support import face_crops
from tests.support.learners import make_learner, random_batch
from training.datasets.classifier_dataset import Batch
from training.pipelines import build, engine, train_classifier, training_run
from training.pipelines.checkpointing import Best, Checkpoints, restore
from training.pipelines.engine import Learner, TrainingError, score_crops, train_one_epoch, train_step
from training.tools.checkpoint import read_checkpoint
from training.tools.config import Config, read_config

SCALE = 2.0**16
CPU = torch.device("cpu")
CROPS: Any = SimpleNamespace(name=lambda row: f"crop_{row}")
SETTINGS = {"processes": 1}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = face_crops.config(tmp_path, pretrained=False, optimizer__batch_size=4, size=32, ema=0.5)
    return read_config(path)


@pytest.fixture
def learner(config: Config) -> Learner:
    """A learner with loss scaling, whose loss can be changed by setting `overflow`."""
    learner = make_learner(config, CPU)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    return learner


@pytest.fixture
def batch(config: Config) -> Batch:
    return random_batch(config)


def change_loss(learner: Learner, change: Callable[[torch.Tensor], torch.Tensor], steps: int) -> None:
    """Change the loss of the next steps."""
    original, left = learner.loss, [steps]

    class Changed:
        class_counts = staticmethod(original.class_counts)

        def __call__(self, *args: torch.Tensor) -> torch.Tensor:
            left[0] -= 1
            return change(original(*args)) if left[0] >= 0 else original(*args)

    learner.loss = Changed()  # type: ignore[assignment]


class InfiniteGradient(torch.autograd.Function):
    """Return the value unchanged, with an infinite gradient."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        return gradient * math.inf


def infinite_gradient(loss: torch.Tensor) -> torch.Tensor:
    return InfiniteGradient.apply(loss)


def infinite_loss(loss: torch.Tensor) -> torch.Tensor:
    """Infinite, with a finite gradient, as of a single logit that overflows."""
    return loss + math.inf


def copy_of_weights(learner: Learner) -> list[torch.Tensor]:
    assert learner.ema is not None
    return [value.clone() for value in (*learner.network.state_dict().values(), *learner.ema.state_dict().values())]


@pytest.mark.parametrize("change", [infinite_gradient, infinite_loss, lambda loss: loss * math.nan])
def test_overflow_skips_the_step(learner: Learner, batch: Batch, change: Callable) -> None:
    """It changes no weight and no moving average, and is not counted. The next step is taken."""
    assert learner.ema is not None
    before = [value.clone() for value in (*learner.network.parameters(), *learner.ema.parameters())]
    change_loss(learner, change, steps=1)
    step = train_step(learner, batch)
    assert (step.skipped, learner.steps, learner.scaler.get_scale()) == (True, 0, SCALE / 2)
    after = [*learner.network.parameters(), *learner.ema.parameters()]
    assert all(map(torch.equal, before, after))
    assert not learner.optimizer.state
    step = train_step(learner, batch)
    assert (step.skipped, learner.steps, learner.scaler.get_scale()) == (False, 1, SCALE / 2)
    assert math.isfinite(step.loss)
    assert not all(map(torch.equal, before, after))


def test_overflow_of_the_forward_pass_leaves_no_trace_in_the_batch_norms(learner: Learner, batch: Batch) -> None:
    """Their running statistics of infinite activations would stay infinite, and validation would fail."""
    before = copy_of_weights(learner)
    handle = learner.network.encoder.conv_stem.register_forward_hook(lambda _, __, output: output * math.inf)
    step = train_step(learner, batch)
    handle.remove()
    assert step.skipped
    assert not math.isfinite(step.loss)
    assert all(map(torch.equal, before, copy_of_weights(learner)))
    assert not train_step(learner, batch).skipped


def test_step_after_an_overflow_equals_one_without(config: Config, batch: Batch) -> None:
    """Apart from the scale, a power of 2, nothing is left of a skipped step."""
    results = []
    for skipped in (0, 2):
        learner = make_learner(config, CPU)
        learner.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        change_loss(learner, infinite_loss, skipped)
        for step in range(skipped + 2):
            torch.manual_seed(max(step - skipped, 0))  # of drop path
            train_step(learner, batch)
        assert learner.steps == 2
        results.append(copy_of_weights(learner))
    assert all(map(torch.equal, *results))


def test_epoch_reports_scale_and_skipped_steps(learner: Learner, batch: Batch) -> None:
    """The mean loss is that of the finite ones."""
    change_loss(learner, infinite_loss, steps=2)
    metrics = train_one_epoch(learner, [batch] * 5, 0, CROPS)  # type: ignore[arg-type]
    assert (metrics["skipped_steps"], metrics["loss_scale"], learner.steps) == (2, SCALE / 4, 3)
    assert math.isfinite(metrics["train_loss"])
    text = training_run.summarize({"epoch": 0, **metrics}, 1, Best())
    assert "2 skipped steps (loss scale 16384)" in text


def test_epoch_without_scaling_has_the_keys_of_before(config: Config, batch: Batch) -> None:
    metrics = train_one_epoch(make_learner(config, CPU), [batch], 0, CROPS)  # type: ignore[arg-type]
    assert list(metrics) == ["train_loss", "lr", "images_per_second", "broken", "seconds"]


@pytest.mark.parametrize("change", [infinite_gradient, infinite_loss])
def test_training_that_always_overflows_ends(learner: Learner, batch: Batch, change: Callable) -> None:
    """The scale would fall to 0 while the epochs are counted and the logged loss is finite."""
    change_loss(learner, change, steps=1000)
    with pytest.raises(TrainingError, match=r"epoch 3, batch 16: .*float16.*amp_dtype=bfloat16"):
        train_one_epoch(learner, [batch] * 1000, 3, CROPS)  # type: ignore[arg-type]
    assert learner.scaler.get_scale() == 0.5
    assert learner.steps == 0


def test_epoch_without_any_finite_loss_is_an_error(learner: Learner, batch: Batch) -> None:
    change_loss(learner, infinite_loss, steps=1000)
    with pytest.raises(TrainingError, match=r"epoch 0: .*float16"):
        train_one_epoch(learner, [batch] * 3, 0, CROPS)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [infinite_gradient, infinite_loss])
def test_without_scaling_the_run_ends(config: Config, batch: Batch, change: Callable) -> None:
    learner = make_learner(config, CPU)
    change_loss(learner, change, steps=1)
    with pytest.raises(TrainingError, match=r"epoch 0, batch 0: .*(inf|nan) \(crop_0") as error:
        train_one_epoch(learner, [batch], 0, CROPS)  # type: ignore[arg-type]
    assert "--opt-level" not in str(error.value)  # it is float32 already


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_scores_that_are_not_finite_name_a_remedy_that_exists(
    config: Config, batch: Batch, amp_dtype: torch.dtype | None
) -> None:
    """evaluate.py and calibrate.py, which score in float32, have no --opt-level."""
    learner = make_learner(config, CPU)
    with torch.no_grad():
        learner.network.fc.weight.fill_(math.inf)
    with pytest.raises(TrainingError, match=r"validation: .*not finite.*earlier checkpoint") as error:
        score_crops(learner.network, learner.recipe, [batch], learner.dist, amp_dtype)
    assert ("--opt-level O0" in str(error.value)) == (amp_dtype is not None)


def test_validation_without_any_image_is_not_called_a_matter_of_precision(config: Config, batch: Batch) -> None:
    learner = make_learner(config, CPU)
    empty = Batch(*(field[:0] for field in batch[:5]), None, ["a", "b"], 2)  # type: ignore[index]
    with pytest.raises(TrainingError, match=r"--crops-dir: none of 2 images"):
        score_crops(learner.network, learner.recipe, [empty], learner.dist)


def test_nan_is_never_the_best() -> None:
    assert training_run.is_better(0.5, Best())
    assert training_run.is_better(0.5, Best(1, 0.6))
    assert not training_run.is_better(0.6, Best(1, 0.5))
    for bce in (math.nan, math.inf):
        assert not training_run.is_better(bce, Best())


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_resumes_with_and_without_scaling(
    config: Config, batch: Batch, tmp_path: Path, caplog: pytest.LogCaptureFixture, before: bool, after: bool
) -> None:
    """A run may change between a CPU, without float16, and a GPU."""
    learners = []
    for scaling in (before, after):
        learner = make_learner(config, CPU)
        learner.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=scaling)
        learners.append(learner)
    change_loss(learners[0], infinite_gradient, steps=int(before))
    for _ in range(2):
        train_step(learners[0], batch)
    checkpoints = Checkpoints(tmp_path, "run", every_epoch=False)
    checkpoints.save(learners[0], 4, Best(4, 0.3), SETTINGS, None)
    with caplog.at_level(logging.INFO):
        assert restore(learners[1], checkpoints.path("last"), SETTINGS) == (5, Best(4, 0.3))
    assert learners[1].steps == learners[0].steps
    assert learners[1].scaler.get_scale() == {(True, True): SCALE / 2, (False, True): SCALE}.get((before, after), 1)
    assert ("loss scale" in caplog.text) == (before != after)
    assert not train_step(learners[1], batch).skipped


def test_run_logs_and_resumes_the_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run as a user starts it, with loss scaling although it is on a CPU."""
    root = face_crops.make_dataset(tmp_path / "data")
    face_crops.config(root, batches_per_epoch=2, size=32)
    build_learner = build.build_learner

    def with_scaling(*args: Any) -> Learner:
        learner = build_learner(*args)
        learner.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        return learner

    def first_step_overflows(learner: Learner, *args: Any) -> engine.Step:
        if not learner.steps and learner.scaler.get_scale() == SCALE:
            change_loss(learner, infinite_loss, steps=1)
        return train_step(learner, *args)

    monkeypatch.setattr(build, "build_learner", with_scaling)
    monkeypatch.setattr(engine, "train_step", first_step_overflows)
    for epochs in (1, 2):
        arguments = face_crops.arguments(root, "--workers", 0, "--epochs", epochs)
        assert train_classifier.main(train_classifier.get_args_parser().parse_args(arguments)) == 0
    lines = face_crops.log(root)
    assert [(line["skipped_steps"], line["loss_scale"]) for line in lines] == [(1, SCALE / 2), (0, SCALE / 2)]
    training = read_checkpoint(root / "weights" / f"{face_crops.NETWORK}_last.pt")["training"]
    assert (training["steps"], training["scaler"]["scale"]) == (3, SCALE / 2)
