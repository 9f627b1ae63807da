"""What tests of checkpoints share: a recipe, and an object that runs code when it is unpickled."""

from __future__ import annotations

from pathlib import Path

from preprocessing.crops import SquareCrop
from training.tools.checkpoint import Recipe

LITE0 = Recipe(
    encoder="tf_efficientnet_lite0", size=224, mean=(0.5,) * 3, std=(0.5,) * 3, crop=SquareCrop(side=0.81, center=0.57)
)


class Payload:
    """Create the file `target` when unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)
