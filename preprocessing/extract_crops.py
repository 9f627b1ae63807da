"""Stage 2: cut the faces out of all videos; a fake with the boxes of its original.

    python preprocessing/extract_crops.py --root-dir DATA_ROOT [--crops-dir crops] [--preview N]

writes DATA_ROOT/crops/<video id>/<frame>_<face>.png, with a margin of one third of the box on each side. A
face keeps its number from frame to frame. Frames are those of the original: where a fake has another frame
rate or lost frames, its frame of the same time is cropped under the original's number; where it has another
size, the boxes are scaled. What of this happened stands in the clip's record.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from preprocessing import command
from preprocessing.boxes import face_numbers, read_boxes
from preprocessing.crops import MarginCrop, cut
from preprocessing.detect_original_faces import OUTPUT as BBOXES
from preprocessing.images import encode_image, image_name, read_image
from preprocessing.jobs import Job, Outcome
from preprocessing.output import whole_folder
from preprocessing.video import FRAME_STEP, Clip, VideoError, iter_frames

VERSION = 1
# Frames of an original and a fake are of the same time if they are apart by no more than this share of the
# time between two frames.
SAME_TIME = 0.25
# Frame rates that differ by no more than this share are one rate.
SAME_RATE = 0.01


def get_args_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__)
    command.add_run_arguments(parser, preview=True)
    command.add_crops_dir(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    dataset = command.load(args)
    bboxes, crops = args.root_dir / BBOXES, args.root_dir / args.crops_dir
    todo = []
    for video in dataset.videos.values():
        source = dataset.original_of(video) if video.fake else video
        boxes = bboxes / f"{source.id}.json" if source else None
        original = source.path if source and video.fake else None
        inputs = (video.path, *(path for path in (boxes, original) if path))
        todo.append(Job(video.id, inputs, crops / video.id, (video.path, boxes, original, crops / video.id)))
    known = {video.id for video in dataset.videos.values()}
    stray = {path.stem: Outcome("no_video", str(path)) for path in bboxes.glob("*.json") if path.stem not in known}
    settings = {"stage": Path(__file__).stem, "version": VERSION}
    return command.run_stage(args, extract, todo, crops, settings, lambda path: [read_image(path)], others=stray)


def extract(path: Path, boxes_path: Path | None, original: Path | None, output: Path) -> Outcome:
    """Write the crops of one clip; `original` is given for a fake."""
    if boxes_path is None:
        return Outcome("no_original", f"{path}: its original is not in the dataset, so no boxes are known")
    clip = Clip(path)
    boxes = read_boxes(boxes_path)
    numbers = face_numbers(boxes)
    size, frames, notes = None, {frame: frame for frame in boxes if frame < clip.total}, []
    if original:
        source = _reference(original)
        size, clock = source.size, common_clock(source.times, clip.times)
        frames = matching_frames(sorted(boxes), source.times, clip.times)
        if clip.total != len(source.times) or len(frames) < len(boxes) or abs(clip.rate / source.rate - 1) > SAME_RATE:
            notes.append(
                f"{clip.total} frames at {float(clip.rate):.4g} a second, its original {len(source.times)} at "
                f"{float(source.rate):.4g}: {len(frames)} of {len(boxes)} matched by "
                f"{'number' if clock is None else 'time'}"
            )
    crops = decoded = 0
    with whole_folder(output) as folder:
        for frame in iter_frames(clip, frames):
            decoded += 1
            height, width = frame.image.shape[:2]
            ratio = np.divide((width, height), size or (width, height))
            if decoded == 1 and (ratio != 1).any():
                notes.append(f"{width}x{height}, its original {size[0]}x{size[1]}: boxes scaled")
            name = frames[frame.index]
            for number, box in zip(numbers[name], boxes[name], strict=True):
                crop = cut(frame.image, MarginCrop().window(np.multiply(box, np.tile(ratio, 2))))
                if crop is not None:
                    crops += 1
                    (folder / image_name(name, number)).write_bytes(encode_image(crop))
    if decoded < len(frames):
        notes.append(f"{len(frames) - decoded} frames cannot be decoded")
    counts = {"frames": decoded, "crops": crops}
    return Outcome("ok" if crops else "no_face", "; ".join(notes), counts)


def matching_frames(wanted: Iterable[int], original: list[float], fake: list[float]) -> dict[int, int]:
    """Frame of the fake -> frame of its original, for those of the wanted frames that both have.

    `original`, `fake`: times of the frames in seconds, by index.
    """
    wanted = [frame for frame in wanted if frame < len(original)]
    clock = common_clock(original, fake)
    if clock is None:
        return {frame: frame for frame in wanted if frame < len(fake)}
    apart = {frame: np.abs(clock - (original[frame] - original[0])) for frame in wanted}
    allowed = SAME_TIME * min(_interval(original), _interval(fake))
    return {int(away.argmin()): frame for frame, away in apart.items() if away.min() <= allowed}


def common_clock(original: list[float], fake: list[float]) -> np.ndarray | None:
    """The fake's times since the original's first frame; None if frames correspond by their number.

    They correspond by time where the durations agree better than the numbers of frames: then the fake has another
    frame rate, or lost frames.
    """
    if min(len(original), len(fake)) < 2:
        return None
    since = np.subtract(fake, fake[0])
    late = (fake[0] - original[0]) / _interval(fake)  # in frames
    if 1 <= round(late) <= len(original) - len(fake) and abs(late - round(late)) <= SAME_TIME:
        since = np.subtract(fake, original[0])  # it lost its first frames
    durations = abs(math.log(since[-1] / (original[-1] - original[0])))
    counts = abs(math.log((len(fake) - 1) / (len(original) - 1)))
    return since if durations < counts - 1e-9 else None


def _interval(times: list[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


class Reference(NamedTuple):
    """What a fake's crops need to know of its original: size (width, height) in pixels, frames' times, frame rate."""

    size: tuple[int, int]
    times: list[float]
    rate: Fraction


@functools.lru_cache(maxsize=4)
def _reference(original: Path) -> Reference:
    clip = Clip(original)
    first = next(iter_frames(clip, range(0, clip.total, FRAME_STEP)), None)
    if first is None:
        raise VideoError(original, "no frame can be decoded; it is damaged, fetch it again")
    return Reference(first.image.shape[1::-1], clip.times, clip.rate)


if __name__ == "__main__":
    command.main(main, get_args_parser())
