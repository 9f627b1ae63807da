"""Link the faces of a video over time into people, and score each person."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, permutations, zip_longest
from typing import Any, NamedTuple

import numpy as np

from preprocessing.boxes import distance, overlap

# A face belongs to a person only if its center is nearer to where the person was last seen, or should be now, than this
# many sides of the larger box, and if neither box is higher than the other by more than this factor.
MAX_DISTANCE, MAX_SIZE_RATIO = 0.7, 2.0
# The same for a person who has been seen once, in the frame before, so that the motion is unknown, if the next frame
# confirms it: the step of somebody who walks past the camera.
MAX_JUMP, MAX_JUMP_SIZE_RATIO = 1.6, 1.25
# Shortest time between two frames in seconds: that of rounded times.
MIN_STEP = 0.001
# What a link costs, per unit: distance from the expected box, 1 - overlap with it, log ratio of the heights. A person
# who was missing in the frame before costs more: of two who cross, the one in front is seen all the time. These and
# HISTORY gave the fewest exchanges among simulated people who cross, walk and sway, with noise and missing faces.
DISTANCE_COST, OVERLAP_COST, SIZE_COST, MISSED_COST = 1.0, 0.5, 2.0, 0.2
# A person's motion is fitted to so many faces at most, and neither they nor the next face are farther apart than this
# time in seconds. Between frames that are farther apart, motion says nothing.
HISTORY, MAX_EXTRAPOLATION = 5, 3.0
# A person who is missing in more frames than this in a row, of those with faces, counts as another person afterwards.
# It spans an occlusion of 2.5 s if 32 frames are sampled from 10 s.
MAX_MISSED = 8
# Cost of a link that is not possible: more than all others together.
IMPOSSIBLE = 1e6
# Up to this many faces per frame, all pairings are tried, which is faster than importing SciPy.
FEW = 3
# A person seen in fewer sampled frames does not decide the score of a video: false detections are that short, and the
# highest of many single scores says more about their number than about any person.
MIN_FACES = 3
# People, or models, disagree if their scores are at least this far apart, on different sides of 0.5.
DISAGREEMENT = 0.3


class _Frame(NamedTuple):
    """The boxes (n, 4) of a frame, and its time in seconds."""

    time: float
    boxes: np.ndarray


@dataclass
class _Track:
    """The faces of one person so far.

    Attributes:
        person: number, from 1.
        times: times of the faces in seconds.
        boxes: their bounding boxes.
        missed: number of sampled frames since the last face.
    """

    person: int
    times: list[float] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    missed: int = 0

    def add(self, time: float, box: np.ndarray) -> None:
        """Add a face."""
        self.times.append(time)
        self.boxes.append(box)
        self.missed = 0

    def predict(self, time: float) -> np.ndarray:
        """Return the expected box at a time: a straight line through the centers of the last faces."""
        times, boxes = np.array(self.times[-HISTORY:]), np.array(self.boxes[-HISTORY:])
        size = np.median(boxes[:, 2:] - boxes[:, :2], axis=0)
        recent = times[-1] - times <= MAX_EXTRAPOLATION
        times, centers = times[recent], (boxes[recent, :2] + boxes[recent, 2:]) / 2
        center, shifted = centers[-1], times - times.mean()
        if np.any(shifted) and time - times[-1] <= MAX_EXTRAPOLATION:
            velocity = shifted @ centers / (shifted @ shifted)
            center = centers.mean(axis=0) + velocity * (time - times.mean())
        return np.concatenate([center - size / 2, center + size / 2])


def link_faces(faces: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the number of the person that each face belongs to.

    People are numbered from 1 in order of appearance, larger faces first. The faces of a frame are assigned to the
    people so far by the distance from their expected boxes, the overlap with them and the difference in size, at the
    least total cost. The expected box moves on with the person's speed, so people who cross are told apart.

    Only boxes are compared, not what the faces look like. So after a cut, or between frames that are many seconds
    apart, a face in the place of an earlier one counts as the same person, and one in another place as a new one; and
    of two people who meet and turn back while one hides the other, each may be taken for the other.

    Args:
        faces: the faces of a video, ordered by frame; see `faces` in docs/formats.md.
    """
    groups = [list(group) for _, group in groupby(faces, key=lambda face: face["frame"])]
    frames = [_Frame(group[0]["time"], np.array([face["box"] for face in group], float)) for group in groups]
    tracks: list[_Track] = []
    persons: list[int] = []
    for frame, following in zip_longest(frames, frames[1:]):
        active = [track for track in tracks if track.missed <= MAX_MISSED]
        assigned = _assign(frame, active, following)
        for track in active:
            track.missed += 1
        for index in np.argsort(-_heights(frame.boxes), kind="stable").tolist():
            if index not in assigned:
                tracks.append(_Track(len(tracks) + 1))
                assigned[index] = tracks[-1]
            assigned[index].add(frame.time, frame.boxes[index])
        persons += [assigned[index].person for index in range(len(frame.boxes))]
    return persons


