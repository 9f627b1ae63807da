"""The kinds of crops that preprocessing makes (--crop), and the record of which kind a folder holds.

A folder holds crops of one kind. The name of the kind is in the settings of the folder's progress file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

from common.jobs import journal_path
from common.journal import journal_files, last_settings
from common.outcome import StageError
from preprocessing.crops import DEFAULT_CROP, RANGES, MarginCrop, SquareCrop

# The kinds by name. `square` is the embedded model's, see configs/default_lite0.json.
KINDS: dict[str, MarginCrop | SquareCrop] = {"margin": DEFAULT_CROP, "square": SquareCrop(side=0.84, center=0.56)}
# The stage that makes the crops, as progress files name it.
STAGE = "extract_crops"
# Increases when crops change.
VERSION = 1


def parse_crop(text: str) -> MarginCrop | SquareCrop:
    """Argument type: the name of a kind, or square:SIDE:CENTER."""
    if text in KINDS:
        return KINDS[text]
    kind, _, numbers = text.partition(":")
    try:
        side, center = map(float, numbers.split(":"))
    except ValueError:
        kind = ""
    if kind != SquareCrop.kind:
        raise argparse.ArgumentTypeError(f"{text!r} is not {', '.join(KINDS)} or square:SIDE:CENTER")
    for value, (name, (low, high)) in zip((side, center), RANGES[kind].items(), strict=True):
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r}: the {name} is not from {low:g} to {high:g}")
    return SquareCrop(side, center)


def format_crop(crop: MarginCrop | SquareCrop) -> str:
    """Return the name of a kind, such as `margin` or `square:0.84:0.56`."""
    return crop.kind if crop == DEFAULT_CROP else ":".join([crop.kind, *map(str, astuple(crop))])


def crop_settings(crop: MarginCrop | SquareCrop) -> dict[str, str]:
    """Return what progress files record. Those of earlier versions, which made one kind, record nothing."""
    return {} if crop == DEFAULT_CROP else {"crop": format_crop(crop)}


def recorded_crop(folder: Path) -> str | None:
    """Return the kind of crops that preprocessing has made in a folder; None if it has made none."""
    return next((kind for kind, _ in _records(folder)), None)


def check_kind(folder: Path, crop: MarginCrop | SquareCrop) -> None:
    """Raise StageError if a folder holds crops of another kind."""
    for kind, path in _records(folder):
        if kind != format_crop(crop):
            raise StageError(
                f"{folder}: contains crops made with --crop {kind}, not {format_crop(crop)}. Choose another "
                f"--crops-dir, or delete it and {path}"
            )


def _records(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the kind of the crops according to each progress file of a folder, and the file."""
    for path in journal_files(journal_path(folder)):
        settings = last_settings(path)
        if settings.get("stage") == STAGE:
            yield str(settings.get("crop", format_crop(DEFAULT_CROP))), path
