"""Score videos: decode, detect faces, classify and aggregate, with the stages overlapped.

    paths -> decode (threads, several videos concurrently) -> detect (one video at a time)
          -> classify (all networks, faces batched across videos) -> one VideoScore per video, in order

The number of videos in flight is limited, so memory does not grow with the number of videos. Faces of several videos
share a batch, but a video's score depends on that video only.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from inference.aggregation import FRAMES, STRATEGIES
from inference.ensemble import BATCH_SIZE, CropSpec, Ensemble, ScoreError
from preprocessing.crops import center_in_square, cut, resize_longer_side
from preprocessing.faces import Face, FaceDetector
from preprocessing.video import Clip, Frame, VideoError, sample_frames

# Score of a video that is unreadable or has no face.
UNKNOWN = 0.5

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class VideoScore:
    """The result for one video.

    Attributes:
        path: the file.
        status: `ok`, `no_face` (no face was found) or `unreadable`.
        message: why the status is not `ok`.
        score: probability that the video is fake, 0 to 1; UNKNOWN unless the status is `ok`.
        frames: number of frames that were analyzed.
        fps: average frame rate; None, like the next three, if the video could not be decoded.
        duration: length in seconds.
        width: width in pixels, after rotation.
        height: height in pixels, after rotation.
        faces: one dict per face, see docs/formats.md.
        seconds: processing time, summed over the stages.
    """

    path: Path
    status: str
    message: str = ""
    score: float = UNKNOWN
    frames: int = 0
    fps: float | None = None
    duration: float | None = None
    width: int | None = None
    height: int | None = None
    faces: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class _Job:
    """A video in flight.

    Attributes:
        frames: the sampled frames; emptied after face detection.
        shrunk: the detector's input for each frame; emptied after face detection.
        size: width and height of the frames.
        faces: frame index and face of each detection.
        crops: one crop per face for each of the ensemble's crop specs.
        scores: one score per network for each face that has been classified, in order.
    """

    path: Path
    error: str = ""
    clip: Clip | None = None
    frames: list[Frame] = field(default_factory=list)
    shrunk: list[np.ndarray] = field(default_factory=list)
    frame_count: int = 0
    size: tuple[int, int] | None = None
    faces: list[tuple[int, Face]] = field(default_factory=list)
    crops: dict[CropSpec, list[np.ndarray]] = field(default_factory=dict)
    scores: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        return len(self.scores) == len(self.faces)


class Predictor:
    """Score videos with an ensemble.

    Args:
        ensemble: the networks.
        detector: the face detector.
        strategy: name of the aggregation, a key of STRATEGIES.
        frames: number of frames sampled per video.
        workers: number of videos decoded concurrently; None chooses by the number of CPU cores.
        batch_size: number of faces per forward pass; None chooses by the device.
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
        """Yield one VideoScore per path, in order. A video that cannot be read gets the status `unreadable`.

        Raises:
            ScoreError: a network's output is not finite, or the device is out of memory.
        """
        decoders = ThreadPoolExecutor(self.workers, "decode")
        detectors = ThreadPoolExecutor(1, "detect")
        try:
            decoded = _map_ahead(decoders, self._decode, map(Path, paths), self.workers)
            if self.ensemble.device.type == "cpu":  # detection and classification would compete for the same cores
                detected: Iterator[_Job] = map(self._detect, decoded)
            else:
                detected = _map_ahead(detectors, self._detect, decoded, 1)
            yield from self._classify(detected)
        except torch.OutOfMemoryError:
            raise ScoreError("the device is out of memory. Lower --batch-size or use --device cpu") from None
        finally:
            for pool in (decoders, detectors):
                pool.shutdown(cancel_futures=True)

    def _decode(self, path: Path) -> _Job:
        job, start = _Job(path), time.perf_counter()
        try:
            job.clip = Clip(path)
            job.frames = sample_frames(job.clip, self.frames)
            job.size = job.frames[0].image.shape[1::-1]
            job.shrunk = [self.detector.shrink(frame.image) for frame in job.frames]
        except VideoError as error:
            job.error = str(error)
        except Exception as error:  # an unexpected error must not end the run for the other videos
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
        specs = self.ensemble.crop_specs
        job.crops = {spec: [] for spec in specs}
        for frame, faces in zip(job.frames, self.detector.detect(images, job.shrunk), strict=True):
            for face in faces:
                crops = [cut(frame.image, spec.rule.window(face.box)) for spec in specs]
                inside = [crop for crop in crops if crop is not None]
                if len(inside) < len(specs):  # the box lies outside the frame
                    continue
                job.faces.append((frame.index, face))
                for spec, crop in zip(specs, inside, strict=True):
                    job.crops[spec].append(center_in_square(resize_longer_side(crop, spec.size), spec.size))

    def _classify(self, jobs: Iterable[_Job]) -> Iterator[VideoScore]:
        """Score the jobs' faces in batches and yield the results in the order of the jobs."""
        waiting: deque[_Job] = deque()
        faces: deque[tuple[_Job, int]] = deque()  # not scored yet: the job and the face's index in it
        for job in jobs:
            waiting.append(job)
            faces.extend((job, index) for index in range(len(job.faces)))
            while len(faces) >= self.batch_size:
                self._score([faces.popleft() for _ in range(self.batch_size)])
            if len(waiting) > self.batch_size:  # limits the number of videos that wait for a full batch
                self._score([faces.popleft() for _ in range(len(faces))])
            while waiting and waiting[0].finished:
                yield self._result(waiting.popleft())
        self._score(list(faces))
        yield from map(self._result, waiting)

    def _score(self, faces: list[tuple[_Job, int]]) -> None:
        """Score a batch of faces and add the scores to their jobs."""
        if not faces:
            return
        start = time.perf_counter()
        batch = {spec: np.stack([job.crops[spec][index] for job, index in faces]) for spec in self.ensemble.crop_specs}
        for (job, _), scores in zip(faces, self.ensemble.score(batch), strict=True):
            job.scores.append(scores)
            job.seconds += (time.perf_counter() - start) / len(faces)

    def _result(self, job: _Job) -> VideoScore:
        result = VideoScore(job.path, "ok", frames=job.frame_count, seconds=round(job.seconds, 3))
        if job.clip and job.size:
            result.fps, result.duration = round(float(job.clip.rate), 3), round(job.clip.duration, 3)
            result.width, result.height = job.size
        if job.error:
            result.status, result.message = "unreadable", job.error
        elif not job.faces:
            result.status, result.message = "no_face", f"no face in {job.frame_count} frames"
        else:
            scores = np.stack(job.scores)
            result.score = float(np.mean([self.aggregate(column) for column in scores.T]))
            result.faces = [
                self._face(job, index, face, row) for (index, face), row in zip(job.faces, scores, strict=True)
            ]
        return result

    def _face(self, job: _Job, index: int, face: Face, scores: np.ndarray) -> dict[str, Any]:
        """Return a face's entry in --details. Its time is relative to the first frame."""
        times = job.clip.times if job.clip else []
        return {
            "frame": index,
            "time": round(times[index] - times[0], 3),
            "box": [round(float(corner), 2) for corner in face.box],
            "probability": face.probability,  # kept for scripts that read it; easily mistaken for the score
            "detector_confidence": face.probability,
            "scores": dict(zip(self.ensemble.names, scores.tolist(), strict=True)),
        }


def _map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """Map a function in a thread pool; yield results in order, with up to `depth` items submitted ahead."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
