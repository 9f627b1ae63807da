"""Clips that an adversary, a faulty program or an accident may have made, written by script.

    python -m tests.support.hostile_clips FOLDER

writes all of them. Each is made from one portrait, so that a clip that is readable has a face in each of its frames.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition

from preprocessing import sample_clips

FRAMES, WIDTH, HEIGHT = 24, 320, 240
# A frame slightly larger than the default limit, in pixels.
LARGE = 6144
ONE = 0x10000  # 1.0 in the coefficients a, b, c and d of a display matrix


class HostileClip(NamedTuple):
    """A hostile clip.

    Attributes:
        make: writes the file, and possibly others into a folder named after it.
        status: status of the clip in prediction and preprocessing, with the default limits.
        frames: number of frames, if the clip can be read.
        note: part of a note in the clip's record; "" if there is none.
    """

    make: Callable[[Path], None]
    status: str
    frames: int = 0
    note: str = ""


@functools.cache
def portrait() -> tuple[np.ndarray, ...]:
    """The frames of all clips."""
    with tempfile.TemporaryDirectory() as folder:
        path = sample_clips.face_clip(Path(folder) / "face.mp4", FRAMES, WIDTH, HEIGHT)
        with av.open(str(path)) as container:
            return tuple(frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))


def unchanged(image: np.ndarray) -> np.ndarray:
    return image


def transposed(image: np.ndarray) -> np.ndarray:
    return image.transpose(1, 0, 2)


def turned(image: np.ndarray) -> np.ndarray:
    return image[::-1, ::-1]


@functools.cache
def encoded(suffix: str = ".mp4", stored: Callable[[np.ndarray], np.ndarray] = unchanged) -> bytes:
    """The content of an ordinary clip; `stored` changes the frames before they are encoded."""
    with tempfile.TemporaryDirectory() as folder:
        frames = (np.ascontiguousarray(stored(image)) for image in portrait())
        return sample_clips.write_clip(Path(folder) / f"face{suffix}", frames).read_bytes()


def write(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


def patched(
    *patches: Callable[[bytearray], None], stored: Callable[[np.ndarray], np.ndarray] = unchanged
) -> Callable[[Path], None]:
    """An ordinary MP4 clip with changed bytes."""

    def make(path: Path) -> None:
        data = bytearray(encoded(stored=stored))
        for patch in patches:
            patch(data)
        path.write_bytes(data)

    return make


def content_of(data: bytes | bytearray, box: str) -> int:
    """The position of the content of the first MP4 box of this type."""
    return data.index(box.encode()) + 4


def time_deltas(*values: int) -> Callable[[bytearray], None]:
    """Set the differences between the times of consecutive frames; the last value is repeated."""

    def patch(data: bytearray) -> None:
        place = content_of(data, "stts")
        (entries,) = struct.unpack_from(">I", data, place + 4)
        for entry in range(entries):
            struct.pack_into(">I", data, place + 12 + 8 * entry, values[min(entry, len(values) - 1)])

    return patch


def timescale(value: int) -> Callable[[bytearray], None]:
    """Set the units of time per second of the video stream."""

    def patch(data: bytearray) -> None:
        struct.pack_into(">I", data, content_of(data, "mdhd") + 12, value)

    return patch


def display_matrix(a: int, b: int, c: int, d: int) -> Callable[[bytearray], None]:
    """Show the pixel at (x, y) at (a x + c y, b x + d y); y points down."""

    def patch(data: bytearray) -> None:
        last = 0 if not any((a, b, c, d)) else 0x40000000
        struct.pack_into(">9i", data, content_of(data, "tkhd") + 40, a, b, 0, c, d, 0, 0, 0, last)

    return patch


def edit_list(duration: int) -> Callable[[bytearray], None]:
    """Show this many milliseconds of the video only."""

    def patch(data: bytearray) -> None:
        struct.pack_into(">I", data, content_of(data, "elst") + 8, duration)

    return patch


def size_in_header(width: int, height: int) -> Callable[[bytearray], None]:
    def patch(data: bytearray) -> None:
        struct.pack_into(">HH", data, content_of(data, "avc1") + 24, width, height)
        struct.pack_into(">HH", data, content_of(data, "tkhd") + 76, width, 0)

    return patch


def decoy_first(path: Path) -> None:
    """A small black stream comes before the real one."""
    black = [np.zeros((64, 64, 3), np.uint8)] * 2 * FRAMES
    _write_streams(path, black, portrait())


def default_stream_second(path: Path) -> None:
    """A large black stream comes first, but the other one is the default."""
    black = [np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.uint8)] * FRAMES
    _write_streams(path, black, portrait(), dispositions=(Disposition(0), Disposition.default))


def _write_streams(
    path: Path, *videos: Iterable[np.ndarray], dispositions: tuple[Disposition, ...] = (Disposition.default,) * 2
) -> None:
    with av.open(str(path), "w") as container:
        streams = []
        for frames, disposition in zip(map(list, videos), dispositions, strict=True):
            stream = container.add_stream("libx264", rate=25, options={"crf": "18", "threads": "1"})
            stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
            stream.disposition = disposition
            streams.append((stream, frames))
        for stream, frames in streams:
            for image in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))


def flipped_later(path: Path) -> None:
    """From the second half on, each frame's own message (H.264 SEI, display orientation) says that it is flipped."""
    flip = bytes.fromhex("00000007 062f0320000980")  # length; SEI, type 47, 3 bytes: vertical flip
    with tempfile.TemporaryDirectory() as folder:
        frames = (image if index < FRAMES // 2 else image[::-1] for index, image in enumerate(portrait()))
        clip = sample_clips.write_clip(Path(folder) / "face.mp4", map(np.ascontiguousarray, frames))
        with av.open(str(clip)) as source, av.open(str(path), "w") as container:
            stream = container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.pts is None:
                    continue
                is_later = packet.pts * packet.time_base * 25 >= FRAMES // 2
                copy = av.Packet(flip + bytes(packet) if is_later else bytes(packet))
                copy.stream, copy.time_base, copy.is_keyframe = stream, packet.time_base, packet.is_keyframe
                copy.pts, copy.dts = packet.pts, packet.dts
                container.mux(copy)


def cover_picture(path: Path) -> None:
    """A large picture of the album's cover comes with the video."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "face.mp4").write_bytes(encoded())
        with av.open(str(Path(folder) / "face.mp4")) as source, av.open(str(path), "w") as container:
            picture = container.add_stream("mjpeg", rate=25)
            picture.width, picture.height, picture.pix_fmt = 800, 800, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            video = container.add_stream_from_template(source.streams.video[0])
            gray = np.full((800, 800, 3), 127, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
            container.mux(picture.encode(None))
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = video
                    container.mux(packet)


def jpegs(*sizes: int, header: int | None = None) -> Callable[[Path], None]:
    """A video of gray squares with these sides, in JPEG; `header`: the size in the file's header."""

    def make(path: Path) -> None:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=25)
            side = header or sizes[0]
            stream.width, stream.height, stream.pix_fmt = side, side, "yuvj420p"
            for number, content in enumerate(map(_jpeg, sizes)):
                packet = av.Packet(content)
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.pts = packet.dts = number
                packet.is_keyframe = True
                container.mux(packet)

    return make


