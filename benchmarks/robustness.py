"""How a classifier's figures change with its crops: compressed, small, dark, turned, cut otherwise.

    python -m benchmarks.robustness --checkpoint FILE --data-dir DATA_ROOT [--fold 0] [--half report]

Scores the same crops of a fold as training.pipelines.evaluate, each time changed in another way. What a model has
learned of compression alone would show in the first lines.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from common import cli
from training.datasets.classifier_dataset import Source
from training.datasets.folds import HALVES
from training.pipelines.scoring import EvaluationError, add_data_arguments, read_fold, score_fold
from training.tools.metrics import THRESHOLD, VideoScores, evaluate


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def brighter(image: np.ndarray, factor: float) -> np.ndarray:
    return np.rint(np.clip(image * factor, 0, 255)).astype(np.uint8)


def noisy(image: np.ndarray, deviation: float) -> np.ndarray:
    """Other noise for each image, the same each time."""
    noise = np.random.default_rng(zlib.crc32(image.tobytes())).normal(0, deviation, image.shape)
    return np.rint(np.clip(image + noise, 0, 255)).astype(np.uint8)


def placed(image: np.ndarray, angle: float = 0, scale: float = 1, shift: float = 0) -> np.ndarray:
    """Turned by degrees, enlarged, moved to the right by a share of the width; the border is repeated."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    matrix[0, 2] += shift * width
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def gray(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {
    "as they are": None,
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


@dataclass(frozen=True)
class Changed(Source):
    """Crops as they come out of a change, RGB uint8 (height, width, 3) to the same."""

    change: Callable[[np.ndarray], np.ndarray] | None

    def image(self, row: int) -> np.ndarray:
        image = super().image(row)
        return self.change(image) if self.change else image


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="network to score crops with")
    parser.add_argument("--half", choices=HALVES, default="report", help="half of the originals, and their fakes")
    add_data_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    fold = read_fold(args)
    source = fold.source
    print(f"{'':24}{'AUC':>7}{'log loss':>10}{'fakes found':>13}{'reals called fake':>19}")
    for name, change in CHANGES.items():
        changed = fold._replace(source=Changed(source.root, source.crops_dir, source.crops, change))
        videos = VideoScores.from_crops(source.crops, *score_fold(args, changed))
        figures, called = evaluate(videos.scores, videos.fake), videos.scores > THRESHOLD
        if figures["auc"] is None:
            raise EvaluationError(f"{args.data_dir}: crops of both classes are needed")
        print(
            f"{name:24}{figures['auc']:7.3f}{figures['log_loss']:10.3f}"
            f"{called[videos.fake].mean():13.1%}{called[~videos.fake].mean():19.1%}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    cli.main(main, get_args_parser())
