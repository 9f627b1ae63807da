"""Frames of a video by index, in one sequential pass.

The packets are listed first without decoding. They give the true number of frames, whatever the header claims, and the
display order. So a frame keeps its index even if an earlier one cannot be decoded, and packets that no wanted frame
depends on are never decoded.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from common.errors import ClipError

# Assumed frame rate (per second) of files that do not store one.
DEFAULT_RATE = 25

log = logging.getLogger(__name__)


class VideoError(ClipError):
    """A clip that cannot be read; its status is `unreadable` or `missing`."""


@dataclass(frozen=True)
class Frame:
    """One decoded frame: its index in display order and its pixels, RGB uint8 (height, width, 3)."""

    index: int
    image: np.ndarray


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
    """A video whose packets have been listed. Raises VideoError if it cannot be opened or has no frames.

    Attributes:
        path: the file.
        packets: the encoded frames in decoding order.
        index_of: frame index by presentation time; None if the container stores no reliable times (AVI), in which
            case frames are numbered as they are decoded.
        total: number of frames that are shown.
        times: times of these frames in seconds, by index.
        rate: average number of frames per second.
        lost: number of frames that the header counts but the file does not have.
    """

    def __init__(self, path: str | Path):
        self.path = path
        with _open(path) as container:
            self.packets = [Packet(p.pts, p.is_keyframe, not p.is_discard) for p in _demux(container)]
            reliable = "avi" not in container.format.name
            stream = container.streams.video[0]
            time_base = stream.time_base or Fraction(1)
            self.rate = stream.average_rate or Fraction(DEFAULT_RATE)
            self.lost = max(0, stream.frames - len(self.packets))
        shown = [packet for packet in self.packets if packet.shown]
        if not shown:
            raise VideoError(path, "has no video frames. It is truncated or damaged; download it again")
        times = [packet.time for packet in shown if packet.time is not None]
        self.index_of: dict[int, int] | None = None
        if reliable and len(times) == len(shown):
            self.index_of = {time: index for index, time in enumerate(sorted(set(times)))}
        self.total = len(self.index_of or shown)
        if self.index_of:
            self.times = [float(time * time_base) for time in self.index_of]
        else:
            self.times = [float(index / self.rate) for index in range(self.total)]

    @property
    def duration(self) -> float:
        """Return the seconds from the start of the first frame to the end of the last one."""
        return self.times[-1] - self.times[0] + float(1 / self.rate)

    def decode(self, wanted: set[int] | None = None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (index, frame) in display order: at least the wanted frames (None: all) that can be decoded."""
        needed = self._needed_packets(wanted)
        counter = itertools.count()
        with _open(self.path) as container:
            codec = container.streams.video[0].codec_context
            for packet in _runs(_demux(container), needed):
                self._skip_unwanted(codec, packet, wanted)
                for frame in _decode(codec, packet):
                    index = self._index_at(frame.pts) if self.index_of else next(counter)
                    if index is not None and index < len(self.packets):
                        yield index, frame
                if packet is None:
                    codec.flush_buffers()

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
    wanted = evenly_spaced(clip.total, count)
    frames = read_frames(clip, wanted)
    if len(frames) < len(wanted):
        decodable = sorted({index for index, _ in clip.decode()})
        log.warning("%s: %d of %d frames can be decoded", clip.path, len(decodable), clip.total)
        if not decodable:
            raise VideoError(clip.path, "no frame can be decoded. The file is damaged; download it again")
        frames = read_frames(clip, [decodable[i] for i in evenly_spaced(len(decodable), count)])
    return frames


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
            if index in missing:
                missing.remove(index)
                yield Frame(index, _upright_rgb(frame))


def _open(path: str | Path) -> av.container.InputContainer:
    """Open a local file. If it is a playlist, it can refer to local files only. Raises VideoError."""
    try:
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except FileNotFoundError:
        raise VideoError(path, "no such file", "missing") from None
    except av.FFmpegError as error:
        if Path(path).is_file() and not Path(path).stat().st_size:
            raise VideoError(path, "is empty (0 bytes). Download it again") from None
        raise VideoError(path, f"not a video, truncated or damaged ({error.strerror})") from None
    if not container.streams.video:
        container.close()
        raise VideoError(path, "has no video stream")
    if container.streams.video[0].codec_context is None:
        container.close()
        raise VideoError(path, "uses a video codec that this build of FFmpeg cannot decode. Re-encode it")
    container.streams.video[0].codec_context.thread_count = 1  # whole clips are decoded concurrently instead
    return container


def _demux(container: av.container.InputContainer) -> Iterator[av.Packet]:
    try:
        yield from (packet for packet in container.demux(video=0) if packet.size)
    except av.FFmpegError as error:
        log.warning("%s: reading stopped early (%s)", container.name, error.strerror)


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


def _decode(codec: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
    """Return the frames that this packet completes (None: all remaining ones); [] if it is damaged."""
    try:
        return codec.decode(packet)
    except av.FFmpegError:
        return []


def _not_after(keyframe: Packet, packet: Packet) -> bool:
    return keyframe.time is not None and packet.time is not None and keyframe.time <= packet.time


def _upright_rgb(frame: av.VideoFrame) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
