"""The documentation agrees with the code: links, options, keys, versions and the Python examples."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import __version__
from inference.submission import STATUSES
from training.tools import config
from training.tools.schedulers import SCHEDULES

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    ROOT / page for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "weights/MODEL_CARD.md")
) + sorted((ROOT / "docs").glob("*.md"))
TEXT = "\n".join(page.read_text() for page in PAGES)
OPTION = r"(?<![\w-])--[a-z][a-z-]*"
# Commands whose options must all be documented.
DOCUMENTED = (
    "predict_folder",
    "plot_loss",
    "preprocessing.detect_original_faces",
    "preprocessing.extract_crops",
    "preprocessing.generate_landmarks",
    "preprocessing.generate_diffs",
    "preprocessing.generate_folds",
    "preprocessing.compress_videos",
    "preprocessing.extract_images",
    "training.pipelines.train_classifier",
    "training.pipelines.evaluate",
    "training.pipelines.calibrate",
    "training.pipelines.crop_landmarks",
    "training.pipelines.face_swaps",
)
# Options of docker, torchrun and pip.
OTHER_OPTIONS = {
    "--gpus",
    "--ipc",
    "--network",
    "--rm",
    "--build-arg",
    "--user",
    "--nproc-per-node",
    "--requirement",
    "--constraint",
}
# Files that users provide, and an old name in the changelog.
WRITTEN = {"metrics.json", "metadata.json", "figures.json"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_have_targets(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def test_readme_is_short_and_links_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) < 200
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name}" not in readme] == []


@pytest.mark.parametrize("module", DOCUMENTED)
def test_every_option_is_documented(module: str) -> None:
    assert options_of(module) - set(re.findall(OPTION, TEXT)) == set()


def test_documented_options_exist() -> None:
    existing = set().union(*map(options_of, DOCUMENTED), OTHER_OPTIONS)
    scripts = [
        ROOT / "tests" / name for name in ("compare_published.py", "reproduce_training.py", "support/browser.py")
    ]
    others = [*ROOT.glob("*.sh"), *(ROOT / "benchmarks").glob("*.py"), *scripts, ROOT / "Dockerfile"]
    others += (ROOT / "configs" / "cluster").iterdir()
    for path in others:
        existing |= set(re.findall(OPTION, path.read_text()))
    assert set(re.findall(OPTION, TEXT)) - existing == set()


def test_documented_files_exist() -> None:
    files = set(re.findall(r"(?<![\w/.<>-])(?:[\w.]+/)*[a-z]\w*\.(?:py|sh|json)\b", TEXT)) - WRITTEN
    assert {file for file in files if not list(ROOT.glob(file)) and not list(ROOT.glob(f"*/**/{file}"))} == set()
    modules = set(re.findall(r"python -m ([a-z_.]+)", TEXT))
    assert {module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").exists()} == set()


def test_keys_of_details_are_documented(examples: dict[str, Any]) -> None:
    documented = keys_in("docs/formats.md", "### --details")
    header, [record], _ = examples["results"]
    for part in (header, header["models"][0], header["bands"], header["method"], record):
        assert part.keys() - documented == set()
    for part in (record["faces"][0], record["people"][0]):
        assert part.keys() - documented == set()
    assert set(STATUSES) - documented == set()


def test_keys_of_configurations_are_documented() -> None:
    documented = keys_in("docs/training.md", "## Configuration")
    for section in (config.Config, config.OptimizerConfig, config.AugmentationConfig, *SCHEDULES.values()):
        assert section.model_fields.keys() - documented == set()
    assert SCHEDULES.keys() - documented == set()


def test_python_examples_run(examples: dict[str, Any]) -> None:
    first, second, *_ = examples["printed"].splitlines()
    assert examples["results"].records[0]["status"] == "ok"
    assert 0 < float(first.split()[0]) < 1
    name, status, score = second.split()
    assert (name, status) == ("clip.mp4", "ok")
    assert 0 < float(score) < 1
    assert examples["scores"].shape == (1, 1)


def test_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors"} <= citation.keys()
    released = re.findall(r"^## \[(\d[\d.]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == __version__


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The variables of the examples in docs/python.md after they have run, and what they `printed`."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "weights").symlink_to(ROOT / "weights")
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL))
    variables: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, variables)
    finally:
        os.chdir(before)
    return {**variables, "printed": printed.getvalue()}


def options_of(module: str) -> set[str]:
    """The long options of a command."""
    parser = importlib.import_module(module).get_args_parser()
    return {option for option in parser._option_string_actions if option.startswith("--")} - {"--help"}


def keys_in(page: str, heading: str) -> set[str]:
    """The text in code font in the tables of a section and its subsections."""
    level = heading.index(" ")
    section = (ROOT / page).read_text().split(f"\n{heading}\n", 1)[1]
    section = re.split(rf"\n#{{1,{level}}} ", section)[0]
    rows = re.findall(r"^\|.*\|$", section, re.MULTILINE)
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row)}


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes from a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
