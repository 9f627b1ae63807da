"""Match the frames of a fake to the frames of its original that show the same moment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

# Two frames show the same moment if they are at most this fraction of a frame interval apart.
SAME_TIME = 0.25
# Guards the comparison of equal logarithms against rounding.
EPSILON = 1e-9


def match_frames(wanted: Iterable[int], original: Sequence[float], fake: Sequence[float]) -> dict[int, int]:
    """Return a dict, frame of the fake -> frame of its original, for the wanted frames that both videos have.

    Args:
        wanted: frame numbers of the original.
        original: times of the original's frames in seconds, by frame number.
        fake: times of the fake's frames in seconds, by frame number.
    """
    wanted = [frame for frame in wanted if frame < len(original)]
    times = matching_times(original, fake)
    if times is None:
        return {frame: frame for frame in wanted if frame < len(fake)}
    tolerance = SAME_TIME * min(_interval(original), _interval(fake))
    matches = {}
    for frame in wanted:
        distances = np.abs(times - (original[frame] - original[0]))
        if distances.min() <= tolerance:
            matches[int(distances.argmin())] = frame
    return matches


def matching_times(original: Sequence[float], fake: Sequence[float]) -> np.ndarray | None:
    """Return the fake's frame times relative to the original's first frame, or None if frames match by number.

    Frames match by time if the durations agree better than the frame counts: then the fake has a different frame rate
    or has lost frames.
    """
    if min(len(original), len(fake)) < 2:
        return None
    if min(original[-1] - original[0], fake[-1] - fake[0]) <= 0:
        return None
    times = np.subtract(fake, fake[0] if not _lost_first_frames(original, fake) else original[0])
    duration_mismatch = abs(math.log(times[-1] / (original[-1] - original[0])))
    count_mismatch = abs(math.log((len(fake) - 1) / (len(original) - 1)))
    return times if duration_mismatch < count_mismatch - EPSILON else None


def _lost_first_frames(original: Sequence[float], fake: Sequence[float]) -> bool:
    """Return whether the fake starts late by a whole number of frames, at most as many as it lacks."""
    delay = (fake[0] - original[0]) / _interval(fake)  # in frames
    return 1 <= round(delay) <= len(original) - len(fake) and abs(delay - round(delay)) <= SAME_TIME


def _interval(times: Sequence[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)
