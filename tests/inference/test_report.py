"""The report: what the page says, which pictures it has, and which files it is made from."""

from __future__ import annotations

import base64
import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common.errors import UserError
from inference import predict, report_pictures
from inference.details import sha256
from inference.people import mean_score
from inference.report import make_explainer, render, write_report
from inference.report_pictures import FacePicture, VideoPictures, decisive_faces, make_pictures
from inference.schema import DetailsError, read_details
from preprocessing import sample_clips
from preprocessing.video import Clip, iter_frames
from tests.support import programs, reports
from tests.support.details import read_header, read_records

ROOT = Path(__file__).parents[2]
# Values of a type or size that a key does not have.
WRONG = ("0.5", None, [], {}, -1, 1e308, 10**30, float("nan"), [[1, 2]], {"a": 1})


class Page(HTMLParser):
    """The text of a page, and the attributes that run code or load something."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.active, self.scripts = "", [], 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            if name.startswith("on") or (name in ("src", "href") and not (value or "").startswith(("data:", "#"))):
                self.active.append((tag, name, value))

    def handle_data(self, data: str) -> None:
        self.text += data


def decode(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"), validate=True)
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)


def record_of(path: Path, boxes: list[list[float]]) -> dict[str, Any]:
    """The record of a clip in which each of these boxes is a person in each of 4 frames of `face_clip`."""
    record = reports.scored(path.name, [0.9, 0.1][: len(boxes)])
    record |= {"sha256": sha256(path), "bytes": path.stat().st_size}
    times = sorted({face["time"] for face in record["faces"]})[:4]
    record["faces"] = [face for face in record["faces"] if face["time"] in times]
    for face in record["faces"]:
        number = times.index(face["time"])
        face["frame"], face["box"] = (0, 13, 26, 39)[number], boxes[face["person"] - 1]
    return record


def test_names_are_text() -> None:
    header, records = reports.run(reports.BANDS)
    page = Page(render(header, records, {}))
    assert page.scripts == 1
    assert not page.active
    for name in ("<script>window.pwned = 1; alert(1)</script>.mp4", "{{ 7 * 191 }}{% raw %}.mp4", "n" * 200 + ".mp4"):
        assert name in page.text
    for shown in ("line\\nbreak\\u2028.mp4", "\\u202egpj.mp4", "surrogate_\\xff.mp4"):
        assert shown in page.text
    assert "\u202e" not in page.text


def test_counts_and_failures() -> None:
    header, records = reports.run(reports.BANDS)
    text = Page(render(header, records, {})).text
    assert "12 videos: 2 likely fake, 4 inconclusive, 3 likely real, 1 no face, 1 unreadable, 1 too large" in text
    assert "2 videos could not be scored" in text
    assert "Raise --max-pixels" in text
    assert "/videos/empty.mp4" not in text, "the folder of a failure is not repeated"


def test_without_bands_there_are_no_verdicts() -> None:
    header, records = reports.run()
    for record in records:
        record["verdict"] = "likely_fake" if record["faces"] else None  # as another program may have written it
    text = Page(render(header, records, {})).text
    assert "likely fake" not in text
    assert "9 scored" in text


def test_command_can_be_repeated() -> None:
    header, records = reports.run()
    header["arguments"] = {
        "test_dir": "it's <b>\n\\x\udcff",
        "frames": 0,
        "overwrite": True,
        "report": None,
        "output": "-v.csv",
        "m": ["a", "b c"],
    }
    text = Page(render(header, records, {})).text
    line = next(line for line in text.splitlines() if "predict_folder.py --test-dir" in line)
    command = line[line.index("python predict_folder.py") :]
    script = "printf '%s\\0' " + command.removeprefix("python ")
    words = subprocess.run(["bash", "-c", script], capture_output=True, env={"LC_ALL": "C.UTF-8"}).stdout.split(b"\0")
    expected = [
        "--test-dir",
        "it's <b>\n\\x\udcff",
        "--frames",
        "0",
        "--overwrite",
        "--output=-v.csv",
        "--m",
        "a",
        "b c",
        "",
    ]
    assert words[1:] == [word.encode(errors="surrogateescape") for word in expected]


def test_500_videos_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures get what the text leaves of the page's size."""
    models = [f"model{number}" for number in range(7)]
    records = [reports.scored(f"{number}.mp4", [0.1, 0.9, 0.4], models, seed=number) for number in range(500)]
    uri = "data:image/jpeg;base64," + "A" * 8000
    pictures = VideoPictures([FacePicture(face, uri) for face in records[0]["faces"][:8]], uri)

    def fake_all(*_: object) -> Iterator[VideoPictures]:
        while True:
            yield pictures

    monkeypatch.setattr(report_pictures, "_make_all", fake_all)
    write_report(tmp_path / "page.html", reports.header(models), records, {"0.mp4": Path("0.mp4")})
    page = (tmp_path / "page.html").read_text()
    assert len(page) < 30e6
    assert 100 < page.count("Frame with the boxes") < 500
    assert page.count("Frame with the boxes") + page.count("to limit the size of this page") == 500


