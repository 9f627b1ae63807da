"""Compare the speed and scores of the predictor with those of a baseline that works like the published code.

    python -m benchmarks.predict --videos DIR [--models N|CHECKPOINT ...] [--backend openvino] [--json FILE]

The baseline decodes every frame with OpenCV, runs MTCNN on one frame at a time and scores the faces of one clip at a
time, with one float32 forward pass per network. Both score the same clips, in turn and in separate processes; loading
the networks is not counted.

"of limit" is the share of what this machine can do: for decoding, the time in which FFmpeg decodes all frames; for
classification, the time in which large matrix products do as many floating-point operations in the same precision.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN
from PIL import Image

from benchmarks.limits import count_flops, decode_seconds, matmul_rate
from benchmarks.models import add_models_option, find_models
from benchmarks.processes import run_module
from benchmarks.results import Stage, add_json_option, stage_table, write_json
from common import cli
from common.allocator import keep_freed_memory
from common.device import PRECISIONS, choose_device
from common.text import plural
from inference.aggregation import FRAMES, confident_strategy
from inference.backends import BACKENDS
from inference.ensemble import Ensemble
from inference.loading import load_predictor
from inference.submission import find_videos
from inference.video_score import UNKNOWN
from preprocessing.crops import center_in_square, cut, resize_longer_side
from preprocessing.detector_scale import scale_for
from preprocessing.faces import THRESHOLDS, FaceDetector
from preprocessing.video import Clip, sample_frames
from training.tools.checkpoint import load_network

STAGES = ("decode", "detect", "classify")


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--videos", type=Path, required=True, metavar="DIR", help="folder of videos (with subfolders)")
    add_models_option(parser)
    add("--backend", choices=BACKENDS, default=BACKENDS[0], help="library that runs the predictor's networks")
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="precision of the predictor")
    add("--device", default="auto", help="device for both sides: auto, cpu, cuda or cuda:1")
    add("--repeat", type=cli.positive, default=1, help="number of measurements; the fastest of each side counts")
    add_json_option(parser)
    add("--run", choices=("baseline", "ours"), help=argparse.SUPPRESS)  # one measurement, in its own process
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure both sides and print times, ratios and the largest score difference. Return the exit status."""
    if args.run:
        print(json.dumps({"baseline": baseline, "ours": ours}[args.run](args)))
        return cli.OK
    with tempfile.TemporaryDirectory() as folder:
        args.models = find_models(args.models, Path(folder))
        runs: dict[str, list[dict[str, Any]]] = {"baseline": [], "ours": []}
        for _ in range(args.repeat):
            for name, results in runs.items():
                results.append(run_in_process(name, args))
    report(args.json, *(min(results, key=lambda result: result["total"]) for results in runs.values()))
    return cli.OK


