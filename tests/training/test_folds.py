"""Which crops are trained on, which are validated on, and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from tests.support import face_crops
from training.datasets.folds import (
    Crops,
    EpochBatches,
    FoldsError,
    epoch_order,
    read_folds,
    training_rows,
    validation_rows,
)


def folds(root: Path, rows: Iterable[tuple]) -> Crops:
    return read_folds(face_crops.write_folds(root, rows))


def names(found: Crops, rows: Iterable[int]) -> set[str]:
    return {found.name(row) for row in rows}


def test_ids_are_texts(tmp_path: Path) -> None:
    """Fault 22: numeric ids were read as numbers, 007 became 7. So it is where all ids look like numbers, or NaN."""
    found = folds(tmp_path, [("007", "0_0.png", 0, "007", 0, 1), ("NA", "10_0.png", 1, "007", 10, 2)])
    assert [found.name(row) for row in (0, 1)] == ["007/0_0.png", "NA/10_0.png"]
    assert [found.original_name(row) for row in (0, 1)] == ["007/0_0.png", "007/10_0.png"]
    found = folds(tmp_path, [("1e5", "0_0.png", 1, "012", 0, 1)])
    assert (found.name(0), found.original_name(0)) == ("1e5/0_0.png", "012/0_0.png")


def test_split(tmp_path: Path) -> None:
    """Validation: every 20th frame of the fold. Training: all of the others, but no official test set (fold -1)."""
    rows = [
        (f"{kind}{fold}", f"{frame}_0.png", int(kind == "f"), f"r{fold}", frame, fold)
        for fold in (-1, 0, 1, 2)
        for kind in "rf"
        for frame in (0, 10, 20)
    ]
    found = folds(tmp_path, rows)
    assert names(found, validation_rows(found, 0)) == {f"{v}/{n}_0.png" for v in ("r0", "f0") for n in (0, 20)}
    assert names(found, training_rows(found, 0)) == {
        f"{video}/{frame}_0.png" for video in ("r1", "f1", "r2", "f2") for frame in (0, 10, 20)
    }
    assert names(found, validation_rows(found, -1)) == {f"{v}/{n}_0.png" for v in ("r-1", "f-1") for n in (0, 20)}


def test_an_original_that_is_validated_on_is_not_trained_on(tmp_path: Path) -> None:
    """An official split may put a fake into another fold than its original."""
    rows = [("r", "0_0.png", 0, "r", 0, 0), ("f", "0_0.png", 1, "r", 0, 1)]
    rows += [("s", "0_0.png", 0, "s", 0, 1), ("g", "0_0.png", 1, "s", 0, 1)]
    found = folds(tmp_path, rows)
    assert names(found, training_rows(found, 0)) == {"s/0_0.png", "g/0_0.png"}


def test_public_validation(tmp_path: Path) -> None:
    """aassnaulhq and aayfryxljh are in the list of the 400; fold 0 stays held out."""
    rows = [(v, "0_0.png", int(v[0] == "f"), v, 0, n) for n, v in enumerate(("r0", "r1", "f1"))]
    rows += [("aassnaulhq", "0_0.png", 1, "x", 0, 3), ("aayfryxljh", "0_0.png", 0, "aayfryxljh", 0, 2)]
    rows += [("fx", "0_0.png", 1, "x", 0, 4)]
    found = folds(tmp_path, rows)
    assert names(found, validation_rows(found, 0, public=True)) == {"aassnaulhq/0_0.png", "aayfryxljh/0_0.png"}
    assert names(found, training_rows(found, 0, public=True)) == {"r1/0_0.png", "f1/0_0.png"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("r", "0_0.png", 0, "r", 0, 1)], "1 real and 0 fake crops to train on, outside fold 0"),
        ([("f", "0_0.png", 1, "r", 0, 1)], "0 real and 1 fake crops"),
        ([("r", "0_0.png", 0, "r", 0, 0)], "0 real and 0 fake crops"),
    ],
)
def test_nothing_to_train_on(tmp_path: Path, rows: list[tuple], said: str) -> None:
    with pytest.raises(FoldsError, match=said):
        training_rows(folds(tmp_path, rows), 0)


def test_nothing_to_validate_on(tmp_path: Path) -> None:
    found = folds(tmp_path, [("r", "10_0.png", 0, "r", 10, 3), ("f", "0_0.png", 1, "r", 0, 5)])
    with pytest.raises(FoldsError, match=r"fold 3 has none; the list's folds are 3, 5, see --fold"):
        validation_rows(found, 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (b"", "not a CSV file"),
        (b"\xff\xfe\x00\x01", "not a CSV file"),
        (b"video,file\na,b\n", "no column label, original, frame, fold"),
        (b"video,file,label,original,frame,fold\n", "lists no crops"),
        (b"video,file,label,original,frame,fold\na,b,2,a,0,0\n", "labels are 0 .real. and 1 .fake."),
        (b"video,file,label,original,frame,fold\na,b,1,a,first,0\n", "column frame holds other things"),
        (b"video,file,label,original,frame,fold\na,b,,a,0,0\n", "column label holds other things"),
        (b"video,file,label,original,frame,fold\na,b,1,a,0\n", "column fold holds other things"),
    ],
)
def test_not_a_list(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "folds.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FoldsError, match=rf"folds\.csv: .*{said}.*generate_folds\.py"):
        read_folds(path)


@pytest.mark.parametrize("fakes", [500, 100, 30, 7])
def test_as_many_fakes_as_reals(fakes: int) -> None:
    """Fault 25: it failed with fewer fakes. All reals once; each fake as often as the others, or once more."""
    fake = np.arange(100 + fakes) >= 100
    times = np.bincount(epoch_order(fake, 1, 0), minlength=len(fake))
    assert (times[:100] == 1).all()
    assert times[100:].sum() == 100
    assert times[100:].max() - times[100:].min() <= 1


def test_everything_once_without_oversampling() -> None:
    fake = np.arange(50) >= 10
    assert sorted(epoch_order(fake, 3, 1, oversample=False)) == list(range(50))


def test_epochs_and_seeds_differ() -> None:
    """Fault 25: seed 0 drew the same fakes in every epoch, and NumPy's global state was seeded."""
    fake = np.arange(600) >= 100
    state = np.random.get_state()[1].copy()
    draws = {(seed, epoch): epoch_order(fake, seed, epoch) for seed in (0, 111, 555) for epoch in range(5)}
    assert (np.random.get_state()[1] == state).all()
    assert len({tuple(sorted(draw)) for draw in draws.values()}) == len(draws)
    for (seed, epoch), draw in draws.items():
        assert (epoch_order(fake, seed, epoch) == draw).all()


