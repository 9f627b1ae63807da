"""Results of benchmarks: limits of the machine, JSON files, and the tables of the documentation."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import leave_people_out, limits, models, results, tables
from common.errors import UserError
from tests.support import face_crops, programs
from training.pipelines import train_classifier
from training.tools.checkpoint import load_network, read_checkpoint

RESULT = {
    "work": "2 clips",
    "machine": {
        "cpu": "EPYC",
        "cores": 2,
        "instruction_sets": ["AVX2", "AMX"],
        "gpu": None,
        "versions": {"torch": "2.14.1"},
    },
    "ratio": 4.04,
    "stages": {
        "decode": results.Stage(2.0, 1.0, 0.5, "FFmpeg").to_dict(),
        "detect": results.Stage(6.06, 1.0).to_dict(),
    },
    "max_score_difference": 0.00123,
}
TABLE = """2 clips, on 2 cores (EPYC, AMX, PyTorch 2.14.1):

| | Plain | This project | Speedup | Share of the limit | Limit |
|---|---|---|---|---|---|
| decode | 2.00 s | 1.00 s | 2.0 | 50% | FFmpeg |
| detect | 6.06 s | 1.00 s | 6.1 |  |  |

Speedup: **4.0**. Largest difference between video scores: 0.0012."""


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(tables.__file__).parent.glob("[!_]*.py")))
def test_every_benchmark_can_be_imported(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_documentation_has_the_tables_of_the_results() -> None:
    page = tables.PAGE.read_text()
    assert tables.update(page, tables.RESULTS) == page, "run python -m benchmarks.tables"
    assert {name for _, name, _ in tables.TABLE.findall(page)} == {path.name for path in tables.RESULTS.glob("*.json")}


def test_a_table_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text(json.dumps(RESULT))
    page = "Before.\n<!-- some.json -->\nold\n<!-- end -->\nAfter.\n"
    expected = page.replace("old", TABLE)
    assert tables.update(page, tmp_path) == expected
    assert tables.update(expected, tmp_path) == expected


def test_a_table_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json"):
        tables.update("<!-- none.json -->\n<!-- end -->", tmp_path)


def test_results_name_the_machine(tmp_path: Path) -> None:
    results.write_json(tmp_path / "out.json", "1 clip", {"ratio": 2.0, "stages": {}, "outputs_equal": True})
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["ratio"] == 2.0
    assert written["machine"]["cores"] >= 1
    assert written["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "Outputs are equal." in tables.table(written)


def test_flops_of_depthwise_convolutions_are_counted_per_group() -> None:
    full, depthwise = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
    images = torch.zeros(2, 8, 5, 5)
    assert limits.count_flops(nn.Sequential(full), images) == 2 * (2 * 8 * 25) * (8 * 9)
    assert limits.count_flops(nn.Sequential(depthwise), images) == 2 * (2 * 8 * 25) * 9


def test_limits_are_measured(face_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limits.MATRIX_SIDE, "cpu", 64)
    assert limits.matmul_rate(torch.device("cpu"), torch.float32) > 0
    assert limits.decode_seconds([face_video]) > 0
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(bytes(100))
    assert limits.copy_seconds(tmp_path / "folder") > 0
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_models_are_random_networks_or_files(tmp_path: Path) -> None:
    assert models.find_models(["a.pt", "b.pt"], tmp_path) == [Path("a.pt"), Path("b.pt")]
    first, second = models.find_models(["2"], tmp_path)
    assert not torch.equal(load_network(first)[0].fc.weight, load_network(second)[0].fc.weight)


@pytest.mark.slow
def test_leave_people_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list of swaps is that of the crops with the labels exchanged, which gives an AUC of 1 minus theirs."""
    root = face_crops.make_dataset(tmp_path, folds=4, pairs=4, frames=(0, 20))
    lines = [line.split(",") for line in (root / "folds.csv").read_text().splitlines()]
    for line in lines[1:]:
        line[2] = str(1 - int(line[2]))
    swaps = face_crops.write(root / "swaps.csv", "\n".join(map(",".join, lines)).encode())
    config = face_crops.config(root, batches_per_epoch=1, optimizer__schedule__epochs=2)
    settings = {"common": ["--config", str(config)], "runs": {"baseline": []}}
    face_crops.write(root / "settings.json", json.dumps(settings).encode())
    options = ("--data-dir", root, "--settings", root / "settings.json", "--folds", 1, 3, "--output", root / "out")
    options = (*options, "--swaps-csv", swaps, "--swaps-dir", root / "crops", "--workers", 0, "--device", "cpu")
    args = leave_people_out.get_args_parser().parse_args(list(map(str, options)))

    assert leave_people_out.main(args) == 0
    last = root / f"out/baseline/{face_crops.NETWORK}_last.pt"
    assert read_checkpoint(last)["training"]["settings"]["hold_out"] == [1, 3]
    baseline = json.loads((root / "out/results.json").read_text())["stages"]["baseline"]
    assert baseline["crops_seen"] == 2 * 8
    folds = [evaluate(root, last, fold) for fold in (1, 3)]
    for name in ("auc", "log_loss"):
        values = [metrics[name] for metrics in folds]
        assert [metrics[name] for metrics in baseline["by_fold"]] == pytest.approx(values, rel=1e-4)
        assert baseline[name] == pytest.approx([np.mean(values), np.std(values, ddof=1)], rel=1e-3)
    mean, spread = baseline["auc"]
    assert baseline["swaps_auc"] == pytest.approx([1 - mean, spread])
    row = f"| baseline | 16 | {mean:.3f} ± {spread:.3f} |"
    assert row in capsys.readouterr().out

    last.unlink()  # a finished run is not repeated
    settings["runs"]["seed"] = ["--seed", "1"]
    face_crops.write(root / "settings.json", json.dumps(settings).encode())
    assert leave_people_out.main(args) == 0
    assert not last.exists()
    stages = json.loads((root / "out/results.json").read_text())["stages"]
    assert stages["baseline"] == baseline
    assert stages["seed"]["log_loss"] != baseline["log_loss"]
    printed = capsys.readouterr().out
    assert row in printed
    assert "| seed | 16 |" in printed


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"runs": {"a": []}}',
        '{"common": [], "runs": {}}',
        '{"common": [], "runs": {"a": "--seed"}}',
        '{"common": "--compile", "runs": {"a": []}}',
        '{"common": ["--seed", 1], "runs": {"a": []}}',
        '{"common": [], "runs": {"a/b": []}}',
        '{"common": [], "runs": {"..": []}}',
    ],
)
def test_settings_of_another_form_are_an_error(tmp_path: Path, content: str) -> None:
    path = face_crops.write(tmp_path / "settings.json", content.encode())
    with pytest.raises(UserError, match=r"settings\.json: "):
        leave_people_out.read_settings(path)


def test_settings_of_this_repository_can_be_read() -> None:
    for path in (face_crops.ROOT / "benchmarks/settings").glob("*.json"):
        for run in leave_people_out.read_settings(path):
            train_classifier.get_args_parser().parse_args([*run.options, "--data-dir", "data"])


def evaluate(root: Path, checkpoint: Path, fold: int) -> dict[str, float]:
    """The metrics that evaluate.py writes."""
    options = ("--checkpoint", checkpoint, "--data-dir", root, "--fold", fold, "--workers", 0, "--device", "cpu")
    command = [sys.executable, "-m", "training.pipelines.evaluate", *options, "--json", root / "metrics.json"]
    done = programs.run(command, cwd=face_crops.ROOT, env=face_crops.environment())
    assert done.returncode == 0, done.stderr
    return json.loads((root / "metrics.json").read_text())
