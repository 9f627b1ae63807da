"""Crops and masks of fakes whose size, length or frame rate differs from the original's."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from common.outcome import Outcome
from preprocessing import sample_clips
from preprocessing.dataset import read_dataset
from preprocessing.detect_original_faces import detect
from preprocessing.extract_crops import extract, make_jobs
from preprocessing.generate_diffs import diffs
from preprocessing.images import list_images, read_image
from preprocessing.layout import DIFF_SUFFIX, DataRoot
from tests.support.datasets import REAL, fake_of, portrait_frames, write_part

FRAMES = 61
USED = range(0, FRAMES, 10)


class Case(NamedTuple):
    """A fake that shows the same pictures as its original.

    Attributes:
        frames: the original's frames for which the fake has crops.
        matched: text of the message about frame matching, if the videos differ.
        scale: its size relative to the original.
    """

    frames: range = USED
    matched: str = ""
    scale: float = 1


CASES = {
    "same": Case(),
    "half": Case(scale=0.5),
    "larger": Case(scale=1.5),
    "short": Case(range(0, 35, 10), "4 of 7 matched by number"),
    "dropped": Case(USED, "7 of 7 matched by time"),
    "late": Case(range(10, FRAMES, 10), "6 of 7 matched by time"),
    "slow": Case(USED, "7 of 7 matched by time"),
    "relabeled": Case(USED, "7 of 7 matched by number"),
    "long": Case(USED, "7 of 7 matched by number"),
}


class Processed(NamedTuple):
    """The dataset after stages 1, 2 and 4, and the outcomes of stage 2."""

    root: DataRoot
    outcomes: dict[str, Outcome]


@pytest.fixture(scope="module")
def processed(tmp_path_factory: pytest.TempPathFactory) -> Processed:
    root = DataRoot(tmp_path_factory.mktemp("fakes"))
    folder = write_part(root.root, 0, {"real.mp4": REAL} | {f"{name}.mp4": fake_of("real.mp4") for name in CASES})
    frames = portrait_frames(FRAMES + 20, 320, 240)
    pictures = frames[:FRAMES]
    write_clip = partial(sample_clips.write_clip, crf="8")  # differences between encodings are small
    for name in ("real", "same"):
        write_clip(folder / f"{name}.mp4", pictures)
    for name, size in (("half", (160, 120)), ("larger", (480, 360))):
        resized = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
        write_clip(folder / f"{name}.mp4", resized)
    write_clip(folder / "short.mp4", pictures[:35])
    write_clip(folder / "dropped.mp4", pictures, dropped=[17])
    write_clip(folder / "late.mp4", pictures, dropped=[0, 1])
    write_clip(folder / "slow.mp4", pictures[::5], rate=5)
    write_clip(folder / "relabeled.mp4", pictures, rate=30)
    write_clip(folder / "long.mp4", frames)
    root.boxes("real").parent.mkdir()
    assert detect(folder / "real.mp4", root.boxes("real"), "auto", "cpu").status == "ok"
    outcomes = {job.clip: extract(*job.arguments) for job in make_jobs(read_dataset(root.root), root)}
    for name in CASES:
        assert diffs(root.crops(name), root.crops("real"), root.diffs(name)).status == "ok"
    return Processed(root, outcomes)


def mean_difference(root: DataRoot, clip: str, frame: int, original_frame: int) -> float:
    """Return how much a fake's crop differs from the original's crop of a frame, in gray levels."""
    fake, real = read_crop(root, clip, frame), read_crop(root, "real", original_frame)
    height, width = (min(sides) for sides in zip(fake.shape[:2], real.shape[:2], strict=True))
    fake, real = (cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in (fake, real))
    return float(np.abs(fake - real).mean())


def read_crop(root: DataRoot, clip: str, frame: int) -> np.ndarray:
    return read_image(root.crops(clip) / f"{frame}_0.png").astype(float)


@pytest.mark.parametrize("clip", CASES)
def test_crops_show_the_same_moments_as_the_originals(processed: Processed, clip: str):
    root, case = processed.root, CASES[clip]
    outcome = processed.outcomes[clip]
    assert case.matched in outcome.message
    assert bool(outcome.message) == bool(case.matched or case.scale != 1)
    assert outcome.counts == {"frames": len(case.frames), "crops": len(case.frames)}
    assert [image.frame for image in list_images(root.crops(clip))] == list(case.frames)
    for frame in case.frames:
        # About 2 for the same frame, 9 for others. Rounding the windows of scaled fakes shifts them by up to 2 pixels.
        assert mean_difference(root, clip, frame, frame) < (4 if case.scale == 1 else 16)
        for other in set(USED) - {frame} if case.scale == 1 else ():
            assert mean_difference(root, clip, frame, other) > 4
    expected = np.multiply(read_crop(root, "real", 10).shape[:2], case.scale)
    np.testing.assert_allclose(read_crop(root, clip, 10).shape[:2], expected, atol=2)


@pytest.mark.parametrize("clip", CASES)
def test_equal_pictures_have_dark_masks(processed: Processed, clip: str):
    """A shift by one frame, as in the published code after a lost frame, makes these means 34 to 37."""
    root = processed.root
    files = list_images(root.diffs(clip), DIFF_SUFFIX)
    crops = list_images(root.crops(clip))
    masks = [cv2.imread(str(file.path), cv2.IMREAD_UNCHANGED) for file in files]
    assert [mask.shape for mask in masks] == [read_image(crop.path).shape[:2] for crop in crops]
    if CASES[clip].scale == 1:  # resizing removes details, which lowers SSIM
        assert max(mask.mean() for mask in masks) < 6
