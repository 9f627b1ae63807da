"""The sound of an annotated copy: the original packets, or AAC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition

from common.text import plural
from common.watchdog import native_call
from preprocessing.container import demux, open_container
from preprocessing.video import Clip

# Codecs (FFmpeg's names) that players accept in MP4. FFmpeg itself also writes PCM, which few can play.
COPIED_SOUND = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "flac", "opus"})
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
DEFAULT_AAC_RATE = 48000
# Sound that is re-encoded ends where its times are off by more than this, in seconds: some of it is damaged.
MAX_GAP = 0.5
# Sound that starts earlier than this before the first frame, in seconds, is cut off; players skip the rest.
MAX_EARLY = 1.0
# Time in seconds, and the packet.
Timed = tuple[float, "av.Packet[AudioStream]"]


class Sound:
    """The sound of a copy: the original packets, or AAC if MP4 does not take these. It ends with the video.

    Damage leaves it out or ends it early, with a note.

    Args:
        clip: the video.
        container: the copy, to which a stream is added if there is sound.
        notes: what is unusual is added here.
    """

    def __init__(self, clip: Clip, container: OutputContainer, notes: list[str]):
        self._container, self._notes = container, notes
        self._input = open_container(clip.path, clip.max_pixels)
        # Times of numbered frames start at 0, whenever the file does.
        self._start = Fraction(clip.times[0]) if clip.index_of else Fraction(self._input.start_time or 0, 10**6)
        self._end = clip.duration
        self._packets = self._read()
        self._next = next(self._packets, None)  # adds the stream, which is possible only before anything is written

    def mux(self, until: float) -> None:
        """Write the packets before a time in seconds."""
        while self._next and self._next[0] < until:
            self._container.mux(self._next[1])
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Write the remaining packets."""
        self.mux(float("inf"))
        self._input.close()

    def _read(self) -> Iterator[Timed]:
        """Yield the times in seconds and the packets."""
        stream = _choose_sound(self._input)
        if stream is None:
            return
        if stream.codec_context is None:
            self._note("left out; this build of FFmpeg cannot decode its codec")
            return
        copied = stream.codec_context.codec.canonical_name in COPIED_SOUND
        found = False
        try:
            for timed in self._copy(stream) if copied else self._encode(stream):
                found = True
                yield timed
        except (av.FFmpegError, ValueError) as error:
            self._note(f"ends early ({error_text(error)})")
        if not found:
            self._note("left out; nothing of it can be used")

    def _copy(self, stream: AudioStream) -> Iterator[Timed]:
        """Yield the packets of a stream."""
        output, last = None, None
        for packet in demux(self._input, cast(Any, stream), self._note):
            if packet.pts is None or packet.dts is None:
                continue
            offset = round(self._start / packet.time_base)
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            time = float(packet.pts * packet.time_base)
            if time >= self._end:
                return
            if time < -MAX_EARLY or (last is not None and packet.dts <= last):
                continue
            last = packet.dts
            output = output or self._container.add_stream_from_template(stream)
            packet.stream = output
            yield time, packet

    def _encode(self, stream: AudioStream) -> Iterator[Timed]:
        """Yield a stream as AAC, mono or stereo. Samples are numbered, because the times of some files are rounded."""
        output, origin, samples = None, Fraction(0), 0
        for frame in self._decode(stream):
            rate = frame.sample_rate
            expected = origin + Fraction(samples, rate)
            time = expected
            if frame.pts is not None and frame.time_base is not None:
                time = frame.pts * frame.time_base - self._start
            if output is None:
                if time < 0:
                    continue
                aac_rate = rate if rate in AAC_RATES else DEFAULT_AAC_RATE
                layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
                output, origin, expected = self._container.add_stream("aac", rate=aac_rate, layout=layout), time, time
            if abs(time - expected) > MAX_GAP:
                self._note(f"ends after {float(expected):.1f} s; then some of it is damaged or missing")
                break
            if time >= self._end:
                break
            frame.time_base, frame.pts = Fraction(1, rate), round(expected * rate)
            samples += frame.samples
            yield from _timed(output.encode(frame))
        if output:
            yield from _timed(output.encode(None))

    def _decode(self, stream: AudioStream) -> Iterator[av.AudioFrame]:
        """Yield the frames of a stream that can be decoded."""
        codec = stream.codec_context
        codec.thread_count = 1
        damaged = 0
        for packet in chain(demux(self._input, cast(Any, stream), self._note), [None]):
            try:
                with native_call():
                    frames = codec.decode(packet)
            except av.FFmpegError:
                damaged += 1
                continue
            yield from frames
        if damaged:
            self._note(f"{plural(damaged, 'packet')} cannot be decoded")

    def _note(self, what: str) -> None:
        self._notes.append(f"sound: {what}")


def _timed(packets: Iterable[av.Packet[AudioStream]]) -> Iterator[Timed]:
    """Yield packets of an encoder, which all have times."""
    for packet in packets:
        yield float((packet.pts or 0) * packet.time_base), packet


def error_text(error: Exception) -> str:
    """Return the text of an error, without FFmpeg's number and the name of a file."""
    return getattr(error, "strerror", None) or str(error)


def _choose_sound(container: InputContainer) -> AudioStream | None:
    """Return the default audio stream, or else the first one; None without sound."""
    streams = container.streams.audio
    return max(streams, key=lambda stream: bool(stream.disposition & Disposition.default), default=None)
