"""Open video files that nobody vouches for: formats, streams, packets.

Only regular files are opened, and only as a container that holds its video itself. FFmpeg can also read playlists,
which are text files that name other files.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from common.errors import ClipError
from common.watchdog import native_call
from preprocessing.limits import MAX_PIXELS

# FFmpeg's names of the demuxers for VIDEO_SUFFIXES and for formats that are often given these suffixes.
FORMATS = (
    "mov", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf",
    "mpegvideo", "m4v", "h264", "hevc",  # streams without a container
)  # fmt: skip
# FFmpeg's own limit of a frame's size, in pixels.
MOST_PIXELS = 2**31 - 1


class VideoError(ClipError):
    """A clip that cannot be read; its status is `unreadable`, `missing` or `too_large`."""


def too_large(path: str | Path, size: str, max_pixels: int) -> VideoError:
    """Return the error for a clip whose frames exceed the limit."""
    return VideoError(
        path, f"{size} exceed the limit of {max_pixels} pixels per frame. Raise --max-pixels", "too_large"
    )


def open_container(path: str | Path, max_pixels: int = MAX_PIXELS, ignore_edit_list: bool = False) -> InputContainer:
    """Open a local file. Raises VideoError.

    Args:
        path: the file.
        max_pixels: larger frames are not decoded to find the properties of the streams.
        ignore_edit_list: also show the frames that an MP4 file says to hide.
    """
    _check_is_file(path)
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(FORMATS),
        **_size_limit(max_pixels),
        "ignore_editlist": str(int(ignore_edit_list)),
    }
    try:
        with native_call():
            return av.open(f"file:{path}", options=options, metadata_errors="replace")
    except FileNotFoundError:
        raise VideoError(path, "no such file", "missing") from None
    except av.FFmpegError as error:
        reason = "unsupported format" if error.errno == errno.EINVAL else error.strerror
        raise VideoError(path, f"not a video, truncated or damaged ({reason})") from None


def choose_stream(path: str | Path, container: InputContainer, max_pixels: int = MAX_PIXELS) -> VideoStream:
    """Return the video stream that a player shows, ready to decode. Raises VideoError.

    This is the default stream, or else the largest or longest one, but not a cover picture.
    """
    streams = video_streams(container)
    if not streams:
        raise VideoError(path, "has no video stream")
    stream = max(streams, key=_priority)
    codec = stream.codec_context
    if codec is None:
        raise VideoError(path, "uses a video codec that this build of FFmpeg cannot decode. Re-encode it")
    if codec.width * codec.height > max_pixels:
        raise too_large(path, f"frames of {codec.width}x{codec.height}", max_pixels)
    codec.thread_count = 1  # whole clips are decoded concurrently instead
    codec.options = _size_limit(max_pixels)
    return stream


def video_streams(container: InputContainer) -> list[VideoStream]:
    """Return the video streams, without cover pictures."""
    cover = Disposition.attached_pic
    flags = cover | Disposition.timed_thumbnails  # set by FFmpeg for a video that another track calls its chapters
    return [stream for stream in container.streams.video if stream.disposition & flags != cover]


def demux(container: InputContainer, stream: VideoStream, report: Callable[[str], None]) -> Iterator[av.Packet]:
    """Yield the packets of a stream, up to the first that cannot be read, which is reported."""
    packets = container.demux(stream)
    while True:
        try:
            with native_call():
                packet = next(packets, None)
        except MemoryError:
            # FFmpeg also raises this for a packet with an absurd size, but none is larger than its file.
            bytearray(max(container.size, 0))  # raises it again if memory is short
            report("reading stopped early (a packet with an absurd size)")
            return
        except av.FFmpegError as error:
            report(f"reading stopped early ({error.strerror})")
            return
        except IndexError:  # raised by PyAV at the end of the file, when it flushes a stream that it does not know
            report("streams that appear in the middle of the file are ignored")
            return
        if packet is None:
            return
        if packet.size and packet.stream_index == stream.index:
            yield packet


def _size_limit(max_pixels: int) -> dict[str, str]:
    """Return the option with which decoders refuse a larger frame before they allocate it.

    It applies to the frame with the edges that decoders add, so it is somewhat higher than the limit.
    """
    return {"max_pixels": str(min(max_pixels * 9 // 8 + 2**16, MOST_PIXELS))}


def _check_is_file(path: str | Path) -> None:
    """Raise VideoError unless a path is a regular file with content. Opening a named pipe would wait for a writer."""
    try:
        status = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError(path, "no such file", "missing") from None
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise VideoError(path, f"cannot be opened ({getattr(error, 'strerror', error)})") from None
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(path, "is not a regular file")
    if not status.st_size:
        raise VideoError(path, "is empty (0 bytes). Download it again")


def _priority(stream: VideoStream) -> tuple:
    """Return a sort key; the stream that a player shows has the greatest."""
    codec, disposition = stream.codec_context, stream.disposition
    return (
        codec is not None,
        not disposition & Disposition.timed_thumbnails,
        bool(disposition & Disposition.default),
        codec.width * codec.height if codec else 0,
        (stream.duration or 0) * (stream.time_base or 0),
        -stream.index,
    )
