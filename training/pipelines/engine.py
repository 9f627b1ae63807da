"""Train one epoch, take one training step, score crops: functions of a Learner and its data."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.errors import UserError
from common.text import abbreviate
from training.datasets.classifier_dataset import Batch
from training.datasets.folds import Crops
from training.losses import BalancedLoss
from training.tools.checkpoint import Recipe
from training.tools.distributed import Distributed
from training.zoo.classifiers import DeepFakeClassifier

# Loss scale below which float16 training has stopped learning: even unscaled, the gradients would overflow.
MIN_LOSS_SCALE = 1.0
FLOAT16_REMEDY = (
    "Lower the learning rate, or use --opt-level O0 or --set amp_dtype=bfloat16. The checkpoints of earlier epochs are "
    "intact"
)
# More broken images than this share of an epoch's images stop the run, but a few are always tolerated.
MAX_BROKEN_SHARE, ALWAYS_TOLERATED = 0.01, 10

log = logging.getLogger(__name__)


class TrainingError(UserError):
    """Training or scoring that cannot continue."""


class Rates(NamedTuple):
    """What a learning rate schedule sets before each step.

    Attributes:
        lr: learning rate of each group of parameters of the optimizer.
        momentum: momentum, or Adam's beta1; None leaves it as it is.
    """

    lr: tuple[float, ...]
    momentum: float | None = None


@dataclass
class Learner:
    """A network and everything that trains it.

    Attributes:
        network: holds the weights.
        model: the same network for the forward pass, possibly wrapped in DistributedDataParallel or compiled.
        recipe: what a checkpoint says about the network and its input.
        loss: loss of a batch.
        optimizer: the optimizer.
        scaler: loss scaling for float16; disabled otherwise.
        rates_at: returns the rates for (epoch, batch), both counted from 0.
        loss_scope: what the loss averages each class of: "global" or "process", see `training.tools.config.Config`.
        clip_norm: gradient clipping threshold (L2 norm).
        accumulate: number of parts that a batch is divided into to save memory.
        amp_dtype: AMP dtype; None for float32.
        dist: this process and its device.
        memory_format: memory format of the network and its input.
        ema: moving average of the weights, if used.
        steps: number of optimizer steps so far, without skipped ones.
    """

    network: DeepFakeClassifier
    model: Callable[[torch.Tensor], Any]
    recipe: Recipe
    loss: BalancedLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rates_at: Callable[[int, int], Rates]
    clip_norm: float
    accumulate: int
    amp_dtype: torch.dtype | None
    dist: Distributed
    loss_scope: str = "global"
    memory_format: torch.memory_format = torch.channels_last
    ema: ModelEmaV3 | None = None
    steps: int = 0

    @property
    def eval_network(self) -> nn.Module:
        """The network to validate and to save: the moving average if there is one."""
        return self.ema.module if self.ema else self.network


class Step(NamedTuple):
    """The result of a training step, over all processes.

    Attributes:
        loss: loss of the whole batch, or the gradient's norm if the gradient is not finite and the step not skipped.
        images: number of images.
        broken: number of images that could not be read.
        skipped: whether the weights were not updated, because the loss or its gradient overflowed in float16.
    """

    loss: float
    images: int
    broken: int
    skipped: bool = False


def train_one_epoch(learner: Learner, data_loader: DataLoader, epoch: int, crops: Crops) -> dict[str, float | int]:
    """Train on all batches. The caller sets the network to training mode.

    Args:
        learner: modified in place.
        data_loader: batches of this process.
        epoch: number of the epoch, counted from 0.
        crops: names of the crops, for messages.

    Returns:
        `train_loss` (mean over the batches), `lr` and, if it is set, `classifier_lr` (of the last step),
        `images_per_second`, `broken` (number of broken images) and `seconds`; with loss scaling also `loss_scale` (at
        the end) and `skipped_steps`. All but `seconds` cover all processes.

    Raises:
        TrainingError: in all processes at once, if a loss is not finite, float16 is not enough or too many images are
            broken.
    """
    started = time.monotonic()
    losses: list[float] = []
    images, broken, skipped, rates = 0, 0, 0, Rates((0.0,))
    show = None if learner.dist.is_main_process else True
    progress = tqdm(data_loader, desc=f"epoch {epoch}", disable=show, leave=False, mininterval=1)
    for number, batch in enumerate(progress):
        rates = learner.rates_at(epoch, number)
        set_rates(learner.optimizer, rates)
        step = train_step(learner, batch)
        for message in batch.broken:
            log.warning("replaced by another image: %s", message)
        _check_finite(learner, step, batch, f"epoch {epoch}, batch {number}", crops)
        if math.isfinite(step.loss):
            losses.append(step.loss)
        images += step.images
        broken += step.broken
        skipped += step.skipped
        check_broken(broken, len(data_loader) * step.images)
        progress.set_postfix(loss=f"{np.mean(losses[-100:] or [math.nan]):.4f}", lr=f"{rates.lr[0]:.2e}", refresh=False)
    if not losses:
        raise TrainingError(f"epoch {epoch}: the loss overflows in float16 in all batches. {FLOAT16_REMEDY}")
    seconds = time.monotonic() - started
    scaling = {"loss_scale": learner.scaler.get_scale(), "skipped_steps": skipped}
    return {
        "train_loss": float(np.mean(losses)),
        **dict(zip(("lr", "classifier_lr"), rates.lr, strict=False)),
        "images_per_second": images / seconds,
        "broken": broken,
        **(scaling if learner.scaler.is_enabled() else {}),
        "seconds": seconds,
    }


def _check_finite(learner: Learner, step: Step, batch: Batch, place: str, crops: Crops) -> None:
    """Raise TrainingError if a loss is not finite, or if so many steps were skipped that no further one helps."""
    if step.skipped and learner.scaler.get_scale() < MIN_LOSS_SCALE:
        reason = f"the gradient overflows in float16, even with a loss scale of {MIN_LOSS_SCALE:g}"
        raise TrainingError(f"{place}: {reason}. {FLOAT16_REMEDY}")
    if not step.skipped and not math.isfinite(step.loss):
        names = [crops.name(row) for rows in learner.dist.all_gather(batch.rows.tolist()) for row in rows]
        remedy = "Lower the learning rate" + ("" if learner.amp_dtype is None else ", or use --opt-level O0")
        raise TrainingError(
            f"{place}: the loss or its gradient is {step.loss} ({abbreviate(names)}). {remedy}. The checkpoints of "
            "earlier epochs are intact"
        )


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Set the learning rates and the momentum of an optimizer."""
    for group, lr in zip(optimizer.param_groups, rates.lr, strict=True):
        group["lr"] = lr
        if rates.momentum is not None and "betas" in group:
            group["betas"] = (rates.momentum, *group["betas"][1:])
        elif rates.momentum is not None:
            group["momentum"] = rates.momentum


