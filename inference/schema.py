"""The lines of a --details file: a header that describes the run, then one record per video.

    python -m inference.schema > docs/details.schema.json

`read_details` accepts only files that match, because a report is made from files of any origin.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, ValidationError, model_validator

from common.errors import UserError
from common.files import read_regular_file

Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Coordinate = Annotated[float, Field(ge=-1e6, le=1e6)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


REMEDY = "Choose a file written by --details of this version, or run predict_folder.py again"


class DetailsError(UserError):
    """A file that is not the --details of this version."""


class Line(BaseModel):
    """Base class. Unknown keys are allowed, so that later versions can add some."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class Model(Line):
    """A checkpoint."""

    name: Annotated[str, Field(description="name in `scores`")]
    file: Annotated[str, Field(description="path")]
    sha256: Annotated[Sha256, Field(description="SHA-256 of the file")]
    recipe: Annotated[dict[str, Any], Field(description="network, encoder, and how crops are prepared and scored")]


class VerdictBands(Line):
    """Scores that separate the verdicts, from the calibration data of the model."""

    real: Annotated[Probability, Field(description="scores up to this one are `likely_real`")]
    fake: Annotated[Probability, Field(description="scores from this one on are `likely_fake`")]
    error: Annotated[Probability, Field(description="largest share of each class on the wrong side in calibration")]
    faces: Annotated[Count, Field(description="number of faces in the calibration data")]


class Method(Line):
    """How scores are made."""

    frames: Annotated[Count, Field(description="number of frames sampled per video")]
    strategy: Annotated[str, Field(description="aggregation of face scores")]
    aggregate: Annotated[Literal["video", "person"], Field(description="how a video is scored")]
    detector_scale: Annotated[float | Literal["auto"], Field(description="scale of the face detector's input")]


class RunHeader(Line):
    """The first line: what is needed to repeat the run."""

    record: Literal["run"]
    schema_version: Annotated[Literal[2], Field(description="version of this format")]
    version: Annotated[str, Field(description="version of this project")]
    created: Annotated[str, Field(description="start of the run, ISO 8601 in UTC")]
    directory: Annotated[str, Field(description="working directory, which relative paths refer to")]
    arguments: Annotated[dict[str, Any], Field(description="arguments of the command line")]
    models: Annotated[list[Model], Field(min_length=1, description="the checkpoints")]
    bands: Annotated[VerdictBands | None, Field(description="null if the models store no calibration for verdicts")]
    backend: Annotated[str, Field(description="library that runs the networks: `torch`, `torch-compile` or `openvino`")]
    device: Annotated[str, Field(description="device of the networks")]
    device_name: Annotated[str, Field(description="name of the CPU or GPU")]
    precision: Annotated[str, Field(description="floating-point type of the classifiers")]
    decoder: Annotated[str, Field(description="video decoder")]
    packages: Annotated[dict[str, str], Field(description="versions of Python and packages")]
    method: Method


class Person(Line):
    """The faces of one person, linked over time."""

    person: Annotated[Count, Field(description="number within the video, from 1")]
    score: Annotated[Probability, Field(description="aggregated score of the person's faces")]
    scores: Annotated[dict[str, Probability], Field(description="the same for each model")]
    faces: Annotated[Count, Field(description="number of faces, at most one per frame")]
    height: Annotated[NonNegativeFloat, Field(description="median height of the bounding boxes in pixels")]
    seen: Annotated[
        list[tuple[NonNegativeFloat, NonNegativeFloat]],
        Field(description="first and last second of each run of sampled frames that show the person"),
    ]


class FaceRecord(Line):
    """A face in a frame."""

    frame: Annotated[NonNegativeInt, Field(description="index of the frame, from 0")]
    time: Annotated[NonNegativeFloat, Field(description="seconds since the first frame")]
    box: Annotated[
        tuple[Coordinate, Coordinate, Coordinate, Coordinate],
        Field(description="xmin, ymin, xmax, ymax in pixels of the full frame; may extend beyond it"),
    ]
    person: Annotated[Count, Field(description="number of the person")]
    detector_confidence: Annotated[Probability, Field(description="the detector's confidence that this is a face")]
    scores: Annotated[dict[str, Probability], Field(description="probability of being fake for each model")]


