"""Measure how a classifier's metrics change when its crops are compressed, resized, darkened, rotated or shifted.

    python -m benchmarks.robustness --checkpoint FILE --data-dir DATA_ROOT [--fold 0] [--half report] [--json OUT]

Scores the crops that training.pipelines.evaluate scores, once per modification. A model that detects compression
artifacts instead of face swaps degrades most in the JPEG rows.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from common import cli
from common.files import atomic_write, make_folder
from training.datasets.crop_source import CropSource
from training.options import HALVES, add_data_arguments
from training.pipelines.scoring import EvaluationError, read_fold, score_fold
from training.tools.metrics import THRESHOLD, VideoScores, evaluate


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress an image as JPEG and decode it again."""
    content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)


def downscale(image: np.ndarray, side: int) -> np.ndarray:
    """Resize an image to side x side pixels and back."""
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the pixel values by a factor."""
    return np.rint(np.clip(image * factor, 0, 255)).astype(np.uint8)


def add_noise(image: np.ndarray, deviation: float) -> np.ndarray:
    """Add Gaussian noise, seeded by the image's content."""
    noise = np.random.default_rng(zlib.crc32(image.tobytes())).normal(0, deviation, image.shape)
    return np.rint(np.clip(image + noise, 0, 255)).astype(np.uint8)


def transform(image: np.ndarray, angle: float = 0, scale: float = 1, shift: float = 0) -> np.ndarray:
    """Rotate by degrees, scale, and shift to the right by a fraction of the width; border pixels are repeated."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    matrix[0, 2] += shift * width
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def gray(image: np.ndarray) -> np.ndarray:
    """Remove the color."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


# Modifications of RGB uint8 (height, width, 3) images.
MODIFICATIONS: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {
    "unchanged": None,
    "JPEG, quality 70": partial(jpeg, quality=70),
    "JPEG, quality 40": partial(jpeg, quality=40),
    "JPEG, quality 20": partial(jpeg, quality=20),
    "resized to 112 pixels": partial(downscale, side=112),
    "resized to 56 pixels": partial(downscale, side=56),
    "noise, std 10": partial(add_noise, deviation=10),
    "brightness x 0.4": partial(brightness, factor=0.4),
    "grayscale": gray,
    "rotated by 20 degrees": partial(transform, angle=20),
    "shifted by 10 %": partial(transform, shift=0.1),
    "enlarged by 10 %": partial(transform, scale=1.1),
    "reduced by 10 %": partial(transform, scale=0.9),
}


@dataclass(frozen=True)
class ModifiedSource(CropSource):
    """Crops to which a modification is applied when they are read."""

    modify: Callable[[np.ndarray], np.ndarray] | None = None

    def image(self, row: int) -> np.ndarray:
        """Return a modified crop, RGB uint8 (height, width, 3)."""
        image = super().image(row)
        return self.modify(image) if self.modify else image


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint to evaluate")
    parser.add_argument(
        "--half", choices=HALVES, default="report", help="half of the fold's originals, with their fakes"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the metrics to this file")
    add_data_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the metrics for each modification. Return the exit status."""
    if args.json:
        make_folder(args.json.parent)  # report an unusable folder before the work, not after
    results = measure(args)
    if args.json:
        atomic_write(args.json, json.dumps(results, indent=4) + "\n")
    return cli.OK


def measure(args: argparse.Namespace) -> dict[str, dict[str, float | int | None]]:
    """Return the metrics for each modification, with the rates of true and false positives. Print each as it is known.

    Raises UserError.
    """
    fold = read_fold(args)
    source, results = fold.source, dict[str, dict[str, float | int | None]]()
    print(f"{'':24}{'AUC':>7}{'log loss':>10}{'true positives':>16}{'false positives':>17}")
    for name, modify in MODIFICATIONS.items():
        modified = fold._replace(source=ModifiedSource(source.root, source.crops_dir, source.crops, modify=modify))
        videos = VideoScores.from_crops(source.crops, *score_fold(args, modified))
        metrics, positive = evaluate(videos.scores, videos.fake), videos.scores > THRESHOLD
        if metrics["auc"] is None:
            raise EvaluationError(f"{args.data_dir}: fold {args.fold} has only one class. Choose another --fold")
        rates = {
            "true_positives": float(positive[videos.fake].mean()),
            "false_positives": float(positive[~videos.fake].mean()),
        }
        results[name] = metrics | rates
        print(
            f"{name:24}{metrics['auc']:7.3f}{metrics['log_loss']:10.3f}"
            f"{rates['true_positives']:16.1%}{rates['false_positives']:17.1%}",
            flush=True,
        )
    return results


if __name__ == "__main__":
    cli.main(main, get_args_parser())
