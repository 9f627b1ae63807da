"""Learning rate schedules as pure functions of the progress, so that a resumed run needs no scheduler state.

The schedules and their parameters are those of `torch.optim.lr_scheduler` unless stated otherwise. Time `t` is
epoch * batches_per_epoch + batch in mode "step", even if the epochs have fewer batches, and the epoch in mode "epoch".
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, field_validator

# Numbers of steps, epochs or samples. The limit is that of the tensors that they are compared with.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrZero = Annotated[int, Field(ge=0, le=2**31 - 1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Schedule(BaseModel):
    """Base class of the schedules. Fields are the parameters."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @abstractmethod
    def lr(self, initial_lr: float, t: int) -> float:
        """Return the learning rate at time `t` of parameters that start at `initial_lr`."""

    def momentum(self, t: int) -> float | None:  # noqa: ARG002
        """Return the momentum (Adam: beta1) at time `t`; None leaves it to the optimizer."""
        return None


class Poly(Schedule):
    """Polynomial decay to 0 at `max_iter`: initial_lr * (1 - t / max_iter) ** power."""

    max_iter: Count = 90000
    power: PositiveFloat = 0.9

    def lr(self, initial_lr: float, t: int) -> float:
        return initial_lr * (1 - min(t / self.max_iter, 1)) ** self.power


class Step(Schedule):
    """Multiplication by `gamma` every `step_size` steps or epochs."""

    step_size: Count
    gamma: PositiveFloat = 0.1

    def lr(self, initial_lr: float, t: int) -> float:
        return initial_lr * self.gamma ** (t // self.step_size)


class StepTable(Schedule):
    """Learning rates by the time from which they hold, as [time, learning rate]; before, the initial one."""

    steps: Annotated[tuple[tuple[CountOrZero, NonNegativeFloat], ...], Field(min_length=1)]

    @field_validator("steps")
    @classmethod
    def _check(cls, steps: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        if any(time >= following for (time, _), (following, _) in pairwise(steps)):
            raise ValueError("the times should increase")
        return steps

    def lr(self, initial_lr: float, t: int) -> float:
        return next((lr for time, lr in reversed(self.steps) if time <= t), initial_lr)


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
    """Cycle between `base_lr` (default: the initial learning rate) and `max_lr`, and the momentum the other way.

    Smith, Cyclical Learning Rates for Training Neural Networks, 2017. The parameters are those of PyTorch's CyclicLR.
    """

    max_lr: PositiveFloat
    base_lr: PositiveFloat | None = None
    step_size_up: Count = 2000
    step_size_down: Count | None = None
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: PositiveFloat = 1.0
    cycle_momentum: bool = True
    base_momentum: Momentum = 0.8
    max_momentum: Annotated[Momentum, Field(gt=0)] = 0.9

    def lr(self, initial_lr: float, t: int) -> float:
        base = self.base_lr or initial_lr
        return base + (self.max_lr - base) * self._height(t)

    def momentum(self, t: int) -> float | None:
        if not self.cycle_momentum:
            return None
        return self.max_momentum - (self.max_momentum - self.base_momentum) * self._height(t)

    def _height(self, t: int) -> float:
        """Return the position between the bases (0) and the maximum learning rate (1)."""
        up, down = self.step_size_up, self.step_size_down or self.step_size_up
        cycle, position = divmod(t, up + down)
        height = position / up if position <= up else (up + down - position) / down
        if self.mode == "triangular2":
            return height * 0.5**cycle
        return height * self.gamma**t if self.mode == "exp_range" else height


class Linear(Schedule):
    """Linear change from `start_factor` to `end_factor` times the initial learning rate within `total_iters`."""

    total_iters: Count
    start_factor: Annotated[float, Field(ge=0)] = 1.0
    end_factor: Annotated[float, Field(ge=0)] = 0.0

    def lr(self, initial_lr: float, t: int) -> float:
        return initial_lr * (self.start_factor + (self.end_factor - self.start_factor) * min(t / self.total_iters, 1))


class LinearFactor(Schedule):
    """The initial learning rate times `alpha` * t + `beta`, but not below 0."""

    alpha: float
    beta: float

    def lr(self, initial_lr: float, t: int) -> float:
        return initial_lr * max(self.alpha * t + self.beta, 0.0)


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
# Forms of the published code: (type, one of its parameters) -> schedule.
PUBLISHED_FORMS: dict[tuple[str, str], type[Schedule]] = {
    ("step", "steps"): StepTable,
    ("linear", "alpha"): LinearFactor,
    ("linear", "beta"): LinearFactor,
}


def schedule_class(name: str, params: Collection[str]) -> type[Schedule]:
    """Return the schedule of a type, a key of SCHEDULES, that has these parameters."""
    return next((PUBLISHED_FORMS[name, key] for key in params if (name, key) in PUBLISHED_FORMS), SCHEDULES[name])
