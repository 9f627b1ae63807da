"""Workers for the tests of `common.ray_pool`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError


class Doubler:
    """Doubles numbers. The first of these workers has the description `first`, the others have `other`.

    Args:
        folder: where the workers count themselves.
    """

    def __init__(self, folder: Path):
        try:
            (folder / "first").mkdir()
            self.name = "first"
        except FileExistsError:
            self.name = "other"

    def describe(self) -> Mapping[str, Any]:
        return {"name": self.name}

    def run(self, items: Iterator[int]) -> Iterator[tuple[str, int]]:
        for item in items:
            if item == 13:
                os._exit(1)
            if item == 99:
                raise BadItem(item, "is too large")
            yield self.name, 2 * item


class BadItem(UserError):
    """An error that cannot be pickled."""

    def __init__(self, item: int, reason: str):
        super().__init__(f"{item} {reason}")
