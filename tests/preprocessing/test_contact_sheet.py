"""Contact sheets: grids of captioned images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from preprocessing.contact_sheet import BACKGROUND, CELL, LINE, Sample, draw_samples, draw_sheet
from preprocessing.images import encode_image, read_image

IMAGE = np.full((90, 60, 3), 200, np.uint8)


def is_empty(area: np.ndarray) -> bool:
    return bool((area == BACKGROUND).all())


@pytest.mark.parametrize(
    ("samples", "images", "shape"),
    [(1, 1, (1, 1)), (6, 1, (1, 6)), (10, 1, (2, 9)), (4, 3, (2, 9)), (2, 3, (1, 6))],
)
@pytest.mark.parametrize("labels", [0, 1])
def test_grid(samples: int, images: int, shape: tuple[int, int], labels: int):
    sheet = draw_sheet([Sample("caption", [IMAGE] * images, ["label"] * images * labels)] * samples)
    rows, columns = shape
    header = LINE * (1 + labels)
    assert sheet.shape == (rows * (CELL + header), columns * CELL, 3)
    for number in range(samples * images):
        top, left = number // columns * (CELL + header), number % columns * CELL
        assert not is_empty(sheet[top + header : top + header + CELL, left : left + CELL])
        assert is_empty(sheet[top : top + LINE, left : left + CELL]) == (number % images > 0 and images > 1)
        assert not labels or not is_empty(sheet[top + LINE : top + header, left : left + CELL])


@pytest.mark.parametrize("images", [1, 3])
def test_long_captions_do_not_overlap(images: int):
    sheet = draw_sheet([Sample("DeepFakeDetection_01_02__talking__ABC/100_0" * 4, [IMAGE] * images), Sample("", [])])
    assert not is_empty(sheet[:LINE, : images * CELL])
    assert is_empty(sheet[:LINE, images * CELL :])


def test_samples_are_spread_over_clips_and_frames(tmp_path: Path):
    for clip in ("a", "b", "empty"):
        (tmp_path / "crops" / clip).mkdir(parents=True)
    for clip in ("a", "b"):
        for frame in range(0, 100, 10):
            (tmp_path / f"crops/{clip}/{frame}_0.png").write_bytes(encode_image(IMAGE))
    (tmp_path / "crops/a/70_0.png").write_bytes(b"damaged")
    seen = []

    def sample(path: Path) -> Sample:
        seen.append(f"{path.parent.name}/{path.stem}")
        return Sample(seen[-1], [read_image(path)])

    path = draw_samples(tmp_path / "crops", ["a", "b"], 4, sample, ".png")
    assert path == tmp_path / "previews/crops.png"
    assert seen == ["a/20_0", "a/70_0", "b/20_0", "b/70_0"]
    assert read_image(path).shape == (CELL + LINE, 3 * CELL, 3)  # without the damaged one
    assert draw_samples(tmp_path / "crops", ["empty"], 4, sample, ".png") == path
