"""The weights that an encoder starts from: fetched (here from a server of the test's own), or in a file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.support import face_crops, golden
from training.pipelines import build
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
    """What a model hub answers when it is asked for a file."""
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


def fetch(endpoint: str, place: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(place / "hub"), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", PROGRAM, str(face_crops.config(place))]
    return subprocess.run(command, capture_output=True, text=True, cwd=face_crops.ROOT, env=environment, timeout=300)


def test_fetched(server: str, encoder: torch.nn.Module, tmp_path: Path) -> None:
    done = fetch(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == encoder.conv_stem.weight.double().sum().item()


def test_not_to_be_fetched(server: str, tmp_path: Path) -> None:
    """No silent start from random weights."""
    done = fetch(f"{server}/nowhere", tmp_path)
    assert done.returncode != 0
    assert f"SetupError: the published weights of {ENCODER} cannot be fetched" in done.stderr
    assert "--set pretrained=FILE or pretrained=false" in done.stderr


@pytest.mark.parametrize("kind", ["timm", "timm without head", "checkpoint", "released"])
def test_in_a_file(encoder: torch.nn.Module, tmp_path: Path, kind: str) -> None:
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
    ("content", "said"),
    [
        ({"a": 1}, "holds no weights"),
        ({"conv_stem.weight": torch.zeros(1)}, "are not those of the configuration's encoder: Missing key"),
        (None, "no such checkpoint"),
    ],
)
def test_not_an_encoder(tmp_path: Path, content: dict | None, said: str) -> None:
    path = tmp_path / "weights.pt"
    if content is not None:
        torch.save(content, path)
    network = build_network("DeepFakeClassifier", ENCODER)
    with pytest.raises(CheckpointError, match=said):
        load_encoder(network.encoder, path)


def test_random_weights_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build.init_network(read_config(face_crops.config(tmp_path, pretrained=False)), fresh=True)
    assert "the encoder starts from random weights" in caplog.text
