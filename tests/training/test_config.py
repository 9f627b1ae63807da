"""Configurations: the published constants, overrides, and errors that name the wrong key."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.support import face_crops
from tests.support.learners import make_learner, random_batch
from training.options import parse_change
from training.pipelines import build, train_classifier
from training.pipelines.engine import set_rates, train_step
from training.tools.config import ConfigError, read_config
from training.tools.optimizers import build_optimizer

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


# The published b7.json and b5.json as they are.
PUBLISHED = """{{"network": "DeepFakeClassifier", "encoder": "tf_efficientnet_{name}_ns", "batches_per_epoch": 2500,
"size": 380, "fp16": true, "optimizer": {{"batch_size": {batch_size}, "type": "SGD", "momentum": 0.9,
"weight_decay": 1e-4, "learning_rate": 0.01, "nesterov": true, "schedule": {{"type": "poly", "mode": "step",
"epochs": {epochs}, "params": {{"max_iter": {max_iter}}}}}}}, "normalize": {{"mean": [0.485, 0.456, 0.406],
"std": [0.229, 0.224, 0.225]}}, "losses": {{"BinaryCrossentropy": 1}}}}"""


def published_file(folder: Path, name: str) -> Path:
    values = {"b7": (12, 40, 100500), "b5": (20, 30, 75100)}[name]
    content = PUBLISHED.format(name=name, **dict(zip(("batch_size", "epochs", "max_iter"), values, strict=True)))
    return face_crops.write(folder / f"{name}.json", content.encode())


@pytest.mark.parametrize("name", ["b7", "b5"])
def test_published_files_are_understood(tmp_path: Path, name: str) -> None:
    """Without `pretrained`, training starts from ImageNet weights."""
    config = read_config(published_file(tmp_path, name))
    assert config == read_config(CONFIGS / f"{name}.json")
    assert config.pretrained is True


@pytest.mark.slow
def test_published_b7_takes_a_step(tmp_path: Path) -> None:
    """With random weights and a small batch, as its own takes too much memory for a test."""
    config = read_config(published_file(tmp_path, "b7"), {"pretrained": False, "optimizer.batch_size": 2})
    learner = make_learner(config, torch.device("cpu"))
    set_rates(learner.optimizer, learner.rates_at(0, 0))
    before = learner.network.encoder.conv_stem.weight.clone()
    step = train_step(learner, random_batch(config))
    assert 0 < step.loss < 10
    assert (learner.steps, step.images) == (1, 2)
    group = learner.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.01, 0.9, True, 1e-4)
    change = (learner.network.encoder.conv_stem.weight - before).norm().item()
    assert 0 < change <= 0.01 * 1.9 * (1 + 1e-4 * before.norm().item())  # clipped; Nesterov's first step is 1.9 times


def test_published_names_and_forms(tmp_path: Path) -> None:
    path = published_file(tmp_path, "b7")
    schedule = {"type": "clr", "mode": "poly", "epochs": 3, "params": {"base_lr": 0.01, "max_lr": 0.1}}
    changes = {
        "optimizer.type": "RmsProp",
        "optimizer.classifier_lr": -1,
        "optimizer.clip": 2.0,
        "optimizer.schedule": schedule,
        "prefix": "mine_",
        "model_params": {},
    }
    config = read_config(path, changes)
    optimizer = config.optimizer
    assert (optimizer.type, optimizer.classifier_lr, optimizer.clip_norm) == ("RMSprop", None, 2)
    assert (optimizer.schedule.type, optimizer.schedule.mode, config.prefix) == ("cyclic", "step", "mine_")
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, False)
    assert optimizer.schedule.build().momentum(0) == 0.9
    for kind, params in (("step", {"steps": [[0, 0.1], [4, 0.05]]}), ("linear", {"alpha": -0.1, "beta": 1})):
        config = read_config(path, {"optimizer.schedule": {"type": kind, "epochs": 9, "params": params}})
        assert config.optimizer.schedule.mode == "epoch"
        assert build._rates(config)(4, 7).lr[0] == pytest.approx(0.05 if kind == "step" else 0.006)


def test_defaults_of_the_published_code(tmp_path: Path) -> None:
    values = json.loads(published_file(tmp_path, "b7").read_text())
    del values["normalize"], values["optimizer"]["momentum"], values["optimizer"]["nesterov"]
    path = face_crops.write(tmp_path / "short.json", json.dumps(values).encode())
    assert read_config(path) == read_config(tmp_path / "b7.json")
    others = {"optimizer.type": "AdamW", "optimizer.weight_decay": 0}
    assert read_config(path, others).optimizer.momentum == 0
    assert not read_config(path, {"optimizer.momentum": 0.0}).optimizer.nesterov
    del values["optimizer"]
    optimizer = read_config(face_crops.write(path, json.dumps(values).encode())).optimizer
    assert (optimizer.type, optimizer.batch_size, optimizer.learning_rate) == ("SGD", 32, 0.1)
    assert (optimizer.momentum, optimizer.nesterov, optimizer.weight_decay, optimizer.clip_norm) == (0.9, True, 0, 1)
    assert (optimizer.schedule.type, optimizer.schedule.mode, optimizer.schedule.epochs) == ("constant", "epoch", 10)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "FusedAdam", "RmsProp"])
def test_keys_that_the_optimizer_does_not_support_are_dropped(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the published code, except that RMSprop uses the momentum."""
    optimizer = read_config(published_file(tmp_path, "b7"), {"optimizer.type": name}).optimizer
    assert not optimizer.nesterov
    assert optimizer.momentum == (0.9 if name == "RmsProp" else 0)
    assert f"optimizer.nesterov: is not used, because {optimizer.type}" in caplog.text


