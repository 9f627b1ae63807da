"""The direction of the dependencies: common <- preprocessing <- training <- inference <- the scripts in the root."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import programs

ROOT = Path(__file__).parents[1]
LAYERS = ("common", "preprocessing", "training", "inference")
ENTRY_POINTS = (
    "predict_folder.py",
    "plot_loss.py",
    "training/pipelines/train_classifier.py",
    "training/pipelines/evaluate.py",
    "training/pipelines/calibrate.py",
)
# timm, facenet-pytorch, albumentations and scikit-learn load one of these.
HEAVY = {"torch", "cv2", "av", "scipy", "skimage", "matplotlib", "pandas"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_of(path): path
    for pattern in ("*.py", *(f"{folder}/**/*.py" for folder in (*LAYERS, "tests", "benchmarks")))
    for path in ROOT.glob(pattern)
}


def imports(module: str) -> Iterator[str]:
    """The modules of this repository that a module imports, including those within functions and for type checking."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative imports are not checked here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            found = next((known for known in (name, name.rpartition(".")[0]) if known in FILES), None)
            if found and found != module:
                yield found


def package_of(module: str) -> str:
    return module.partition(".")[0]


GRAPH = {module: set(imports(module)) for module in FILES}
PRODUCT = {module for module in FILES if package_of(module) not in ("tests", "benchmarks")}


def test_imports_point_downward() -> None:
    for module in PRODUCT:
        package = package_of(module)
        allowed = LAYERS[: LAYERS.index(package) + 1] if package in LAYERS else LAYERS
        assert {package_of(name) for name in GRAPH[module]} <= set(allowed), module


def test_no_import_cycles() -> None:
    TopologicalSorter({module: GRAPH[module] for module in PRODUCT}).prepare()  # raises CycleError


def test_no_stage_imports_another() -> None:
    stages = {module for module in PRODUCT if "stage.make_parser" in FILES[module].read_text()}
    assert len(stages) == 7
    for module in PRODUCT:
        assert not stages & GRAPH[module], module


def test_tests_and_benchmarks_are_independent() -> None:
    """Benchmarks import no tests; tests import only tests.support, and the benchmarks that they test."""
    for module in FILES.keys() - PRODUCT:
        shared = {name for name in GRAPH[module] if package_of(name) in ("tests", "benchmarks")}
        allowed = ("tests.support", "benchmarks.") if package_of(module) == "tests" else "benchmarks."
        assert all(name.startswith(allowed) for name in shared), module


@pytest.mark.parametrize("path", ENTRY_POINTS)
def test_entry_points_load_heavy_libraries_late(path: str) -> None:
    """Late imports keep --help and usage errors fast and let Ctrl-C during start-up exit cleanly."""
    finished = programs.run([sys.executable, "-X", "importtime", ROOT / path, "--help"])
    assert finished.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "common.cli" in loaded
    assert not HEAVY & loaded
