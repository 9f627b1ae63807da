"""The checkpoints of a training run, and how a run is taken up again from the last of them."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.files import atomic_write, remove
from training.pipelines.engine import Learner
from training.tools.checkpoint import CheckpointError, read_checkpoint, save_checkpoint
from training.tools.metrics import VideoScores, write_scores

PACKAGES = ("torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy", "pandas", "apex")
# Names of the released checkpoints' tensors begin so.
PREFIX = "module."
# What a run may be taken up with otherwise than it was begun; other processes see other batches, which is said.
FREE = ("config.optimizer.schedule.epochs", "config.pretrained", "processes")

log = logging.getLogger(__name__)


class ResumeError(UserError):
    """A run that cannot be taken up from a checkpoint."""


class Best(NamedTuple):
    """The epoch with the lowest balanced log loss (bce) up to now; None before the first validation."""

    epoch: int | None = None
    bce: float | None = None


class Checkpoints:
    """OUTPUT_DIR/NAME_<epoch>.pt, NAME_best.pt and NAME_last.pt; beside each, as .csv, the validation's scores.

    All can be used for inference; the last one also resumes the run.
    """

    def __init__(self, output_dir: Path, name: str):
        self.folder, self.name = output_dir, name

    def path(self, which: str | int) -> Path:
        return self.folder / f"{self.name}_{which}.pt"

    def save(
        self, learner: Learner, epoch: int, best: Best, settings: dict[str, Any], scores: VideoScores | None
    ) -> None:
        """Write the epoch's checkpoint, the best one if it is this epoch's, and then the last one.

        Killed in between, a run does the epoch again, to the same end.
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
        for which in (epoch, *(["best"] if best.epoch == epoch else []), "last"):
            path = self.path(which)
            remove(path.with_suffix(".csv"))
            if scores:
                write_scores(path.with_suffix(".csv"), scores)
            more = {"training": training} if which == "last" else {}
            save_checkpoint(path, weights, learner.recipe, epoch=epoch, bce_best=best.bce, **more)

    def describe(self, settings: dict[str, Any], start: int, command: list[str]) -> None:
        """Write OUTPUT_DIR/NAME.json: the resolved settings, and of each start of the run what it was started with."""
        path = self.folder / f"{self.name}.json"
        try:
            starts = json.loads(path.read_text(encoding="utf-8"))["starts"] if start else []
        except (OSError, ValueError, KeyError, TypeError):
            starts = []
        starts.append({"epoch": start, "command": command, "versions": versions(), "revision": revision()})
        atomic_write(path, json.dumps({"settings": settings, "starts": starts}, indent=4) + "\n")


def restore(learner: Learner, path: Path, settings: dict[str, Any]) -> tuple[int, Best]:
    """Set a learner to the state of a last checkpoint. Returns the next epoch and the best one.

    Raises ResumeError for a run with other settings, or a checkpoint that holds weights only.
    """
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        raise ResumeError(f"{error}, or remove it: then the run starts afresh") from None
    training = checkpoint.get("training")
    if not isinstance(training, dict):
        raise ResumeError(f"{path}: holds weights only; --from-zero starts a new run from them")
    weights = {key.removeprefix(PREFIX): value for key, value in checkpoint["state_dict"].items()}
    try:
        _compare(path, training["settings"], settings)
        learner.eval_network.load_state_dict(weights)
        if learner.ema:
            learner.network.load_state_dict(training["network"])
        learner.optimizer.load_state_dict(training["optimizer"])
        learner.scaler.load_state_dict(training["scaler"])
        learner.steps = training["steps"]
        return checkpoint["epoch"] + 1, Best(training["best_epoch"], checkpoint["bce_best"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(path, f"does not fit this run ({error}); --resume none starts afresh") from None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def revision() -> str | None:
    """The project's git revision, with `-dirty` behind it where files were changed; None where there is no git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _compare(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises ResumeError where settings differ that decide on the result."""
    before, now = _flat(before), _flat(now)
    different = [
        f"{key} was {json.dumps(before.get(key))}, is {json.dumps(now.get(key))}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key not in FREE
    ]
    if before["processes"] != now["processes"]:
        log.warning("begun with %d processes, taken up with %d", before["processes"], now["processes"])
    if different:
        raise ResumeError(
            f"{path}: the run was begun with other settings ({'; '.join(different)}); go on with those, give "
            "the new run another --prefix, or start afresh with --resume none"
        )


def _flat(settings: dict[str, Any], place: str = "") -> dict[str, Any]:
    """Dotted keys."""
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{place}{key}.") if isinstance(value, dict) else {f"{place}{key}": value}
    return flat