def run_in_process(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one side in its own process and return its result."""
    options = ["--videos", args.videos, "--precision", args.precision, "--device", args.device]
    options += ["--backend", args.backend]
    return run_module("benchmarks.predict", "--run", name, *options, "--models", *args.models)


def report(path: Path | None, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    """Print the table of stages and the largest score difference, and write them to a JSON file."""
    work = f"{plural(len(mine['scores']), 'clip')}, {plural(mine['faces'], 'face')}, {mine['where']}"
    limits = mine["limits"]
    stages = {name: Stage(theirs[name], mine[name], *limits.get(name, ())) for name in STAGES}
    stages["end to end"] = Stage(theirs["total"], mine["total"])
    difference = max(abs(theirs["scores"][name] - score) for name, score in mine["scores"].items())
    print(f"{work}, {plural(torch.get_num_threads(), 'thread')}")
    print(stage_table(stages))
    print(f"largest score difference: {difference:.2g}")
    result = {
        "ratio": stages["end to end"].plain / stages["end to end"].ours,
        "stages": {name: stage.to_dict() for name, stage in stages.items()},
        "max_score_difference": difference,
    }
    write_json(path, work, result)


def baseline(args: argparse.Namespace) -> dict[str, Any]:
    """Score the videos as the published code does. Return scores and seconds per stage."""
    device = choose_device(args.device)
    detector = MTCNN(margin=0, thresholds=list(THRESHOLDS["inference"]), keep_all=True, device=device)
    networks = [load_network(path) for path in args.models]
    for network, _ in networks:
        network.to(device)
    seconds = dict.fromkeys(STAGES, 0.0)
    scores = {}
    for name, path in find_videos(args.videos)[0].items():
        start = time.perf_counter()
        frames = decode_all(path)
        decoded = time.perf_counter()
        faces = [(frame, box) for frame in frames for box in detect(detector, frame)]
        detected = time.perf_counter()
        votes = [classify(network, recipe, faces, device) for network, recipe in networks] if faces else []
        scores[name] = float(np.mean(votes)) if votes else UNKNOWN
        times = decoded - start, detected - decoded, time.perf_counter() - detected
        for stage, used in zip(STAGES, times, strict=True):
            seconds[stage] += used
    return {"scores": scores, "total": sum(seconds.values()), **seconds}


def decode_all(path: Path) -> list[np.ndarray]:
    """Decode every frame and return FRAMES of them, evenly spaced, as RGB."""
    capture = cv2.VideoCapture(str(path))
    wanted = set(np.linspace(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) - 1, FRAMES, dtype=int).tolist())
    frames, index = [], 0
    while capture.grab():
        if index in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        index += 1
    return frames


def detect(detector: MTCNN, frame: np.ndarray) -> list[np.ndarray]:
    """Return the bounding boxes of one frame's faces, in pixels of the frame."""
    height, width = frame.shape[:2]
    scale = scale_for(width, height)
    small = Image.fromarray(frame).resize((int(width * scale), int(height * scale)))
    with torch.no_grad():
        boxes, _ = detector.detect(small)
    ratio = np.array([width / small.width, height / small.height] * 2)
    return [] if boxes is None else [box.astype(float) * ratio for box in boxes]


def classify(network: torch.nn.Module, recipe: Any, faces: list, device: torch.device) -> float:
    """Score a clip's faces, pairs of frame and bounding box, in one forward pass. Return the clip's score."""
    crops = [
        center_in_square(resize_longer_side(cut(frame, recipe.crop.window(box)), recipe.size), recipe.size)
        for frame, box in faces
    ]
    pixels = torch.from_numpy(np.stack(crops)).to(device).float() / 255
    normalized = (pixels - torch.tensor(recipe.mean, device=device)) / torch.tensor(recipe.std, device=device)
    images = normalized.permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        logits = torch.stack([network(view) for view in recipe.views(images)]).mean(dim=0)
    return confident_strategy(logits[:, 0].sigmoid().cpu().numpy())


def ours(args: argparse.Namespace) -> dict[str, Any]:
    """Score the videos with the predictor, then time its stages one by one. Return scores and seconds."""
    keep_freed_memory()
    predictor = load_predictor(args.models, args.device, args.precision, backend=args.backend)
    ensemble = predictor.ensemble
    videos = find_videos(args.videos)[0]
    start = time.perf_counter()
    results = dict(zip(videos, predictor.predict(videos.values()), strict=True))
    total = time.perf_counter() - start

    seconds = dict.fromkeys(STAGES, 0.0)
    detector = FaceDetector("inference", ensemble.device, threads=torch.get_num_threads())
    for path in videos.values():
        start = time.perf_counter()
        frames = [frame.image for frame in sample_frames(Clip(path), FRAMES)]
        decoded = time.perf_counter()
        detector.detect(frames)
        seconds["decode"] += decoded - start
        seconds["detect"] += time.perf_counter() - decoded
    faces = sum(len(result.faces) for result in results.values())
    size = ensemble.batch_size
    batch = {spec: np.zeros((size, spec.size, spec.size, 3), np.uint8) for spec in ensemble.crop_specs}
    start = time.perf_counter()
    for _ in range(-(-faces // size)):
        ensemble.score(batch)
    seconds["classify"] = time.perf_counter() - start
    return {
        "scores": {name: result.score for name, result in results.items()},
        "total": total,
        "faces": faces,
        "where": where(ensemble),
        "limits": limits_of(args, ensemble, faces),
        **seconds,
    }


def where(ensemble: Ensemble) -> str:
    """Return the networks, and what runs them."""
    encoders = sorted({recipe.encoder for recipe in ensemble.recipes})
    return (
        f"{plural(len(ensemble.recipes), 'network')} ({', '.join(encoders)}) on {ensemble.device} in "
        f"{ensemble.precision} with {ensemble.backend}"
    )


def limits_of(args: argparse.Namespace, ensemble: Ensemble, faces: int) -> dict[str, tuple[float, str]]:
    """Return the seconds that stages would take at this machine's limits, and the names of the limits."""
    flops = 0
    for network, recipe in map(load_network, args.models):
        flops += count_flops(network, torch.cat(recipe.views(torch.zeros(1, 3, recipe.size, recipe.size))))
    rate = matmul_rate(ensemble.device, getattr(torch, ensemble.precision))
    return {
        "decode": (decode_seconds(find_videos(args.videos)[0].values()), "FFmpeg, all frames"),
        "classify": (faces * flops / rate, f"{rate / 1e12:.2f} TFLOP/s in {ensemble.precision}"),
    }


if __name__ == "__main__":
    cli.main(main, get_args_parser())