def test_every_fake_has_the_same_chance() -> None:
    fake = np.arange(60) >= 10
    times = sum(np.bincount(epoch_order(fake, 5, epoch), minlength=60) for epoch in range(2000))
    # 2000 epochs, 10 of 50 fakes each: 400 expected, with a deviation of sqrt(2000 * 0.2 * 0.8) = 18
    assert np.abs(times[10:] - 400).max() < 5 * 18


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_one(processes: int) -> None:
    fake = np.arange(150) >= 50
    rows = np.arange(1000, 1150)
    one = EpochBatches(rows, fake, 4 * processes, 100, seed=7)
    parts = [EpochBatches(rows, fake, 4, 100, 7, rank=rank, processes=processes) for rank in range(processes)]
    for epoch in range(2):
        for sampler in (one, *parts):
            sampler.epoch = epoch
        for whole, *shares in zip(one, *parts, strict=True):
            assert [len(share) for share in shares] == [4] * processes
            assert sorted(draw for share in shares for draw in share) == sorted(whole)
    assert len(one) == 100 // (4 * processes)


def test_batches_of_an_epoch() -> None:
    fake = np.arange(300) >= 100
    batches = list(EpochBatches(np.arange(300), fake, 8, 10, seed=1))
    assert [len(batch) for batch in batches] == [8] * 10
    assert [draw.place for batch in batches for draw in batch] == list(range(80))
    with pytest.raises(FoldsError, match="200 crops an epoch are less than a batch of 256"):
        EpochBatches(np.arange(300), fake, 256, 10, seed=1)
