"""Checkpoints from strangers: unusable recipes, weights and training states are errors that name the file."""

from __future__ import annotations

import copy
import io
import logging
import math
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common import cli
from common.errors import UserError
from preprocessing.crops import MarginCrop, SquareCrop
from tests.support import face_crops, golden
from tests.support.checkpoints import LITE0
from tests.support.learners import make_learner, random_batch
from training.pipelines import build, calibrate, evaluate
from training.pipelines.checkpointing import Best, Checkpoints, ResumeError, restore
from training.pipelines.engine import Learner, train_step
from training.tools import checkpoint as checkpoint_tool
from training.tools.checkpoint import CheckpointError, Recipe, load_encoder, load_network, read_checkpoint
from training.tools.config import Config, ConfigError, read_config
from training.zoo import build_network

HUGE = 10**400
MARGIN, SQUARE = ({"kind": "margin", "margin": 0.3}, {"kind": "square", "side": 1.0, "center": 0.5})
CONV = "encoder.conv_head.weight"
SETTINGS = {"processes": 1}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return golden.fill(build_network("DeepFakeClassifier", LITE0.encoder)).state_dict()


def write(path: Path, state: Any, recipe: Any = None) -> Path:
    torch.save({"state_dict": state, "recipe": LITE0.to_dict() if recipe is None else recipe}, path)
    return path


UNUSABLE_RECIPES: list[tuple[str, Any]] = [
    *(
        ("size", size)
        for size in (-1, 0, 31, 1025, 20000, HUGE, 380.0, math.nan, math.inf, "380", True, None, [380], 64j)
    ),
    *(("mean", mean) for mean in ([0.5] * 2, [0.5] * 4, 0.5, "rgb", None, {"r": 0.5})),
    *(("mean", [0.5, 0.5, bad]) for bad in (math.nan, math.inf, -math.inf, -1, 2, 1e30, HUGE, "0.5", True, None)),
    *(("std", [0.5, 0.5, bad]) for bad in (math.nan, math.inf, 0, -0.5, 1e-30, 1e30, HUGE, "0.5", False, [1])),
    *(("crop.margin", {**MARGIN, "margin": bad}) for bad in (math.nan, math.inf, -0.1, 0, 1e9, HUGE, "wide", True)),
    *(("crop.side", {**SQUARE, "side": bad}) for bad in (math.nan, -math.inf, -1, 0, 1e9, HUGE, "1", None)),
    *(("crop.center", {**SQUARE, "center": bad}) for bad in (math.nan, math.inf, -1e9, 1e9, -HUGE, "top", True)),
    *(("crop.kind", {**MARGIN, "kind": kind}) for kind in ("hexagon", None, 3, ["margin"], {})),
    *(("crop", crop) for crop in (None, "margin", 3, [MARGIN], {}, {"kind": "margin"}, {**MARGIN, "side": 1})),
    *(("flip", flip) for flip in (None, 0, 1, 1.0, "true", [True], {})),
    *(("network", name) for name in ("ResNet", None, 3, ["DeepFakeClassifier"], {})),
    *(("encoder", name) for name in ("vgg", "", None, 3, ["tf_efficientnet_lite0"], "x" * 10_000)),
]


@pytest.mark.parametrize(("key", "value"), UNUSABLE_RECIPES)
def test_unusable_value_of_a_recipe_names_file_and_key(tmp_path: Path, key: str, value: Any) -> None:
    """These were accepted, or blamed on the clips."""
    recipe = {**LITE0.to_dict(), key.partition(".")[0]: value}
    path = write(tmp_path / "odd.pt", {"fc.bias": torch.ones(1)}, recipe)
    with pytest.raises(CheckpointError, match=rf"^{path}: its recipe .*\({key}: ") as error:
        load_network(path)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("recipe", [[], 3, "recipe", {}, {"size": 224}, {**LITE0.to_dict(), "crop": MARGIN, "std": {}}])
