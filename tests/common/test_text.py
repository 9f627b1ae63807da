from __future__ import annotations

import pytest

from common.text import abbreviate, plural, printable


def test_plural():
    assert [plural(count, "video") for count in (0, 1, 2)] == ["0 videos", "1 video", "2 videos"]


def test_abbreviate():
    assert abbreviate(["a"]) == "a"
    assert abbreviate(["a", "b", "c"], limit=3) == "a, b, c"
    assert abbreviate(["a", "b", "c", "d"], limit=3) == "a, b, c and 1 more"
    assert abbreviate([str(number) for number in range(13)]).endswith("9 and 3 more")


def test_abbreviate_limits_what_is_printed():
    """Escaped characters are longer."""
    assert len(abbreviate(["\0" * 255] * 20)) < 2700


def test_abbreviate_shows_whole_file_names_only():
    name = "n" * 255
    assert abbreviate([name, name]) == f"{name}, {name}"
    assert abbreviate([name * 9, "b"]) == f"{name}..., b"


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("plain \u00e9\u4e2d.mp4", "plain \u00e9\u4e2d.mp4"),
        ("\x1b]0;title\x07.mp4", r"\x1b]0;title\x07.mp4"),
        ("a\nb\r\tc\x7f\x9b", r"a\nb\r\tc\x7f\x9b"),
        ("fake\u202e4pm.mp4", r"fake\u202e4pm.mp4"),
        ("\u2066a\u2069\u2028", r"\u2066a\u2069\u2028"),
        (r"\n", r"\n"),
    ],
)
def test_printable(name: str, printed: str):
    assert printable(name) == printable(printed) == printed
    assert abbreviate([name, "b"], limit=1) == f"{printed} and 1 more"
