"""Which clips a shard has, and the options that choose it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from common.shards import SPACE, WHOLE, Shard, find_shards, parse_shard, shard_path

NAMES = [f"clip_{number}.mp4" for number in range(4000)]


def test_assignment_is_that_of_earlier_versions():
    """Positions are the first four bytes of the SHA-256 of the name: abc has ba7816bf, the empty name e3b0c442."""
    assert [index for index in range(16) if "abc" in Shard(index, 16)] == [0xB]
    assert [index for index in range(256) if "" in Shard(index, 256)] == [0xE3]
    assert [index for index in range(3) if "\udcff\ud800" in Shard(index, 3)] == [0]


@pytest.mark.parametrize("count", [1, 3, 4, 7, 999_999])
def test_each_position_is_in_one_shard(count: int):
    numbers = sorted({0, 1, count // 2, count // 2 + 1, count - 1} & set(range(count)))
    parts = {number: Shard(number, count).positions for number in numbers}
    assert (parts[0].start, parts[count - 1].stop) == (0, SPACE)
    assert all(len(part) > 0 for part in parts.values())
    assert all(parts[number].stop == parts[number + 1].start for number in numbers if number + 1 in parts)
    if count < 10:
        sizes = [sum(name in Shard(index, count) for name in NAMES) for index in range(count)]
        assert sum(sizes) == len(NAMES)
        assert max(sizes) < 1.2 * len(NAMES) / count


def test_parses_numbers():
    assert parse_shard("3/4") == Shard(3, 4)
    assert str(parse_shard("03/4")) == "3/4"
    assert parse_shard("0/1") == WHOLE


@pytest.mark.parametrize(
    "text", ["4/4", "-1/4", "1", "1/", "/4", "0/0", "a/b", "1/4/2", "1/٤", "1/1000000", "Auto", ""]
)
def test_other_texts_are_errors(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="I/N"):
        parse_shard(text)


def set_array(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    for name, value in zip(("ID", "MIN", "MAX", "COUNT"), values, strict=False):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)


def test_auto_reads_the_variables_of_slurm(monkeypatch: pytest.MonkeyPatch):
    set_array(monkeypatch, "3", "0", "7", "8")
    assert parse_shard("auto") == Shard(3, 8)


# Arrays that count from 1, in steps, with a gap, of one index; no number; variables of an old version of Slurm; none.
WRONG_ARRAYS = [
    ("3", "1", "8", "8"),
    ("2", "0", "8", "5"),
    ("3", "0", "9", "3"),
    ("2", "2", "2", "1"),
    ("9", "0", "7", "8"),
    ("x", "0", "7", "8"),
    ("3",),
    (),
]


@pytest.mark.parametrize("values", WRONG_ARRAYS)
def test_auto_refuses_other_arrays(monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...]):
    set_array(monkeypatch, *values)
    found = f"SLURM_ARRAY_TASK_ID={values[0]}" if values else "SLURM_ARRAY_TASK_ID is not set"
    with pytest.raises(argparse.ArgumentTypeError, match=rf"^auto: .*{found}.*Pass I/N$"):
        parse_shard("auto")


def test_paths(tmp_path: Path):
    path = tmp_path / "s[1].csv.jsonl"
    files = {shard: shard_path(path, shard) for shard in (Shard(0, 2), Shard(1, 2), Shard(10, 11))}
    assert [file.name for file in files.values()] == [
        f"s[1].csv.shard-{name}.jsonl" for name in ("0-of-2", "1-of-2", "10-of-11")
    ]
    assert shard_path(path, None) == path
    assert find_shards(path) == {}
    others = (
        "s[1].csv.shard-00-of-2.jsonl",
        "s[1].csv.shard-2-of-2.jsonl",
        "s[1].csv.shard-0-of-2.jsonl.damaged",
        "s[1].shard-0-of-2.jsonl",
    )
    for name in (*others, *(file.name for file in files.values())):
        (tmp_path / name).touch()
    assert find_shards(path) == files
    assert find_shards(tmp_path / "nowhere" / "s.jsonl") == {}
