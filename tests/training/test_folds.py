"""folds.csv: which crops are trained on, which are validated on, and in which order."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from tests.support import face_crops
from training.datasets.folds import (
    HALVES,
    Crops,
    EpochBatchSampler,
    FoldsError,
    epoch_order,
    half_of,
    paired_order,
    read_folds,
    training_rows,
    validation_rows,
)


def make_crops(root: Path, rows: Iterable[tuple]) -> Crops:
    return read_folds(face_crops.write_folds(root, rows))


def names(crops: Crops, rows: Iterable[int]) -> set[str]:
    return {crops.name(row) for row in rows}


def test_ids_are_strings(tmp_path: Path) -> None:
    """The published code read ids that look like numbers as numbers: 007 became 7."""
    crops = make_crops(tmp_path, [("007", "0_0.png", 0, "007", 0, 1), ("NA", "10_0.png", 1, "007", 10, 2)])
    assert [crops.name(row) for row in (0, 1)] == ["007/0_0.png", "NA/10_0.png"]
    assert [crops.original_name(row) for row in (0, 1)] == ["007/0_0.png", "007/10_0.png"]
    crops = make_crops(tmp_path, [("1e5", "0_0.png", 1, "012", 0, 1)])
    assert (crops.name(0), crops.original_name(0)) == ("1e5/0_0.png", "012/0_0.png")


def test_training_and_validation_split(tmp_path: Path) -> None:
    """Validation: every 20th frame of the fold. Training: all frames of the others, without official test sets (-1)."""
    rows = [
        (f"{kind}{fold}", f"{frame}_0.png", int(kind == "f"), f"r{fold}", frame, fold)
        for fold in (-1, 0, 1, 2)
        for kind in "rf"
        for frame in (0, 10, 20)
    ]
    crops = make_crops(tmp_path, rows)
    assert names(crops, validation_rows(crops, 0)) == {f"{v}/{n}_0.png" for v in ("r0", "f0") for n in (0, 20)}
    assert names(crops, training_rows(crops, 0)) == {
        f"{video}/{frame}_0.png" for video in ("r1", "f1", "r2", "f2") for frame in (0, 10, 20)
    }
    assert names(crops, validation_rows(crops, -1)) == {f"{v}/{n}_0.png" for v in ("r-1", "f-1") for n in (0, 20)}


def test_fakes_of_validated_originals_are_not_trained_on(tmp_path: Path) -> None:
    """An official split may have a fake and its original in different folds."""
    rows = [("r", "0_0.png", 0, "r", 0, 0), ("f", "0_0.png", 1, "r", 0, 1)]
    rows += [("s", "0_0.png", 0, "s", 0, 1), ("g", "0_0.png", 1, "s", 0, 1)]
    crops = make_crops(tmp_path, rows)
    assert names(crops, training_rows(crops, 0)) == {"s/0_0.png", "g/0_0.png"}


def test_held_out_folds_are_not_trained_on(tmp_path: Path) -> None:
    """Neither are fakes of their originals, nor the originals of their fakes."""
    rows = [(f"{kind}{fold}", "0_0.png", int(kind == "f"), f"r{fold}", 0, fold) for fold in range(5) for kind in "rf"]
    rows += [("g2", "0_0.png", 1, "r2", 0, 1), ("g1", "0_0.png", 1, "r1", 0, 3)]
    crops = make_crops(tmp_path, rows)
    assert names(crops, training_rows(crops, 0, held_out=[3, 2])) == {"r4/0_0.png", "f4/0_0.png"}
    assert names(crops, validation_rows(crops, 0)) == {"r0/0_0.png", "f0/0_0.png"}
    with pytest.raises(FoldsError, match=r"--hold-out 7: .*0, 1, 2, 3, 4"):
        training_rows(crops, 0, held_out=[1, 7])


def test_public_validation(tmp_path: Path) -> None:
    """aassnaulhq and aayfryxljh are public test videos; fold 0 is still held out."""
    rows = [(v, "0_0.png", int(v[0] == "f"), v, 0, n) for n, v in enumerate(("r0", "r1", "f1"))]
    rows += [("aassnaulhq", "0_0.png", 1, "x", 0, 3), ("aayfryxljh", "0_0.png", 0, "aayfryxljh", 0, 2)]
    rows += [("fx", "0_0.png", 1, "x", 0, 4)]
    crops = make_crops(tmp_path, rows)
    assert names(crops, validation_rows(crops, 0, public=True)) == {"aassnaulhq/0_0.png", "aayfryxljh/0_0.png"}
    assert names(crops, training_rows(crops, 0, public=True)) == {"r1/0_0.png", "f1/0_0.png"}


@pytest.mark.parametrize(
    ("row", "counts"),
    [
        (("r", "0_0.png", 0, "r", 0, 1), "1 real crop and 0 fake crops"),
        (("f", "0_0.png", 1, "r", 0, 1), "0 real crops and 1 fake crop"),
        (("r", "0_0.png", 0, "r", 0, 0), "0 real crops and 0 fake crops"),
    ],
)
def test_training_needs_both_classes(tmp_path: Path, row: tuple, counts: str) -> None:
    with pytest.raises(FoldsError, match=rf"fold 0: .*{counts}.*--fold"):
        training_rows(make_crops(tmp_path, [row]), 0)


def test_error_for_an_empty_validation_lists_the_folds(tmp_path: Path) -> None:
    crops = make_crops(tmp_path, [("r", "10_0.png", 0, "r", 10, 3), ("f", "0_0.png", 1, "r", 0, 5)])
    with pytest.raises(FoldsError, match=r"fold 3: .*--fold .*3, 5"):
        validation_rows(crops, 3)


HEADER = b"video,file,label,original,frame,fold\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, ""),
        (b"", ""),
        (b"\xff\xfe\x00\x01", ""),
        (b"video,file\na,b\n", "label, original, frame, fold"),
        (HEADER, ""),
        (HEADER + b"a,b,2,a,0,0\n", "label"),
        (HEADER + b"a,b,1,a,first,0\n", "frame"),
        (HEADER + b"a,b,,a,0,0\n", "label"),
        (HEADER + b"a,b,1,a,0\n", "fold"),
        (HEADER + b"a,b,1,a,0,0,7\n", "more values"),
        *(
            (HEADER + row % value + b"\n", f"column {column} has '{shown}'")
            for value, shown in (
                (b"99999999999", "99999999999"),
                (b"-99999999999", "-99999999999"),
                (b"18446744073709551615", "18446744073709551615"),
                (b"9" * 40, "9+[.]+9+"),
                (b"1e9", "1000000000.0"),
                (b"inf", "inf"),
                (b"True", "True"),
            )
            for column, row in (
                ("label", b"a,b,%s,a,0,0"),
                ("frame", b"a,b,1,a,%s,0"),
                ("fold", b"a,b,1,a,0,%s\na,b,1,a,0,0"),
            )
        ),
        (HEADER + b"a,b,1,a,-10,0\n", "column frame has '-10'"),
        *(
            (HEADER + row % name, f"column {column} .*name")
            for name in (b"../a", b"/etc", b"", b"a\0b", b"..")
            for column, row in (
                ("video", b"%s,b,1,a,0,0\n"),
                ("original", b"a,b,1,%s,0,0\n"),
                ("file", b"a,%s,1,a,0,0\n"),
            )
        ),
    ],
)
def test_invalid_list_is_an_error(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "folds.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FoldsError, match=rf"folds\.csv: .*{problem}.*generate_folds\.py"):
        read_folds(path)


def test_largest_numbers_are_kept(tmp_path: Path) -> None:
    """Numbers beyond 32 bits wrapped around to those of another fold."""
    limit = 2**31 - 1
    crops = make_crops(tmp_path, [("a", "0_0.png", 1, "a", limit, limit), ("b", "0_0.png", 1, "b", 0, -limit)])
    assert crops.frame.tolist() == [limit, 0]
    assert crops.fold.tolist() == [limit, -limit]


def test_names_that_are_not_valid_utf8(tmp_path: Path) -> None:
    """They are the names of the files, and belong to a half."""
    path = face_crops.write(tmp_path / "folds.csv", HEADER + b"\xff\xe9,0_0.png,0,\xff\xe9,0,0\n")
    crops = read_folds(path)
    assert os.fsencode(crops.name(0)) == b"\xff\xe9/0_0.png"
    halves = [validation_rows(crops, 0, half=half) for half in HALVES if half == half_of(crops.videos[0])]
    assert [rows.tolist() for rows in halves] == [[0]]
    assert half_of("\ud800") in HALVES  # from JSON


def test_halves_are_those_of_before() -> None:
    assert [half_of(name) for name in ("aassnaulhq", "aayfryxljh", "é", "007")] == [
        HALVES[zlib.crc32(name.encode()) % 2] for name in ("aassnaulhq", "aayfryxljh", "é", "007")
    ]


@pytest.mark.parametrize("fakes", [500, 100, 30, 7])
def test_oversampling_balances_the_classes(fakes: int) -> None:
    """Each real once; counts of fakes differ by at most one. The published code failed with fewer fakes than reals."""
    fake = np.arange(100 + fakes) >= 100
    counts = np.bincount(epoch_order(fake, 1, 0), minlength=len(fake))
    assert (counts[:100] == 1).all()
    assert counts[100:].sum() == 100
    assert counts[100:].max() - counts[100:].min() <= 1


def test_each_crop_once_without_oversampling() -> None:
    fake = np.arange(50) >= 10
    assert sorted(epoch_order(fake, 3, 1, oversample=False)) == list(range(50))


def test_epochs_and_seeds_sample_different_fakes() -> None:
    """With seed 0, the published code used the same fakes in every epoch; it also seeded NumPy's global generator."""
    fake = np.arange(600) >= 100
    state = np.random.get_state()[1].copy()
    orders = {(seed, epoch): epoch_order(fake, seed, epoch) for seed in (0, 111, 555) for epoch in range(5)}
    assert (np.random.get_state()[1] == state).all()
    assert len({tuple(sorted(order)) for order in orders.values()}) == len(orders)
    for (seed, epoch), order in orders.items():
        assert (epoch_order(fake, seed, epoch) == order).all()


