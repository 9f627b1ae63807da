"""The measurements and tables of a model's card, and the lists of people that they are split by."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import find_people, model_card
from common.errors import UserError
from tests.support import face_crops, programs

DEFAULT = face_crops.ROOT / "weights/default_lite0.pt"
CARD = "Faces:\n<!-- faces -->\nold\n<!-- end -->\nBetween.\n<!-- verdicts -->\n<!-- end -->\nAfter.\n"


def run(module: str, *options: str | Path | int) -> None:
    done = programs.run([sys.executable, "-m", module, *options], cwd=face_crops.ROOT, env=face_crops.environment())
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_measures_a_checkpoint_and_fills_its_card(tmp_path: Path) -> None:
    root, output = face_crops.make_dataset(tmp_path / "data", 1, 8, [0]), tmp_path / "out"
    card = face_crops.write(output / "MODEL_CARD.md", CARD.encode())
    data = ("--checkpoint", DEFAULT, "--data-dir", root, "--workers", 1, "--device", "cpu")
    run("benchmarks.model_card", *data, "--output-dir", output)
    result = json.loads((output / "card.json").read_text())
    for name, place in (("faces", ()), ("swaps", ("--crops-dir", "swaps", "--folds-csv", root / "swaps.csv"))):
        scores, metrics = tmp_path / "scores.csv", tmp_path / "metrics.json"
        run(
            "training.pipelines.evaluate", *data, *place, "--half", "report", "--predictions", scores, "--json", metrics
        )
        expected = json.loads(metrics.read_text())
        assert expected["videos"] > 4
        assert {key: result[name][key] for key in expected} == pytest.approx(expected, rel=1e-4)
        low, high = result[name]["intervals"]["log_loss"]
        assert low < result[name]["log_loss"] < high
        if name == "faces":
            check_verdicts(result["verdicts"], pd.read_csv(scores))
    assert result["modified"]["unchanged"]["auc"] == pytest.approx(result["faces"]["auc"])
    assert {path.name for path in output.iterdir()} == {"card.json", "MODEL_CARD.md", "roc.png", "reliability.png"}
    text = card.read_text()
    assert f"| AUC | {result['faces']['auc']:.3f} (" in text
    assert "old" not in text
    assert text.startswith("Faces:\n<!-- faces -->\n| Metric |")
    assert text.endswith("<!-- end -->\nAfter.\n")
    assert model_card.update(text, result) == text


def check_verdicts(verdicts: dict[str, dict[str, float]], scores: pd.DataFrame) -> None:
    bands = model_card.load_network(DEFAULT)[1].bands
    assert bands is not None
    for label, name in enumerate(("real", "fake")):
        faces = scores.loc[scores["label"] == label, "score"]
        shares = verdicts[name]
        assert shares["faces"] == len(faces)
        assert shares["likely_real"] == pytest.approx((faces <= bands.real).mean())
        assert shares["likely_fake"] == pytest.approx((faces >= bands.fake).mean())
        assert shares["likely_real"] + shares["inconclusive"] + shares["likely_fake"] == pytest.approx(1)


def test_unknown_table_is_an_error() -> None:
    with pytest.raises(UserError, match="unknown table votes"):
        model_card.update("<!-- votes -->\n<!-- end -->", {})


def test_clusters_embeddings_into_people() -> None:
    """People are numbered by the number of their crops, and a crop of nobody else is a person of its own."""
    random = np.random.default_rng(0)
    centers = np.eye(128)[:4]
    truth = random.permutation([0] * 3 + [1] * 20 + [2] * 8 + [3])
    embeddings = centers[truth] + random.normal(0, 0.02, (len(truth), 128))
    assert find_people.cluster(embeddings, 0.6) == [{1: 0, 2: 1, 0: 2, 3: 3}[person] for person in truth]
    assert len(set(find_people.cluster(embeddings, 0.05))) == len(truth)
    assert set(find_people.cluster(embeddings, 2.0)) == {0}


def test_splits_crops_into_folds_of_people() -> None:
    random = np.random.default_rng(0)
    people = {f"{number:03}": number % 40 for number in range(400)}
    originals = pd.Series(random.choice(list(people), 3000).tolist() + ["unknown"] * 5)
    folds = find_people.split(originals, people, 5)
    assert folds.index.equals(originals.index)
    assert set(folds[originals == "unknown"]) == {-1}
    known = originals != "unknown"
    assert folds[known].groupby(originals[known].map(people)).nunique().eq(1).all()
    sizes = folds[known].value_counts()
    assert sorted(sizes.index) == [0, 1, 2, 3, 4]
    assert sizes.max() < 1.1 * sizes.min()
