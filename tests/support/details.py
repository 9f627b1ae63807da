"""Read a --details file, and check it against the published JSON Schema."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = Path(__file__).parents[2] / "docs" / "details.schema.json"


@cache
def validator() -> Draft202012Validator:
    """The validator of a line."""
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def read_header(path: Path) -> dict[str, Any]:
    """The header."""
    with path.open() as lines:
        return json.loads(next(lines))


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """The record of each video by file name. All lines are checked."""
    header, *records = map(json.loads, path.read_text().splitlines())
    assert header["record"] == "run"
    for line in (header, *records):
        validator().validate(line)
    return {record["filename"]: record for record in records}