def test_all_fakes_are_equally_likely() -> None:
    fake = np.arange(60) >= 10
    counts = sum(np.bincount(epoch_order(fake, 5, epoch), minlength=60) for epoch in range(2000))
    # 10 of 50 fakes in each of 2000 epochs: mean 400, standard deviation sqrt(2000 * 0.2 * 0.8) = 18.
    assert np.abs(counts[10:] - 400).max() < 5 * 18


def sampled_crops(root: Path, reals: int, fakes: int) -> Crops:
    """Real videos with one crop each and as many fakes of them as given, the first ones more than others."""
    rows = [(f"r{real}", "0_0.png", 0, f"r{real}", 0, 1) for real in range(reals)]
    rows += [(f"f{fake}", "0_0.png", 1, f"r{fake % reals // 2}", 0, 1) for fake in range(fakes)]
    return make_crops(root, rows)


def test_pairs_are_a_real_and_its_fake(tmp_path: Path) -> None:
    """Each real once, followed by its own fake, all of which are equally likely; by any fake if it has none."""
    crops = sampled_crops(tmp_path, reals=20, fakes=60)  # six fakes for each of r0 to r9
    rows = np.arange(len(crops))[::-1]
    counts = np.zeros(len(crops), int)
    for epoch in range(500):
        pairs = rows[paired_order(crops, rows, 3, epoch)].reshape(-1, 2)
        assert sorted(pairs[:, 0]) == list(range(20))
        assert crops.fake[pairs[:, 1]].all()
        has_fakes = pairs[:, 0] < 10
        assert (crops.original[pairs[has_fakes, 0]] == crops.original[pairs[has_fakes, 1]]).all()
        counts += np.bincount(pairs[:, 1], minlength=len(crops))
    # Own: 500 / 6, standard deviation 8.3; of others: 10 of 60 in each epoch, the same again.
    assert np.abs(counts[20:] - 2 * 500 / 6).max() < 5 * 2**0.5 * 8.4
    orders = [tuple(paired_order(crops, rows, *key)) for key in ((3, 0), (3, 0), (3, 1), (4, 0))]
    assert orders[0] == orders[1]
    assert len(set(orders)) == 3


