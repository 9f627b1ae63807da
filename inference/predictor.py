"""From clips to scored videos: decoding, face detection and classification, overlapped.

    paths -> decode (threads, several clips at once) -> detect (a clip's frames together)
          -> classify (faces batched across clips, all networks) -> one VideoScore a clip, in order

Only a fixed number of clips is under way at a time, so memory does not grow with their number. What is
computed for a video depends on nothing but the video: batches mix faces, not results.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from inference.aggregation import STRATEGIES
from inference.ensemble import BATCH_SIZE, CropSize, Ensemble, ScoreError
from inference.options import FRAMES
from preprocessing.crops import center_in_square, cut, resize_longer_side
from preprocessing.faces import Face, FaceDetector
from preprocessing.video import Frame, VideoError, sample_frames

# The score of a video that nothing is known about.
UNKNOWN = 0.5

log = logging.getLogger(__name__)
Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass
class VideoScore:
    """The answer for one video.

    status: `ok`, `no_face` (read, but no face was found) or `unreadable`; `message` says why.
    score: probability that the video is fake, 0 to 1; UNKNOWN unless the status is `ok`.
    frames: number of frames looked at.
    faces: a dict a face: `frame` (index), `box` (xmin, ymin, xmax, ymax in pixels of the frame),
    `probability` (the detector's), `scores` (by network).
    seconds: time spent on this video.
    """

    path: Path
    status: str
    message: str = ""
    score: float = UNKNOWN
    frames: int = 0
    faces: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class _Job:
    """A video on its way through the stages."""

    path: Path
    error: str = ""
    frames: list[Frame] = field(default_factory=list)
    shrunk: list[np.ndarray] = field(default_factory=list)
    frame_count: int = 0
    faces: list[tuple[int, Face]] = field(default_factory=list)
    crops: dict[CropSize, list[np.ndarray]] = field(default_factory=dict)
    scores: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        return len(self.scores) == len(self.faces)


class Predictor:
    """Scores videos with an ensemble.

    `workers`: clips decoded at once. `batch_size`: faces a forward pass. None takes what suits the machine.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        detector: FaceDetector,
        strategy: str = "confident",
        frames: int = FRAMES,
        workers: int | None = None,
        batch_size: int | None = None,
    ):
        self.ensemble = ensemble
        self.detector = detector
        self.aggregate = STRATEGIES[strategy]
        self.frames = frames
        self.workers = workers or max(1, min(8, (torch.get_num_threads() + 1) // 2))
        self.batch_size = batch_size or BATCH_SIZE.get(ensemble.device.type, 1)

    def predict(self, paths: Iterable[str | Path]) -> Iterator[VideoScore]:
        """One VideoScore a path, in the order given.

        A clip that cannot be read is answered with its status. Raises ScoreError where a network breaks down or
        the device's memory is short.
        """
        with ThreadPoolExecutor(self.workers, "decode") as pool:
            try:
                jobs = map(self._detect, _ahead(pool, self._decode, map(Path, paths), self.workers))
                if self.ensemble.device.type != "cpu":
                    # On a CPU both stages would fight for the same cores.
                    jobs = _in_background(jobs)
                yield from self._classify(jobs)
            except torch.OutOfMemoryError:
                raise ScoreError(
                    "the device's memory does not suffice; lower --batch-size, or take --device cpu"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)

    def _decode(self, path: Path) -> _Job:
        job, start = _Job(path), time.perf_counter()
        try:
            job.frames = sample_frames(path, self.frames)
            job.shrunk = [self.detector.shrink(frame.image) for frame in job.frames]
        except VideoError as error:
            job.error = str(error)
        except Exception as error:  # a clip that nobody foresaw must not end the run of all the others
            log.exception("%s", path)
            job.error = f"{path}: decoding failed ({error!r})"
        job.frame_count = len(job.frames)
        job.seconds += time.perf_counter() - start
        return job

    def _detect(self, job: _Job) -> _Job:
        start = time.perf_counter()
        try:
            self._find_faces(job)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            log.exception("%s", job.path)
            job.error = f"{job.path}: face detection failed ({error!r})"
            job.faces = []
        job.frames, job.shrunk = [], []
        job.seconds += time.perf_counter() - start
        return job

    def _find_faces(self, job: _Job) -> None:
        images = [frame.image for frame in job.frames]
        job.crops = {way: [] for way in self.ensemble.inputs}
        for frame, faces in zip(job.frames, self.detector.detect(images, job.shrunk), strict=True):
            for face in faces:
                parts = [cut(frame.image, rule.window(face.box)) for rule, _ in self.ensemble.inputs]
                if any(part is None for part in parts):  # the box lies outside the frame
                    continue
                job.faces.append((frame.index, face))
                for (rule, size), part in zip(self.ensemble.inputs, parts, strict=True):
                    job.crops[rule, size].append(center_in_square(resize_longer_side(part, size), size))

    def _classify(self, jobs: Iterable[_Job]) -> Iterator[VideoScore]:
        unanswered: deque[_Job] = deque()
        faces: deque[tuple[_Job, int]] = deque()
        for job in jobs:
            unanswered.append(job)
            faces.extend((job, number) for number in range(len(job.faces)))
            while len(faces) >= self.batch_size:
                self._score([faces.popleft() for _ in range(self.batch_size)])
            if len(unanswered) > self.batch_size:  # faces too few to fill a batch hold up no more clips than that
                self._score([faces.popleft() for _ in range(len(faces))])
            while unanswered and unanswered[0].finished:
                yield self._answer(unanswered.popleft())
        self._score(list(faces))
        yield from map(self._answer, unanswered)

    def _score(self, faces: list[tuple[_Job, int]]) -> None:
        """Score a batch of faces, each a job and the face's number in it, and hand the scores to the jobs."""
        if not faces:
            return
        start = time.perf_counter()
        batch = {way: np.stack([job.crops[way][number] for job, number in faces]) for way in self.ensemble.inputs}
        for (job, _), scores in zip(faces, self.ensemble.score(batch), strict=True):
            job.scores.append(scores)
            job.seconds += (time.perf_counter() - start) / len(faces)

    def _answer(self, job: _Job) -> VideoScore:
        common = {"path": job.path, "frames": job.frame_count, "seconds": round(job.seconds, 3)}
        if job.error:
            return VideoScore(status="unreadable", message=job.error, **common)
        if not job.faces:
            return VideoScore(status="no_face", message=f"no face in {job.frame_count} frames", **common)
        scores = np.stack(job.scores)
        return VideoScore(
            status="ok",
            score=float(np.mean([self.aggregate(column) for column in scores.T])),
            faces=[
                {
                    "frame": index,
                    "box": [round(float(corner), 2) for corner in face.box],
                    "probability": face.probability,
                    "scores": dict(zip(self.ensemble.names, row.tolist(), strict=True)),
                }
                for (index, face), row in zip(job.faces, scores, strict=True)
            ],
            **common,
        )


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """Map in order, with `depth` items under way, or waiting, beyond the one that is taken."""
    pending = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _in_background(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, made by another thread, one ahead. An exception there is raised here."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
    stop, end = threading.Event(), object()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not stop.is_set():
            try:
                return ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(end)
        except BaseException as error:  # noqa: BLE001 it is raised again where the items are taken
            put(end, error)

    thread = threading.Thread(target=work, name="detect", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()
