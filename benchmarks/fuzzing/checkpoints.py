"""Targets: checkpoints, read for prediction and for resuming a training run."""

from __future__ import annotations

import copy
import functools
import io
import json
import math
import random
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fuzzing.mutations import mutate_bytes, odd_json
from benchmarks.fuzzing.target import Target, expect
from inference.ensemble import Ensemble
from preprocessing.crops import SquareCrop
from training.pipelines.build import build_learner, run_settings
from training.pipelines.checkpointing import restore
from training.pipelines.engine import Learner
from training.tools.checkpoint import is_plain
from training.tools.config import read_config
from training.tools.distributed import init_distributed
from training.tools.optimizers import build_optimizer
from training.tools.recipe import Recipe
from training.zoo import build_network

ROOT = Path(__file__).resolve().parents[2]
ENCODER = "tf_efficientnet_lite0"
RECIPE = Recipe(encoder=ENCODER, size=64, mean=(0.5,) * 3, std=(0.5,) * 3, crop=SquareCrop(0.81, 0.57))
# Values that no recipe should have, besides those of JSON.
ODD_VALUES = (
    math.nan, math.inf, -math.inf, 10**400, -1, 0, 1e-300, 2**63, True, None, 1j, "64", b"64", (), [], {}, {1: 2},
    (1, 2), ((0.5,) * 3,) * 3, torch.tensor(64), torch.tensor([0.5] * 3), torch.float32, torch.Size([3]),
    np.float64(64), np.float64("nan"), "EfficientUnetClassifier", "tf_efficientnet_b7_ns", "margin", "square",
)  # fmt: skip
DTYPES = (torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8, torch.bfloat16, torch.float8_e4m3fn)


@functools.cache
def checkpoint() -> dict[str, Any]:
    """Return a valid checkpoint of a small network."""
    torch.manual_seed(0)
    state = build_network(RECIPE.network, ENCODER).half().state_dict()
    return {
        "state_dict": state,
        "recipe": RECIPE.to_dict(),
        "version": "1.0.0",
        "epoch": 3,
        "bce_best": np.float64(0.2),
    }


@functools.cache
def encoded(legacy: bool) -> bytes:
    """Return the file of the valid checkpoint."""
    return encode(checkpoint(), legacy)


def encode(content: Any, legacy: bool) -> bytes:
    """Return the file that torch.save writes, in one of its two formats."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def odd_value(rng: random.Random) -> Any:
    """Return a value that no recipe should have."""
    return rng.choice(ODD_VALUES) if rng.random() < 0.6 else odd_json(rng)


def change_values(rng: random.Random, values: dict) -> None:
    """Change, remove or add values of a nested dict, in place."""
    key = rng.choice([*values, "x"])
    if isinstance(values.get(key), dict) and values[key] and rng.random() < 0.7:
        change_values(rng, values[key])
    elif isinstance(values.get(key), (tuple, list)) and values[key] and rng.random() < 0.5:
        items = list(values[key])
        items[rng.randrange(len(items))] = odd_value(rng)
        values[key] = tuple(items) if isinstance(values[key], tuple) else items
    elif rng.random() < 0.2:
        values.pop(key, None)
    elif rng.random() < 0.1:
        values[rng.choice((odd_name(rng), 1, None, (1, 2)))] = values.pop(key, 1)
    else:
        values[key] = odd_value(rng)


def odd_name(rng: random.Random) -> str:
    """Return a name that no weight should have."""
    return rng.choice(
        ("", "x", "module.", "module.module.fc.weight", "fc.weight", "a\0b", "\x1b[2J", "\ud800", "n" * 5000)
    )


def _is_ordinary(value: Any) -> bool:
    """Return whether a value is a tensor that has not been changed yet."""
    return isinstance(value, torch.Tensor) and is_plain(value) and 0 < value.numel() < 2**32


def odd_tensor(rng: random.Random, tensor: torch.Tensor) -> Any:
    """Return a tensor of another type, layout, shape or with other values, or something else."""
    kinds = (
        lambda: tensor.to(rng.choice(DTYPES)),
        lambda: tensor.float().to_sparse(),
        lambda: tensor.to("meta"),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor * rng.choice((math.nan, math.inf, 1e4, -1, 0)),
        lambda: tensor[None],
        lambda: tensor.reshape(-1)[:1],
        lambda: tensor.reshape(-1)[:0],
        lambda: tensor.reshape(-1)[:1].expand(2**40),
        lambda: tensor.reshape(-1)[:1].expand(tensor.shape) if tensor.ndim else tensor,
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: torch.nested.nested_tensor([tensor.float().reshape(-1)[:1]]),
        lambda: tensor.float().to_mkldnn() if tensor.ndim else tensor,
        lambda: torch.tensor(1.0, dtype=torch.float64),
        lambda: odd_value(rng),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these are prototypes or deprecated
        return rng.choice(kinds)()


def mutate_archive(rng: random.Random, content: bytes) -> bytes:
    """Return a zip file whose parts, mostly the pickled one, have changed; its checksums are correct."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as archive:
        names = source.namelist()
        pickled = next(name for name in names if name.endswith("data.pkl"))
        broken = pickled if rng.random() < 0.8 else rng.choice(names)
        compression = zipfile.ZIP_STORED if rng.random() < 0.95 else zipfile.ZIP_DEFLATED
        for name in names:
            part = source.read(name)
            if name == broken:
                if rng.random() < 0.1:
                    continue
                part = mutate_bytes(rng, part, places=range(0, len(part), 97))
            archive.writestr(name, part, compression)
    return target.getvalue()