@pytest.mark.slow
def test_damaged_details_are_errors(tmp_path: Path) -> None:
    """Each value of a valid file is replaced by values of other types: an error or a page, never a traceback."""
    lines = [
        reports.header(bands=reports.BANDS),
        reports.scored("a.mp4", [0.9], bands=reports.BANDS),
        reports.failure("b"),
    ]
    lines[1]["faces"] = lines[1]["faces"][:1]
    refused = 0
    for path in paths(lines):
        for value in WRONG:
            changed = copy.deepcopy(lines)
            target: Any = changed
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value
            file = reports.write_details(tmp_path / "details.jsonl", changed)
            try:
                details = read_details(file)
            except DetailsError:
                refused += 1
            else:
                render(*details, {})
    assert refused > 500


def paths(value: Any, start: tuple = ()) -> list[tuple]:
    """The paths of all values within a JSON value, except the lines themselves."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path for key, item in items for path in paths(item, (*start, key))]
    return found + ([start] if len(start) > 1 else [])


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["faces"][0].update(person=9),
        lambda record: record["people"].append({**record["people"][0], "person": 7}),
        lambda record: record["people"].append(record["people"][0]),
        lambda record: record["faces"][0]["scores"].popitem(),
        lambda record: record["faces"][0].update(scores={}),
        lambda record: record.update(faces=[], people=[]),
        lambda record: record.update(status="no_face"),
    ],
)
def test_inconsistent_records_are_errors(tmp_path: Path, change: Any) -> None:
    record = reports.scored("a.mp4", [0.9, 0.2])
    change(record)
    file = reports.write_details(tmp_path / "details.jsonl", [reports.header(), record])
    with pytest.raises(DetailsError, match=r"details\.jsonl: line 2 "):
        read_details(file)


def test_details_of_earlier_versions_are_an_error(tmp_path: Path) -> None:
    old = reports.write_details(tmp_path / "old.jsonl", [reports.scored("a.mp4", [0.9])])
    command = [sys.executable, "-m", "inference.report", old, "--output", tmp_path / "page.html"]
    result = programs.run(command, cwd=ROOT)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"{old}: line 1 " in result.stderr
    assert "run predict_folder.py again" in result.stderr


def test_plot_has_a_line_and_markers_for_each_person() -> None:
    header, record = reports.header(), reports.scored("a.mp4", [0.9, 0.3])
    html = render(header, [record], {})
    assert html.count('class="mean s') == 2
    assert html.count('class="model s') == 4
    assert html.count("<marker id=") == 6
    assert "Time (s)" in html
    assert f"in {reports.FRAMES} of {reports.FRAMES} frames" in html  # one of the faces is above 0.5


def test_decisive_faces_are_spread_over_people_and_time() -> None:
    record = reports.scored("a.mp4", [0.9, 0.1])
    chosen = decisive_faces(record)
    assert len(chosen) == 8
    assert {face["person"] for face in chosen} == {1, 2}
    assert chosen[0]["time"] < reports.SECONDS / 4
    assert chosen[-1]["time"] > reports.SECONDS * 3 / 4
    assert all((mean_score(face) > 0.5) == (face["person"] == 1) for face in chosen)


@pytest.mark.slow
def test_pictures_show_the_faces_of_the_record(tmp_path: Path) -> None:
    path = sample_clips.face_clip(tmp_path / "face.mp4")
    record = record_of(path, [[200.0, 60.0, 280.0, 160.0], [20.0, 20.0, 60.0, 70.0]])
    found = make_pictures([record], {"face.mp4": path}, frames=4)["face.mp4"]
    assert [face.face["frame"] for face in found.faces] == [0, 0, 13, 13, 26, 26, 39, 39]
    assert decode(found.frame).shape == (360, 480, 3)
    frame = next(iter_frames(Clip(path), [26])).image
    picture = decode(
        next(face.picture for face in found.faces if face.face["frame"] == 26 and face.face["person"] == 1)
    )
    # MarginCrop: one third of 80 x 100 pixels on each side, 96 pixels high.
    expected = cv2.resize(frame[27:193, 174:306], picture.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert picture.shape[0] == 96
    assert np.abs(picture.astype(float) - expected).mean() < 6


@pytest.mark.slow
def test_changed_missing_and_damaged_files_have_no_pictures(tmp_path: Path) -> None:
    path = sample_clips.face_clip(tmp_path / "face.mp4")
    record = record_of(path, [[200.0, 60.0, 280.0, 160.0]])
    path.write_bytes(path.read_bytes() + b"\0")
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"not a video")
    other = record | {"filename": "damaged.mp4", "sha256": sha256(damaged)}
    gone = record | {"filename": "gone.mp4"}
    found = make_pictures([record, other, gone], {"face.mp4": path, "damaged.mp4": damaged}, frames=4)
    assert all(pictures.missing and not pictures.faces and not pictures.frame for pictures in found.values())
    assert len(found) == 3
    assert "changed" in found["face.mp4"].missing
    assert "decoded" in found["damaged.mp4"].missing
    assert found["face.mp4"].missing in render(reports.header(), [record], found)


@pytest.mark.slow
def test_highest_scores_get_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sample_clips.face_clip(tmp_path / "face.mp4")
    record = record_of(path, [[200.0, 60.0, 280.0, 160.0]])
    records = [record | {"filename": f"{score}.mp4", "score": score} for score in (0.1, 0.9, 0.5)]
    monkeypatch.setattr(report_pictures, "MAX_PICTURES", 1)
    found = make_pictures(records, {record["filename"]: path for record in records}, frames=4)
    assert found["0.9.mp4"].faces
    assert not found["0.5.mp4"].faces
    assert "limit" in found["0.1.mp4"].missing


@pytest.mark.slow
def test_heat_maps_are_made_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several decoders: hooks in a network that threads share would otherwise mix up their features."""
    from inference.explain import Explainer

    path = sample_clips.face_clip(tmp_path / "face.mp4")
    record = record_of(path, [[200.0, 60.0, 280.0, 160.0]])
    records = [record | {"filename": f"{number}.mp4"} for number in range(4)]
    explainer = Explainer([ROOT / "weights" / "default_lite0.pt"])
    monkeypatch.setattr(report_pictures, "default_workers", lambda: 4)
    found = make_pictures(records, {record["filename"]: path for record in records}, 4, explainer=explainer)
    heats = [[face.heat for face in pictures.faces] for pictures in found.values()]
    assert len(heats) == 4
    assert all(len(own) == 4 and all(own) for own in heats)
    assert heats == [heats[0]] * 4


