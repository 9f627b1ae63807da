"""Configurations: the published constants, overrides, and errors that name the wrong key."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import face_crops
from training.options import parse_change
from training.pipelines import build, train_classifier
from training.tools.config import ConfigError, read_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(("name", "batch_size", "epochs", "max_iter"), [("b7", 12, 40, 100500), ("b5", 20, 30, 75100)])
def test_constants_of_the_winning_solution(name: str, batch_size: int, epochs: int, max_iter: int) -> None:
    config = read_config(CONFIGS / f"{name}.json")
    optimizer = config.optimizer
    assert (config.network, config.encoder) == ("DeepFakeClassifier", f"tf_efficientnet_{name}_ns")
    assert (config.size, config.batches_per_epoch, config.fp16) == (380, 2500, True)
    assert (optimizer.type, optimizer.batch_size, optimizer.learning_rate) == ("SGD", batch_size, 0.01)
    assert (optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (0.9, True, 1e-4)
    assert (optimizer.schedule.type, optimizer.schedule.mode) == ("poly", "step")
    assert (optimizer.schedule.epochs, optimizer.schedule.params) == (epochs, {"max_iter": max_iter})
    assert optimizer.schedule.build().power == 0.9
    assert config.losses == {"BinaryCrossentropy": 1}
    assert config.normalize.mean == (0.485, 0.456, 0.406)
    assert config.normalize.std == (0.229, 0.224, 0.225)
    assert config.pretrained is True
    assert optimizer.clip_norm == 1


def test_additional_keys_are_optional(tmp_path: Path) -> None:
    published = json.loads((CONFIGS / "b7.json").read_text())
    del published["pretrained"]
    path = face_crops.write(tmp_path / "b7.json", json.dumps(published).encode())
    assert read_config(path) == read_config(CONFIGS / "b7.json", {"pretrained": False})


def test_changes_override_the_file() -> None:
    changes = dict(map(parse_change, ("optimizer.batch_size=3", "encoder=tf_efficientnet_b0_ns", "ema=0.9")))
    config = read_config(CONFIGS / "b7.json", changes)
    assert (config.optimizer.batch_size, config.encoder, config.ema) == (3, "tf_efficientnet_b0_ns", 0.9)


def test_pretrained_path_is_relative_to_the_configuration() -> None:
    assert read_config(CONFIGS / "lite0.json").pretrained == str(CONFIGS.parent / "weights/default_lite0.pt")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_pretrained_that_is_no_path(tmp_path: Path, name: str) -> None:
    values = json.loads((CONFIGS / "b7.json").read_text()) | {"pretrained": name}
    path = face_crops.write(tmp_path / "b7.json", json.dumps(values).encode())
    with pytest.raises(ConfigError, match=f"^{path}: pretrained: "):
        read_config(path)


@pytest.mark.parametrize(
    ("changes", "key", "allowed"),
    [
        ({"optimizer.momentun": 0.9}, "optimizer.momentun", ("batch_size", "momentum", "schedule")),
        ({"sizes": 380}, "sizes", ("network", "size", "augmentation")),
        ({"optimizer.schedule.epoch": 3}, "optimizer.schedule.epoch", ("type", "mode", "epochs", "params")),
        ({"optimizer.schedule.params.max_it": 3}, "optimizer.schedule.params.max_it", ("max_iter", "power")),
        ({"normalize.var": 1}, "normalize.var", ("mean", "std")),
        ({"augmentation.jpg_p": 1}, "augmentation.jpg_p", ("jpeg_p", "affine_p")),
        ({"crop": {"kind": "margin", "side": 1}}, "crop.margin.side", ("kind", "margin")),
        ({"crop": {"kind": "square", "side": 1, "middle": 0}}, "crop.square.middle", ("kind", "side", "center")),
        ({"optimizer.schedule.type": "polly"}, "optimizer.schedule.type", ("poly", "constant", '"polly"')),
        ({"optimizer.type": "SDG"}, "optimizer.type", ("SGD", "FusedAdam", '"SDG"')),
        ({"encoder": "efficientnet_b9"}, "encoder", ("tf_efficientnet_lite0", '"efficientnet_b9"')),
        ({"network": "Classifier"}, "network", ("DeepFakeClassifier", "EfficientUnetClassifier", '"Classifier"')),
        ({"losses": {"BCE": 1}}, "losses.BCE", ("BinaryCrossentropy", "MaskBinaryCrossentropy")),
        ({"crop": {"kind": "round"}}, "crop", ("margin", "square")),
        ({"losses": {}}, "losses", ("1 item",)),
        ({"losses": {"MaskBinaryCrossentropy": 1}}, "losses", ("DeepFakeClassifier", "MaskBinaryCrossentropy")),
        ({"network": "EfficientUnetClassifier"}, "losses", ("EfficientUnetClassifier", "MaskBinaryCrossentropy")),
        ({"fp16": "yes"}, "fp16", ("boolean", '"yes"')),
        ({"size": 380.5}, "size", ("integer",)),
        ({"optimizer.learning_rate": -1}, "optimizer.learning_rate", ("greater than 0", "-1")),
        ({"normalize.std": [0.5, 0.5, 0]}, "normalize.std.2", ("greater than or equal to 0.001",)),
        ({"crop": {"kind": "margin", "margin": "wide"}}, "crop.margin.margin", ("number", '"wide"')),
        ({"optimizer.type": "Adam"}, "optimizer", ("momentum", "Adam")),
        ({"optimizer.momentum": 0}, "optimizer", ("nesterov", "momentum")),
        ({"optimizer.accumulate": 5}, "optimizer", ("batch_size", "12", "accumulate", "5")),
        ({"optimizer.accumulate": 2, "ohem_samples": 3}, "ohem_samples", ("optimizer.accumulate",)),
        ({"augmentation.jpeg_quality": [90, 60]}, "augmentation", ("jpeg_quality", "90", "60")),
        ({"augmentation.rotate": 10**30}, "augmentation.rotate", ("180",)),
        ({"size": 100_000}, "size", ("1024", "100000")),
        ({"ohem_samples": 10**30}, "ohem_samples", ("2147483647",)),
        ({"batches_per_epoch": 10**30}, "batches_per_epoch", ("2147483647",)),
        ({"optimizer.batch_size": 10**30}, "optimizer.batch_size", ("2147483647",)),
        ({"optimizer.schedule.epochs": 10**30}, "optimizer.schedule.epochs", ("2147483647",)),
        ({"optimizer.schedule.params.max_iter": 10**400}, "optimizer.schedule.params.max_iter", ("2147483647",)),
        ({"encoder": "x" * 10_000}, "encoder", ("tf_efficientnet_b7_ns",)),
    ],
)
def test_errors_name_the_key_and_what_is_allowed(changes: dict[str, Any], key: str, allowed: tuple[str, ...]) -> None:
    path = CONFIGS / "b7.json"
    with pytest.raises(ConfigError) as error:
        read_config(path, changes)
    lines = [line for line in str(error.value).splitlines() if line.startswith(f"{path}: {key}: ")]
    assert len(lines) == 1
    assert all(text in lines[0].removeprefix(f"{path}: {key}: ") for text in allowed)
    assert len(lines[0]) < 1000


def test_changing_a_value_like_a_section_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"size\.side"):
        read_config(CONFIGS / "b7.json", {"size.side": 3})


def test_every_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(face_crops.write(tmp_path / "a.json", b'{"optimizer": {"schedule": {}}}'))
    lines = str(error.value).splitlines()
    for key in ("network", "encoder", "size", "optimizer.batch_size", "optimizer.schedule.epochs", "losses"):
        assert f"{tmp_path / 'a.json'}: {key}: is missing" in lines


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_invalid_json_is_an_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"a\.json: "):
        read_config(face_crops.write(tmp_path / "a.json", content))


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.json: "):
        read_config(tmp_path / "a.json")


@pytest.mark.parametrize("depth", [300, 900, 3000])
def test_brackets_that_are_nested_too_deeply_are_an_error(depth: int) -> None:
    """JSON may be nested deeper than the parsers allow, each at another depth."""
    with pytest.raises((argparse.ArgumentTypeError, ConfigError), match=r"crop: |b7\.json: "):
        read_config(CONFIGS / "b7.json", dict([parse_change(f"crop={'[' * depth}{']' * depth}")]))


def test_keys_that_are_nested_too_deeply_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"b7\.json: .*--set"):
        read_config(CONFIGS / "b7.json", {".".join("a" * 3000): 1})


def test_text_that_is_not_valid_unicode_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"b7\.json: "):
        read_config(CONFIGS / "b7.json", {"encoder": "\udcff"})


def test_learning_rate_beyond_all_numbers_is_an_error() -> None:
    schedule = {"type": "exponential", "epochs": 1, "params": {"gamma": 1e300}}
    config = read_config(CONFIGS / "b7.json", {"optimizer.schedule": schedule})
    with pytest.raises(build.SetupError, match=r"optimizer\.schedule\.params: "):
        build._learning_rate(config)(0, 2)


@pytest.mark.parametrize("seed", ["-1", str(2**64), "9" * 5000, "1.5", "", "0x5"])
def test_seed_beyond_64_bits_is_an_error(seed: str, capsys: pytest.CaptureFixture) -> None:
    parser = train_classifier.get_args_parser()
    options = ["--config", "a.json", "--data-dir", "data", f"--seed={seed}"]
    with pytest.raises(SystemExit) as error:
        parser.parse_args(options)
    assert error.value.code == 2
    assert "--seed" in capsys.readouterr().err


def test_largest_seed_is_one_of_pytorch() -> None:
    seed = (
        train_classifier.get_args_parser()
        .parse_args(["--config", "a.json", "--data-dir", "data", "--seed", str(2**64 - 1)])
        .seed
    )
    torch.manual_seed(seed)
    assert 0 <= build.epoch_seed(seed, 3, 1) < 2**32
