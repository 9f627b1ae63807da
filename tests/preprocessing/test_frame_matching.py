"""Which frame of a fake shows the same moment as a frame of its original."""

from __future__ import annotations

import pytest

from preprocessing.frame_matching import match_frames

WANTED = range(0, 300, 10)
SAME = {frame: frame for frame in WANTED}


def times(count: int, rate: float) -> list[float]:
    return [index / rate for index in range(count)]


ORIGINAL = times(300, 30)


def test_equal_videos():
    assert match_frames(WANTED, ORIGINAL, ORIGINAL) == SAME
    assert match_frames(range(0, 1000, 10), ORIGINAL, ORIGINAL) == SAME


@pytest.mark.parametrize("count", [290, 1])
def test_shorter_fake(count: int):
    assert match_frames(WANTED, ORIGINAL, times(count, 30)) == {frame: frame for frame in WANTED if frame < count}


@pytest.mark.parametrize("rate", [15, 60, 24])
def test_other_frame_rates(rate: int):
    """All wanted frames have a counterpart at these rates; for example, 10 / 30 s is 8 / 24 s."""
    fake = times(10 * rate, rate)
    assert match_frames(WANTED, ORIGINAL, fake) == {frame * rate // 30: frame for frame in WANTED}


def test_frames_without_a_counterpart_are_left_out():
    found = match_frames(WANTED, ORIGINAL, times(70, 7))
    assert all(abs(match / 7 - frame / 30) <= 0.25 / 30 for match, frame in found.items())
    assert 0 < len(found) < len(WANTED)


def test_same_frames_with_another_rate_in_the_header():
    fake = times(299, 30)
    assert match_frames(WANTED, times(300, 29.97), fake) == {frame: frame for frame in WANTED if frame < 299}


def test_lost_frames():
    lost = ORIGINAL[:100] + ORIGINAL[103:]
    expected = {frame if frame < 100 else frame - 3: frame for frame in WANTED if not 100 <= frame < 103}
    assert match_frames(WANTED, ORIGINAL, lost) == expected


def test_lost_first_frames():
    assert match_frames(WANTED, ORIGINAL, ORIGINAL[2:]) == {frame - 2: frame for frame in WANTED if frame}


def test_an_offset_of_all_times_does_not_matter():
    shifted = [time + 2 / 30 for time in ORIGINAL]
    assert match_frames(WANTED, ORIGINAL, shifted) == SAME
    assert match_frames(WANTED, shifted, ORIGINAL) == SAME


@pytest.mark.parametrize("fake", [[0.0] * 20, [5.0, 5.0], times(20, 30)])
@pytest.mark.parametrize("original", [[0.0] * 30, [1.0, 1.0]])
def test_equal_times_match_by_number(original: list[float], fake: list[float]):
    common = range(0, min(len(original), len(fake)), 10)
    assert match_frames(WANTED, original, fake) == {frame: frame for frame in common}
    assert match_frames(WANTED, fake, original) == {frame: frame for frame in common}
