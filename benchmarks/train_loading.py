"""Compare the speed and samples of the training data loader with those of a baseline like the published code.

    python -m benchmarks.train_loading --data-dir DATA_ROOT [--config configs/b7.json] [--batches N] [--json FILE]

The baseline reads the mask of every fake, computes face dropout with SciPy and scikit-image, computes noise and
principal colors in floating point on the whole image, and returns normalized float images. This project decodes each
crop ("ours") or reads its pixels from a cache ("cached"), as training does from the second epoch on with --cache-dir.
All use a DataLoader with one worker process and the same crops, in turn. The mean gray levels show whether the baseline
makes similar samples; those of this project must be equal with and without the cache.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A
import cv2
import numpy as np
import torch
from scipy.ndimage import binary_dilation
from skimage.measure import centroid
from torch.utils.data import DataLoader, Dataset

from benchmarks import results
from common import cli
from preprocessing.layout import CROPS, FOLDS_CSV
from training.datasets.classifier_dataset import ClassifierDataset
from training.datasets.crop_cache import CropCache
from training.datasets.crop_source import CropSource
from training.datasets.face_dropout import image_halves, outline
from training.datasets.folds import SampleIndex, read_folds, training_rows
from training.pipelines import build
from training.tools.config import Config, read_config
from training.tools.distributed import Distributed
from training.transforms import albu


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--data-dir", type=Path, required=True, metavar="DATA_ROOT", help="folder of the dataset")
    add("--crops-dir", type=Path, default=Path(CROPS), metavar="DIR", help="folder of the crops within DATA_ROOT")
    add("--folds-csv", type=Path, metavar="CSV", help=f"list of the crops (default: {FOLDS_CSV} in DATA_ROOT)")
    add("--config", type=Path, default=Path("configs/b7.json"), help="configuration file")
    add("--fold", type=int, default=0, help="validation fold; samples are made from the other folds")
    add("--batches", type=cli.positive, default=30, help="number of batches per measurement")
    add("--repeat", type=cli.positive, default=2, help="number of measurements; the fastest of each side counts")
    results.add_json_option(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure both loaders and print images per second, gray levels and the ratio. Return the exit status."""
    config = read_config(args.config)
    with tempfile.TemporaryDirectory() as folder:
        loaders = build_loaders(args, config, Path(folder))
        equal = all(map(torch.equal, *([batch.images for batch in loaders[name]] for name in ("ours", "cached"))))
        seconds: dict[str, list[float]] = {name: [] for name in loaders}
        levels: dict[str, list[np.ndarray]] = {name: [] for name in loaders}
        for _ in range(args.repeat):
            for name, loader in loaders.items():
                iterator = iter(loader)
                first = next(iterator)  # starts the worker process, which is not measured
                start = time.perf_counter()
                batches = [first, *iterator]
                seconds[name].append(time.perf_counter() - start)
                levels[name] += [gray_levels(batch, config) for batch in batches]
    count = (args.batches - 1) * config.optimizer.batch_size
    speeds = {name: count / min(times) for name, times in seconds.items()}
    plain = speeds["baseline"]
    print(f"{'':10}{'images/s':>10}{'ratio':>7}   mean and standard deviation of the images' gray levels (R, G, B)")
    gray = {}
    for name, speed in speeds.items():
        means = np.concatenate(levels[name]).astype(float)
        mean, std = (values.round(1).tolist() for values in (means.mean(axis=0), means.std(axis=0)))
        gray[name] = {"mean": mean, "std": std}
        print(f"{name:10}{speed:10.1f}{speed / plain:7.2f}   {mean} {std}")
    print(f"images with and without the cache: {'equal' if equal else 'different'}")
    stages = {
        label: {
            "plain_images_per_s": round(plain, 1),
            "images_per_s": round(speeds[name], 1),
            "ratio": round(speeds[name] / plain, 3),
        }
        for label, name in (("crops decoded each time", "ours"), ("decoded crops from the cache", "cached"))
    }
    work = f"{args.batches * config.optimizer.batch_size} samples of {config.size} pixels, one worker process"
    ratio = {"ratio": round(speeds["cached"] / plain, 3), "outputs_equal": equal}
    results.write_json(args.json, work, {**ratio, "stages": stages, "gray_levels": gray})
    return cli.OK if equal else cli.CLIPS_FAILED


def build_loaders(args: argparse.Namespace, config: Config, folder: Path) -> dict[str, DataLoader]:
    """Build the loaders for the same crops in the same order, with a cache in a folder."""
    crops = read_folds(args.folds_csv or args.data_dir / FOLDS_CSV)
    rows = training_rows(crops, args.fold)
    source = CropSource(args.data_dir, args.crops_dir, crops)
    size = config.optimizer.batch_size
    order = np.random.default_rng(0).permutation(np.resize(rows, args.batches * size))
    batches = [
        [SampleIndex(int(row), 0, first + place) for place, row in enumerate(order[first : first + size])]
        for first in range(0, len(order), size)
    ]
    cache = CropCache.open(folder, args.data_dir / args.crops_dir, crops, None)
    one = Distributed(0, 1, torch.device("cpu"))
    ours, cached = (
        ClassifierDataset(source, rows, albu.Augmentation(config.size, config.augmentation), 0)
        for source in (source, replace(source, cache=cache))
    )
    return {
        "baseline": DataLoader(
            BaselineDataset(source, config), batch_sampler=batches, num_workers=1, worker_init_fn=use_one_thread
        ),
        "ours": build.build_loader(ours, batches, 1, one),
        "cached": build.build_loader(cached, batches, 1, one),
    }


