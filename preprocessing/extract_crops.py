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
from pathlib import Path

import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from preprocessing import command, jobs, preview
from preprocessing.boxes import face_numbers, read_boxes
from preprocessing.crops import MarginCrop, cut
from preprocessing.detect_original_faces import OUTPUT as BBOXES
from preprocessing.images import encode_image, image_name, read_image
from preprocessing.output import whole_folder
from preprocessing.video import FRAME_STEP, Clip, VideoError, iter_frames

VERSION = 1
# Frames of an original and a fake are of the same time if they are apart by no more than this share of the
# time between two frames.
SAME_TIME = 0.25

log = command.log


def get_args_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__)
    command.add_run_arguments(parser, preview=True)
    command.add_crops_dir(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    dataset = command.load(args)
    bboxes, crops = args.root_dir / BBOXES, args.root_dir / args.crops_dir
    known = {video.id for video in dataset.videos.values() if not video.fake}
    unknown = sorted(path.stem for path in bboxes.glob("*.json") if path.stem not in known)
    if unknown:
        log.warning("%d files in %s without a video: %s", len(unknown), bboxes, command.some(unknown))
    todo = []
    for video in dataset.videos.values():
        source = dataset.original_of(video) if video.fake else video
        boxes = bboxes / f"{source.id}.json" if source else None
        original = source.path if source and video.fake else None
        inputs = (video.path, *(path for path in (boxes, original) if path))
        todo.append(jobs.Job(video.id, inputs, crops / video.id, (video.path, boxes, original, crops / video.id)))
    outcomes = jobs.run(extract, todo, crops, {"version": VERSION}, args.workers, args.retry_failed, args.overwrite)
    if args.preview:
        samples = preview.choose(crops, outcomes, args.preview)
        preview.write(crops, samples, [[read_image(path)] for path in samples])
    return command.finish(outcomes)


def extract(path: Path, boxes_path: Path | None, original: Path | None, output: Path) -> jobs.Outcome:
    """Write the crops of one clip; `original` is given for a fake."""
    if boxes_path is None:
        return jobs.Outcome("no_original", f"{path}: its original is not in the dataset, so no boxes are known")
    clip = Clip(path)
    boxes = read_boxes(boxes_path)
    numbers = face_numbers(boxes)
    size, frames, notes = None, {frame: frame for frame in boxes if frame < clip.total}, []
    if original:
        size, times = _reference(original)
        frames = matching_frames(sorted(boxes), times, clip.times)
        if len(times) != clip.total or len(frames) < len(boxes):
            of_both = f"{len(frames)} of {len(boxes)} frames used, those that both have"
            notes.append(f"{clip.total} frames, its original {len(times)}: {of_both}")
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
    return jobs.Outcome("ok" if crops else "no_face", "; ".join(notes), counts)


def matching_frames(wanted: Iterable[int], original: list[float], fake: list[float]) -> dict[int, int]:
    """Frame of the fake -> frame of its original, for those of the wanted frames that both have.

    `original`, `fake`: times of the frames in seconds, by index, from 0 on. Frames correspond by their number,
    or by their time where the durations agree better than the numbers of frames: then the fake has another
    frame rate, or lost frames.
    """
    durations, counts = (fake[-1], original[-1]), (len(fake) - 1, len(original) - 1)
    wanted = [frame for frame in wanted if frame < len(original)]
    if not all(durations) or _unlike(counts) <= _unlike(durations):
        return {frame: frame for frame in wanted if frame < len(fake)}
    allowed = SAME_TIME * min(duration / count for duration, count in zip(durations, counts, strict=True))
    nearest = {frame: int(np.abs(np.subtract(fake, original[frame])).argmin()) for frame in wanted}
    return {match: frame for frame, match in nearest.items() if abs(fake[match] - original[frame]) <= allowed}


def _unlike(pair: tuple[float, float]) -> float:
    return abs(math.log(pair[0] / pair[1]))


@functools.lru_cache(maxsize=4)
def _reference(original: Path) -> tuple[tuple[int, int], list[float]]:
    """Size (width, height) of an original in pixels, and the times of its frames."""
    clip = Clip(original)
    first = next(iter_frames(clip, range(0, clip.total, FRAME_STEP)), None)
    if first is None:
        raise VideoError(original, "no frame can be decoded; it is damaged, fetch it again")
    return first.image.shape[1::-1], clip.times


if __name__ == "__main__":
    command.main(main, get_args_parser())
