"""--people: halves and confidence intervals by person."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from preprocessing.images import encode_image
from tests.support import face_crops
from training.datasets.folds import HALVES, half_of, read_folds, validation_rows
from training.datasets.people import PeopleError, groups_of, read_people
from training.pipelines import calibrate, evaluate
from training.tools.checkpoint import read_checkpoint

DEFAULT = face_crops.ROOT / "weights/default_lite0.pt"
# Two people in each half.
PEOPLE = [name for half in HALVES for name in [str(n) for n in range(20) if half_of(str(n)) == half][:2]]


def write_people(root: Path, people: dict[str, str]) -> Path:
    lines = ["original,person", *map(",".join, people.items())]
    return face_crops.write(root / "people.csv", "\n".join(lines).encode())


def test_ids_are_strings(tmp_path: Path) -> None:
    """Also in a file of a spreadsheet program: byte order mark, another column, quotes, bytes of a name."""
    content = b'\xef\xbb\xbfname,person,original\r\n"A, B",007,1e5\r\n\r\nC,NA,\xe9\r\n'
    people = read_people(face_crops.write(tmp_path / "people.csv", content))
    assert people == {"1e5": "007", "\udce9": "NA"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        (b"", "line 1: .*original, person"),
        (b"original,actor\na,1\n", "line 1: .*person"),
        (b"original,person\n", "lists no originals"),
        (b"original,person\na,1\nb\n", "line 3: "),
        (b"original,person\na,1\nb,\n", "line 3: "),
        (b"original,person\n,1\n", "line 2: "),
        (b"original,person\na,1\nb,1\na,2\n", "line 4: .*a"),
        (b"original,person\na,%s\n" % (b"x" * 200_000), "cannot be read as CSV"),
    ],
)
def test_invalid_list_is_an_error(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "people.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PeopleError, match=rf"people\.csv: {problem}.*\. [A-Z]"):
        read_people(path)


def test_unlisted_originals_are_people_of_their_own() -> None:
    """Also if a person has the same id."""
    groups = groups_of(["a", "b", "c", "7", "8"], {"a": "7", "b": "7", "c": "8"})
    assert groups[0] == groups[1]
    assert len(set(groups)) == 4
    assert groups_of(["a", "7"], None) == ["a", "7"]


def test_no_person_is_in_both_halves(tmp_path: Path) -> None:
    rows = [(f"{kind}{n}", "0_0.png", int(kind == "f"), f"r{n}", 0, 0) for n in range(40) for kind in "rf"]
    crops = read_folds(face_crops.write_folds(tmp_path, rows))
    people = {f"r{n}": PEOPLE[n % 4] for n in range(40)}
    for half in HALVES:
        rows_of_half = validation_rows(crops, 0, half=half, people=people)
        assert {people[crops.videos[crops.original[row]]] for row in rows_of_half} == {
            person for person in PEOPLE if half_of(person) == half
        }
        assert len(rows_of_half) == 40


def test_submission_is_evaluated_by_person(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All originals of a person are right or all are wrong, so samples of two people range from 0 to 1."""
    caplog.set_level("INFO")
    people = {f"{person}-{copy}": person for person in PEOPLE for copy in range(10)}
    entries = {f"{original}.mp4": {"label": "REAL"} for original in people}
    lines = ["filename,label", *(f"{name}.mp4,{0.1 if people[name] in PEOPLE[::2] else 0.9}" for name in people)]
    labels = face_crops.write(tmp_path / "metadata.json", json.dumps(entries).encode())
    scores = face_crops.write(tmp_path / "out.csv", "\n".join(lines).encode())
    options = ("--submission", scores, "--labels", labels, "--half", "report", "--bootstrap", 200)
    metrics = run_evaluate(tmp_path, *options, "--people", write_people(tmp_path, people))
    assert (metrics["people"], metrics["videos"], metrics["accuracy"]) == (2, 20, 0.5)
    assert metrics["intervals"]["accuracy"] == [0, 1]
    assert "--people" not in caplog.text
    by_original = run_evaluate(tmp_path, *options)
    low, high = by_original["intervals"]["accuracy"]
    assert 0 < low < high < 1
    assert "people" not in by_original
    unlisted = next(name for name in people if half_of(people[name]) == half_of(f"original {name}") == "report")
    del people[unlisted]
    assert run_evaluate(tmp_path, *options, "--people", write_people(tmp_path, people))["people"] == 3
    assert f"--people: 1 original not listed, each counted as a person: {unlisted}" in caplog.text


@pytest.mark.slow
def test_crops_are_calibrated_and_evaluated_by_person(tmp_path: Path) -> None:
    """Faces are real and gray crops fake, but a third of the labels are wrong, so that no network separates them."""
    face, gray = face_crops.square_face(np.random.default_rng(0)), np.full((99, 99, 3), 128, np.uint8)
    people, rows = {str(n): PEOPLE[n % 4] for n in range(12)}, []
    for original in people:
        for label, image in enumerate((face, gray) if int(original) > 3 else (gray, face)):
            face_crops.write(tmp_path / f"crops/{original}_{label}/0_0.png", encode_image(image))
            rows.append((f"{original}_{label}", "0_0.png", label, original, 0, 0))
    face_crops.write_folds(tmp_path, rows)
    data = ("--data-dir", tmp_path, "--people", write_people(tmp_path, people), "--device", "cpu")
    options = ("--checkpoint", DEFAULT, *data, "--half", "report", "--predictions", tmp_path / "p.csv")
    metrics = run_evaluate(tmp_path, *options, "--bootstrap", 20)
    assert (metrics["people"], metrics["videos"]) == (2, 12)
    scored = {name.partition("_")[0] for name in pd.read_csv(tmp_path / "p.csv")["video"]}
    assert scored == {original for original, person in people.items() if half_of(person) == "report"}
    arguments = ("--checkpoint", DEFAULT, *data, "--workers", 0, "--output", tmp_path / "model.pt")
    calibrate.main(calibrate.get_args_parser().parse_args(list(map(str, arguments))))
    found = read_checkpoint(tmp_path / "model.pt")["calibration"]
    assert (found["half"], found["crops"], found["people"]) == ("calibration", 12, 2)


def run_evaluate(folder: Path, *options: str | Path | int) -> dict:
    """The metrics that evaluate.py writes."""
    arguments = (*options, "--workers", 0, "--json", folder / "metrics.json")
    assert evaluate.main(evaluate.get_args_parser().parse_args(list(map(str, arguments)))) == 0
    return json.loads((folder / "metrics.json").read_text())
