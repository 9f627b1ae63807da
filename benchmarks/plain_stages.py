"""The five stages of preprocess_data.sh as the published code runs them, in DFDC's layout.

    python -m benchmarks.plain_stages STAGE DATA_ROOT

All frames of a clip are decoded with OpenCV into a list; one process detects faces on every frame at half scale, 32
frames at a time; a process pool writes the crops, the landmarks and the masks (clipped, as in this project).
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np

from common import cli
from preprocessing.layout import BBOXES, CROPS, DIFFS, FOLDS_COLUMNS, FOLDS_CSV, FRAME_STEP, LANDMARKS

SCALE = 0.5  # of the face detector's input


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("stage", choices=PLAIN_STAGES, help="stage to run")
    parser.add_argument("root_dir", type=Path, metavar="DATA_ROOT", help="dataset, with the outputs so far")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run a stage. Return the exit status."""
    PLAIN_STAGES[args.stage](args.root_dir)
    return cli.OK


def entries_of(root: Path) -> dict[str, tuple[Path, str | None]]:
    """Return each video's file and the id of its original (None for a real video), by id."""
    found = {}
    for metadata in root.glob("dfdc_train_part_*/metadata.json"):
        for name, entry in json.loads(metadata.read_text()).items():
            original = Path(entry["original"]).stem if entry["label"] == "FAKE" else None
            found[Path(name).stem] = metadata.parent / name, original
    return found


def pairs_of(root: Path) -> list[tuple[str, str]]:
    """Return (fake id, original id) of each fake whose original is in the dataset."""
    entries = entries_of(root)
    return [(name, original) for name, (_, original) in entries.items() if original in entries]


def all_frames(path: Path) -> list[np.ndarray]:
    """Return all frames of a clip, BGR."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (grabbed := capture.read())[0]:
        frames.append(grabbed[1])
    return frames


def detect_faces(root: Path) -> None:
    """Write the bounding boxes of all frames of the real videos."""
    from facenet_pytorch import MTCNN
    from PIL import Image

    detector = MTCNN(margin=0, thresholds=[0.85, 0.95, 0.95], device="cpu")
    (root / BBOXES).mkdir()
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
        (root / BBOXES / f"{name}.json").write_text(json.dumps(boxes))


def extract_crops(root: Path) -> None:
    """Write the crops of all videos."""
    todo = [(root, name, path, original) for name, (path, original) in entries_of(root).items()]
    with multiprocessing.Pool(os.cpu_count()) as pool:
        pool.starmap(extract_video, todo)


def extract_video(root: Path, name: str, path: Path, original: str | None) -> None:
    """Write a video's crops around its original's bounding boxes, on every 10th frame."""
    boxes_path = root / BBOXES / f"{original or name}.json"
    if not boxes_path.is_file():
        return
    boxes = json.loads(boxes_path.read_text())
    (root / CROPS / name).mkdir(parents=True)
    for index, frame in enumerate(all_frames(path)):
        if index % FRAME_STEP:
            continue
        for face, box in enumerate(boxes.get(str(index)) or []):
            xmin, ymin, xmax, ymax = (int(side) for side in box)
            margin_x, margin_y = (xmax - xmin) // 3, (ymax - ymin) // 3
            crop = frame[max(ymin - margin_y, 0) : ymax + margin_y, max(xmin - margin_x, 0) : xmax + margin_x]
            cv2.imwrite(str(root / CROPS / name / f"{index}_{face}.png"), crop)


def write_landmarks(root: Path) -> None:
    """Write the landmarks of the real videos' crops."""
    todo = [(root, name) for name, (_, original) in entries_of(root).items() if original is None]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.starmap(write_video_landmarks, todo)


def write_video_landmarks(root: Path, name: str) -> None:
    """Write the landmarks of a real video's crops."""
    import torch
    from facenet_pytorch import MTCNN
    from PIL import Image

    torch.set_num_threads(1)  # there is one process per core
    detector = MTCNN(margin=0, thresholds=[0.65, 0.75, 0.75], device="cpu")
    (root / LANDMARKS / name).mkdir(parents=True)
    for path in (root / CROPS / name).iterdir():
        points = detector.detect(Image.open(path), landmarks=True)[2]
        if points is not None:
            rounded = np.around(np.asarray(points[0], np.float32)).astype(np.int16)
            np.save(root / LANDMARKS / name / path.stem, rounded)


def write_diffs(root: Path) -> None:
    """Write the masks of the fakes' crops."""
    with multiprocessing.Pool(os.cpu_count()) as pool:
        pool.starmap(write_video_diffs, [(root, *pair) for pair in pairs_of(root)])


def write_video_diffs(root: Path, fake: str, original: str) -> None:
    """Write the masks of a fake's crops."""
    from skimage.metrics import structural_similarity

    (root / DIFFS / fake).mkdir(parents=True)
    for path in (root / CROPS / fake).iterdir():
        images = cv2.imread(str(root / CROPS / original / path.name)), cv2.imread(str(path))
        similarity = structural_similarity(*images, channel_axis=2, full=True)[1]
        mask = cv2.cvtColor(np.clip((1 - similarity) * 255, 0, 255).astype(np.uint8), cv2.COLOR_BGR2GRAY)
        cv2.imwrite(str(root / DIFFS / fake / f"{path.stem}_diff.png"), mask)


def write_folds(root: Path) -> None:
    """Write folds.csv."""
    rows = []
    for name, (path, original) in entries_of(root).items():
        fold = min(int(path.parent.name.rpartition("_")[2]) // 3, 15)
        for crop in (root / CROPS / name).glob("*.png"):
            rows.append(
                (name, crop.name, int(original is not None), original or name, int(crop.stem.split("_")[0]), fold)
            )
    with (root / FOLDS_CSV).open("w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FOLDS_COLUMNS)
        writer.writerows(rows)


PLAIN_STAGES = {
    "detect_original_faces": detect_faces,
    "extract_crops": extract_crops,
    "generate_landmarks": write_landmarks,
    "generate_diffs": write_diffs,
    "generate_folds": write_folds,
}

if __name__ == "__main__":
    cli.main(main, get_args_parser())
