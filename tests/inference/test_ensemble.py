"""The ensemble gives its networks' scores, whatever the batch, in every precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from common.device import DeviceError, choose_device, choose_precision
from inference.ensemble import Ensemble, ScoreError
from preprocessing.crops import MarginCrop
from tests.support import golden
from tests.support.checkpoints import LITE0
from training.tools.checkpoint import Recipe, load_network, save_checkpoint
from training.zoo import build_network

WAY = (MarginCrop(), 380)


@pytest.fixture(scope="module")
def squares() -> np.ndarray:
    image = astronaut()
    return np.stack([image[y : y + 380, x : x + 380] for y, x in ((0, 0), (30, 66), (100, 132), (60, 9), (5, 99))])


def test_scores_are_the_plain_networks(b7: Path, squares: np.ndarray):
    """Folded batch norms, memory format and normalisation change nothing; nor does the batch."""
    scores = Ensemble([b7], "cpu", "float32").score({WAY: squares[:3]})
    assert scores.shape == (3, 1)
    with torch.inference_mode():
        plain = load_network(b7)[0](golden.crops()).sigmoid().numpy()
    np.testing.assert_allclose(scores, plain, atol=1e-5)
    np.testing.assert_allclose(Ensemble([b7], "cpu", "float32").score({WAY: squares[1:2]}), plain[1:2], atol=1e-5)


def test_networks_with_inputs_of_their_own(b7: Path, tmp_path: Path, squares: np.ndarray):
    state = golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_lite0")).state_dict()
    save_checkpoint(tmp_path / "small.pt", state, LITE0)
    ensemble = Ensemble([tmp_path / "small.pt", b7, tmp_path / "small.pt"], "cpu", "float32")
    assert ensemble.names == ["small", "b7", "small#2"]
    assert ensemble.inputs == [(LITE0.crop, 224), WAY]
    small = squares[:, 78:302, 78:302]
    scores = ensemble.score({(LITE0.crop, 224): small, WAY: squares})
    network = load_network(tmp_path / "small.pt")[0]
    with torch.inference_mode():
        pixels = torch.from_numpy(small).permute(0, 3, 1, 2) / 255
        plain = network((pixels - 0.5) / 0.5).sigmoid().numpy()
    np.testing.assert_allclose(scores[:, :1], plain, atol=1e-5)
    np.testing.assert_array_equal(scores[:, 0], scores[:, 2])


def test_network_that_draws_a_mask(tmp_path: Path, squares: np.ndarray):
    network = golden.fill(build_network("EfficientUnetClassifier", "tf_efficientnet_b0_ns"))
    recipe = Recipe("EfficientUnetClassifier", "tf_efficientnet_b0_ns", 224)
    save_checkpoint(tmp_path / "unet.pt", network.state_dict(), recipe)
    scores = Ensemble([tmp_path / "unet.pt"], "cpu", "float32").score({(MarginCrop(), 224): squares[:2, :224, :224]})
    assert scores.shape == (2, 1)
    assert np.isfinite(scores).all()


def test_bfloat16_meets_the_float32_decoder(tmp_path: Path, squares: np.ndarray):
    """Features of the encoder's deeper blocks are bfloat16 and join those of the first, which are not."""
    network = golden.fill(build_network("EfficientUnetClassifier", "tf_efficientnet_b0_ns"))
    recipe = Recipe("EfficientUnetClassifier", "tf_efficientnet_b0_ns", 64)
    save_checkpoint(tmp_path / "unet.pt", network.state_dict(), recipe)
    crops = {(MarginCrop(), 64): squares[:1, 100:164, 150:214]}
    full, reduced = (Ensemble([tmp_path / "unet.pt"], "cpu", p).score(crops) for p in ("float32", "bfloat16"))
    np.testing.assert_allclose(reduced, full, atol=0.03)
    assert not np.array_equal(reduced, full)


@pytest.mark.parametrize("value", [1e8, -1e5])
def test_no_number_is_no_score(tmp_path: Path, squares: np.ndarray, value: float):
    """A bias that float16 cannot hold: the logit is infinite, though its sigmoid is a number."""
    state = golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_lite0")).state_dict()
    state["fc.bias"] = torch.tensor([value])
    save_checkpoint(tmp_path / "huge.pt", state, LITE0)
    with pytest.raises(ScoreError, match="huge gives no finite score in float16; use --precision float32"):
        Ensemble([tmp_path / "huge.pt"], "cpu", "float16").score({(LITE0.crop, 224): squares[:1, :224, :224]})


def test_choices(monkeypatch: pytest.MonkeyPatch):
    assert choose_precision("bfloat16", torch.device("cpu")) == "bfloat16"
    assert choose_precision("auto", torch.device("cuda")) == "float16"
    assert choose_precision("auto", torch.device("mps")) == "float32"
    for native, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda native=native: {"avx512_bf16": native})
        assert choose_precision("auto", torch.device("cpu")) == expected
    for device in ("cuda:99", "toaster"):
        with pytest.raises(DeviceError, match=f"no device '{device}'"):
            choose_device(device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_gpu_gives_the_cpus_scores(b7: Path, squares: np.ndarray, precision: str):
    on_gpu, on_cpu = (
        Ensemble([b7], *where).score({WAY: squares}) for where in (("cuda", precision), ("cpu", "float32"))
    )
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-3 if precision == "float32" else 0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_batch_changes_nothing(b7: Path, squares: np.ndarray):
    ensemble = Ensemble([b7], "cuda", "float32")
    alone = np.concatenate([ensemble.score({WAY: squares[i : i + 1]}) for i in range(len(squares))])
    np.testing.assert_allclose(ensemble.score({WAY: squares}), alone, atol=1e-5)