def test_recipe_that_is_none(tmp_path: Path, recipe: Any) -> None:
    path = write(tmp_path / "odd.pt", {"fc.bias": torch.ones(1)}, recipe)
    with pytest.raises(CheckpointError, match=rf"^{path}: its recipe"):
        load_network(path)


def test_size_that_a_decoder_cannot_use(tmp_path: Path) -> None:
    recipe = {**LITE0.to_dict(), "network": "EfficientUnetClassifier", "size": 100}
    path = write(tmp_path / "odd.pt", {"fc.bias": torch.ones(1)}, recipe)
    with pytest.raises(CheckpointError, match=rf"^{path}: its recipe .*size: .*32"):
        load_network(path)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        LITE0,
        Recipe("EfficientUnetClassifier", size=1024, crop=SquareCrop(0.1, -1)),
        Recipe(size=33, mean=(0, 1, 0.5), std=(0.001, 10, 1), crop=MarginCrop(0.001)),
        Recipe(flip=True),
    ],
)
def test_usable_recipes_are_kept(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    values = {**recipe.to_dict(), "mean": list(recipe.mean), "std": list(map(np.float64, recipe.std)), "later": 1}
    assert Recipe.from_dict(values) == recipe


def test_recipe_of_an_earlier_version() -> None:
    """It has neither verdict bands nor flip averaging."""
    values = {key: value for key, value in LITE0.to_dict().items() if key not in ("bands", "flip")}
    assert Recipe.from_dict(values) == LITE0
    assert (LITE0.bands, LITE0.flip) == (None, False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 100_000),
        ("size", 1025),
        ("size", True),
        ("normalize.mean", [0, 0, 1e9]),
        ("normalize.std", [1e-9, 1, 1]),
        ("crop.margin.margin", {"kind": "margin", "margin": 1e9}),
        ("crop.square.side", {"kind": "square", "side": 1e9, "center": 0}),
        ("crop.square.center", {"kind": "square", "side": 1, "center": -1e9}),
    ],
)
def test_configurations_have_the_same_ranges(key: str, value: Any) -> None:
    """A run cannot write a checkpoint that cannot be loaded."""
    path = face_crops.ROOT / "configs/b7.json"
    changed = "crop" if key.startswith("crop") else key
    with pytest.raises(ConfigError, match=rf"^{path}: {key.replace('.', '[.]')}"):
        read_config(path, {changed: value})


