"""Learning rates as pure functions of the progress: reading one changes nothing, and a resumed run needs no state.

`rate(initial, t)` is the learning rate at the t-th step (mode "step") or epoch (mode "epoch"), counted from 0.
Parameters bear PyTorch's names, and the curves are PyTorch's (torch.optim.lr_scheduler), if not said otherwise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt


class Curve(BaseModel):
    """The parameters of a schedule."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @abstractmethod
    def rate(self, initial: float, t: int) -> float:
        """The learning rate at `t`; `initial` is the configuration's `learning_rate`."""


class Poly(Curve):
    """Down to 0 at `max_iter`, where it stays: initial * (1 - t / max_iter) ** power."""

    max_iter: PositiveInt
    power: PositiveFloat = 0.9

    def rate(self, initial: float, t: int) -> float:
        return initial * (1 - min(t / self.max_iter, 1)) ** self.power


class Step(Curve):
    step_size: PositiveInt
    gamma: PositiveFloat = 0.1

    def rate(self, initial: float, t: int) -> float:
        return initial * self.gamma ** (t // self.step_size)


class MultiStep(Curve):
    milestones: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    gamma: PositiveFloat = 0.1

    def rate(self, initial: float, t: int) -> float:
        return initial * self.gamma ** sum(t >= milestone for milestone in self.milestones)


class Exponential(Curve):
    gamma: PositiveFloat

    def rate(self, initial: float, t: int) -> float:
        return initial * self.gamma**t


class Cyclic(Curve):
    """Triangles between `base_lr` (default: the configuration's `learning_rate`) and `max_lr`.

    Smith, Cyclical Learning Rates for Training Neural Networks, 2017.
    """

    max_lr: PositiveFloat
    base_lr: PositiveFloat | None = None
    step_size_up: PositiveInt = 2000
    step_size_down: PositiveInt | None = None

    def rate(self, initial: float, t: int) -> float:
        base = self.base_lr or initial
        down = self.step_size_down or self.step_size_up
        place = t % (self.step_size_up + down)
        height = place / self.step_size_up if place <= self.step_size_up else (self.step_size_up + down - place) / down
        return base + (self.max_lr - base) * height


class Linear(Curve):
    """From start_factor to end_factor times the initial rate in `total_iters`."""

    total_iters: PositiveInt
    start_factor: Annotated[float, Field(ge=0)] = 1.0
    end_factor: Annotated[float, Field(ge=0)] = 0.0

    def rate(self, initial: float, t: int) -> float:
        return initial * (self.start_factor + (self.end_factor - self.start_factor) * min(t / self.total_iters, 1))


class Cosine(Curve):
    """A linear rise over `warmup_iters`, then half a cosine down to 0 at `total_iters`.

    Loshchilov and Hutter, SGDR, 2017, without restarts; Goyal et al., 2017, for the warm-up.
    """

    total_iters: PositiveInt
    warmup_iters: NonNegativeInt = 0

    def rate(self, initial: float, t: int) -> float:
        if t < self.warmup_iters:
            return initial * (t + 1) / (self.warmup_iters + 1)
        rest = max(self.total_iters - self.warmup_iters, 1)
        return initial * (1 + math.cos(math.pi * min((t - self.warmup_iters) / rest, 1))) / 2


class Constant(Curve):
    def rate(self, initial: float, t: int) -> float:  # noqa: ARG002
        return initial


SCHEDULES: dict[str, type[Curve]] = {
    "poly": Poly,
    "step": Step,
    "multistep": MultiStep,
    "exponential": Exponential,
    "cyclic": Cyclic,
    "linear": Linear,
    "cosine": Cosine,
    "constant": Constant,
}
