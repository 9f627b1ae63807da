"""The weights that an encoder starts from: downloaded (here from a local server), read from a file, or random."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.support import face_crops, golden, programs
from training.pipelines import build
from training.tools import imagenet
from training.tools.checkpoint import CheckpointError, load_encoder
from training.tools.config import read_config
from training.zoo import build_network

ENCODER = "tf_efficientnet_lite0"
PROGRAM = """
import sys
from training.pipelines import build
from training.tools.config import read_config
network = build.init_network(read_config(sys.argv[1], {"pretrained": True}), fresh=True)
print(network.encoder.conv_stem.weight.double().sum().item())
"""


@pytest.fixture(scope="module")
def encoder() -> torch.nn.Module:
    return golden.fill(timm.create_model(ENCODER))


@pytest.fixture
def server(encoder: torch.nn.Module, tmp_path: Path) -> Iterator[str]:
    """A model hub that has the weights of one encoder."""
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            found = self.path == f"/timm/{ENCODER}.in1k/resolve/main/model.safetensors"
            self.send_response(200 if found else 404)
            for name, value in (("ETag", '"1"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", len(content))):
                self.send_header(name, str(value))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{hub.server_port}"
    hub.shutdown()


def download(endpoint: str, place: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(place / "hub"), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", PROGRAM, face_crops.config(place)]
    return programs.run(command, cwd=face_crops.ROOT, env=environment)


@pytest.mark.slow
def test_downloads_pretrained_weights(server: str, encoder: torch.nn.Module, tmp_path: Path) -> None:
    done = download(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == encoder.conv_stem.weight.double().sum().item()


@pytest.mark.slow
def test_failed_download_is_an_error(server: str, tmp_path: Path) -> None:
    """A failed download does not fall back to random weights."""
    done = download(f"{server}/nowhere", tmp_path)
    assert done.returncode != 0
    assert "SetupError: pretrained: " in done.stderr
    assert "--set pretrained=FILE" in done.stderr
    assert f"./download_weights.sh --imagenet {ENCODER}" in done.stderr


# What a Python process runs at its start: the registry of timm then names a file with the hash of the test's content.
HOOK = """
import timm
timm.models._registry._model_pretrained_cfgs["{encoder}.in1k"].url = "https://localhost/v0.1-weights/{name}"
"""


class Cache(NamedTuple):
    """A local release of an encoder's ImageNet weights, and an empty cache for them.

    Attributes:
        file: place of the weights in the cache.
        content: the weights.
        requests: first byte of each request to the server.
        environment: variables for scripts: an interpreter that knows the file's name, the cache and the server.
    """

    file: Path
    content: bytes
    requests: list[int]
    environment: dict[str, str]


@pytest.fixture
def cache(encoder: torch.nn.Module, tmp_path: Path) -> Iterator[Cache]:
    state = {key: value for key, value in encoder.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "weights.pth").read_bytes()
    name = f"{ENCODER}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    face_crops.write(tmp_path / "hook/sitecustomize.py", HOOK.format(encoder=ENCODER, name=name).encode())
    python = face_crops.write(
        tmp_path / "bin/python",
        f'#!/bin/sh\nPYTHONPATH="{tmp_path}/hook:$PYTHONPATH" exec "{sys.executable}" "$@"\n'.encode(),
    )
    python.chmod(0o755)
    requests: list[int] = []

    class Release(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            requests.append(start)
            self.send_response(206 if start else 200)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:] if start else content[: len(content) // 3])  # the first is interrupted
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Release)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "PYTHON": str(python),
        "TORCH_HOME": str(tmp_path / "torch"),
        "IMAGENET_URL": f"http://127.0.0.1:{server.server_port}/weights",
        "RETRY_SECONDS": "0",
        "NO_PROXY": "127.0.0.1",
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there
        "HF_HOME": str(tmp_path / "hub"),
    }
    yield Cache(tmp_path / "torch/hub/checkpoints" / name, content, requests, environment)
    server.shutdown()


@pytest.mark.slow
def test_downloads_imagenet_weights_that_training_starts_from(
    cache: Cache, encoder: torch.nn.Module, tmp_path: Path
) -> None:
    command = [face_crops.ROOT / "download_weights.sh", "--imagenet", ENCODER]
    done = programs.run(command, env=cache.environment)
    assert done.returncode == 0, done.stderr
    assert cache.file.read_bytes() == cache.content
    assert cache.requests == [0, len(cache.content) // 3]
    done = programs.run(command, env=cache.environment)
    assert (done.returncode, done.stdout.strip()) == (0, f"{cache.file.name}: already present")
    program = [cache.environment["PYTHON"], "-c", PROGRAM, face_crops.config(tmp_path)]
    started = programs.run(program, cwd=face_crops.ROOT, env=cache.environment)
    assert started.returncode == 0, started.stderr
    assert float(started.stdout) == encoder.conv_stem.weight.double().sum().item()
    assert len(cache.requests) == 2


@pytest.mark.slow
def test_refuses_imagenet_weights_of_another_hash(cache: Cache) -> None:
    """Of the right size, but with one other byte."""
    content = bytearray(cache.content)
    content[-1000] ^= 1
    part = face_crops.write(cache.file.with_name(f"{cache.file.name}.part"), bytes(content))
    done = programs.run([face_crops.ROOT / "download_weights.sh", "--imagenet", ENCODER], env=cache.environment)
    assert done.returncode == 1
    assert f"{part}: its SHA-256 starts with" in done.stderr
    assert not list(part.parent.iterdir())


@pytest.mark.slow
def test_variants_of_an_encoder_share_a_download(server: str, tmp_path: Path) -> None:
    """The server does not have the file, so every request for it is reported."""
    names = ["tf_efficientnet_b4_ns", "tf_efficientnet_b4_ns_03d"]
    environment = {
        "PYTHON": sys.executable,
        "TORCH_HOME": str(tmp_path),
        "IMAGENET_URL": server,
        "NO_PROXY": "127.0.0.1",
    }
    command = [face_crops.ROOT / "download_weights.sh", "--imagenet", *names]
    done = programs.run(command, env={**os.environ, **environment})
    assert done.returncode == 1
    assert done.stderr.count(": no such file. Set IMAGENET_URL") == 1


def test_missing_imagenet_weights_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tf_efficientnet_b4_ns.pth"
    with pytest.raises(CheckpointError, match=rf"{path}: .*name"):
        imagenet.check_weights(path)
    path = tmp_path / imagenet.cached_weights("tf_efficientnet_b4_ns").name
    with pytest.raises(CheckpointError, match=rf"{path}: cannot be read .*Download"):
        imagenet.check_weights(path)


def test_unknown_encoder_is_an_error() -> None:
    command = [face_crops.ROOT / "download_weights.sh", "--imagenet", "tf_efficientnet_b9"]
    done = programs.run(command, env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 2
    assert "'tf_efficientnet_b9' is none of tf_efficientnet_lite0" in done.stderr


@pytest.mark.parametrize("kind", ["timm", "timm without head", "checkpoint", "released"])
def test_reads_pretrained_weights_from_a_file(encoder: torch.nn.Module, tmp_path: Path, kind: str) -> None:
    state = encoder.state_dict()
    if kind == "timm without head":
        state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    elif kind != "timm":
        prefix = "encoder." if kind == "checkpoint" else "module.encoder."
        state = {"state_dict": {f"{prefix}{key}": value for key, value in state.items()} | {"fc.bias": torch.ones(1)}}
    torch.save(state, tmp_path / "weights.pt")
    found = build.init_network(read_config(face_crops.config(tmp_path, pretrained="weights.pt")), fresh=True)
    for key, value in found.encoder.state_dict().items():
        if not key.startswith("classifier."):
            assert torch.equal(value, encoder.state_dict()[key])
    assert found.training


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": 1}, "has no weights"),
        ({"conv_stem.weight": torch.zeros(1)}, "does not fit .* missing"),
        (None, "no such checkpoint"),
    ],
)
def test_file_without_the_encoder_is_an_error(tmp_path: Path, content: dict | None, reason: str) -> None:
    path = tmp_path / "weights.pt"
    if content is not None:
        torch.save(content, path)
    network = build_network("DeepFakeClassifier", ENCODER)
    with pytest.raises(CheckpointError, match=f"{path}: {reason}"):
        load_encoder(network.encoder, path)


def test_warns_of_random_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build.init_network(read_config(face_crops.config(tmp_path, pretrained=False)), fresh=True)
    assert "pretrained is false" in caplog.text
