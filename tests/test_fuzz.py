"""A short run of the fuzzer, the same on every run: it finds nothing, and it would report what it finds."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import programs

ROOT = Path(__file__).parents[1]
# Cases per target: few where a case takes long, because it decodes a clip or builds a network.
CASES = {
    "journal dataset folds boxes log config submission": 150,
    "crops": 60,
    "checkpoint resume": 15,
    "decoder stage": 60,
    "predict preprocess": 12,
}

# A fuzzer of targets that misbehave in the second of three cases.
BROKEN = """
import os, sys, time, warnings
from argparse import Namespace
from pathlib import Path

from benchmarks import fuzz
from benchmarks.fuzzing.target import Target
from common.errors import UserError


def fail():
    raise UserError("a documented error")


class Broken(Target):
    batch, limit = 3, 5.0

    def __init__(self, seeds, name, action):
        self.seeds, self.name, self.action = seeds, name, action

    def make(self, rng, folder):
        (folder / "input").write_text(str(rng.random()))

    def check(self, rng, folder):
        self.cases = getattr(self, "cases", 0) + 1
        if self.cases == 2:
            self.action()
        return "ok"


def make_targets(seeds):
    actions = {
        "fine": fail,
        "raises": lambda: {}["key"],
        "dies": lambda: os._exit(7),
        "hangs": lambda: time.sleep(99),
        "prints": lambda: warnings.warn("odd"),
        "grows": lambda: bytearray(b"x") * 2**31,
        "writes": lambda: fail_with(UserError("x" * 9999)),
    }
    return [Broken(seeds, name, action) for name, action in actions.items()]


def fail_with(error):
    raise error


if __name__ == "__main__":
    names = [target.name for target in make_targets(Path())]
    output = Path(sys.argv[1])
    args = Namespace(minutes=9, cases=3, first=0, seed=0, jobs=2, targets=names, output=output)
    sys.exit(fuzz.main(args, make_targets))
"""


def results_of(output: str) -> dict[str, tuple[int, int]]:
    """The cases and findings by target."""
    rows = re.findall(r"^(\w+) +(\d+) +\d+ +(\d+)  ", output, re.MULTILINE)
    return {name: (int(cases), int(findings)) for name, cases, findings in rows}


@pytest.mark.slow
@pytest.mark.parametrize("targets", CASES)
def test_finds_nothing(tmp_path: Path, targets: str):
    names, cases = targets.split(), CASES[targets]
    options = ("--cases", str(cases), "--targets", *names, "--output", tmp_path / "findings")
    done = programs.run([sys.executable, "-m", "benchmarks.fuzz", *options], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results_of(done.stdout) == dict.fromkeys(names, (cases, 0))
    assert not (tmp_path / "findings").exists()


@pytest.mark.slow
def test_reports_exceptions_crashes_hangs_warnings_memory_and_long_messages(tmp_path: Path):
    script, findings = tmp_path / "broken.py", tmp_path / "findings"
    script.write_text(BROKEN)
    done = programs.run([sys.executable, script, findings], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1, done.stdout + done.stderr
    broken = ("raises", "dies", "hangs", "prints", "grows", "writes")
    assert results_of(done.stdout) == {"fine": (3, 0), **dict.fromkeys(broken, (3, 1))}
    assert "21 cases, 6 findings" in done.stdout
    texts = {path.parent.name: path.read_text() for path in findings.glob("*/finding.txt")}
    expected = ("KeyError", "exit status 7", "no result within 5 s", "UserWarning: odd", "GiB of memory", "characters")
    for name, text in zip(broken, expected, strict=True):
        assert text in texts[f"{name}_0_1"]
        assert (findings / f"{name}_0_1" / "input").exists()


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_prints_the_summary(tmp_path: Path, signal_number: signal.Signals):
    command = [sys.executable, "-m", "benchmarks.fuzz", "--targets", "journal", "--output", tmp_path]
    with programs.started(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        programs.wait_for(lambda: len(workers.read_text().split()) == 2, "the worker process starts", process)
        process.send_signal(signal_number)
        output, errors = process.communicate(timeout=programs.LIMIT)
    assert process.returncode == 130, errors
    assert "journal" in results_of(output)
    assert "Traceback" not in errors
