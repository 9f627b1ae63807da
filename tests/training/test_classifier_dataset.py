"""Training and validation samples: images, labels, masks, cut margins and replacements for broken files."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from preprocessing.crops import center_in_square, resize_longer_side
from preprocessing.images import encode_image, read_image
from tests.support import face_crops
from training.datasets.classifier_dataset import (
    MAX_REPLACEMENTS,
    Batch,
    ClassifierDataset,
    ValidationDataset,
    collate,
    padding_window,
)
from training.datasets.crop_source import CropSource
from training.datasets.folds import SampleIndex, read_folds
from training.tools.config import AugmentationConfig
from training.transforms.albu import Augmentation

SIZE = 64


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return face_crops.make_dataset(tmp_path_factory.mktemp("crops"), folds=1)


@pytest.fixture
def root(data_root: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may change."""
    return Path(shutil.copytree(data_root, tmp_path / "data"))


def make_source(root: Path) -> CropSource:
    return CropSource(root, Path("crops"), read_folds(root / "folds.csv"))


def make_dataset(root: Path, augment: Any = None, seed: int = 5, **options: Any) -> ClassifierDataset:
    source = make_source(root)
    return ClassifierDataset(source, np.arange(len(source.crops)), augment or Augmentation(SIZE), seed, **options)


def no_augmentation(image: np.ndarray, mask: np.ndarray | None, seed: Any) -> tuple:  # noqa: ARG001
    return image, mask


def all_samples(data: ClassifierDataset, epoch: int = 0) -> list[Batch]:
    return [data[SampleIndex(row, epoch, position)] for position, row in enumerate(data.rows)]


def row_of(data: Any, name: str) -> int:
    crops = data.source.crops
    return next(row for row in range(len(crops)) if crops.name(row) == name)


def equal(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.rows, b.rows)
        for a, b in zip(first, second, strict=True)
    )


def test_samples_depend_only_on_seed_epoch_and_position(data_root: Path) -> None:
    """The published code did not seed its workers: samples changed with their number and from run to run."""
    data = make_dataset(data_root)
    batches = [[SampleIndex(row, 1, row) for row in range(first, first + 6)] for first in (0, 6, 12)]
    loaded = [
        list(DataLoader(data, batch_sampler=batches, num_workers=workers, collate_fn=collate)) for workers in (0, 1, 2)
    ]
    assert equal(loaded[0], loaded[1])
    assert equal(loaded[0], loaded[2])
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    assert equal([collate([data[index] for index in batches[0]])], loaded[0][:1])
    assert not equal(all_samples(data, 0), all_samples(data, 1))
    assert not equal(all_samples(data), all_samples(make_dataset(data_root, seed=6)))


@pytest.mark.parametrize("smoothing", [0.0, 0.01, 0.2])
def test_label_smoothing(data_root: Path, smoothing: float) -> None:
    data = make_dataset(data_root, label_smoothing=smoothing)
    expected = np.clip(data.source.crops.fake.astype(float), smoothing, 1 - smoothing)
    found = torch.cat([sample.labels for sample in all_samples(data)])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)


def test_blacked_out_pixels_are_not_manipulated(data_root: Path) -> None:
    """In the published code, masks kept the pixels that had been blacked out of the image."""
    data = make_dataset(data_root, no_augmentation, masks=True)
    overlaps = 0
    for position in range(20):
        for row in data.rows[data.source.crops.fake[data.rows]]:
            sample = data[SampleIndex(row, 0, position)]
            original = data.source.image(row)
            mask = data.source.mask(row, original.shape[:2])
            black = (sample.images[0].numpy() != original).any(axis=2)
            overlaps += bool(black.any() and mask[black].any())
            assert not sample.masks[0].numpy()[black].any()
            visible = ~black & original.any(axis=2)
            np.testing.assert_array_equal(sample.masks[0].numpy()[visible], mask[visible])
    assert overlaps > 20


def test_unchanged_fakes_are_invalid_only_with_only_changed(root: Path) -> None:
    """Masks that are read for other purposes do not make a fake invalid."""
    path = root / "diffs/000_001/0_0_diff.png"
    path.write_bytes(encode_image(np.zeros_like(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))))
    for options in ({"masks": True}, {"dropout": "block"}, {"dropout": "none"}):
        for only_changed in (False, True):
            data = make_dataset(root, only_changed=only_changed, **options)
            sample = data[SampleIndex(row_of(data, "000_001/0_0.png"), 0, 0)]
            assert sample.valid.item() is not only_changed
            assert (sample.masks is None) == ("masks" not in options)
            assert data[SampleIndex(row_of(data, "000/0_0.png"), 0, 0)].valid.item()


