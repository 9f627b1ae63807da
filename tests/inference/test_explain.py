"""Heat maps: what they show, where they lie in the frame, and whether they find a known manipulation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch import nn

from inference.explain import Explainer, grad_cam
from preprocessing.crops import MarginCrop, SquareCrop, cut
from preprocessing.sample_clips import corners, moving, write_clip
from preprocessing.video import Clip, iter_frames
from tests.support import golden
from tests.support.face_crops import portrait
from training.tools.checkpoint import Recipe, load_network, save_checkpoint
from training.zoo import NETWORKS, build_network
from training.zoo.classifiers import DeepFakeClassifier, DeepFakeClassifierSRM
from training.zoo.unet import EfficientUnetClassifier

DEFAULT = Path(__file__).parents[2] / "weights/default_lite0.pt"
# The face of scikit-image's portrait: xmin, ymin, xmax, ymax.
FACE = (170, 60, 278, 200)
# A square of 1.2 times the box, which contains it.
SQUARE = SquareCrop(side=1.2, center=0.5)


class Encoder(nn.Module):
    """Features are the mean brightness of 16 x 16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.bn2 = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.bn2(nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 16))


class Brightness(nn.Module):
    """A network that takes bright pixels for signs of a fake, wherever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder(images).mean(dim=(2, 3))


class LeftHalf(Brightness):
    """A network that sees only the left half of its input."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        width = images.shape[3]
        return super().forward(images * (torch.arange(width) < width / 2))


def brightness(*crops: MarginCrop | SquareCrop, size: int = 160) -> Explainer:
    """An explainer whose networks see bright pixels in these crops."""
    explainer = Explainer([])
    for crop in crops:
        recipe = Recipe(size=size, mean=(0.0,) * 3, std=(1.0,) * 3, crop=crop)
        explainer.networks.append((Brightness(), recipe))  # type: ignore[arg-type]
    return explainer


def spot(height: int, width: int, x: int, y: int, radius: int) -> np.ndarray:
    """A black frame with a white disc."""
    return cv2.circle(np.zeros((height, width, 3), np.uint8), (x, y), radius, (255, 255, 255), -1)


def center_of(heat: np.ndarray) -> np.ndarray:
    """The center of mass, (x, y) in pixels."""
    y, x = (np.average(np.arange(side), weights=heat.sum(axis=1 - axis)) for axis, side in enumerate(heat.shape))
    return np.array([x, y])


def features_of(network: DeepFakeClassifier, images: torch.Tensor) -> torch.Tensor:
    """The last feature map of a network, computed with the network's own parts."""
    if isinstance(network, EfficientUnetClassifier):
        return network._encode(images)[-1]
    if isinstance(network, DeepFakeClassifierSRM):
        images = network.srm_conv(images)
    return network.encoder.forward_features(images)


def test_grad_cam_of_an_average_pooling_network_is_cam() -> None:
    """With average pooling and a linear layer, the channels' weights are those of the layer (Zhou et al., 2016)."""
    network, _ = load_network(DEFAULT)
    images = golden.crops()[:, :, :160, :160]
    with torch.no_grad():
        expected = (network.fc.weight[0, :, None, None] * network.encoder.forward_features(images)).sum(dim=1).relu()
    assert (expected.amax(dim=(1, 2)) > 0).sum() >= 2
    expected /= expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(
        grad_cam(network.requires_grad_(False), images, Recipe()), expected, rtol=1e-4, atol=1e-5
    )
    network.fc.weight.copy_(-network.fc.weight.abs())  # the features are not negative, so nothing speaks for "fake"
    assert not grad_cam(network, images, Recipe()).any()


def test_flip_explains_the_mean_logit() -> None:
    """With average pooling, evidence (CAM) plus bias adds up to the logit, also that of the mean of two passes."""
    network, _ = load_network(DEFAULT)
    network.requires_grad_(False)
    images = golden.crops()[:, :, :160, :160]
    parts = [
        (network.fc.weight[0, :, None, None] * network.encoder.forward_features(pixels)).sum(dim=1)
        for pixels in (images, images.flip(3))
    ]
    evidence = (parts[0] + parts[1].flip(2)) / 2
    logits = (network(images) + network(images.flip(3)))[:, 0] / 2
    torch.testing.assert_close(evidence.mean(dim=(1, 2)) + network.fc.bias, logits)
    expected = evidence.relu()
    assert (expected.amax(dim=(1, 2)) > 0).sum() >= 2
    expected /= expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    found = grad_cam(network, images, Recipe(flip=True))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        grad_cam(network, images.flip(3), Recipe(flip=True)), found.flip(2), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_all_networks(name: str, tmp_path: Path) -> None:
    network = golden.fill(build_network(name, "tf_efficientnet_lite0"))
    assert isinstance(network, DeepFakeClassifier)
    recipe = Recipe(network=name, encoder="tf_efficientnet_lite0", size=128)
    save_checkpoint(tmp_path / "network.pt", network.state_dict(), recipe)
    explainer = Explainer([tmp_path / "network.pt"])
    loaded, _ = explainer.networks[0]
    images = golden.crops()[:, :, :128, :128]
    features = features_of(network, images).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network.classify(features).sum(), features)
    expected = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu().detach()
    expected /= expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    found = grad_cam(loaded, images, Recipe())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert found.amax() == 1
    heat = explainer.heat(astronaut(), FACE)
    assert heat.dtype == np.float32
    assert heat.shape == astronaut()[14:246, 134:314].shape[:2]  # with a margin of one third
    assert np.isfinite(heat).all()


