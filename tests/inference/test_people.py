"""Linking of faces into people, from boxes and from clips, and the scores of people."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from skimage.data import astronaut, coffee

from inference.aggregation import STRATEGIES, confident_strategy, mean_strategy
from inference.decoder import Decoder
from inference.people import IMPOSSIBLE, MAX_MISSED, _best_pairs, describe_people, disagree, link_faces, most_suspicious
from preprocessing import sample_clips
from preprocessing.boxes import overlap
from preprocessing.faces import FaceDetector
from preprocessing.limits import Limits

STEP = 10 / 31  # seconds between 32 frames sampled from 10 s
# Head and face in the portrait: left, top, right, bottom.
HEAD, FACE = np.array([150, 30, 300, 220]), np.array([182, 72, 266, 180])


def box(x: float, y: float, height: float = 100) -> list[float]:
    return [x - 0.375 * height, y - height / 2, x + 0.375 * height, y + height / 2]


def faces_of(frames: Sequence[dict[str, list[float]]], step: float = STEP) -> tuple[list[dict[str, Any]], list[str]]:
    """The faces of frames, which contain boxes by name; and the name of each face."""
    faces, names = [], []
    for number, boxes in enumerate(frames):
        for name in sorted(boxes, key=lambda name: boxes[name][1] - boxes[name][3]):  # as detected: largest first
            faces.append({"frame": 9 * number, "time": round(number * step, 3), "box": boxes[name]})
            names.append(name)
    return faces, names


def names_of(persons: Sequence[int], names: Sequence[str]) -> dict[int, set[str]]:
    """The names that each person's faces have."""
    found = defaultdict(set)
    for person, name in zip(persons, names, strict=True):
        found[person].add(name)
    return dict(found)


def check_frames(faces: Sequence[dict[str, Any]], persons: Sequence[int]) -> None:
    """Check that no two faces of a frame are one person."""
    pairs = [(face["frame"], person) for face, person in zip(faces, persons, strict=True)]
    assert len(set(pairs)) == len(pairs)


def test_numbers_are_in_order_of_appearance_larger_first():
    frames = [{"b": box(300, 100, 120), "a": box(100, 100)}, {"a": box(104, 100), "b": box(297, 101, 118)}]
    frames += [{**frames[1], "c": box(500, 100, 150)}]
    faces, names = faces_of(frames)
    assert names_of(link_faces(faces), names) == {1: {"b"}, 2: {"a"}, 3: {"c"}}
    assert link_faces([]) == []


def crossing(seed: int) -> tuple[list[dict[str, list[float]]], list[bool]]:
    """Two people of the same height who pass each other; and whether they are apart in each frame.

    The one behind is not detected while half of the face is hidden.
    """
    random = np.random.default_rng(seed)
    speed = random.uniform(5, 25)  # pixels per frame; faces are 75 pixels wide
    offset = random.uniform(-0.5, 0.5)
    frames, apart = [], []
    for number in range(32):
        shift = speed * (number - 15.5 + offset)
        centers = {"front": (500 + shift, 200.0), "behind": (500 - shift, 203.0)}
        noisy = {name: box(*(center + random.normal(0, 1.5, 2)), 100) for name, center in centers.items()}
        apart.append(abs(2 * shift) > 40)
        frames.append(noisy if apart[-1] else {"front": noisy["front"]})
    return frames, apart


