"""Make a test set of classical face swaps from the real crops of some folds.

    python -m training.pipelines.face_swaps --data-dir DATA_ROOT --folds 0 [--crops-dir DIR] [--output-dir swaps]

writes DATA_ROOT/swaps/<video>/ with the validation crops of the real videos, DATA_ROOT/swaps/<video>_swap/ with the
same crops showing another person's face, and DATA_ROOT/swaps.csv, which lists both like folds.csv. They show whether a
network recognizes fakes of a kind that it has not been trained on:

    python -m training.pipelines.evaluate --checkpoint FILE --data-dir DATA_ROOT --crops-dir swaps --folds-csv swaps.csv

The inserted face is the one, out of some random ones of the same fold, whose landmarks and brightness are most similar.
Half of the faces are inserted by blending colors, the others by blending gradients. Crops need landmarks.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from common import cli
from common.errors import UserError
from common.files import atomic_write, make_folder
from common.text import plural
from preprocessing.images import encode_image
from preprocessing.layout import FOLDS_COLUMNS, FOLDS_CSV
from training import options

if TYPE_CHECKING:
    from training.datasets.crop_source import CropSource

# Number of random faces out of which the most similar one is inserted.
CANDIDATES = 40
# Weight of a difference in brightness (0 to 255) relative to one of landmarks, in eye distances.
BRIGHTNESS_WEIGHT = 1 / 100

log = logging.getLogger(__name__)


class Face(NamedTuple):
    """A real crop and what is compared to find a similar one.

    Attributes:
        row: row of the list of crops.
        landmarks: (5, 2), (x, y) in pixels.
        shape: landmarks relative to their mean, in eye distances (5, 2).
        brightness: mean gray level, 0 to 255.
    """

    row: int
    landmarks: np.ndarray
    shape: np.ndarray
    brightness: float


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    options.add_crops_arguments(parser)
    add = parser.add_argument
    add("--folds", type=int, nargs="+", default=[0], metavar="N", help="folds whose faces are swapped")
    add("--output-dir", type=Path, default=Path("swaps"), metavar="DIR", help="folder to write, within DATA_ROOT")
    add("--seed", type=options.seed, default=777, help="random seed")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the crops and their list. Return the exit status."""
    from training.datasets.blending import swap_face
    from training.datasets.crop_source import CropSource
    from training.datasets.folds import read_folds, validation_rows

    crops = read_folds(args.folds_csv or args.data_dir / FOLDS_CSV)
    source, output = CropSource(args.data_dir, args.crops_dir, crops), args.data_dir / args.output_dir
    lines, without = [",".join(FOLDS_COLUMNS)], 0
    for fold in args.folds:
        rows = validation_rows(crops, fold)
        reals = rows[~crops.fake[rows]]
        faces = [face for row in reals if (face := read_face(source, int(row)))]
        if len({crops.original[face.row] for face in faces}) < 2:
            raise UserError(
                f"fold {fold}: needs two videos with landmarks. Choose other --folds, or run "
                "python -m training.pipelines.crop_landmarks"
            )
        without += len(reals) - len(faces)
        for face in faces:
            rng = np.random.default_rng((args.seed, face.row))
            partner = find_partner(face, faces, crops.original, rng)
            video, file = (
                crops.videos[crops.video[face.row]],
                Path(crops.files[crops.file[face.row]]).with_suffix(".png"),
            )
            image, other = source.image(face.row), source.image(partner.row)
            swapped = swap_face(image, face.landmarks, other, partner.landmarks, poisson=rng.random() < 0.5)
            for name, label, content in ((video, 0, image), (f"{video}_swap", 1, swapped)):
                make_folder(output / name)
                atomic_write(output / name / file, encode_image(content))
                lines.append(f"{name},{file},{label},{video},{crops.frame[face.row]},{fold}")
    atomic_write(output.with_suffix(".csv"), "\n".join(lines) + "\n")
    print(f"{output}: {plural(len(lines) // 2, 'swap')}; {plural(without, 'crop')} without landmarks left out")
    return cli.OK


def read_face(source: CropSource, row: int) -> Face | None:
    """Read what is compared of a crop; None if it has no usable landmarks. Raises ImageError."""
    image = source.image(row)
    landmarks = source.landmarks(row, image.shape[:2])
    if landmarks is None:
        return None
    points = landmarks.astype(np.float64)
    distance = np.linalg.norm(points[0] - points[1])
    return Face(row, points, (points - points.mean(axis=0)) / distance, float(image.mean())) if distance else None


def find_partner(face: Face, faces: list[Face], original: np.ndarray, rng: np.random.Generator) -> Face:
    """Return the most similar one of CANDIDATES random faces of other originals. There must be one."""
    others = [other for other in faces if original[other.row] != original[face.row]]
    candidates = [others[index] for index in rng.permutation(len(others))[:CANDIDATES]]

    def distance(other: Face) -> float:
        difference = np.linalg.norm(other.shape - face.shape, axis=1).mean()
        return difference + abs(other.brightness - face.brightness) * BRIGHTNESS_WEIGHT

    return min(candidates, key=distance)


if __name__ == "__main__":
    cli.main(main, get_args_parser())
