"""Boxes: their file, and which of them are one person's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from preprocessing.boxes import BoxesError, face_numbers, read_boxes, write_boxes


def box(left: float, side: float = 100) -> list[float]:
    return [left, 50.0, left + side, 50 + side]


def test_file(tmp_path: Path):
    boxes = {20: [box(1.25), box(300)], 0: [], 10: [box(-3.5)]}
    write_boxes(tmp_path / "a.json", boxes)
    assert json.loads((tmp_path / "a.json").read_text()) == {"0": None, "10": [box(-3.5)], "20": [box(1.25), box(300)]}
    assert read_boxes(tmp_path / "a.json") == boxes
    (tmp_path / "every.json").write_text(json.dumps({str(frame): [box(frame)] for frame in range(25)}))
    assert read_boxes(tmp_path / "every.json") == {frame: [box(frame)] for frame in (0, 10, 20)}
    with pytest.raises(BoxesError, match=r"nothing\.json: no boxes; run detect_original_faces\.py"):
        read_boxes(tmp_path / "nothing.json")


def test_numbers_by_hand():
    # the second grows larger than the first and is listed before it
    assert face_numbers({0: [box(0, 100), box(400, 90)], 10: [box(395, 110), box(5, 95)]}) == {0: [0, 1], 10: [1, 0]}
    # one goes away and comes back; another comes in between
    there_and_back = {0: [box(0), box(400)], 10: [box(400)], 20: [], 30: [box(410), box(900), box(10)]}
    assert face_numbers(there_and_back) == {0: [0, 1], 10: [1], 20: [], 30: [1, 2, 0]}
    # farther away than its own size: someone else
    assert face_numbers({0: [box(0)], 10: [box(101)]}) == {0: [0], 10: [1]}
    assert face_numbers({0: [box(0)], 10: [box(99)]}) == {0: [0], 10: [0]}
    # two move on by half a face: the nearest of each alone would be the other one
    assert face_numbers({0: [box(100), box(190)], 10: [box(145), box(235)]}) == {0: [0, 1], 10: [0, 1]}
    assert face_numbers({}) == {}


def test_numbers_do_not_depend_on_the_order_within_later_frames():
    random = np.random.default_rng(0)
    places = np.array([0.0, 220, 440, 660, 880])
    boxes, owners = {0: [box(left) for left in places]}, {0: list(range(5))}
    for frame in range(10, 400, 10):
        places = places + random.uniform(-15, 15, 5)
        seen = random.permutation(5)[: random.integers(0, 6)]
        boxes[frame], owners[frame] = [box(places[person], 100 + person) for person in seen], seen.tolist()
    assert face_numbers(boxes) == owners
