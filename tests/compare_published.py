"""Compare with what the published code gave for the same clips.

    python -m tests.compare_published --videos DIR --preprocessing preprocessing_634.json --scores video_scores.json

Both JSON files were written with the code of 2020, float32, detector scale 0.5. The first is of an `original`
and a `fake`: the `boxes` of every 10th frame (frame -> list of boxes), `crops` by video and name (`shape`,
`mean_bgr`), `landmarks` by name, `diffs` by name (`mean`, `over_20`). The second has by clip the `score`, the
number of `faces` and the `min`, `max` and `mean` of their scores by one B7 filled as in tests/golden.py.

Exit status 1 where a count differs, a box is off by more than 1 pixel, a crop's shape by 2 pixels or its mean
by 1 gray level, more than 5 % of the landmarks by 2 pixels, a diff's mean by 1 gray level, or a score by 0.02.
The published diffs wrap around where SSIM is negative, ours are clipped: they are compared wrapped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from common.allocator import keep_freed_memory
from inference.ensemble import Ensemble
from inference.predictor import Predictor
from preprocessing.faces import FaceDetector
from preprocessing.generate_diffs import dissimilarity
from preprocessing.images import read_image
from tests.support import golden
from tests.support.datasets import REAL, fake_of, preprocess, write_part
from training.zoo import build_network

SCALE = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--preprocessing", type=Path)
    parser.add_argument("--scores", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    clips = {path.stem: path for path in args.videos.rglob("*.mp4")}
    good = True
    if args.preprocessing:
        good &= compare_preprocessing(clips, json.loads(args.preprocessing.read_text()))
    if args.scores:
        good &= compare_scores(clips, json.loads(args.scores.read_text()))
    return 0 if good else 1


def compare_preprocessing(clips: dict[str, Path], published: dict) -> bool:
    original, fake = published["original"], published["fake"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        metadata = {f"{original}.mp4": REAL, f"{fake}.mp4": fake_of(f"{original}.mp4")}
        for name in metadata:
            (write_part(root, 0, metadata) / name).symlink_to(clips[Path(name).stem].resolve())
        finished = preprocess(root, "--detector-scale", str(SCALE))
        if finished.returncode:
            sys.exit(finished.stderr)
        return all([
            compare_boxes(json.loads((root / f"bboxes/{original}.json").read_text()), published["boxes"]),
            compare_crops(root / "crops", published["crops"]),
            compare_landmarks(root / "landmarks" / original, published["landmarks"]),
            compare_diffs(root, original, fake, published["diffs"]),
        ])  # fmt: skip


def compare_boxes(boxes: dict, published: dict) -> bool:
    counts = [{frame: len(found or []) for frame, found in each.items()} for each in (boxes, published)]
    if counts[0] != counts[1]:
        print("boxes: DIFFERENT counts")
        return False
    off = max(np.abs(np.subtract(boxes[frame], found)).max() for frame, found in published.items() if found)
    print(f"boxes: {len(boxes)} frames, the same counts, off by {off:.2g} pixels at most")
    return off <= 1


def compare_crops(crops: Path, published: dict) -> bool:
    sizes, means = [], []
    for video, expected in published.items():
        for name, figures in expected.items():
            crop = cv2.imread(str(crops / video / f"{name}.png"))
            sizes.append(np.abs(np.subtract(crop.shape, figures["shape"])).max())
            means.append(np.abs(crop.mean((0, 1)) - figures["mean_bgr"]).max())
    print(f"crops: {len(sizes)}, sizes off by {max(sizes)} pixels at most, means by {max(means):.2g} gray levels")
    return max(sizes) <= 2 and max(means) <= 1


def compare_landmarks(folder: Path, published: dict) -> bool:
    off = np.array([np.abs(np.load(folder / f"{name}.npy") - points).max(1) for name, points in published.items()])
    near, further = np.mean(off <= 2), len(list(folder.iterdir())) - len(off)
    print(f"landmarks: {len(off)}, {near:.0%} within 2 pixels, off by {off.max()} at most; {further} further ones")
    return near >= 0.95


def compare_diffs(root: Path, original: str, fake: str, published: dict) -> bool:
    wrapped, clipped = [], []
    for name, figures in published.items():
        crops = [read_image(root / "crops" / video / name.replace("_diff", ".png")) for video in (original, fake)]
        around = cv2.cvtColor(dissimilarity(*crops).astype(np.int64).astype(np.uint8), cv2.COLOR_RGB2GRAY)
        wrapped.append(abs(around.mean() - figures["mean"]))
        mask = cv2.imread(str(root / "diffs" / fake / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        clipped.append(mask.mean() - figures["mean"])
    print(
        f"diffs: {len(wrapped)}, wrapped as published means off by {max(wrapped):.2g} gray levels at most; "
        f"clipping makes them brighter by {min(clipped):.2f} to {max(clipped):.2f}"
    )
    return max(wrapped) <= 1


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