def test_only_visible_changes_make_a_fake_valid(root: Path) -> None:
    """A fake is valid with more than 32 pixels above 20, counted after dropout and after cutting the margin."""
    name = "000_001/0_0.png"
    data = make_dataset(root, no_augmentation, only_changed=True, dropout="none")
    row = row_of(data, name)
    path = root / "diffs" / name.replace(".png", "_diff.png")
    shape = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).shape
    for pixels, level, valid in ((33, 21, True), (32, 255, False), (500, 20, False)):
        mask = np.zeros(shape, np.uint8)
        mask.flat[5000 : 5000 + pixels] = level
        path.write_bytes(encode_image(mask))
        assert data[SampleIndex(row, 0, 0)].valid.item() is valid
    mask[:] = 0
    mask[:4] = 255  # only in the margin
    path.write_bytes(encode_image(mask))
    assert data[SampleIndex(row, 0, 0)].valid.item()
    cut = make_dataset(root, no_augmentation, only_changed=True, dropout="none", padding_part=6)
    assert not cut[SampleIndex(row, 0, 0)].valid.item()


def test_fake_without_mask_is_valid(root: Path) -> None:
    """The published code treated a missing mask as an empty one."""
    (root / "diffs/000_001/0_0_diff.png").unlink()
    data = make_dataset(root, no_augmentation, masks=True, only_changed=True)
    fake = data[SampleIndex(row_of(data, "000_001/0_0.png"), 0, 0)]
    assert (fake.mask_known.item(), fake.valid.item()) == (False, True)
    real = data[SampleIndex(row_of(data, "000/0_0.png"), 0, 0)]
    assert (real.mask_known.item(), real.valid.item()) == (True, True)
    assert not real.masks.any()


@pytest.mark.parametrize("part", [3, 4, 6, 10])
def test_padding_part_cuts_image_and_mask_alike(data_root: Path, part: int) -> None:
    """The published code did not cut the mask, and took a crop's width for its height."""
    data = make_dataset(data_root, no_augmentation, masks=True, dropout="none", padding_part=part)
    row = row_of(data, "000_001/0_0.png")
    sample, image = data[SampleIndex(row, 0, 0)], data.source.image(row)
    mask = data.source.mask(row, image.shape[:2])
    height, width = image.shape[:2]
    assert height != width
    for found, whole in ((sample.images[0].numpy(), image), (sample.masks[0].numpy(), mask)):
        for side, length in zip(found.shape, (height, width), strict=False):
            face = length * 3 / 5
            assert side == pytest.approx(face * (1 + 2 / part), abs=2)
        top, left = (height - found.shape[0]) // 2, (width - found.shape[1]) // 2
        np.testing.assert_array_equal(found, whole[top : top + found.shape[0], left : left + found.shape[1]])


def test_default_padding_part_keeps_the_whole_crop() -> None:
    for side in range(1, 700):
        assert padding_window((side, 2 * side), 3) == (slice(0, side), slice(0, 2 * side))


def test_landmarks_are_scaled_to_the_fake(root: Path) -> None:
    """Fakes have the landmarks of their original, whose crop may have another size."""
    source = make_source(root)
    path = root / "crops/000_001/0_0.png"
    image = read_image(path)
    height, width = image.shape[:2]
    path.write_bytes(encode_image(cv2.resize(image, (width * 2, height * 3))))
    row = row_of(make_dataset(root), "000_001/0_0.png")
    original = np.load(root / "landmarks/000/0_0.npy")
    np.testing.assert_allclose(source.landmarks(row, (height * 3, width * 2)), original * (2, 3))
    np.testing.assert_array_equal(
        source.landmarks(row_of(make_dataset(root), "000/0_0.png"), (height, width)), original
    )


def test_block_dropout(data_root: Path) -> None:
    """One side of the augmented image and of its mask is black; some manipulated pixels of fakes stay visible."""
    augment = Augmentation(SIZE, AugmentationConfig(**dict.fromkeys(("affine_p", "color_p", "noise_p"), 0.0)))
    data = make_dataset(data_root, augment, dropout="block", masks=True)
    plain = make_dataset(data_root, augment, dropout="none", masks=True)
    blacked_out = [0, 0]
    for position in range(5):
        for row in data.rows:
            block, whole = (d[SampleIndex(row, 0, position)] for d in (data, plain))
            fake = bool(data.source.crops.fake[row])
            black = (block.images != whole.images).any(dim=3)
            blacked_out[fake] += bool(black.any())
            assert not block.images[black].any()
            assert not block.masks[black].any()
            assert not fake or (block.masks > 102).sum() > 40
    assert min(blacked_out) > 20


