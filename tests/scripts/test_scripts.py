"""predict_submission.sh and download_weights.sh as a user runs them; a local server stands for the release."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = (ROOT / "configs" / "released_checkpoints.txt").read_text().split()


def script(name: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(ROOT / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        timeout=600,
    )


def test_the_seven_names():
    assert len(NAMES) == len(set(NAMES)) == 7
    assert all(re.fullmatch(r"final_(\d)\1\1_DeepFakeClassifier_tf_efficientnet_b7_ns_0_\d\d", name) for name in NAMES)


@pytest.mark.parametrize("name", ["predict_submission.sh", "download_weights.sh", "demo.sh"])
def test_usage(name: str):
    finished = script(name, *([] if name == "predict_submission.sh" else ["a", "b"]))
    assert finished.returncode == 2
    assert f"usage: {ROOT / name}" in finished.stderr


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
    """Serves one checkpoint under all names but the first three, each of which goes wrong in a way of its own."""

    content: bytes
    asked: Counter
    starts: dict[str, list[int]]

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.asked[name] += 1
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
        breaks_off = name == NAMES[0] and self.asked[name] < 3
        end = start + 20_000_000 if breaks_off else len(content)
        self.wfile.write(content[start:end])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def release(b7: Path) -> Iterator[tuple[str, type[Release]]]:
    handler = type("Handler", (Release,), {"content": b7.read_bytes(), "asked": Counter(), "starts": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/download", handler
    server.shutdown()


def test_download(release: tuple[str, type[Release]], b7: Path, tmp_path: Path):
    url, handler = release
    asked = handler.asked
    broken_off, absent, truncated, *others = NAMES
    for name in others[:3]:
        (tmp_path / name).symlink_to(b7)
    (tmp_path / others[3]).write_bytes(b7.read_bytes()[:1000])  # there, but not sound
    finished = script("download_weights.sh", tmp_path, WEIGHTS_URL=url, RETRY_SECONDS="0")
    assert finished.returncode == 1
    assert f"failed: {absent} {truncated}" in finished.stderr
    assert f"{absent}: no such file" in finished.stderr
    assert f"{truncated}.part: cut off, damaged" in finished.stderr
    assert {path.name for path in tmp_path.iterdir()} == {broken_off, *others}
    assert (tmp_path / broken_off).read_bytes() == b7.read_bytes()
    assert asked == {broken_off: 3, absent: 1, truncated: 1, others[3]: 1}
    assert handler.starts[broken_off] == [0, 20_000_000, 40_000_000]

    # what another run left behind: a part to go on with, and one that only has to get its name
    (tmp_path / broken_off).unlink()
    (tmp_path / others[0]).unlink()
    (tmp_path / f"{broken_off}.part").write_bytes(b7.read_bytes()[:200_000_000])
    (tmp_path / f"{others[0]}.part").write_bytes(b7.read_bytes())
    script("download_weights.sh", tmp_path, WEIGHTS_URL=url, RETRY_SECONDS="0")
    for name in (broken_off, *others):
        assert (tmp_path / name).read_bytes() == b7.read_bytes()
    assert handler.starts[broken_off][3:] == [200_000_000]
    assert asked[others[1]] == 0  # sound: not asked for again


def test_released_means_b7():
    default = ROOT / "weights" / "default_lite0.pt"
    check = [sys.executable, "-m", "training.tools.checkpoint", str(default)]
    assert subprocess.run(check, cwd=ROOT, check=True, capture_output=True).returncode == 0
    refused = subprocess.run([*check, "--released"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "not a released checkpoint" in refused.stderr