@pytest.mark.parametrize("seed", range(40))
def test_people_who_cross_keep_their_numbers(seed: int):
    frames, apart = crossing(seed)
    faces, names = faces_of(frames)
    persons = link_faces(faces)
    check_frames(faces, persons)
    visible = [apart[face["frame"] // 9] for face in faces]
    kept = [(person, name) for person, name, seen in zip(persons, names, visible, strict=True) if seen]
    found = names_of(*zip(*kept, strict=True))
    assert all(len(group) == 1 for group in found.values())
    hidden = apart.count(False)
    assert len(found) == 2 or hidden > MAX_MISSED


@pytest.mark.parametrize("seed", range(40))
def test_people_who_move_smoothly_keep_their_numbers(seed: int):
    # Six people in their seats sway, come nearer and are missed now and then.
    random = np.random.default_rng(seed)
    seats = [(150 + 180 * column + random.uniform(-15, 15), 300 + random.uniform(-40, 40)) for column in range(6)]
    phases, periods = random.uniform(0, 6.3, 6), random.uniform(12, 40, 6)
    heights = random.uniform(70, 140, 6)
    frames = []
    for number in range(32):
        angles = phases + 2 * np.pi * number / periods
        frames.append(
            {
                str(person): box(
                    x + 40 * np.sin(angles[person]) + random.normal(0, 2),
                    y + 15 * np.cos(angles[person]) + random.normal(0, 2),
                    heights[person] * np.exp(0.15 * np.sin(number / 10) + random.normal(0, 0.03)),
                )
                for person, (x, y) in enumerate(seats)
                if random.random() > 0.15
            }
        )
    faces, names = faces_of(frames)
    persons = link_faces(faces)
    check_frames(faces, persons)
    assert sorted(map(sorted, names_of(persons, names).values())) == [[str(person)] for person in range(6)]


def test_a_person_who_is_missed_keeps_the_number_for_some_frames():
    def persons(missed: int) -> list[int]:
        # Another person is seen all the time: frames without any face do not count.
        frames = [{"other": box(900, 200), "a": box(100 + 5 * number, 200)} for number in range(6)]
        frames += [{"other": box(900, 200)} for _ in range(missed)]
        frames += [{"other": box(900, 200), "a": box(100 + 5 * (6 + missed), 200)}]
        faces, names = faces_of(frames)
        return [person for person, name in zip(link_faces(faces), names, strict=True) if name == "a"]

    assert len(set(persons(MAX_MISSED))) == 1
    assert len(set(persons(MAX_MISSED + 1))) == 2


def test_a_person_who_walks_fast():
    # Each step is longer than the face is wide. The next frame tells it from a person beside the first one.
    frames = [{"a": box(100 + 120 * number, 200)} for number in range(6)]
    faces, names = faces_of(frames)
    assert names_of(link_faces(faces), names) == {1: {"a"}}
    faces, names = faces_of([{"a": box(100, 200)}, *[{"b": box(220, 200)}] * 4])
    assert names_of(link_faces(faces), names) == {1: {"a"}, 2: {"b"}}


def test_a_cut():
    # After a cut, people in other places, or of another size, are new; one in the place of another cannot be told.
    before = {"a": box(200, 200), "b": box(600, 200)}
    after = {"c": box(400, 200), "d": box(800, 200), "e": box(200, 200, 250)}
    faces, names = faces_of([before] * 5 + [after] * 5)
    assert names_of(link_faces(faces), names) == {1: {"a"}, 2: {"b"}, 3: {"e"}, 4: {"c"}, 5: {"d"}}
    faces, names = faces_of([before] * 5 + [{"c": box(205, 200), "d": box(595, 200)}] * 5)
    assert names_of(link_faces(faces), names) == {1: {"a", "c"}, 2: {"b", "d"}}


def test_frames_that_are_far_apart():
    # Minutes apart, the last motion says nothing about where a face is now.
    frames = [{"a": box(200 + 60 * (number % 2), 200), "b": box(600, 200)} for number in range(8)]
    faces, names = faces_of(frames, step=60)
    assert names_of(link_faces(faces), names) == {1: {"a"}, 2: {"b"}}


def test_odd_boxes_and_times():
    faces, _ = faces_of([{"a": [10, 10, 10, 10], "b": [-50, -20, 30, 80]}] * 4, step=0)
    persons = link_faces(faces)
    check_frames(faces, persons)
    assert persons == [1, 2] * 4


def test_a_crowd_is_fast():
    random = np.random.default_rng(0)
    places = [(60 + 110 * (person % 15), 100 + 160 * (person // 15)) for person in range(60)]
    frames = [
        {str(person): box(*(place + random.normal(0, 3, 2)), 80) for person, place in enumerate(places)}
        for _ in range(32)
    ]
    faces, names = faces_of(frames)
    start = time.perf_counter()
    persons = link_faces(faces)
    assert time.perf_counter() - start < 20  # about 0.6 s

    assert sorted(map(sorted, names_of(persons, names).values())) == sorted([str(person)] for person in range(60))


def heads(heights: tuple[int, int], frames: int) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Frames in which a head moves to the right in front of another one that moves to the left; and their faces."""
    left, top, right, bottom = HEAD
    picture = astronaut()[top:bottom, left:right]
    oval = cv2.ellipse(np.zeros(picture.shape[:2], np.uint8), (75, 95), (74, 94), 0, 0, 360, 255, -1)
    face = FACE - np.tile(HEAD[:2], 2)
    mirrored = np.array([150 - face[2], face[1], 150 - face[0], face[3]])
    tinted = (picture[:, ::-1] * [0.75, 0.9, 1]).astype(np.uint8)
    background = cv2.resize(coffee(), (640, 360))
    for number in range(frames):
        image, boxes = background.copy(), []
        for height, head, mask, place, start in (
            (heights[1], tinted, oval[:, ::-1], mirrored, 1.0),
            (heights[0], picture, oval, face, 0.0),
        ):
            scale = height / 108  # the face's height in the portrait
            head, mask = (cv2.resize(np.ascontiguousarray(part), None, fx=scale, fy=scale) for part in (head, mask))
            x = round(abs(start - number / (frames - 1)) * (640 - head.shape[1]))
            y = (360 - head.shape[0]) // 2
            area = image[y : y + head.shape[0], x : x + head.shape[1]]
            area[mask > 127] = head[mask > 127]
            boxes.append(place * scale + [x, y, x, y])
        yield image, boxes[::-1]


@pytest.mark.parametrize("heights", [(110, 110), (120, 90), (90, 120)], ids=["equal", "front larger", "front smaller"])
def test_detected_faces_that_cross(heights: tuple[int, int], tmp_path: Path):
    scene = list(heads(heights, 250))
    clip = sample_clips.write_clip(tmp_path / "crossing.mp4", (image for image, _ in scene))
    decoder, detector = Decoder(Limits()), FaceDetector()
    decoder.open(clip, 32)
    faces, names = [], []
    for frame in decoder.frames():
        front, behind = scene[frame.index][1]
        for face in detector.detect([frame.image])[0]:
            faces.append({"frame": frame.index, "time": round(frame.time, 3), "box": face.box.tolist()})
            in_front = overlap(face.box, front) > 0.5
            assert in_front or overlap(face.box, behind) > 0.5
            names.append("front" if in_front else "behind")
    assert names.count("front") == 32
    assert names.count("behind") >= 20
    persons = link_faces(faces)
    check_frames(faces, persons)
    assert sorted(map(sorted, names_of(persons, names).values())) == [["behind"], ["front"]]


def person(score: float, faces: int = 32) -> dict[str, Any]:
    return {"score": score, "faces": faces}


def test_describe_people():
    # Person 1 is missed in the second of five frames. The first model is sure that person 2 is fake.
    times = [0.0, 1.0004, 2.0, 3.0, 4.0]
    low, high = [0.1, 0.15, 0.1, 0.3], [0.95] * 5
    faces = [
        {"frame": 30 * second, "time": float(second), "box": box(100, 100, 50 + second), "scores": {"A": a, "B": 0.5}}
        for second, a in zip((0, 2, 3, 4), low, strict=True)
    ]
    faces += [
        {"frame": 30 * second, "time": float(second), "box": box(400, 100), "scores": {"A": a, "B": 0.25}}
        for second, a in enumerate(high)
    ]
    faces.sort(key=lambda face: face["frame"])
    persons = [1 if face["box"][0] < 200 else 2 for face in faces]
    assert describe_people(faces, persons, times, mean_strategy) == [
        {
            "person": 1,
            "score": pytest.approx((0.1625 + 0.5) / 2),
            "scores": {"A": pytest.approx(0.1625), "B": 0.5},
            "faces": 4,
            "height": 52.5,
            "seen": [[0.0, 0.0], [2.0, 4.0]],
        },
        {
            "person": 2,
            "score": pytest.approx((0.95 + 0.25) / 2),
            "scores": {"A": pytest.approx(0.95), "B": 0.25},
            "faces": 5,
            "height": 100.0,
            "seen": [[0.0, 4.0]],
        },
    ]
    assert STRATEGIES["confident"] is confident_strategy
    twelve = [{**faces[0], "scores": {"A": score}} for score in [0.9] * 12 + [0.3] * 8]
    [confident] = describe_people(twelve, [1] * 20, [0.0], confident_strategy)
    assert confident["score"] == pytest.approx(0.9)  # the confident fakes decide


def test_most_suspicious_person():
    # A false detection in one or two frames does not decide, unless nobody is seen longer.
    assert most_suspicious([person(0.2), person(0.7), person(0.99, faces=2)])["score"] == 0.7
    assert most_suspicious([person(0.2), person(0.8, faces=3)])["score"] == 0.8
    assert most_suspicious([person(0.2, faces=2), person(0.9, faces=1)])["score"] == 0.2
    assert most_suspicious([person(0.2, faces=1), person(0.9, faces=1)])["score"] == 0.9


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        ([person(0.1), person(0.9)], True),
        ([person(0.35), person(0.65)], True),
        ([person(0.4), person(0.6)], False),
        ([person(0.55), person(0.99)], False),
        ([person(0.1), person(0.2), person(0.9, faces=2)], False),
        ([person(0.9)], False),
    ],
)
def test_disagreement(people: list[dict[str, Any]], expected: bool):
    assert disagree(people) == expected


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_pairs_of_few_faces_are_those_of_scipy(rows: int, columns: int) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        costs, possible = generator.random((rows, columns)), generator.random((rows, columns)) < 0.7
        best = zip(*linear_sum_assignment(np.where(possible, costs, IMPOSSIBLE)), strict=True)
        assert sorted(_best_pairs(costs, possible)) == [pair for pair in best if possible[pair]]
