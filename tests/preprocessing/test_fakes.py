"""Fakes whose size, length or frame rate is not their original's, and their difference from it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from preprocessing import sample_clips
from preprocessing.faces import Face
from preprocessing.frame_matching import match_frames
from preprocessing.generate_diffs import difference
from preprocessing.generate_landmarks import face_points, overlap
from tests.support.datasets import REAL, fake_of, part, portrait, records, stage

FRAMES = 61


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original and encodings of the very same pictures that differ in all kinds of ways."""
    root = tmp_path_factory.mktemp("fakes")
    names = ("same", "half", "larger", "short", "dropped", "late", "slow", "relabelled", "long")
    folder = part(root, 0, {"real.mp4": REAL} | {f"{name}.mp4": fake_of("real.mp4") for name in names})
    frames = portrait(FRAMES + 20)
    pictures = frames[:FRAMES]
    sample_clips.write_clip(folder / "real.mp4", pictures)
    sample_clips.write_clip(folder / "same.mp4", pictures)
    for name, size in (("half", (240, 180)), ("larger", (720, 540))):
        sample_clips.write_clip(
            folder / f"{name}.mp4", [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures]
        )
    sample_clips.write_clip(folder / "short.mp4", pictures[:35])
    sample_clips.write_clip(folder / "dropped.mp4", pictures, dropped=[17])
    sample_clips.write_clip(folder / "late.mp4", pictures, dropped=[0, 1])
    sample_clips.write_clip(folder / "slow.mp4", pictures[::5], rate=5)
    sample_clips.write_clip(folder / "relabelled.mp4", pictures, rate=30)
    sample_clips.write_clip(folder / "long.mp4", frames)
    for name in ("detect_original_faces", "extract_crops", "generate_diffs"):
        finished = stage(name, root)
        assert finished.returncode == 0, finished.stderr
    return root


def crop(root: Path, clip: str, frame: int) -> np.ndarray:
    image = cv2.imread(str(root / "crops" / clip / f"{frame}_0.png"))
    assert image is not None, (clip, frame)
    return image.astype(float)


def apart(root: Path, clip: str, frame: int, other: int | None = None) -> float:
    """How far a crop of a fake is from the original's (of another frame), in gray levels."""
    fake, real = crop(root, clip, frame), crop(root, "real", frame if other is None else other)
    height, width = (min(sides) for sides in zip(fake.shape[:2], real.shape[:2], strict=True))
    return float(np.abs(cv2.resize(fake, (width, height)) - cv2.resize(real, (width, height))).mean())


@pytest.mark.parametrize(
    ("clip", "frames", "message"),
    [
        ("same", range(0, FRAMES, 10), ""),
        ("half", range(0, FRAMES, 10), "240x180, its original 480x360: boxes scaled"),
        ("larger", range(0, FRAMES, 10), "720x540, its original 480x360: boxes scaled"),
        ("short", range(0, 35, 10), "35 frames at 25 a second, its original 61 at 25: 4 of 7 matched by number"),
        ("dropped", range(0, FRAMES, 10), "60 frames at 24.59 a second, its original 61 at 25: 7 of 7 matched by time"),
        ("late", range(10, FRAMES, 10), "59 frames at 25 a second, its original 61 at 25: 6 of 7 matched by time"),
        ("slow", range(0, FRAMES, 10), "13 frames at 5 a second, its original 61 at 25: 7 of 7 matched by time"),
        (
            "relabelled",
            range(0, FRAMES, 10),
            "61 frames at 30 a second, its original 61 at 25: 7 of 7 matched by number",
        ),
        ("long", range(0, FRAMES, 10), "81 frames at 25 a second, its original 61 at 25: 7 of 7 matched by number"),
    ],
)
def test_crops_show_what_the_originals_do(root: Path, clip: str, frames: range, message: str):
    record = records(root, "crops")[clip]
    ratio = {"half": 0.5, "larger": 1.5}.get(clip, 1)
    assert record["message"] == message
    assert record["counts"] == {"frames": len(frames), "crops": len(frames)}
    assert {path.name for path in (root / "crops" / clip).iterdir()} == {f"{frame}_0.png" for frame in frames}
    for frame in frames:
        assert apart(root, clip, frame) < (3 if ratio == 1 else 10)
        for other in set(range(0, FRAMES, 10)) - {frame} if ratio == 1 else ():
            assert apart(root, clip, frame, other) > 3
    expected = np.multiply(crop(root, "real", 10).shape[:2], ratio)
    np.testing.assert_allclose(crop(root, clip, 10).shape[:2], expected, atol=2)


@pytest.mark.parametrize("clip", ["same", "half", "larger", "short", "dropped", "late", "slow", "relabelled", "long"])
def test_equal_pictures_have_dark_diffs(root: Path, clip: str):
    """A shift by one frame (the published code's, after a dropped one) gives these pictures means of 34 to 37."""
    masks = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((root / "diffs" / clip).iterdir())]
    assert len(masks) == len(list((root / "crops" / clip).iterdir()))
    shapes = {path.name: cv2.imread(str(path)).shape[:2] for path in sorted((root / "crops" / clip).iterdir())}
    assert [mask.shape for mask in masks] == list(shapes.values())
    if clip not in ("half", "larger"):  # scaling takes details away, which SSIM sees
        assert max(mask.mean() for mask in masks) < 6