def test_pairs_show_the_same_frame_and_face(tmp_path: Path) -> None:
    rows = [
        (video, f"{frame}_{face}.png", int(video != "r"), "r", frame, 1)
        for video in ("r", "f", "g")
        for frame in (0, 10)
        for face in (0, 1)
    ]
    crops = make_crops(tmp_path, rows)
    for epoch in range(20):
        pairs = paired_order(crops, np.arange(len(crops)), 0, epoch).reshape(-1, 2)
        assert (crops.file[pairs[:, 0]] == crops.file[pairs[:, 1]]).all()


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_divide_the_batches_of_one(tmp_path: Path, world_size: int, pairs: bool) -> None:
    crops = sampled_crops(tmp_path, reals=50, fakes=100)
    rows = np.arange(20, 150)
    single = EpochBatchSampler(crops, rows, 4 * world_size, 100, seed=7, pairs=pairs)
    samplers = [
        EpochBatchSampler(crops, rows, 4, 100, 7, pairs=pairs, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for epoch in range(2):
        for sampler in (single, *samplers):
            sampler.epoch = epoch
        for whole, *parts in zip(single, *samplers, strict=True):
            assert [len(part) for part in parts] == [4] * world_size
            assert sorted(index for part in parts for index in part) == sorted(whole)
            assert not pairs or 2 * crops.fake[[index.row for index in whole]].sum() == len(whole)
    assert len(single) == 60 // (4 * world_size)


def test_batches_of_an_epoch_are_full_and_in_order(tmp_path: Path) -> None:
    crops = sampled_crops(tmp_path, reals=100, fakes=200)
    batches = list(EpochBatchSampler(crops, np.arange(300), 8, 10, seed=1))
    assert [len(batch) for batch in batches] == [8] * 10
    assert [index.position for batch in batches for index in batch] == list(range(80))


def test_batch_larger_than_an_epoch_is_an_error(tmp_path: Path) -> None:
    crops = sampled_crops(tmp_path, reals=100, fakes=200)
    with pytest.raises(FoldsError, match=r"optimizer\.batch_size: .*256.*200 crops"):
        EpochBatchSampler(crops, np.arange(300), 256, 10, seed=1)