def sparse(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_sparse()


def quantized(tensor: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def nested(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor([tensor])


def infinite(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * math.inf


UNUSABLE_WEIGHTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "integer": lambda tensor: tensor.int(),
    "boolean": lambda tensor: tensor > 0,
    "complex": lambda tensor: tensor.to(torch.complex64),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "sparse": sparse,
    "quantized": quantized,
    "nested": nested,
    "meta": lambda tensor: tensor.to("meta"),
    "infinite": infinite,
    "NaN": lambda tensor: tensor * math.nan,
    "infinite in float32": lambda tensor: tensor.double() * 1e300,
    "empty": lambda tensor: tensor[:0],
    "another shape": lambda tensor: tensor[None],
    "repeated": lambda tensor: tensor.flatten()[:1].expand(10**12),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNUSABLE_WEIGHTS)
@pytest.mark.parametrize("key", [CONV, "encoder.bn1.running_var"])
def test_unusable_weights(tmp_path: Path, state: dict[str, torch.Tensor], kind: str, key: str) -> None:
    path = write(tmp_path / "odd.pt", {**state, key: UNUSABLE_WEIGHTS[kind](state[key])})
    with pytest.raises(CheckpointError, match=rf"^{path}: .*{key}") as error:
        load_network(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [sparse, quantized])
def test_unusable_weights_cause_no_warnings(
    tmp_path: Path, state: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """PyTorch warns about such tensors when it reads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write(tmp_path / "odd.pt", {**state, CONV: change(state[CONV])})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError, match="dense"):
            load_network(path)


def test_compressed_checkpoint(tmp_path: Path) -> None:
    """A few megabytes could take all memory."""
    path, content = tmp_path / "odd.pt", io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(2**18)}}, content)
    with zipfile.ZipFile(content) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as compressed:
        for name in archive.namelist():
            compressed.writestr(name, archive.read(name))
    with pytest.raises(CheckpointError, match=rf"^{path}: .*larger than the file"):
        load_network(path)


@pytest.mark.parametrize("value", [torch.tensor(1.5), torch.tensor(True), torch.tensor(1j)])
def test_unusable_counter(tmp_path: Path, state: dict[str, torch.Tensor], value: torch.Tensor) -> None:
    path = write(tmp_path / "odd.pt", {**state, "encoder.bn1.num_batches_tracked": value})
    with pytest.raises(CheckpointError, match=rf"^{path}: .*encoder.bn1.num_batches_tracked"):
        load_network(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNUSABLE_WEIGHTS)
def test_unusable_pretrained_weights(tmp_path: Path, state: dict[str, torch.Tensor], kind: str) -> None:
    """The encoder of a checkpoint, and a state dict with timm's names."""
    encoder = build_network("DeepFakeClassifier", LITE0.encoder).encoder
    odd = {**state, CONV: UNUSABLE_WEIGHTS[kind](state[CONV])}
    timm = {key.removeprefix("encoder."): value for key, value in odd.items() if key.startswith("encoder.")}
    for content in ({"state_dict": odd}, timm):
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(CheckpointError, match=rf"^{tmp_path}/odd\.pt: .*conv_head\.weight"):
            load_encoder(encoder, tmp_path / "odd.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["complex", "meta", "sparse", "repeated"])
@pytest.mark.parametrize("program", [evaluate, calibrate])
def test_evaluate_and_calibrate_refuse_them(
    tmp_path: Path, state: dict[str, torch.Tensor], kind: str, program: Any
) -> None:
    path = write(tmp_path / "odd.pt", {**state, "fc.weight": UNUSABLE_WEIGHTS[kind](state["fc.weight"])})
    options = ["--checkpoint", path, "--data-dir", tmp_path]
    if program is calibrate:
        options += ["--output", tmp_path / "new.pt"]
    with pytest.raises(CheckpointError, match=rf"^{path}: "):
        program.main(program.get_args_parser().parse_args(list(map(str, options))))


def test_weights_that_share_memory_or_have_gradients_are_usable(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    """Weights of other precisions, parameters, and tensors whose elements are one number in memory."""
    odd = {
        **state,
        "fc.weight": state["fc.weight"][:, :1].expand_as(state["fc.weight"]),
        "fc.bias": torch.nn.Parameter(state["fc.bias"].double()),
        "encoder.bn1.running_mean": state["encoder.bn1.running_mean"].clone().requires_grad_(),
        "encoder.bn1.num_batches_tracked": torch.tensor(3, dtype=torch.uint8),
    }
    network, _ = load_network(write(tmp_path / "odd.pt", odd))
    assert torch.equal(network.fc.weight, odd["fc.weight"])
    with torch.no_grad():
        network.fc.weight.div_(2)  # as calibration does
    assert not network.encoder.bn1.running_mean.requires_grad
    assert network.encoder.bn1.num_batches_tracked.dtype == torch.int64


def test_released_names_the_difference(
    tmp_path: Path, state: dict[str, torch.Tensor], capsys: pytest.CaptureFixture
) -> None:
    path = write(tmp_path / "ours.pt", state)
    args = checkpoint_tool.get_args_parser().parse_args([str(path), "--released"])
    assert checkpoint_tool.main(args) == cli.CANNOT_CONTINUE
    message = capsys.readouterr().err
    assert message.startswith(f"{path}: not a released checkpoint: encoder is tf_efficientnet_lite0 instead of")
    assert "network" not in message
    assert "Recipe(" not in message


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = face_crops.config(tmp_path_factory.mktemp("config"), pretrained=False, optimizer__batch_size=4, size=32)
    return read_config(path)


@pytest.fixture(scope="module")
def last(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a last checkpoint after two steps with AdamW and loss scaling."""
    learner = scaled_learner(config)
    for _ in range(2):
        train_step(learner, random_batch(config))
    checkpoints = Checkpoints(tmp_path_factory.mktemp("last"), "run", every_epoch=False)
    checkpoints.save(learner, 4, Best(4, 0.3), SETTINGS, None)
    return read_checkpoint(checkpoints.path("last"))


@pytest.fixture(scope="module")
def learner(config: Config) -> Learner:
    return scaled_learner(config)


def scaled_learner(config: Config) -> Learner:
    learner = make_learner(config, torch.device("cpu"))
    learner.scaler = torch.amp.GradScaler("cpu")
    return learner


def changed(content: dict[str, Any], dotted_key: str, value: Any) -> dict[str, Any]:
    """A copy with another value; a function is applied to the present value, and `...` removes the key."""
    content = copy.copy(content)
    place: Any = content
    *path, last = (int(part) if part.isdigit() else part for part in dotted_key.split("/"))
    for part in path:
        place[part] = copy.copy(place[part])
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value(place[last]) if callable(value) else value
    return content


UNUSABLE_STATES: list[tuple[str, Any]] = [
    *((f"state_dict/module.{CONV}", change) for change in UNUSABLE_WEIGHTS.values()),
    *(("training/optimizer/state/0/exp_avg", change) for change in UNUSABLE_WEIGHTS.values()),
    ("state_dict/module.fc.bias", ...),
    ("training/optimizer", torch.zeros(2)),
    ("training/optimizer/state", torch.zeros(2)),
    ("training/optimizer/state/0/exp_avg", ...),
    ("training/optimizer/state/0/exp_avg", None),
    ("training/optimizer/state/0/exp_avg", 0.5),
    ("training/optimizer/state/0/step", torch.tensor(1j)),
    ("training/optimizer/state/0/step", torch.ones(7)),
    ("training/optimizer/state/0/step", torch.tensor(math.nan)),
    ("training/optimizer/state/0/step", lambda step: quantized(step)),
    ("training/optimizer/state/0/step", lambda step: sparse(step)),
    ("training/optimizer/state/0/step", torch.tensor(-1.0)),
    ("training/optimizer/state/0/step", "two"),
    ("training/optimizer/state/0/step", math.inf),
    ("training/optimizer/state/0", {}),
    ("training/optimizer/state/0", None),
    ("training/optimizer/state/0", [1]),
    ("training/optimizer/state/999", {}),
    ("training/optimizer/state", [1]),
    ("training/optimizer/param_groups", []),
    ("training/optimizer", None),
    ("training/optimizer", np.float64(1)),
    ("training/optimizer", ...),
    ("training/scaler/scale", math.nan),
    ("training/scaler/scale", math.inf),
    ("training/scaler/scale", "high"),
    ("training/scaler/scale", -1),
    ("training/scaler/scale", ...),
    ("training/scaler/_growth_tracker", HUGE),
    ("training/scaler", 3),
    ("training/steps", -1),
    ("training/steps", HUGE),
    ("training/steps", 2.5),
    ("training/steps", torch.tensor(3)),
    ("training/best_epoch", "four"),
    ("bce_best", math.nan),
    ("bce_best", "low"),
    ("bce_best", HUGE),
    ("training/scaler/scale", HUGE),
    ("epoch", "four"),
    ("epoch", torch.tensor(4)),
    ("epoch", True),
    ("epoch", ...),
    ("training/settings", None),
    ("training/settings", {}),
    ("training/settings/processes", "one"),
    ("training/settings/other", torch.ones(2)),
    ("training/settings/other", "x" * 10_000),
    ("training/settings/" + "x" * 10_000, 1),
    ("training", None),
    ("training", [1]),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("key", "value"), UNUSABLE_STATES)
def test_unusable_training_state(tmp_path: Path, learner: Learner, last: dict, key: str, value: Any) -> None:
    path = tmp_path / "run_last.pt"
    torch.save(changed(last, key, value), path)
    with pytest.raises(ResumeError, match=rf"^{path}: .*(--resume none|--from-zero)") as error:
        restore(learner, path, SETTINGS)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert key != "training" or "(it has no training state)" in str(error.value)


def test_optimizer_state_that_shares_memory_is_usable(tmp_path: Path, learner: Learner, last: dict) -> None:
    """Optimizers change their state in place."""
    path = tmp_path / "run_last.pt"
    key = "training/optimizer/state/0/exp_avg"
    torch.save(changed(last, key, lambda average: torch.ones(1).expand(average.shape)), path)
    restore(learner, path, SETTINGS)
    for parameter in learner.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()


def test_settings_that_are_nested_deeply(tmp_path: Path, learner: Learner, last: dict) -> None:
    nested: Any = 1
    for _ in range(200):
        nested = {"a": nested}
    content = changed(last, "training/settings/deep", nested)
    torch.save(content, tmp_path / "run_last.pt")
    with pytest.raises(UserError, match=rf"^{tmp_path}/run_last\.pt: .*--resume none"):
        restore(learner, tmp_path / "run_last.pt", SETTINGS)


def test_options_of_the_optimizer_come_from_the_configuration(tmp_path: Path, config: Config, last: dict) -> None:
    content = changed(last, "training/optimizer/param_groups/0/betas", "none")
    torch.save(content, tmp_path / "run_last.pt")
    learner = scaled_learner(config)
    assert restore(learner, tmp_path / "run_last.pt", SETTINGS) == (5, Best(4, 0.3))
    assert learner.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert not train_step(learner, random_batch(config)).skipped


@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "AdamW", "weight_decay": 0.1},
        *(
            pytest.param(optimizer, marks=pytest.mark.slow)
            for optimizer in (
                {"type": "SGD"},
                {"type": "SGD", "momentum": 0.9, "nesterov": True},
                {"type": "Adam", "weight_decay": 0.1},
                {"type": "RMSprop"},
                {"type": "RMSprop", "momentum": 0.9},
            )
        ),
    ],
)
def test_resumed_run_writes_the_same_bytes(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    """The resumed run pickled the names in the optimizer's state another time."""
    changes = {f"optimizer.{key}": value for key, value in optimizer.items()}
    base = face_crops.config(tmp_path, pretrained=False, optimizer__batch_size=4, size=32, ema=0.5)
    config = read_config(base, changes)
    settings = {"processes": 1, "config": config.model_dump(mode="json")}
    checkpoints = Checkpoints(tmp_path, "run", every_epoch=False)
    straight = make_learner(config, torch.device("cpu"))
    step(straight, config, 0)
    checkpoints.save(straight, 0, Best(0, 0.3), settings, None)
    step(straight, config, 1)
    resumed = make_learner(config, torch.device("cpu"))
    restore(resumed, checkpoints.path("last"), settings)
    step(resumed, config, 1)
    contents = []
    for learner in (straight, resumed):
        checkpoints.save(learner, 1, Best(0, 0.3), settings, None)
        contents.append(checkpoints.path("last").read_bytes())
    assert contents[0] == contents[1]


def step(learner: Learner, config: Config, seed: int) -> None:
    torch.manual_seed(seed)
    train_step(learner, random_batch(config))


def test_log_of_random_weights_is_not_repeated(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    """A resumed run does not warn of random weights, which it replaces."""
    with caplog.at_level(logging.WARNING):
        build.init_network(config, fresh=False)
    assert not caplog.text
