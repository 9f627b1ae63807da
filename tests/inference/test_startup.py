"""A short run imports only what it needs: each of these libraries would take a good part of its time."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from common.collector import no_garbage_collection
from tests.support import programs

ROOT = Path(__file__).parents[2]
UNUSED = {
    "albumentations",
    "facenet_pytorch",
    "huggingface_hub",
    "matplotlib",
    "pandas",
    "scipy",
    "skimage",
    "sklearn",
    "timm",
    "torch._dynamo",
    "torchvision",
}


def test_prediction_imports_only_what_it_needs(face_video: Path, tmp_path: Path) -> None:
    arguments = "--test-dir", face_video, "--output", tmp_path / "scores.csv", "--device", "cpu"
    finished = programs.run([sys.executable, "-X", "importtime", ROOT / "predict_folder.py", *arguments])
    assert finished.returncode == 0, finished.stderr
    loaded = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert {"torch", "inference.predictor"} <= loaded
    assert not UNUSED & loaded


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_again_after_imports(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ImportError, match="collecting: False"), no_garbage_collection():
            raise ImportError(f"collecting: {gc.isenabled()}")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
