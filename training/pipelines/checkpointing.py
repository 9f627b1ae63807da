"""Write the checkpoints of a training run, and resume the run from the last one."""

from __future__ import annotations

import json
import logging
import reprlib
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from common import __version__
from common.device import is_device_failure, is_out_of_memory
from common.errors import UserError
from common.files import atomic_write, remove
from common.text import shorten
from common.versions import package_versions
from training.pipelines.engine import Learner
from training.tools.checkpoint import (
    CheckpointError,
    check_finite,
    fit_weights,
    is_plain,
    is_same_kind,
    read_checkpoint,
    save_checkpoint,
    to_plain,
)
from training.tools.metrics import VideoScores, write_scores
from training.tools.optimizers import state_names

# Prefix of the tensors' names in the released checkpoints.
PREFIX = "module."
# Settings that may differ when a run resumes. A different number of processes changes the batches, so it is reported.
MAY_CHANGE = ("config.optimizer.schedule.epochs", "config.pretrained", "processes")
# Longest part of a setting that is repeated in an error.
MAX_VALUE = 80

log = logging.getLogger(__name__)


class ResumeError(UserError):
    """A checkpoint that a run cannot resume from."""


class Best(NamedTuple):
    """The epoch with the lowest balanced log loss (bce) so far; None before the first validation.

    The epoch is also None if the loss comes from a checkpoint with weights only.
    """

    epoch: int | None = None
    bce: float | None = None


class Checkpoints:
    """The checkpoints of a run: OUTPUT_DIR/NAME_<epoch>.pt, NAME_best.pt and NAME_last.pt.

    All of them work for inference, and the last one also resumes the run. Beside each checkpoint of a validated epoch,
    a CSV of the same name has the scores of the validation videos.

    Attributes:
        folder: OUTPUT_DIR.
        name: name of the run.
        every_epoch: whether NAME_<epoch>.pt is written.
    """

    def __init__(self, output_dir: Path, name: str, every_epoch: bool = True):
        self.folder, self.name, self.every_epoch = output_dir, name, every_epoch

    def path(self, which: str | int) -> Path:
        """Return the path of a checkpoint: an epoch's, `best` or `last`."""
        return self.folder / f"{self.name}_{which}.pt"

    def save(
        self, learner: Learner, epoch: int, best: Best, settings: dict[str, Any], scores: VideoScores | None
    ) -> Path:
        """Write the checkpoints of an epoch and return the path of the first.

        NAME_last.pt is written last: a run that is killed earlier repeats the epoch, with the same result.
        """
        weights = {f"{PREFIX}{key}": value for key, value in learner.eval_network.state_dict().items()}
        training = {
            "network": learner.network.state_dict() if learner.ema else None,
            "optimizer": learner.optimizer.state_dict(),
            "scaler": learner.scaler.state_dict(),
            "steps": learner.steps,
            "best_epoch": best.epoch,
            "settings": settings,
        }
        names: list[str | int] = [epoch] if self.every_epoch else []
        names += ["best", "last"] if best.epoch == epoch else ["last"]
        for which in names:
            path = self.path(which)
            remove(path.with_suffix(".csv"))
            if scores:
                write_scores(path.with_suffix(".csv"), scores)
            more = {"training": training} if which == "last" else {}
            save_checkpoint(path, weights, learner.recipe, epoch=epoch, bce_best=best.bce, **more)
        return self.path(names[0])

    def describe(self, settings: dict[str, Any], start: int, command: list[str]) -> None:
        """Write OUTPUT_DIR/NAME.json: the settings, and the command and package versions of each start."""
        path = self.folder / f"{self.name}.json"
        try:
            starts = json.loads(path.read_text(encoding="utf-8"))["starts"] if start else []
        except (OSError, ValueError, KeyError, TypeError):
            starts = []
        starts.append(
            {
                "epoch": start,
                "command": command,
                "version": __version__,
                "versions": package_versions(),
                "revision": git_revision(),
            }
        )
        atomic_write(path, json.dumps({"settings": settings, "starts": starts}, indent=4) + "\n")