def gray_levels(batch: Any, config: Config) -> np.ndarray:
    """Return the mean R, G and B of each image in a batch of either side, (n, 3), 0 to 255."""
    if isinstance(batch, list):  # the baseline's: normalized images, masks, labels
        recipe = config.recipe(config.crop_spec())
        mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
        images = batch[0] * std + mean
    else:
        images = batch.images.permute(0, 3, 1, 2) / 255
    return 255 * images.mean(dim=(2, 3)).numpy()


def use_one_thread(_: int) -> None:
    """Limit OpenCV to one thread in a worker process."""
    cv2.setNumThreads(1)


class BaselineDataset(Dataset):
    """Training samples made as in the published code."""

    def __init__(self, source: CropSource, config: Config):
        self.source = source
        colors = [
            A.RandomBrightnessContrast((-0.2, 0.2), (-0.2, 0.2), p=1),
            BaselinePCA(p=1),
            albu.HueSaturationValue(p=1),
        ]
        self.transforms = A.Compose(
            [
                A.ImageCompression(quality_range=(60, 100), p=0.5),
                BaselineNoise(p=0.1),
                A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(albu.BLUR_SIGMA, albu.BLUR_SIGMA), p=0.05),
                A.HorizontalFlip(p=0.5),
                A.OneOf([albu.IsotropicResize(config.size, *filters) for filters in albu.INTERPOLATIONS], p=1),
                A.PadIfNeeded(config.size, config.size, border_mode=cv2.BORDER_CONSTANT, fill=0, p=1),
                A.OneOf(colors, p=0.7),
                A.ToGray(p=0.2),
                A.Affine(scale=(0.8, 1.2), translate_percent=(-0.1, 0.1), rotate=(-10, 10), keep_ratio=True, p=0.5),
            ]
        )
        self.mean, self.std = np.array(config.normalize.mean), np.array(config.normalize.std)

    def __getitem__(self, index: SampleIndex) -> tuple[torch.Tensor, np.ndarray, float]:
        fake = bool(self.source.crops.fake[index.row])
        image = self.source.image(index.row)
        shape = image.shape[:2]
        mask = self.source.mask(index.row, shape)
        mask = np.zeros(shape, np.uint8) if mask is None else mask
        landmarks = self.source.landmarks(index.row, shape)
        if landmarks is not None and random.random() < 0.7:
            image = self._without_landmark(image, landmarks.astype(float))
        elif random.random() < 0.2:
            if landmarks is not None:
                image = self._without_half_of_face(image, landmarks)
        elif random.random() < 0.1:
            halves = [np.array(half) for half in image_halves(shape)]
            for _ in range(5):
                half = random.choice(halves)
                if not fake or np.count_nonzero((mask > 0.4 * 255) & ~half) > 20:
                    image = image * ~half[..., None]
                    break
        data = self.transforms(image=image, mask=mask)
        pixels = (data["image"].astype(np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)), data["mask"], float(fake)

    def _without_landmark(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        eyes, mouth = np.linalg.norm(points[0] - points[1]), np.linalg.norm(points[3] - points[4])
        for start, end, dilation in (
            (points[0], points[1], eyes / 4),
            (points[3], points[4], mouth / 3),
            (points[2], points[:2].mean(axis=0), eyes / 4),
        ):
            if random.random() < 0.5:
                region = np.zeros(image.shape[:2], np.uint8)
                cv2.line(region, [int(x) for x in start], [int(x) for x in end], 1, 2)
                if dilation >= 1:
                    region = binary_dilation(region, iterations=int(dilation))
                image = image.copy()
                image[region > 0] = 0
                break
        return image

    def _without_half_of_face(self, image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        face = outline(image.shape[:2], landmarks).astype(np.uint8)
        if not face.any():
            return image
        y, x = (int(place) for place in centroid(face))
        part = random.choice((np.s_[:y], np.s_[y:], np.s_[:, :x], np.s_[:, x:]))
        removed = np.zeros_like(face)
        removed[part] = face[part]
        image = image.copy()
        image[removed > 0] = 0
        return image


class BaselineNoise(A.ImageOnlyTransform):
    """Gaussian noise sampled for every pixel in double precision."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:  # noqa: ARG002
        noise = np.random.RandomState(random.randint(0, 2**32 - 1)).normal(0, random.uniform(10, 50) ** 0.5, img.shape)
        return np.clip(img.astype(np.float32) + noise, 0, 255).astype(np.uint8)


class BaselinePCA(A.ImageOnlyTransform):
    """Color shift along the principal components of all pixels."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:  # noqa: ARG002
        pixels = img.reshape(-1, 3) / 255.0
        values, vectors = np.linalg.eigh(np.cov(pixels - pixels.mean(axis=0), rowvar=False))
        shift = vectors[:, ::-1].T @ (random.gauss(0, 0.1) * values[::-1])
        return np.clip(img.astype(float) + shift * 255, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    cli.main(main, get_args_parser())
