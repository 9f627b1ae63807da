"""Write the checkpoints of a training run, and resume the run from the last one."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, NamedTuple

from common import __version__
from common.errors import UserError
from common.files import atomic_write, remove
from training.pipelines.engine import Learner
from training.tools.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from training.tools.metrics import VideoScores, write_scores

PACKAGES = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy", "pandas", "apex")
# Prefix of the tensors' names in the released checkpoints.
PREFIX = "module."
# Settings that may differ when a run resumes. A different number of processes changes the batches, so it is reported.
MAY_CHANGE = ("config.optimizer.schedule.epochs", "config.pretrained", "processes")

log = logging.getLogger(__name__)


class ResumeError(UserError):
    """A checkpoint that a run cannot resume from."""


class Best(NamedTuple):
    """The epoch with the lowest balanced log loss (bce) so far; None before the first validation."""

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
    """Restore a learner from NAME_last.pt. Return the next epoch and the best epoch so far.

    Raises:
        ResumeError: the run has different settings, or the checkpoint is damaged or has weights only.
        CheckpointError: the checkpoint does not fit the learner.
    """
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        raise ResumeError(f"{error}. To start from scratch, use --resume none") from None
    training = checkpoint.get("training")
    if not isinstance(training, dict):
        raise ResumeError(f"{path}: has weights only. To start a new run from them, add --from-zero")
    weights = {key.removeprefix(PREFIX): value for key, value in checkpoint["state_dict"].items()}
    try:
        _compare_settings(path, training["settings"], settings)
        learner.eval_network.load_state_dict(weights)
        if learner.ema:
            learner.network.load_state_dict(training["network"])
        learner.optimizer.load_state_dict(training["optimizer"])
        learner.scaler.load_state_dict(training["scaler"])
        learner.steps = training["steps"]
        return checkpoint["epoch"] + 1, Best(training["best_epoch"], checkpoint["bce_best"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = f"does not fit this run ({error}). To start from scratch, use --resume none"
        raise CheckpointError(path, reason) from None


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that the result depends on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = package_version(package)
        except PackageNotFoundError:
            continue
    return versions


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
        f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now.get(key))}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in MAY_CHANGE
    ]
    if before["processes"] != now["processes"]:
        log.warning("the run was started with %d processes and resumes with %d", before["processes"], now["processes"])
    if different:
        raise ResumeError(
            f"{path}: the run was started with different settings ({'; '.join(different)}). Resume it with those, "
            "choose another --prefix for a new run, or start from scratch with --resume none"
        )


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
