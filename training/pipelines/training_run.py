"""A training run, from its arguments to its last epoch."""

from __future__ import annotations

import argparse
import logging
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.allocator import keep_freed_memory
from common.device import device_errors
from common.files import make_folder
from common.text import plural
from training.pipelines import build
from training.pipelines.checkpointing import Best, Checkpoints, ResumeError, restore
from training.pipelines.engine import Learner, score_crops, train_one_epoch
from training.pipelines.samples import write_preview
from training.tools.config import Config, read_config
from training.tools.distributed import Distributed, init_distributed
from training.tools.log import EpochLog
from training.tools.metrics import VideoScores, class_losses, evaluate

# What to do if memory runs out or the device fails.
REMEDY = "Lower optimizer.batch_size, raise optimizer.accumulate or lower --workers, and run the same command again"

log = logging.getLogger(__name__)


def run(args: argparse.Namespace, changes: Mapping[str, Any]) -> int:
    """Train a network, resume its training or write the contact sheet. Return the exit status.

    Args:
        args: arguments of train_classifier.py.
        changes: dotted keys of the configuration with the values that replace the file's.
    """
    config = read_config(args.config, changes)
    if args.preview:
        dataset = build.build_training_dataset(args, config, masks=True)
        write_preview(dataset, args.preview, oversample=not args.no_oversample)
        return 0
    for folder in (args.output_dir, args.logdir):
        make_folder(folder)
    checkpoints = Checkpoints(args.output_dir, run_name(args, config), every_epoch=args.keep == "all")
    # In this order, because PyTorch also reports a lost process as a failure of NCCL.
    with device_errors(REMEDY), init_distributed(args.device) as dist:
        for folder in (args.output_dir, args.logdir):
            dist.check_shared(folder)
        logging.getLogger().setLevel(logging.INFO if dist.is_main_process else logging.WARNING)
        best = _start_or_resume(args, config, checkpoints, dist)
        if dist.is_main_process:
            print(next_steps(checkpoints, best, args.logdir))
    return 0


def run_name(args: argparse.Namespace, config: Config) -> str:
    """Return the name of a run, with which the names of its checkpoints and of its log start."""
    return f"{config.prefix if args.prefix is None else args.prefix}{config.network}_{config.encoder}_{args.fold}"


def _start_or_resume(args: argparse.Namespace, config: Config, checkpoints: Checkpoints, dist: Distributed) -> Best:
    """Set up the run, train the remaining epochs and return the best epoch."""
    data = build.build_data(args, config, dist)
    source = find_resume_checkpoint(args, checkpoints)
    if dist.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(args.seed)
    network = build.init_network(config, fresh=source is None, weights=args.resume if args.from_zero else None)
    learner = build.build_learner(config, network, build.crop_spec(config, args.padding_part), dist, args.compile)
    settings = build.run_settings(args, config, data.crops, dist)
    if any(other != settings for other in dist.all_gather(settings)):
        raise build.SetupError("NNODES: the nodes differ in options, configuration or folds.csv. Make them the same")
    start, best = restore(learner, source, settings) if source else (0, Best())
    epochs = config.optimizer.schedule.epochs
    if start >= epochs:
        if source != checkpoints.path("last"):
            raise ResumeError(
                f"{source}: continues with epoch {start}, but the run has only {plural(epochs, 'epoch')}. Raise "
                "--epochs, or add --from-zero to take only the weights"
            )
        log.info("%s: all %s are done", checkpoints.name, plural(start, "epoch"))
        return best
    if source:
        log.info("resumed from %s, at epoch %d", source, start)
    if dist.is_main_process:
        log_start(data, learner)
        checkpoints.describe(settings, start, sys.argv)
    best = Best() if args.zero_score else best
    return train(args, learner, data, checkpoints, settings, range(start, epochs), best, config.frozen_stages)


def train(
    args: argparse.Namespace,
    learner: Learner,
    data: build.Data,
    checkpoints: Checkpoints,
    settings: dict[str, Any],
    epochs: range,
    best: Best,
    frozen_stages: int = 0,
) -> Best:
    """Train some epochs; after each, log its metrics and write its checkpoint. Return the best epoch.

    Args:
        args: arguments of train_classifier.py.
        learner: what is trained.
        data: training and validation crops.
        checkpoints: the checkpoints to write.
        settings: the run's settings, which are stored in the checkpoints.
        epochs: the epochs to train, counted from 0; the last one is the run's last.
        best: the best epoch so far.
        frozen_stages: see `training.tools.config.Config`.
    """
    dist, last = learner.dist, epochs[-1]
    if not any(learner.rates_at(last, 0).lr):
        log.warning("optimizer.schedule.params: the learning rate is 0 in the last epoch. Check the schedule's length")
    epoch_log = EpochLog(args.logdir, checkpoints.name, epochs[0]) if dist.is_main_process else None
    frozen = None
    for epoch in epochs:
        torch.manual_seed(build.epoch_seed(args.seed, epoch, dist.rank))
        if frozen != (epoch < args.freeze_epochs):
            frozen = epoch < args.freeze_epochs
            build.wrap_model(learner, frozen, args.compile)
        learner.network.train()
        # Otherwise, frozen batch norms would update their running statistics.
        for module in [learner.network.encoder] if frozen else build.frozen_modules(learner.network, frozen_stages):
            module.eval()
        data.batches.epoch = epoch
        metrics: dict[str, Any] = {"epoch": epoch, **train_one_epoch(learner, data.training, epoch, data.crops)}
        scores = None
        if (epoch + 1) % args.test_every == 0 or epoch == last:
            scores = validate(learner, data)
            metrics |= validation_metrics(scores)
            if is_better(metrics["bce"], best):
                best = Best(epoch, metrics["bce"])
        if epoch_log:
            epoch_log.add(metrics)
            path = checkpoints.save(learner, epoch, best, settings, scores)
            print(f"{summarize(metrics, last + 1, best)} | {path}", flush=True)
    return best


