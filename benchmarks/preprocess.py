"""Compare the speed, memory and outputs of preprocess_data.sh with those of `benchmarks.plain_stages`.

    python -m benchmarks.preprocess --videos DATA_ROOT [--fakes N] [--copies N] [--json FILE]

Both process their own copy of the dataset, stage by stage, each stage in its own process, start-up included. Each
original has the same number of fakes: copies of its fake or, if it has none, of itself. Fakes without an original are
left out. Memory is the peak of the largest process of a stage. The limit of stages that decode is the time in which
FFmpeg decodes all frames with all cores; decoding only some of the frames can be faster. That of the masks is the
time in which the crops are copied.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from benchmarks.plain_stages import PLAIN_STAGES, SCALE, entries_of
from benchmarks.processes import Usage, measure
from benchmarks.results import Stage, add_json_option, write_json
from common import cli
from common.text import plural
from preprocessing.layout import BBOXES, CROPS, DIFFS, FOLDS_CSV, LANDMARKS

OPTIONS = ("--detector-scale", SCALE, "--no-dataset-report")
# Largest differences at which outputs count as equal: boxes in pixels, masks in gray levels. Others must be identical.
BOX, MASK = 1e-3, 1


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add(
        *("--videos", "--root-dir"),
        type=Path,
        required=True,
        metavar="DATA_ROOT",
        help="dataset in DFDC's layout; not modified",
    )
    add("--fakes", type=cli.positive, default=1, metavar="N", help="number of fakes per original")
    add("--copies", type=cli.positive, default=3, metavar="N", help="number of copies of each original to process")
    add_json_option(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure both sides and print times, memory and output differences. Return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        plain, ours = Path(folder) / "plain", Path(folder) / "ours"
        for root in (plain, ours):
            copy_dataset(args.videos, root, args.copies, args.fakes)
        print(f"{'':24}{'plain':>10}{'ours':>10}{'ratio':>8}{'plain':>10}{'ours':>10}", flush=True)
        rows = {}
        for stage in PLAIN_STAGES:
            rows[stage] = Row(
                measure("-m", "benchmarks.plain_stages", stage, plain),
                measure(f"preprocessing/{stage}.py", "--root-dir", ours, *OPTIONS),
            )
            print(rows[stage].format(stage), flush=True)
        sides = zip(*((row.plain, row.ours) for row in rows.values()), strict=True)
        rows["total"] = Row(*map(add_up, sides))
        print(rows["total"].format("total"))
        equal = compare(plain, ours)
        limits = limits_of(ours)
        originals = len(list((ours / BBOXES).iterdir()))
    work = f"{plural(originals, 'original')}, each with {plural(args.fakes, 'fake')}"
    stages = {name: row.to_dict(limits.get(name)) for name, row in rows.items()}
    write_json(args.json, work, {"ratio": stages["total"]["ratio"], "stages": stages, "outputs_equal": equal})
    return cli.OK


class Row(NamedTuple):
    """What a stage used on both sides."""

    plain: Usage
    ours: Usage

    def to_dict(self, limit: tuple[float, str] | None) -> dict[str, Any]:
        """Return the stage as it is in the JSON file; `limit`: its seconds at the machine's limit, and the limit."""
        stage = Stage(self.plain.seconds, self.ours.seconds, *(limit or ()))
        memory = {"plain_memory": self.plain.memory, "memory": self.ours.memory}
        return stage.to_dict() | {key: round(value / 2**20) for key, value in memory.items()}

    def format(self, name: str) -> str:
        """Return a line of the table."""
        times = f"{self.plain.seconds:9.1f}s{self.ours.seconds:9.1f}s{self.plain.seconds / self.ours.seconds:8.2f}"
        return f"{name:24}{times}{self.plain.memory / 2**20:6.0f} MiB{self.ours.memory / 2**20:6.0f} MiB"


def add_up(stages: tuple[Usage, ...]) -> Usage:
    """Return what stages used that ran one after another."""
    return Usage(sum(stage.seconds for stage in stages), max(stage.memory for stage in stages))


