"""Write copies of videos with the people's bounding boxes, numbers and scores drawn over them.

    DIR/<filename>                  the copy of a video; `.mp4` is appended to other suffixes: DIR/clip.mov.mp4
    DIR/progress/<filename>.json    what is drawn
    DIR/progress/progress.jsonl     status records; those of shards are beside it

The copies are H.264 in MP4. Their frames have the size of the upright frames (an odd row or column is repeated) and
their times since the first one.
"""

from __future__ import annotations

import bisect
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.video.reformatter import Colorspace

from common import jobs
from common.errors import ClipError, UserError
from common.files import append, atomic_file, atomic_write, lock_path, make_folder, temporary_path
from common.journal import journal_files
from common.local_executor import run_local
from common.object_store import File, local_copy
from common.outcome import FAILED, Job, Outcome
from common.shards import Shard
from common.text import plural
from common.watchdog import TimeLimits
from inference.colors import score_color
from inference.people import mean_score
from inference.sound import Sound, error_text
from preprocessing.limits import MAX_PIXELS, Limits
from preprocessing.video import Clip, VideoError, iter_frames
from preprocessing.x264 import reproducible_options

# Version of the copies. Increase it when they change, to write them again.
VERSION = 1
SUFFIX = ".mp4"
PROGRESS = "progress"
ANNOTATED = ("ok", "no_face")
TIME_BASE = Fraction(1, 90000)  # seconds
CRF = 20
# Longest file name on common file systems, in bytes.
MAX_NAME = 255
# Frame height or width, whichever is smaller, per pixel of the line width and of the text's height.
SIDE_PER_LINE, SIDE_PER_TEXT = 270, 36
MIN_LINE, MIN_TEXT = 3, 9
FONT, FONT_HEIGHT = cv2.FONT_HERSHEY_SIMPLEX, 21  # height of a digit at scale 1 in pixels
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


log = logging.getLogger(__name__)


class Sighting(NamedTuple):
    """A person's face in a sampled frame.

    Attributes:
        frame: index of the frame.
        box: xmin, ymin, xmax, ymax in pixels of the frame.
        score: mean of the models' scores.
    """

    frame: int
    box: Sequence[float]
    score: float


class Label(NamedTuple):
    """What is drawn for a person in a frame."""

    person: int
    box: np.ndarray
    score: float


# By person: the sightings in each run of sampled frames that show the person.
People = Mapping[int, Sequence[Sequence[Sighting]]]


def annotate_videos(
    videos: Mapping[str, File],
    records: Sequence[dict[str, Any]],
    folder: Path,
    limits: Limits,
    workers: int | None,
    shard: Shard | None = None,
    merge: bool = False,
) -> dict[str, Outcome]:
    """Write an annotated copy of each video that was read, in worker processes, and return the outcomes by filename.

    A copy is written again if the video, what is drawn or this module's VERSION has changed, if it is missing, or if
    it failed.

    Args:
        videos: the files by filename.
        records: records of --details; only those with a status in ANNOTATED are used.
        folder: output folder, see above.
        limits: what decoding a video may take.
        workers: number of worker processes; None for one per CPU core.
        shard: the shard that the records are.
        merge: write no copy, but return the outcomes if there is one of each video.

    Raises:
        StageError: the run cannot continue, or not all copies have been written for `merge`.
        OutputError: an output cannot be written.
    """
    records = [record for record in records if record["status"] in ANNOTATED]
    paths = {name: (path, folder / PROGRESS / f"{name}.json") for name, path in output_paths(folder, videos).items()}
    # The folder of the progress stands for the output folder, because status records are kept beside the latter.
    progress = folder / PROGRESS
    journal = jobs.journal_path(progress, shard)
    written = {journal, *chain.from_iterable(paths.values())}
    written |= {*map(temporary_path, written), lock_path(jobs.journal_path(progress))}
    make_folder(progress)
    append(journal, b"")  # for `check_folder` of other shards
    todo, outcomes = [], {}
    for record in records:
        name = record["filename"]
        output, drawn = paths[name]
        if problem := _problem(name, paths[name], written):
            outcomes[name] = Outcome(FAILED, f"{name}: {problem}")
            log.warning("%s: no annotated copy: %s", name, problem)
            continue
        make_folder(drawn.parent)
        _update(drawn, json.dumps(find_people(record)))
        todo.append(Job(name, (videos[name], drawn), output, (videos[name], output, drawn, limits.pixels)))
    settings = {"stage": "annotate", "version": VERSION}
    execute = partial(run_local, limits=TimeLimits(limits.timeout, limits.clip_timeout))
    return outcomes | jobs.run(
        annotate,
        todo,
        progress,
        settings,
        workers,
        retry_failed=not merge,
        execute=execute,
        shard=shard,
        merge=merge,
    )


