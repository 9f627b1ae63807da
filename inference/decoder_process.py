"""The worker process of a Decoder: decode videos, one at a time, within limits.

    python -m inference.decoder_process REQUESTS REPLIES PIXELS MEMORY TIMEOUT CLIP_TIMEOUT

Messages are lists in JSON, [kind, content], so that a decoder that a hostile file has taken over can send no objects:

    receives  [path, count]
    sends     ["ready", null] once, then for each video
              ["info", {"fps": ..., "duration": ..., "codec": ...}],
              ["frame", {"index": ..., "time": ..., "shape": ...}] and the frame's bytes, for each frame,
              ["start over", null] if the frames so far do not count, and
              ["end", notes] or ["error", {"status": ..., "reason": ...}]
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common.allocator import keep_some_freed_memory, return_freed_memory
from common.errors import ClipError
from common.watchdog import watch_this_process
from preprocessing.limits import Limits
from preprocessing.video import Clip, iter_sample


class ExitWhenStalled:
    """A watchdog that ends this process when a native call takes too long, even one that holds the interpreter's lock.

    Args:
        timeout: in seconds.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        self._silent = Path(os.devnull).open("w")  # noqa: SIM115 open for as long as the process lives
        self._armed = 0.0

    def start(self) -> None:
        """Set the timer, at most once per second: setting it takes longer than most calls."""
        if (now := time.monotonic()) - self._armed > 1:
            faulthandler.dump_traceback_later(self.timeout + 1, file=self._silent, exit=True)
            self._armed = now

    def stop(self) -> None:
        """Keep the timer for the next call."""

    def cancel(self) -> None:
        """Stop the timer, before waiting for the other process."""
        faulthandler.cancel_dump_traceback_later()
        self._armed = 0.0


class Server:
    """Decodes videos for another process.

    Args:
        requests: pipe from which the requests are read.
        replies: pipe to which the frames are written.
        limits: what decoding a video may take.
    """

    def __init__(self, requests: Connection, replies: Connection, limits: Limits):
        self.requests, self.replies, self.limits = requests, replies, limits
        self.watchdog = ExitWhenStalled(limits.timeout)
        watch_this_process(self.watchdog)

    def serve(self) -> None:
        """Decode videos until the other process closes a pipe."""
        try:
            self._send("ready")
            while True:
                path, count = json.loads(self.requests.recv_bytes())
                self._send_video(path, count)
                self.watchdog.cancel()
                gc.collect()  # decoders that are part of reference cycles
                return_freed_memory()
        except (EOFError, ConnectionError):
            return

    def _send(self, kind: str, content: Any = None) -> None:
        self.watchdog.cancel()
        self.replies.send_bytes(json.dumps([kind, content]).encode())

    def _send_video(self, path: str, count: int) -> None:
        """Send the frames of a video, or what is wrong with it."""
        try:
            self._send_frames(Clip(path, self.limits.pixels), count)
        except ClipError as error:
            self._send_error(error.status, str(error).removeprefix(f"{path}: "))
        except MemoryError:
            reason = f"decoding needs more than {self.limits.memory} MiB of memory. Raise --decoder-memory"
            self._send_error("too_large", reason)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 an unexpected error must not end the run for the other videos
            self._send_error("unreadable", f"decoding failed ({error!r})")

    def _send_error(self, status: str, reason: str) -> None:
        self._send("error", {"status": status, "reason": reason})

    def _send_frames(self, clip: Clip, count: int) -> None:
        """Send `count` frames of a clip."""
        self._send("info", {"fps": float(clip.rate), "duration": clip.duration, "codec": clip.codec})
        for frame in iter_sample(clip, count):
            if frame is None:
                self._send("start over")
                continue
            pixels = frame.image.data.cast("B")
            seconds = clip.times[frame.index] - clip.times[0]
            self._send("frame", {"index": frame.index, "time": seconds, "shape": frame.image.shape})
            while pixels:
                pixels = pixels[os.write(self.replies.fileno(), pixels) :]
            del frame, pixels  # before the next one is made: it may be large
        self._send("end", clip.notes)


def main(requests: str, replies: str, pixels: str, memory: str, timeout: str, clip_timeout: str) -> None:
    """Serve requests. Both pipes are given as file descriptors. The other process enforces the last limit."""
    keep_some_freed_memory()
    size = int(memory) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    connections = Connection(int(requests), writable=False), Connection(int(replies), readable=False)
    Server(*connections, Limits(int(pixels), int(memory), float(timeout), float(clip_timeout))).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
