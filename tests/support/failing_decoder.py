"""A decoder process that fails in native code, as the name of the video says."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from common.watchdog import native_call
from inference import decoder_process
from preprocessing.video import Clip, Frame, iter_sample


def fail(clip: Clip, count: int) -> Iterator[Frame | None]:
    """Yield a frame, then fail."""
    frames = iter_sample(clip, count)
    yield next(frames)
    failure = Path(clip.path).stem
    with native_call():
        if failure == "crashes":
            os.abort()
        if failure == "hangs":  # a PyDLL keeps the interpreter's lock
            ctypes.PyDLL(None).sleep(1000)
        if failure == "takes_memory":
            bytearray(2**32)
    if failure == "has_a_bug":
        raise RuntimeError("unexpected")
    yield from frames


if __name__ == "__main__":
    decoder_process.iter_sample = fail  # type: ignore[assignment]
    decoder_process.main(*sys.argv[1:])
