"""Stage 2: crop the faces in all videos; fakes use the bounding boxes of their originals.

    python preprocessing/extract_crops.py --root-dir DATA_ROOT [--crop KIND] [--crops-dir DIR] [--preview N]

writes DATA_ROOT/crops/<video>/<frame>_<face>.png with a margin of one third of the box on each side or, with
--crop square, DATA_ROOT/crops_square/<video>/<frame>_<face>.png, the tight squares that the embedded model sees. What
lies outside the frame is cut off. A person keeps the same face number across frames.

Frame numbers are the original's: if a fake has a different frame rate or has lost frames, the frame with the same time
is cropped; if it has a different size, the boxes are scaled. The clip's record in DATA_ROOT/progress/ notes this.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli
from common.files import atomic_folder
from common.journal import stamp_of
from common.outcome import Job, Outcome
from common.text import plural
from preprocessing import kept_crops, stage
from preprocessing.boxes import Boxes, face_numbers, read_boxes
from preprocessing.contact_sheet import Sample
from preprocessing.crop_kinds import STAGE, VERSION, check_kind, crop_settings
from preprocessing.crops import DEFAULT_CROP, MarginCrop, SquareCrop, cut_faces
from preprocessing.dataset import Dataset
from preprocessing.frame_matching import match_frames, matching_times
from preprocessing.images import encode_image, read_image
from preprocessing.layout import FRAME_STEP, DataRoot, crop_name
from preprocessing.video import MAX_PIXELS, Clip, VideoError, iter_frames

# Frame rates that differ by at most this fraction count as equal.
SAME_RATE = 0.01


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    return stage.make_parser(__doc__)


def main(args: argparse.Namespace) -> int:
    """Crop the faces of all videos. Return the exit status."""
    dataset, root = stage.load_dataset(args), stage.data_root(args)
    boxes_files = root.boxes("*").parent.glob("*.json")
    stray = {path.stem: Outcome("no_video", str(path)) for path in boxes_files if path.stem not in dataset.videos}
    settings = {"stage": STAGE, "version": VERSION, **crop_settings(args.crop)}
    output = root.crops("")
    check_kind(output, args.crop)

    def sample(path: Path) -> Sample:
        image, clip = read_image(path), path.parent.name
        label = "FAKE" if dataset.videos[clip].fake else "REAL"
        return Sample(f"{label} {clip}/{path.stem}", [image], [f"{image.shape[1]}x{image.shape[0]}"])

    jobs = make_jobs(dataset, root, args.max_pixels, args.crop)
    status = stage.run_jobs(args, dataset, extract, jobs, output, settings, sample, extra=stray)
    with suppress(OSError):  # not empty if other shards use it
        root.kept_crops("").rmdir()
    return status


def make_jobs(
    dataset: Dataset, root: DataRoot, max_pixels: int = MAX_PIXELS, rule: MarginCrop | SquareCrop = DEFAULT_CROP
) -> list[Job]:
    """Return one job per video. The fakes of an original follow it, so that a process can remember its frame times."""
    jobs = []
    for video in sorted(dataset.videos.values(), key=lambda video: (video.original or video.id, video.fake)):
        source = dataset.original_of(video) if video.fake else video
        boxes = root.boxes(source.id) if source else None
        original = source.path if source and video.fake else None
        inputs = (video.path, *(path for path in (boxes, original) if path))
        output = root.crops(video.id)
        kept = None if video.fake else root.kept_crops(video.id)
        jobs.append(Job(video.id, inputs, output, (video.path, boxes, original, output, max_pixels, kept, rule)))
    return jobs


def extract(
    path: Path,
    boxes_path: Path | None,
    original: Path | None,
    output: Path,
    max_pixels: int = MAX_PIXELS,
    kept: Path | None = None,
    rule: MarginCrop | SquareCrop = DEFAULT_CROP,
) -> Outcome:
    """Write the crops of one clip.

    Args:
        path: the clip.
        boxes_path: boxes of the clip or, for a fake, of its original; None if the original is not in the dataset.
        original: the original of a fake; None for a real video.
        output: folder to write.
        max_pixels: limit of the frame size.
        kept: where stage 1 may have kept the crops of a real video.
        rule: the window of a box.
    """
    if boxes_path is None:
        return Outcome("no_original", f"{path}: its original is not in the dataset, so there are no boxes for it")
    if kept:
        count = kept_crops.take(kept, kept_crops.source_of(stamp_of(path), boxes_path, max_pixels, rule), output)
        if count is not None:
            return Outcome("ok" if count else "no_face", counts={"frames": len(read_boxes(boxes_path)), "crops": count})
    clip, boxes = Clip(path, max_pixels), read_boxes(boxes_path)
    plan = plan_crops(clip, boxes, read_reference(original, max_pixels) if original else None)
    notes = [plan.note] if plan.note else []
    decoded = crops = 0
    with atomic_folder(output) as folder:
        for frame in iter_frames(clip, plan.frames):
            decoded += 1
            number, size = plan.frames[frame.index], frame.image.shape[1::-1]
            if decoded == 1 and plan.size not in (None, size):
                notes.append(f"{_format_size(size)}, its original {_format_size(plan.size)}: boxes are scaled")
            for face, crop in cut_faces(frame.image, plan.faces[number], plan.size, rule):
                (folder / crop_name(number, face)).write_bytes(encode_image(crop))
                crops += 1
    if decoded < len(plan.frames):
        notes.append(f"{plural(len(plan.frames) - decoded, 'frame')} cannot be decoded")
    return Outcome("ok" if crops else "no_face", "; ".join(clip.notes + notes), {"frames": decoded, "crops": crops})


class Reference(NamedTuple):
    """Properties of an original that the crops of its fakes depend on.

    Attributes:
        size: (width, height) in pixels.
        times: times of the frames in seconds.
        rate: frames per second.
    """

    size: tuple[int, int]
    times: list[float]
    rate: Fraction


@functools.lru_cache(maxsize=4)
def read_reference(original: Path, max_pixels: int) -> Reference:
    """Read the Reference of a fake's original. Raises VideoError."""
    clip = Clip(original, max_pixels)
    first = next(iter_frames(clip, range(0, clip.total, FRAME_STEP)), None)
    if first is None:
        raise VideoError(original, "no frame can be decoded. The file is damaged; download it again")
    height, width = first.image.shape[:2]
    return Reference((width, height), clip.times, clip.rate)


