"""Check the heat maps of --explain against the truth: the difference between each fake and its original.

    python -m benchmarks.explain --root-dir DATA_ROOT [--models FILE ...] [--half report] [--json OUT]

The dataset has been prepared by preprocess_data.sh. Where `bboxes/` has the boxes of an original, each network gets its
own crop, cut from the crops with a margin; otherwise, the crops are taken to be what the networks need.

The mask is where 255 * (1 - SSIM) of the fake and its original is above 20, as in training. Measured are the share of
the heat in the mask, the mean of 255 * (1 - SSIM) under the heat, the share of the hottest 15% of the window in the
mask, and how much the score drops when these 15% are blurred or restored from the original. The heat is compared with a
Gaussian in the center (standard deviation: a quarter of the side), the mean heat of the other videos, which does not
depend on the face, random discs of 15% within the window, and a uniform map. Values are means over videos with their
standard errors. Faces without heat count only in the number of faces.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from benchmarks.fake_faces import FakeFace, Window, part_of, read_fakes, replace, score
from benchmarks.processes import ROOT
from common import cli
from common.errors import UserError
from common.files import atomic_write
from preprocessing.generate_diffs import difference
from preprocessing.layout import CROPS
from training.options import HALVES

if TYPE_CHECKING:
    from inference.ensemble import Ensemble
    from inference.explain import Explainer

MODEL = ROOT / "weights" / "default_lite0.pt"
# Gray level of the mask from which a pixel counts as manipulated, as in training.datasets.classifier_dataset.
CHANGED_LEVEL = 20
# Part of the window that is modified, and standard deviation of the blur as a fraction of the window's side.
AREA, BLUR = 0.15, 0.1
RANDOM_DISCS = 5
# Standard deviation of the centered Gaussian, as a fraction of the side.
SPREAD = 0.25
# Side of the mean heat map.
MEAN_SIDE = 64
# Score above which a fake counts as recognized.
FAKE = 0.5

HEAT, GAUSSIAN, OTHERS, DISC, UNIFORM = "heat", "centered Gaussian", "heat of others", "random disc", "uniform"
ROWS = (HEAT, GAUSSIAN, OTHERS, DISC, UNIFORM, *(f"{HEAT} - {other}" for other in (GAUSSIAN, OTHERS, DISC)))
COLUMNS = {
    "share": "heat in mask",
    "level": "level under heat",
    "hottest": "15% in mask",
    "blurred": "drop, blurred",
    "restored": "drop, restored",
}
Values = dict[str, dict[str, float]]


class Explained(NamedTuple):
    """A face with its heat.

    Attributes:
        face: the face.
        window: the window (xmin, ymin, xmax, ymax) of the face's image that the heat covers.
        heat: float32 (height, width) of the part of the window that lies in the image.
    """

    face: FakeFace
    window: Window
    heat: np.ndarray


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--root-dir", type=Path, required=True, metavar="DATA_ROOT", help="folder of the dataset")
    add("--crops-dir", type=Path, default=Path(CROPS), metavar="DIR", help="folder of the crops within DATA_ROOT")
    add("--models", type=Path, nargs="+", default=[MODEL], metavar="FILE", help="checkpoints to explain")
    add("--fold", type=int, default=0, help="fold whose fakes are explained")
    add("--half", choices=HALVES, help="half of the fold's originals, with their fakes (default: all)")
    add("--device", default="cpu", help="auto, cpu, cuda or cuda:1")
    add("--json", type=Path, metavar="FILE", help="write the tables as JSON")
    return parser


def main(args: argparse.Namespace) -> int:
    """Print the tables for all fakes and for those that are recognized. Return the exit status."""
    from inference.ensemble import Ensemble
    from inference.explain import Explainer

    explainer, ensemble = Explainer(args.models, args.device), Ensemble(args.models, args.device, "float32")
    left_out: Counter[str] = Counter()
    explained = [explain(face, explainer) for face in read_fakes(args, left_out)]
    if not explained:
        raise UserError(f"{args.root_dir}: fold {args.fold} has no fakes to explain. Choose another --fold")
    scores = [score(ensemble, one.face) for one in explained]
    values = [measure(one, others, ensemble) for one, others in zip(explained, heat_of_others(explained), strict=True)]
    tables = {}
    for name, limit in (("all fakes", -1.0), (f"fakes that score above {FAKE}", FAKE)):
        chosen = [index for index, value in enumerate(scores) if value > limit]
        faces = [explained[index].face for index in chosen]
        tables[name] = {
            "faces": len(faces),
            "faces with an original": sum(face.original is not None for face in faces),
            "faces without heat": sum(not explained[index].heat.any() for index in chosen),
            "videos": len({face.video for face in faces}),
            "rows": summarize([face.video for face in faces], [values[index] for index in chosen]),
        }
        print_table(name, tables[name])
    for reason, number in left_out.items():
        print(f"{number} faces are used without a mask, because {reason}")
    if args.json:
        atomic_write(args.json, json.dumps({"tables": tables, "left_out": left_out}, indent=2) + "\n")
    return cli.OK


def explain(face: FakeFace, explainer: Explainer) -> Explained:
    """Make the heat map of a face."""
    if face.box is None:
        return Explained(face, (0, 0, *face.image.shape[1::-1]), explainer.heat_of_crop(face.image))
    return Explained(face, explainer.window(face.box), explainer.heat(face.image, face.box))


def heat_of_others(explained: Sequence[Explained]) -> list[np.ndarray | None]:
    """Return for each face the mean heat of the other videos in the shape of its own; None if there are none."""
    small = np.stack([cv2.resize(one.heat, (MEAN_SIDE, MEAN_SIDE)) for one in explained])
    videos = np.array([one.face.video for one in explained])
    means: list[np.ndarray | None] = []
    for one in explained:
        others = videos != one.face.video
        mean = small[others].mean(axis=0) if others.any() else None
        means.append(None if mean is None else cv2.resize(mean, one.heat.shape[::-1]))
    return means


def measure(one: Explained, others: np.ndarray | None, ensemble: Ensemble) -> Values:
    """Return a face's values by column and row. Without an original, only those for blurring; without heat, none."""
    face, window, heat = one
    if not heat.any():
        return {}
    rng = np.random.default_rng(zlib.crc32(face.image.tobytes()))
    maps = {HEAT: heat, GAUSSIAN: centered_gaussian(heat.shape), OTHERS: others, UNIFORM: np.ones(heat.shape)}
    known = {name: one for name, one in maps.items() if one is not None}
    parts = {name: [hottest(one)] for name, one in known.items() if name != UNIFORM}
    parts[DISC] = [hottest(random_disc(heat.shape, rng)) for _ in range(RANDOM_DISCS)]
    before = score(ensemble, face)

    def drops(other: np.ndarray) -> dict[str, float]:
        """Return the drops of the score when parts are replaced with those of another image, by row."""
        scores = {
            name: [score(ensemble, replace(face, window, part, other)) for part in group]
            for name, group in parts.items()
        }
        return {name: before - float(np.mean(group)) for name, group in scores.items()}

    values = {"blurred": drops(cv2.GaussianBlur(face.image, (0, 0), BLUR * max(heat.shape)))}
    if face.original is not None:
        levels = part_of(difference(face.original, face.image)[..., None], window)[..., 0]
        mask = levels > CHANGED_LEVEL
        values["share"] = {name: float(np.average(mask, weights=one)) for name, one in known.items()}
        values["level"] = {name: float(np.average(levels, weights=one)) for name, one in known.items()}
        values["hottest"] = {name: float(np.mean([mask[part].mean() for part in parts[name]])) for name in parts}
        values["restored"] = drops(face.original)
    return values