@pytest.mark.slow
def test_page_from_details(tmp_path: Path) -> None:
    """The command line, with a real clip: the folder of the run is used for the pictures."""
    (tmp_path / "videos").mkdir()
    path = sample_clips.face_clip(tmp_path / "videos" / "face.mp4")
    header = reports.header()
    header["arguments"]["test_dir"], header["method"]["frames"] = str(path.parent), 4
    details = reports.write_details(tmp_path / "d.jsonl", [header, record_of(path, [[200.0, 60.0, 280.0, 160.0]])])
    page = tmp_path / "new" / "page.html"
    result = programs.run([sys.executable, "-m", "inference.report", details, "--output", page], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert page.read_text().count("data:image/jpeg;base64,") == 5  # four faces and a frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    sample_clips.face_clip(folder / "face.mp4")
    sample_clips.faceless_clip(folder / "none.mp4", 8)
    (folder / "empty.mp4").touch()
    return folder


@pytest.mark.slow
def test_command_line(folder: Path, tmp_path: Path) -> None:
    """predict_folder.py --report, and the same page from its details afterwards."""
    options = ("--frames", "4", "--device", "cpu", "--details", tmp_path / "d.jsonl", "--report", tmp_path / "r.html")
    command = [sys.executable, ROOT / "predict_folder.py", "--test-dir", folder, "--output", tmp_path / "s.csv"]
    done = programs.run([*command, *options, "--explain", "--aggregate", "person"])
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    header, records = read_header(tmp_path / "d.jsonl"), read_records(tmp_path / "d.jsonl")
    assert header["method"] == {"frames": 4, "strategy": "confident", "aggregate": "person", "detector_scale": "auto"}
    assert header["bands"]["faces"] == 1098
    assert records["face.mp4"]["sha256"]
    assert records["face.mp4"]["codec"] == "h264"
    assert records["face.mp4"]["low_evidence"] == ["few faces (4)"]
    again = [sys.executable, "-m", "inference.report", tmp_path / "d.jsonl", "--output", tmp_path / "again.html"]
    assert programs.run([*again, "--explain"], cwd=ROOT).returncode == 0
    assert (tmp_path / "again.html").read_text() == (tmp_path / "r.html").read_text()
    assert (tmp_path / "r.html").read_text().count("data:image/jpeg") == 9
    done = programs.run([*command, "--explain"])
    assert (done.returncode, "--report" in done.stderr) == (2, True)
    done = programs.run([*again[:3], tmp_path / "s.csv", *again[4:]], cwd=ROOT)
    assert (done.returncode, f"{tmp_path / 's.csv'}: line 1 is not valid" in done.stderr) == (2, True)


def test_runs_without_a_report_import_nothing_for_it(tmp_path: Path) -> None:
    clip = sample_clips.faceless_clip(tmp_path / "a.mp4", 2)
    command = [sys.executable, "-X", "importtime", "predict_folder.py", "--test-dir", clip, "--device", "cpu"]
    done = programs.run([*command, "--output", tmp_path / "s.csv"], cwd=ROOT)
    assert done.returncode == 0
    imported = set(re.findall(r"\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "inference.people" in imported
    assert not imported & {"inference.report", "inference.schema", "inference.explain", "inference.annotate"}


@pytest.mark.parametrize(
    "options", [{"strategy": "best"}, {"precision": "int8"}, {"frames": 0}, {"workers": 0}, {"aggregate": "people"}]
)
def test_options_that_do_not_exist_are_errors(folder: Path, options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(UserError, match=f"^{name}: "):
        predict(folder, device="cpu", **options)


@pytest.mark.slow
def test_call_from_python(folder: Path) -> None:
    header, records, _ = predict(
        folder / "face.mp4", str(ROOT / "weights" / "default_lite0.pt"), device="cpu", frames=4
    )
    assert records[0]["status"] == "ok"
    assert f"inference.predict(videos={str(folder / 'face.mp4')!r}" in Page(render(header, records, {})).text


def test_heat_maps_need_the_checkpoint_of_the_run() -> None:
    header = reports.header(["a"])
    header["models"][0]["file"] = str(ROOT / "weights" / "default_lite0.pt")
    with pytest.raises(UserError, match=r"--explain: .*default_lite0\.pt is missing or not"):
        make_explainer(header, "cpu")