class Plan(NamedTuple):
    """Which frames of a clip are cropped and where.

    Attributes:
        frames: frame of the clip -> frame number in the names of the crops.
        faces: frame number in the names -> (face number, box) of each face.
        size: (width, height) of the frames that the boxes refer to; None if these are the clip's own.
        note: how the frames were matched, if the clip and its original differ.
    """

    frames: dict[int, int]
    faces: Mapping[int, list[tuple[int, list[float]]]]
    size: tuple[int, int] | None = None
    note: str = ""


def plan_crops(clip: Clip, boxes: Boxes, reference: Reference | None) -> Plan:
    """Decide which frames of a clip to crop and where.

    Args:
        clip: the clip.
        boxes: boxes of the clip or, for a fake, of its original.
        reference: the original of a fake; None for a real video.
    """
    numbers = face_numbers(boxes)
    faces = {frame: list(zip(numbers[frame], boxes[frame], strict=True)) for frame in boxes}
    if reference is None:
        return Plan({frame: frame for frame in boxes if frame < clip.total}, faces)
    frames = match_frames(sorted(boxes), reference.times, clip.times)
    total = len(reference.times)
    same_rate = abs(clip.rate / reference.rate - 1) <= SAME_RATE
    if clip.total == total and len(frames) == len(boxes) and same_rate:
        return Plan(frames, faces, reference.size)
    how = "number" if matching_times(reference.times, clip.times) is None else "time"
    note = (
        f"{clip.total} frames at {float(clip.rate):.4g} per second, its original {total} at "
        f"{float(reference.rate):.4g}: {len(frames)} of {len(boxes)} matched by {how}"
    )
    return Plan(frames, faces, reference.size, note)


def _format_size(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
