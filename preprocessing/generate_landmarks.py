"""Stage 3: find the eyes, the nose and the corners of the mouth in the crops of the real videos.

    python preprocessing/generate_landmarks.py --root-dir DATA_ROOT [--crops-dir crops] [--preview N]

writes DATA_ROOT/landmarks/<video id>/<frame>_<face>.npy: int16 (5, 2), left eye, right eye, nose, left and right
mouth corner, (x, y) in pixels of the crop. There is none for a crop in which the detector finds no such face.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from preprocessing import command, preview
from preprocessing.boxes import BoxesError, face_numbers, read_boxes
from preprocessing.crops import MarginCrop
from preprocessing.detect_original_faces import OUTPUT as BBOXES
from preprocessing.detect_original_faces import find_faces, get_detector
from preprocessing.images import list_images, read_image
from preprocessing.jobs import Job, Outcome
from preprocessing.output import whole_folder

if TYPE_CHECKING:
    from preprocessing.faces import Face

OUTPUT = "landmarks"
VERSION = 1
# A face found in a crop is the one that was cropped if their boxes' intersection over union is at least this.
SAME_FACE = 0.3


def get_args_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__)
    command.add_run_arguments(parser, preview=True)
    command.add_crops_dir(parser)
    parser.add_argument(
        "--detector-scale",
        type=command.detector_scale,
        default="auto",
        help="auto: crops are scaled by their size, like frames; a number (that frames were scaled by): crops are "
        "not scaled, as for the released checkpoints",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    return parser


def main(args: argparse.Namespace) -> int:
    dataset = command.load(args)
    crops, output = args.root_dir / args.crops_dir, args.root_dir / OUTPUT
    scale = None if args.detector_scale == "auto" else 1.0
    todo = []
    for video in dataset.videos.values():
        if not video.fake:
            folder, boxes = crops / video.id, args.root_dir / BBOXES / f"{video.id}.json"
            arguments = (folder, boxes, output / video.id, scale, args.device)
            todo.append(Job(video.id, (folder, boxes), output / video.id, arguments))
    settings = {"stage": Path(__file__).stem, "version": VERSION, "crops": str(args.crops_dir), "scale": scale}

    def drawn(path: Path) -> list[np.ndarray]:
        return [draw(read_image(crops / path.parent.name / f"{path.stem}.png"), np.load(path))]

    return command.run_stage(args, landmarks, todo, output, settings, drawn, ".npy")


def landmarks(crops: Path, boxes_path: Path, output: Path, scale: float | None, device: str) -> Outcome:
    """Write the landmarks of one clip's crops."""
    boxes = read_boxes(boxes_path)
    numbers = face_numbers(boxes)
    cropped = {(frame, face): box for frame in boxes for face, box in zip(numbers[frame], boxes[frame], strict=True)}
    detector = get_detector("landmarks", scale, device)
    found = without = 0
    with whole_folder(output) as folder:
        for frame, face, path in list_images(crops):
            if (frame, face) not in cropped:
                raise BoxesError(f"{boxes_path}: has no box of {path}; delete {crops} and run extract_crops.py again")
            points = face_points(find_faces(detector, [read_image(path)])[0], np.array(cropped[frame, face]))
            if points is None:
                without += 1
                continue
            content = io.BytesIO()
            np.save(content, np.around(points).astype(np.int16))
            (folder / f"{path.stem}.npy").write_bytes(content.getvalue())
            found += 1
    counts = {"crops": found + without, "landmarks": found, "without": without}
    return Outcome("ok" if found else "no_face", counts=counts)


def face_points(faces: Sequence[Face], box: np.ndarray) -> np.ndarray | None:
    """The points, (5, 2) in pixels of the crop, of the face that was cropped with a box (of the full frame).

    It need not be the largest face in the crop.
    """
    corner = np.maximum(MarginCrop().window(box)[:2], 0)
    overlaps = [overlap(face.box, box - np.tile(corner, 2)) for face in faces]
    best = max(range(len(faces)), key=overlaps.__getitem__, default=None)
    return None if best is None or overlaps[best] < SAME_FACE else faces[best].points


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes (xmin, ymin, xmax, ymax)."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / float(np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared)


def draw(crop: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A crop with its landmarks as dots."""
    for number, point in enumerate(points.tolist()):
        cv2.circle(crop, point, max(2, crop.shape[1] // 60), preview.COLORS[number], -1)
    return crop


if __name__ == "__main__":
    command.main(main, get_args_parser())
