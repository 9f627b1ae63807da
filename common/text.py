"""Formatting of names and counts in messages."""

from __future__ import annotations

from collections.abc import Sequence


def abbreviate(names: Sequence[str], limit: int = 10) -> str:
    """Join the first names with commas and count the rest: `a, b and 3 more`."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def plural(count: int, noun: str) -> str:
    """Format a count with its noun: `1 video`, `2 videos`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
