"""Compare the speed and the boxes of the face detector with those of facenet-pytorch, frame by frame.

    python -m benchmarks.detect --videos DIR [--frames 32] [--json FILE]

Both detect faces in the same frames at the same detector scale, in turn and in separate processes. Decoding, resizing
and loading the networks are not counted.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from facenet_pytorch import MTCNN

from benchmarks.processes import run_module
from benchmarks.results import Stage, add_json_option, stage_table, write_json
from common import cli
from common.allocator import keep_freed_memory
from common.device import choose_device
from common.text import plural
from inference.aggregation import FRAMES
from inference.submission import find_videos
from preprocessing.faces import THRESHOLDS, FaceDetector
from preprocessing.video import Clip, sample_frames

SIDES = ("plain", "ours")


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--videos", type=Path, required=True, metavar="DIR", help="folder of videos (with subfolders)")
    add("--frames", type=cli.positive, default=FRAMES, help="number of frames per video")
    add("--device", default="cpu", help="device of both detectors: cpu, cuda or cuda:1")
    add("--repeat", type=cli.positive, default=3, help="number of measurements; the fastest of each side counts")
    add_json_option(parser)
    add("--run", choices=SIDES, help=argparse.SUPPRESS)  # one measurement, in its own process
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure both sides and print times, ratios and the largest difference of boxes. Return the exit status."""
    if args.run:
        print(json.dumps(measure(args)))
        return cli.OK
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(args.repeat):
        for side, results in runs.items():
            results.append(run_in_process(side, args))
    plain, ours = runs.values()
    stages = {}
    for name in plain[0]:
        times = (min(run[name]["seconds"] for run in side) for side in (plain, ours))
        stages[Path(name).name] = Stage(*times)
    stages["all"] = Stage(sum(stage.plain for stage in stages.values()), sum(stage.ours for stage in stages.values()))
    difference = max(box_difference(plain[0][name]["boxes"], ours[0][name]["boxes"]) for name in plain[0])
    faces = sum(len(boxes) for clip in ours[0].values() for boxes in clip["boxes"])
    frames = sum(len(clip["boxes"]) for clip in ours[0].values())
    work = f"{plural(len(plain[0]), 'clip')}, {plural(frames, 'frame')}, {plural(faces, 'face')}, {args.device}"
    print(f"{work}, {plural(torch.get_num_threads(), 'thread')}")
    print(stage_table(stages))
    print(f"largest box difference: {difference:.2g} pixels")
    result = {
        "ratio": stages["all"].plain / stages["all"].ours,
        "stages": {name: stage.to_dict() for name, stage in stages.items()},
        "max_box_difference": difference,
    }
    write_json(args.json, work, result)
    return cli.OK


def run_in_process(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one side in its own process and return seconds and boxes by clip."""
    options = ["--videos", args.videos, "--frames", args.frames, "--device", args.device]
    return run_module("benchmarks.detect", "--run", side, *options)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and the boxes of each frame, in pixels of the frame, by clip."""
    if args.run == "ours":
        keep_freed_memory()
    device = choose_device(args.device)
    detector = FaceDetector("inference", device, threads=torch.get_num_threads())
    plain = MTCNN(margin=0, thresholds=list(THRESHOLDS["inference"]), keep_all=True, device=device)
    results = {}
    for name, path in find_videos(args.videos)[0].items():
        frames = [frame.image for frame in sample_frames(Clip(path), args.frames)]
        shrunk = [detector.shrink(frame) for frame in frames]
        if args.run == "ours":
            detector.detect(frames[: detector.batch], shrunk[: detector.batch])  # prepares the kernels
            start = time.perf_counter()
            boxes = [[face.box for face in faces] for faces in detector.detect(frames, shrunk)]
        else:
            plain.detect(shrunk[0])
            start = time.perf_counter()
            boxes = [facenet_boxes(plain, frame, small) for frame, small in zip(frames, shrunk, strict=True)]
        seconds = time.perf_counter() - start
        results[name] = {"seconds": seconds, "boxes": [np.array(found, float).tolist() for found in boxes]}
    return results


def facenet_boxes(detector: MTCNN, frame: np.ndarray, shrunk: np.ndarray) -> np.ndarray:
    """Return the boxes of one frame (n, 4), in pixels of the frame."""
    boxes, _ = detector.detect(shrunk)
    scale = np.tile(np.divide(frame.shape[1::-1], shrunk.shape[1::-1]), 2)
    return np.zeros((0, 4)) if boxes is None else boxes.astype(float) * scale


def box_difference(plain: list[list[list[float]]], ours: list[list[list[float]]]) -> float:
    """Return the largest difference of coordinates; infinite if a frame has another number of faces."""
    if list(map(len, plain)) != list(map(len, ours)):
        return float("inf")
    return max(
        (float(np.abs(np.subtract(*pair)).max()) for pair in zip(plain, ours, strict=True) if pair[0]), default=0
    )


if __name__ == "__main__":
    cli.main(main, get_args_parser())