def test_match_frames():
    def times(count: int, rate: float) -> list[float]:
        return [index / rate for index in range(count)]

    wanted = range(0, 300, 10)
    assert match_frames(wanted, times(300, 30), times(300, 30)) == {frame: frame for frame in wanted}
    assert match_frames(wanted, times(300, 30), times(290, 30)) == {frame: frame for frame in wanted if frame < 290}
    assert match_frames(wanted, times(300, 30), times(150, 15)) == {frame // 2: frame for frame in wanted}
    assert match_frames(wanted, times(300, 30), times(600, 60)) == {2 * frame: frame for frame in wanted}
    # 24 a second: 10 / 30 is 8 / 24
    assert match_frames(wanted, times(300, 30), times(240, 24)) == {frame * 8 // 10: frame for frame in wanted}
    # frames between those of the fake are not used: of 7 a second only those at 1/3, 2/3 and 1 are near enough
    found = match_frames(wanted, times(300, 30), times(70, 7))
    assert all(abs(match / 7 - frame / 30) <= 0.25 / 30 for match, frame in found.items())
    assert 0 < len(found) < len(wanted)
    # another rate on the same frames; one of the ends has one more
    assert match_frames(wanted, times(300, 29.97), times(299, 30)) == {frame: frame for frame in wanted if frame < 299}
    lost = times(300, 30)[:100] + times(300, 30)[103:]
    assert match_frames(wanted, times(300, 30), lost) == {
        frame if frame < 100 else frame - 3: frame for frame in wanted if not 100 <= frame < 103
    }
    # the first two frames are gone; a clip that merely begins later, and has as many frames, lost none
    late = times(300, 30)[2:]
    assert match_frames(wanted, times(300, 30), late) == {frame - 2: frame for frame in wanted if frame}
    shifted = [time + 2 / 30 for time in times(300, 30)]
    assert match_frames(wanted, times(300, 30), shifted) == {frame: frame for frame in wanted}
    assert match_frames(wanted, shifted, times(300, 30)) == {frame: frame for frame in wanted}
    assert match_frames(wanted, times(300, 30), [0.0]) == {0: 0}
    assert match_frames(range(0, 1000, 10), times(300, 30), times(300, 30)) == {frame: frame for frame in wanted}


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """By its definition (Wang et al. 2004): 7 x 7 windows, sample covariance, K1 = 0.01, K2 = 0.03."""
    x, y = first.astype(float), second.astype(float)
    mean = lambda values: uniform_filter(values, 7)  # noqa: E731
    covariance = lambda a, b: 49 / 48 * (mean(a * b) - mean(a) * mean(b))  # noqa: E731
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean(x) * mean(y) + c1) * (2 * covariance(x, y) + c2)
    return numerator / ((mean(x) ** 2 + mean(y) ** 2 + c1) * (covariance(x, x) + covariance(y, y) + c2))


def test_difference_by_definition():
    random = np.random.default_rng(0)
    original = cv2.GaussianBlur(random.integers(0, 255, (60, 50, 3), dtype=np.uint8), (5, 5), 1)
    fake = original.copy()
    fake[20:40, 15:35] = 255 - fake[20:40, 15:35]  # negative correlation: SSIM below 0
    maps = [ssim(original[..., channel], fake[..., channel]) for channel in range(3)]
    assert min(values.min() for values in maps) < -0.5
    red, green, blue = (np.clip(255 * (1 - values), 0, 255).astype(np.uint8) for values in maps)
    expected = np.round(0.299 * red + 0.587 * green + 0.114 * blue)
    mask = difference(original, fake)
    np.testing.assert_allclose(mask, expected, atol=1.01)
    assert mask[25:35, 20:30].min() > 250  # the published code's byte wraps around here, to values near 0
    np.testing.assert_array_equal(difference(original, original), 0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 3), (6, 40), (7, 7)])
def test_difference_of_tiny_crops(shape: tuple[int, int]):
    random = np.random.default_rng(0)
    first, second = (random.integers(0, 255, (*shape, 3), dtype=np.uint8) for _ in range(2))
    assert difference(first, second).shape == shape


def test_the_points_of_the_face_that_was_cropped():
    """A crop around a box at (100, 90) of 60 x 90 begins at (80, 60); a larger face looks into it."""
    box = np.array([100.0, 90, 160, 180])
    larger = Face(np.array([60.0, 0, 100, 150]), 0.99, np.full((5, 2), 1.0))
    cropped = Face(np.array([22.0, 28, 80, 118]), 0.9, np.full((5, 2), 2.0))
    elsewhere = Face(np.array([0.0, 0, 20, 30]), 0.99, np.full((5, 2), 3.0))
    np.testing.assert_array_equal(face_points([larger, cropped, elsewhere], box), 2)
    assert face_points([larger, elsewhere], box) is None
    assert face_points([], box) is None
    # at the frame's edge the crop begins at 0, not before it
    at_edge = Face(np.array([5.0, 3, 65, 93]), 0.9, np.full((5, 2), 4.0))
    np.testing.assert_array_equal(face_points([larger, at_edge], np.array([5.0, 3, 65, 93])), 4)
    assert overlap(np.array([0, 0, 10, 10]), np.array([5, 0, 15, 10])) == pytest.approx(1 / 3)
    assert overlap(np.array([0, 0, 10, 10]), np.array([10, 0, 15, 10])) == 0