def check_folder(folder: Path, videos: Mapping[str, File], outputs: Iterable[Path]) -> None:
    """Check that copies replace nothing but copies of an earlier run.

    Args:
        folder: output folder.
        videos: the files by filename.
        outputs: other outputs of the run.

    Raises:
        UserError: the folder is a file or has other content, or a copy would replace a video or another output.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--annotate {folder}: is not a folder. Choose another one")
    # Another shard may be starting: it makes the folder of the progress, then its journal, then anything else.
    places = filter(Path.is_dir, (folder, folder / PROGRESS))
    content = {path for place in places for path in place.iterdir()} - {folder / PROGRESS}
    if content and not any(path.is_file() for path in journal_files(jobs.journal_path(folder / PROGRESS))):
        raise UserError(f"--annotate {folder}: is not empty, and not from an earlier run. Choose a new folder")
    copies = set(map(os.path.realpath, (folder, *output_paths(folder, filter(_is_relative, videos)).values())))
    local = [video for video in videos.values() if isinstance(video, Path)]
    if not copies.isdisjoint(map(os.path.realpath, (*local, *outputs))):
        raise UserError(f"--annotate {folder}: would replace a video or another output. Choose another folder")


def output_paths(folder: Path, filenames: Iterable[str]) -> dict[str, Path]:
    """Return the path of each video's copy by filename. No two are the same."""
    filenames = set(filenames)
    paths = {}
    for filename in filenames:
        name = filename
        while not name.endswith(SUFFIX) or (name != filename and name in filenames):
            name += SUFFIX
        paths[filename] = folder / name
    return paths


def _is_relative(filename: str) -> bool:
    """Return whether a name, which may come from an object store, is a path that stays below a folder."""
    return "\0" not in filename and not {"", ".", ".."} & set(filename.split("/"))


def _problem(filename: str, paths: Iterable[Path], written: set[Path]) -> str:
    """Return why the files of a video cannot be written, for its name; empty if they can. `written`: all files."""
    if not _is_relative(filename):
        return "the name is not that of a file in a folder. Rename the video"
    for path in paths:
        if len(os.fsencode(temporary_path(path).name)) > MAX_NAME:
            return "the name is too long for a copy. Rename the video"
        if not written.isdisjoint(path.parents):
            return "its folder would have the name of another output. Rename the folder"
    return ""


def find_people(record: Mapping[str, Any]) -> dict[int, list[list[Sighting]]]:
    """Return the sightings of each person in a record, grouped by the runs of sampled frames in `seen`."""
    people = {}
    for person in record["people"]:
        number = person["person"]
        faces = [face for face in record["faces"] if face["person"] == number]
        people[number] = [
            [
                Sighting(face["frame"], face["box"], mean_score(face))
                for face in sorted(faces, key=lambda face: face["frame"])
                if first <= face["time"] <= last
            ]
            for first, last in person["seen"]
        ]
    return people


def find_labels(people: People, times: Sequence[float], frame: int) -> list[Label]:
    """Return what to draw in a frame, the highest score last: boxes and scores interpolated linearly over time.

    Args:
        people: result of `find_people`.
        times: times of all frames in seconds.
        frame: index of the frame.
    """
    labels = []
    for person, runs in people.items():
        for run in runs:
            if run and run[0].frame <= frame <= run[-1].frame and run[-1].frame < len(times):
                known = [times[sighting.frame] for sighting in run]
                after = min(max(bisect.bisect_left(known, times[frame]), 1), len(run) - 1)
                pair = run[after - 1 : after + 1] if len(run) > 1 else run
                moments = [times[sighting.frame] for sighting in pair]
                values = np.array([[*sighting.box, sighting.score] for sighting in pair])
                *box, score = (float(np.interp(times[frame], moments, column)) for column in values.T)
                labels.append(Label(person, np.array(box), score))
    return sorted(labels, key=lambda label: label.score)


