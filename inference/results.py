"""Score videos from Python and return what predict_folder.py writes to --details."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.journal import stamp_of
from inference.details import complete, describe_predictor, describe_run
from inference.loading import DEFAULT_MODEL, load_predictor
from inference.submission import find_videos, to_record, warn_of_unlisted


class Results(NamedTuple):
    """The results of a run.

    Attributes:
        header: what is needed to repeat the run, see docs/formats.md.
        records: one dict per video, sorted by name, see docs/formats.md.
        videos: path by file name.
    """

    header: dict[str, Any]
    records: list[dict[str, Any]]
    videos: dict[str, Path]


def predict(
    videos: str | Path,
    models: str | Path | Sequence[str | Path] = (DEFAULT_MODEL,),
    aggregate: str = "video",
    **options: Any,
) -> Results:
    """Score a video, or the videos of a folder and its subfolders.

    Args:
        videos: the video or folder.
        models: checkpoints; by default the embedded model.
        aggregate: how a video is scored: from all its faces (`video`) or by its most suspicious person (`person`).
        options: keyword arguments of `inference.loading.load_predictor`, e.g. device="cpu" or frames=8.

    Raises:
        UserError: an option has a value that does not exist.
        UsageError: `videos` does not exist or contains no video.
        CheckpointError: a checkpoint cannot be used.
        DeviceError: the device is not available or fails.
    """
    found = find_videos(Path(videos))
    warn_of_unlisted(found)
    predictor = load_predictor(models, **options)
    arguments = {"videos": videos, "models": models, "aggregate": aggregate, **options}
    header = describe_run(arguments, describe_predictor(predictor), aggregate)
    records = []
    stamps = {name: stamp_of(path) for name, path in found.videos.items()}
    for (name, path), result in zip(found.videos.items(), predictor.predict(found.videos.values()), strict=True):
        unchanged = stamp_of(path) == stamps[name]
        records.append(complete(to_record(name, result), header, path if unchanged else None))
    return Results(header, records, dict(found.videos))