def test_only_the_main_process_warns_of_keys_that_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"model_params": {"a": 1}, "optimizer.type": "Adam"}
    for rank, warnings in (("0", 3), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        caplog.clear()
        read_config(published_file(tmp_path, "b7"), changes)
        assert len(caplog.messages) == warnings


@pytest.mark.parametrize("key", ["optimizer.clip", "optimizer.clip_norm"])
def test_two_names_of_one_setting_are_an_error(key: str) -> None:
    changes = {"optimizer.clip": 1.0, "optimizer.clip_norm": 1.0}
    with pytest.raises(ConfigError, match=r"optimizer\.clip: unknown key"):
        read_config(CONFIGS / "b7.json", changes | {key: 2.0})


def test_schedule_counts_the_batches_of_full_epochs() -> None:
    """However few batches an epoch has: 0.01 * (1 - (2500 e + b) / 100500)^0.9."""
    rates = build._rates(read_config(CONFIGS / "b7.json"))
    for epoch, batch in ((0, 0), (0, 7), (1, 0), (39, 499)):
        assert rates(epoch, batch).lr == (pytest.approx(0.01 * (1 - (2500 * epoch + batch) / 100500) ** 0.9),)
    assert rates(39, 499).lr[0] == pytest.approx(0.00036, abs=1e-5)


def test_learning_rate_of_the_classifier() -> None:
    """Everything but the encoder has its own initial rate, which the schedule scales alike."""
    changes = {"optimizer.classifier_lr": 0.1, "encoder": "tf_efficientnet_lite0", "pretrained": False}
    config = read_config(CONFIGS / "b7.json", changes)
    learner = make_learner(config, torch.device("cpu"))
    names = {id(parameter): name for name, parameter in learner.network.named_parameters()}
    groups = [{names[id(parameter)] for parameter in group["params"]} for group in learner.optimizer.param_groups]
    assert groups[1] == {"fc.weight", "fc.bias"}
    assert groups[0] == {name for name in names.values() if name.startswith("encoder.") and "classifier" not in name}
    for epoch in (0, 20):
        encoder, classifier = learner.rates_at(epoch, 3).lr
        assert classifier == pytest.approx(10 * encoder)
    set_rates(learner.optimizer, learner.rates_at(20, 3))
    assert [group["lr"] for group in learner.optimizer.param_groups] == list(learner.rates_at(20, 3).lr)


def test_fused_adam_is_in_apex_default_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """apex's default is AdamW."""
    given: dict[str, Any] = {}

    class FusedAdam:
        def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0, adam_w_mode: bool = True):
            given.update(params=list(params), lr=lr, weight_decay=weight_decay, adam_w_mode=adam_w_mode)

    apex, optimizers = ModuleType("apex"), ModuleType("apex.optimizers")
    apex.optimizers, optimizers.FusedAdam = optimizers, FusedAdam  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    parameter = torch.nn.Parameter(torch.zeros(1))
    build_optimizer("FusedAdam", [parameter], 0.1, 0.2, momentum=0.9)
    assert given == {"params": [parameter], "lr": 0.1, "weight_decay": 0.2, "adam_w_mode": True}


@pytest.mark.parametrize(("level", "fp16"), [("O0", False), ("O1", True), ("O2", True), ("O3", True)])
def test_opt_levels(level: str, fp16: bool) -> None:
    options = ["--config", "a.json", "--data-dir", "data", "--opt-level", level]
    arguments = train_classifier.get_args_parser().parse_args(options)
    assert train_classifier.config_changes(arguments) == {"fp16": fp16}


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
        ({"prefix": "../a"}, "prefix", ("pattern", '"../a"')),
        ({"prefix": "a\0b"}, "prefix", ("pattern",)),
        (
            {"optimizer.schedule.params": {"max_lr": 1, "max_momentum": 0}, "optimizer.schedule.type": "cyclic"},
            "optimizer.schedule.params.max_momentum",
            ("greater than 0",),
        ),
        (
            {"optimizer.schedule.params": {"steps": [[3, 0.1], [3, 0.2]]}, "optimizer.schedule.type": "step"},
            "optimizer.schedule.params.steps",
            ("increase",),
        ),
        ({"loss_scope": "gpu"}, "loss_scope", ("global", "process")),
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
    for key in ("network", "encoder", "size", "batches_per_epoch", "fp16", "losses"):
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
        build._rates(config)(2, 0)


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
