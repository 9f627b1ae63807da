"""OpenVINO gives PyTorch's scores, or the run stops; converted networks are cached."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch import nn

from inference import openvino_backend, openvino_models
from inference.backends import BackendError, choose_backend
from inference.ensemble import Ensemble
from inference.loading import DEFAULT_MODEL
from tests.support import golden, programs
from tests.support.details import read_header, read_records
from training.tools.checkpoint import Recipe, load_network, save_checkpoint
from training.zoo import NETWORKS, build_network

pytest.importorskip("openvino")

ROOT = Path(__file__).parents[2]
# Scores in float32 differ by rounding; in bfloat16, those of single faces by up to 0.01.
ROUNDING, BFLOAT16 = 1e-4, 0.02


@pytest.fixture(autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of the tests that do not look at it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "shared_cache"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of converted networks that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dfdc-detector" / "openvino"


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    image = astronaut()
    return np.stack([image[y : y + 160, x : x + 160] for y, x in ((20, 145), (30, 150), (100, 132), (60, 9), (5, 99))])


def load(backend: str = "openvino", precision: str = "float32", path: Path = DEFAULT_MODEL) -> Ensemble:
    return Ensemble([path], "cpu", precision, backend=backend)


def scores(ensemble: Ensemble, crops: np.ndarray) -> np.ndarray:
    size = ensemble.crop_specs[0].size
    return ensemble.score({ensemble.crop_specs[0]: np.ascontiguousarray(crops[:, :size, :size])})


def forbid(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail(f"{target} was called")

    monkeypatch.setattr(target, fail)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", ROUNDING), ("bfloat16", BFLOAT16)])
def test_scores_are_those_of_pytorch(crops: np.ndarray, precision: str, tolerance: float) -> None:
    ensemble = load(precision=precision)
    assert (ensemble.backend, ensemble.precision) == ("openvino", precision)
    expected = scores(load("torch"), crops)
    assert np.ptp(expected) > 10 * tolerance
    np.testing.assert_allclose(scores(ensemble, crops), expected, atol=tolerance)
    assert np.array_equal(scores(ensemble, crops[3:]), scores(ensemble, crops)[3:])  # for any batch


def test_faces_keep_their_order_on_many_cores(crops: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scores(load(), crops)
    monkeypatch.setattr("torch.get_num_threads", lambda: 12)
    many = load()
    assert many.classifiers[0].lanes == 3  # type: ignore[attr-defined]
    np.testing.assert_allclose(scores(many, crops), expected, atol=ROUNDING)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_is_supported(tmp_path: Path, crops: np.ndarray, network: str) -> None:
    path = tmp_path / "network.pt"
    state = golden.fill(build_network(network, "tf_efficientnet_lite0")).state_dict()
    save_checkpoint(path, state, Recipe(network, "tf_efficientnet_lite0", 64))
    expected = scores(load("torch", path=path), crops)
    np.testing.assert_allclose(scores(load(path=path), crops), expected, atol=ROUNDING)


def test_flip_averages_the_logits_of_a_crop_and_its_mirror_image(tmp_path: Path, crops: np.ndarray) -> None:
    network, recipe = load_network(DEFAULT_MODEL)
    save_checkpoint(tmp_path / "flipped.pt", network.state_dict(), replace(recipe, flip=True, shift=0.0))
    crops = np.stack([cv2.resize(crop, (recipe.size, recipe.size)) for crop in crops])
    with torch.inference_mode():
        logits, mirrored = (
            network(recipe.normalize(torch.from_numpy(images))) for images in (crops, crops[:, :, ::-1].copy())
        )
    expected = ((logits + mirrored) / 2).sigmoid().numpy()
    assert np.abs(expected - logits.sigmoid().numpy()).max() > 10 * ROUNDING
    np.testing.assert_allclose(scores(load(path=tmp_path / "flipped.pt"), crops), expected, atol=ROUNDING)


def test_conversions_are_cached(cache: Path, crops: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "openvino_telemetry.Telemetry.init")  # OpenVINO's own converter sends usage data
    first = scores(load(), crops)
    assert [entry.name.split("-")[2] for entry in cache.iterdir()] == ["float32"]
    forbid(monkeypatch, "inference.openvino_backend.convert")
    assert np.array_equal(scores(load(), crops), first)


@pytest.mark.parametrize("damage", ["truncated", "other weights"])
def test_damaged_cache_is_repaired(
    cache: Path, crops: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = scores(load(), crops)
    [entry] = cache.iterdir()
    weights = entry / "part0.bin"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    else:
        weights.write_bytes((np.fromfile(weights, np.uint8).view(np.float32) / 2).tobytes())
    assert np.array_equal(scores(load(), crops), first)
    assert str(entry) in caplog.text
    forbid(monkeypatch, "inference.openvino_backend.convert")
    load()


def test_networks_are_used_without_a_cache(
    tmp_path: Path, crops: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    np.testing.assert_allclose(scores(load(), crops), scores(load("torch"), crops), atol=ROUNDING)
    assert str(tmp_path / "file") in caplog.text


def wrong_conversion(parts: Sequence[openvino_models.Part], image: torch.Tensor) -> list[Any]:
    """Convert a network with a wrong last layer, as if OpenVINO computed wrongly."""
    layer = next(module for module in reversed(list(parts[-1].layers.modules())) if isinstance(module, nn.Linear))
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias += 1
    return openvino_models.convert(parts, image)


def test_wrong_logits_stop_the_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_backend, "convert", wrong_conversion)
    with pytest.raises(BackendError, match=r"lite0\.pt in bfloat16 .* by (1|0\.9\d|1\.\d)\. .*--backend torch$"):
        load(precision="bfloat16")
    assert not list(cache.iterdir())


@pytest.mark.usefixtures("cache")
def test_auto_falls_back_to_pytorch(
    crops: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(openvino_backend, "convert", wrong_conversion)
    ensemble = load("auto")
    assert ensemble.backend == "torch"
    assert np.array_equal(scores(ensemble, crops), scores(load("torch"), crops))
    assert "default_lite0.pt" in caplog.text


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_backend("auto", cpu, "bfloat16") == "openvino"
    assert choose_backend("auto", gpu, "float32") == "torch"
    assert choose_backend("auto", cpu, "float16") == "torch"
    for device, precision in ((gpu, "float32"), (cpu, "float16")):
        with pytest.raises(BackendError, match=f"{device.type} in {precision}.*--device cpu"):
            choose_backend("openvino", device, precision)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert choose_backend("auto", cpu, "float32") == "torch"


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.backends.find_spec", lambda _: None)
    with pytest.raises(BackendError, match=r"pip install -r requirements-openvino\.txt"):
        load()
    assert load("auto").backend == "torch"
    assert (ROOT / "requirements-openvino.txt").is_file()


@pytest.mark.slow
def test_predict_folder(tmp_path: Path, cache: Path, face_video: Path) -> None:
    """The scores are PyTorch's, and not mixed with them. Two runs convert the same network at the same time."""
    videos, details = tmp_path / "videos", tmp_path / "out.csv.details"
    videos.mkdir()
    shutil.copy(face_video, videos / "face.mp4")

    def command(backend: str, name: str) -> list[str | Path]:
        script = [sys.executable, ROOT / "predict_folder.py", "--test-dir", videos, "--output", tmp_path / name]
        options = ("--precision", "float32", "--frames", "3", "--details", tmp_path / f"{name}.details")
        return [*script, *options, "--backend", backend]

    with programs.started(command("openvino", "other.csv"), stderr=subprocess.DEVNULL) as other:
        finished = programs.run(command("openvino", "out.csv"))
        assert finished.returncode == 0, finished.stderr
        assert other.wait(programs.LIMIT) == 0
    assert len(list(cache.iterdir())) == 1
    header, fast = read_header(details), read_records(details)["face.mp4"]["score"]
    assert header["backend"] == "openvino"
    assert "openvino" in header["packages"]
    finished = programs.run(command("torch", "out.csv"))
    assert "starting over" in finished.stderr
    assert "openvino" not in read_header(details)["packages"]
    assert read_records(details)["face.mp4"]["score"] == pytest.approx(fast, abs=ROUNDING)
