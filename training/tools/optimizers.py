"""Optimizers by the names that configurations use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from common.errors import UserError

# Name -> the configuration keys that it supports besides learning_rate and weight_decay.
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "SGD": ("momentum", "nesterov"),
    "Adam": (),
    "AdamW": (),
    "RMSprop": ("momentum",),
    "FusedSGD": ("momentum", "nesterov"),
    "FusedAdam": (),
}
# PyTorch's optimizers that can update all weights in one kernel on a GPU.
FUSED = ("SGD", "Adam", "AdamW")
# PyTorch's optimizers that keep a state for every parameter -> the names in it.
STATE_NAMES = {
    "Adam": {"step", "exp_avg", "exp_avg_sq"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "RMSprop": {"step", "square_avg"},
}


class OptimizerError(UserError):
    """An optimizer that is not installed."""


def build_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float,
    fused: bool = False,
    **options: float | bool,
) -> torch.optim.Optimizer:
    """Build an optimizer.

    Args:
        name: key of OPTIMIZERS.
        parameters: parameters of the network, or groups of them.
        lr: learning rate.
        weight_decay: weight decay.
        fused: update all weights in one kernel, if the optimizer supports it.
        options: further configuration keys; those that the optimizer does not support are ignored.

    Raises:
        OptimizerError: the optimizer is part of apex, which is not installed.
    """
    supported = {key: options[key] for key in OPTIMIZERS[name] if key in options}
    if fused and name in FUSED:
        supported["fused"] = True
    return _optimizer_class(name)(parameters, lr=lr, weight_decay=weight_decay, **supported)


def state_names(optimizer: torch.optim.Optimizer) -> set[str]:
    """Return the names that the state of each parameter must have. Schedules may set a momentum after the start."""
    name = type(optimizer).__name__
    # SGD accepts a state without its momentum.
    momentum = {"momentum_buffer"} if name == "RMSprop" and optimizer.param_groups[0]["momentum"] else set()
    return STATE_NAMES.get(name, set()) | momentum


def _optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    if not name.startswith("Fused"):
        return getattr(torch.optim, name)
    try:
        from apex import optimizers

        return getattr(optimizers, name)
    except (ImportError, AttributeError):
        raise OptimizerError(
            f"optimizer.type: {name} needs NVIDIA apex, which is not installed. Install it (docs/containers.md) or use "
            f"PyTorch's {name.removeprefix('Fused')}"
        ) from None
