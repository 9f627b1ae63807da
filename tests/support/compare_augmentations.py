"""Compare augmentation and dropout with an independent implementation of their description, over many samples.

    python -m tests.support.compare_augmentations [--samples 1000]

Both run on the same image with different random numbers. Shares of samples are compared with their probabilities,
measured quantities with those of the other implementation (two-sample Kolmogorov-Smirnov statistic). The bounds follow
from the number of samples: 4 standard deviations of a share, and the 0.01% critical value of the statistic.
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image
from scipy import ndimage, stats
from skimage import color, draw
from skimage.data import astronaut

from common import cli
from training.datasets import face_dropout as dropout
from training.tools.config import AugmentationConfig
from training.transforms.albu import Augmentation

SIDE = 96
PORTRAIT = cv2.resize(astronaut()[20:212, 130:322], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
OFF = dict.fromkeys(("jpeg_p", "noise_p", "blur_p", "flip_p", "color_p", "gray_p", "affine_p"), 0.0)
PUBLISHED = AugmentationConfig()
# Standard deviations of a share, and factor of the Kolmogorov-Smirnov statistic at a level of 0.01%.
SHARE_SIGMAS, KS_FACTOR = 4, 2.23

Rng = np.random.Generator


class Row(NamedTuple):
    """A compared quantity.

    Attributes:
        name: what is compared.
        here: share or mean of this project's samples.
        reference: probability, or mean of the other implementation's samples.
        difference: absolute difference of the shares, or the Kolmogorov-Smirnov statistic.
        bound: largest difference that is due to chance.
    """

    name: str
    here: float
    reference: float
    difference: float
    bound: float

    @property
    def agrees(self) -> bool:
        return self.difference <= self.bound


def share(name: str, touched: list[bool], probability: float) -> Row:
    """Compare the share of samples with a property with its probability."""
    sigma = (probability * (1 - probability) / len(touched)) ** 0.5
    found = float(np.mean(touched))
    return Row(name, found, probability, abs(found - probability), SHARE_SIGMAS * sigma)


def distribution(name: str, here: list[float], reference: list[float]) -> Row:
    """Compare the distributions of a quantity."""
    statistic = float(stats.ks_2samp(here, reference).statistic)
    bound = KS_FACTOR * (1 / len(here) + 1 / len(reference)) ** 0.5
    return Row(name, float(np.mean(here)), float(np.mean(reference)), statistic, bound)


def augmented(samples: int, image: np.ndarray, **on: float) -> list[np.ndarray]:
    """Augment an image with the published strengths; only what is `on` has its probability."""
    augment = Augmentation(SIDE, AugmentationConfig(**{**OFF, **on}))
    return [augment(image, None, np.random.SeedSequence((7, number)))[0] for number in range(samples)]


def difference(image: np.ndarray, original: np.ndarray = PORTRAIT) -> float:
    """The root mean square difference between two images in gray levels."""
    return float(np.sqrt(np.mean((image.astype(float) - original) ** 2)))


def compare_jpeg(samples: int, rng: Rng) -> Iterator[Row]:
    found = [difference(image) for image in augmented(samples, PORTRAIT, jpeg_p=PUBLISHED.jpeg_p)]
    yield share("JPEG: compressed", [value > 0 for value in found], 0.5)
    # albumentations gives the encoder RGB as BGR.
    reference = []
    for quality in rng.integers(60, 101, samples):
        _, content = cv2.imencode(".jpg", PORTRAIT, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
        reference.append(difference(np.asarray(Image.open(io.BytesIO(content.tobytes())))[..., ::-1]))
    yield distribution("JPEG: error in gray levels", [value for value in found if value], reference)


def compare_noise(samples: int, rng: Rng) -> Iterator[Row]:
    gray = np.full((SIDE, SIDE, 3), 128, np.uint8)
    found = [float(image.var()) for image in augmented(samples, gray, noise_p=PUBLISHED.noise_p)]
    yield share("noise: added", [value > 0 for value in found], 0.1)
    found = [float(image.var()) for image in augmented(samples, gray, noise_p=1)]
    reference = [
        float((128 + rng.normal(0, variance**0.5, gray.shape)).astype(np.uint8).var())
        for variance in rng.uniform(10, 50, samples)
    ]
    yield distribution("noise: variance", found, reference)


def compare_blur(samples: int, _rng: Rng) -> Iterator[Row]:
    found = augmented(samples, PORTRAIT, blur_p=PUBLISHED.blur_p)
    yield share("blur: blurred", [difference(image) > 0 for image in found], 0.05)
    kernel = np.outer((1, 2, 1), (1, 2, 1)) / 16
    expected = np.dstack([ndimage.convolve(PORTRAIT[..., c].astype(float), kernel, mode="mirror") for c in range(3)])
    blurred = next(image for image in found if difference(image) > 0)
    error = float(np.abs(blurred - expected).max())
    yield Row("blur: largest error in gray levels", error, 0, error, 1)


def compare_flip_and_gray(samples: int, _rng: Rng) -> Iterator[Row]:
    found = augmented(samples, PORTRAIT, flip_p=PUBLISHED.flip_p)
    yield share("flip: mirrored", [np.array_equal(image, PORTRAIT[:, ::-1]) for image in found], 0.5)
    found = augmented(samples, PORTRAIT, gray_p=PUBLISHED.gray_p)
    yield share("gray: gray", [not np.ptp(image, axis=2).any() for image in found], 0.2)
    gray = next(image for image in found if not np.ptp(image, axis=2).any())
    error = float(np.abs(gray[..., 0] - PORTRAIT @ (0.299, 0.587, 0.114)).max())
    yield Row("gray: largest error in gray levels", error, 0, error, 1)


def compare_resize(samples: int, _rng: Rng) -> Iterator[Row]:
    small = cv2.resize(PORTRAIT, (60, 71))
    inner = (int(60 * (SIDE / 71)), SIDE)
    left = (SIDE - inner[0]) // 2
    kinds = {"cubic": cv2.INTER_CUBIC, "linear": cv2.INTER_LINEAR}
    expected = {name: cv2.resize(small, inner, interpolation=kind) for name, kind in kinds.items()}
    found = [image[:, left : left + inner[0]] for image in augmented(samples, small)]
    for name, probability in (("cubic", 1 / 3), ("linear", 2 / 3)):
        equal = [np.array_equal(image, expected[name]) for image in found]
        yield share(f"resize: enlarged by {name} interpolation", equal, probability)


def compare_color(samples: int, rng: Rng) -> Iterator[Row]:
    found = augmented(samples, PORTRAIT, color_p=PUBLISHED.color_p)
    yield share("color: changed", [difference(image) > 0 for image in found], 0.7)
    found = augmented(samples, PORTRAIT, color_p=1)
    reference = [_change_color(PORTRAIT, rng) for _ in range(samples)]
    for channel, name in enumerate(("red", "green", "blue")):
        yield distribution(
            f"color: mean {name}", *([im[..., channel].mean() for im in ims] for ims in (found, reference))
        )
    yield distribution("color: contrast", *([im.std() for im in ims] for ims in (found, reference)))
    yield distribution(
        "color: saturation", *([color.rgb2hsv(im)[..., 1].mean() for im in ims] for ims in (found, reference))
    )


def _change_color(image: np.ndarray, rng: Rng) -> np.ndarray:
    """One of brightness and contrast, FancyPCA, and hue, saturation and value, as in albumentations 1.0.0."""
    kind = rng.integers(3)
    if kind == 0:
        changed = image * (1 + rng.uniform(-0.2, 0.2)) + 255 * rng.uniform(-0.2, 0.2)
    elif kind == 1:
        pixels = image.reshape(-1, 3) / 255
        values, vectors = np.linalg.eigh(np.cov(pixels, rowvar=False))
        changed = image + 255 * (vectors[:, ::-1].T @ (rng.normal(0, 0.1) * values[::-1]))
    else:
        hsv = color.rgb2hsv(image)
        hue, saturation, value = rng.uniform(-1, 1, 3) * (20 / 180, 30 / 255, 20 / 255)
        hsv[..., 0] = (hsv[..., 0] + hue) % 1
        hsv[..., 1:] = np.clip(hsv[..., 1:] + (saturation, value), 0, 1)
        changed = 255 * color.hsv2rgb(hsv)
    return np.clip(changed, 0, 255).astype(np.uint8)


def compare_affine(samples: int, rng: Rng) -> Iterator[Row]:
    points = np.array([(48, 30), (30, 60), (66, 60)])
    yield share(
        "affine: moved", [difference(im) > 0 for im in augmented(samples, PORTRAIT, affine_p=PUBLISHED.affine_p)], 0.5
    )
    found = [_pose(image, points) for image in augmented(samples, _dots(points), affine_p=1)]
    reference = []
    for scale, angle, *shift in zip(
        rng.uniform(0.8, 1.2, samples),
        np.radians(rng.uniform(-10, 10, samples)),
        *rng.uniform(-0.1, 0.1, (2, samples)),
        strict=True,
    ):
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        moved = (points - SIDE / 2) @ turn.T + SIDE / 2 + SIDE * np.array(shift)
        reference.append(_pose(_dots(moved), points))
    for number, name in enumerate(("scale", "rotation in degrees", "shift to the right", "shift down")):
        yield distribution(f"affine: {name}", *([pose[number] for pose in poses] for poses in (found, reference)))


def _dots(points: np.ndarray) -> np.ndarray:
    """An image of a red, a green and a blue dot."""
    distances = np.hypot(*(np.indices((SIDE, SIDE))[::-1, ..., None] - points.T[:, None, None]))
    return np.clip(255 * (4 - distances), 0, 255).astype(np.uint8)


def _pose(image: np.ndarray, points: np.ndarray) -> tuple[float, float, float, float]:
    """Scale, rotation in degrees and shift (x, y) as fractions of the side, from where the dots are."""
    found = np.array([ndimage.center_of_mass(image[..., dot])[::-1] for dot in range(3)])
    before, after = (places - places.mean(axis=0) for places in (points, found))
    turn = complex(np.sum(after @ (1, 1j) * np.conj(before @ (1, 1j))) / np.sum(np.abs(before @ (1, 1j)) ** 2))
    offset = turn * complex(*(SIDE / 2 - points.mean(axis=0)))  # of the image's center from that of the dots
    center = found.mean(axis=0) + np.array([offset.real, offset.imag])
    return abs(turn), float(np.degrees(np.angle(turn))), *((center / SIDE) - 0.5)


def random_landmarks(rng: Rng) -> np.ndarray:
    """Landmarks of a face of random size, position and rotation in a crop of CROP pixels."""
    face = np.array([(-0.5, -0.4), (0.5, -0.4), (0, 0), (-0.4, 0.5), (0.4, 0.5)]) * rng.uniform(40, 90)
    angle = rng.uniform(-0.3, 0.3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.rint(face @ turn.T + rng.uniform(100, 140, 2)).astype(np.int16)


CROP = (240, 260)
PART_P = {"eyes": 0.35, "mouth": 0.175, "nose": 0.0875}
# What happens with landmarks, and without.
WITH = {**PART_P, "half of the face": 0.3 * 0.2, "half of the image": 0.3 * 0.8 * 0.1}
WITHOUT = {"half of the image": 0.8 * 0.1}


def compare_dropout(samples: int, rng: Rng) -> Iterator[Row]:
    """By label: reals, fakes with strong and weak masks, with and without landmarks."""
    masks = {"real": None, "fake": 255, "fake with a weak mask": 40}
    areas: dict[str, list[float]] = {}
    for (label, level), landmarks in itertools.product(masks.items(), (True, False)):
        mask = np.full(CROP, level or 0, np.uint8)
        kinds = []
        for _ in range(samples):
            points = random_landmarks(rng)
            region = dropout.face_dropout(CROP, points if landmarks else None, level is not None, lambda m=mask: m, rng)
            kinds.append(_kind(region, points))
            if region is not None:
                areas.setdefault(kinds[-1], []).append(region.mean())
        place = label if landmarks else f"{label}, no landmarks"
        for kind, probability in (WITH if landmarks else WITHOUT).items():
            yield share(f"{place}: {kind}", [found == kind for found in kinds], probability)
        nothing = 1 - sum((WITH if landmarks else WITHOUT).values())
        yield share(f"{place}: nothing", [found == "nothing" for found in kinds], nothing)
    for kind, found in areas.items():
        reference = [_area(kind, random_landmarks(rng), rng) for _ in range(samples)]
        yield distribution(f"blacked-out area: {kind}", found, reference)


def compare_block_dropout(samples: int, rng: Rng) -> Iterator[Row]:
    mask = np.full(CROP, 255, np.uint8)
    for fake, label, probability in ((False, "real", 0.6), (True, "fake", 0.8)):
        regions = [dropout.block_dropout(CROP, fake, lambda: mask, rng) for _ in range(samples)]
        yield share(f"block dropout, {label}: chosen", [region is not None for region in regions], probability)
        found = [float(region.mean()) for region in regions if region is not None]
        reference = []
        for length in rng.choice(CROP, samples):
            before = rng.integers(length // 2 - length // 5, length // 2 + length // 5 + 1) / length
            reference.append(rng.choice((before, 1 - before)))
        yield distribution(f"block dropout, {label}: area", found, reference)


def _kind(region: np.ndarray | None, landmarks: np.ndarray) -> str:
    """The kind of a region, by where it is."""
    if region is None:
        return "nothing"
    if region.mean() > 0.49:
        return "half of the image"
    eyes, mouth, nose = landmarks[:2], landmarks[3:], landmarks[2]
    middles = {"eyes": eyes.mean(axis=0), "mouth": mouth.mean(axis=0), "nose": (nose + eyes.mean(axis=0)) / 2}
    x, y = np.array(ndimage.center_of_mass(region))[::-1]
    unit = np.linalg.norm(eyes[1] - eyes[0])
    for name, middle in middles.items():
        if np.hypot(x - middle[0], y - middle[1]) < 0.03 * unit + 1 and region.sum() < 0.8 * unit**2:
            return name
    return "half of the face"


def _area(kind: str, landmarks: np.ndarray, rng: Rng) -> float:
    """The share of the crop that a region of this kind covers, computed with SciPy and scikit-image."""
    left, right, nose, *mouth = landmarks.astype(float)
    unit = np.linalg.norm(right - left)
    lines = {
        "eyes": (left, right, int(unit // 4)),
        "nose": (nose, (left + right) / 2, int(unit // 4)),
        "mouth": (*mouth, int(np.linalg.norm(mouth[1] - mouth[0]) // 3)),
    }
    if kind in lines:
        start, end, iterations = lines[kind]
        line = np.zeros(CROP, bool)
        line[draw.line(int(start[1]), int(start[0]), int(end[1]), int(end[0]))] = True
        thick = ndimage.binary_dilation(line)  # OpenCV's thickness of 2 covers 3 pixels
        return float(ndimage.binary_dilation(thick, iterations=iterations).mean())
    if kind == "half of the image":
        return 0.5
    # An ellipse from 0.35 of the distance between eyes and mouth above the eyes to 1.7 below, 2.2 eye distances wide.
    between, lips = (left + right) / 2, np.mean(mouth, axis=0)
    down = lips - between
    center = between + down * (1.7 - 0.35) / 2
    length = np.linalg.norm(down)
    rotation = np.arctan2(down[0], down[1])
    rows, columns = draw.ellipse(center[1], center[0], length * 2.05 / 2, unit * 1.1, CROP, rotation)
    half = [rows < rows.mean(), rows >= rows.mean(), columns < columns.mean(), columns >= columns.mean()][
        rng.integers(4)
    ]
    return float(half.sum() / np.prod(CROP))


COMPARISONS: tuple[Callable[[int, Rng], Iterator[Row]], ...] = (
    compare_jpeg,
    compare_noise,
    compare_blur,
    compare_flip_and_gray,
    compare_resize,
    compare_color,
    compare_affine,
    compare_dropout,
    compare_block_dropout,
)


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--samples", type=cli.positive, default=1000, help="number of samples of each quantity")
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the comparison. Return the exit status."""
    print(f"{'':52}{'here':>9}{'reference':>11}{'difference':>12}{'bound':>8}")
    status = cli.OK
    for compare in COMPARISONS:
        for row in compare(args.samples, np.random.default_rng(0)):
            mark = "" if row.agrees else "  differs"
            print(f"{row.name:52}{row.here:9.3f}{row.reference:11.3f}{row.difference:12.3f}{row.bound:8.3f}{mark}")
            status = status if row.agrees else cli.CLIPS_FAILED
    return status


if __name__ == "__main__":
    cli.main(main, get_args_parser())
