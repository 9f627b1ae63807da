"""Decode videos in worker processes: a crash, a hang or a lack of memory in the decoder's C code costs one video.

Frames cross a pipe of limited capacity, so a worker process that is ahead waits for its reader with one frame at most.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from mmap import mmap
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.cores import available_cores
from common.errors import UserError
from preprocessing.limits import Limits
from preprocessing.video import VideoError

# Frames with more bytes than this are held one at a time, to limit memory. A 4K frame has 24 MiB.
LARGE_FRAME = 32 * 2**20
# Capacity of the pipe in bytes: the larger, the fewer switches between the processes. Linux allows 1 MiB by default.
PIPE_SIZE = 2**20
# Exit status of a worker process that its watchdog has ended.
STALLED = 1
# Seconds to wait for a killed process.
GRACE = 5.0
ROOT = Path(__file__).resolve().parents[1]


def default_workers() -> int:
    """Return the number of videos to decode concurrently: one per two CPU cores, at most 8."""
    return min(8, (available_cores() + 1) // 2)


class VideoInfo(NamedTuple):
    """Properties of a video: average frame rate, duration in seconds and FFmpeg's name of the codec."""

    fps: float
    duration: float
    codec: str


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
        self._path, self._seconds_left = Path(), limits.clip_timeout
        self._start()

    def open(self, path: Path, count: int) -> VideoInfo:
        """Start to decode `count` frames, spread evenly over a video.

        Raises:
            VideoError: the video cannot be decoded.
            DecoderError: the worker process cannot start.
        """
        self._path, self._seconds_left = path, self.limits.clip_timeout
        if self._process.poll() is not None:
            self._start()
        if not self._ready:
            self._wait_until_ready()
        with self._explain_death():
            self._requests.send_bytes(json.dumps([os.fspath(path.absolute()), count]).encode())
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
            image = _empty_image(content["shape"])
            with self._explain_death():
                self._read_into(image.data.cast("B"))
            yield SampledFrame(content["index"], content["time"], image)
            del image  # before the next one is read

    def kill(self) -> None:
        """Kill the worker process. The next video starts another one."""
        _end(self._process)

    def _start(self) -> None:
        requests, self._requests = Pipe(duplex=False)
        self._replies, replies = Pipe(duplex=False)
        _enlarge(replies.fileno())
        self._ready = False
        pipes = requests.fileno(), replies.fileno()
        with requests, replies:
            # Not with multiprocessing, which would import the main module in the worker process: a program without
            # `if __name__ == "__main__"` would run again there. A session of its own is not interrupted by Ctrl-C.
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.MODULE, *map(str, (*pipes, *self.limits))],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
                stdin=subprocess.DEVNULL,
                pass_fds=pipes,
                start_new_session=True,
            )
        weakref.finalize(self, _end, self._process)

    def _wait_until_ready(self) -> None:
        try:
            self._replies.recv_bytes()
        except (EOFError, OSError):
            status = self._process.wait()
            raise DecoderError(f"the decoder cannot start (exit status {status}), see the messages above") from None
        self._ready = True

    def _receive(self) -> tuple[str, Any]:
        """Return the kind and the content of the next message. Raises StartOver and VideoError."""
        with self._explain_death():
            self._wait()
            kind, content = json.loads(self._replies.recv_bytes())
        if kind == "error":
            raise VideoError(self._path, content["reason"], content["status"])
        if kind == "start over":
            raise StartOver
        return kind, content

    def _wait(self) -> None:
        """Wait for the next message. Raises VideoError when all waiting for the video exceeds the limit."""
        start = time.monotonic()
        if not self._replies.poll(self._seconds_left):
            self.kill()
            raise VideoError(self._path, f"not decoded after {self.limits.clip_timeout:g} s. See --clip-timeout")
        self._seconds_left -= time.monotonic() - start

    def _read_into(self, pixels: memoryview) -> None:
        """Read the bytes of a frame. A Connection would hold them twice."""
        while pixels:
            count = os.readv(self._replies.fileno(), [pixels])
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


def _empty_image(shape: Sequence[int]) -> np.ndarray:
    """Return an uninitialized uint8 image.

    A large one is mapped, so that its memory is returned to the system. Others reuse memory (see common/allocator.py).
    """
    size = math.prod(shape)
    if size <= LARGE_FRAME:
        return np.empty(shape, np.uint8)
    return np.frombuffer(mmap(-1, size), np.uint8).reshape(shape)


def _enlarge(pipe: int) -> None:
    """Let a pipe hold PIPE_SIZE bytes, where that can be set."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # the user's limit for pipes is reached
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_SIZE)


def _end(process: subprocess.Popen) -> None:
    process.kill()
    with suppress(subprocess.TimeoutExpired):  # a process that waits for its storage dies later
        process.wait(GRACE)
