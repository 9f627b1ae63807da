"""How much faster is preprocess_data.sh than a plain version of the published procedure, with the same outputs?

    python -m benchmarks.preprocess --root-dir DATA_ROOT [--copies 3]

The plain version does what the published code does, made to run: OpenCV decodes a clip's frames into a list;
one process detects faces on every frame at half scale, 32 at a time; a pool of processes writes the crops,
the landmarks and the diffs (clipped, as here). Each of the two runs over its own copy of the dataset, in
processes of its own, start-up included; --copies takes every clip several times, under other names. The
memory is that of the largest process of a stage.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]
SCALE = 0.5
STAGES = ("detect_original_faces", "extract_crops", "generate_landmarks", "generate_diffs", "generate_folds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root-dir", type=Path, required=True, help="a dataset of DFDC's layout; it is not changed")
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--plain", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        PLAIN[args.plain](args.root_dir)
        return
    with tempfile.TemporaryDirectory() as folder:
        plain_root, our_root = (copied(args.root_dir, Path(folder) / name, args.copies) for name in ("plain", "ours"))
        print(f"{'':24}{'plain':>10}{'ours':>10}{'ratio':>8}{'plain':>10}{'ours':>10}", flush=True)
        totals = np.zeros((2, 2))
        for stage in STAGES:
            scaled = stage in ("detect_original_faces", "generate_landmarks")
            options = ["--detector-scale", str(SCALE)] if scaled else []
            used = np.array([
                measured("-m", "benchmarks.preprocess", "--root-dir", plain_root, "--plain", stage),
                measured(ROOT / "preprocessing" / f"{stage}.py", "--root-dir", our_root, *options),
            ])  # fmt: skip
            totals = np.stack([totals[:, 0] + used[:, 0], np.maximum(totals[:, 1], used[:, 1])], axis=1)
            print_row(stage, used)
        print_row("together", totals)
        compare(plain_root, our_root)


def copied(root: Path, place: Path, copies: int) -> Path:
    """The dataset under other names: a0_634.mp4, a1_634.mp4, ..."""
    for metadata in sorted(root.glob("dfdc_train_part_*/metadata.json")):
        part = place / metadata.parent.name
        part.mkdir(parents=True)
        entries = {}
        for copy in range(copies):
            for name, entry in json.loads(metadata.read_text()).items():
                shutil.copy(metadata.parent / name, part / f"a{copy}_{name}")
                renamed = {"original": f"a{copy}_{entry['original']}"} if "original" in entry else {}
                entries[f"a{copy}_{name}"] = {**entry, **renamed}
        (part / metadata.name).write_text(json.dumps(entries))
    return place


def measured(*command: str | Path) -> tuple[float, float]:
    """Seconds, and the MiB of the largest of its processes."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {command}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def print_row(name: str, used: np.ndarray) -> None:
    (plain, plain_memory), (ours, our_memory) = used
    times = f"{plain:9.1f}s{ours:9.1f}s{plain / ours:8.2f}"
    print(f"{name:24}{times}{plain_memory:6.0f} MiB{our_memory:6.0f} MiB", flush=True)


def compare(plain: Path, ours: Path) -> None:
    """What differs between the two trees, every 10th frame of the plain one's boxes."""
    boxes = 0.0
    for path in sorted((ours / "bboxes").iterdir()):
        theirs = json.loads((plain / "bboxes" / path.name).read_text())
        for frame, found in json.loads(path.read_text()).items():
            same = len(found or []) == len(theirs[frame] or [])
            boxes = max(boxes, np.abs(np.subtract(found or [], theirs[frame] or [])).max(initial=0) if same else np.inf)
    print(f"boxes off by {boxes:.2g} pixels at most")
    read_image = partial(cv2.imread, flags=cv2.IMREAD_UNCHANGED)
    for kind, read in (("crops", read_image), ("landmarks", np.load), ("diffs", read_image)):
        files = [{path.relative_to(root) for path in (root / kind).rglob("*.*")} for root in (plain, ours)]
        shared = files[0] & files[1]
        differ = sum(not np.array_equal(*(read(str(root / name)) for root in (plain, ours))) for name in shared)
        print(f"{kind}: {len(files[0])} files, {len(files[0] ^ files[1])} not in both, {differ} differ")
    rows = [sorted((root / "folds.csv").read_text().splitlines()) for root in (plain, ours)]
    same = "the same" if rows[0] == rows[1] else "DIFFERENT"
    print(f"folds.csv: {len(rows[0]) - 1} and {len(rows[1]) - 1} rows, {same}")


def entries_of(root: Path) -> dict[str, tuple[Path, str | None]]:
    """Video id -> file, id of the original (None for a real one)."""
    found = {}
    for metadata in root.glob("dfdc_train_part_*/metadata.json"):
        for name, entry in json.loads(metadata.read_text()).items():
            original = Path(entry["original"]).stem if entry["label"] == "FAKE" else None
            found[Path(name).stem] = metadata.parent / name, original
    return found