class CheckpointTarget(Target):
    """Checkpoints for prediction: they are refused, or score a face."""

    name = "checkpoint"
    weight = 3.0
    batch = 20

    def make(self, rng: random.Random, folder: Path) -> None:
        legacy, kind = rng.random() < 0.3, rng.random()
        if kind < 0.3:
            content = mutate_bytes(rng, encoded(legacy))
        elif kind < 0.55:
            content = mutate_archive(rng, encoded(legacy=False))
        else:
            changed = {key: dict(value) if isinstance(value, dict) else value for key, value in checkpoint().items()}
            changed["recipe"] = copy.deepcopy(changed["recipe"])
            for _ in range(rng.choice((1, 1, 2, 3))):
                self._change(rng, changed)
            content = self._encode(changed, legacy)
        (folder / "checkpoint.pt").write_bytes(content)

    def _change(self, rng: random.Random, content: dict[str, Any]) -> None:
        choice = rng.random()
        if choice < 0.6 and isinstance(content.get("recipe"), dict):
            change_values(rng, content["recipe"])
        elif choice < 0.95 and isinstance(content.get("state_dict"), dict) and content["state_dict"]:
            state = content["state_dict"]
            name = rng.choice(list(state))
            if _is_ordinary(state[name]):
                state[name] = odd_tensor(rng, state[name])
            if rng.random() < 0.1:
                state[odd_name(rng)] = state.pop(name)
        else:
            content[rng.choice((*content, "training"))] = odd_value(rng)

    def _encode(self, content: dict[str, Any], legacy: bool) -> bytes:
        try:
            return encode(content, legacy)
        except Exception:  # noqa: BLE001 what PyTorch cannot write is no input
            return encode({**content, "state_dict": checkpoint()["state_dict"]}, legacy=False)

    def check(self, rng: random.Random, folder: Path) -> str:
        torch.set_num_threads(1)
        ensemble = Ensemble([folder / "checkpoint.pt"], "cpu", rng.choice(("float32", "float32", "bfloat16")))
        [recipe], [spec] = ensemble.recipes, ensemble.crop_specs
        numbers = (*recipe.mean, *recipe.std, recipe.size, recipe.shift, *vars(recipe.crop).values())
        expect(all(type(number) in (int, float) and math.isfinite(number) for number in numbers), f"{recipe}")
        expect(type(recipe.flip) is bool, f"flip {recipe.flip!r}")
        window = spec.rule.window(np.array([10, 10, 1000, 1000]))
        expect(all(abs(side) < 10**6 for side in window), f"a window of {window}")
        if recipe.size > 400:
            return "ok, large"
        image = np.random.default_rng(0).integers(0, 256, (1, spec.size, spec.size, 3), np.uint8)
        score = ensemble.score({spec: image}).item()
        expect(0 <= score <= 1, f"a score of {score}")
        return "ok"


