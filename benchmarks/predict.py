"""How much faster is the predictor than a plain loop, at the same scores?

    python -m benchmarks.predict --videos DIR [--models CHECKPOINT ...] [--precision auto] [--repeat 2]

The plain loop does what the published code does, made to run: OpenCV decodes every frame, each of the
32 frames goes through MTCNN alone, one call of each model in float32 has a clip's faces, one clip after
another. Both run over the same clips in processes of their own, in turn; models are loaded before the
clock starts. Without --models, a B7 of the released shape, filled as in tests/golden.py, is used.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from facenet_pytorch import MTCNN
from PIL import Image

from common.allocator import keep_freed_memory
from common.device import choose_device
from inference.aggregation import confident_strategy
from inference.ensemble import Ensemble
from inference.predictor import FRAMES, Predictor
from preprocessing.crops import center_in_square, cut, resize_longer_side
from preprocessing.faces import THRESHOLDS, FaceDetector, detector_scale
from preprocessing.video import Clip, sample_frames
from training.tools.checkpoint import load_network
from training.zoo import build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--run", choices=("plain", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps({"plain": plain, "ours": ours}[args.run](args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.models = args.models or [released_shape(Path(folder) / "b7")]
        runs = {"plain": [], "ours": []}
        for _ in range(args.repeat):
            for name, results in runs.items():
                results.append(in_a_process(name, args))
    report(runs)


def released_shape(path: Path) -> str:
    from tests import golden

    network = golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_b7_ns"))
    torch.save({"state_dict": network.state_dict()}, path)
    return str(path)


def in_a_process(name: str, args: argparse.Namespace) -> dict:
    options = ["--videos", str(args.videos), "--precision", args.precision, "--device", args.device]
    command = [sys.executable, "-m", "benchmarks.predict", "--run", name, *options, "--models", *args.models]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def report(runs: dict[str, list[dict]]) -> None:
    best = {name: min(results, key=lambda result: result["seconds"]) for name, results in runs.items()}
    plain_run, our_run = best["plain"], best["ours"]
    apart = max(abs(plain_run["scores"][name] - score) for name, score in our_run["scores"].items())
    size = f"{len(our_run['scores'])} clips, {our_run['faces']} faces"
    print(f"{size}, {our_run['where']}, {torch.get_num_threads()} threads")
    print(f"{'':16}{'plain':>10}{'ours':>10}{'ratio':>8}")
    for stage in ("decode", "detect", "classify", "seconds"):
        label = "end to end" if stage == "seconds" else stage
        print(f"{label:16}{plain_run[stage]:9.1f}s{our_run[stage]:9.1f}s{plain_run[stage] / our_run[stage]:8.2f}")
    print(f"largest difference of a score: {apart:.2g}")


def clips_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.mp4"))


def plain(args: argparse.Namespace) -> dict:
    """The published procedure."""
    device = choose_device(args.device)
    detector = MTCNN(margin=0, thresholds=list(THRESHOLDS["inference"]), keep_all=True, device=device)
    networks = [load_network(path) for path in args.models]
    for network, _ in networks:
        network.to(device)
    times = dict.fromkeys(("decode", "detect", "classify"), 0.0)
    scores = {}
    for path in clips_of(args.videos):
        start = time.perf_counter()
        frames = plain_frames(path)
        times["decode"] += time.perf_counter() - start

        start = time.perf_counter()
        found = []
        for frame in frames:
            height, width = frame.shape[:2]
            scale = detector_scale(width, height)
            small = Image.fromarray(frame).resize((int(width * scale), int(height * scale)))
            with torch.no_grad():
                boxes, _ = detector.detect(small)
            ratio = np.array([width / small.width, height / small.height] * 2)
            found += [(frame, box.astype(float) * ratio) for box in (boxes if boxes is not None else [])]
        times["detect"] += time.perf_counter() - start

        start = time.perf_counter()
        votes = []
        for network, recipe in networks if found else []:
            squares = [
                center_in_square(resize_longer_side(cut(frame, recipe.crop.window(box)), recipe.size), recipe.size)
                for frame, box in found
            ]
            pixels = torch.from_numpy(np.stack(squares)).to(device).float() / 255
            normal = (pixels - torch.tensor(recipe.mean, device=device)) / torch.tensor(recipe.std, device=device)
            with torch.no_grad():
                logits = network(normal.permute(0, 3, 1, 2).contiguous())
            votes.append(confident_strategy(logits[:, 0].sigmoid().cpu().numpy()))
        scores[path.name] = float(np.mean(votes)) if votes else 0.5
        times["classify"] += time.perf_counter() - start
    return {"scores": scores, "seconds": sum(times.values()), **times}


def plain_frames(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    wanted = set(np.linspace(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) - 1, FRAMES, dtype=int).tolist())
    frames, index = [], 0
    while capture.grab():
        if index in wanted:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        index += 1
    return frames


def ours(args: argparse.Namespace) -> dict:
    """The predictor end to end, then its stages one at a time."""
    keep_freed_memory()
    ensemble = Ensemble(args.models, args.device, args.precision)
    detector = FaceDetector("inference", ensemble.device)
    predictor = Predictor(ensemble, detector)
    paths = clips_of(args.videos)
    start = time.perf_counter()
    results = list(predictor.predict(paths))
    seconds = time.perf_counter() - start

    times = dict.fromkeys(("decode", "detect"), 0.0)
    for path in paths:
        start = time.perf_counter()
        frames = [frame.image for frame in sample_frames(Clip(path), FRAMES)]
        decoded = time.perf_counter()
        detector.detect(frames)
        times["decode"] += decoded - start
        times["detect"] += time.perf_counter() - decoded
    faces = sum(len(result.faces) for result in results)
    batch = predictor.batch_size
    squares = {(rule, size): np.zeros((batch, size, size, 3), np.uint8) for rule, size in ensemble.inputs}
    start = time.perf_counter()
    for _ in range(-(-faces // batch)):
        ensemble.score(squares)
    return {
        "scores": {result.path.name: result.score for result in results},
        "seconds": seconds,
        "faces": faces,
        "where": f"{ensemble.device} {ensemble.precision}",
        "classify": time.perf_counter() - start,
        **times,
    }


if __name__ == "__main__":
    main()
