"""Decode videos in worker processes: a crash, a hang or a lack of memory in the decoder's C code costs one video.

A frame crosses a pipe, so a worker process waits until the previous frame has been read and holds one frame only.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import mmap
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from preprocessing.limits import Limits
from preprocessing.video import VideoError

# Exit status of a worker process that its watchdog has ended.
STALLED = 1
ROOT = Path(__file__).resolve().parents[1]


def default_workers() -> int:
    """Return the number of videos to decode concurrently: one per two CPU cores, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, (cores + 1) // 2)


class VideoInfo(NamedTuple):
    """Properties of a video: average frame rate and duration in seconds."""

    fps: float
    duration: float


@dataclass(frozen=True)
class SampledFrame:
    """A sampled frame.

    Attributes:
        index: index in display order.
        time: seconds since the first frame of the video.
        image: RGB uint8 (height, width, 3).
    """

    index: int
    time: float
    image: np.ndarray


class DecoderError(UserError):
    """Worker processes that cannot start."""


class StartOver(Exception):
    """Some of the sampled frames cannot be decoded, so frames are sampled again among those that can."""


class Decoder:
    """A worker process that decodes one video at a time. It starts at once, and is replaced when it dies.

    Args:
        limits: what decoding a video may take.

    Attributes:
        notes: what is unusual about the last video whose frames were read to the end.
    """

    MODULE = "inference.decoder_process"

    def __init__(self, limits: Limits):
        self.limits = limits
        self.notes: list[str] = []
        self._path = Path()
        self._start()

    def open(self, path: Path, count: int) -> VideoInfo:
        """Start to decode `count` frames, spread evenly over a video.

        Raises:
            VideoError: the video cannot be decoded.
            DecoderError: the worker process cannot start.
        """
        self._path = path
        if self._process.poll() is not None:
            self._start()
        if not self._ready:
            self._wait_until_ready()
        self._connection.send_bytes(json.dumps([os.fspath(path.absolute()), count]).encode())
        return VideoInfo(**self._receive()[1])

    def frames(self) -> Iterator[SampledFrame]:
        """Yield the frames of the video, in order unless it is damaged.

        Raises:
            StartOver: the frames so far do not count; call this again.
            VideoError: the video cannot be decoded.
        """
        while True:
            kind, content = self._receive()
            if kind == "end":
                self.notes = content
                return
            # Mapped, so that the memory of large frames is returned to the system (see common/allocator.py).
            pixels = mmap(-1, math.prod(content["shape"]))
            with self._explain_death():
                self._read_into(memoryview(pixels))
            image = np.frombuffer(pixels, np.uint8).reshape(content["shape"])
            yield SampledFrame(content["index"], content["time"], image)
            del image, pixels  # before the next one is read

    def kill(self) -> None:
        """Kill the worker process. The next video starts another one."""
        _end(self._process)

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        self._ready = False
        with theirs:
            # Not with multiprocessing, which would import the main module in the worker process: a program without
            # `if __name__ == "__main__"` would run again there. A session of its own is not interrupted by Ctrl-C.
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.MODULE, str(theirs.fileno()), *map(str, self.limits)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        weakref.finalize(self, _end, self._process)

    def _wait_until_ready(self) -> None:
        try:
            self._connection.recv_bytes()
        except (EOFError, OSError):
            status = self._process.wait()
            raise DecoderError(f"the decoder cannot start (exit status {status}), see the messages above") from None
        self._ready = True

    def _receive(self) -> tuple[str, Any]:
        """Return the kind and the content of the next message. Raises StartOver and VideoError."""
        with self._explain_death():
            kind, content = json.loads(self._connection.recv_bytes())
        if kind == "error":
            raise VideoError(self._path, content["reason"], content["status"])
        if kind == "start over":
            raise StartOver
        return kind, content

    def _read_into(self, pixels: memoryview) -> None:
        """Read the bytes of a frame. A Connection would hold them twice."""
        while pixels:
            count = os.readv(self._connection.fileno(), [pixels])
            if not count:
                raise EOFError
            pixels = pixels[count:]

    @contextmanager
    def _explain_death(self) -> Iterator[None]:
        """Raise VideoError if the worker process ends while it is read from."""
        try:
            yield
        except (EOFError, OSError):
            status = self._process.wait()
            if status == STALLED:
                reason = f"decoding made no progress for {self.limits.timeout:g} s. See --timeout"
            else:
                reason = f"the decoder crashed (exit status {status}). The file is damaged, or made to crash it"
            raise VideoError(self._path, reason) from None


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
