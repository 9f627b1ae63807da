"""Learning rates equal those of PyTorch's schedulers."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from training.pipelines.engine import Rates, set_rates
from training.tools.schedulers import SCHEDULES, schedule_class

LR = 0.05
STEPS = 60


def pytorch_lrs(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]) -> list[float]:
    """Return the learning rates of STEPS steps with a scheduler of PyTorch."""
    optimizer = torch.optim.SGD([torch.zeros(1)], LR, momentum=0.9)
    scheduler = make(optimizer)
    lrs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(STEPS):
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return lrs


@pytest.mark.parametrize(
    ("name", "params", "reference"),
    [
        ("poly", {"max_iter": 50}, lambda o: lr_scheduler.PolynomialLR(o, 50, power=0.9)),
        ("poly", {"max_iter": 70, "power": 2.0}, lambda o: lr_scheduler.PolynomialLR(o, 70, power=2)),
        ("step", {"step_size": 7}, lambda o: lr_scheduler.StepLR(o, 7)),
        ("multistep", {"milestones": (5, 20), "gamma": 0.3}, lambda o: lr_scheduler.MultiStepLR(o, [5, 20], 0.3)),
        ("exponential", {"gamma": 0.93}, lambda o: lr_scheduler.ExponentialLR(o, 0.93)),
        (
            "linear",
            {"start_factor": 0.1, "end_factor": 1.0, "total_iters": 33},
            lambda o: lr_scheduler.LinearLR(o, 0.1, 1, 33),
        ),
        ("constant", {}, lambda o: lr_scheduler.ConstantLR(o, 1)),
    ],
)
def test_equals_pytorch(name: str, params: dict, reference: Callable) -> None:
    schedule = SCHEDULES[name](**params)
    assert [schedule.lr(LR, t) for t in range(STEPS)] == pytest.approx(pytorch_lrs(reference), rel=1e-6, abs=1e-12)


CYCLES = [
    {},
    {"step_size_up": 7},
    {"base_lr": 0.01, "step_size_up": 7, "step_size_down": 4, "base_momentum": 0.1, "max_momentum": 0.95},
    {"mode": "triangular2", "step_size_up": 7, "step_size_down": 4},
    {"mode": "exp_range", "gamma": 0.97, "step_size_up": 7, "step_size_down": 4},
]


@pytest.mark.parametrize("params", CYCLES)
@pytest.mark.parametrize(
    "make", [lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), torch.optim.Adam, torch.optim.RMSprop]
)
def test_cycles_equal_pytorch(make: Callable, params: dict) -> None:
    """The learning rate, and the momentum or beta1."""
    optimizers = [make([torch.zeros(1)], LR) for _ in range(2)]
    reference = lr_scheduler.CyclicLR(optimizers[0], **{"base_lr": LR, "max_lr": 0.2, **params})
    schedule = SCHEDULES["cyclic"](max_lr=0.2, **params)
    for t in range(STEPS):
        set_rates(optimizers[1], Rates((schedule.lr(LR, t),), schedule.momentum(t)))
        groups = [optimizer.param_groups[0] for optimizer in optimizers]
        for key in ("lr", "momentum", "betas"):
            values = [group.get(key, 0) for group in groups]
            assert values[1] == pytest.approx(values[0], rel=1e-6), (key, t)
        optimizers[0].step()
        reference.step()


def test_long_cycles_with_an_unused_gamma() -> None:
    """`gamma` matters in mode exp_range only, so it cannot overflow in the others."""
    for mode in ("triangular", "triangular2"):
        assert SCHEDULES["cyclic"](max_lr=0.2, mode=mode, gamma=2.0).lr(LR, 100_000) == pytest.approx(LR)


def test_momentum_is_left_alone_unless_it_is_cycled() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], LR, momentum=0.7)
    for schedule in (SCHEDULES["cyclic"](max_lr=0.2, cycle_momentum=False), SCHEDULES["poly"]()):
        assert schedule.momentum(3) is None
        set_rates(optimizer, Rates((0.1,), schedule.momentum(3)))
        assert optimizer.param_groups[0]["momentum"] == 0.7


def test_published_forms() -> None:
    """`step` as a table of learning rates, `linear` as a factor alpha * t + beta, `poly` with its default length."""
    table = schedule_class("step", {"steps"})(steps=((2, 0.3), (5, 0.1)))
    assert [table.lr(LR, t) for t in range(7)] == [LR, LR, 0.3, 0.3, 0.3, 0.1, 0.1]
    linear = schedule_class("linear", ["alpha", "beta"])(alpha=-0.25, beta=0.75)
    assert [linear.lr(LR, t) for t in range(5)] == pytest.approx([0.75 * LR, 0.5 * LR, 0.25 * LR, 0, 0])
    assert SCHEDULES["poly"]().lr(1, 45000) == pytest.approx(0.5**0.9)


def test_poly_of_the_published_recipe() -> None:
    """0.01 * (1 - t / 100500) ** 0.9 at the first, a middle and the last of 100,000 steps."""
    schedule = SCHEDULES["poly"](max_iter=100500)
    assert schedule.lr(0.01, 0) == 0.01
    assert schedule.lr(0.01, 50250) == pytest.approx(0.01 * 0.5**0.9, rel=1e-12)
    assert schedule.lr(0.01, 99999) == pytest.approx(0.01 * math.exp(0.9 * math.log(501 / 100500)), rel=1e-9)
    assert schedule.lr(0.01, 200000) == 0  # the published schedule starts over instead


def test_cosine() -> None:
    """A linear warm-up, then PyTorch's cosine schedule."""
    schedule = SCHEDULES["cosine"](total_iters=50, warmup_iters=10)
    lrs = [schedule.lr(LR, t) for t in range(51)]
    assert lrs[:10] == pytest.approx([LR * (t + 1) / 11 for t in range(10)])
    reference = pytorch_lrs(lambda o: lr_scheduler.CosineAnnealingLR(o, 40))
    assert lrs[10:] == pytest.approx(reference[:41], rel=1e-6, abs=1e-12)


def test_reading_a_learning_rate_has_no_side_effect() -> None:
    """Any order of reading gives the same values; in the published code, reading advanced the schedule."""
    for name, params in (("poly", {"max_iter": 40}), ("cyclic", {"max_lr": 0.2}), ("step", {"step_size": 3})):
        schedule = SCHEDULES[name](**params)
        lrs = [schedule.lr(LR, t) for t in range(STEPS)]
        order = random.Random(0).sample(range(STEPS), STEPS)
        assert {t: schedule.lr(LR, t) for t in order} == dict(enumerate(lrs))
