from __future__ import annotations

from common.text import abbreviate, plural


def test_plural():
    assert [plural(count, "video") for count in (0, 1, 2)] == ["0 videos", "1 video", "2 videos"]


def test_abbreviate():
    assert abbreviate(["a"]) == "a"
    assert abbreviate(["a", "b", "c"], limit=3) == "a, b, c"
    assert abbreviate(["a", "b", "c", "d"], limit=3) == "a, b, c and 1 more"
    assert abbreviate([str(number) for number in range(13)]).endswith("9 and 3 more")
