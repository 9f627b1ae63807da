"""Stage 1: detect faces with MTCNN on every 10th frame of each real video.

    python preprocessing/detect_original_faces.py --root-dir DATA_ROOT

writes DATA_ROOT/bboxes/<video>.json: frame number -> list of [xmin, ymin, xmax, ymax] in pixels of the full frame,
largest first, or null where no face is found. Frames that cannot be decoded are missing from the file. The crops of the
boxes are kept in DATA_ROOT/progress/ for stage 2, which then need not decode the real videos again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli
from common.collector import no_garbage_collection
from common.journal import stamp_of
from common.outcome import Job, Outcome
from common.text import abbreviate
from preprocessing import stage
from preprocessing.boxes import Boxes, write_boxes
from preprocessing.crops import DEFAULT_CROP, MarginCrop, SquareCrop
from preprocessing.kept_crops import KeptCrops, source_of
from preprocessing.layout import BBOXES, FRAME_STEP
from preprocessing.video import MAX_PIXELS, Clip, chunk_frames, iter_frames

VERSION = 1


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    return stage.make_parser(__doc__)


def main(args: argparse.Namespace) -> int:
    """Detect the faces of all real videos. Return the exit status."""
    dataset, root = stage.load_dataset(args), stage.data_root(args)
    jobs = []
    for video in dataset.videos.values():
        if not video.fake:
            path, kept = root.boxes(video.id), root.kept_crops(video.id)
            arguments = video.path, path, args.detector_scale, args.device, args.max_pixels, kept, args.crop
            jobs.append(Job(video.id, (video.path,), path, arguments))
    settings = {"stage": Path(__file__).stem, "version": VERSION, "detector_scale": args.detector_scale}
    return stage.run_jobs(args, dataset, detect, jobs, args.root_dir / BBOXES, settings, uses_device=True)


def detect(
    path: Path,
    output: Path,
    scale: float | str,
    device: str,
    max_pixels: int = MAX_PIXELS,
    kept: Path | None = None,
    rule: MarginCrop | SquareCrop = DEFAULT_CROP,
) -> Outcome:
    """Write the boxes of one clip, and keep its crops for stage 2 unless the clip is unusual.

    Args:
        path: the clip.
        output: JSON file to write.
        scale: scale of the detector's input, or `auto`.
        device: device of the detector.
        max_pixels: limit of the frame size.
        kept: folder of the kept crops; None to keep none.
        rule: the window of a box in the kept crops.
    """
    stamp, crops = stamp_of(path), KeptCrops(rule) if kept else None
    clip = Clip(path, max_pixels)
    wanted = range(0, clip.total, FRAME_STEP)
    boxes = find_boxes(clip, wanted, scale, device, crops)
    lost = sorted(set(wanted) - boxes.keys())
    if not boxes:
        return Outcome("unreadable", f"{path}: no frame can be decoded. The file is damaged; download it again")
    write_boxes(output, boxes)
    faces = sum(map(len, boxes.values()))
    notes = clip.notes.copy()
    if lost:
        notes.append(f"frames that cannot be decoded: {abbreviate([str(frame) for frame in lost])}")
    if kept and crops and not notes:
        crops.write(kept, boxes, source_of(stamp, output, max_pixels, rule))
    counts = {"frames": len(boxes), "faces": faces, "lost_frames": len(lost) + clip.lost}
    return Outcome("ok" if faces else "no_face", "; ".join(notes), counts)


def find_boxes(clip: Clip, wanted: range, scale: float | str, device: str, crops: KeptCrops | None = None) -> Boxes:
    """Return the boxes of the wanted frames that can be decoded, and cut the crops."""
    with no_garbage_collection():
        from preprocessing.faces import find_faces, get_detector  # loads PyTorch, which takes seconds

    detector = get_detector("originals", None if scale == "auto" else float(scale), device)
    boxes = {}
    for batch in chunk_frames(iter_frames(clip, wanted), detector.batch):
        for frame, faces in zip(batch, find_faces(detector, [frame.image for frame in batch]), strict=True):
            boxes[frame.index] = [face.box.tolist() for face in faces]
            if crops:
                crops.add(frame, boxes[frame.index])
    return boxes


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
