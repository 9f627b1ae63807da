"""Bounding boxes: the file, and the face numbers that link them across frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from preprocessing.boxes import BoxesError, _least_total, face_numbers, overlap, read_boxes, write_boxes


def box(left: float, side: float = 100) -> list[float]:
    return [left, 50.0, left + side, 50 + side]


def test_file_format(tmp_path: Path):
    boxes = {20: [box(1.25), box(300)], 0: [], 10: [box(-3.5)]}
    write_boxes(tmp_path / "a.json", boxes)
    assert json.loads((tmp_path / "a.json").read_text()) == {"0": None, "10": [box(-3.5)], "20": [box(1.25), box(300)]}
    assert read_boxes(tmp_path / "a.json") == boxes
    (tmp_path / "every.json").write_text(json.dumps({str(frame): [box(frame)] for frame in range(25)}))
    assert read_boxes(tmp_path / "every.json") == {frame: [box(frame)] for frame in (0, 10, 20)}
    with pytest.raises(BoxesError, match=r"missing\.json.*detect_original_faces\.py") as error:
        read_boxes(tmp_path / "missing.json")
    assert error.value.status == "no_boxes"


@pytest.mark.parametrize(
    "content",
    [
        '{"0": [[1, 2',
        "[1]",
        '{"0": "many"}',
        '{"0": [[1, 2, 3]]}',
        '{"0": [[1, 2, NaN, 4]]}',
        '{"0": [[1, 2, 1e300, 4]]}',
        '{"0": [[1, 2, 1' + "0" * 400 + ", 4]]}",
        '{"0": [[1, 2, "3", 4]]}',
        '{"0": [[1, 2, true, 4]]}',
        '{"0": [["' + "x" * 10_000 + '", 2, 3, 4]]}',
        '{"0": ["1234"]}',
        '{"-10": null}',
        '{" 10": null}',
        '{"1_0": null}',
        '{"99999999999": null}',
        '{"a": null}',
    ],
)
def test_malformed_files(tmp_path: Path, content: str):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(BoxesError, match=str(path)) as error:
        read_boxes(path)
    assert len(str(error.value)) < 1000


def test_face_numbers_by_hand():
    # the second face becomes the larger one and is listed first
    assert face_numbers({0: [box(0, 100), box(400, 90)], 10: [box(395, 110), box(5, 95)]}) == {0: [0, 1], 10: [1, 0]}
    # a face disappears and comes back; another one appears in the meantime
    disappearing = {0: [box(0), box(400)], 10: [box(400)], 20: [], 30: [box(410), box(900), box(10)]}
    assert face_numbers(disappearing) == {0: [0, 1], 10: [1], 20: [], 30: [1, 2, 0]}
    # a face farther away than its size is another person
    assert face_numbers({0: [box(0)], 10: [box(101)]}) == {0: [0], 10: [1]}
    assert face_numbers({0: [box(0)], 10: [box(99)]}) == {0: [0], 10: [0]}
    # both move by half a face: matching each box to its nearest face alone would swap them
    assert face_numbers({0: [box(100), box(190)], 10: [box(145), box(235)]}) == {0: [0, 1], 10: [0, 1]}
    assert face_numbers({}) == {}


def test_face_numbers_do_not_depend_on_the_order_of_the_boxes():
    random = np.random.default_rng(0)
    places = np.array([0.0, 220, 440, 660, 880])
    boxes, owners = {0: [box(left) for left in places]}, {0: list(range(5))}
    for frame in range(10, 400, 10):
        places = places + random.uniform(-15, 15, 5)
        seen = random.permutation(5)[: random.integers(0, 6)]
        boxes[frame], owners[frame] = [box(places[person], 100 + person) for person in seen], seen.tolist()
    assert face_numbers(boxes) == owners


@pytest.mark.parametrize("others", [1, 2, 7])
def test_one_face_is_linked_like_several(others: int):
    """One box and several faces, or the reverse: the pair that SciPy chooses, also among equal ones."""
    random = np.random.default_rng(others)
    for _ in range(50):
        costs = random.integers(0, 5, (1, others)) / 4
        for matrix in (costs, costs.T):
            rows, columns = linear_sum_assignment(matrix)
            assert list(_least_total(matrix)) == list(zip(rows, columns, strict=True))


def test_overlap():
    first, second, empty = np.array([0, 0, 4, 2]), np.array([2, 0, 6, 2]), np.array([1, 1, 1, 1])
    assert overlap(first, first) == 1
    assert overlap(first, second) == pytest.approx(1 / 3)
    assert overlap(first, second + 10) == overlap(first, empty) == overlap(empty, empty) == 0
