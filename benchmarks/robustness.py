"""How a classifier's figures change with its crops: compressed, small, dark, turned, cut otherwise.

    python -m benchmarks.robustness --checkpoint FILE --data-dir DATA_ROOT [--fold 0] [--half report]

Scores the same crops of a fold as training.pipelines.evaluate, each time changed in another way. What a model has
learned of compression alone would show in the first lines.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from preprocessing.crops import center_in_square, resize_longer_side
from preprocessing.device import choose_device
from training.datasets.folds import HALVES, validation_rows
from training.pipelines import build
from training.pipelines.engine import forward
from training.tools.checkpoint import load_network
from training.tools.metrics import VideoScores, evaluate


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def brighter(image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(image * factor, 0, 255).astype(np.uint8)


def noisy(image: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, deviation, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def placed(image: np.ndarray, angle: float = 0, scale: float = 1, shift: float = 0) -> np.ndarray:
    """Turned by degrees, enlarged, moved to the right by a share of the width; the border is repeated."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    matrix[0, 2] += shift * width
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def gray(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda image: image,
    "JPEG, quality 70": partial(jpeg, quality=70),
    "JPEG, quality 40": partial(jpeg, quality=40),
    "JPEG, quality 20": partial(jpeg, quality=20),
    "112 pixels": partial(shrunk, side=112),
    "56 pixels": partial(shrunk, side=56),
    "noise, deviation 10": partial(noisy, deviation=10),
    "0.4 of the light": partial(brighter, factor=0.4),
    "gray": gray,
    "turned by 20 degrees": partial(placed, angle=20),
    "moved by a tenth": partial(placed, shift=0.1),
    "a tenth larger": partial(placed, scale=1.1),
    "a tenth smaller": partial(placed, scale=0.9),
}


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--crops-dir", type=Path, default=Path("crops"))
    parser.add_argument("--folds-csv", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--half", choices=HALVES, default="report")
    parser.add_argument("--device", default="auto")
    return parser


@torch.inference_mode()
def main(args: argparse.Namespace) -> None:
    device = choose_device(args.device)
    network, recipe = load_network(args.checkpoint)
    network.to(device)
    source = build.read_source(args)
    rows = validation_rows(source.crops, args.fold, half=args.half)
    images = [source.image(row) for row in rows]
    print(f"{'':24}{'AUC':>7}{'log loss':>10}{'fakes found':>13}{'reals called fake':>19}")
    for name, change in CHANGES.items():
        scores = []
        for first in range(0, len(images), 32):
            squares = [
                center_in_square(resize_longer_side(change(image), recipe.size), recipe.size)
                for image in images[first : first + 32]
            ]
            logits, _ = forward(network, recipe, torch.from_numpy(np.stack(squares)).to(device))
            scores.append(logits.cpu().double().sigmoid().numpy())
        videos = VideoScores.of_crops(source.crops, rows, np.concatenate(scores))
        figures = evaluate(videos.scores, videos.fake)
        called = videos.scores > 0.5
        print(
            f"{name:24}{figures['auc']:7.3f}{figures['log_loss']:10.3f}"
            f"{called[videos.fake].mean():13.1%}{called[~videos.fake].mean():19.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main(get_args_parser().parse_args())