def is_better(bce: float, best: Best) -> bool:
    """Return whether an epoch's bce is lower than the best so far. NaN never is: every later epoch would lose to it."""
    return math.isfinite(bce) and (best.bce is None or bce < best.bce)


def validate(learner: Learner, data: build.Data) -> VideoScores:
    """Score the validation videos, in all processes together."""
    rows, scores = score_crops(learner.eval_network, learner.recipe, data.validation, learner.dist, learner.amp_dtype)
    return VideoScores.from_crops(data.crops, rows, scores)


def validation_metrics(scores: VideoScores) -> dict[str, Any]:
    """Return the metrics of a validation under the log's keys; `bce` is the balanced log loss."""
    metrics = class_losses(scores.scores, scores.fake) | evaluate(scores.scores, scores.fake)
    metrics["bce"] = metrics.pop("balanced_log_loss")
    return metrics


def summarize(metrics: Mapping[str, Any], epochs: int, best: Best) -> str:
    """Format an epoch's metrics as one line."""
    text = (
        "epoch {epoch} ({number} of {epochs}): loss {train_loss:.4f}, learning rate {lr:.2e}, "
        "{images_per_second:.1f} images/s"
    ).format(number=metrics["epoch"] + 1, epochs=epochs, **metrics)
    if metrics["broken"]:
        text += f", {plural(metrics['broken'], 'broken image')}"
    if metrics.get("skipped_steps"):
        text += f", {plural(metrics['skipped_steps'], 'skipped step')} (loss scale {metrics['loss_scale']:g})"
    if "bce" in metrics:
        values = [
            f"{name} {metrics[name]:.4f}"
            for name in ("fake_loss", "real_loss", "bce", "auc")
            if metrics[name] is not None
        ]
        text += f" | {plural(metrics['videos'], 'video')}: {', '.join(values)}"
    return f"{text} (best)" if best.epoch == metrics["epoch"] else text


def log_start(data: build.Data, learner: Learner) -> None:
    """Log the device and the amount of data, and warn if validation has only one class."""
    dist = learner.dist
    precision = "float32" if learner.amp_dtype is None else str(learner.amp_dtype).removeprefix("torch.")
    processes = f" in {dist.world_size} processes" if dist.world_size > 1 else ""
    log.info("training on %s%s, %s", dist.device, processes, precision)
    fake = data.crops.fake[data.training_rows]
    log.info("training data: %s, %s", plural(int((~fake).sum()), "real image"), plural(int(fake.sum()), "fake image"))
    videos, first = np.unique(data.crops.video[data.validation_rows], return_index=True)
    fakes = int(data.crops.fake[data.validation_rows[first]].sum())
    reals = len(videos) - fakes
    log.info("validation data: %s, %s", plural(reals, "real video"), plural(fakes, "fake video"))
    if not reals or not fakes:
        log.warning(
            "--fold: validation has only %s videos, so the best epoch is the one with the lowest loss on these. "
            "Choose a fold with both classes",
            "fake" if fakes else "real",
        )


def next_steps(checkpoints: Checkpoints, best: Best, logdir: Path) -> str:
    """Format where the best checkpoint is and which commands use it."""
    path = checkpoints.path("best")
    if best.epoch is not None and path.is_file():
        text = f"best checkpoint: {path} (epoch {best.epoch}, bce {best.bce:.4f})"
    else:  # resumed from a checkpoint in another folder, and no later epoch was better
        path = checkpoints.path("last")
        text = f"last checkpoint: {path}"
    log_file, picture = (logdir / f"{checkpoints.name}{suffix}" for suffix in (".jsonl", ".png"))
    plot = ["python", "plot_loss.py", "--log-file", str(log_file), "--output", str(picture)]
    predict = ["python", "predict_folder.py", "--models", str(path), "--test-dir", "VIDEOS", "--output", "out.csv"]
    return f"{text}\nnext: {shlex.join(plot)}\n      {shlex.join(predict)}"


def find_resume_checkpoint(args: argparse.Namespace, checkpoints: Checkpoints) -> Path | None:
    """Return the checkpoint to resume from: the run's own last one, else --resume FILE; None to start from scratch."""
    if args.from_zero and args.resume in ("auto", "none"):
        raise build.SetupError("--from-zero: needs a checkpoint to take the weights from. Add --resume FILE")
    own = checkpoints.path("last")
    if args.resume != "none" and own.is_file():
        if args.resume != "auto":
            log.warning("--resume %s: is not used, because the run resumes from its own %s", args.resume, own)
        return own
    return None if args.from_zero or args.resume in ("auto", "none") else Path(args.resume)
