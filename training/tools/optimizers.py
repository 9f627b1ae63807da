"""Optimizers by the names that configurations use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from preprocessing.errors import ReportedError

if TYPE_CHECKING:
    from training.tools.config import OptimizerConfig

# Name -> the keys of a configuration that this optimizer takes besides learning rate and weight decay.
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "SGD": ("momentum", "nesterov"),
    "Adam": (),
    "AdamW": (),
    "RMSprop": ("momentum",),
    "FusedSGD": ("momentum", "nesterov"),
    "FusedAdam": (),
}


class OptimizerError(ReportedError):
    """An optimizer that is not there."""


def build_optimizer(config: OptimizerConfig, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all parameters that require a gradient. Raises OptimizerError where apex is needed."""
    options: dict[str, Any] = {name: getattr(config, name) for name in OPTIMIZERS[config.type]}
    if config.type == "FusedAdam":
        options["adam_w_mode"] = False  # apex's default is AdamW
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return _optimizer(config.type)(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, **options)


def _optimizer(name: str) -> type[torch.optim.Optimizer]:
    if not name.startswith("Fused"):
        return getattr(torch.optim, name)
    try:
        from apex import optimizers

        return getattr(optimizers, name)
    except (ImportError, AttributeError):
        raise OptimizerError(
            f"optimizer.type: {name} is NVIDIA apex's, which is not installed (see the README's container); "
            f"PyTorch's own is {name.removeprefix('Fused')}"
        ) from None
