"""Stage 1: find the faces of the real videos, on every 10th frame.

    python preprocessing/detect_original_faces.py --root-dir DATA_ROOT

writes DATA_ROOT/bboxes/<video id>.json: frame number -> list of [xmin, ymin, xmax, ymax], in pixels of the
full frame, largest first, or null where no face is. A frame that cannot be decoded is not in it.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from preprocessing import command
from preprocessing.boxes import write_boxes
from preprocessing.jobs import Job, Outcome, StageError
from preprocessing.video import FRAME_STEP, Clip, iter_frames

if TYPE_CHECKING:
    import numpy as np

    from preprocessing.faces import Face, FaceDetector

OUTPUT = "bboxes"
VERSION = 1


def get_args_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__)
    command.add_run_arguments(parser)
    parser.add_argument(
        "--detector-scale",
        type=command.detector_scale,
        default="auto",
        help="scale of the detector's input: auto (by the frame's size) or a number; the released checkpoints "
        "were trained with 0.5",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    return parser


def main(args: argparse.Namespace) -> int:
    dataset = command.load(args)
    output = args.root_dir / OUTPUT
    todo = []
    for video in dataset.videos.values():
        if not video.fake:
            path = output / f"{video.id}.json"
            todo.append(Job(video.id, (video.path,), path, (video.path, path, args.detector_scale, args.device)))
    settings = {"stage": Path(__file__).stem, "version": VERSION, "detector_scale": args.detector_scale}
    return command.run_stage(args, detect, todo, output, settings)


def detect(path: Path, output: Path, scale: float | str, device: str) -> Outcome:
    """Write the boxes of one clip."""
    detector = get_detector("originals", None if scale == "auto" else scale, device)
    clip = Clip(path)
    wanted = range(0, clip.total, FRAME_STEP)
    boxes = {}
    frames = iter_frames(clip, wanted)
    while group := list(itertools.islice(frames, detector.batch)):
        found = find_faces(detector, [frame.image for frame in group])
        boxes |= {frame.index: [face.box.tolist() for face in faces] for frame, faces in zip(group, found, strict=True)}
    lost = sorted(set(wanted) - boxes.keys())
    if not boxes:
        return Outcome("unreadable", f"{path}: no frame can be decoded; it is damaged, fetch it again")
    write_boxes(output, boxes)
    total = sum(map(len, boxes.values()))
    notes = [f"cannot be decoded: frames {command.some([str(frame) for frame in lost])}"] if lost else []
    if clip.lost:
        notes.append(f"cut off: {clip.total} of {clip.total + clip.lost} frames are there")
    counts = {"frames": len(boxes), "faces": total, "lost_frames": len(lost) + clip.lost}
    return Outcome("ok" if total else "no_face", "; ".join(notes), counts)


@functools.cache
def get_detector(preset: str, scale: float | None, device: str) -> FaceDetector:
    """This process's FaceDetector. PyTorch is loaded here, where it is needed: it takes seconds."""
    from preprocessing.device import choose_device
    from preprocessing.faces import FaceDetector

    return FaceDetector(preset, choose_device(device), scale)


def find_faces(detector: FaceDetector, images: list[np.ndarray]) -> list[list[Face]]:
    """`detector.detect`. Raises StageError where the device's memory does not suffice."""
    from torch import OutOfMemoryError

    try:
        return detector.detect(images)
    except OutOfMemoryError:
        raise StageError("the device's memory does not suffice; lower --workers, or take --device cpu") from None


if __name__ == "__main__":
    command.main(main, get_args_parser())
