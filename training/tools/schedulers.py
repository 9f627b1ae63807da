"""Learning rate schedules as pure functions of the progress, so that a resumed run needs no scheduler state.

The schedules and their parameters are those of `torch.optim.lr_scheduler` unless stated otherwise. Time `t` is the
number of finished steps (mode "step") or epochs (mode "epoch").
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

# Numbers of steps, epochs or samples. The limit is that of the tensors that they are compared with.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrZero = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Schedule(BaseModel):
    """Base class of the schedules. Fields are the parameters."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @abstractmethod
    def lr(self, initial_lr: float, t: int) -> float:
        """Return the learning rate at time `t`. `initial_lr` is the configuration's `learning_rate`."""


class Poly(Schedule):
    """Polynomial decay to 0 at `max_iter`: initial_lr * (1 - t / max_iter) ** power."""

    max_iter: Count
    power: PositiveFloat = 0.9

    def lr(self, initial_lr: float, t: int) -> float:
        return initial_lr * (1 - min(t / self.max_iter, 1)) ** self.power


class Step(Schedule):
    """Multiplication by `gamma` every `step_size` steps or epochs."""

    step_size: Count
    gamma: PositiveFloat = 0.1

    def lr(self, initial_lr: float, t: int) -> float:
        return initial_lr * self.gamma ** (t // self.step_size)


class MultiStep(Schedule):
    """Multiplication by `gamma` at each milestone."""

    milestones: Annotated[tuple[CountOrZero, ...], Field(min_length=1)]
    gamma: PositiveFloat = 0.1

    def lr(self, initial_lr: float, t: int) -> float:
        return initial_lr * self.gamma ** sum(t >= milestone for milestone in self.milestones)


class Exponential(Schedule):
    """Exponential decay: initial_lr * gamma ** t."""

    gamma: PositiveFloat

    def lr(self, initial_lr: float, t: int) -> float:
        return initial_lr * self.gamma**t


class Cyclic(Schedule):
    """Triangular cycle between `base_lr` (default: the configuration's `learning_rate`) and `max_lr`.

    Smith, Cyclical Learning Rates for Training Neural Networks, 2017.
    """

    max_lr: PositiveFloat
    base_lr: PositiveFloat | None = None
    step_size_up: Count = 2000
    step_size_down: Count | None = None

    def lr(self, initial_lr: float, t: int) -> float:
        base = self.base_lr or initial_lr
        up, down = self.step_size_up, self.step_size_down or self.step_size_up
        position = t % (up + down)
        height = position / up if position <= up else (up + down - position) / down
        return base + (self.max_lr - base) * height


class Linear(Schedule):
    """Linear change from `start_factor` to `end_factor` times the initial learning rate within `total_iters`."""

    total_iters: Count
    start_factor: Annotated[float, Field(ge=0)] = 1.0
    end_factor: Annotated[float, Field(ge=0)] = 0.0

    def lr(self, initial_lr: float, t: int) -> float:
        return initial_lr * (self.start_factor + (self.end_factor - self.start_factor) * min(t / self.total_iters, 1))


class Cosine(Schedule):
    """Linear warm-up over `warmup_iters`, then cosine decay to 0 at `total_iters`.

    Loshchilov and Hutter, SGDR, 2017, without restarts; warm-up: Goyal et al., 2017. Unlike PyTorch's
    CosineAnnealingLR, it has a warm-up and stays at 0 after `total_iters`.
    """

    total_iters: Count
    warmup_iters: CountOrZero = 0

    def lr(self, initial_lr: float, t: int) -> float:
        if t < self.warmup_iters:
            return initial_lr * (t + 1) / (self.warmup_iters + 1)
        decay_iters = max(self.total_iters - self.warmup_iters, 1)
        return initial_lr * (1 + math.cos(math.pi * min((t - self.warmup_iters) / decay_iters, 1))) / 2


class Constant(Schedule):
    """The initial learning rate throughout."""

    def lr(self, initial_lr: float, t: int) -> float:  # noqa: ARG002
        return initial_lr


SCHEDULES: dict[str, type[Schedule]] = {
    "poly": Poly,
    "step": Step,
    "multistep": MultiStep,
    "exponential": Exponential,
    "cyclic": Cyclic,
    "linear": Linear,
    "cosine": Cosine,
    "constant": Constant,
}
