"""Configurations: what the published ones say, and what is said of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import face_crops
from training.tools.config import ConfigError, parse_change, read_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(("name", "batch_size", "epochs", "max_iter"), [("b7", 12, 40, 100500), ("b5", 20, 30, 75100)])
def test_published_recipes(name: str, batch_size: int, epochs: int, max_iter: int) -> None:
    """Constants of the winning solution's description."""
    config = read_config(CONFIGS / f"{name}.json")
    optimizer = config.optimizer
    assert (config.network, config.encoder) == ("DeepFakeClassifier", f"tf_efficientnet_{name}_ns")
    assert (config.size, config.batches_per_epoch, config.fp16) == (380, 2500, True)
    assert (optimizer.type, optimizer.batch_size, optimizer.learning_rate) == ("SGD", batch_size, 0.01)
    assert (optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.9, True, 1e-4)
    assert (optimizer.schedule.type, optimizer.schedule.mode) == ("poly", "step")
    assert (optimizer.schedule.epochs, optimizer.schedule.params) == (epochs, {"max_iter": max_iter})
    assert optimizer.schedule.curve().power == 0.9
    assert config.losses == {"BinaryCrossentropy": 1}
    assert config.normalize.mean == (0.485, 0.456, 0.406)
    assert config.normalize.std == (0.229, 0.224, 0.225)
    assert config.pretrained is True
    assert optimizer.clip_norm == 1


def test_the_published_keys_are_enough(tmp_path: Path) -> None:
    published = json.loads((CONFIGS / "b7.json").read_text())
    del published["pretrained"]
    path = face_crops.write(tmp_path / "b7.json", json.dumps(published).encode())
    assert read_config(path) == read_config(CONFIGS / "b7.json", {"pretrained": False})


def test_the_command_line_wins() -> None:
    changes = dict(map(parse_change, ("optimizer.batch_size=3", "encoder=tf_efficientnet_b0_ns", "ema=0.9")))
    config = read_config(CONFIGS / "b7.json", changes)
    assert (config.optimizer.batch_size, config.encoder, config.ema) == (3, "tf_efficientnet_b0_ns", 0.9)


def test_a_path_is_relative_to_the_configuration() -> None:
    assert read_config(CONFIGS / "lite0.json").pretrained == str(CONFIGS.parent / "weights/default_lite0.pt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer.momentun": 0.9}, "optimizer.momentun: unknown key; allowed: batch_size, type, learning_rate"),
        ({"sizes": 380}, "sizes: unknown key; allowed: network, encoder, size"),
        ({"optimizer.schedule.params.max_it": 3}, "optimizer.schedule.params.max_it: unknown key; allowed: max_iter"),
        ({"optimizer.schedule.type": "polly"}, "optimizer.schedule.type: Input should be 'poly', 'step', 'multistep'"),
        ({"optimizer.type": "SDG"}, "'FusedSGD' or 'FusedAdam', not \"SDG\""),
        ({"encoder": "efficientnet_b9"}, "encoder: Input should be 'tf_efficientnet_lite0'"),
        ({"network": "Classifier"}, "'DeepFakeClassifierGWAP' or 'EfficientUnetClassifier', not \"Classifier\""),
        ({"losses": {"BCE": 1}}, "'BinaryCrossentropy', 'FocalLoss'"),
        ({"losses": {}}, "losses: Dictionary should have at least 1 item"),
        ({"fp16": "yes"}, 'fp16: Input should be a valid boolean, not "yes"'),
        ({"size": 380.5}, "size: Input should be a valid integer"),
        ({"optimizer.learning_rate": -1}, "optimizer.learning_rate: Input should be greater than 0, not -1"),
        ({"optimizer.type": "Adam"}, "Adam takes no momentum"),
        ({"optimizer.accumulate": 5}, "batch_size 12 cannot be divided into 5 parts"),
        ({"augmentation.jpeg_quality": [90, 60]}, "jpeg_quality: 90 is above 60"),
        ({"crop": {"kind": "round"}}, "crop: Input tag 'round' found using 'kind' does not match"),
        ({"crop": {"kind": "margin", "margin": "wide"}}, "crop.margin.margin: Input should be a valid number"),
        ({"crop": {"kind": "square", "side": 1, "middle": 0}}, "crop.square.middle: unknown key; allowed: kind, side"),
        ({"network": "EfficientUnetClassifier"}, "MaskBinaryCrossentropy"),
        ({"normalize.std": [0.5, 0.5, 0]}, "normalize.std.2: Input should be greater than 0"),
    ],
)
def test_wrong_values(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(CONFIGS / "b7.json", changes)
    assert said in str(error.value)
    assert str(error.value).startswith(str(CONFIGS / "b7.json"))


def test_every_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(face_crops.write(tmp_path / "a.json", b'{"optimizer": {"schedule": {}}}'))
    lines = str(error.value).splitlines()
    for key in ("network", "encoder", "size", "optimizer.batch_size", "optimizer.schedule.epochs", "losses"):
        assert f"{tmp_path / 'a.json'}: {key}: is missing" in lines


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_not_a_configuration(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"a\.json: not"):
        read_config(face_crops.write(tmp_path / "a.json", content))


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="configs/ has those of the project"):
        read_config(tmp_path / "a.json")
