"""Targets: clips of every container and codec, decoded as prediction and as preprocessing do."""

from __future__ import annotations

import functools
import math
import os
import random
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from skimage.data import astronaut

from benchmarks.fuzzing.mutations import mutate_bytes
from benchmarks.fuzzing.target import Result, Target, clear, expect, generator, message_problem
from common.local_executor import run_local
from common.outcome import CRASHED, Job, Outcome
from common.watchdog import TimeLimits
from inference.decoder import Decoder, SampledFrame, StartOver
from preprocessing.layout import FRAME_STEP
from preprocessing.limits import Limits
from preprocessing.sample_clips import moving, write_clip
from preprocessing.video import MAX_RATE, MIN_RATE, Clip, VideoError, iter_frames

FRAMES = 8
# Width and height of the clips; rows of the second size are not a multiple of 16 bytes.
SIZES = ((160, 120), (150, 106))
# Seconds without progress after which decoding is given up.
TIMEOUT = 20
# Statuses of a clip that cannot be used, by docs/formats.md.
FAILURES = {"unreadable", "missing", "too_large"}
# Suffix and codec of the clips that are mutated, with the options of the encoder.
ENCODED: tuple[tuple[str, str, dict[str, str]], ...] = (
    (".mp4", "libx264", {}),
    (".mp4", "libx264", {"bf": "0", "g": "4"}),
    (".mp4", "libx265", {"x265-params": "log-level=none"}),
    (".m4v", "mpeg4", {}),
    (".mov", "libx264", {}),
    (".mov", "mjpeg", {"strict": "unofficial"}),
    (".mkv", "libx264", {}),
    (".mkv", "libsvtav1", {"preset": "12"}),
    (".webm", "libvpx", {}),
    (".webm", "libvpx-vp9", {}),
    (".avi", "mpeg4", {}),
    (".avi", "mjpeg", {"strict": "unofficial"}),
    (".ts", "libx264", {}),
    (".ts", "mpeg2video", {}),
    (".mpg", "mpeg2video", {}),
    (".mpeg", "mpeg1video", {}),
)
# Suffix and format of further clips, made by copying the packets of the first one, with the options of the container.
COPIED: tuple[tuple[str, str, dict[str, str]], ...] = (
    (".mp4", "mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    (".mp4", "mp4", {"movflags": "frag_every_frame+dash"}),
    (".mp4", "mp4", {"use_editlist": "0"}),
    (".mp4", "flv", {}),
    (".mp4", "h264", {}),
)
# Types of boxes, chunks and elements whose fields are worth changing, in the headers of MP4, Matroska, AVI and MPEG.
HEADERS = re.compile(
    rb"ftyp|moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|hdlr|minf|vmhd|dinf|dref|stbl|stsd|avc1|avcC|hev1|hvcC|mp4v|esds|jpeg|"
    rb"stts|ctts|stss|stsc|stsz|stco|co64|mdat|moof|mfhd|traf|tfhd|tfdt|trun|mvex|trex|sidx|colr|pasp|udta|"
    rb"RIFF|AVI |LIST|hdrl|avih|strl|strh|strf|movi|idx1|00dc|\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x16\x54\xae\x6b|"
    rb"\x1f\x43\xb6\x75|\x1c\x53\xbb\x6b|\x15\x49\xa9\x66|\x11\x4d\x9b\x74|\xa3|\xe0\xb0|FLV|\x00\x00\x01|\xff[\xc0\xc4\xda\xdb]",
    re.DOTALL,
)


class Seed:
    """A clip that is mutated, with the positions of its headers."""

    def __init__(self, path: Path):
        self.suffix, self.content = path.suffix, path.read_bytes()
        self.places = [match.start() for match in HEADERS.finditer(self.content)]
        if self.suffix == ".ts":
            self.places += range(0, len(self.content), 188)


@functools.cache
def seed_clips(folder: Path) -> list[Seed]:
    """Read the clips that `write_seed_clips` has written."""
    return [Seed(path) for path in sorted((folder / "clips").iterdir())]


def write_seed_clips(folder: Path) -> None:
    """Write the clips that are mutated, unless they exist."""
    clips = folder / "clips"
    if clips.is_dir():
        return
    clips.mkdir(parents=True)
    os.environ.setdefault("SVT_LOG", "0")  # the encoder of AV1 prints its settings
    for number, (suffix, codec, options) in enumerate(ENCODED):
        width, height = SIZES[number % len(SIZES)]
        frames = moving(astronaut(), FRAMES, width, height, height / 400)
        write_clip(clips / f"{number:02}_{codec}{suffix}", frames, codec, **options)
    if hasattr(os, "sched_setscheduler"):  # for root, SVT-AV1 turns on real-time scheduling, which starves the rest
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    first = min(clips.iterdir())
    for number, (suffix, kind, options) in enumerate(COPIED, len(ENCODED)):
        _copy_packets(first, clips / f"{number:02}_{kind}{suffix}", kind, options)


def _copy_packets(source: Path, target: Path, kind: str, options: dict[str, str]) -> None:
    with av.open(str(source)) as original, av.open(str(target), "w", format=kind, options=options) as container:
        video = original.streams.video[0]
        copied = container.add_stream_from_template(video)
        for packet in original.demux(video):
            if packet.size:
                packet.stream = copied
                container.mux(packet)


def write_mutant(rng: random.Random, seeds: Path, folder: Path, name: str = "clip") -> Path:
    """Write a mutated clip and return its path."""
    clips = seed_clips(seeds)
    seed = rng.choice(clips)
    donors = [rng.choice(clips).content]
    path = folder / f"{name}{seed.suffix}"
    path.write_bytes(mutate_bytes(rng, seed.content, seed.places, donors))
    return path


class DecoderTarget(Target):
    """Clips in the decoder of prediction."""

    name = "decoder"
    weight = 4.0
    batch = 100

    def __init__(self, seeds: Path):
        super().__init__(seeds)
        self.decoder: Decoder | None = None

    def prepare(self) -> None:
        write_seed_clips(self.seeds)

    def make(self, rng: random.Random, folder: Path) -> None:
        write_mutant(rng, self.seeds, folder)

    def check(self, rng: random.Random, folder: Path) -> str:
        self.decoder = self.decoder or Decoder(Limits(timeout=TIMEOUT))
        [path] = folder.iterdir()
        count = rng.choice((1, 2, 3, 32))
        try:
            info = self.decoder.open(path, count)
            frames = self._frames()
        except VideoError as error:
            expect(error.status in FAILURES, f"the undocumented status {error.status}")
            problem = message_problem(str(error))
            expect(not problem, problem)
            died = re.search(r"crashed \(exit status -?\d+\)|no progress|failed \(\w+", str(error))
            return died[0] if died else error.status
        expect(math.isfinite(info.fps) and MIN_RATE <= info.fps <= MAX_RATE, f"{info.fps} frames per second")
        expect(math.isfinite(info.duration) and info.duration > 0, f"a duration of {info.duration}")
        self._check_frames(frames, count)
        return "notes" if self.decoder.notes else "ok"

    def _frames(self) -> list[SampledFrame]:
        assert self.decoder
        while True:
            try:
                return list(self.decoder.frames())
            except StartOver:
                continue

    def _check_frames(self, frames: list[SampledFrame], count: int) -> None:
        expect(0 < len(frames) <= count, f"{len(frames)} frames instead of {count}")
        frames = sorted(frames, key=lambda frame: frame.index)
        times = [frame.time for frame in frames]
        expect(len({frame.index for frame in frames}) == len(frames), "a frame comes twice")
        expect(all(math.isfinite(time) and time >= 0 for time in times), f"times {times}")
        expect(all(before < after for before, after in pairwise(times)), f"times {times}")
        expect(all(frame.image.ndim == 3 and frame.image.size for frame in frames), "an empty frame")


def read_all_frames(path: Path, _output: Path) -> Outcome:
    """Read all frames of a clip, as preprocessing does. Return the number of frames, or what is wrong with them."""
    clip = Clip(path)
    problem = _clip_problem(clip)
    frames = 0
    for frame in iter_frames(clip, range(clip.total)):
        frames += 1
        if frame.image.dtype != np.uint8 or frame.image.ndim != 3 or not frame.image.size:
            problem = f"frame {frame.index} is {frame.image.dtype} {frame.image.shape}"
    if frames > clip.total:
        problem = f"{frames} frames of {clip.total}"
    list(iter_frames(clip, range(0, clip.total, FRAME_STEP)))
    if problem:
        return Outcome("problem", problem)
    return Outcome("ok" if frames else "no frame", "; ".join(clip.notes))


def _clip_problem(clip: Clip) -> str:
    """Return what is wrong with the properties of a clip."""
    if not 0 < clip.total <= len(clip.packets) or len(clip.times) != clip.total:
        return f"{clip.total} frames, {len(clip.packets)} packets, {len(clip.times)} times"
    if not np.isfinite(clip.times).all() or not (np.diff(clip.times) > 0).all():
        return f"times {clip.times[:20]}"
    if not MIN_RATE <= clip.rate <= MAX_RATE or not 0 < clip.duration < math.inf:
        return f"rate {clip.rate}, duration {clip.duration}"
    return "" if clip.lost >= 0 else f"{clip.lost} lost frames"


class StageTarget(Target):
    """Clips in the worker processes of preprocessing."""

    name = "stage"
    weight = 3.0
    batch = 200
    limit = 300.0

    def prepare(self) -> None:
        write_seed_clips(self.seeds)

    def run(self, seed: int, numbers: Sequence[int], folder: Path) -> Iterator[Result]:
        """Yield the result of each clip; all are written first."""
        clear(folder)
        todo = []
        for number in numbers:
            path = write_mutant(generator(seed, self.name, number), self.seeds, folder, str(number))
            todo.append(Job(str(number), (path,), folder / "output", (path, folder / "output")))
        for _, outcome in run_local(read_all_frames, todo, 1, TimeLimits(TIMEOUT)):
            if outcome.status in FAILURES:
                reason = re.search("no progress", outcome.message)
                yield Result(reason[0] if reason else outcome.status, message_problem(outcome.message))
            elif outcome.status == CRASHED:
                yield Result(outcome.status)
            else:
                yield Result(outcome.status, "" if outcome.status in ("ok", "no frame") else outcome.message)


def clip_targets(seeds: Path) -> list[Target]:
    """Return the targets of this module."""
    return [DecoderTarget(seeds), StageTarget(seeds)]