def centered_gaussian(shape: tuple[int, ...]) -> np.ndarray:
    """Return a Gaussian in the center of a window of this shape."""
    y, x = (np.linspace(-0.5, 0.5, side) / SPREAD for side in shape)
    return np.exp(-(y[:, None] ** 2 + x**2) / 2)


def random_disc(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a map that is highest around a random point, whose distance from the window's border allows for a disc."""
    radius = min(np.sqrt(AREA * shape[0] * shape[1] / np.pi), min(shape) / 2)
    y, x = (rng.uniform(radius, side - radius) for side in shape)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return -np.hypot(rows + 0.5 - y, columns + 0.5 - x)


def hottest(heat: np.ndarray) -> np.ndarray:
    """Return the hottest AREA of a map: bool, the same number of pixels for every map of a shape."""
    part = np.zeros(heat.size, bool)
    part[np.argsort(-heat, axis=None, kind="stable")[: round(AREA * heat.size)]] = True
    return part.reshape(heat.shape)


def summarize(videos: Sequence[str], values: Sequence[Values]) -> dict[str, dict[str, Any]]:
    """Return the mean over videos and its standard error, by row and column; None where there is none."""
    rows: dict[str, dict[str, Any]] = {row: {} for row in ROWS}
    for row in ROWS:
        name, _, other = row.partition(" - ")
        for column in COLUMNS:
            groups: dict[str, list[float]] = {}
            for video, value in zip(videos, values, strict=True):
                known = value.get(column, {})
                if name in known and (not other or other in known):
                    groups.setdefault(video, []).append(known[name] - (known[other] if other else 0))
            means = [float(np.mean(group)) for group in groups.values()]
            error = float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else None
            rows[row][column] = {"mean": float(np.mean(means)), "error": error} if means else None
    return rows


def print_table(name: str, table: Mapping[str, Any]) -> None:
    """Print the means and standard errors of a group of faces."""
    counts = ", ".join(f"{number} {what}" for what, number in table.items() if what != "rows")
    print(f"\n{name}: {counts}\n{'':25}" + "".join(f"{title:>19}" for title in COLUMNS.values()))
    for row, values in table["rows"].items():
        print(f"{row:25}" + "".join(f"{format_value(values[column], column):>19}" for column in COLUMNS))


def format_value(value: Mapping[str, float | None] | None, column: str) -> str:
    """Format a mean with its standard error; levels are gray levels."""
    if value is None:
        return "-"
    digits = 1 if column == "level" else 3
    return f"{value['mean']:.{digits}f}" + ("" if value["error"] is None else f" +- {value['error']:.{digits}f}")


if __name__ == "__main__":
    cli.main(main, get_args_parser())