def pairs_of(root: Path) -> list[tuple[str, str]]:
    entries = entries_of(root)
    return [(name, original) for name, (_, original) in entries.items() if original in entries]


def all_frames(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (grabbed := capture.read())[0]:
        frames.append(grabbed[1])
    return frames


def plain_detect(root: Path) -> None:
    from facenet_pytorch import MTCNN
    from PIL import Image

    detector = MTCNN(margin=0, thresholds=[0.85, 0.95, 0.95], device="cpu")
    (root / "bboxes").mkdir()
    for name, (path, original) in entries_of(root).items():
        if original:
            continue
        images = [Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)) for frame in all_frames(path)]
        images = [image.resize((int(image.width * SCALE), int(image.height * SCALE))) for image in images]
        boxes = {}
        for start in range(0, len(images), 32):
            found, *_ = detector.detect(images[start : start + 32])
            for number, frame_boxes in enumerate(found):
                scaled = None if frame_boxes is None else (np.asarray(frame_boxes, np.float32) / SCALE).tolist()
                boxes[start + number] = scaled
        (root / "bboxes" / f"{name}.json").write_text(json.dumps(boxes))


def plain_crops(root: Path) -> None:
    todo = [(root, name, path, original) for name, (path, original) in entries_of(root).items()]
    with multiprocessing.Pool(os.cpu_count()) as pool:
        pool.starmap(plain_crop, todo)


def plain_crop(root: Path, name: str, path: Path, original: str | None) -> None:
    boxes_path = root / "bboxes" / f"{original or name}.json"
    if not boxes_path.is_file():
        return
    boxes = json.loads(boxes_path.read_text())
    (root / "crops" / name).mkdir(parents=True)
    for index, frame in enumerate(all_frames(path)):
        if index % 10:
            continue
        for face, box in enumerate(boxes.get(str(index)) or []):
            xmin, ymin, xmax, ymax = (int(side) for side in box)
            across, along = (xmax - xmin) // 3, (ymax - ymin) // 3
            crop = frame[max(ymin - along, 0) : ymax + along, max(xmin - across, 0) : xmax + across]
            cv2.imwrite(str(root / "crops" / name / f"{index}_{face}.png"), crop)


def plain_landmarks(root: Path) -> None:
    todo = [(root, name) for name, (_, original) in entries_of(root).items() if original is None]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.starmap(plain_landmark, todo)


def plain_landmark(root: Path, name: str) -> None:
    import torch
    from facenet_pytorch import MTCNN
    from PIL import Image

    torch.set_num_threads(1)  # as many processes as cores: more threads than that would only be in each other's way
    detector = MTCNN(margin=0, thresholds=[0.65, 0.75, 0.75], device="cpu")
    (root / "landmarks" / name).mkdir(parents=True)
    for path in (root / "crops" / name).iterdir():
        points = detector.detect(Image.open(path), landmarks=True)[2]
        if points is not None:
            rounded = np.around(np.asarray(points[0], np.float32)).astype(np.int16)
            np.save(root / "landmarks" / name / path.stem, rounded)


def plain_diffs(root: Path) -> None:
    with multiprocessing.Pool(os.cpu_count()) as pool:
        pool.starmap(plain_diff, [(root, *pair) for pair in pairs_of(root)])


def plain_diff(root: Path, fake: str, original: str) -> None:
    from skimage.metrics import structural_similarity

    (root / "diffs" / fake).mkdir(parents=True)
    for path in (root / "crops" / fake).iterdir():
        images = cv2.imread(str(root / "crops" / original / path.name)), cv2.imread(str(path))
        similarity = structural_similarity(*images, channel_axis=2, full=True)[1]
        mask = cv2.cvtColor(np.clip((1 - similarity) * 255, 0, 255).astype(np.uint8), cv2.COLOR_BGR2GRAY)
        cv2.imwrite(str(root / "diffs" / fake / f"{path.stem}_diff.png"), mask)


def plain_folds(root: Path) -> None:
    rows = []
    for name, (path, original) in entries_of(root).items():
        fold = min(int(path.parent.name.rpartition("_")[2]) // 3, 15)
        for crop in (root / "crops" / name).glob("*.png"):
            rows.append(
                (name, crop.name, int(original is not None), original or name, int(crop.stem.split("_")[0]), fold)
            )
    with (root / "folds.csv").open("w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video", "file", "label", "original", "frame", "fold"))
        writer.writerows(rows)


PLAIN = dict(zip(STAGES, (plain_detect, plain_crops, plain_landmarks, plain_diffs, plain_folds), strict=True))

if __name__ == "__main__":
    main()