def restore(learner: Learner, path: Path, settings: dict[str, Any]) -> tuple[int, Best]:
    """Restore a learner from NAME_last.pt, or its weights from another checkpoint.

    Returns:
        The next epoch, and the best one so far.

    Raises:
        ResumeError: the run has different settings, or the checkpoint is damaged or does not fit the learner.
    """
    remedy = "To start from scratch, use --resume none"
    try:
        checkpoint = read_checkpoint(path)
        if "training" not in checkpoint:
            return _restore_weights_only(path, learner, checkpoint)
        training = checkpoint["training"]
        if not isinstance(training, dict):
            raise ValueError("it has no training state")
        _compare_settings(path, training["settings"], settings)
        epoch, steps = _count("epoch", checkpoint["epoch"]), _count("steps", training["steps"])
        best = _best(training["best_epoch"], checkpoint["bce_best"])
        _restore_scaler(learner, training["scaler"])
        _restore_weights(path, learner.eval_network, checkpoint["state_dict"])
        if learner.ema:
            _restore_weights(path, learner.network, training["network"])
        _restore_optimizer(path, learner.optimizer, training["optimizer"])
        learner.steps = steps
        return epoch + 1, best
    except CheckpointError as error:
        raise ResumeError(f"{error}. {remedy}") from None
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, RecursionError) as error:
        if is_out_of_memory(error) or is_device_failure(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ResumeError(f"{path}: does not fit this run ({reason}). {remedy}") from None


def _restore_weights_only(path: Path, learner: Learner, checkpoint: dict[str, Any]) -> tuple[int, Best]:
    """Restore a learner's weights from a released checkpoint or that of an epoch. Return as `restore`."""
    if "epoch" not in checkpoint:
        raise ResumeError(
            f"{path}: holds no epoch to continue from. To start a new run from its weights, add --from-zero"
        )
    epoch = _count("epoch", checkpoint["epoch"])
    if "recipe" in checkpoint:  # the released files count the finished epochs
        epoch += 1
    best = _foreign_best(checkpoint.get("bce_best"))
    for network in {learner.eval_network, learner.network}:  # the same without a moving average
        _restore_weights(path, network, checkpoint["state_dict"])
    log.info(
        "%s: has weights only. The optimizer and the loss scale start from scratch, at the learning rate of epoch %d",
        path,
        epoch,
    )
    if best.bce is not None:
        log.info("best score so far: bce %.4f, from the same file. --zero-score forgets it", best.bce)
    return epoch, best


def _restore_weights(path: Path, network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load weights into a network. Raises CheckpointError."""
    weights = {key.removeprefix(PREFIX): value for key, value in weights.items()}
    network.load_state_dict(fit_weights(path, weights, network, "this run's network"))


def _restore_optimizer(path: Path, optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Restore the state of an optimizer's parameters. Its options come from the configuration, not from the file.

    Raises:
        CheckpointError: the state has values that are not finite.
        ValueError: the state is not that of these parameters.
    """
    if not isinstance(stored, dict) or not isinstance(stored["state"], dict):
        raise ValueError("it has no optimizer state")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    required = state_names(optimizer)
    tensors: dict[str, torch.Tensor] = {}
    state: dict[int, dict[str, Any]] = {}
    for index, values in stored["state"].items():
        parameter = parameters[_count("optimizer", index, below=len(parameters))]
        if not required <= values.keys():
            raise ValueError(f"the optimizer state of parameter {index} is incomplete")
        # Interned like the optimizer's own names: pickle then writes them as in a run that was not interrupted.
        state[index] = {sys.intern(name): value for name, value in values.items()}
        for name, value in values.items():
            label = f"{name} of parameter {index}"
            if name == "step":
                is_tensor = isinstance(value, torch.Tensor)
                _number(label, _check_state(label, value, torch.Size([])).item() if is_tensor else value)
            elif value is not None or name in required:  # SGD without momentum has None
                state[index][name] = tensors[label] = _check_state(label, value, parameter.shape)
    check_finite(path, tensors)
    groups = optimizer.state_dict()["param_groups"]
    for group, before in zip(groups, stored["param_groups"], strict=True):
        if "step" in before:  # apex counts the steps here
            group["step"] = _count("step", before["step"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _check_state(name: str, value: Any, shape: torch.Size) -> torch.Tensor:
    """Return a tensor of an optimizer's state in float32, see `to_plain`. Raises ValueError if it has another shape."""
    usable = isinstance(value, torch.Tensor) and is_plain(value) and is_same_kind(value.dtype, torch.float32)
    if not usable or value.shape != shape:
        raise ValueError(f"the optimizer state has an unusable {name}")
    return to_plain(value, torch.float32)


def _restore_scaler(learner: Learner, stored: dict[str, Any]) -> None:
    """Restore the loss scale. A run may change between devices, and so between float16 and float32."""
    scaler = learner.scaler
    if not scaler.is_enabled():
        if stored:
            log.info("the loss scale is not used, because the run resumes without float16")
    elif not stored:
        log.info("the loss scale starts at %g, because the run was not in float16 before", scaler.get_scale())
    else:
        scale = _number("loss scale", stored["scale"])
        tracker = _count("loss scale", stored["_growth_tracker"], below=2**31)
        scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": tracker})


def _best(epoch: Any, bce: Any) -> Best:
    """Return the best epoch so far from stored values. Raises ValueError."""
    if bce is None:
        return Best()
    return Best(None if epoch is None else _count("best epoch", epoch), _number("bce_best", bce))


def _foreign_best(bce: Any) -> Best:
    """Return the best score from a checkpoint with weights only; none if it is not a finite number."""
    try:
        value = float(bce)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: a tensor of several values
        return Best()
    return Best(None, value) if 0 <= value <= sys.float_info.max else Best()


def _count(name: str, value: Any, below: int = 2**63) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
        raise ValueError(f"{name}: {reprlib.repr(value)} is not a count")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{name}: {reprlib.repr(value)} is not a finite number")
    return float(value)


def git_revision() -> str | None:
    """Return the project's git revision, with the suffix -dirty if files were changed; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _compare_settings(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ResumeError if a setting that the result depends on differs."""
    before, now = _flatten(before), _flatten(now)
    different = [
        f"{shorten(key, MAX_VALUE)} was {_format(before.get(key))}, is {_format(now.get(key))}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in MAY_CHANGE
    ]
    if _count("processes", before["processes"]) != now["processes"]:
        log.warning("the run was started with %d processes and resumes with %d", before["processes"], now["processes"])
    if different:
        raise ResumeError(
            f"{path}: the run was started with different settings ({'; '.join(different[:10])}). Resume it with those, "
            "choose another --prefix for a new run, or start from scratch with --resume none"
        )


def _format(value: Any) -> str:
    return shorten(json.dumps(value), MAX_VALUE)


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
