"""Score videos: decode, detect faces, classify and aggregate, with the stages overlapped.

    paths -> decode (worker processes, several videos concurrently) -> chunks of frames
          -> detect (one chunk at a time) -> crop and classify (all networks, faces in batches)
          -> one VideoScore per video, in order

A chunk is a limited number of bytes, and so is everything that waits between the stages: memory grows neither with the
number of videos nor with the length or the size of a video. On a CPU, a video's scores depend on that video only, to
the last bit. On a GPU, faces of several videos share a batch, which can change scores by rounding errors.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from common.allocator import return_freed_memory
from common.device import device_errors
from common.errors import ClipError, UserError
from common.files import file_facts
from common.object_store import File, Prefetcher, RemoteFile
from inference.aggregation import FRAMES, STRATEGIES
from inference.decoder import LARGE_FRAME, Decoder, SampledFrame, StartOver, VideoInfo, default_workers
from inference.ensemble import CropSpec, Ensemble
from inference.people import describe_people, link_faces
from inference.video_score import VideoScore
from preprocessing.crops import center_in_square, cut, resize_longer_side
from preprocessing.faces import Face, FaceDetector
from preprocessing.limits import Limits
from preprocessing.video import chunk_frames

if TYPE_CHECKING:
    import torch

# Frames and bytes of a chunk at most. Short chunks let detection start while the rest is decoded; a chunk has a whole
# batch for each thread of the detector.
CHUNK_FRAMES, CHUNK_BYTES = 4, 200 * 2**20
# Number of videos that may wait for a full batch.
MAX_WAITING = 16
CLASSIFIER_REMEDY = "Lower --batch-size or use --device cpu"

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class _Video:
    """A video in flight.

    Attributes:
        facts: size and SHA-256 of a file in an object store.
        status: `ok`, or the status of the error.
        times: times of the frames so far in seconds.
        size: width and height of the frames.
        faces: frame and face of each detection whose crop lies in the frame. The frame's image is dropped.
        scores: one score per network for each face that has been classified, in order.
        complete: whether the faces of all frames have been detected.
    """

    path: File
    facts: tuple[int | None, str | None] = (None, None)
    status: str = "ok"
    message: str = ""
    notes: list[str] = field(default_factory=list)
    info: VideoInfo | None = None
    times: list[float] = field(default_factory=list)
    size: tuple[int, int] | None = None
    faces: list[tuple[int, float, Face]] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    complete: bool = False
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        return self.complete and len(self.scores) == len(self.faces)

    def fail(self, status: str, message: str) -> None:
        """Give the video up."""
        self.status, self.message = status, message


@dataclass
class _Chunk:
    """Consecutive frames of a video.

    Attributes:
        frames: the frames.
        shrunk: the detector's input for each frame.
        faces: the faces of each frame, once they have been detected.
        seconds: processing time so far.
        starts_over: whether the chunks before this one do not count.
        last: whether this is the video's last chunk.
    """

    video: _Video
    frames: list[SampledFrame] = field(default_factory=list)
    shrunk: list[np.ndarray] = field(default_factory=list)
    faces: list[list[Face]] = field(default_factory=list)
    seconds: float = 0.0
    starts_over: bool = False
    last: bool = False

    @property
    def is_large(self) -> bool:
        """Whether the next chunk should not be read before this one has been processed."""
        return bool(self.frames) and self.frames[0].image.nbytes > LARGE_FRAME


class _Crops(NamedTuple):
    """The crops of a face that waits to be classified, one per crop spec of the ensemble."""

    video: _Video
    crops: dict[CropSpec, np.ndarray]


class _Batch(NamedTuple):
    """Faces that are being classified.

    Attributes:
        videos: video of each face.
        logits: result of `Ensemble.start`.
        seconds: time to start.
    """

    videos: list[_Video]
    logits: torch.Tensor
    seconds: float


class Predictor:
    """Score videos with an ensemble.

    Args:
        ensemble: the networks.
        detector: the face detector.
        strategy: name of the aggregation, a key of STRATEGIES.
        frames: number of frames sampled per video.
        decoders: each decodes one video at a time; None starts `default_workers()` with the default limits.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        detector: FaceDetector,
        strategy: str = "confident",
        frames: int = FRAMES,
        decoders: Sequence[Decoder] | None = None,
    ):
        self.ensemble = ensemble
        self.detector = detector
        self.strategy = strategy
        self.aggregate = STRATEGIES[strategy]
        self.frames = frames
        self.decoders = decoders or [Decoder(Limits()) for _ in range(default_workers())]
        self.chunk_frames = max(CHUNK_FRAMES, detector.batch * detector.threads)
        # On a CPU, the scores of a video must not depend on the videos that it shares a forward pass with.
        self.shares_batches = ensemble.device.type != "cpu"

    def predict(self, paths: Iterable[str | File], ahead: int = 0) -> Generator[VideoScore, None, None]:
        """Yield one VideoScore per path, in order. A video that cannot be read gets a status that says so.

        Args:
            paths: the videos.
            ahead: number of videos that are downloaded from an object store before a decoder is free.

        Raises:
            ScoreError: a network's output is not finite.
            DeviceError: the device fails or is out of memory.
        """
        decoding = ThreadPoolExecutor(len(self.decoders), "decode")
        detecting = ThreadPoolExecutor(1, "detect")
        files = Prefetcher((path if isinstance(path, RemoteFile) else Path(path) for path in paths), ahead)
        finished = False
        try:
            chunks = self._chunks(files, decoding)
            if self.ensemble.device.type == "cpu":  # detection and classification would compete for the same cores
                detected: Iterator[_Chunk] = map(self._detect, chunks)
            else:
                detected = _map_ahead(detecting, self._detect, chunks, 1)
            yield from map(self._result, self._classify(detected))
            finished = True
        finally:
            files.close()  # ends a thread's wait for a download
            for decoder in () if finished else self.decoders:
                decoder.kill()  # ends a thread's wait for the next frame
            for pool in (decoding, detecting):
                pool.shutdown(cancel_futures=True)

    def _chunks(self, files: Prefetcher, pool: ThreadPoolExecutor) -> Iterator[_Chunk]:
        """Yield the chunks of all videos in order. One chunk per decoder is read ahead, but not after a large one."""
        idle, paths = deque(self.decoders), iter(files)
        reading: deque[tuple[Iterator[_Chunk], Decoder, Future[_Chunk]]] = deque()

        def start_idle() -> None:
            while idle and (path := next(paths, None)):
                chunks = self._decode(_Video(path), files, decoder := idle.popleft())
                reading.append((chunks, decoder, pool.submit(next, chunks)))

        start_idle()
        while reading:
            chunks, decoder, future = reading.popleft()
            chunk = future.result()
            is_large = chunk.is_large
            if is_large:
                yield chunk
                return_freed_memory()
            if chunk.last:
                idle.append(decoder)
                start_idle()
            else:
                reading.appendleft((chunks, decoder, pool.submit(next, chunks)))
            if not is_large:
                yield chunk

    def _decode(self, video: _Video, files: Prefetcher, decoder: Decoder) -> Iterator[_Chunk]:
        """Yield the chunks of a video; at least the last one, which has no frames."""
        try:
            with files.open(video.path) as path:
                if isinstance(video.path, RemoteFile):
                    video.facts = file_facts(path)
                yield from self._decode_file(video, path, decoder)
        except ClipError as error:
            video.fail("too_large" if error.status == "too_large" else "unreadable", str(error))
        except UserError:  # the decoder cannot start, and would not for the other videos
            raise
        except Exception as error:  # an unexpected error must not end the run for the other videos
            log.exception("%s", video.path)
            video.fail("unreadable", f"{video.path}: decoding failed ({error!r})")
            decoder.kill()  # what it has not sent yet would be taken for the next video
        yield _Chunk(video, last=True)

    def _decode_file(self, video: _Video, path: Path, decoder: Decoder) -> Iterator[_Chunk]:
        """Yield the chunks of a video that have frames. Raises VideoError."""
        start = time.perf_counter()
        starts_over = False
        video.info = decoder.open(path, self.frames)
        while True:
            try:
                shrunk: deque[np.ndarray] = deque()
                for frames in chunk_frames(self._shrink(decoder.frames(), shrunk), self.chunk_frames, CHUNK_BYTES):
                    inputs = [shrunk.popleft() for _ in frames]
                    yield _Chunk(video, frames, inputs, [], time.perf_counter() - start, starts_over)
                    start, starts_over = time.perf_counter(), False
                video.notes = decoder.notes
                return
            except StartOver:
                starts_over = True

    def _shrink(self, frames: Iterator[SampledFrame], shrunk: deque[np.ndarray]) -> Iterator[SampledFrame]:
        """Yield the frames. Append the detector's input for each to `shrunk` first, while the next one is decoded."""
        for frame in frames:
            shrunk.append(self.detector.shrink(frame.image))
            yield frame
            del frame  # the caller decides how long it is kept

    def _detect(self, chunk: _Chunk) -> _Chunk:
        """Detect the faces in the frames of a chunk."""
        video, start = chunk.video, time.perf_counter()
        if not chunk.frames or video.status != "ok":
            return chunk
        try:
            with device_errors("Lower --workers or use --device cpu"):
                chunk.faces = self.detector.detect([frame.image for frame in chunk.frames], chunk.shrunk)
        except UserError:  # the device fails, and would fail for the other videos
            raise
        except Exception as error:
            log.exception("%s", video.path)
            video.fail("unreadable", f"{video.path}: face detection failed ({error!r})")
        chunk.shrunk = []
        chunk.seconds += time.perf_counter() - start
        return chunk

    def _classify(self, chunks: Iterable[_Chunk]) -> Iterator[_Video]:
        """Score the faces of all chunks in batches. Yield the videos in order as they are finished."""
        videos: deque[_Video] = deque()
        waiting: deque[_Crops] = deque()
        started: deque[_Batch] = deque()  # a GPU scores a batch while the next one is cropped
        for chunk in chunks:
            video = chunk.video
            if not videos or videos[-1] is not video:
                videos.append(video)
            if chunk.starts_over:
                waiting = deque(crops for crops in waiting if crops.video is not video)
                self._finish(started)
                video.faces, video.scores, video.times = [], [], []
            for crops in self._crop(chunk):
                waiting.append(crops)
                if len(waiting) == self.ensemble.batch_size:
                    self._start(waiting, started)
                    self._finish(started, 1 if self.shares_batches else 0)
            chunk.frames.clear()  # the loops that produce chunks still refer to this one
            video.complete, video.seconds = chunk.last, video.seconds + chunk.seconds
            if len(videos) > MAX_WAITING or (chunk.last and not self.shares_batches):
                self._start(waiting, started)
                self._finish(started)
            while videos and videos[0].finished:
                yield videos.popleft()
        self._start(waiting, started)
        self._finish(started)
        yield from videos

    def _crop(self, chunk: _Chunk) -> Iterator[_Crops]:
        """Add the faces of a chunk to its video and yield their crops, one face at a time: a crowd has thousands."""
        video, specs = chunk.video, self.ensemble.crop_specs
        video.times += [frame.time for frame in chunk.frames]
        for frame, faces in zip(chunk.frames, chunk.faces or [[] for _ in chunk.frames], strict=True):
            video.size = video.size or frame.image.shape[1::-1]
            for face in faces:
                crops = [cut(frame.image, spec.rule.window(face.box)) for spec in specs]
                inside = [crop for crop in crops if crop is not None]
                if len(inside) < len(specs):  # the box lies outside the frame
                    continue
                video.faces.append((frame.index, frame.time, face))
                squares = (
                    center_in_square(resize_longer_side(crop, spec.size), spec.size)
                    for spec, crop in zip(specs, inside, strict=True)
                )
                yield _Crops(video, dict(zip(specs, squares, strict=True)))

    def _start(self, waiting: deque[_Crops], started: deque[_Batch]) -> None:
        """Start to score the waiting faces as one batch."""
        if not waiting:
            return
        start = time.perf_counter()
        batch = {spec: np.stack([face.crops[spec] for face in waiting]) for spec in self.ensemble.crop_specs}
        with device_errors(CLASSIFIER_REMEDY):
            logits = self.ensemble.start(batch)
        started.append(_Batch([face.video for face in waiting], logits, time.perf_counter() - start))
        waiting.clear()

    def _finish(self, started: deque[_Batch], keep: int = 0) -> None:
        """Add the scores of the batches, except for the last `keep` ones, to their videos."""
        while len(started) > keep:
            batch, start = started.popleft(), time.perf_counter()
            with device_errors(CLASSIFIER_REMEDY):
                scores = self.ensemble.finish(batch.logits)
            seconds = batch.seconds + time.perf_counter() - start
            for video, row in zip(batch.videos, scores, strict=True):
                video.scores.append(row)
                video.seconds += seconds / len(scores)

    def _result(self, video: _Video) -> VideoScore:
        result = VideoScore(
            video.path,
            video.status,
            video.message,
            video.notes,
            frames=len(video.times),
            seconds=round(video.seconds, 3),
            bytes=video.facts[0],
            sha256=video.facts[1],
        )
        if video.info and video.size:
            result.fps, result.duration = round(video.info.fps, 3), round(video.info.duration, 3)
            (result.width, result.height), result.codec = video.size, video.info.codec
        if video.status != "ok":
            return result
        if not video.faces:
            result.status, result.message = "no_face", f"no face in {len(video.times)} frames"
            return result
        scores = np.stack(video.scores)
        result.model_scores = dict(zip(self.ensemble.names, map(self.aggregate, scores.T), strict=True))
        result.score = float(np.mean(list(result.model_scores.values())))
        faces = zip(video.faces, scores, strict=True)
        result.faces = [self._face(*face, row) for face, row in sorted(faces, key=lambda pair: pair[0][0])]
        persons = link_faces(result.faces)
        for entry, person in zip(result.faces, persons, strict=True):
            entry["person"] = person
        result.people = describe_people(result.faces, persons, sorted(video.times), self.aggregate)
        return result

    def _face(self, index: int, seconds: float, face: Face, scores: np.ndarray) -> dict[str, Any]:
        """Return a face's entry in --details."""
        return {
            "frame": index,
            "time": round(seconds, 3),
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
