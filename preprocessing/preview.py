"""Contact sheets: samples of what a stage wrote, on one picture, so that a person sees whether it worked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from preprocessing.crops import resize_longer_side
from preprocessing.images import ImageError, encode_image, list_images
from preprocessing.jobs import Outcome
from preprocessing.output import make_folder, write_whole

log = logging.getLogger(__name__)

# One for each of the five landmarks, RGB: eyes, nose, corners of the mouth; the left ones warm, the right ones cold.
COLORS = ((255, 60, 60), (60, 160, 255), (60, 255, 60), (255, 200, 0), (0, 255, 255))
CELL = 180  # pixels, the side of a cell
CAPTION = 16  # pixels
WIDTH = 9  # cells a row, at most


def draw(
    output: Path,
    outcomes: Mapping[str, Outcome],
    number: int,
    images_of: Callable[[Path], list[np.ndarray]],
    suffix: str = ".png",
) -> Path:
    """Draw previews/NAME.png beside the folder `output`; returns its path.

    It shows `number` of the stage's files (fewer if there are fewer), spread over its clips and over each clip's
    frames: of each the images (RGB uint8) that `images_of` gives, side by side. What cannot be read is left out.
    """
    captions, rows = [], []
    for file in _choose(output, outcomes, number, suffix):
        try:
            rows.append(images_of(file))
            captions.append(f"{file.parent.name}/{file.stem}")
        except (ImageError, OSError, ValueError, EOFError) as error:
            log.warning("not in the preview: %s: %s", file, error)
    path = output.parent / "previews" / f"{output.name}.png"
    make_folder(path.parent)
    write_whole(path, encode_image(sheet(captions, rows)))
    return path


def _choose(folder: Path, outcomes: Mapping[str, Outcome], number: int, suffix: str) -> list[Path]:
    clips = [clip for clip, outcome in outcomes.items() if outcome.status == "ok"]
    clips = [clips[i] for i in _spread(len(clips), number)]
    files = []
    for place, clip in enumerate(clips):
        paths = [image.path for image in list_images(folder / clip, suffix)]
        share = number // len(clips) + (place < number % len(clips))
        files += [paths[i] for i in _spread(len(paths), share)]
    return files


def sheet(captions: list[str], rows: list[list[np.ndarray]]) -> np.ndarray:
    """RGB uint8: groups of images, each group under its caption."""
    together = max(map(len, rows), default=1)
    columns = max(1, min(WIDTH // together, len(rows)))
    lines = max(1, -(-len(rows) // columns))
    canvas = Image.new("RGB", (columns * together * CELL, lines * (CELL + CAPTION)), (40, 40, 40))
    draw = ImageDraw.Draw(canvas)
    for number, (caption, images) in enumerate(zip(captions, rows, strict=True)):
        line, column = divmod(number, columns)
        left, top = column * together * CELL, line * (CELL + CAPTION)
        draw.text((left + 3, top + 2), caption, fill=(255, 255, 255))
        for place, image in enumerate(images):
            small = resize_longer_side(image, CELL - 4, up=cv2.INTER_LINEAR)
            canvas.paste(Image.fromarray(small), (left + place * CELL, top + CAPTION))
    if not rows:
        draw.text((3, 2), "nothing to show", fill=(255, 255, 255))
    return np.asarray(canvas)


def _spread(total: int, count: int) -> list[int]:
    """`count` indices spread over `total` things, each in the middle of its share; all where there are no more."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
