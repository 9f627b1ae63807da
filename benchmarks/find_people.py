"""Find out who is seen in the real crops of a fold: cluster face embeddings into people.

    pip install dlib-bin face_recognition_models
    python -m benchmarks.find_people --data-dir DATA_ROOT --fold 0 --output people.csv

writes a CSV file with the columns original and person, for --people of evaluate.py, calibrate.py and others. The
embeddings are those of dlib's ResNet, of the first validation crop of each video. Clusters are joined by the mean
distance of their members (average linkage) up to --distance. Look at the clusters before you rely on them: embeddings
are less reliable for dark faces, profiles and some groups of people.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from common import cli
from common.errors import UserError
from common.files import atomic_write
from common.text import plural
from preprocessing.layout import FOLDS_CSV
from training.datasets.crop_source import CropSource
from training.datasets.folds import read_folds, validation_rows
from training.options import add_crops_arguments

# dlib recommends 0.6 as the limit for two crops of one person; crops of DFDC's tight squares need a lower one.
DISTANCE = 0.5
# Tight squares are continued on each side by this share, because dlib aligns faces with their surroundings.
BORDER = 0.18


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add_crops_arguments(parser)
    add = parser.add_argument
    add("--fold", type=int, default=0, help="fold whose people are found")
    add("--distance", type=float, default=DISTANCE, help="largest mean distance between two clusters of one person")
    add("--output", type=Path, required=True, metavar="CSV", help="file to write")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the list of people. Return the exit status."""
    crops = read_folds(args.folds_csv or args.data_dir / FOLDS_CSV)
    rows = validation_rows(crops, args.fold)
    reals = rows[~crops.fake[rows]]
    reals = reals[np.unique(crops.video[reals], return_index=True)[1]]
    source, embed = CropSource(args.data_dir, args.crops_dir, crops), Embedder()
    embeddings = np.array([embed(source.image(int(row))) for row in reals])
    people = cluster(embeddings, args.distance)
    names = [crops.videos[crops.video[row]] for row in reals]
    lines = [f"{name},p{person:03}" for name, person in sorted(zip(names, people, strict=True))]
    atomic_write(args.output, "\n".join(["original,person", *lines]) + "\n")
    print(f"{args.output}: {plural(len(set(people)), 'cluster')} in {plural(len(names), 'video')}")
    return cli.OK


class Embedder:
    """Map a tight crop of a face to dlib's embedding (128,). Raises UserError if dlib is not installed."""

    def __init__(self) -> None:
        try:
            self.dlib: Any = importlib.import_module("dlib")
            models: Any = importlib.import_module("face_recognition_models")
        except ImportError as error:
            raise UserError(f"{error.name}: not installed. Run pip install dlib-bin face_recognition_models") from None
        self.landmarks = self.dlib.shape_predictor(models.pose_predictor_five_point_model_location())
        self.network = self.dlib.face_recognition_model_v1(models.face_recognition_model_location())

    def __call__(self, crop: np.ndarray) -> np.ndarray:
        height, width = crop.shape[:2]
        y, x = round(height * BORDER), round(width * BORDER)
        image = cv2.copyMakeBorder(crop, y, y, x, x, cv2.BORDER_REPLICATE)
        points = self.landmarks(image, self.dlib.rectangle(x, y, x + width, y + height))
        return np.array(self.network.compute_face_descriptor(image, points, 1))


def cluster(embeddings: np.ndarray, distance: float) -> list[int]:
    """Return the person of each embedding (n, 128): 0 is the one with the most."""
    labels = fcluster(linkage(embeddings, "average"), distance, "distance")
    found, counts = np.unique(labels, return_counts=True)
    rank = {label: number for number, label in enumerate(found[np.argsort(-counts, kind="stable")])}
    return [rank[label] for label in labels]


if __name__ == "__main__":
    cli.main(main, get_args_parser())