class VideoRecord(Line):
    """One video."""

    record: Literal["video"]
    filename: Annotated[str, Field(description="as in the CSV")]
    status: Annotated[Literal["ok", "no_face", "unreadable", "too_large"], Field(description="see docs/formats.md")]
    message: Annotated[str, Field(description="why the status is not `ok`")]
    notes: Annotated[list[str], Field(description="what is unusual about the video and how it was handled")]
    score: Annotated[Probability, Field(description="the CSV's label")]
    video_score: Annotated[Probability, Field(description="score of all faces together, whatever `aggregate` is")]
    verdict: Annotated[
        Literal["likely_real", "inconclusive", "likely_fake"] | None,
        Field(description="band of the score; null without bands or without a score"),
    ]
    model_scores: Annotated[dict[str, Probability], Field(description="the same for each model; empty without a score")]
    low_evidence: Annotated[list[str], Field(description="reasons to trust the score less")]
    people: Annotated[list[Person], Field(description="the people in the video")]
    sha256: Annotated[Sha256 | None, Field(description="SHA-256 of the file; null if it cannot be read")]
    bytes: Annotated[NonNegativeInt | None, Field(description="size of the file; null if it cannot be read")]
    codec: Annotated[str | None, Field(description="FFmpeg's name of the codec; null if the video is not decoded")]
    frames: Annotated[NonNegativeInt, Field(description="number of frames analyzed")]
    fps: Annotated[NonNegativeFloat | None, Field(description="frames per second")]
    duration: Annotated[NonNegativeFloat | None, Field(description="seconds")]
    width: Annotated[NonNegativeInt | None, Field(description="frame width in pixels, after rotation")]
    height: Annotated[NonNegativeInt | None, Field(description="frame height in pixels, after rotation")]
    faces: Annotated[list[FaceRecord], Field(description="the detected faces by frame")]
    processing_seconds: Annotated[NonNegativeFloat, Field(description="processing time")]
    version: Annotated[str, Field(description="version of this project that scored the video")]

    @model_validator(mode="after")
    def _check_people(self) -> VideoRecord:
        """Raise ValueError unless the faces are those of the people, and all of them have scores of the same models."""
        if (self.status == "ok") != bool(self.faces):
            raise ValueError("a video has faces if its status is ok, and only then")
        numbers = [person.person for person in self.people]
        if len(set(numbers)) < len(numbers) or set(numbers) != {face.person for face in self.faces}:
            raise ValueError("the faces are not those of the people")
        scores = [*(face.scores for face in self.faces), *(person.scores for person in self.people)]
        if any(not own or own.keys() != self.model_scores.keys() for own in scores):
            raise ValueError("the scores are not those of the same models")
        return self


def read_details(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read a --details file and return its header and the records of the videos. Raises DetailsError."""
    try:
        lines = read_regular_file(path).decode("utf-8", errors="replace").removesuffix("\n").split("\n")
    except OSError as error:
        raise DetailsError(f"{path}: cannot be read ({error.strerror}). Choose a file written by --details") from None
    header = _parse(path, 1, lines[0], RunHeader)
    records = [_parse(path, number, line, VideoRecord) for number, line in enumerate(lines[1:], 2)]
    names = {model["name"] for model in header["models"]}
    for number, record in enumerate(records, 2):
        if record["status"] == "ok" and record["model_scores"].keys() != names:
            raise DetailsError(f"{path}: line {number} has scores of other models than line 1. {REMEDY}")
    return header, records


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a line."""
    definitions: dict[str, Any] = {}
    for model in (RunHeader, VideoRecord):
        described = model.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= described.pop("$defs", {}) | {model.__name__: described}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of a --details file: the first one is a RunHeader, each other one a VideoRecord",
        "oneOf": [{"$ref": "#/$defs/RunHeader"}, {"$ref": "#/$defs/VideoRecord"}],
        "$defs": definitions,
    }


def _parse(path: Path, number: int, line: str, model: type[Line]) -> dict[str, Any]:
    try:
        value = json.loads(line)
        # Strict, because a report uses the values as they are: "0.5" is not a number.
        model.model_validate_json(json.dumps(_without_surrogates(value)), strict=True)
        return value
    except ValidationError as error:
        details = error.errors()[0]
        reason = f"{'.'.join(map(str, details['loc']))}: {details['msg']}"
    except (ValueError, RecursionError):
        reason = "not JSON"
    raise DetailsError(f"{path}: line {number} is not valid ({reason}). {REMEDY}")


def _without_surrogates(value: Any) -> Any:
    """Return a JSON value with text that pydantic accepts: bytes of file names that are not UTF-8 become `?`."""
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
