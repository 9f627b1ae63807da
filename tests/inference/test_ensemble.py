"""The ensemble returns its networks' scores, for any batch, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from skimage.data import astronaut

from common.device import DeviceError, choose_device, choose_precision
from inference.backends import BACKENDS, BackendError
from inference.ensemble import CropSpec, Ensemble, ScoreError
from inference.torch_backend import TorchClassifier
from preprocessing.crops import MarginCrop
from tests.support import golden
from tests.support.checkpoints import LITE0
from training.tools.checkpoint import CheckpointError, Recipe, load_network, save_checkpoint
from training.zoo import build_network

B7_SPEC = CropSpec(MarginCrop(), 380)
LITE0_SPEC = CropSpec(LITE0.crop, LITE0.size)
# Folded batch norms, memory formats and batch sizes change the order of float32 sums, differently on every CPU.
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    image = astronaut()
    return np.stack([image[y : y + 380, x : x + 380] for y, x in ((0, 0), (30, 66), (100, 132), (60, 9), (5, 99))])


@pytest.fixture(scope="module")
def small_crops(crops: np.ndarray) -> np.ndarray:
    return crops[:, 78:302, 78:302]


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "small.pt"
    state = golden.fill(build_network("DeepFakeClassifier", LITE0.encoder)).state_dict()
    save_checkpoint(path, state, LITE0)
    return path


@pytest.fixture(scope="module")
def flipped(lite0: Path) -> Path:
    """The network of `lite0`, with flip averaging."""
    network, recipe = load_network(lite0)
    save_checkpoint(lite0.with_name("flipped.pt"), network.state_dict(), replace(recipe, flip=True))
    return lite0.with_name("flipped.pt")


def plain_scores(checkpoint: Path, normalized: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return load_network(checkpoint)[0](normalized).sigmoid().numpy()


def normalized_lite0(images: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5


def test_scores_equal_the_plain_network(lite0: Path, small_crops: np.ndarray):
    """Neither folding the batch norms nor the memory format nor the batch changes a score."""
    ensemble = Ensemble([lite0], "cpu", "float32")
    expected = plain_scores(lite0, normalized_lite0(small_crops))
    scores = ensemble.score({LITE0_SPEC: small_crops})
    assert scores.shape == (5, 1)
    assert np.ptp(scores) > 100 * ROUNDING
    np.testing.assert_allclose(scores, expected, atol=ROUNDING)
    np.testing.assert_allclose(ensemble.score({LITE0_SPEC: small_crops[1:2]}), expected[1:2], atol=ROUNDING)


@pytest.mark.slow
def test_scores_equal_the_plain_b7(b7: Path, crops: np.ndarray):
    scores = Ensemble([b7], "cpu", "float32").score({B7_SPEC: crops[:3]})
    assert scores.shape == (3, 1)
    np.testing.assert_allclose(scores, plain_scores(b7, golden.crops()), atol=ROUNDING)


@pytest.mark.slow
def test_networks_with_different_inputs(lite0: Path, b7: Path, crops: np.ndarray, small_crops: np.ndarray):
    ensemble = Ensemble([lite0, b7, lite0], "cpu", "float32")
    assert ensemble.names == ["small", "b7", "small#2"]
    assert ensemble.crop_specs == [LITE0_SPEC, B7_SPEC]
    scores = ensemble.score({LITE0_SPEC: small_crops, B7_SPEC: crops})
    np.testing.assert_allclose(scores[:, :1], plain_scores(lite0, normalized_lite0(small_crops)), atol=ROUNDING)
    np.testing.assert_allclose(scores[:, 2], scores[:, 0], atol=ROUNDING)
    np.testing.assert_allclose(scores[:3, 1:2], plain_scores(b7, golden.crops()), atol=ROUNDING)


def test_flip_averages_the_logits_of_a_crop_and_its_mirror_image(lite0: Path, flipped: Path, small_crops: np.ndarray):
    """The other networks of an ensemble, which share their input, are not affected."""
    ensemble = Ensemble([flipped, lite0], "cpu", "float32")
    assert ensemble.crop_specs == [LITE0_SPEC]
    scores = ensemble.score({LITE0_SPEC: small_crops})
    crop_scores, mirror_scores = (
        plain_scores(lite0, normalized_lite0(images)) for images in (small_crops, small_crops[:, :, ::-1].copy())
    )
    expected = expit((logit(crop_scores) + logit(mirror_scores)) / 2)
    assert np.abs(expected - crop_scores).max() > 10 * ROUNDING
    np.testing.assert_allclose(scores[:, :1], expected, atol=ROUNDING)
    assert np.array_equal(scores[:, 1:], Ensemble([lite0], "cpu", "float32").score({LITE0_SPEC: small_crops}))


def unet(path: Path, size: int) -> Path:
    network = golden.fill(build_network("EfficientUnetClassifier", "tf_efficientnet_b0_ns"))
    save_checkpoint(path, network.state_dict(), Recipe("EfficientUnetClassifier", "tf_efficientnet_b0_ns", size))
    return path


def test_scores_of_network_with_mask_output(tmp_path: Path, crops: np.ndarray):
    """A U-Net returns a mask as well, which is not computed here."""
    checkpoint = unet(tmp_path / "unet.pt", 64)
    images = {CropSpec(MarginCrop(), 64): crops[:1, 100:164, 150:214]}
    with torch.inference_mode():
        network, recipe = load_network(checkpoint)
        expected = network(recipe.normalize(torch.from_numpy(*images.values())))[0].sigmoid().numpy()
    full, reduced = (Ensemble([checkpoint], "cpu", p).score(images) for p in ("float32", "bfloat16"))
    np.testing.assert_allclose(full, expected, atol=ROUNDING)
    np.testing.assert_allclose(reduced, full, atol=0.01)
    assert not np.array_equal(reduced, full)


def test_compiled_network_gets_full_batches(lite0: Path, small_crops: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    """CUDA graphs need inputs of one shape. The compiler itself, which takes long on a CPU, is left out."""
    shapes = []

    def compile_without_compiler(forward: Callable, **_: object) -> Callable:
        return lambda images: (shapes.append(tuple(images.shape)), forward(images))[1]

    monkeypatch.setattr("torch.compile", compile_without_compiler)
    network, recipe = load_network(lite0)
    classifier = TorchClassifier(network, torch.device("cpu"), torch.float32, compiled_batch=4)
    images = recipe.normalize(torch.from_numpy(small_crops))
    with torch.inference_mode():
        logits = torch.cat([classifier(images[:4]), classifier(images[4:])])
    assert shapes == [(4, 3, 224, 224)] * 2
    np.testing.assert_allclose(logits.sigmoid().numpy()[:, None], plain_scores(lite0, images), atol=ROUNDING)
    with pytest.raises(BackendError, match="torch-compile"):
        Ensemble([lite0], "cpu", backend="torch-compile")


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_starting_a_batch_does_not_wait_for_the_gpu(lite0: Path, small_crops: np.ndarray):
    ensemble = Ensemble([lite0, lite0], "cuda", "float16")
    expected = ensemble.score({LITE0_SPEC: small_crops})
    torch.cuda.set_sync_debug_mode("error")
    try:
        logits = ensemble.start({LITE0_SPEC: small_crops})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(ensemble.finish(logits), expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_compiled_scores_equal_eager_scores(lite0: Path, flipped: Path, small_crops: np.ndarray, precision: str):
    eager, compiled = (Ensemble([lite0, flipped], "cuda", precision, 4, backend) for backend in BACKENDS[:2])
    for images in (small_crops[:4], small_crops[4:], small_crops[1:4]):  # warm-up, recording and replay of the graph
        crops = {LITE0_SPEC: images}
        np.testing.assert_allclose(compiled.score(crops), eager.score(crops), atol=0.01)


@pytest.mark.parametrize("bias", [1e8, -1e5])
def test_infinite_logit_is_an_error(tmp_path: Path, small_crops: np.ndarray, bias: float):
    """float16 cannot hold the bias. The logit is infinite, although its sigmoid is finite."""
    state = golden.fill(build_network("DeepFakeClassifier", LITE0.encoder)).state_dict()
    state["fc.bias"] = torch.tensor([bias])
    save_checkpoint(tmp_path / "huge.pt", state, LITE0)
    with pytest.raises(ScoreError, match=r"huge.*--precision float32"):
        Ensemble([tmp_path / "huge.pt"], "cpu", "float16").score({LITE0_SPEC: small_crops[:1]})


def test_infinite_logit_in_float32_is_not_blamed_on_the_precision(tmp_path: Path, small_crops: np.ndarray):
    """Finite weights can overflow in float32, too."""
    state = golden.fill(build_network("DeepFakeClassifier", LITE0.encoder)).state_dict()
    state["fc.weight"] = torch.full_like(state["fc.weight"], 3e38)
    save_checkpoint(tmp_path / "huge.pt", state, LITE0)
    with pytest.raises(ScoreError, match=r"^huge: .*another checkpoint") as error:
        Ensemble([tmp_path / "huge.pt"], "cpu", "float32").score({LITE0_SPEC: small_crops[:1]})
    assert "--precision" not in str(error.value)


@pytest.mark.parametrize("std", [1e-30, 1e-50])
def test_bad_normalization_is_an_error_of_the_checkpoint(tmp_path: Path, std: float):
    """Infinite scores were answered with --precision float32, which cannot help."""
    state = golden.fill(build_network("DeepFakeClassifier", LITE0.encoder)).state_dict()
    save_checkpoint(tmp_path / "odd.pt", state, Recipe(encoder=LITE0.encoder, std=(std,) * 3))
    with pytest.raises(CheckpointError, match=r"odd\.pt: its recipe .*std: "):
        Ensemble([tmp_path / "odd.pt"], "cpu", "float16")


@pytest.mark.parametrize(
    ("device", "native_bfloat16", "expected"),
    [("cuda", False, "float16"), ("mps", True, "float32"), ("cpu", True, "bfloat16"), ("cpu", False, "float32")],
)
def test_automatic_precision(monkeypatch: pytest.MonkeyPatch, device: str, native_bfloat16: bool, expected: str):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": native_bfloat16})
    assert choose_precision("auto", torch.device(device)) == expected
    assert choose_precision("bfloat16", torch.device(device)) == "bfloat16"


def test_device_that_is_too_small_is_an_error(lite0: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr("inference.torch_backend.reduce_precision", fail)
    with pytest.raises(DeviceError, match=r"out of memory .*2\.00 GiB.*--device cpu$"):
        Ensemble([lite0], "cpu", "float32")


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_missing_device_is_an_error(device: str):
    with pytest.raises(DeviceError, match=device):
        choose_device(device)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_gpu_scores_equal_cpu_scores(b7: Path, crops: np.ndarray, precision: str):
    on_gpu, on_cpu = (
        Ensemble([b7], *where).score({B7_SPEC: crops}) for where in (("cuda", precision), ("cpu", "float32"))
    )
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-3 if precision == "float32" else 0.02)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_scores_do_not_depend_on_the_batch(b7: Path, crops: np.ndarray):
    ensemble = Ensemble([b7], "cuda", "float32")
    alone = np.concatenate([ensemble.score({B7_SPEC: crops[i : i + 1]}) for i in range(len(crops))])
    np.testing.assert_allclose(ensemble.score({B7_SPEC: crops}), alone, atol=ROUNDING)
