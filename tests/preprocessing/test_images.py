"""Image files, also damaged ones."""

from __future__ import annotations

import resource
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from preprocessing.images import ImageError, decode_image, encode_image, read_image

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)


@pytest.mark.parametrize("image", [IMAGE, IMAGE[..., 0]])
def test_png_is_lossless(tmp_path: Path, image: np.ndarray):
    path = tmp_path / "a.png"
    path.write_bytes(encode_image(image))
    if image.ndim == 3:
        np.testing.assert_array_equal(read_image(path), image)
    else:
        np.testing.assert_array_equal(decode_image(path, cv2.IMREAD_GRAYSCALE), image)


def test_other_formats(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(encode_image(np.full((60, 50, 3), 99, np.uint8), ".jpg"))
    assert abs(read_image(tmp_path / "a.png").astype(int) - 99).max() <= 1


def chunk_length(content: bytes) -> bytes:
    """Change one bit of the length of the first chunk of pixels."""
    place = content.index(b"IDAT") - 4
    return content[:place] + bytes([content[place] ^ 0x80]) + content[place + 1 :]


def size(width: int, height: int):
    def change(content: bytes) -> bytes:
        header = b"IHDR" + struct.pack(">II", width, height) + content[24:29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]

    return change


@pytest.mark.parametrize(
    "damage",
    [
        chunk_length,
        size(32000, 32000),
        size(2**31 - 1, 2**31 - 1),
        size(0, 0),
        lambda content: content[: len(content) // 2],
        lambda content: content[:10],
        lambda _: b"",
        lambda _: b"text",
    ],
)
def test_damaged_images_are_errors_and_take_no_memory(tmp_path: Path, damage):
    """OpenCV reserves as much memory as a chunk says that it has, up to 4 GiB."""
    path = tmp_path / "a.png"
    path.write_bytes(damage(encode_image(IMAGE)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=str(path)):
        read_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_missing_image(tmp_path: Path):
    with pytest.raises(ImageError, match=str(tmp_path)):
        read_image(tmp_path / "a.png")
