"""Stage 3: detect the facial landmarks in the crops of the real videos.

    python preprocessing/generate_landmarks.py --root-dir DATA_ROOT [--crop KIND] [--crops-dir DIR] [--preview N]

writes DATA_ROOT/landmarks/<video>/<frame>_<face>.npy: int16 (5, 2), left eye, right eye, nose, left and right mouth
corner, each (x, y) in pixels of the crop. There is no file for a crop in which the face is not found again. With
--detector-scale auto, crops are scaled by their size like frames; with a number, they are not scaled, as for the
released checkpoints. --device auto is the CPU in this stage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli
from common.collector import no_garbage_collection
from common.files import atomic_folder
from common.outcome import Job, Outcome
from preprocessing import stage
from preprocessing.boxes import BoxesError, face_numbers, overlap, read_boxes
from preprocessing.contact_sheet import LANDMARK_COLORS, Sample
from preprocessing.crop_kinds import check_kind
from preprocessing.crops import DEFAULT_CROP, MarginCrop, SquareCrop
from preprocessing.images import list_images, read_image
from preprocessing.landmark_files import encode_landmarks
from preprocessing.layout import CROP_SUFFIX, LANDMARKS, LANDMARKS_SUFFIX, landmarks_name

if TYPE_CHECKING:
    from preprocessing.faces import Face

VERSION = 1
# A face detected in a crop is the face that was cropped if the intersection over union of their boxes reaches this.
SAME_FACE = 0.3


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    return stage.make_parser(__doc__)


def main(args: argparse.Namespace) -> int:
    """Detect the landmarks of all real videos. Return the exit status."""
    dataset, root = stage.load_dataset(args), stage.data_root(args)
    scale = None if args.detector_scale == "auto" else 1.0
    # Nearly every crop has a size of its own, so a GPU would process single small images. This was not measured.
    device = "cpu" if args.device == "auto" else args.device
    check_kind(root.crops(""), args.crop)
    jobs = []
    for video in dataset.videos.values():
        if not video.fake:
            crops, boxes, output = root.crops(video.id), root.boxes(video.id), root.landmarks(video.id)
            jobs.append(Job(video.id, (crops, boxes), output, (crops, boxes, output, scale, device, args.crop)))
    settings = {"stage": Path(__file__).stem, "version": VERSION, "crops": str(root.crops_dir), "scale": scale}

    def sample(path: Path) -> Sample:
        clip = path.parent.name
        crop = read_image(root.crops(clip) / f"{path.stem}{CROP_SUFFIX}")
        return Sample(f"{clip}/{path.stem}", [draw_landmarks(crop, np.load(path))])

    output = args.root_dir / LANDMARKS
    on_device = device != "cpu"
    return stage.run_jobs(
        args, dataset, landmarks, jobs, output, settings, sample, LANDMARKS_SUFFIX, uses_device=on_device
    )


def landmarks(
    crops: Path,
    boxes_path: Path,
    output: Path,
    scale: float | None,
    device: str,
    rule: MarginCrop | SquareCrop = DEFAULT_CROP,
) -> Outcome:
    """Write the landmarks of one clip's crops."""
    with no_garbage_collection():
        from preprocessing.faces import find_faces, get_detector  # loads PyTorch, which takes seconds

    boxes = read_boxes(boxes_path)
    numbers = face_numbers(boxes)
    cropped = {(frame, face): box for frame in boxes for face, box in zip(numbers[frame], boxes[frame], strict=True)}
    detector = get_detector("landmarks", scale, device)
    found = without = 0
    with atomic_folder(output) as folder:
        for frame, face, path in list_images(crops):
            if (frame, face) not in cropped:
                raise BoxesError(boxes_path, f"has no box for {path}; delete {crops} and run extract_crops.py again")
            points = face_points(find_faces(detector, [read_image(path)])[0], np.array(cropped[frame, face]), rule)
            if points is None:
                without += 1
                continue
            (folder / landmarks_name(path.name)).write_bytes(encode_landmarks(points))
            found += 1
    counts = {"crops": found + without, "landmarks": found, "without": without}
    return Outcome("ok" if found else "no_face", counts=counts)


def face_points(
    faces: Sequence[Face], box: np.ndarray, rule: MarginCrop | SquareCrop = DEFAULT_CROP
) -> np.ndarray | None:
    """Return the landmarks, (5, 2) in pixels of the crop, of the face that was cropped.

    The crop may show several faces, and the one that was cropped need not be the largest.

    Args:
        faces: faces detected in the crop.
        box: bounding box that the crop was made with, in pixels of the full frame.
        rule: the window of a box that the crop was made with.
    """
    corner = np.maximum(rule.window(box)[:2], 0)
    overlaps = [overlap(face.box, box - np.tile(corner, 2)) for face in faces]
    best = max(range(len(faces)), key=overlaps.__getitem__, default=None)
    return None if best is None or overlaps[best] < SAME_FACE else faces[best].points


def draw_landmarks(crop: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Draw landmarks onto a crop as dots, in place."""
    for point, color in zip(points.tolist(), LANDMARK_COLORS, strict=True):
        cv2.circle(crop, point, max(2, crop.shape[1] // 60), color, -1)
    return crop


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
