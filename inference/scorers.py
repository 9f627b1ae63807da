"""Where videos are scored: in this process, or by workers on a Ray cluster."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from common.allocator import keep_freed_memory
from common.executors import ray_resources
from common.object_store import File
from common.ray_cluster import Resources
from inference.details import describe_predictor
from inference.loading import load_predictor
from inference.video_score import VideoScore
from preprocessing.limits import Limits

if TYPE_CHECKING:
    from inference.predictor import Predictor

# Number of videos that are downloaded from an object store while others are scored.
AHEAD = 8


class Scorer(Protocol):
    """Scores videos."""

    def describe(self, is_known: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        """Return what the scores depend on, see `inference.details.describe_predictor`.

        Args:
            is_known: tells whether an earlier run that is to be resumed had a description. If workers differ, only
                those are used that have the returned one.
        """

    def score(self, videos: Mapping[str, File]) -> Iterator[tuple[str, VideoScore]]:
        """Yield the name and the result of each video, in any order."""

    def close(self) -> None:
        """Stop the workers."""


def choose_scorer(args: argparse.Namespace, checkpoints: Sequence[Path], limits: Limits) -> Scorer:
    """Return the scorer that the options of predict_folder.py choose.

    Raises:
        UserError: Ray is not installed, or there is no cluster.
        CheckpointError: a checkpoint cannot be used.
        DeviceError: the device is not available, or too small for the networks.
        BackendError: the back-end is not installed, does not support the device, or computes wrong logits.
    """
    load = partial(
        load_predictor,
        checkpoints,
        args.device,
        args.precision,
        strategy=args.strategy,
        frames=args.frames,
        detector_scale=None if args.detector_scale == "auto" else args.detector_scale,
        batch_size=args.batch_size,
        limits=limits,
        backend=args.backend,
    )
    if args.executor == "local":
        return LocalScorer(load(workers=args.workers))
    resources = ray_resources(args, uses_device=True)
    return RayScorer(partial(load, workers=resources.cpus), resources, args.workers, limits.clip_timeout)


class LocalScorer:
    """Scores videos in this process (a Scorer)."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self._results: Generator[VideoScore, None, None] | None = None

    def describe(self, is_known: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:  # noqa: ARG002
        return describe_predictor(self.predictor)

    def score(self, videos: Mapping[str, File]) -> Iterator[tuple[str, VideoScore]]:
        self._results = self.predictor.predict(videos.values(), AHEAD)
        return zip(videos, self._results, strict=True)

    def close(self) -> None:
        if self._results:
            self._results.close()


class RayScorer:
    """Scores videos with workers on the Ray cluster that has been joined (a Scorer).

    Args:
        load: loads a predictor, in its worker.
        resources: what is reserved for each worker.
        workers: number of workers; None for as many as fit on the nodes.
        clip_timeout: limit of the time to decode a video in seconds.
    """

    def __init__(self, load: Callable[[], Predictor], resources: Resources, workers: int | None, clip_timeout: float):
        from common.ray_pool import Pool

        self.pool = Pool(partial(VideoWorker, load), resources, workers, clip_timeout)

    def describe(self, is_known: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
        return self.pool.describe(is_known)

    def score(self, videos: Mapping[str, File]) -> Iterator[tuple[str, VideoScore]]:
        names = list(videos)
        for index, result in self.pool.run(list(videos.values())):
            path = videos[names[index]]
            message = f"{path}: its worker died several times (out of memory?)"
            yield names[index], result or VideoScore(path, "unreadable", message)

    def close(self) -> None:
        self.pool.close()


class VideoWorker:
    """Scores videos on a node (a `common.ray_pool.Worker`)."""

    def __init__(self, load: Callable[[], Predictor]):
        keep_freed_memory()
        self.predictor = load()

    def describe(self) -> Mapping[str, Any]:
        return describe_predictor(self.predictor)

    def run(self, items: Iterator[File]) -> Iterator[VideoScore]:
        return self.predictor.predict(items)
