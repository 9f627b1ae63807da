"""Compare with what the published code gave for the same clips.

    python -m tests.compare_published --videos DIR --boxes preprocessing_634.json --scores video_scores.json

Both JSON files were written with the code of 2020, float32, detector scale 0.5: the boxes of an original's
every 10th frame (`original`, `boxes`: frame -> list of boxes), and by clip the `score`, the number of
`faces` and the `min`, `max` and `mean` of their scores by one B7 filled as in tests/golden.py. Exit status 1
where a box is off by more than 1 pixel, a count differs, or a score is off by more than 0.02.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from inference.ensemble import Ensemble
from inference.predictor import Predictor
from preprocessing.allocator import keep_freed_memory
from preprocessing.faces import FaceDetector
from preprocessing.video import Clip, read_frames
from tests import golden
from training.zoo import build_network

SCALE = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--boxes", type=Path)
    parser.add_argument("--scores", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    clips = {path.stem: path for path in args.videos.rglob("*.mp4")}
    good = True
    if args.boxes:
        good &= compare_boxes(clips, json.loads(args.boxes.read_text()))
    if args.scores:
        good &= compare_scores(clips, json.loads(args.scores.read_text()))
    return 0 if good else 1


def compare_boxes(clips: dict[str, Path], published: dict) -> bool:
    clip = Clip(clips[published["original"]])
    frames = read_frames(clip, range(0, clip.total, 10))
    found = FaceDetector("originals", scale=SCALE).detect([frame.image for frame in frames])
    boxes = {
        str(frame.index): [face.box.tolist() for face in faces] for frame, faces in zip(frames, found, strict=True)
    }
    counts = {key: len(value or []) for key, value in published["boxes"].items()}
    same = counts == {key: len(value) for key, value in boxes.items()}
    off = (
        max(
            (np.abs(np.subtract(boxes[key], value)).max() for key, value in published["boxes"].items() if value),
            default=0.0,
        )
        if same
        else float("inf")
    )
    print(f"boxes: {len(boxes)} frames, {'the same' if same else 'DIFFERENT'} counts, off by {off:.2g} pixels at most")
    return off <= 1


def compare_scores(clips: dict[str, Path], published: dict) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        network = golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_b7_ns"))
        torch.save({"state_dict": network.state_dict()}, f"{folder}/b7")
        ensemble = Ensemble([f"{folder}/b7"], "auto", "float32")
    predictor = Predictor(ensemble, FaceDetector("inference", ensemble.device, SCALE))
    good = True
    for name, result in zip(published, predictor.predict(clips[name] for name in published), strict=True):
        scores = [face["scores"]["b7"] for face in result.faces]
        ours = {"score": result.score, "min": min(scores), "max": max(scores), "mean": float(np.mean(scores))}
        off = {key: abs(value - published[name][key]) for key, value in ours.items()}
        good &= off["score"] <= 0.02 and len(scores) == published[name]["faces"]
        print(
            f"{name}: {len(scores)} faces ({published[name]['faces']}), off by", {k: f"{v:.2g}" for k, v in off.items()}
        )
    return good


if __name__ == "__main__":
    sys.exit(main())
