"""Which GPU each worker process uses, on machines that a stand-in for PyTorch describes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common import gpus
from common.cores import available_cores
from common.gpus import VISIBLE, WORKER_MEMORY, place_workers
from common.local_executor import run_local
from common.outcome import Job, Outcome

STAND_IN = """
class cuda:
    device_count = lambda: len({memory})
    mem_get_info = lambda gpu: ({memory}[gpu], 2**40)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Describe a machine by the number of worker processes that each GPU has room for."""

    def describe(*rooms: float) -> None:
        memory = [int(room * WORKER_MEMORY) for room in rooms]
        (tmp_path / "torch.py").write_text(STAND_IN.format(memory=memory))

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpus, "DRIVERS", (str(tmp_path),))
    monkeypatch.delenv(VISIBLE, raising=False)
    return describe


def used(environments: list[dict[str, str]]) -> list[str]:
    return sorted(environment[VISIBLE] for environment in environments)


def test_workers_are_spread_over_the_gpus(machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpus, "available_cores", lambda: 16)
    machine(39.9, 39.9, 39.9, 39.9)
    assert used(place_workers("cuda", None)) == [gpu for gpu in "0123" for _ in range(4)]
    machine(2.5, 5.5)  # as many as there is room for
    assert used(place_workers("auto", None)) == ["0"] * 2 + ["1"] * 5
    assert used(place_workers("auto", 9)) == ["0"] * 3 + ["1"] * 6  # as many as the user says
    machine(0.5, 0.9)
    assert len(place_workers("auto", None)) == 1
    monkeypatch.setenv(VISIBLE, "GPU-a,GPU-b")  # all that PyTorch sees
    machine(1, 2)
    assert used(place_workers("auto", None)) == ["GPU-a", "GPU-b", "GPU-b"]


def test_one_gpu_needs_no_choice(machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpus, "available_cores", lambda: 8)
    machine(3)
    assert place_workers("auto", None) == [{}] * 3
    machine(3, 20)
    assert place_workers("cuda:1", None) == [{}] * 8
    assert place_workers("cuda:0", None) == [{}] * 3
    assert place_workers("cuda:9", None) == [{}] * 8  # the device reports this


def test_without_a_gpu_there_is_one_worker_per_core(machine, monkeypatch: pytest.MonkeyPatch):
    machine()
    for device in ("auto", "cpu", "mps", None):
        assert place_workers(device, None) == [{}] * available_cores()
        assert place_workers(device, 3) == [{}] * 3
    (Path(gpus.DRIVERS[0]) / "torch.py").write_text("raise ImportError")
    assert place_workers("auto", 3) == [{}] * 3
    monkeypatch.setattr(gpus, "DRIVERS", ())
    assert gpus.free_memory() == []


def visible(_: str) -> Outcome:
    return Outcome("ok", os.environ.get(VISIBLE, ""))


def test_a_worker_process_sees_its_gpu(machine):
    machine(5, 5)
    jobs = [Job(name, (), Path(name), (name,)) for name in "abcd"]
    outcomes = [outcome.message for _, outcome in run_local(visible, jobs, 2, device="cuda")]
    assert set(outcomes) == {"0", "1"}
    assert VISIBLE not in os.environ
    assert list(run_local(visible, [], 2, device="cuda")) == []
