"""predict_folder.py with videos in an object store: a local server that speaks the protocol of S3."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.file_cache import FileCache
from common.object_store import GIB, RemoteFile
from inference import annotate
from preprocessing import sample_clips
from preprocessing.limits import Limits
from tests.support import programs
from tests.support.details import read_records
from tests.support.stores import Store, running_store

ROOT = Path(__file__).parents[2]
INTERRUPTED = ROOT / "tests/support/interrupted.py"
FAST = ("--device", "cpu", "--precision", "float32", "--frames", "2", "--workers", "2")


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "deeper").mkdir()
    for name, size in (("a.mp4", 200), ("b.mp4", 220), ("c.mp4", 240), ("deeper/d.mov", 260)):
        sample_clips.face_clip(folder / name, 4, size, size)
    (folder / "junk.mp4").write_bytes(b"junk" * 50)
    (folder / "notes.txt").write_text("text")
    return folder


def upload(store: Store, prefix: str, videos: Path) -> str:
    return store.put_all(prefix, {str(path.relative_to(videos)): path for path in videos.rglob("*") if path.is_file()})


def run(store: Store, *arguments: str | Path, temporary: Path | None = None) -> subprocess.CompletedProcess:
    """Run a program of Python with the variables of the store."""
    variables = {"TMPDIR": str(temporary)} if temporary else {}
    return programs.run([sys.executable, *arguments], env={**os.environ, **store.environment, **variables}, cwd=ROOT)


def predict(source: str | Path, output: Path, *options: str | Path) -> tuple[str | Path, ...]:
    return "predict_folder.py", "--test-dir", source, "--output", output, *FAST, *options


def gib(size: int) -> str:
    return f"{size / GIB:.12f}"


@pytest.mark.slow
def test_outputs_equal_those_of_a_local_folder(store: Store, videos: Path, tmp_path: Path):
    """The cache has room for one video at a time. A local folder needs no optional package."""
    size = max(path.stat().st_size for path in videos.rglob("*.m*"))
    url, temporary = upload(store, "equal", videos), tmp_path / "temporary"
    temporary.mkdir()
    folders = {name: tmp_path / name for name in ("local", "remote")}
    outputs = {
        name: ("--details", folder / "d.jsonl", "--report", folder / "r.html", "--annotate", folder / "annotated")
        for name, folder in folders.items()
    }
    local = run(store, "-X", "importtime", *predict(videos, folders["local"] / "s.csv", *outputs["local"]))
    imported = set(re.findall(r"\| +(\w+)\S*$", local.stderr, re.MULTILINE))
    assert "torch" in imported
    assert not imported & {"fsspec", "s3fs", "botocore", "ray", "moto"}

    options = (*outputs["remote"], "--cache-size", gib(size + 1))
    remote = run(store, *predict(url, folders["remote"] / "s.csv", *options), temporary=temporary)
    assert (local.returncode, remote.returncode) == (3, 3)
    assert remote.stdout.replace(str(folders["remote"]), "") == local.stdout.replace(str(folders["local"]), "")
    assert list(temporary.iterdir()) == []
    assert {"deeper/d.mov.mp4", "a.mp4"} <= {
        path.relative_to(folders["remote"] / "annotated").as_posix() for path in folders["remote"].rglob("*.mp4")
    }
    for path in ("s.csv", *(path.relative_to(folders["local"]) for path in folders["local"].rglob("*.mp4"))):
        assert (folders["remote"] / path).read_bytes() == (folders["local"] / path).read_bytes()
    # Each has the times of its own run; a picture of each face shows that the page had the videos.
    pages = [(folder / "r.html").read_text() for folder in folders.values()]
    assert pages[0].count("data:image/jpeg") == pages[1].count("data:image/jpeg") > 4
    check_details(*(read_records(folder / "d.jsonl") for folder in folders.values()), videos, url)


def check_details(local: dict[str, dict], remote: dict[str, dict], videos: Path, url: str) -> None:
    for name, record in local.items():
        if record["status"] != "ok":
            record["message"] = record["message"].replace(str(videos), url)
        for key in record.keys() - {"seconds", "processing_seconds"}:
            assert remote[name][key] == record[key], (name, key)
    assert local.keys() == remote.keys()


@pytest.mark.slow
def test_resumes_and_scores_replaced_objects_again(store: Store, videos: Path, tmp_path: Path):
    url, output, cache = upload(store, "resumed", videos), tmp_path / "s.csv", tmp_path / "cache"
    options = ("--cache-dir", cache, "--cache-size", "0.001")
    script = predict(url, output, *options)
    stopped = run(store, INTERRUPTED, "SIGTERM", "2", *script)
    assert (stopped.returncode, "Traceback" in stopped.stderr) == (130, False)
    assert not output.exists()
    assert list(cache.glob(".*")) == []

    store.put("resumed/a.mp4", videos / "c.mp4")
    resumed = run(store, *script)
    assert resumed.returncode == 3
    assert "1 of 5 videos finished" in resumed.stderr
    scores = dict(line.split(",") for line in output.read_text().splitlines())
    assert scores["a.mp4"] == scores["c.mp4"] != scores["b.mp4"]
    assert len(list(cache.iterdir())) == 6  # with both versions of a.mp4
    contents = {path.read_bytes() for path in cache.iterdir()}
    assert contents == {path.read_bytes() for path in videos.rglob("*.m*")}


@pytest.mark.slow
def test_temporary_copies_are_removed_after_ctrl_c(store: Store, videos: Path, tmp_path: Path):
    url, temporary = upload(store, "stopped", videos), tmp_path / "temporary"
    temporary.mkdir()
    stopped = run(store, INTERRUPTED, "SIGINT", "1", *predict(url, tmp_path / "s.csv"), temporary=temporary)
    assert stopped.returncode == 130
    assert "run the same command again" in stopped.stderr
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_objects_that_cannot_be_read_fail_alone(store: Store, videos: Path, tmp_path: Path):
    url = store.put_all("broken", {"good.mp4": videos / "a.mp4", "large.mp4": b"x" * 100_000})
    archived = {"Bucket": "videos", "Key": "broken/archived.mp4", "StorageClass": "GLACIER"}
    store.client.put_object(**archived, Body=b"not restored")
    details = tmp_path / "d.jsonl"
    limit = ("--cache-size", gib(90_000))
    finished = run(store, *predict(url, tmp_path / "s.csv", "--details", details, *limit))
    assert finished.returncode == 3
    records = read_records(details)
    assert {name: record["status"] for name, record in records.items()} == {
        "archived.mp4": "unreadable",
        "good.mp4": "ok",
        "large.mp4": "too_large",
    }
    assert f"{url}/archived.mp4: cannot be read" in records["archived.mp4"]["message"]
    assert "--cache-size" in records["large.mp4"]["message"]
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://no-such-bucket/folder", ()),
        ("s3://videos/no-such-folder", ()),
        ("s3://videos/other/notes.txt", ()),
        ("s3://videos/other", ("--executor", "ray")),
    ],
)
def test_wrong_url_is_named(store: Store, tmp_path: Path, url: str, options: tuple[str, ...]):
    store.put("other/notes.txt", b"text")
    finished = run(store, *predict(url, tmp_path / "s.csv", *options))
    assert finished.returncode == 2
    assert ("--cache-dir" if options else url) in finished.stderr
    assert "Traceback" not in finished.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../out.mp4", "/{tmp}/out.mp4", "a/../../out.mp4", "a//b.mp4", "nul\0.mp4"])
def test_names_do_not_lead_out_of_the_annotated_folder(tmp_path: Path, name: str):
    name, folder = name.format(tmp=tmp_path), tmp_path / "annotated"
    video = RemoteFile(f"memory://videos/{name}", "memory://videos", name, 1, [1, "1"], FileCache(tmp_path, 1))
    annotate.check_folder(folder, {name: video}, [])
    record = {"filename": name, "status": "ok", "people": [], "faces": []}
    [outcome] = annotate.annotate_videos({name: video}, [record], folder, Limits(), 1).values()
    assert outcome.status == "failed"
    assert {path.name for path in tmp_path.iterdir()} == {"annotated"}
    assert {path.name for path in folder.rglob("*")} == {"progress", "progress.jsonl"}
