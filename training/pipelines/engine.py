"""An epoch of training, and an evaluation: plain functions of what they are given, which return figures."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from common.errors import UserError
from common.text import abbreviate
from training.datasets.classifier_dataset import Batch
from training.datasets.folds import Crops
from training.losses import BalancedLoss
from training.tools.checkpoint import Recipe
from training.tools.distributed import Distributed

# So many broken images stop a run: a share of an epoch's, but a few are always forgiven.
BROKEN_SHARE, BROKEN_ALWAYS = 0.01, 10

log = logging.getLogger(__name__)


class TrainingError(UserError):
    """Training that cannot go on."""


@dataclass
class Learner:
    """What is trained, and by what rule.

    `network` holds the weights; `model` is the same for the forward pass, shared between the processes or compiled.
    `mixed`: the format of mixed precision, None for float32. `rate`: the learning rate at a step or epoch.
    """

    network: nn.Module
    model: nn.Module
    recipe: Recipe
    loss: BalancedLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    lr_at: Callable[[int, int], float]
    clip_norm: float
    accumulate: int
    amp_dtype: torch.dtype | None
    dist: Distributed
    memory_format: torch.memory_format = torch.channels_last
    ema: ModelEmaV3 | None = None
    steps: int = 0

    @property
    def eval_network(self) -> nn.Module:
        """The network to evaluate and to keep: the moving average, if there is one."""
        return self.ema.module if self.ema else self.network


def train_one_epoch(learner: Learner, batches: Collection[Batch], epoch: int, crops: Crops) -> dict[str, float | int]:
    """One pass over the batches; `learner` is changed in place. The network's mode (frozen or not) is the caller's.

    Returns `train_loss` (mean over the batches, of all processes), `lr` (of the last step), `images_per_second` and
    `broken` (of all processes), `seconds`.

    Raises TrainingError, in all processes at once, where a loss is not finite or too many images are broken.
    """
    started = time.monotonic()
    losses, seen, broken, rate = [], 0, 0, 0.0
    first = learner.dist.is_main_process
    bar = tqdm(batches, desc=f"epoch {epoch}", disable=None if first else True, leave=False, mininterval=1)
    for number, batch in enumerate(bar):
        rate = learner.lr_at(epoch, learner.steps)
        loss, images, failed = train_step(learner, batch, rate)
        for message in batch.broken:
            log.warning("replaced by another: %s", message)
        if not math.isfinite(loss):
            names = [name for names in learner.dist.all_gather(_names(batch, crops)) for name in names]
            raise TrainingError(
                f"the loss, or its gradient, is {loss} in epoch {epoch}, batch {number} ({abbreviate(names)}); lower the "
                "learning rate, or leave float16 (--opt-level O0). The checkpoints are those of the epochs before"
            )
        losses.append(loss)
        seen, broken = seen + images, broken + failed
        check_broken(broken, len(batches) * images)
        bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", rate=f"{rate:.2e}", refresh=False)
    seconds = time.monotonic() - started
    return {
        "train_loss": float(np.mean(losses)),
        "lr": rate,
        "images_per_second": seen / seconds,
        "broken": broken,
        "seconds": seconds,
    }


def train_step(learner: Learner, batch: Batch, rate: float) -> tuple[float, int, int]:
    """One step of the optimizer, unless the loss or its gradient is not finite.

    Returns the loss of the whole batch (or that gradient's norm), its images and its broken ones; of all processes.
    """
    dist, device = learner.dist, learner.dist.device
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    images, labels, valid, known, masks = (
        None if field is None else field.to(device, non_blocking=True)
        for field in (batch.images, batch.labels, batch.valid, batch.known, batch.masks)
    )
    counts = dist.all_reduce(learner.loss.counts(labels, valid))
    size = len(labels) // learner.accumulate
    total = labels.new_zeros(())
    for first in range(0, len(labels), size):
        part = slice(first, first + size)
        with _shared_gradients(learner.model, first + size >= len(labels)):
            logits, drawn = forward(
                learner.model, learner.recipe, images[part], learner.amp_dtype, learner.memory_format
            )
            # Gradients are averaged over the processes; what is wanted is the sum of their shares.
            loss = learner.loss(logits, labels[part], valid[part], counts) * dist.world_size
            if drawn is not None:
                loss = loss + learner.loss.of_mask(drawn, masks[part], known[part]) / learner.accumulate
            learner.scaler.scale(loss).backward()
        total += loss.detach() / dist.world_size
    figures = torch.stack([total, total.new_tensor(len(labels)), total.new_tensor(len(batch.broken))])
    loss, seen, broken = dist.all_reduce(figures).tolist()
    if math.isfinite(loss):
        norm = _update(learner)
        loss = loss if math.isfinite(norm) else norm
    return loss, round(seen), round(broken)


def forward(
    model: nn.Module,
    recipe: Recipe,
    images: torch.Tensor,
    amp_dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits (n,) of uint8 images (n, size, size, 3); and mask logits (n, 1, size, size), if the network draws them."""
    with torch.autocast(images.device.type, amp_dtype, enabled=amp_dtype is not None):
        output = model(recipe.normalize(images).contiguous(memory_format=memory_format))
    logits, drawn = output if isinstance(output, tuple) else (output, None)
    return logits[:, 0].float(), None if drawn is None else drawn.float()


def check_broken(broken: int, images: int) -> None:
    """Raises TrainingError where too many of an epoch's images could not be read."""
    if broken > max(BROKEN_ALWAYS, BROKEN_SHARE * images):
        raise TrainingError(f"{broken} of an epoch's {images} images cannot be read (named above); see --crops-dir")


@torch.no_grad()
def score_crops(
    network: nn.Module,
    recipe: Recipe,
    batches: Iterable[Batch],
    dist: Distributed,
    amp_dtype: torch.dtype | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows (n,) of the crops in the batches of all processes, in all of them, and their probabilities (n,).

    Raises TrainingError, in all processes at once, where scores are not finite or too many images are broken.
    """
    network.eval()
    rows, scores, broken = [], [], []
    bar = tqdm(batches, desc="validation", disable=None if dist.is_main_process else True, leave=False, mininterval=1)
    for batch in bar:
        broken += batch.broken
        if len(batch.rows):
            logits, _ = forward(network, recipe, batch.images.to(dist.device, non_blocking=True), amp_dtype)
            scores.append(logits.cpu().double().sigmoid().numpy())
            rows.append(batch.rows.numpy())
    for message in broken:
        log.warning("left out: %s", message)
    parts = dist.all_gather((np.concatenate([[], *rows]), np.concatenate([[], *scores]), len(broken)))
    rows, scores, broken = zip(*parts, strict=True)
    row, score = np.concatenate(rows).astype(int), np.concatenate(scores)
    check_broken(sum(broken), sum(broken) + len(row))
    if not len(row) or not np.isfinite(score).all():
        raise TrainingError("no finite scores of the validation's crops; take an earlier checkpoint, or leave float16")
    return row, score


def _names(batch: Batch, crops: Crops) -> list[str]:
    return [crops.name(row) for row in batch.rows.tolist()]


def _shared_gradients(model: nn.Module, share: bool) -> contextlib.AbstractContextManager:
    """Whether the processes' gradients are averaged in a backward pass."""
    return contextlib.nullcontext() if share or not hasattr(model, "no_sync") else model.no_sync()


def _update(learner: Learner) -> float:
    """One step, unless the gradient is not finite, when its norm is returned; 0 otherwise."""
    learner.scaler.unscale_(learner.optimizer)
    parameters = [parameter for parameter in learner.network.parameters() if parameter.grad is not None]
    norm = clip_grad_norm_(parameters, learner.clip_norm).item()
    if not math.isfinite(norm) and not learner.scaler.is_enabled():  # float16's scaler leaves such a step out
        return norm
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad()
    learner.steps += 1
    if learner.ema:
        learner.ema.update(learner.network, step=learner.steps)
    return 0.0
