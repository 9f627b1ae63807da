"""Find out who is seen in the real crops: cluster face embeddings into people.

    pip install dlib-bin face_recognition_models 'setuptools<81'
    python -m benchmarks.find_people --data-dir DATA_ROOT --folds 0 --output people.csv

writes a CSV file with the columns original and person, for --people of evaluate.py, calibrate.py and others. With
--split, the crops of these folds are also listed in new folds, with each person in only one of them. The embeddings are
those of dlib's ResNet, of the first validation crop of each video. Clusters are joined by the mean distance of their
members (average linkage) up to --distance. Look at the clusters before you rely on them: embeddings are less reliable
for dark faces, profiles and some groups of people.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage
from tqdm import tqdm

from common import cli
from common.errors import UserError
from common.files import atomic_write
from common.text import plural
from preprocessing.layout import FOLDS_CSV
from training.datasets.crop_source import CropSource
from training.datasets.folds import read_folds, validation_rows
from training.options import add_crops_arguments

# face_recognition_models needs pkg_resources, which setuptools has up to version 80.
PACKAGES = "dlib-bin face_recognition_models 'setuptools<81'"
# dlib recommends 0.6 as the limit for two crops of one person; crops of DFDC's tight squares need a lower one.
DISTANCE = 0.5
# Tight squares are continued on each side by this share, because dlib aligns faces with their surroundings.
BORDER = 0.18


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add_crops_arguments(parser)
    add = parser.add_argument
    add("--folds", type=int, nargs="+", default=[0], metavar="N", help="folds whose people are found")
    add("--distance", type=float, default=DISTANCE, help="largest mean distance between two clusters of one person")
    add("--output", type=Path, required=True, metavar="CSV", help="file to write")
    add("--split", type=Path, metavar="CSV", help="also list the crops in new folds, with each person in only one")
    add("--parts", type=cli.positive, default=5, metavar="N", help="number of new folds")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the list of people. Return the exit status."""
    folds_csv = args.folds_csv or args.data_dir / FOLDS_CSV
    crops = read_folds(folds_csv)
    rows = np.concatenate([validation_rows(crops, fold) for fold in args.folds])
    reals = rows[~crops.fake[rows]]
    reals = reals[np.unique(crops.video[reals], return_index=True)[1]]
    source, embed = CropSource(args.data_dir, args.crops_dir, crops), Embedder()
    embeddings = np.array([embed(source.image(int(row))) for row in tqdm(reals)])
    names = [crops.videos[crops.video[row]] for row in reals]
    people = dict(sorted(zip(names, cluster(embeddings, args.distance), strict=True)))
    lines = [f"{name},p{person:03}" for name, person in people.items()]
    atomic_write(args.output, "\n".join(["original,person", *lines]) + "\n")
    print(f"{args.output}: {plural(len(set(people.values())), 'cluster')} in {plural(len(people), 'video')}")
    if args.split:
        table = pd.read_csv(folds_csv, dtype=str)
        table = table[table["fold"].astype(int).isin(args.folds)]
        table["fold"] = split(table["original"], people, args.parts)
        atomic_write(args.split, table.to_csv(index=False))
    return cli.OK


class Embedder:
    """Map a tight crop of a face to dlib's embedding (128,). Raises UserError if dlib is not installed."""

    def __init__(self) -> None:
        try:
            self.dlib: Any = importlib.import_module("dlib")
            models: Any = importlib.import_module("face_recognition_models")
        except ImportError as error:
            raise UserError(f"{error.name}: not installed. Run pip install {PACKAGES}") from None
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


def split(originals: pd.Series, people: Mapping[str, int], folds: int) -> pd.Series:
    """Return the fold (0 to `folds` - 1) of each crop, or -1 (not used) if its person is unknown.

    The person with the most crops comes first; each goes to the fold with the fewest crops so far.

    Args:
        originals: original of each crop.
        people: person in each original.
        folds: number of folds.
    """
    persons = originals.map(people)
    fold_of, sizes = {}, np.zeros(folds, int)
    for person, crops in persons.value_counts().sort_index().sort_values(ascending=False, kind="stable").items():
        fold_of[person] = int(sizes.argmin())
        sizes[fold_of[person]] += crops
    return persons.map(fold_of).fillna(-1).astype(int)


if __name__ == "__main__":
    cli.main(main, get_args_parser())