@functools.cache
def _jpeg(side: int) -> bytes:
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = side, side, "yuvj420p", Fraction(1, 25)
    frame = av.VideoFrame(side, side, "yuvj420p")
    for plane in frame.planes:
        plane.update(bytes([127]) * plane.buffer_size)
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def truncated(part: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(encoded()[: round(len(encoded()) * part)])

    return make


def concatenated(path: Path) -> None:
    """Two broadcasts in one file; the times start again."""
    path.write_bytes(2 * encoded(".ts"))


def stream_in_the_middle(path: Path) -> None:
    """A broadcast, and the packets of a stream that its tables do not list."""
    unlisted = bytearray(encoded(".ts"))
    for packet in range(0, len(unlisted), 188):
        (identifier,) = struct.unpack_from(">H", unlisted, packet + 1)
        if identifier & 0x1FFF == 256:  # the video
            struct.pack_into(">H", unlisted, packet + 1, identifier + 44)
    path.write_bytes(encoded(".ts") + unlisted)


def beside(path: Path) -> Path:
    """The folder of the other files that a clip needs."""
    folder = path.with_name(f"{path.name}_files")
    folder.mkdir(exist_ok=True)
    return folder


def playlist(text: str) -> Callable[[Path], None]:
    """A text file that names a clip, {clip}, or a pipe, {pipe}."""

    def make(path: Path) -> None:
        folder = beside(path)
        (folder / "clip.mp4").write_bytes(encoded())
        os.mkfifo(folder / "pipe.mp4")
        path.write_text(text.format(clip=f"{folder.name}/clip.mp4", pipe=f"{folder.name}/pipe.mp4"))

    return make


def replace(data: bytearray, place: int, length: int, content: bytes, boxes: Iterable[str]) -> None:
    """Replace bytes of an MP4 file by others, and adapt the sizes of the boxes around them."""
    for box in boxes:
        start = data.index(box.encode()) - 4
        struct.pack_into(">I", data, start, struct.unpack_from(">I", data, start)[0] + len(content) - length)
    data[place : place + length] = content


def called_chapters(data: bytearray) -> None:
    """Call the video the chapters of itself, so that FFmpeg takes it for a list of pictures."""
    chapters = struct.pack(">I4sI4sI", 20, b"tref", 12, b"chap", 1)
    chunks = content_of(data, "stco")
    for chunk in range(struct.unpack_from(">I", data, chunks + 4)[0]):
        place = chunks + 8 + 4 * chunk
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + len(chapters))
    replace(data, content_of(data, "mdia") - 8, 0, chapters, ("trak", "moov"))