def draw(image: np.ndarray, labels: Iterable[Label]) -> None:
    """Draw boxes and labels over a frame, RGB uint8 (height, width, 3), in place."""
    height, width = image.shape[:2]
    side = min(height, width)
    line = max(MIN_LINE, round(side / SIDE_PER_LINE)) | 1  # only odd widths are centered
    scale = max(MIN_TEXT, side / SIDE_PER_TEXT) / FONT_HEIGHT
    stroke = max(1, round(scale * 1.6))
    for label in labels:
        # A side beyond the frame stays outside; OpenCV need not see how far.
        x0, y0, x1, y1 = np.clip(label.box, -4 * line, np.array([width, height] * 2) + 4 * line).round().astype(int)
        color = score_color(label.score)
        cv2.rectangle(image, (x0, y0), (x1, y1), BLACK, line + 2)
        cv2.rectangle(image, (x0, y0), (x1, y1), color, line)
        text = f"#{label.person} {label.score:.2f}"
        (text_width, text_height), _ = cv2.getTextSize(text, FONT, scale, stroke)
        margin = max(2, text_height // 4)
        box_width, box_height = text_width + 2 * margin, text_height + 2 * margin
        # Above the box, or inside it at the top of the frame.
        left = max(0, min(x0 - line // 2, width - box_width))
        top = max(0, min(y0 - line // 2 - box_height, height - box_height))
        cv2.rectangle(image, (left, top), (left + box_width, top + box_height), color, cv2.FILLED)
        ink = BLACK if np.dot(color, (0.299, 0.587, 0.114)) > 115 else WHITE
        origin = (left + margin, top + margin + text_height)
        cv2.putText(image, text, origin, FONT, scale, ink, stroke, cv2.LINE_AA)


def annotate(video: File, output: Path, drawn: Path, max_pixels: int = MAX_PIXELS) -> Outcome:
    """Write the annotated copy of one video (a job).

    Args:
        video: the video.
        output: the copy.
        drawn: file with the result of `find_people`.
        max_pixels: largest frame.
    """
    runs = json.loads(drawn.read_text())
    people = {int(number): [[Sighting(*face) for face in run] for run in runs[number]] for number in runs}
    make_folder(output.parent)
    with local_copy(video) as path:
        return _annotate(Clip(path, max_pixels), people, output)


def _annotate(clip: Clip, people: People, output: Path) -> Outcome:
    notes: list[str] = []
    with atomic_file(output) as temporary:
        try:
            frames = _write(clip, people, temporary, notes)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, OSError):  # of the output; that of an input is a ClipError
                raise
            notes = [f"written without sound, which is damaged ({error_text(error)})"]
            frames = _write_silent(clip, people, temporary)
    if clip.total > frames:
        notes.append(f"{plural(clip.total - frames, 'frame')} cannot be decoded")
    return Outcome("ok", "; ".join(clip.notes + notes), {"frames": frames})


def _update(path: Path, content: str) -> None:
    """Write a file unless it has this content, so that its modification time tells when the content changed."""
    try:
        if path.read_text() == content:
            return
    except (OSError, ValueError):
        pass
    atomic_write(path, content)


def _write_silent(clip: Clip, people: People, path: Path) -> int:
    """Write the copy without sound. Return the number of frames."""
    try:
        return _write(clip, people, path)
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, OSError):
            raise
        raise ClipError(clip.path, f"cannot be encoded as H.264 ({error_text(error)})", FAILED) from None


def _write(clip: Clip, people: People, path: Path, notes: list[str] | None = None) -> int:
    """Write the copy, with sound if `notes` is a list, to which notes are added. Return the number of frames."""
    frames, last, pts = 0, -1, -1
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        options = {**reproducible_options(CRF), "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=clip.rate, options=options)
        stream.codec_context.time_base = TIME_BASE
        sound = Sound(clip, container, notes) if notes is not None else None
        for source in iter_frames(clip, range(clip.total)):
            if source.index <= last:  # decoded in the second pass over a damaged video; too late
                continue
            last = source.index
            height, width = source.image.shape[:2]
            image: Any = cv2.copyMakeBorder(source.image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            draw(image, find_labels(people, clip.times, last))
            if not frames:
                stream.width, stream.height, stream.pix_fmt = image.shape[1], image.shape[0], "yuv420p"
                stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU601, 1
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                stream.width, stream.height, "yuv420p", dst_colorspace=Colorspace.ITU601, threads=1
            )
            time = clip.times[last] - clip.times[0]
            until = clip.times[last + 1] - clip.times[0] if last + 1 < clip.total else clip.duration
            pts = max(pts + 1, round(time / TIME_BASE))
            frame.time_base, frame.pts, frame.duration = TIME_BASE, pts, max(1, round(until / TIME_BASE) - pts)
            container.mux(stream.encode(frame))
            if sound:
                sound.mux(until)
            frames += 1
        if not frames:
            raise VideoError(clip.path, "no frame can be decoded. The file is damaged; download it again")
        container.mux(stream.encode(None))
        if sound:
            sound.close()
    return frames
