"""The shell scripts as a user runs them; a local server stands in for the download location."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support import programs

ROOT = Path(__file__).parents[2]
NAMES = (ROOT / "configs" / "released_checkpoints.txt").read_text().split()
SCRIPTS = sorted(path.name for path in ROOT.glob("*.sh") if path.name != "environment.sh")


def script(name: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return programs.run([ROOT / name, *arguments], env={**os.environ, "PYTHON": sys.executable, **environment})


def test_released_checkpoints_are_seven():
    assert len(NAMES) == len(set(NAMES)) == 7
    assert all(re.fullmatch(r"final_(\d)\1\1_DeepFakeClassifier_tf_efficientnet_b7_ns_0_\d\d", name) for name in NAMES)


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_prints_usage(name: str, option: str):
    finished = script(name, option, PYTHON="/nonexistent")
    assert finished.returncode == 0
    assert finished.stdout.startswith(f"usage: {ROOT / name}")
    assert not finished.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("demo.sh", ("a", "b")),
        ("demo.sh", ("--bogus",)),
        ("download_weights.sh", ("a", "b")),
        ("download_weights.sh", ("--bogus",)),
        ("download_weights.sh", ("--imagenet", "tf_efficientnet_b4_ns", "--check")),
        ("predict_submission.sh", ()),
        ("predict_submission.sh", ("videos",)),
        ("predict_submission.sh", ("--bogus", "s.csv")),
        ("predict_submission.sh", ("videos", "--bogus")),
        ("preprocess_data.sh", ()),
        ("preprocess_data.sh", ("--bogus",)),
        ("train.sh", ()),
        ("train.sh", ("data",)),
        ("train.sh", ("data", "two")),
        ("train_default.sh", ()),
        ("train_default.sh", ("--bogus",)),
    ],
)
def test_wrong_arguments_print_usage(name: str, arguments: tuple[str, ...]):
    finished = script(name, *arguments, PYTHON="/nonexistent")
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"usage: {ROOT / name}")
    assert not finished.stdout


def test_wrong_arguments_of_run_tests_print_usage():
    """Only pytest can tell which arguments are wrong, so this needs the real interpreter."""
    finished = script("run_tests.sh", "--bogus")
    assert finished.returncode == 2
    assert f"usage: {ROOT / 'run_tests.sh'}" in finished.stderr
    assert "--bogus" in finished.stderr


def test_download_needs_an_existing_folder(tmp_path: Path):
    finished = script("download_weights.sh", tmp_path / "missing", PYTHON="/nonexistent")
    assert finished.returncode == 2
    assert str(tmp_path / "missing") in finished.stderr


def test_download_gives_up_at_once_if_offline(tmp_path: Path):
    curl, log, weights = tmp_path / "bin" / "curl", tmp_path / "log", tmp_path / "weights"
    curl.parent.mkdir()
    weights.mkdir()
    curl.write_text(f'#!/bin/sh\necho attempt >> "{log}"\nexec {shutil.which("curl")} "$@"\n')
    curl.chmod(0o755)
    with socket.socket() as unused:  # bound, but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/download"
        path = f"{curl.parent}:{os.environ['PATH']}"
        finished = script("download_weights.sh", weights, WEIGHTS_URL=url, PATH=path, NO_PROXY="127.0.0.1")
    assert finished.returncode == 1
    assert url in finished.stderr
    assert log.read_text() == "attempt\n"
    assert not list(weights.iterdir())


@pytest.mark.slow
def test_submission_with_seven_checkpoints(b7: Path, face_video: Path, tmp_path: Path):
    for name in NAMES:
        (tmp_path / name).symlink_to(b7)
    options = ("--weights-dir", tmp_path, "--frames", "1", "--device", "cpu", "--details", tmp_path / "d.jsonl")
    finished = script("predict_submission.sh", face_video, tmp_path / "s.csv", *options)
    assert finished.returncode == 0, finished.stderr
    name, score = (tmp_path / "s.csv").read_text().splitlines()[1].split(",")
    assert name == "face.mp4"
    assert 0 < float(score) < 1
    assert all(f'"{name}": ' in (tmp_path / "d.jsonl").read_text() for name in NAMES)


def test_submission_without_checkpoints(face_video: Path, tmp_path: Path):
    finished = script("predict_submission.sh", face_video, tmp_path / "s.csv", "--weights-dir", tmp_path)
    assert finished.returncode == 2
    assert all(str(tmp_path / name) in finished.stderr for name in NAMES)
    assert "./download_weights.sh" in finished.stderr
    assert not (tmp_path / "s.csv").exists()


class Release(BaseHTTPRequestHandler):
    """Serves one checkpoint under all names: the first is interrupted twice, the second missing, the third truncated.

    Attributes:
        content: the checkpoint.
        requests: number of requests per name.
        starts: first byte of each request per name.
    """

    content: bytes
    requests: Counter
    starts: dict[str, list[int]]

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.requests[name] += 1
        content = self.content[: len(self.content) // 3] if name == NAMES[2] else self.content
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.starts.setdefault(name, []).append(start)
        if name == NAMES[1]:
            return self.send_error(404)
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        interrupted = name == NAMES[0] and self.requests[name] < 3
        end = start + 20_000_000 if interrupted else len(content)
        self.wfile.write(content[start:end])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def release(b7: Path) -> Iterator[tuple[str, type[Release]]]:
    handler = type("Handler", (Release,), {"content": b7.read_bytes(), "requests": Counter(), "starts": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/download", handler
    server.shutdown()


@pytest.mark.slow
def test_download_resumes_and_reports_failures(release: tuple[str, type[Release]], b7: Path, tmp_path: Path):
    url, handler = release
    environment = {"WEIGHTS_URL": url, "RETRY_SECONDS": "0", "NO_PROXY": "127.0.0.1"}
    interrupted, missing, truncated, *others = NAMES
    for name in others[:3]:
        (tmp_path / name).symlink_to(b7)
    (tmp_path / others[3]).write_bytes(b7.read_bytes()[:1000])  # present, but damaged
    finished = script("download_weights.sh", tmp_path, **environment)
    assert finished.returncode == 1
    assert f"failed: {missing} {truncated}" in finished.stderr
    assert f"{url}/{missing}" in finished.stderr
    assert str(tmp_path / f"{truncated}.part") in finished.stderr
    assert {path.name for path in tmp_path.iterdir()} == {interrupted, *others}
    assert (tmp_path / interrupted).read_bytes() == b7.read_bytes()
    assert handler.requests == {interrupted: 3, missing: 1, truncated: 1, others[3]: 1}
    assert handler.starts[interrupted] == [0, 20_000_000, 40_000_000]

    # Leftovers of an earlier run: a partial download, and a complete one that was not renamed.
    (tmp_path / interrupted).unlink()
    (tmp_path / others[0]).unlink()
    (tmp_path / f"{interrupted}.part").write_bytes(b7.read_bytes()[:200_000_000])
    (tmp_path / f"{others[0]}.part").write_bytes(b7.read_bytes())
    script("download_weights.sh", tmp_path, **environment)
    for name in (interrupted, *others):
        assert (tmp_path / name).read_bytes() == b7.read_bytes()
    assert handler.starts[interrupted][3:] == [200_000_000]
    assert handler.requests[others[1]] == 0  # valid files are not downloaded again


@pytest.mark.slow
def test_embedded_model_is_no_released_checkpoint():
    default = ROOT / "weights" / "default_lite0.pt"
    check = [sys.executable, "-m", "training.tools.checkpoint", default]
    assert programs.run(check, cwd=ROOT).returncode == 0
    refused = programs.run([*check, "--released"], cwd=ROOT)
    assert refused.returncode == 2
    assert str(default) in refused.stderr