def test_nothing_speaks_for_fake() -> None:
    """Zeros, not NaN, if all evidence is negative."""
    network, _ = load_network(DEFAULT)
    network.requires_grad_(False)
    network.fc.weight.copy_(-network.fc.weight.abs())
    assert (network.encoder.forward_features(golden.crops()[:1]) >= 0).all()  # ReLU6
    assert not grad_cam(network, golden.crops()[:1], Recipe()).any()
    assert not brightness(SQUARE).heat(np.zeros((300, 300, 3), np.uint8), (100, 100, 200, 200)).any()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_constant_image(level: int) -> None:
    heat = Explainer([DEFAULT]).heat(np.full((300, 300, 3), level, np.uint8), (100, 80, 180, 200))
    assert np.isfinite(heat).all()
    assert heat.min() >= 0
    assert heat.max() in (0, 1)


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        (SQUARE, (200, 150, 300, 300)),  # enlarged
        (SQUARE, (20, 20, 420, 420)),  # reduced
        (MarginCrop(), (200, 150, 260, 300)),  # tall: black at the sides of the square
        (MarginCrop(), (100, 200, 400, 260)),  # wide: black above and below
        (SQUARE, (-30, -40, 60, 60)),  # cut off at the top left
        (MarginCrop(), (430, 330, 700, 520)),  # cut off at the bottom right
    ],
)
def test_heat_lies_where_the_evidence_is(crop: MarginCrop | SquareCrop, box: Sequence[float]) -> None:
    """In the coordinates of the frame, for every position of the evidence in the crop."""
    explainer, shape = brightness(crop), (480, 640)
    xmin, ymin, xmax, ymax = explainer.window(box)
    left, top, right, bottom = max(xmin, 0), max(ymin, 0), min(xmax, shape[1]), min(ymax, shape[0])
    cell = max(right - left, bottom - top) / 10  # the network has 10 cells
    for x in np.linspace(left + cell, right - cell, 4).astype(int):
        for y in np.linspace(top + cell, bottom - cell, 4).astype(int):
            frame = spot(*shape, x, y, round(cell / 2))
            heat = explainer.heat(frame, box)
            visible = cut(frame, (xmin, ymin, xmax, ymax))
            assert visible is not None
            assert heat.shape == visible.shape[:2]
            assert heat.max() == 1
            assert np.abs(center_of(heat) + np.array([left - x, top - y])).max() < 0.5 * cell


@pytest.mark.parametrize("crop", [SQUARE, MarginCrop()])
def test_flip_shows_evidence_of_the_mirror_image_where_it_lies_in_the_frame(crop: MarginCrop | SquareCrop) -> None:
    """A network that sees only the left half of its input sees the right half of a face in the mirror image."""
    explainer, box, (x, y) = Explainer([]), (200, 150, 280, 300), (270, 200)
    recipe = Recipe(size=160, mean=(0.0,) * 3, std=(1.0,) * 3, crop=crop)
    frame = spot(480, 640, x, y, 8)
    explainer.networks = [(LeftHalf(), recipe)]  # type: ignore[list-item]
    assert not explainer.heat(frame, box).any()
    explainer.networks = [(LeftHalf(), replace(recipe, flip=True))]  # type: ignore[list-item]
    left, top, *_ = explainer.window(box)
    assert np.abs(center_of(explainer.heat(frame, box)) - (x - left, y - top)).max() < 8


def test_evidence_in_a_corner_of_the_frame() -> None:
    """The first pixel of the heat is the frame's if the window begins outside of it."""
    heat = brightness(SQUARE).heat(spot(300, 300, 0, 0, 20), (-20, -20, 100, 100))
    assert heat.shape == (112, 112)
    assert heat[0, 0] == 1
    assert heat[:40, :40].sum() > 0.95 * heat.sum()


def test_box_outside_of_the_frame() -> None:
    assert brightness(SQUARE).heat(np.zeros((100, 100, 3), np.uint8), (300, 300, 400, 400)).size == 0


def test_networks_with_different_crops_have_equal_weight() -> None:
    """The window contains all crops, and where only one of two networks sees evidence, the heat is half of its."""
    small, large = SquareCrop(side=0.8, center=0.5), SquareCrop(side=2, center=0.7)
    box = (200, 200, 300, 300)
    explainer = brightness(small, large)
    assert explainer.window(box) == brightness(large).window(box) == (150, 170, 350, 370)
    # One spot that both networks see, and one of the same size that only the network with the large crop sees.
    frame = np.maximum(spot(480, 640, 250, 250, 30), spot(480, 640, 320, 340, 30))
    both = brightness(large).heat(frame, box)
    assert both[80, 100] == pytest.approx(1, abs=0.01)
    assert both[170, 170] == pytest.approx(1, abs=0.01)
    heat = explainer.heat(frame, box)
    assert heat[80, 100] == pytest.approx(1, abs=0.01)
    assert heat[170, 170] == pytest.approx(0.5, abs=0.02)


