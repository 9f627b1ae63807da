"""Contact sheets: grids of sample images with captions, to check outputs by eye."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from common.files import atomic_write, make_folder
from preprocessing.crops import resize_longer_side
from preprocessing.images import ImageError, encode_image, list_images
from preprocessing.layout import PREVIEWS

# RGB colors of the five landmarks: left eye, right eye, nose, left and right mouth corner.
LANDMARK_COLORS = ((255, 60, 60), (60, 160, 255), (60, 255, 60), (255, 200, 0), (0, 255, 255))
BACKGROUND, TEXT, MUTED = (40, 40, 40), (255, 255, 255), (170, 170, 170)
CELL = 180  # side of a cell in pixels
PADDING = 4  # between images, in pixels
LINE = 16  # height of a line of text in pixels
MAX_COLUMNS = 9  # in cells

log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One sample of a contact sheet.

    Attributes:
        caption: text above the images.
        images: RGB uint8 (height, width, 3), shown side by side.
        labels: one short text per image, or none.
    """

    caption: str
    images: Sequence[np.ndarray]
    labels: Sequence[str] = ()


def draw_samples(output: Path, clips: Sequence[str], count: int, sample: Callable[[Path], Sample], suffix: str) -> Path:
    """Write previews/NAME.png beside the folder `output` and return its path.

    Args:
        output: folder with one subfolder of files per clip.
        clips: clips to choose from.
        count: number of samples, spread evenly over the clips and their frames.
        sample: reads one file. Files that cannot be read are left out.
        suffix: suffix of the files.
    """
    samples = []
    for file in _choose(output, clips, count, suffix):
        try:
            samples.append(sample(file))
        except (ImageError, OSError, ValueError, EOFError) as error:
            log.warning("%s: cannot be shown on the contact sheet (%s)", file, error)
    path = output.parent / PREVIEWS / f"{output.name}.png"
    make_folder(path.parent)
    atomic_write(path, encode_image(draw_sheet(samples)))
    return path


def draw_sheet(samples: Sequence[Sample]) -> np.ndarray:
    """Return a contact sheet as an RGB uint8 image (height, width, 3)."""
    if not samples:
        samples = [Sample("no samples", [])]
    width = max(1, *(len(sample.images) for sample in samples))
    columns = max(1, min(MAX_COLUMNS // width, len(samples)))
    header = LINE * (2 if any(sample.labels for sample in samples) else 1)
    rows = -(-len(samples) // columns)
    canvas = Image.new("RGB", (columns * width * CELL, rows * (CELL + header)), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for number, sample in enumerate(samples):
        row, column = divmod(number, columns)
        left, top = column * width * CELL, row * (CELL + header)
        left += PADDING
        draw.text((left, top + 2), _fit(draw, sample.caption, width * CELL - 2 * PADDING), fill=TEXT)
        for place, image in enumerate(sample.images):
            if sample.labels:
                draw.text((left + place * CELL, top + LINE), sample.labels[place], fill=MUTED)
            small = resize_longer_side(image, CELL - PADDING, up=cv2.INTER_LINEAR)
            canvas.paste(Image.fromarray(small), (left + place * CELL, top + header))
    return np.asarray(canvas)


def _fit(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """Shorten a text in the middle until it fits a width in pixels."""
    short, keep = text, len(text)
    while draw.textlength(short) > width:
        keep -= 1
        short = f"{text[: keep // 2]}...{text[len(text) - (keep - keep // 2) :]}"
    return short


def _choose(folder: Path, clips: Sequence[str], count: int, suffix: str) -> list[Path]:
    """Return up to `count` files, spread evenly over the clips and over each clip's files."""
    clips = [clips[index] for index in _spread(len(clips), count)]
    files = []
    for place, clip in enumerate(clips):
        try:
            paths = [image.path for image in list_images(folder / clip, suffix)]
        except ImageError as error:
            log.warning("%s. It is not shown on the contact sheet", error)
            continue
        share = count // len(clips) + (place < count % len(clips))
        files += [paths[index] for index in _spread(len(paths), share)]
    return files


def _spread(total: int, count: int) -> list[int]:
    """Return up to `count` distinct, evenly spaced indices below `total`, each in the middle of its share."""
    count = min(total, count)
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]