BROKEN = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "not an image": lambda path: path.write_bytes(b"This is not an image, whatever its name says."),
    "named pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_image_is_replaced_by_one_of_its_class(root: Path, kind: str) -> None:
    """The replacement is reproducible, and the broken file is named."""
    BROKEN[kind](root / "crops/000_001/0_0.png")
    data = make_dataset(root)
    index = SampleIndex(row_of(data, "000_001/0_0.png"), 0, 0)
    sample = data[index]
    assert len(sample.broken) == 1
    assert "crops/000_001/0_0.png" in sample.broken[0]
    assert sample.rows.item() != index.row
    assert sample.labels.item() == 1
    assert equal([sample], [data[index]])
    assert len({data[index._replace(position=position)].rows.item() for position in range(20)}) > 3


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("landmarks/000/0_0.npy", b"no numbers"),
        ("landmarks/000/0_0.npy", b""),
        ("diffs/000_001/0_0_diff.png", b"no image"),
        ("diffs/000_001/0_0_diff.png", encode_image(np.zeros((7, 5), np.uint8))),
    ],
)
def test_broken_landmarks_and_masks_are_named(root: Path, path: str, content: bytes) -> None:
    (root / path).write_bytes(content)
    data = make_dataset(root, masks=True)
    sample = data[SampleIndex(row_of(data, "000_001/0_0.png"), 0, 0)]
    assert path in sample.broken[0]
    assert len(sample.broken) == 1


def test_pipe_in_place_of_landmarks(root: Path) -> None:
    path = root / "landmarks/000/0_0.npy"
    path.unlink()
    os.mkfifo(path)
    data = make_dataset(root)
    assert "landmarks/000/0_0.npy" in data[SampleIndex(row_of(data, "000/0_0.png"), 0, 0)].broken[0]


def test_pickled_landmarks_are_refused(root: Path) -> None:
    """An .npy file may contain a pickle, which can run code."""
    np.save(root / "landmarks/000/0_0.npy", np.array([{"a": 1}]), allow_pickle=True)
    data = make_dataset(root)
    assert "landmarks/000/0_0.npy" in data[SampleIndex(row_of(data, "000/0_0.png"), 0, 0)].broken[0]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, landmarks=face_crops.LANDMARKS)
    return file.getvalue()


POINTS = np.arange(10.0).reshape(5, 2)


@pytest.mark.parametrize(
    "content",
    [
        npy(np.where(POINTS == 3, np.nan, POINTS)),
        npy(np.where(POINTS == 3, np.inf, POINTS)),
        npy(np.where(POINTS == 3, 1e30, POINTS)),
        npy(np.where(POINTS == 3, -(2**31), POINTS)),
        npy(np.full((5, 2), 30_000, np.int16)),
        npy(POINTS.astype(str)),
        npy(POINTS.astype(bytes)),
        npy(POINTS > 3),
        npy(POINTS * 1j),
        npy(POINTS.astype("datetime64[s]")),
        npy(np.zeros((5, 2), [("x", "f4"), ("y", "f4")])),
        npy(POINTS[:4]),
        npy(POINTS[0, 0]),
        npz(),
        npy(POINTS).replace(b"(5, 2)", b"(5, 2"),
        npy(POINTS).replace(b"(5, 2)", b"(9**9"),
        npy(POINTS).replace(b"(5, 2), }", b"(500000000000, 2), }"),
    ],
)
def test_unusable_landmarks_are_named(root: Path, content: bytes) -> None:
    """NaN, text and numbers far outside of the crop ended the run."""
    (root / "landmarks/000/0_0.npy").write_bytes(content)
    data = make_dataset(root, masks=True)
    for name in ("000/0_0.png", "000_001/0_0.png"):
        sample = data[SampleIndex(row_of(data, name), 0, 0)]
        assert re.match(rf"{root}/landmarks/000/0_0\.npy: .*generate_landmarks\.py", sample.broken[0])
        assert "\n" not in sample.broken[0]
        assert (len(sample.broken), sample.broken_images) == (1, 1)