def test_heat_of_a_whole_crop() -> None:
    frame = spot(120, 90, 20, 100, 8)
    assert np.abs(center_of(brightness(SQUARE).heat_of_crop(frame)) - (20, 100)).max() < 4


def test_overlay() -> None:
    """Cold parts are gray; the hotter a part, the more it is colored, from dark to light."""
    explainer, crop = Explainer([]), np.full((2, 256, 3), (120, 80, 60), np.uint8)
    heat = np.stack([np.zeros(256), np.linspace(0, 1, 256)]).astype(np.float32)
    picture = explainer.overlay(crop, heat)
    assert picture.dtype == np.uint8
    assert picture.shape == crop.shape
    assert np.ptp(picture[0].astype(int), axis=1).max() == 0
    assert picture[1, 0].tolist() == picture[0, 0].tolist()
    lightness = cv2.cvtColor(picture[1:], cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)
    assert lightness[-1] > lightness[0] + 50
    assert (np.diff(lightness[128:]) >= 0).all()


def manipulate(image: np.ndarray, x: float, y: float, radius: float, random: np.random.Generator) -> np.ndarray:
    """Change a disc of an image: add noise."""
    inside = cv2.circle(np.zeros(image.shape[:2], np.uint8), (round(x), round(y)), round(radius), 1, -1)
    noise = random.normal(0, 30, image.shape)
    return np.clip(image + noise * inside[..., None], 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned in seconds to tell portraits with a noisy disc anywhere from those without."""
    torch.manual_seed(0)
    random, size = np.random.default_rng(0), 160
    network, recipe = load_network(DEFAULT)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    labels = (torch.arange(8) % 2).float()
    for _ in range(30):
        images = []
        for label in labels:
            face = cv2.resize(portrait(random)[0], (size, size))
            x, y = random.uniform(0.15, 0.85, 2) * size
            images.append(manipulate(face, x, y, random.uniform(0.1, 0.15) * size, random) if label else face)
        logits = network(recipe.normalize(torch.from_numpy(np.stack(images))))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("trained") / "noise.pt"
    recipe = Recipe(encoder=recipe.encoder, size=size, mean=recipe.mean, std=recipe.std, crop=SQUARE)
    save_checkpoint(path, network.state_dict(), recipe)
    return path


def manipulated_clip(path: Path, x: float, y: float, frames: int = 8) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Write a clip of a moving face whose point (x, y), relative to its box, is manipulated, and decode it.

    Yields each frame with the box and the disc, (7,): xmin, ymin, xmax, ymax, x, y, radius in pixels of the frame.
    """
    random, size = np.random.default_rng(1), (480, 360)
    places = corners(astronaut(), frames, *size, 0.9)
    left, top, right, bottom = FACE
    known = [
        np.array([left, top, right, bottom, left + x * (right - left), top + y * (bottom - top), 0]) * 0.9
        + (*place, *place, *place, 18)
        for place in places
    ]
    changed = []
    for image, (*_, disc_x, disc_y, radius) in zip(moving(astronaut(), frames, *size, 0.9), known, strict=True):
        changed.append(manipulate(image, disc_x, disc_y, radius, random))
    write_clip(path, changed)
    for frame in iter_frames(Clip(path), range(frames)):
        yield frame.image, known[frame.index]


def test_heat_finds_known_manipulations(trained: Path, tmp_path: Path) -> None:
    """Of the heat in a clip, more lies in the manipulated disc than of a centered Gaussian and of random discs."""
    explainer = Explainer([trained])
    shares = []
    for x, y in ((0.25, 0.3), (0.8, 0.85)):
        for image, (*box, disc_x, disc_y, radius) in manipulated_clip(tmp_path / "clip.mp4", x, y):
            heat = explainer.heat(image, box)
            xmin, ymin, _, _ = explainer.window(box)
            rows, columns = np.ogrid[: heat.shape[0], : heat.shape[1]]
            disc = np.hypot(columns + xmin - disc_x, rows + ymin - disc_y) <= radius
            side = len(heat)
            gaussian = np.exp(-((rows - side / 2) ** 2 + (columns - side / 2) ** 2) / 2 / (side / 4) ** 2)
            # A random disc of this size, inside the window, overlaps with the manipulated one by chance.
            random = np.random.default_rng(0).uniform(radius, side - radius, (200, 2))
            overlap = [disc[np.hypot(columns - a, rows - b) <= radius].mean() for a, b in random]
            shares.append([np.average(disc, weights=heat), np.average(disc, weights=gaussian), np.mean(overlap)])
    heat_share, gaussian_share, random_share = np.mean(shares, axis=0)
    assert heat_share > 1.5 * gaussian_share
    assert heat_share > 1.5 * random_share