@functools.cache
def learner() -> tuple[Learner, dict[str, Any]]:
    """Return what a training run resumes, and its settings; the optimizer has the last layer only, which is enough."""
    config = read_config(
        ROOT / "configs/lite0.json",
        {"pretrained": False, "optimizer.type": "Adam", "optimizer.momentum": 0, "optimizer.nesterov": False},
    )
    arguments = Namespace(
        seed=1, fold=0, hold_out=[], crops_dir="crops", public_validation=False, label_smoothing=0.01, padding_part=3,
        dropout="face", no_hardcore=False, no_oversample=False, only_changed_frames=False, freeze_epochs=0,
    )  # fmt: skip
    with init_distributed("cpu") as dist:
        network = build_network(config.network, config.encoder)
        made = build_learner(config, network, config.crop_spec(), dist)
        settings = run_settings(arguments, config, Namespace(digest="0"), dist)  # type: ignore[arg-type]
    made.optimizer = build_optimizer("Adam", network.fc.parameters(), 0.1, 0.0)
    network.fc(torch.zeros(1, network.fc.in_features)).sum().backward()
    made.optimizer.step()
    return made, settings


@functools.cache
def resumable() -> dict[str, Any]:
    """Return a valid checkpoint to resume from."""
    made, settings = learner()
    training = {
        "network": None,
        "optimizer": made.optimizer.state_dict(),
        "scaler": {},
        "steps": 10,
        "best_epoch": 2,
        "settings": json.loads(json.dumps(settings)),
    }
    content = {"state_dict": made.network.state_dict(), "recipe": RECIPE.to_dict(), "training": training}
    return copy.deepcopy({**content, "epoch": 3, "bce_best": 0.2})  # the learner changes while it is tested


class ResumeTarget(Target):
    """Checkpoints that a training run resumes from."""

    name = "resume"
    weight = 1.0
    batch = 20

    def make(self, rng: random.Random, folder: Path) -> None:
        content = copy.deepcopy(resumable())
        training = content["training"]
        parts = (training, training["optimizer"], training["settings"], content)
        for _ in range(rng.choice((1, 1, 2, 3))):
            self._change(rng, rng.choice(parts))
        try:
            (folder / "run_last.pt").write_bytes(encode(content, legacy=False))
        except Exception:  # noqa: BLE001 what PyTorch cannot write is no input
            (folder / "run_last.pt").write_bytes(mutate_bytes(rng, encoded(legacy=False)))

    def _change(self, rng: random.Random, values: dict) -> None:
        states = list(values["state"].values()) if isinstance(values.get("state"), dict) else []
        states = [state for state in states if isinstance(state, dict) and state]
        if states and rng.random() < 0.5:
            state = rng.choice(states)
            name = rng.choice(list(state))
            if _is_ordinary(state[name]):
                state[name] = odd_tensor(rng, state[name])
        else:
            change_values(rng, values)

    def check(self, _rng: random.Random, folder: Path) -> str:
        made, settings = learner()
        start, best = restore(made, folder / "run_last.pt", settings)
        expect(type(start) is int and start >= 1, f"epoch {start!r}")
        expect(best.bce is None or math.isfinite(best.bce), f"{best}")
        expect(type(made.steps) is int and made.steps >= 0, f"{made.steps!r} steps")
        network = made.network
        made.optimizer.zero_grad()
        network.fc(torch.ones(1, network.fc.in_features)).sum().backward()
        made.optimizer.step()
        return "ok"


def checkpoint_targets(seeds: Path) -> list[Target]:
    """Return the targets of this module."""
    return [CheckpointTarget(seeds), ResumeTarget(seeds)]
