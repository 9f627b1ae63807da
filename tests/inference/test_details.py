"""Details of a run: verdicts, reasons for low evidence, the file's facts, the published schema, reading them back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from inference import details
from inference.details import complete, low_evidence, verdict, write_details
from inference.schema import DetailsError, read_details, schema
from tests.support.details import SCHEMA, read_records
from tests.support.reports import BANDS, HOSTILE, failure, header, scored


def test_schema_is_up_to_date() -> None:
    """python -m inference.schema > docs/details.schema.json"""
    assert json.loads(SCHEMA.read_text()) == schema()


def test_files_of_any_names_are_read_back(tmp_path: Path) -> None:
    records = [*(scored(name, [0.5]) for name in HOSTILE), failure("a.mp4")]
    write_details(tmp_path / "d.jsonl", header(), records)
    assert read_details(tmp_path / "d.jsonl") == (header(), records)
    assert list(read_records(tmp_path / "d.jsonl")) == [*HOSTILE, "a.mp4"]


@pytest.mark.parametrize(
    ("line", "change", "reason"),
    [
        (1, {"schema_version": 1}, "schema_version"),
        (1, {"models": []}, "models"),
        (2, {"score": 1.5}, "score"),
        (2, {"score": "high"}, "score"),
        (2, {"faces": [{"frame": 0}]}, r"faces\.0\.time"),
        (2, {"status": "<b>"}, "status"),
        (2, {"people": 3}, "people"),
        (2, {"sha256": "0" * 63}, "sha256"),
    ],
)
def test_other_files_are_errors(tmp_path: Path, line: int, change: dict[str, Any], reason: str) -> None:
    lines = [header(), scored("a.mp4", [0.9])]
    lines[line - 1] |= change
    path = tmp_path / "d.jsonl"
    write_details(path, lines[0], lines[1:])
    with pytest.raises(DetailsError, match=rf"{path}: line {line} .*{reason}"):
        read_details(path)


@pytest.mark.parametrize("content", ["", "[]\n", "{}\n", '{"filename": "a.mp4", "score": 1}\n', "[" * 100_000, "\xff"])
def test_no_details_are_errors(tmp_path: Path, content: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DetailsError, match=f"{path}: line 1 "):
        read_details(path)
    with pytest.raises(DetailsError, match=f"{tmp_path}: cannot be read"):
        read_details(tmp_path)


def test_verdicts() -> None:
    bands = {"real": 0.2, "fake": 0.8}
    names = ["likely_real", "likely_real", "inconclusive", "inconclusive", "likely_fake", "likely_fake"]
    assert [verdict(score, bands) for score in (0, 0.2, 0.21, 0.79, 0.8, 1)] == names
    assert verdict(0.9, None) is None


def test_score_of_the_most_suspicious_person() -> None:
    """One fake person among real ones is outvoted by the published rule."""
    run, video = header(bands=BANDS), scored("a.mp4", [0.9, 0.1, 0.1])
    by_video = complete(video, run)
    assert (by_video["score"], by_video["verdict"]) == (pytest.approx(1.1 / 3), "inconclusive")
    run["method"]["aggregate"] = "person"
    by_person = complete(video, run)
    assert (by_person["score"], by_person["verdict"]) == (pytest.approx(0.9), "likely_fake")
    assert by_person["video_score"] == by_video["score"]
    assert by_person["low_evidence"] == ["people disagree"]
    no_face = complete(failure("b.mp4", "no_face"), run)
    assert (no_face["score"], no_face["verdict"], no_face["low_evidence"]) == (0.5, None, [])


def test_reasons_for_low_evidence() -> None:
    video = scored("a.mp4", [0.9])
    faces, scores, people = video["faces"], video["model_scores"], video["people"]
    assert low_evidence(faces, scores, people) == []
    assert low_evidence(faces[:5], scores, people) == ["few faces (5)"]
    small = [{**face, "box": [0, 0, 50, 41]} for face in faces]
    assert low_evidence(small, scores, people) == ["small faces (median height 41 pixels)"]
    assert low_evidence(faces, {"a": 0.9, "b": 0.4}, people) == ["models disagree"]
    assert low_evidence(faces, {"a": 0.9, "b": 0.55}, people) == []


def test_low_evidence_concerns_the_person_who_decides() -> None:
    run, video = header(bands=BANDS), scored("a.mp4", [0.95, 0.6])
    brief = [face for face in video["faces"] if face["person"] == 2 or face["frame"] < 24]
    for face in brief:
        if face["person"] == 1:
            face["box"] = [60.0, 100.0, 75.0, 120.0]
    video["faces"], video["people"][0]["faces"] = brief, 3
    assert complete(video, run)["low_evidence"] == []
    run["method"]["aggregate"] = "person"
    assert complete(video, run)["low_evidence"] == ["few faces (3)", "small faces (median height 20 pixels)"]


def test_facts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"abc")
    run, video = header(), scored("a.mp4", [0.9])
    known = complete(video, run, path)
    assert (known["bytes"], known["sha256"]) == (3, hashlib.sha256(b"abc").hexdigest())
    for other in (complete(video, run), complete(video, run, tmp_path / "none.mp4")):
        assert (other["bytes"], other["sha256"]) == (None, None)
    assert details.file_facts(Path("/dev/zero")) == (None, None)