def test_original_that_pillow_refuses(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is only needed to scale the landmarks."""
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1)
    data = make_dataset(root)
    assert not data[SampleIndex(row_of(data, "000_001/0_0.png"), 0, 0)].broken


def test_counts_images_and_not_attempts(root: Path) -> None:
    """With all crops deleted, "44 of an epoch's 12 images" could not be read."""
    data = make_dataset(root)
    shutil.rmtree(root / "crops")
    batch = collate([data[SampleIndex(row, 0, 0)] for row in range(4)])
    assert (batch.broken_images, len(batch.broken)) == (4, 4 * (MAX_REPLACEMENTS + 1))
    validation = collate([ValidationDataset(data.source, SIZE)[row] for row in range(4)])
    assert (validation.broken_images, len(validation.broken), len(validation.rows)) == (4, 4, 0)


def test_black_invalid_sample_if_no_crop_can_be_read(root: Path) -> None:
    """The published code looped forever."""
    shutil.rmtree(root / "crops")
    sample = make_dataset(root, masks=True)[SampleIndex(0, 0, 0)]
    assert len(sample.broken) == MAX_REPLACEMENTS + 1
    assert sample.images.shape == (1, SIZE, SIZE, 3)
    assert not sample.images.any()
    assert not sample.valid.item()


def test_validation_resizes_like_inference(root: Path) -> None:
    (root / "crops/000/0_0.png").write_bytes(b"")
    data = ValidationDataset(make_source(root), SIZE)
    rows = range(len(data.source.crops))
    batch = collate([data[row] for row in rows])
    assert len(batch.rows) == len(rows) - 1
    assert "crops/000/0_0.png" in batch.broken[0]
    for image, row, label in zip(batch.images, batch.rows.tolist(), batch.labels, strict=True):
        crop = read_image(root / "crops" / data.source.crops.name(row))
        np.testing.assert_array_equal(image.numpy(), center_in_square(resize_longer_side(crop, SIZE), SIZE))
        assert label == data.source.crops.fake[row]
    cut = ValidationDataset(data.source, SIZE, padding_part=6)[3].images[0].numpy()
    crop = read_image(root / "crops" / data.source.crops.name(3))
    crop = crop[padding_window(crop.shape[:2], 6)]
    np.testing.assert_array_equal(cut, center_in_square(resize_longer_side(crop, SIZE), SIZE))


def test_self_blended_images_replace_fakes(data_root: Path) -> None:
    """They are made from the original of the same frame, and their mask is where it differs."""
    plain = make_dataset(data_root, no_augmentation, dropout="none", masks=True)
    data = make_dataset(data_root, no_augmentation, dropout="none", masks=True, self_blended=1.0)
    for row in data.rows:
        sample, unchanged = data[SampleIndex(row, 0, 0)], plain[SampleIndex(row, 0, 0)]
        assert torch.equal(sample.labels, unchanged.labels)
        assert torch.equal(sample.rows, unchanged.rows)
        if not data.source.crops.fake[row]:
            assert torch.equal(sample.images, unchanged.images)
            continue
        original = read_image(data_root / "crops" / data.source.crops.original_name(row))
        difference = np.abs(sample.images[0].numpy().astype(int) - original).mean()
        assert 0 < difference < 25
        assert sample.mask_known.all()
        assert 0 < (sample.masks[0] > 0).float().mean() < 0.95


def test_share_of_self_blended_images(data_root: Path) -> None:
    data = make_dataset(data_root, no_augmentation, dropout="none", self_blended=0.3)
    fakes = data.rows[data.source.crops.fake[data.rows]]
    blended = [
        not np.array_equal(data[SampleIndex(row, 0, position)].images[0].numpy(), data.source.image(row))
        for row in fakes
        for position in range(20)
    ]
    count = len(blended)
    assert abs(np.mean(blended) - 0.3) < 5 * (0.3 * 0.7 / count) ** 0.5


def test_fakes_without_landmarks_or_original_are_used_as_they_are(root: Path) -> None:
    shutil.rmtree(root / "landmarks/000")
    data = make_dataset(root, no_augmentation, dropout="none", self_blended=1.0)
    rows = data.rows[data.source.crops.video[data.rows] != row_of_video(data, "001")]
    without_original = ClassifierDataset(data.source, rows, no_augmentation, 5, dropout="none", self_blended=1.0)
    for samples, name in ((data, "000_001/0_0.png"), (without_original, "001_002/10_0.png")):
        row = row_of(data, name)
        image = samples[SampleIndex(row, 0, 0)].images[0].numpy()
        np.testing.assert_array_equal(image, data.source.image(row))


def row_of_video(data: Any, name: str) -> int:
    return data.source.crops.videos.index(name)
