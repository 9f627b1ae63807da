"""Formatting of names and counts in messages."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Control characters, which a terminal obeys; line separators; marks that change the direction of the text.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

# Longest file name on common file systems, in characters.
MAX_NAME = 255


def printable(text: str) -> str:
    """Escape what a name must not do to a terminal: control characters, line breaks and marks of text direction."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def abbreviate(names: Sequence[str], limit: int = 10) -> str:
    """Join the first names with commas and count the rest: `a, b and 3 more`. The result is printable.

    Names that are too long for a file are cut: in a damaged or hostile file, they can have any length.
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shorten(printable(name)) for name in names[:limit]) + more


def shorten(text: str, limit: int = MAX_NAME) -> str:
    """Cut a text that is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def plural(count: int, noun: str) -> str:
    """Format a count with its noun: `1 video`, `2 videos`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
