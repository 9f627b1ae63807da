"""Score videos from Python and return what predict_folder.py writes to --details."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inference.details import complete, describe_run
from inference.loading import DEFAULT_MODEL, load_predictor
from inference.submission import find_videos, to_record


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
    models: Sequence[str | Path] = (DEFAULT_MODEL,),
    aggregate: str = "video",
    **options: Any,
) -> Results:
    """Score a video, or the videos of a folder and its subfolders.

    Args:
        videos: the video or folder.
        models: checkpoints; by default the embedded model.
        aggregate: whose score a video gets: `video`, that of all faces, or `person`, the most suspicious person's.
        options: keyword arguments of `inference.loading.load_predictor`, e.g. device="cpu" or frames=8.

    Raises:
        UsageError: `videos` does not exist or contains no video.
        CheckpointError: a checkpoint cannot be used.
        DeviceError: the device is not available or fails.
    """
    found = find_videos(Path(videos)).videos
    predictor = load_predictor(models, **options)
    arguments = {"test_dir": videos, "models": list(models), "aggregate": aggregate, **options}
    header = describe_run(arguments, predictor, aggregate)
    scored = zip(found, predictor.predict(found.values()), strict=True)
    records = [complete(to_record(name, result), header, found[name]) for name, result in scored]
    return Results(header, records, found)
