"""Compare preprocessing and video scores with those of the published code for the same clips.

    python -m tests.compare_published --videos DIR --preprocessing preprocessing_634.json --scores video_scores.json

The two reference files are not part of the repository. They were made with the published code in float32, at detector
scale 0.5:

    preprocessing_634.json   one `original` and one `fake`: `boxes` (frame -> bounding boxes), `crops` (video -> name ->
                             `shape`, `mean_bgr`), `landmarks` (name -> points), `diffs` (name -> `mean`, `over_20`)
    video_scores.json        per clip: `score`, number of `faces`, and `min`, `max` and `mean` of the face scores of the
                             B7 that tests/support/golden.py fills

Exit status 1 if a count differs or a difference exceeds its tolerance. The published masks wrap around where SSIM is
negative and this project's are clipped, so masks are compared before clipping.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

from common import cli
from common.allocator import keep_freed_memory
from common.errors import UserError
from common.text import plural
from inference.ensemble import Ensemble
from inference.predictor import Predictor
from preprocessing.faces import FaceDetector
from preprocessing.generate_diffs import dissimilarity
from preprocessing.images import read_image
from tests.support import golden
from tests.support.datasets import REAL, fake_of, preprocess, write_part
from training.zoo import build_network

SCALE = 0.5
# Largest differences from the published code. Boxes and landmarks in pixels, means in gray levels.
BOX, CROP_SHAPE, CROP_MEAN, MASK_MEAN, SCORE = 1, 2, 1, 1, 0.02
LANDMARK, LANDMARK_FRACTION = 2, 0.95  # this fraction of the landmarks must be this close


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder of the clips")
    parser.add_argument("--preprocessing", type=Path, metavar="JSON", help="reference outputs of preprocessing")
    parser.add_argument("--scores", type=Path, metavar="JSON", help="reference video scores")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run the comparisons whose reference files are given. Return 1 if one of them fails, else 0."""
    keep_freed_memory()
    clips = {path.stem: path for path in args.videos.rglob("*.mp4")}
    equal = True
    if args.preprocessing:
        equal &= compare_preprocessing(clips, json.loads(args.preprocessing.read_text()))
    if args.scores:
        equal &= compare_scores(clips, json.loads(args.scores.read_text()))
    return 0 if equal else 1


def compare_preprocessing(clips: dict[str, Path], published: dict) -> bool:
    original, fake = published["original"], published["fake"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        metadata = {f"{original}.mp4": REAL, f"{fake}.mp4": fake_of(f"{original}.mp4")}
        for name in metadata:
            (write_part(root, 0, metadata) / name).symlink_to(clips[Path(name).stem].resolve())
        finished = preprocess(root, "--detector-scale", str(SCALE))
        if finished.returncode:
            raise UserError(finished.stderr)
        return all([
            compare_boxes(json.loads((root / f"bboxes/{original}.json").read_text()), published["boxes"]),
            compare_crops(root / "crops", published["crops"]),
            compare_landmarks(root / "landmarks" / original, published["landmarks"]),
            compare_masks(root, original, fake, published["diffs"]),
        ])  # fmt: skip


def compare_boxes(boxes: dict, published: dict) -> bool:
    ours, theirs = ({frame: len(found or []) for frame, found in each.items()} for each in (boxes, published))
    if ours != theirs:
        print("boxes: DIFFERENT numbers of faces")
        return False
    largest = max(np.abs(np.subtract(boxes[frame], found)).max() for frame, found in published.items() if found)
    print(f"boxes: {plural(len(boxes), 'frame')}, equal counts, largest difference {largest:.2g} pixels")
    return largest <= BOX


def compare_crops(crops: Path, published: dict) -> bool:
    shapes, means = [], []
    for video, expected_crops in published.items():
        for name, expected in expected_crops.items():
            crop = cv2.imread(str(crops / video / f"{name}.png"))
            shapes.append(np.abs(np.subtract(crop.shape, expected["shape"])).max())
            means.append(np.abs(crop.mean((0, 1)) - expected["mean_bgr"]).max())
    print(
        f"crops: {len(shapes)}, largest difference in size {max(shapes)} pixels, in mean {max(means):.2g} gray levels"
    )
    return max(shapes) <= CROP_SHAPE and max(means) <= CROP_MEAN


def compare_landmarks(folder: Path, published: dict) -> bool:
    differences = np.array([
        np.abs(np.load(folder / f"{name}.npy") - points).max(1) for name, points in published.items()
    ])  # fmt: skip
    close, more = np.mean(differences <= LANDMARK), len(list(folder.iterdir())) - len(differences)
    print(
        f"landmarks: {plural(len(differences), 'crop')}, {close:.0%} within {LANDMARK} pixels, largest difference "
        f"{differences.max()}; {plural(more, 'crop')} without published landmarks"
    )
    return close >= LANDMARK_FRACTION


def compare_masks(root: Path, original: str, fake: str, published: dict) -> bool:
    wrapped, clipped = [], []
    for name, expected in published.items():
        crops = [read_image(root / "crops" / video / name.replace("_diff", ".png")) for video in (original, fake)]
        mask = cv2.cvtColor(dissimilarity(*crops).astype(np.int64).astype(np.uint8), cv2.COLOR_RGB2GRAY)
        wrapped.append(abs(mask.mean() - expected["mean"]))
        ours = cv2.imread(str(root / "diffs" / fake / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        clipped.append(ours.mean() - expected["mean"])
    print(
        f"masks: {len(wrapped)}, largest difference in mean before clipping {max(wrapped):.2g} gray levels; "
        f"clipping adds {min(clipped):.2f} to {max(clipped):.2f}"
    )
    return max(wrapped) <= MASK_MEAN


def compare_scores(clips: dict[str, Path], published: dict) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        network = golden.fill(build_network("DeepFakeClassifier", "tf_efficientnet_b7_ns"))
        torch.save({"state_dict": network.state_dict()}, f"{folder}/b7")
        ensemble = Ensemble([f"{folder}/b7"], "auto", "float32")
    predictor = Predictor(ensemble, FaceDetector("inference", ensemble.device, SCALE))
    equal = True
    for name, result in zip(published, predictor.predict(clips[name] for name in published), strict=True):
        scores, expected = [face["scores"]["b7"] for face in result.faces], published[name]
        ours = {"score": result.score, "min": min(scores), "max": max(scores), "mean": float(np.mean(scores))}
        differences = {key: abs(value - expected[key]) for key, value in ours.items()}
        equal &= differences["score"] <= SCORE and len(scores) == expected["faces"]
        listed = ", ".join(f"{key} {value:.2g}" for key, value in differences.items())
        print(f"{name}: {len(scores)} faces (published: {expected['faces']}), differences: {listed}")
    return equal


if __name__ == "__main__":
    cli.main(main, get_args_parser())
