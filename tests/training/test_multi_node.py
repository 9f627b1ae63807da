"""train.sh on two nodes, which are two torchrun agents on this machine with one process on the CPU each."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import face_crops, programs

NAME = f"tiny_111_{face_crops.NETWORK}"
# A Python interpreter for train.sh. Only the first seed is trained. If KILL is set, the node's process is killed at its
# second step; after the restart it is killed again, and with it the torchrun that started it.
KILLING_PYTHON = f"""#!/bin/sh
export KILLED_RANK="$RANK"
case "$KILL $TORCHELASTIC_RESTART_COUNT $*" in
    *torchrun.py*) AGENT=$$ exec "{sys.executable}" "$@" ;;
    "yes 0 "*"--seed 111 "*) exec "{sys.executable}" "{face_crops.KILLED_TRAINING}" 1 "$@" ;;
    "yes 1 "*"--seed 111 "*) "{sys.executable}" "{face_crops.KILLED_TRAINING}" 1 "$@"; kill -9 "$AGENT" ;;
    *"--seed 111 "*) exec "{sys.executable}" "$@" ;;
    *train_classifier.py*) ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = face_crops.make_dataset(tmp_path)
    face_crops.config(root, size=32, batches_per_epoch=1, optimizer__schedule__epochs=4)
    return root


@contextmanager
def node(
    root: Path, rank: int, port: int, *options: str | Path, python: str | Path = sys.executable, kill: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """Start train.sh as one of two nodes. Its messages go to root/node<rank>.log."""
    folders = ("--output-dir", root / "weights", "--logdir", root / "logs")
    variables = {"NNODES": 2, "NODE_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": port, "PYTHON": python}
    variables |= {"PET_LOCAL_ADDR": "localhost", "KILL": kill}
    environment = face_crops.environment() | {key: str(value) for key, value in variables.items()}
    command = [face_crops.ROOT / "train.sh", root, 0, root / "tiny.json", "--workers", 0, *folders, *options]
    with (
        (root / f"node{rank}.log").open("w") as log,
        programs.started(command, env=environment, stdout=log, stderr=log) as process,
    ):
        yield process


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


@pytest.mark.slow
def test_killed_process_and_killed_node_change_nothing(root: Path, tmp_path: Path) -> None:
    """After a killed process, training restarts; after a killed node, it waits until that node starts again."""
    python = face_crops.write(tmp_path / "python", KILLING_PYTHON.encode())
    python.chmod(0o755)
    port = free_port()
    with node(root, 0, port, python=python) as first:
        with node(root, 1, port, python=python, kill="yes") as second:
            assert second.wait(programs.LIMIT) == 128 + signal.SIGKILL
        restarts = (root / "node1.log").read_text()
        assert "stopped at seed 111 (exit status 137)\n" in restarts
        assert "restarting (2 restarts left)" in restarts
        with node(root, 1, port, python=python) as second:
            assert second.wait(programs.LIMIT) == 0, (root / "node1.log").read_text()
        assert first.wait(programs.LIMIT) == 0, (root / "node0.log").read_text()
    messages = "".join((root / f"node{rank}.log").read_text() for rank in (0, 1)) + restarts
    assert [messages.count(f"resumed from {root}/weights/{NAME}_last.pt, at epoch {n}") for n in range(4)] == [
        0,
        1,
        1,
        0,
    ]
    assert "== seed 999" in messages
    log = face_crops.log(root, NAME)
    assert [line["epoch"] for line in log] == [0, 1, 2, 3]
    outputs = {path.name: path.read_bytes() for path in (root / "weights").iterdir() if path.suffix in (".pt", ".csv")}

    for folder in ("weights", "logs"):
        shutil.rmtree(root / folder)
    options = ("--seed", 111, "--prefix", "tiny_111_", "--workers", 0)
    uninterrupted = face_crops.train(root, *options, processes=2)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert len(outputs) == 2 * 6  # four epochs, the best and the last
    assert outputs == {name: (root / "weights" / name).read_bytes() for name in outputs}
    expected = face_crops.log(root, NAME)
    assert [line["train_loss"] for line in log] == [line["train_loss"] for line in expected]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--output-dir", "--label-smoothing"])
def test_nodes_that_differ_are_refused(root: Path, option: str) -> None:
    """Output folders that are not shared, or other options. Nothing is started again: it would fail in the same way.

    The node that ends first stops the other one, which may not have printed its own error yet.
    """
    port, values = free_port(), {"--output-dir": (root / "a", root / "b"), "--label-smoothing": ("0.1", "0.2")}[option]
    with (
        node(root, 0, port, option, values[0]) as first,
        node(root, 1, port, option, values[1]) as second,
    ):
        statuses = {process.wait(programs.LIMIT) for process in (first, second)}
    assert statuses in ({2}, {1, 2})
    messages = "".join((root / f"node{rank}.log").read_text() for rank in (0, 1))
    errors = [f"error: {folder}: " for folder in values] if option == "--output-dir" else ["error: NNODES: "]
    assert any(error in messages for error in errors), messages
    assert messages.count("== seed 111") == 1  # by the main process
    assert not [*root.glob("[ab]/*"), *root.glob("weights/*")]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(("NNODES", value) for value in ("0", "two", "-1", "1:2")),
        *(("NODE_RANK", value) for value in ("", "2", "-1", "01", "x")),
        *(("MASTER_PORT", value) for value in ("0", "65536", "http")),
        *(("MAX_RESTARTS", value) for value in ("-1", "many")),
        ("MASTER_ADDR", ""),
    ],
)
def test_invalid_variables(variable: str, value: str) -> None:
    valid = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "localhost", "PYTHON": "/nonexistent"}
    done = programs.run(
        [face_crops.ROOT / "train.sh", "data", 4], env=face_crops.environment() | valid | {variable: value}
    )
    assert done.returncode == 2
    assert done.stderr.startswith(variable)
    assert len(done.stderr.splitlines()) == 1
