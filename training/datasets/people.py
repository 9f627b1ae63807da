"""Who is seen in which original video (--people): a CSV file with the columns original and person."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.errors import UserError
from common.files import read_regular_file
from common.text import abbreviate, plural, shorten

COLUMNS = ("original", "person")

log = logging.getLogger(__name__)


class PeopleError(UserError):
    """A list of people that cannot be used."""


def read_people(path: Path) -> dict[str, str]:
    """Return the person by original. Ids are strings even if they look like numbers. Raises PeopleError."""
    try:
        text = read_regular_file(path).decode("utf-8-sig", errors="surrogateescape")
        rows = csv.DictReader(io.StringIO(text, newline=""))
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise PeopleError(f"{path}: line 1: missing columns: {', '.join(missing)}. Add them")
        people: dict[str, str] = {}
        for row in rows:
            original, person = (row[name] for name in COLUMNS)
            where = f"{path}: line {rows.line_num}"
            if not original or not person:
                raise PeopleError(f"{where}: needs an original and a person. Complete or remove it")
            if original in people:
                raise PeopleError(f"{where}: repeats {abbreviate([original])}. Keep one of the lines")
            people[original] = person
    except OSError as error:
        raise PeopleError(f"{path}: cannot be read ({error.strerror}). Check --people") from None
    except csv.Error as error:
        raise PeopleError(f"{path}: cannot be read as CSV ({shorten(str(error))}). Check --people") from None
    if not people:
        raise PeopleError(f"{path}: lists no originals. Check --people")
    return people


def groups_of(originals: Iterable[str], people: Mapping[str, str] | None) -> list[str]:
    """Return for each original what must not be split: the person in it, or itself if `people` is None.

    An original that `people` lacks is a group of its own.
    """
    if people is None:
        return list(originals)
    # The prefix keeps ids of originals apart from those of people, since both may be numbers.
    return [people.get(original, f"original {original}") for original in originals]


def report_unknown(originals: Iterable[str], people: Mapping[str, str] | None) -> None:
    """Log how many of the originals have no person."""
    unknown = sorted(set(originals) - people.keys()) if people is not None else []
    if unknown:
        count = plural(len(unknown), "original")
        log.info("--people: %s not listed, each counted as a person: %s", count, abbreviate(unknown))
