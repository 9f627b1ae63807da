"""Samples: what is read, what is cut, what is replaced. Faults 22 to 24 and 26."""

from __future__ import annotations

import random
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
    REPLACEMENTS,
    Batch,
    ClassifierDataset,
    Source,
    ValidationDataset,
    concatenate,
    padding_window,
)
from training.datasets.folds import Draw, read_folds
from training.tools.config import AugmentationConfig
from training.transforms.albu import Augmentation

SIZE = 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return face_crops.make_dataset(tmp_path_factory.mktemp("crops"), folds=1)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "data"))


def source(root: Path) -> Source:
    return Source(root, Path("crops"), read_folds(root / "folds.csv"))


def dataset(root: Path, augment: Any = None, **options: Any) -> ClassifierDataset:
    found = source(root)
    rows = np.arange(len(found.crops))
    return ClassifierDataset(found, rows, augment or Augmentation(SIZE), seed=options.pop("seed", 5), **options)


def unchanged(image: np.ndarray, mask: np.ndarray | None, seed: Any) -> tuple:  # noqa: ARG001
    """In place of an augmentation."""
    return image, mask


def samples(data: ClassifierDataset, epoch: int = 0) -> list[Batch]:
    return [data[Draw(row, epoch, place)] for place, row in enumerate(data.rows)]


def row_of(data: Any, name: str) -> int:
    listed = data.source.crops
    return next(row for row in range(len(listed)) if listed.name(row) == name)


def same(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and torch.equal(a.rows, b.rows)
        for a, b in zip(first, second, strict=True)
    )


def test_a_sample_depends_on_seed_epoch_and_place_alone(made: Path) -> None:
    """Fault 27: workers' random states were not seeded. Any number of workers gives the same samples."""
    data = dataset(made)
    batches = [[Draw(row, 1, row) for row in range(first, first + 6)] for first in (0, 6, 12)]
    loaded = [
        list(DataLoader(data, batch_sampler=batches, num_workers=workers, collate_fn=concatenate))
        for workers in (0, 1, 2)
    ]
    assert same(loaded[0], loaded[1])
    assert same(loaded[0], loaded[2])
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    assert same([concatenate([data[draw] for draw in batches[0]])], loaded[0][:1])
    assert not same(samples(data, 0), samples(data, 1))
    assert not same(samples(data), samples(dataset(made, seed=6)))


@pytest.mark.parametrize("smoothing", [0.0, 0.01, 0.2])
def test_label_smoothing(made: Path, smoothing: float) -> None:
    data = dataset(made, label_smoothing=smoothing)
    expected = np.clip(data.source.crops.fake.astype(float), smoothing, 1 - smoothing)
    found = torch.cat([sample.labels for sample in samples(data)])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)


def test_what_is_black_is_not_changed(made: Path) -> None:
    """Fault 24: masks kept what had been blacked out."""
    data = dataset(made, unchanged, masks=True)
    seen = 0
    for place in range(20):
        for row in data.rows[data.source.crops.fake[data.rows]]:
            sample = data[Draw(row, 0, place)]
            original = data.source.image(row)
            mask = data.source.mask(row, original.shape[:2])
            black = (sample.images[0].numpy() != original).any(axis=2)
            seen += bool(black.any() and mask[black].any())
            assert not sample.masks[0].numpy()[black].any()
            np.testing.assert_array_equal(sample.masks[0].numpy()[~black], mask[~black])
    assert seen > 20


def test_only_the_option_drops_unchanged_fakes(root: Path) -> None:
    """Not the masks that are read for other ends."""
    path = root / "diffs/000_001/0_0_diff.png"
    path.write_bytes(encode_image(np.zeros_like(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))))
    for options in ({"masks": True}, {"dropout": "block"}, {"dropout": "none"}):
        for only_changed in (False, True):
            data = dataset(root, only_changed=only_changed, **options)
            sample = data[Draw(row_of(data, "000_001/0_0.png"), 0, 0)]
            assert sample.valid.item() is not only_changed
            assert (sample.masks is None) == ("masks" not in options)
            assert data[Draw(row_of(data, "000/0_0.png"), 0, 0)].valid.item()


def test_valid_means_changed_where_it_is_visible(root: Path) -> None:
    """More than 32 pixels above 20, counted after the drop-outs and the padding change."""
    name = "000_001/0_0.png"
    data = dataset(root, unchanged, only_changed=True, dropout="none")
    row = row_of(data, name)
    path = root / "diffs" / name.replace(".png", "_diff.png")
    shape = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).shape
    for pixels, level, valid in ((33, 21, True), (32, 255, False), (500, 20, False)):
        mask = np.zeros(shape, np.uint8)
        mask.flat[5000 : 5000 + pixels] = level
        path.write_bytes(encode_image(mask))
        assert data[Draw(row, 0, 0)].valid.item() is valid
    mask[:] = 0
    mask[:4] = 255  # only in the margin
    path.write_bytes(encode_image(mask))
    assert data[Draw(row, 0, 0)].valid.item()
    cut = dataset(root, unchanged, only_changed=True, dropout="none", padding_part=6)
    assert not cut[Draw(row, 0, 0)].valid.item()


def test_an_unknown_mask_is_not_an_empty_one(root: Path) -> None:
    """Fault 24: a fake without a mask counted as unchanged."""
    (root / "diffs/000_001/0_0_diff.png").unlink()
    data = dataset(root, unchanged, masks=True, only_changed=True)
    fake = data[Draw(row_of(data, "000_001/0_0.png"), 0, 0)]
    assert (fake.known.item(), fake.valid.item()) == (False, True)
    real = data[Draw(row_of(data, "000/0_0.png"), 0, 0)]
    assert (real.known.item(), real.valid.item()) == (True, True)
    assert not real.masks.any()