def describe_people(
    faces: Sequence[Mapping[str, Any]],
    persons: Sequence[int],
    times: Sequence[float],
    aggregate: Callable[[np.ndarray], float],
) -> list[dict[str, Any]]:
    """Return the `people` of a video, see docs/formats.md.

    Args:
        faces: the faces of the video, ordered by frame.
        persons: result of `link_faces`.
        times: times in seconds of all sampled frames, in order.
        aggregate: combines the scores of faces.
    """
    people = []
    for person in sorted(set(persons)):
        own = [face for face, number in zip(faces, persons, strict=True) if number == person]
        names = own[0]["scores"]
        scores = {name: aggregate(np.array([face["scores"][name] for face in own])) for name in names}
        people.append(
            {
                "person": person,
                "score": float(np.mean(list(scores.values()))),
                "scores": scores,
                "faces": len(own),
                "height": round(float(np.median([face["box"][3] - face["box"][1] for face in own])), 1),
                "seen": _intervals({face["time"] for face in own}, times),
            }
        )
    return people


def mean_score(face: Mapping[str, Any]) -> float:
    """Return the mean of a face's scores over the models."""
    return float(np.mean(list(face["scores"].values())))


def most_suspicious(people: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the person with the highest score of those who are seen long enough, see `counted`."""
    return max(counted(people), key=lambda person: person["score"])


def disagree(people: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the scores of people who are seen long enough are far apart, on different sides of 0.5."""
    return are_apart([person["score"] for person in counted(people)])


def are_apart(scores: Collection[float]) -> bool:
    """Return whether the highest and the lowest score disagree, see DISAGREEMENT."""
    return min(scores) < 0.5 < max(scores) and max(scores) - min(scores) >= DISAGREEMENT


def counted(people: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the people who are seen in at least MIN_FACES frames; if nobody is, those who are seen most."""
    enough = min(MIN_FACES, max((person["faces"] for person in people), default=0))
    return [person for person in people if person["faces"] >= enough]


def _assign(frame: _Frame, tracks: Sequence[_Track], following: _Frame | None) -> dict[int, _Track]:
    """Return the track of each box of a frame, by index, that belongs to one; `following`: the next frame."""
    if not tracks:
        return {}
    found = frame.boxes[:, None]
    expected = np.array([track.predict(frame.time) for track in tracks])
    last = np.array([track.boxes[-1] for track in tracks])
    distances = distance(found, expected)
    ratios = np.abs(np.log(_heights(found) / _heights(expected)))
    costs = DISTANCE_COST * distances + OVERLAP_COST * (1 - overlap(found, expected)) + SIZE_COST * ratios
    costs += MISSED_COST * np.array([track.missed > 0 for track in tracks])
    near = np.minimum(distances, distance(found, last)) < MAX_DISTANCE
    pairs = _best_pairs(costs, near & (ratios < np.log(MAX_SIZE_RATIO)))
    if following:
        is_new = np.array([len(track.boxes) == 1 and not track.missed for track in tracks])
        jumps = is_new & (distance(found, last) < MAX_JUMP) & (ratios < np.log(MAX_JUMP_SIZE_RATIO))
        for box, track in pairs:
            jumps[box], jumps[:, track] = False, False
        for box, track in np.argwhere(jumps).tolist():
            jumps[box, track] = _moves_on(tracks[track], frame.boxes[box], frame.time, following)
        pairs += _best_pairs(costs, jumps)
    return {box: tracks[track] for box, track in pairs}


def _moves_on(track: _Track, box: np.ndarray, time: float, following: _Frame) -> bool:
    """Return whether the next frame shows a face where a person would be who moves on, and none where the box is."""
    elapsed = max(time - track.times[-1], MIN_STEP)
    onward = box + (box - track.boxes[-1]) * ((following.time - time) / elapsed)
    nearest, staying = (np.min(distance(place, following.boxes)) for place in (onward, box))
    return bool(nearest < MAX_DISTANCE <= staying)


def _best_pairs(costs: np.ndarray, possible: np.ndarray) -> list[tuple[int, int]]:
    """Return the possible pairs (row, column), as many as there can be, with the least total cost."""
    costs = np.where(possible, costs, IMPOSSIBLE)
    if max(costs.shape) <= FEW:
        pairs = min(_assignments(*costs.shape), key=lambda pairs: sum(costs[pair] for pair in pairs))
    else:
        from scipy.optimize import linear_sum_assignment

        pairs = list(zip(*linear_sum_assignment(costs), strict=True))
    return [(int(row), int(column)) for row, column in pairs if possible[row, column]]


def _assignments(rows: int, columns: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the ways to pair each row with a column of its own or, if there are more rows, the other way around."""
    if rows > columns:
        yield from ([(row, column) for column, row in pairs] for pairs in _assignments(columns, rows))
    else:
        yield from (list(enumerate(chosen)) for chosen in permutations(range(columns), rows))


def _heights(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[..., 3] - boxes[..., 1], 1)


def _intervals(seen: set[float], times: Sequence[float]) -> list[list[float]]:
    """Return the first and the last time of each run of sampled frames in which a person is seen."""
    rounded = [round(time, 3) for time in times]
    runs = groupby(rounded, key=lambda time: time in seen)
    return [[run[0], run[-1]] for run in (list(group) for is_seen, group in runs if is_seen)]
