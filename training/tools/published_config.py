"""Understand configurations in the form of the published code, where its names differ from those here."""

from __future__ import annotations

import logging
import os
from typing import Any

from training.tools.optimizers import OPTIMIZERS

PUBLISHED_OPTIMIZERS = {"RmsProp": "RMSprop"}
SCHEDULES = {"clr": "cyclic"}
MODES = {"poly": "step"}  # the published code treats both alike
# What the published code stores for "none".
NO_LEARNING_RATE = -1

log = logging.getLogger(__name__)


def translate(values: dict[str, Any]) -> None:
    """Replace the published names and forms in a configuration's JSON values, in place. Others stay as they are."""
    # Once per run, not once per process.
    warn = log.warning if os.environ.get("RANK", "0") == "0" else log.debug
    if values.pop("model_params", None):
        warn("model_params: is not used, as in the published code. Use dropout and drop_path")
    optimizer = _section(values, "optimizer")
    schedule = _section(optimizer, "schedule")
    for section, key, names in (
        (optimizer, "type", PUBLISHED_OPTIMIZERS),
        (schedule, "type", SCHEDULES),
        (schedule, "mode", MODES),
    ):
        if isinstance(section.get(key), str):
            section[key] = names.get(section[key], section[key])
    if "clip" in optimizer and "clip_norm" not in optimizer:
        optimizer["clip_norm"] = optimizer.pop("clip")
    name = optimizer.get("type")
    if isinstance(name, str) and name in OPTIMIZERS:
        for key in ("momentum", "nesterov"):
            if key not in OPTIMIZERS[name] and optimizer.pop(key, None):
                warn("optimizer.%s: is not used, because %s does not support it", key, name)
    if optimizer.get("classifier_lr") == NO_LEARNING_RATE:
        optimizer["classifier_lr"] = None


def _section(values: dict[str, Any], key: str) -> dict[str, Any]:
    section = values.get(key)
    return section if isinstance(section, dict) else {}
