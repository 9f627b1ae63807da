"""Checkpoints: the released format, this project's format, and files that must be refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from common import __version__
from preprocessing.crops import MarginCrop
from tests.support import golden
from tests.support.checkpoints import LITE0, Payload
from training.tools.checkpoint import CheckpointError, Recipe, load_network, read_checkpoint, save_checkpoint
from training.zoo import build_network


@pytest.fixture(scope="module")
def lite0_state() -> dict[str, torch.Tensor]:
    return golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_lite0")).state_dict()


@pytest.mark.slow
def test_reads_the_released_format(b7: Path):
    network, recipe = load_network(b7)
    assert recipe == Recipe("DeepFakeClassifier", "tf_efficientnet_b7_ns", 380, crop=MarginCrop(1 / 3))
    assert (recipe.mean, recipe.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        logit = network(golden.crops()[2:]).item()
    assert logit == pytest.approx(-3.1218602657318115, rel=1e-4)  # see test_zoo.py


@pytest.mark.slow
def test_reads_legacy_files(b7: Path, tmp_path: Path):
    """The format of PyTorch before 1.6, with a scalar under the name of NumPy before 2.0."""
    legacy = tmp_path / "legacy"
    torch.save(torch.load(b7, weights_only=False), legacy, _use_new_zipfile_serialization=False)
    data = legacy.read_bytes()
    assert b"numpy._core.multiarray\nscalar" in data
    legacy.write_bytes(data.replace(b"numpy._core.multiarray\nscalar", b"numpy.core.multiarray\nscalar"))
    state, expected = (load_network(path)[0].state_dict() for path in (legacy, b7))
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_checkpoint_loads_unchanged(tmp_path: Path, lite0_state: dict, dtype: torch.dtype):
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in lite0_state.items()}
    save_checkpoint(tmp_path / "ours.pt", state, LITE0, epoch=1, bce_best=0.3)
    network, recipe = load_network(tmp_path / "ours.pt")
    assert recipe == LITE0
    assert read_checkpoint(tmp_path / "ours.pt")["version"] == __version__
    assert not network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype))
        assert value.dtype in (torch.float32, torch.int64)
    assert [path.name for path in tmp_path.iterdir()] == ["ours.pt"]


def test_loading_downloads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lite0_state: dict):
    def no_download(*_args, **_options):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("timm.models._builder.load_pretrained", no_download)
    with pytest.raises(AssertionError, match="a download was tried"):
        build_network("DeepFakeClassifier", "tf_efficientnet_b0_ns", pretrained=True)
    save_checkpoint(tmp_path / "ours.pt", lite0_state, LITE0)
    load_network(tmp_path / "ours.pt")


def broken(state: dict, how: str) -> dict:
    state = dict(state)
    if how == "missing":
        del state["fc.weight"]
    elif how == "unknown":
        state["head.weight"] = torch.zeros(1)
    elif how == "not finite":
        state["encoder.blocks.3.1.conv_pw.weight"] = state["encoder.blocks.3.1.conv_pw.weight"].clone()
        state["encoder.blocks.3.1.conv_pw.weight"][3, 2] = float("nan")
    elif how == "renamed":  # as by a wrapper; without strict=True, nothing would be loaded
        state = {f"model.{key}": value for key, value in state.items()}
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"1 missing \(fc.weight\)"),
        ("unknown", r"1 unknown \(head.weight\)"),
        ("not finite", r"not finite .*encoder.blocks.3.1.conv_pw.weight"),
        ("renamed", r"missing .* unknown \(model\."),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, lite0_state: dict, how: str, message: str):
    path = tmp_path / "wrong.pt"
    save_checkpoint(path, broken(lite0_state, how), LITE0)
    with pytest.raises(CheckpointError, match=message) as error:
        load_network(path)
    assert str(path) in str(error.value)


@pytest.mark.slow
def test_released_file_with_another_encoder_is_refused(tmp_path: Path):
    path = tmp_path / "b5"
    torch.save({"state_dict": build_network("DeepFakeClassifier", "tf_efficientnet_b5_ns").state_dict()}, path)
    with pytest.raises(CheckpointError, match=rf"{path}: .*DeepFakeClassifier with tf_efficientnet_b7_ns.*shape"):
        load_network(path)


@pytest.mark.parametrize(
    "change",
    [{"encoder": "vgg"}, {"size": -1}, {"crop": {"kind": "hexagon"}}, {"mean": [1]}, {"std": [0, 0, 0]}, "not a dict"],
)
def test_unusable_recipe_is_refused(tmp_path: Path, lite0_state: dict, change: dict | str):
    recipe = {**LITE0.to_dict(), **change} if isinstance(change, dict) else change
    torch.save({"state_dict": lite0_state, "recipe": recipe}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd\.pt: its recipe"):
        load_network(tmp_path / "odd.pt")


@pytest.mark.parametrize("share", [0, 0.3, 0.999])
def test_truncated_file_is_refused(tmp_path: Path, lite0_state: dict, share: float):
    path = tmp_path / "cut"
    save_checkpoint(path, lite0_state, LITE0)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=r"cut: .*damaged"):
        load_network(path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>" * 99, pickle.dumps([1, 2]), pickle.dumps({"state_dict": {"a": 1}})]
)
def test_other_file_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "page").write_bytes(content)
    with pytest.raises(CheckpointError, match="page: "):
        load_network(tmp_path / "page")


def test_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match=str(tmp_path / "none")):
        load_network(tmp_path / "none")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path: Path, lite0_state: dict, zipped: bool):
    path, target = tmp_path / "hostile.pt", tmp_path / "it_ran"
    torch.save(
        {"state_dict": lite0_state, "recipe": LITE0.to_dict(), "extra": Payload(target)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(CheckpointError, match=r"hostile\.pt: refused"):
        load_network(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))  # elsewhere, the payload works
    assert target.exists()


def test_accepts_numpy_scalars(tmp_path: Path, lite0_state: dict):
    save_checkpoint(tmp_path / "a.pt", lite0_state, LITE0, bce_best=np.float64(0.2), other=np.float32(1))
    load_network(tmp_path / "a.pt")
