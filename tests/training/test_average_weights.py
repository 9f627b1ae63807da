"""Average the weights of checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from tests.support import face_crops
from training.pipelines import average_weights
from training.tools.checkpoint import load_network, read_checkpoint, save_checkpoint
from training.tools.recipe import Recipe
from training.zoo import build_network

DEFAULT = face_crops.ROOT / "weights/default_lite0.pt"


def average(output: Path, *checkpoints: Path) -> int:
    arguments = ["--checkpoints", *map(str, checkpoints), "--output", str(output)]
    return average_weights.main(average_weights.get_args_parser().parse_args(arguments))


def test_average_of_two_checkpoints(tmp_path: Path) -> None:
    """Floating-point weights are averaged; counters and the recipe are those of the last one, without its bands."""
    network, recipe = load_network(DEFAULT)
    first = network.state_dict()
    last = {key: value * 3 + 1 for key, value in first.items()}
    save_checkpoint(tmp_path / "last.pt", last, replace(recipe, size=96), trained={"epoch": 4})
    assert average(tmp_path / "out.pt", DEFAULT, tmp_path / "last.pt") == 0
    found, found_recipe = load_network(tmp_path / "out.pt")
    for key, value in found.state_dict().items():
        expected = first[key] * 2 + 0.5 if value.is_floating_point() else last[key]
        torch.testing.assert_close(value, expected)
    assert found_recipe == replace(recipe, size=96, bands=None)
    assert read_checkpoint(tmp_path / "out.pt")["trained"] == {"epoch": 4, "averaged": 2}


def test_other_networks_are_refused(tmp_path: Path) -> None:
    other = build_network("DeepFakeClassifierGWAP", "tf_efficientnet_lite0")
    recipe = replace(Recipe(), network="DeepFakeClassifierGWAP", encoder="tf_efficientnet_lite0", size=64)
    save_checkpoint(tmp_path / "other.pt", other.state_dict(), recipe)
    with pytest.raises(UserError, match=r"other\.pt: has another network"):
        average(tmp_path / "out.pt", tmp_path / "other.pt", DEFAULT)
    assert not (tmp_path / "out.pt").exists()