def external_data(path: Path) -> None:
    """A QuickTime movie whose frames are in another file."""
    folder = beside(path)
    (folder / "clip.mp4").write_bytes(encoded())
    data = bytearray(encoded())
    place = content_of(data, "dref") + 8  # the only entry: size, "url ", version and flags
    # An alias record (Inside Macintosh: Files): the path, type 2, and that its last two parts lead from folder to file.
    name = f"/{folder.name}/clip.mp4".encode()
    record = bytearray(150)
    struct.pack_into(">HH", record, 130, 1, 2)
    record += struct.pack(">hH", 2, len(name)) + name + b"\0" * (len(name) % 2) + struct.pack(">hH", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    replace(data, place, 12, entry, ("dref", "dinf", "minf", "mdia", "trak", "moov"))
    # Without the frames: the offsets of the chunks are those of the other file.
    path.write_bytes(data[: data.index(b"mdat") - 4])


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def link_to_pipe(path: Path) -> None:
    os.mkfifo(beside(path) / "pipe.mp4")
    path.symlink_to(beside(path) / "pipe.mp4")


def link(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.symlink_to(target.format(name=path.name))

    return make


NUMBERED, EDIT_LIST, MATRIX = "timestamps are inconsistent", "edit list ignored", "display matrix ignored"
TRUNCATED = "truncated: "
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n"
NOISE = np.random.default_rng(0).integers(0, 256, 20000, np.uint8).tobytes()

# By file name; the names differ in more than their suffix.
HOSTILE = {
    "decoy_first.mp4": HostileClip(decoy_first, "ok", FRAMES, "2 video streams; using stream 1"),
    "decoy_first_matroska.mkv": HostileClip(decoy_first, "ok", FRAMES, "2 video streams; using stream 1"),
    "decoy_first_broadcast.ts": HostileClip(decoy_first, "ok", FRAMES, "2 video streams; using stream 1"),
    "default_stream_second.mkv": HostileClip(default_stream_second, "ok", FRAMES, "using stream 1"),
    "cover_picture.mp4": HostileClip(cover_picture, "ok", FRAMES),
    # FFmpeg repeats the first frame
    "called_chapters.mp4": HostileClip(patched(called_chapters), "ok", FRAMES + 1, NUMBERED),
    "equal_times.mp4": HostileClip(patched(time_deltas(0)), "ok", FRAMES, NUMBERED),
    "no_timescale.mp4": HostileClip(patched(timescale(0)), "ok", FRAMES, NUMBERED),
    "no_time_at_all.mp4": HostileClip(patched(timescale(0), time_deltas(0)), "ok", FRAMES, NUMBERED),
    "huge_time_deltas.mp4": HostileClip(patched(time_deltas(2**31 - 1)), "ok", FRAMES, NUMBERED),
    "huge_timescale.mp4": HostileClip(patched(timescale(2**31 - 1)), "ok", FRAMES, NUMBERED),
    "times_start_again.ts": HostileClip(concatenated, "ok", 2 * FRAMES, NUMBERED),
    "stream_in_the_middle.ts": HostileClip(stream_in_the_middle, "ok", FRAMES, "streams that appear in the middle"),
    "hidden_by_edit_list.mp4": HostileClip(patched(edit_list(80)), "ok", FRAMES, EDIT_LIST),
    # The frames are stored in such a way that they are shown upright.
    "mirrored.mp4": HostileClip(patched(display_matrix(-ONE, 0, 0, ONE), stored=np.fliplr), "ok", FRAMES),
    "flipped.mp4": HostileClip(patched(display_matrix(ONE, 0, 0, -ONE), stored=np.flipud), "ok", FRAMES),
    "transposed.mp4": HostileClip(patched(display_matrix(0, ONE, ONE, 0), stored=transposed), "ok", FRAMES),
    "half_turn.mp4": HostileClip(patched(display_matrix(-ONE, 0, 0, -ONE), stored=turned), "ok", FRAMES),
    "quarter_turn.mp4": HostileClip(patched(display_matrix(0, ONE, -ONE, 0), stored=np.rot90), "ok", FRAMES),
    "flipped_later.mp4": HostileClip(flipped_later, "ok", FRAMES),
    "scaled.mp4": HostileClip(patched(display_matrix(5, 0, 0, 7)), "ok", FRAMES),
    "zero_matrix.mp4": HostileClip(patched(display_matrix(0, 0, 0, 0)), "ok", FRAMES, MATRIX),
    "flat_matrix.mp4": HostileClip(patched(display_matrix(ONE, ONE, ONE, ONE)), "ok", FRAMES, MATRIX),
    "tilted_matrix.mp4": HostileClip(patched(display_matrix(46341, 46341, -46341, 46341)), "ok", FRAMES, MATRIX),
    "extreme_matrix.mp4": HostileClip(patched(display_matrix(-(2**31), 0, 0, -(2**31)), stored=turned), "ok", FRAMES),
    "truncated.mp4": HostileClip(truncated(0.6), "ok", note=TRUNCATED),
    "huge_size_in_header.mp4": HostileClip(patched(size_in_header(65535, 65535)), "ok", FRAMES),
    "no_size_in_header.mp4": HostileClip(patched(size_in_header(0, 0)), "ok", FRAMES),
    "mp4.avi": HostileClip(write(encoded()), "ok", FRAMES),
    "large_frames.mov": HostileClip(jpegs(*[LARGE] * 11), "too_large"),
    "large_frames_later.mov": HostileClip(jpegs(64, *[LARGE] * 10), "too_large"),
    "large_frames_later_avi.avi": HostileClip(jpegs(64, *[LARGE] * 10), "too_large"),
    "large_frames_later_matroska.mkv": HostileClip(jpegs(64, *[LARGE] * 10), "too_large"),
    "large_frames_in_small_header.mov": HostileClip(jpegs(*[LARGE] * 11, header=64), "too_large"),
    "playlist.mp4": HostileClip(playlist("ffconcat version 1.0\nfile {clip}\n"), "unreadable"),
    "playlist_of_pipe.mp4": HostileClip(playlist("ffconcat version 1.0\nfile {pipe}\n"), "unreadable"),
    "hls.ts": HostileClip(playlist(HLS), "unreadable"),
    "external_data.mov": HostileClip(external_data, "unreadable"),
    "pipe.mp4": HostileClip(os.mkfifo, "unreadable"),
    "link_to_pipe.mp4": HostileClip(link_to_pipe, "unreadable"),
    "link_to_device.mp4": HostileClip(link("/dev/zero"), "unreadable"),
    "link_to_itself.mp4": HostileClip(link("{name}"), "unreadable"),
    "link_to_nothing.mp4": HostileClip(link("nowhere"), "missing"),
    "sound.mp4": HostileClip(sound, "unreadable"),
    "header_only.mp4": HostileClip(truncated(0.02), "unreadable"),
    "empty.mp4": HostileClip(write(b""), "unreadable"),
    "text.mp4": HostileClip(write(b"not a video\n" * 99), "unreadable"),
    "noise.mp4": HostileClip(write(NOISE), "unreadable"),
    "noise_broadcast.ts": HostileClip(write(NOISE), "unreadable"),
}


def write_all(folder: Path) -> None:
    """Write the clips of HOSTILE."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, clip in HOSTILE.items():
        clip.make(folder / name)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
