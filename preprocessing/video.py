"""Frames of a video by index, in one sequential pass.

The packets are listed first without decoding. They give the true number of frames, whatever the header claims, and the
display order. So a frame keeps its index even if an earlier one cannot be decoded, and packets that no wanted frame
depends on are never decoded.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from mmap import mmap
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from common.watchdog import native_call
from preprocessing.container import (
    MAX_PIXELS,
    VideoError,
    choose_stream,
    demux,
    open_container,
    too_large,
    video_streams,
)
from preprocessing.orientation import upright_rgb

__all__ = ["MAX_PIXELS", "Clip", "Frame", "VideoError", "chunk_frames", "iter_frames", "read_frames", "sample_frames"]

# Assumed frame rate (per second) of files that do not store one, or an absurd one.
DEFAULT_RATE = 25
# Frame rates (per second) outside these limits are absurd, also as an average of the timestamps.
MIN_RATE, MAX_RATE = Fraction(1, 60), Fraction(1000)
# Decoded frames that are processed together, in bytes: 32 frames of 1920 x 1080.
CHUNK_BYTES = 200 * 2**20


@dataclass(frozen=True)
class Frame:
    """One decoded frame: its index in display order and its pixels, RGB uint8 (height, width, 3)."""

    index: int
    image: np.ndarray


class HasImage(Protocol):
    """Something with pixels."""

    @property
    def image(self) -> np.ndarray:
        """The pixels."""


AnyFrame = TypeVar("AnyFrame", bound=HasImage)


class Packet(NamedTuple):
    """One encoded frame.

    Attributes:
        time: presentation time in units of the stream's time base; None if the container does not store it.
        keyframe: whether decoding can start here.
        shown: whether the frame is part of the video.
    """

    time: int | None
    keyframe: bool
    shown: bool


class Clip:
    """The video that a player shows of a file, with its packets listed.

    Raises VideoError if it cannot be opened, has no frames or has frames larger than the limit.

    Args:
        path: the file.
        max_pixels: the limit, in pixels per frame.

    Attributes:
        path: the file.
        max_pixels: the limit, in pixels per frame.
        packets: the encoded frames in decoding order.
        index_of: frame index by presentation time; None if the container stores no reliable times (AVI) or these make
            no sense (repeated times, for example), in which case frames are numbered as they are decoded.
        total: number of frames that are shown.
        times: times of these frames in seconds, by index; strictly increasing.
        rate: average number of frames per second, MIN_RATE to MAX_RATE.
        codec: FFmpeg's name of the codec.
        lost: number of frames that the header counts but the file does not have.
        notes: what is unusual about the file; decoding may add to it.
    """

    def __init__(self, path: str | Path, max_pixels: int = MAX_PIXELS):
        self.path = path
        self.max_pixels = max_pixels
        self.notes: list[str] = []
        self._ignore_edit_list = False
        self._oversized = False
        self._list_packets()
        shown = [packet for packet in self.packets if packet.shown]
        if self._hides_too_much(shown):
            self._ignore_edit_list = True
            self.add_note(f"edit list ignored: it hides {len(self.packets) - len(shown)} of {len(self.packets)} frames")
            self._list_packets()
            shown = [packet for packet in self.packets if packet.shown]
        if not shown:
            raise VideoError(path, "has no video frames. It is truncated or damaged; download it again")
        if self.lost:
            self.add_note(f"truncated: {len(self.packets)} of {len(self.packets) + self.lost} frames remain")
        self.total = len(shown)
        self.index_of, self.times = self._order(shown)

    @property
    def duration(self) -> float:
        """Return the seconds from the start of the first frame to the end of the last one."""
        return self.times[-1] - self.times[0] + float(1 / self.rate)

    def add_note(self, note: str) -> None:
        """Add a note, once."""
        if note not in self.notes:
            self.notes.append(note)

    def check_size(self) -> None:
        """Raise VideoError if decoding has met a frame larger than the limit."""
        if self._oversized:
            raise too_large(self.path, "frames", self.max_pixels)

    def decode(self, wanted: set[int] | None = None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (index, frame) in display order: at least the wanted frames (None: all) that can be decoded."""
        needed = self._needed_packets(wanted)
        counter = itertools.count()
        with self._open() as (container, stream):
            codec = stream.codec_context
            for packet in _runs(demux(container, stream, self.add_note), needed):
                self._skip_unwanted(codec, packet, wanted)
                for frame in self._decode(codec, packet):
                    index = self._index_at(frame.pts) if self.index_of else next(counter)
                    if index is not None and index < self.total:
                        yield index, frame
                    del frame  # before the next one is decoded, like everything below: it may be large
                if packet is None:
                    codec.flush_buffers()

    @contextmanager
    def _open(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """Open the file and choose its stream, always the same one."""
        with open_container(self.path, self.max_pixels, self._ignore_edit_list) as container:
            yield container, choose_stream(self.path, container, self.max_pixels)

    def _list_packets(self) -> None:
        """Read the packets and the properties of the stream."""
        with self._open() as (container, stream):
            streams = len(video_streams(container))
            if streams > 1:
                self.add_note(f"{streams} video streams; using stream {stream.index}")
            self.packets = [
                Packet(p.pts, p.is_keyframe, not p.is_discard) for p in demux(container, stream, self.add_note)
            ]
            self.codec = stream.codec_context.codec.canonical_name
            self._has_times = "avi" not in container.format.name
            self._stores_size = "mpeg" not in container.format.name
            self._time_base = stream.time_base or Fraction(1)
            rate = stream.average_rate or Fraction(0)
            self.rate = rate if MIN_RATE <= rate <= MAX_RATE else Fraction(DEFAULT_RATE)
            self.lost = max(0, stream.frames - len(self.packets))

    def _hides_too_much(self, shown: list[Packet]) -> bool:
        """Return whether the file hides most of its frames, or some by times that cannot be right."""
        if len(shown) == len(self.packets):
            return False
        return 2 * len(shown) < len(self.packets) or len({packet.time for packet in shown}) < len(shown)

    def _order(self, shown: list[Packet]) -> tuple[dict[int, int] | None, list[float]]:
        """Return the index of each frame by its time, and the times in seconds.

        Without times that tell the frames apart, these are None and the times of a constant frame rate.
        """
        times = sorted({packet.time for packet in shown if packet.time is not None})
        if self._has_times and times:
            seconds = [float(time * self._time_base) for time in times]
            if len(times) == len(shown) and _are_plausible(seconds):
                return {time: index for index, time in enumerate(times)}, seconds
            self.add_note("timestamps are inconsistent; frames are numbered in order")
        return None, [float(index / self.rate) for index in range(len(shown))]

    def _index_at(self, time: int | None) -> int | None:
        """Return the index of the frame with a presentation time."""
        return self.index_of.get(time) if self.index_of and time is not None else None

    def _needed_packets(self, wanted: set[int] | None) -> set[int] | None:
        """Return the positions of the packets that the wanted frames are decoded from; None for all packets.

        Decoding starts at the last keyframe that is both decoded before the frame and not shown after it.
        """
        if wanted is None or self.index_of is None:
            return None
        needed: set[int] = set()
        keyframes: list[int] = []
        for position, packet in enumerate(self.packets):
            if packet.keyframe:
                keyframes.append(position)
            if packet.shown and self._index_at(packet.time) in wanted:
                start = next((k for k in reversed(keyframes) if _not_after(self.packets[k], packet)), 0)
                needed.update(range(start, position + 1))
        return needed

    def _skip_unwanted(self, codec: av.VideoCodecContext, packet: av.Packet | None, wanted: set[int] | None) -> None:
        """Let the decoder skip an unwanted frame that no other frame refers to (H.264 only)."""
        if packet and wanted is not None and self.index_of and codec.name == "h264":
            codec.skip_frame = "DEFAULT" if self._index_at(packet.pts) in wanted else "NONREF"

    def _decode(self, codec: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
        """Return the frames that this packet completes (None: all remaining ones); [] if it is damaged."""
        width = codec.width
        try:
            with native_call():
                frames = codec.decode(packet)
        except av.FFmpegError as error:
            if self._is_refused(codec, width, error):
                self._oversized = True
            elif isinstance(error, MemoryError):
                raise
            return []
        small = [frame for frame in frames if frame.width * frame.height <= self.max_pixels]
        self._oversized |= len(small) < len(frames)
        return small

    def _is_refused(self, codec: av.VideoCodecContext, width: int, error: av.FFmpegError) -> bool:
        """Return whether a decoder has refused the size of a frame; `width`: of the frame before."""
        if codec.name == "libdav1d" and error.errno == errno.ERANGE:
            return True
        if codec.width == 0:  # most decoders forget a size that they refuse
            return width > 0 or self._stores_size
        return codec.width * codec.height > self.max_pixels


def evenly_spaced(total: int, count: int) -> list[int]:
    """Return `count` indices spread evenly over `total` frames, including the first and the last.

    If there are fewer frames, return each index once.
    """
    if total < 1 or count < 1:
        raise ValueError(f"need at least one frame, got total={total}, count={count}")
    return np.linspace(0, total - 1, min(total, count), dtype=int).tolist()


def sample_frames(clip: Clip, count: int) -> list[Frame]:
    """Return `count` frames spread evenly over a clip, in order; fewer for a shorter one.

    If some of these cannot be decoded, frames are chosen among those that can. Raises VideoError if there are none.
    """
    frames: list[Frame] = []
    for frame in iter_sample(clip, count):
        frames = [*frames, frame] if frame else []
    return sorted(frames, key=attrgetter("index"))


def iter_sample(clip: Clip, count: int) -> Iterator[Frame | None]:
    """Yield the frames of `sample_frames`, one at a time; None: the frames so far do not count."""
    wanted = evenly_spaced(clip.total, count)
    decoded = 0
    for frame in iter_frames(clip, wanted):
        decoded += 1
        yield frame
        del frame
    if decoded == len(wanted):
        return
    decodable = sorted({index for index, _ in clip.decode()})
    clip.add_note(f"{len(decodable)} of {clip.total} frames can be decoded")
    yield None
    decoded = 0
    for frame in iter_frames(clip, [decodable[i] for i in evenly_spaced(len(decodable), count)] if decodable else []):
        decoded += 1
        yield frame
        del frame
    if not decoded:
        raise VideoError(clip.path, "no frame can be decoded. The file is damaged; download it again")


def read_frames(clip: Clip, wanted: Iterable[int]) -> list[Frame]:
    """Return the frames with the wanted indices in order, without those that cannot be decoded."""
    return sorted(iter_frames(clip, wanted), key=attrgetter("index"))


def iter_frames(clip: Clip, wanted: Iterable[int]) -> Iterator[Frame]:
    """Yield the frames with the wanted indices, one at a time, without those that cannot be decoded.

    Only wanted frames are converted to RGB and rotated as the metadata says. They come in order, except that frames of
    a damaged clip that need a second pass come last.
    """
    missing = set(wanted) & set(range(clip.total))
    for needed in (missing.copy(), None):
        if not missing:
            return
        for index, frame in clip.decode(needed):
            if index in missing and (image := _to_image(clip, frame)) is not None:
                missing.remove(index)
                yield Frame(index, image)
                del image
            del frame
    if missing:
        clip.check_size()


def chunk_frames(frames: Iterable[AnyFrame], count: int, max_bytes: int = CHUNK_BYTES) -> Iterator[list[AnyFrame]]:
    """Group consecutive frames into lists that fit in memory.

    Args:
        frames: the frames, decoded as they are needed.
        count: maximum length of a list.
        max_bytes: maximum size of a list's pixels in bytes, except that each list has at least one frame.
    """
    chunk: list[AnyFrame] = []
    size = 0
    for frame in frames:
        following = frame.image.nbytes  # most likely also the size of the next frame
        if chunk and size + following > max_bytes:
            yield chunk
            chunk, size = [], 0
        chunk.append(frame)
        del frame  # the caller decides how long it is kept
        size += following
        if len(chunk) == count or size + following > max_bytes:  # before the next frame takes time and memory
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _to_image(clip: Clip, frame: av.VideoFrame) -> np.ndarray | None:
    """Return a decoded frame as an upright RGB image; None if FFmpeg cannot convert it."""
    try:
        with native_call():
            image, note = upright_rgb(frame)
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError):
        return None
    if note:
        clip.add_note(note)
    return image


def _check_memory(size: int) -> None:
    """Raise MemoryError if so many bytes are not available. Decoders report a lack of memory as a damaged packet."""
    try:
        mmap(-1, max(size, 1)).close()
    except OSError:
        raise MemoryError from None


def _are_plausible(times: list[float]) -> bool:
    """Return whether times increase, at an average rate that is not absurd."""
    if any(time >= following for time, following in pairwise(times)):
        return False
    return len(times) == 1 or MIN_RATE <= (len(times) - 1) / (times[-1] - times[0]) <= MAX_RATE


def _runs(packets: Iterable[av.Packet], needed: set[int] | None) -> Iterator[av.Packet | None]:
    """Yield the packets at the needed positions (None: all), and None after each uninterrupted run of them."""
    running = False
    for position, packet in enumerate(packets):
        if needed is None or position in needed:
            running = True
            yield packet
        elif running:
            running = False
            yield None
    if running:
        yield None


def _not_after(keyframe: Packet, packet: Packet) -> bool:
    return keyframe.time is not None and packet.time is not None and keyframe.time <= packet.time
