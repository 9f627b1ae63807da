"""Frames of a clip by index, in one sequential pass.

A clip's packets are listed first, without decoding: that tells how many frames are really there,
whatever the header claims, and the place of each in display order. So a frame keeps its number when
one before it cannot be decoded, and what no wanted frame needs is never decoded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm"})
# Preprocessing uses every 10th frame.
FRAME_STEP = 10
# Frames a second where a file does not tell.
DEFAULT_RATE = 25

log = logging.getLogger(__name__)


class VideoError(Exception):
    """A clip that cannot be read. The message names the file and says what is wrong; status: unreadable or missing."""

    def __init__(self, path: str | Path, reason: str, status: str = "unreadable"):
        super().__init__(f"{path}: {reason}")
        self.status = status


class Frame(NamedTuple):
    """One decoded frame: its index in display order and its pixels, RGB uint8 (height, width, 3)."""

    index: int
    image: np.ndarray


class Packet(NamedTuple):
    """One frame, not yet decoded: its presentation time, whether decoding can start there, whether it is shown."""

    time: int | None
    keyframe: bool
    shown: bool


class Clip:
    """What a clip's packets tell without decoding. Raises VideoError if it cannot be opened or holds no frames.

    `packets` are in decoding order. `total` is the number of frames that are shown, `number` gives the
    index of each by its presentation time; it is None where a container stores none to rely on (AVI),
    and frames are numbered as they come. `rate` is the number of frames a second, `times` are the frames' times
    in seconds, by index. `lost` is the number of frames that the header counts but that are not there.
    """

    def __init__(self, path: str | Path):
        self.path = path
        with _open(path) as container:
            self.packets = [Packet(p.pts, p.is_keyframe, not p.is_discard) for p in _demux(container)]
            timed = "avi" not in container.format.name
            stream = container.streams.video[0]
            tick, self.rate = stream.time_base, stream.average_rate or DEFAULT_RATE
            self.lost = max(0, stream.frames - len(self.packets))
        times = [packet.time for packet in self.packets if packet.shown]
        if not times:
            raise VideoError(path, "holds no video frames; it is cut off or damaged, fetch it again")
        self.number = None
        if timed and None not in times:
            self.number = {time: index for index, time in enumerate(sorted(set(times)))}
        self.total = len(self.number or times)
        if self.number:
            self.times = [float(time * tick) for time in self.number]
        else:
            self.times = [float(index / self.rate) for index in range(self.total)]

    def decode(self, wanted: set[int] | None = None) -> Iterator[tuple[int, av.VideoFrame]]:
        """(index, frame) of at least the wanted frames (None: all) that can be decoded, in display order."""
        if self.number is None:
            wanted = None
        needed = None if wanted is None else self._needed_packets(wanted)
        with _open(self.path) as container:
            codec = container.streams.video[0].codec_context
            # Only H.264 marks the pictures that no other picture refers to.
            skips = wanted is not None and codec.name == "h264"
            numbers = iter(range(len(self.packets)))
            running = False
            for position, packet in enumerate(_demux(container)):
                if needed is not None and position not in needed:
                    if running:
                        yield from self._numbered(_frames(codec, None), numbers)
                        codec.flush_buffers()
                    running = False
                    continue
                if skips:
                    codec.skip_frame = "DEFAULT" if self.number.get(packet.pts) in wanted else "NONREF"
                running = True
                yield from self._numbered(_frames(codec, packet), numbers)
            if running:
                yield from self._numbered(_frames(codec, None), numbers)

    def _numbered(self, frames: list[av.VideoFrame], numbers: Iterator[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        for frame in frames:
            index = next(numbers, None) if self.number is None else self.number.get(frame.pts)
            if index is not None:
                yield index, frame

    def _needed_packets(self, wanted: set[int]) -> set[int]:
        """Positions of the packets from which the wanted frames are decoded: from a keyframe on to each.

        A picture shown before the keyframe that precedes it in decoding order refers to an earlier one.
        """
        needed, keyframes = set(), []
        for position, packet in enumerate(self.packets):
            if packet.keyframe:
                keyframes.append(position)
            if packet.shown and self.number[packet.time] in wanted:
                start = next((k for k in reversed(keyframes) if _not_after(self.packets[k], packet)), 0)
                needed.update(range(start, position + 1))
        return needed


def evenly_spaced(total: int, count: int) -> list[int]:
    """`count` indices spread evenly over `total` frames, first and last included, none twice.

    A clip shorter than `count` gives each of its frames once.
    """
    if total < 1 or count < 1:
        raise ValueError(f"need at least one frame, got total={total}, count={count}")
    return np.linspace(0, total - 1, min(total, count), dtype=int).tolist()


def sample_frames(path: str | Path, count: int) -> list[Frame]:
    """`count` frames spread evenly over the clip, in order; fewer from a shorter clip.

    Where frames of a damaged clip cannot be decoded, they are spread over those that can.

    Raises VideoError if the file cannot be opened or no frame can be decoded.
    """
    clip = Clip(path)
    wanted = evenly_spaced(clip.total, count)
    frames = read_frames(clip, wanted)
    if len(frames) < len(wanted):
        decodable = sorted({index for index, _ in clip.decode()})
        log.warning("%s: %d of %d frames can be decoded", path, len(decodable), clip.total)
        if not decodable:
            raise VideoError(path, "no frame can be decoded; it is damaged, fetch it again")
        frames = read_frames(clip, [decodable[i] for i in evenly_spaced(len(decodable), count)])
    return frames


def read_frames(clip: Clip, wanted: Iterable[int]) -> list[Frame]:
    """The frames with the wanted indices, in order; those that cannot be decoded are left out."""
    return sorted(iter_frames(clip, wanted))


def iter_frames(clip: Clip, wanted: Iterable[int]) -> Iterator[Frame]:
    """The frames with the wanted indices, one in memory at a time; those that cannot be decoded are left out.

    Only wanted frames are converted to RGB, and turned upright by the clip's rotation metadata. They come in
    order, but those of a damaged clip that only a second pass reaches (its keyframes may not be good to start
    from) come last.
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
    """Open a local file; a playlist inside a hostile clip may not reach for anything but files."""
    try:
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except FileNotFoundError:
        raise VideoError(path, "no such file", "missing") from None
    except av.FFmpegError as error:
        if Path(path).is_file() and not Path(path).stat().st_size:
            raise VideoError(path, "is empty (0 bytes); fetch it again") from None
        raise VideoError(path, f"not a video, cut off or damaged ({error.strerror})") from None
    if not container.streams.video:
        container.close()
        raise VideoError(path, "has no video stream")
    if container.streams.video[0].codec_context is None:
        container.close()
        raise VideoError(path, "is in a video codec that this build of FFmpeg cannot decode; re-encode it")
    container.streams.video[0].codec_context.thread_count = 1  # several clips are decoded at once instead
    return container


def _demux(container: av.container.InputContainer) -> Iterator[av.Packet]:
    try:
        yield from (packet for packet in container.demux(video=0) if packet.size)
    except av.FFmpegError as error:
        log.warning("%s: reading stops early (%s)", container.name, error.strerror)


def _frames(codec: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
    """The frames that become ready with this packet (None: all that are left); none if it is damaged."""
    try:
        return codec.decode(packet)
    except av.FFmpegError:
        return []


def _not_after(keyframe: Packet, packet: Packet) -> bool:
    return keyframe.time is not None and keyframe.time <= packet.time


def _upright_rgb(frame: av.VideoFrame) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