@pytest.mark.parametrize("part", [3, 4, 6, 10])
def test_padding_change(made: Path, part: int) -> None:
    """Faults 23 and 26: the mask is cut as the image is, and width is not height. 1 / part of the face is left."""
    data = dataset(made, unchanged, masks=True, dropout="none", padding_part=part)
    row = row_of(data, "000_001/0_0.png")
    sample, image = data[Draw(row, 0, 0)], data.source.image(row)
    mask = data.source.mask(row, image.shape[:2])
    height, width = image.shape[:2]
    assert height != width
    for found, whole in ((sample.images[0].numpy(), image), (sample.masks[0].numpy(), mask)):
        for side, length in zip(found.shape, (height, width), strict=False):
            face = length * 3 / 5
            assert side == pytest.approx(face * (1 + 2 / part), abs=2)
        top, left = (height - found.shape[0]) // 2, (width - found.shape[1]) // 2
        np.testing.assert_array_equal(found, whole[top : top + found.shape[0], left : left + found.shape[1]])


def test_the_whole_crop_by_default() -> None:
    for side in range(1, 700):
        assert padding_window((side, 2 * side), 3) == (slice(0, side), slice(0, 2 * side))


def test_landmarks_of_a_fake_of_another_size(root: Path) -> None:
    """They are the original's, in pixels of the original's crop."""
    found = source(root)
    path = root / "crops/000_001/0_0.png"
    image = read_image(path)
    height, width = image.shape[:2]
    path.write_bytes(encode_image(cv2.resize(image, (width * 2, height * 3))))
    row = row_of(dataset(root), "000_001/0_0.png")
    original = np.load(root / "landmarks/000/0_0.npy")
    np.testing.assert_allclose(found.landmarks(row, (height * 3, width * 2)), original * (2, 3))
    np.testing.assert_array_equal(found.landmarks(row_of(dataset(root), "000/0_0.png"), (height, width)), original)


def test_block_mode(made: Path) -> None:
    """The other mode: one side of the augmented image is black, and of a fake not all that was changed."""
    augment = Augmentation(SIZE, AugmentationConfig(**dict.fromkeys(("affine_p", "color_p", "noise_p"), 0.0)))
    data = dataset(made, augment, dropout="block", masks=True)
    plain = dataset(made, augment, dropout="none", masks=True)
    cut = [0, 0]
    for place in range(5):
        for row in data.rows:
            block, whole = (d[Draw(row, 0, place)] for d in (data, plain))
            fake = bool(data.source.crops.fake[row])
            black = (block.images != whole.images).any(dim=3)
            cut[fake] += bool(black.any())
            assert not block.images[black].any()
            assert not block.masks[black].any()
            assert not fake or (block.masks > 102).sum() > 40
    assert cut[0] > 20
    assert cut[1] > 20


BROKEN = {
    "no file": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "not an image": lambda path: path.write_bytes(b"This is not an image, whatever its name says."),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_replaced_and_named(root: Path, kind: str) -> None:
    """By another one of its class; the same one when it is asked for again."""
    BROKEN[kind](root / "crops/000_001/0_0.png")
    data = dataset(root)
    draw = Draw(row_of(data, "000_001/0_0.png"), 0, 0)
    sample = data[draw]
    assert len(sample.broken) == 1
    assert "crops/000_001/0_0.png" in sample.broken[0]
    assert sample.rows.item() != draw.row
    assert sample.labels.item() == 1
    assert same([sample], [data[draw]])
    assert len({data[draw._replace(place=place)].rows.item() for place in range(20)}) > 3


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("landmarks/000/0_0.npy", b"no numbers"),
        ("landmarks/000/0_0.npy", b""),
        ("diffs/000_001/0_0_diff.png", b"no image"),
        ("diffs/000_001/0_0_diff.png", encode_image(np.zeros((7, 5), np.uint8))),
    ],
)
def test_broken_companions(root: Path, path: str, content: bytes) -> None:
    (root / path).write_bytes(content)
    data = dataset(root, masks=True)
    sample = data[Draw(row_of(data, "000_001/0_0.png"), 0, 0)]
    assert path in sample.broken[0]
    assert "run generate_" in sample.broken[0]


def test_pickled_landmarks_are_refused(root: Path) -> None:
    """A .npy file may hold a pickle, which would run code."""
    np.save(root / "landmarks/000/0_0.npy", np.array([{"a": 1}]), allow_pickle=True)
    data = dataset(root)
    assert "landmarks/000/0_0.npy: damaged" in data[Draw(row_of(data, "000/0_0.png"), 0, 0)].broken[0]


def test_nothing_can_be_read(root: Path) -> None:
    """Fault 22: it looped for ever. A black sample that counts for nothing, and the names."""
    shutil.rmtree(root / "crops")
    sample = dataset(root, masks=True)[Draw(0, 0, 0)]
    assert len(sample.broken) == REPLACEMENTS + 1
    assert sample.images.shape == (1, SIZE, SIZE, 3)
    assert not sample.images.any()
    assert not sample.valid.item()


def test_validation_sees_what_inference_sees(root: Path) -> None:
    (root / "crops/000/0_0.png").write_bytes(b"")
    data = ValidationDataset(source(root), SIZE)
    rows = range(len(data.source.crops))
    batch = concatenate([data[row] for row in rows])
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
