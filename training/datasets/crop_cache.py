"""A cache of decoded crops on a fast local disk or in memory (/dev/shm), shared by all processes of a machine.

Two files belong to each list of crops: `crops-<digest>.data`, to which processes only append entries, and
`crops-<digest>.index`, which holds the end of each crop's entry in it, 8 bytes per crop. An entry counts only if its
checksum is correct and its crop has still the same size and modification time, so a crash, a full disk, another process
that writes at the same time and changed crops cost time, but never give wrong pixels.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.files import make_folder
from preprocessing.images import MAX_PIXELS, read_image
from training.datasets.folds import Crops

# Share of the space that the cache could have to use by default.
FREE_SHARE = 0.5

log = logging.getLogger(__name__)


class Trailer(NamedTuple):
    """What follows the pixels of an entry, as integers of 64 bits.

    Attributes:
        row: row of the crop.
        size: size of the crop's file in bytes.
        modified: modification time of the crop's file in nanoseconds.
        height: height of the crop in pixels.
        width: width of the crop in pixels.
        checksum: CRC-32 of the pixels.
    """

    row: int
    size: int
    modified: int
    height: int
    width: int
    checksum: int


TRAILER = struct.Struct("<6q")
END = struct.Struct("<q")


@dataclass
class CropCache:
    """Decoded crops by row. Each process opens the files when it first reads a crop.

    Attributes:
        base: path of the files, without their suffixes.
        max_bytes: size beyond which no entries are added.
    """

    base: Path
    max_bytes: int
    _files: tuple[int, int] = field(default=(-1, -1), repr=False)
    _process: int = 0
    _unusable: bool = False

    @classmethod
    def open(cls, folder: Path, folder_of_crops: Path, crops: Crops, gib: float | None) -> CropCache:
        """Make the folder. `gib`: largest size of the data in GiB; None for half of the free space.

        Raises OutputError if the folder cannot be made or written to.
        """
        make_folder(folder)
        key = f"{folder_of_crops.resolve()}\n{crops.digest}".encode(errors="surrogateescape")
        base = folder / f"crops-{hashlib.sha256(key).hexdigest()[:16]}"
        data = base.with_suffix(".data")
        used = data.stat().st_size if data.is_file() else 0
        available = used + shutil.disk_usage(folder).free
        return cls(base, int(FREE_SHARE * available if gib is None else gib * 2**30))

    def read(self, row: int, path: Path) -> np.ndarray:
        """Return the crop of a row, from the cache or from its file. Raises ImageError."""
        try:
            facts = path.stat()
        except OSError:  # read_image says what is wrong
            return read_image(path)
        if self._unusable:
            return read_image(path)
        try:
            data, index = self._open()
            image = _find(data, index, row, facts)
        except OSError as error:
            file, reason = self.base.with_suffix(".data"), error.strerror
            log.warning("%s: cannot be used (%s). Delete it, or choose another --cache-dir", file, reason)
            self._unusable = True
            return read_image(path)
        if image is None:
            image = read_image(path)
            self._add(data, index, row, facts, image)
        return image

    def _open(self) -> tuple[int, int]:
        """Return descriptors of the data and of the index. A forked process must not share its parent's offset."""
        if self._process != os.getpid():
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            data = os.open(self.base.with_suffix(".data"), flags | os.O_APPEND, 0o600)
            self._files = data, os.open(self.base.with_suffix(".index"), flags, 0o600)
            self._process = os.getpid()
        return self._files

    def _add(self, data: int, index: int, row: int, facts: os.stat_result, image: np.ndarray) -> None:
        """Append an entry unless the cache is full. If that fails, stop adding: the crops can still be read."""
        height, width = image.shape[:2]
        trailer = Trailer(row, facts.st_size, facts.st_mtime_ns, height, width, zlib.crc32(image.data))
        try:
            if os.fstat(data).st_size + image.nbytes > self.max_bytes:
                return
            size = os.writev(data, [image.data, TRAILER.pack(*trailer)])  # appending is atomic
            if size == image.nbytes + TRAILER.size:
                os.pwrite(index, END.pack(os.lseek(data, 0, os.SEEK_CUR)), row * END.size)
        except OSError as error:
            log.warning("%s: no more crops are added (%s)", self.base.with_suffix(".data"), error.strerror)
            self.max_bytes = 0


def _find(data: int, index: int, row: int, facts: os.stat_result) -> np.ndarray | None:
    """Return the crop of a row if the cache has a valid entry of a file with these facts. Raises OSError."""
    end = os.pread(index, END.size, row * END.size)
    if len(end) < END.size or (position := END.unpack(end)[0] - TRAILER.size) <= 0:
        return None
    content = os.pread(data, TRAILER.size, position)
    if len(content) < TRAILER.size:
        return None
    found = Trailer(*TRAILER.unpack(content))
    expected = row, facts.st_size, facts.st_mtime_ns
    if found[:3] != expected or min(found.height, found.width) <= 0 or found.height * found.width > MAX_PIXELS:
        return None
    image = np.empty((found.height, found.width, 3), np.uint8)
    if position < image.nbytes or os.preadv(data, [image.data], position - image.nbytes) < image.nbytes:
        return None
    return image if zlib.crc32(image.data) == found.checksum else None
