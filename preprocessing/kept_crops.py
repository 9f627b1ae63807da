"""Crops that stage 1 keeps for stage 2, so that a real video is decoded once.

Stage 1 has the frames and finds the boxes, so it can cut the crops, too. They wait in DATA_ROOT/progress/kept_crops/
until stage 2 moves them to their place. They are valid for the clip, the boxes file and the kind of crop that they were
made from; without valid ones, stage 2 decodes the clip.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.files import atomic_folder, read_regular_file, remove
from common.journal import Stamp, stamp_of
from preprocessing.boxes import Boxes, face_numbers
from preprocessing.crop_kinds import VERSION, format_crop
from preprocessing.crops import DEFAULT_CROP, MarginCrop, SquareCrop, cut_faces
from preprocessing.images import encode_image
from preprocessing.layout import crop_name
from preprocessing.video import Frame

# File that says what the crops beside it were made from.
SOURCE = "source.json"
# Limit of a clip's crops in bytes. They are held in memory, and those of a long clip could take too much of it.
MAX_BYTES = 64 * 2**20


class KeptCrops:
    """The crops of one clip as PNG files in memory; incomplete if they exceed MAX_BYTES.

    Args:
        rule: the window of a box.
    """

    def __init__(self, rule: MarginCrop | SquareCrop = DEFAULT_CROP) -> None:
        self.rule = rule
        self._files: dict[tuple[int, int], bytes] = {}
        self._size = 0

    def add(self, frame: Frame, boxes: list[list[float]]) -> None:
        """Cut the crops of a frame."""
        if self._size <= MAX_BYTES:
            for index, crop in cut_faces(frame.image, list(enumerate(boxes)), rule=self.rule):
                self._files[frame.index, index] = encode_image(crop)
                self._size += len(self._files[frame.index, index])

    def write(self, folder: Path, boxes: Boxes, source: dict[str, Any]) -> None:
        """Write the crops, if they are complete. Face numbers depend on the boxes of all frames. Raises OutputError."""
        if self._size > MAX_BYTES:
            return
        numbers = face_numbers(boxes)
        with atomic_folder(folder) as new:
            for (frame, index), content in self._files.items():
                (new / crop_name(frame, numbers[frame][index])).write_bytes(content)
            (new / SOURCE).write_text(json.dumps(source))


def source_of(
    clip: Stamp | None, boxes: Path, max_pixels: int, rule: MarginCrop | SquareCrop = DEFAULT_CROP
) -> dict[str, Any]:
    """Return what the crops of a clip depend on. `clip`: its stamp; `rule`: the window of a box."""
    source = {"version": VERSION, "clip": clip, "boxes": stamp_of(boxes), "max_pixels": max_pixels}
    return {**source, "crop": format_crop(rule)}


def take(folder: Path, source: dict[str, Any], output: Path) -> int | None:
    """Move kept crops to their place, or remove them if they are not valid. Raises OutputError.

    Args:
        folder: folder of the kept crops.
        source: what valid crops were made from.
        output: folder that they replace.

    Returns:
        The number of crops; None if there are no valid ones.
    """
    try:
        if json.loads(read_regular_file(folder / SOURCE)) != source:
            raise ValueError("made from another clip or other boxes")
        (folder / SOURCE).unlink()
        remove(output)
        folder.rename(output)
    except (OSError, ValueError, RecursionError):
        remove(folder)
        return None
    return len(list(output.iterdir()))
