"""Results of benchmarks: limits of the machine, JSON files, and the tables of the documentation."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import limits, models, results, tables
from common.errors import UserError
from training.tools.checkpoint import load_network

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
