"""The log of a training run: damaged lines, a full disk and TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.files import OutputError
from training.tools.log import EpochLog, LogError, read_log

FIRST = '{"epoch": 0, "fake_loss": 0.5}\n'


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "7",
        "null",
        "{}",
        "[" * 10**5,
        "not JSON",
        "",
        "\0",
        '{"epoch": "1"}',
        '{"epoch": null}',
        '{"epoch": true}',
        '{"epoch": 1.0}',
        '{"epoch": -1}',
        f'{{"epoch": {2**31}}}',
        '{"epoch": 0}',
        '{"epoch": 1, "fake_loss": "0.5"}',
        '{"epoch": 1, "fake_loss": [0.5]}',
        '{"epoch": 1, "fake_loss": true}',
        '{"epoch": 1, "fake_loss": 1e39}',
        f'{{"epoch": 1, "fake_loss": {10**400}}}',
        f'{{"epoch": 1, "fake_loss": {"9" * 5000}}}',
    ],
    ids=range(21),
)
@pytest.mark.parametrize("more", ["", '{"epoch": 2}\n'])
def test_wrong_lines_are_errors(tmp_path: Path, line: str, more: str) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(FIRST + line + "\n" + more)
    with pytest.raises(LogError, match=f"{path}: line 2 "):
        read_log(path)


def test_reads_numbers_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(FIRST + '{"epoch": 3, "fake_loss": NaN, "real_loss": -Infinity, "auc": null, "videos": 4}\n{"epo')
    first, second = read_log(path)
    assert first == {"epoch": 0, "fake_loss": 0.5}
    assert math.isnan(second.pop("fake_loss"))
    assert second == {"epoch": 3, "real_loss": -math.inf, "auc": None, "videos": 4}


def test_tensorboard_shows_the_epochs_of_the_last_run(tmp_path: Path) -> None:
    """Epochs that a resumed run repeats replace those of the killed one, and a new run replaces all."""
    for start, loss in ((0, 9.0), (0, 1.0), (2, 2.0)):
        log = EpochLog(tmp_path, "run", start)
        for epoch in range(start, 4):
            log.add({"epoch": epoch, "bce": loss, "auc": None, "train_loss": math.nan})
    assert [line["bce"] for line in read_log(tmp_path / "run.jsonl")] == [1, 1, 2, 2]
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert events.Tags()["scalars"] == ["bce", "train_loss"]
    assert [(event.step, event.value) for event in events.Scalars("bce")] == [(0, 1), (1, 1), (2, 2), (3, 2)]


@pytest.mark.parametrize("full", ["log", "events"])
def test_full_disk_names_the_file_and_the_remedy(tmp_path: Path, capfd: pytest.CaptureFixture[str], full: str) -> None:
    log = EpochLog(tmp_path, "run", 0)
    path = log.path if full == "log" else log.events.path
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(OutputError, match=f"{path}: .*[Ff]ree"):
        log.add({"epoch": 0, "bce": 0.5})
    assert not capfd.readouterr().err  # SummaryWriter's thread would print a traceback


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OutputError, match=str(tmp_path / "run")):
        EpochLog(tmp_path, "run", 0)
    assert json.loads(FIRST)  # the line itself is valid