def train_step(learner: Learner, batch: Batch) -> Step:
    """Take one optimizer step, unless the loss or its gradient is not finite.

    With loss scaling (float16), such a step is skipped and the loss scale halved. The decision is the same in all
    processes, because the loss is summed and the gradients are averaged over them. It needs the loss and the gradient's
    norm: reading both at once is the only time that a step waits for a GPU.
    """
    statistics = _copy_buffers(learner.network) if learner.scaler.is_enabled() else []
    loss = _backward(learner, batch)
    sums = torch.stack([loss, *(loss.new_full((), count) for count in (len(batch.labels), batch.broken_images))])
    total, images, broken, norm = torch.stack([*learner.dist.all_reduce(sums), _clip_gradient(learner)]).tolist()
    counts = round(images), round(broken)
    if math.isfinite(total) and math.isfinite(norm):
        _update_weights(learner)
        return Step(total, *counts)
    if not math.isfinite(total):
        for buffer, before in statistics:  # of a forward pass that overflowed; they would stay infinite
            buffer.copy_(before)
    skipped = _skip_step(learner)
    return Step(total if skipped or not math.isfinite(total) else norm, *counts, skipped)


def _copy_buffers(network: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the buffers of a network with copies. Those of one type are copied together, which a GPU does faster."""
    groups: dict[torch.dtype, list[torch.Tensor]] = {}
    for buffer in network.buffers():
        groups.setdefault(buffer.dtype, []).append(buffer)
    return [pair for group in groups.values() for pair in zip(group, torch._foreach_mul(group, 1), strict=True)]


def _skip_step(learner: Learner) -> bool:
    """Discard the gradient and lower the loss scale. Return False without loss scaling, where this does not help."""
    scaler = learner.scaler
    if scaler.is_enabled():
        scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
        learner.optimizer.zero_grad()
    return scaler.is_enabled()


def _backward(learner: Learner, batch: Batch) -> torch.Tensor:
    """Compute the gradients of a batch part by part. Return this process' share of the loss, a scalar."""
    dist, loss = learner.dist, learner.loss
    images, labels, valid, known = (
        field.to(dist.device, non_blocking=True)
        for field in (batch.images, batch.labels, batch.valid, batch.mask_known)
    )
    masks = None if batch.masks is None else batch.masks.to(dist.device, non_blocking=True)
    counts = loss.class_counts(labels, valid)
    # DistributedDataParallel averages the gradients over the processes; a global loss is their sum.
    scale = 1
    if learner.loss_scope == "global":
        counts, scale = dist.all_reduce(counts), dist.world_size
    size = len(labels) // learner.accumulate
    total = labels.new_zeros(())
    for first in range(0, len(labels), size):
        part = slice(first, first + size)
        with _sync_gradients(learner.model, last=first + size >= len(labels)):
            logits, mask_logits = forward(
                learner.model, learner.recipe, images[part], learner.amp_dtype, learner.memory_format
            )
            part_loss = loss(logits, labels[part], valid[part], counts) * scale
            if mask_logits is not None and masks is not None:
                part_loss = part_loss + loss.mask_loss(mask_logits, masks[part], known[part]) / learner.accumulate
            learner.scaler.scale(part_loss).backward()
        total += part_loss.detach() / dist.world_size
    return total


def forward(
    model: Callable[[torch.Tensor], Any],
    recipe: Recipe,
    images: torch.Tensor,
    amp_dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run a network on uint8 images (n, size, size, 3).

    Returns:
        Logits (n,) and, from networks that predict a mask, mask logits (n, 1, size, size); all float32.
    """
    with torch.autocast(images.device.type, amp_dtype, enabled=amp_dtype is not None):
        output = model(recipe.normalize(images).contiguous(memory_format=memory_format))
    logits, mask_logits = output if isinstance(output, tuple) else (output, None)
    return logits[:, 0].float(), None if mask_logits is None else mask_logits.float()


def check_broken(broken: int, images: int) -> None:
    """Raise TrainingError if too many of an epoch's images could not be read."""
    if broken > max(ALWAYS_TOLERATED, MAX_BROKEN_SHARE * images):
        raise TrainingError(
            f"--crops-dir: {broken} of {images} images cannot be read. Repair them (they are listed above)"
        )


@torch.no_grad()
def score_crops(
    network: nn.Module,
    recipe: Recipe,
    batches: Iterable[Batch],
    dist: Distributed,
    amp_dtype: torch.dtype | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Score the crops of all processes' batches. Every process gets all scores.

    Args:
        network: set to evaluation mode in place.
        recipe: the network's input, and what to average over.
        batches: batches of this process.
        dist: this process and its device.
        amp_dtype: AMP dtype; None for float32.

    Returns:
        Rows (n,) of the crops in the order they were scored, and their probabilities (n,) of being fake.

    Raises:
        TrainingError: in all processes at once, if a score is not finite or too many images are broken.
    """
    network.eval()
    rows, logits = [np.zeros(0, int)], [torch.zeros(0, device=dist.device)]
    broken = 0
    show = None if dist.is_main_process else True
    for batch in tqdm(batches, desc="validation", disable=show, leave=False, mininterval=1):
        for message in batch.broken:
            log.warning("left out: %s", message)
        broken += len(batch.broken)
        if len(batch.rows):
            images = batch.images.to(dist.device, non_blocking=True)
            logits.append(_logits(network, recipe, images, amp_dtype))
            rows.append(batch.rows.numpy())
    scores = torch.cat(logits).cpu().double().sigmoid().numpy()  # at the end, so that no batch waits for a GPU
    parts = dist.all_gather((np.concatenate(rows), scores, broken))
    all_rows, all_scores = (np.concatenate([part[field] for part in parts]) for field in (0, 1))
    all_broken = sum(part[2] for part in parts)
    check_broken(all_broken, all_broken + len(all_rows))
    if not len(all_rows):
        raise TrainingError(f"--crops-dir: none of {all_broken} images can be read. Repair them, see above")
    if not np.isfinite(all_scores).all():
        # Only training has mixed precision and the option.
        remedy = "Use an earlier checkpoint" + ("" if amp_dtype is None else ", or --opt-level O0")
        raise TrainingError(f"validation: scores are not finite. {remedy}")
    return all_rows, all_scores


def _logits(network: nn.Module, recipe: Recipe, images: torch.Tensor, amp_dtype: torch.dtype | None) -> torch.Tensor:
    """Return the logits (n,) of uint8 images (n, size, size, 3) as `inference.ensemble.Ensemble` computes them."""
    views = [view.permute(0, 2, 3, 1) for view in recipe.views(images.permute(0, 3, 1, 2))]
    return torch.stack([forward(network, recipe, view, amp_dtype)[0] for view in views]).mean(dim=0)


def _sync_gradients(model: Callable, last: bool) -> contextlib.AbstractContextManager:
    """Average the gradients over the processes in the last backward pass of a batch only."""
    no_sync = getattr(model, "no_sync", None)
    return contextlib.nullcontext() if last or no_sync is None else no_sync()


def _clip_gradient(learner: Learner) -> torch.Tensor:
    """Clip the gradient. Return its L2 norm before, a scalar."""
    learner.scaler.unscale_(learner.optimizer)
    parameters = [parameter for parameter in learner.network.parameters() if parameter.grad is not None]
    return clip_grad_norm_(parameters, learner.clip_norm)


def _update_weights(learner: Learner) -> None:
    """Take an optimizer step with a finite gradient."""
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad()
    learner.steps += 1
    if learner.ema:
        learner.ema.update(learner.network, step=learner.steps)
