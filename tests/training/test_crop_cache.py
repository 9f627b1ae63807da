"""The cache of decoded crops gives the pixels of the crops' files, whatever happens to the files of either."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from common.files import OutputError
from preprocessing.images import ImageError, encode_image, read_image
from tests.support import face_crops
from training.datasets import crop_cache
from training.datasets.classifier_dataset import ClassifierDataset, ValidationDataset, collate
from training.datasets.crop_cache import CropCache
from training.datasets.crop_source import CropSource
from training.datasets.folds import SampleIndex, read_folds
from training.transforms.albu import Augmentation


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return face_crops.make_dataset(tmp_path_factory.mktemp("crops"), folds=1, pairs=3)


@pytest.fixture
def root(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may change."""
    return Path(shutil.copytree(dataset, tmp_path / "data"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that this process decodes, in order."""
    paths = []

    def read(path: Path) -> np.ndarray:
        paths.append(path)
        return read_image(path)

    monkeypatch.setattr(crop_cache, "read_image", read)
    return paths


def open_source(root: Path, gib: float | None = None) -> CropSource:
    """The crops with a cache, as another run of training opens them."""
    crops = read_folds(root / "folds.csv")
    return CropSource(root, Path("crops"), crops, CropCache.open(root / "cache", root / "crops", crops, gib))


def check(source: CropSource) -> None:
    """All crops have the pixels of their files."""
    for row in range(len(source.crops)):
        np.testing.assert_array_equal(source.image(row), read_image(source.root / "crops" / source.crops.name(row)))


def data_file(root: Path) -> Path:
    (path,) = (root / "cache").glob("*.data")
    return path


def test_each_crop_is_decoded_once(root: Path, decoded: list[Path]) -> None:
    """Also by the next run, after an interruption."""
    source = open_source(root)
    for _ in range(2):
        check(source)
    check(open_source(root))
    assert len(decoded) == len(set(decoded)) == len(source.crops)


def test_worker_processes_share_the_cache(root: Path, decoded: list[Path]) -> None:
    """They add crops at the same time, and the samples are those without a cache."""
    source = open_source(root)
    rows = np.arange(len(source.crops))
    batches = [
        [SampleIndex(int(row), epoch, int(row)) for row in rows[first::4]] for epoch in (0, 1) for first in range(4)
    ]
    plain, cached = (
        ClassifierDataset(replace(source, cache=cache), rows, Augmentation(64), 1) for cache in (None, source.cache)
    )
    expected = [collate([plain[index] for index in batch]) for batch in batches]
    for found, batch in zip(
        DataLoader(cached, batch_sampler=batches, num_workers=2, collate_fn=collate), expected, strict=True
    ):
        assert torch.equal(found.images, batch.images)
        assert torch.equal(found.rows, batch.rows)
    check(source)
    assert not decoded  # by this process
    for row in rows:
        first, second = (ValidationDataset(s, 64)[row].images for s in (source, plain.source))
        assert torch.equal(first, second)


def test_changed_and_deleted_crops(root: Path, decoded: list[Path]) -> None:
    source = open_source(root)
    check(source)
    changed, deleted = (root / "crops" / source.crops.name(row) for row in (0, 1))
    changed.write_bytes(encode_image(255 - read_image(changed)))
    os.utime(changed, ns=(time.time_ns(), time.time_ns() + 10**9))
    np.testing.assert_array_equal(source.image(0), read_image(changed))
    assert decoded.count(changed) == 2
    deleted.unlink()
    with pytest.raises(ImageError, match=str(deleted)):
        source.image(1)


def test_other_lists_have_other_files(root: Path) -> None:
    """A row of another folds.csv is another crop."""
    check(open_source(root))
    lines = (root / "folds.csv").read_text().splitlines()
    (root / "folds.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    check(open_source(root))
    assert len(list((root / "cache").glob("*.data"))) == 2


def damage(path: Path) -> Iterator[None]:
    """Damage a file of the cache in several ways."""
    content = np.fromfile(path, np.uint8)
    for size in (0, 5, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size].tobytes())
        yield
    for level in (0, 255):
        path.write_bytes(np.where(np.arange(len(content)) % 7 == 0, level, content).astype(np.uint8).tobytes())
        yield
    path.write_bytes(np.random.default_rng(0).bytes(len(content)))
    yield


@pytest.mark.parametrize("suffix", [".data", ".index"])
def test_damaged_cache(root: Path, suffix: str) -> None:
    check(open_source(root))
    for _ in damage(data_file(root).with_suffix(suffix)):
        check(open_source(root))


def test_full_cache(root: Path, decoded: list[Path]) -> None:
    """What does not fit is decoded each time."""
    source = open_source(root, gib=200_000 / 2**30)
    for _ in range(2):
        check(source)
    assert data_file(root).stat().st_size <= 200_000 + 100
    assert len(source.crops) < len(decoded) < 2 * len(source.crops)


def test_full_disk(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on file sizes stands in for a full disk."""
    source = open_source(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        check(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caplog.text.count(str(data_file(root))) == 1
    check(open_source(root))


def test_unusable_file(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Crops are decoded, and one warning names the file."""
    source = open_source(root)
    assert source.cache is not None
    file = source.cache.base.with_suffix(".data")
    file.mkdir()
    check(source)
    assert caplog.text.count(str(file)) == 1


def test_unusable_folder(root: Path) -> None:
    (root / "cache").write_bytes(b"")
    with pytest.raises(OutputError, match=str(root / "cache")):
        open_source(root)
