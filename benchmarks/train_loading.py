"""How much faster are training samples made than plainly, with the same distribution?

    python -m benchmarks.train_loading --data-dir DATA_ROOT [--config configs/b7.json] [--fold 0] [--batches N]

Plainly means as the published code makes them: the mask is read for every fake, drop-outs draw and dilate with SciPy
and scikit-image, noise and principal colors are computed on the whole image in floats, and the image leaves
normalized, in floats. Both go through the same DataLoader with one worker process, in turn, over the same crops.
"""

from __future__ import annotations

import argparse
import os
import random
import time
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

from training.datasets.classifier_dataset import ClassifierDataset, Source
from training.datasets.face_dropout import image_halves, outline
from training.datasets.folds import Draw, read_folds, training_rows
from training.pipelines import build
from training.tools.config import Config, read_config
from training.tools.distributed import Distributed
from training.transforms import albu


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--crops-dir", type=Path, default=Path("crops"))
    parser.add_argument("--folds-csv", type=Path)
    parser.add_argument("--config", type=Path, default=Path("configs/b7.json"))
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--repeat", type=int, default=2)
    return parser


def main(args: argparse.Namespace) -> None:
    config = read_config(args.config)
    crops = read_folds(args.folds_csv or args.data_dir / "folds.csv")
    rows = training_rows(crops, args.fold)
    source = Source(args.data_dir, args.crops_dir, crops)
    size = config.optimizer.batch_size
    order = np.random.default_rng(0).permutation(np.resize(rows, args.batches * size))
    batches = [
        [Draw(int(row), 0, first + place) for place, row in enumerate(order[first : first + size])]
        for first in range(0, len(order), size)
    ]
    augment = albu.Augmentation(config.size, config.augmentation)
    ours = build.build_loader(
        ClassifierDataset(source, rows, augment, 0), batches, 1, Distributed(0, 1, torch.device("cpu"))
    )
    plain = DataLoader(PlainDataset(source, config), batch_sampler=batches, num_workers=1, worker_init_fn=one_thread)
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    levels: dict[str, list[np.ndarray]] = {"plain": [], "ours": []}
    recipe = config.recipe(config.crop_spec())
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    for _ in range(args.repeat):
        for name, loader in (("plain", plain), ("ours", ours)):
            iterator = iter(loader)
            first = next(iterator)  # the worker has started
            started = time.perf_counter()
            found = [first, *iterator]
            seconds[name].append(time.perf_counter() - started)
            images = [
                batch[0] * std + mean if name == "plain" else batch.images.permute(0, 3, 1, 2) / 255 for batch in found
            ]
            levels[name] += [255 * image.mean(dim=(2, 3)).numpy() for image in images]
    count = (args.batches - 1) * size
    print(f"{'':8}{'images/s':>10}   gray levels of R, G, B: mean of the images' means, and their deviation")
    for name, times in seconds.items():
        means = np.concatenate(levels[name])
        print(f"{name:8}{count / min(times):10.1f}   {means.mean(axis=0).round(1)} {means.std(axis=0).round(1)}")
    print(f"ratio {min(seconds['plain']) / min(seconds['ours']):.2f}")


def one_thread(_: int) -> None:
    cv2.setNumThreads(1)


class PlainDataset(Dataset):
    """One sample after the other, nothing left out that will not be needed, nothing that is not asked for."""

    def __init__(self, source: Source, config: Config):
        self.source = source
        colors = [
            A.RandomBrightnessContrast((-0.2, 0.2), (-0.2, 0.2), p=1),
            PlainPCA(p=1),
            albu.HueSaturationValue(p=1),
        ]
        self.transforms = A.Compose(
            [
                A.ImageCompression(quality_range=(60, 100), p=0.5),
                PlainNoise(p=0.1),
                A.GaussianBlur(blur_limit=(3, 3), sigma_limit=(albu.BLUR_SIGMA, albu.BLUR_SIGMA), p=0.05),
                A.HorizontalFlip(p=0.5),
                A.OneOf([albu.IsotropicResize(config.size, *filters) for filters in albu.RESIZES], p=1),
                A.PadIfNeeded(config.size, config.size, border_mode=cv2.BORDER_CONSTANT, fill=0, p=1),
                A.OneOf(colors, p=0.7),
                A.ToGray(p=0.2),
                A.Affine(scale=(0.8, 1.2), translate_percent=(-0.1, 0.1), rotate=(-10, 10), keep_ratio=True, p=0.5),
            ]
        )
        self.mean, self.std = np.array(config.normalize.mean), np.array(config.normalize.std)

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, np.ndarray, float]:
        fake = bool(self.source.crops.fake[draw.row])
        image = self.source.image(draw.row)
        shape = image.shape[:2]
        mask = self.source.mask(draw.row, shape)
        mask = np.zeros(shape, np.uint8) if mask is None else mask
        landmarks = self.source.landmarks(draw.row, shape)
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
                drawn = np.zeros(image.shape[:2], np.uint8)
                cv2.line(drawn, [int(x) for x in start], [int(x) for x in end], 1, 2)
                if dilation >= 1:
                    drawn = binary_dilation(drawn, iterations=int(dilation))
                image = image.copy()
                image[drawn > 0] = 0
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


class PlainNoise(A.ImageOnlyTransform):
    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:  # noqa: ARG002
        noise = np.random.RandomState(random.randint(0, 2**32 - 1)).normal(0, random.uniform(10, 50) ** 0.5, img.shape)
        return np.clip(img.astype(np.float32) + noise, 0, 255).astype(np.uint8)


class PlainPCA(A.ImageOnlyTransform):
    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:  # noqa: ARG002
        pixels = img.reshape(-1, 3) / 255.0
        values, vectors = np.linalg.eigh(np.cov(pixels - pixels.mean(axis=0), rowvar=False))
        shift = vectors[:, ::-1].T @ (random.gauss(0, 0.1) * values[::-1])
        return np.clip(img.astype(float) + shift * 255, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main(get_args_parser().parse_args())