def limits_of(root: Path) -> dict[str, tuple[float, str]]:
    """Print and return the seconds in which FFmpeg decodes the clips, and in which the crops are copied."""
    # Loads PyTorch, whose memory would be counted as that of the stages.
    from benchmarks.limits import copy_seconds, decode_seconds

    clips: dict[bool, list[Path]] = {False: [], True: []}
    for path, original in entries_of(root).values():
        clips[original is not None].append(path)
    reals, fakes = decode_seconds(clips[False]), decode_seconds(clips[True])
    copy = copy_seconds(root / CROPS)
    print(f"FFmpeg decodes the originals in {reals:.1f} s, the fakes in {fakes:.1f} s; copying the crops: {copy:.1f} s")
    return {
        "detect_original_faces": (reals, "FFmpeg, all frames"),
        "extract_crops": (fakes, "FFmpeg, all frames"),  # stage 1 keeps the crops of the originals
        "generate_diffs": (copy, "copying the crops"),
    }


def copy_dataset(root: Path, target: Path, copies: int, fakes: int) -> None:
    """Copy each original `copies` times, as a0_634.mp4, a1_634.mp4, ..., with `fakes` fakes each."""
    for metadata in sorted(root.glob("dfdc_train_part_*/metadata.json")):
        part = target / metadata.parent.name
        part.mkdir(parents=True)
        entries = json.loads(metadata.read_text())
        fake_of = {entry["original"]: name for name, entry in entries.items() if entry["label"] == "FAKE"}
        copied = {}
        for original in (name for name, entry in entries.items() if entry["label"] == "REAL"):
            for copy in range(copies):
                name = f"a{copy}_{original}"
                copied[name] = metadata.parent / original, {"label": "REAL", "split": "train"}
                for number in range(fakes):
                    source = metadata.parent / fake_of.get(original, original)
                    entry = {"label": "FAKE", "split": "train", "original": name}
                    copied[f"f{number}_{name}"] = source, entry
        for name, (source, _) in copied.items():
            shutil.copy(source, part / name)
        (part / metadata.name).write_text(json.dumps({name: entry for name, (_, entry) in copied.items()}))


def compare(plain: Path, ours: Path) -> bool:
    """Print the differences between the outputs, and return whether they count as equal.

    Only the plain version has boxes for frames that are not used.
    """
    largest = 0.0
    for path in sorted((ours / BBOXES).iterdir()):
        expected = json.loads((plain / BBOXES / path.name).read_text())
        for frame, boxes in json.loads(path.read_text()).items():
            largest = max(largest, distance(np.array(boxes or []), np.array(expected[frame] or [])))
    print(f"boxes: largest difference {largest:.2g} pixels")
    equal = largest <= BOX
    read_image = partial(cv2.imread, flags=cv2.IMREAD_UNCHANGED)
    for kind, read, limit in ((CROPS, read_image, 0), (LANDMARKS, np.load, 0), (DIFFS, read_image, MASK)):
        files = [{path.relative_to(root) for path in (root / kind).rglob("*.*")} for root in (plain, ours)]
        shared = files[0] & files[1]
        distances = [distance(*(read(str(root / name)) for root in (plain, ours))) for name in shared]
        differ, missing = sum(value > limit for value in distances), len(files[0] ^ files[1])
        print(
            f"{kind}: {plural(len(shared), 'file')} in both, largest difference {max(distances, default=0):g}, "
            f"{differ} beyond {limit}; {plural(missing, 'file')} in one only"
        )
        equal &= not differ and not missing
    rows = [sorted((root / FOLDS_CSV).read_text().splitlines()) for root in (plain, ours)]
    print(
        f"{FOLDS_CSV}: {len(rows[0]) - 1} and {len(rows[1]) - 1} rows, {'equal' if rows[0] == rows[1] else 'DIFFERENT'}"
    )
    return equal and rows[0] == rows[1]


def distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return the largest difference of two arrays; infinite if their shapes differ."""
    return float(np.abs(np.subtract(x, y, dtype=float)).max(initial=0)) if x.shape == y.shape else np.inf


if __name__ == "__main__":
    cli.main(main, get_args_parser())
