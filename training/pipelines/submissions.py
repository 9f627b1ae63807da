"""Match the scores of a submission with labels."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from common.errors import UserError
from common.text import abbreviate, plural
from training.datasets.folds import half_of
from training.datasets.people import groups_of, read_people, report_unknown
from training.tools.metrics import VideoScores

# Labels of metadata.json -> whether the video is fake.
CLASSES = {"REAL": False, "FAKE": True}

log = logging.getLogger(__name__)


class EvaluationError(UserError):
    """Scores or labels that cannot be evaluated."""


class Label(NamedTuple):
    """The label of a video.

    Attributes:
        fake: whether the video is fake.
        original: id of the video that a fake was made from; the video's own id if it is real or its original unknown.
    """

    fake: bool
    original: str


def score_submission(
    submission: Path, labels: Path, half: str | None = None, people_csv: Path | None = None
) -> VideoScores:
    """Match the scores of a submission with labels. Raises EvaluationError, PeopleError.

    Args:
        submission: CSV that predict_folder.py wrote.
        labels: DFDC's metadata.json.
        half: use only this half of the originals or, with `people_csv`, of the people, and their fakes.
        people_csv: list of people, see `training.datasets.people`.
    """
    scores, truth = read_submission(submission), read_labels(labels)
    for unmatched, missing in ((truth.keys() - scores.keys(), "score"), (scores.keys() - truth.keys(), "label")):
        if unmatched:
            count = plural(len(unmatched), "video")
            log.warning("%s without a %s left out: %s", count, missing, abbreviate(sorted(unmatched)))
    people = read_people(people_csv) if people_csv else None
    matched = sorted(scores.keys() & truth.keys())
    group = dict(zip(matched, groups_of((truth[name].original for name in matched), people), strict=True))
    names = [name for name in matched if half in (None, half_of(group[name]))]
    if not names:
        where = f" in the {half} half" if half else ""
        raise EvaluationError(f"{submission}: has no video in common with {labels}{where}. Check both files")
    report_unknown((truth[name].original for name in names), people)
    return VideoScores(
        names,
        [group[name] for name in names],
        np.array([scores[name] for name in names]),
        np.ones(len(names), int),
        np.array([truth[name].fake for name in names]),
    )


def read_submission(path: Path) -> dict[str, float]:
    """Return the scores of a submission by file name without folders. Raises EvaluationError."""
    try:
        # As objects, which may hold the bytes of file names that are not valid UTF-8.
        types = {"filename": object}
        table = pd.read_csv(path, dtype=types, keep_default_na=False, encoding_errors="surrogateescape")
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read as CSV ({error})") from None
    if not {"filename", "label"} <= set(table):
        raise EvaluationError(f"{path}: needs the columns filename and label, but has {abbreviate(list(table))}")
    scores = pd.to_numeric(table["label"], errors="coerce")
    bad = table["filename"][~scores.between(0, 1)]
    if len(bad):
        raise EvaluationError(f"{path}: labels must be probabilities from 0 to 1. Correct {abbreviate(list(bad))}")
    names = [Path(name).name for name in table["filename"]]
    if len(set(names)) < len(names):
        raise EvaluationError(f"{path}: videos in different folders have the same name. Evaluate them separately")
    return dict(zip(names, scores.tolist(), strict=True))


def read_labels(path: Path) -> dict[str, Label]:
    """Return the labels of a metadata.json by file name without folders. Raises EvaluationError."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {
            Path(name).name: Label(CLASSES[entry["label"]], Path(entry.get("original") or name).stem)
            for name, entry in entries.items()
        }
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: cannot be read as JSON ({error})") from None
    except (AttributeError, KeyError, TypeError):
        raise EvaluationError(f'{path}: must be {{"NAME.mp4": {{"label": "REAL" or "FAKE"}}, ...}}') from None
