"""Stages and prediction on a Ray cluster of three nodes on this machine, with one CPU each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from common import jobs
from common.errors import UserError
from common.local_executor import run_local
from common.ray_cluster import GIB, Resources, connect
from common.ray_executor import run_on_ray
from common.ray_pool import MAX_ATTEMPTS, Pool
from common.watchdog import TimeLimits
from preprocessing import sample_clips
from tests.support import programs
from tests.support.datasets import (
    REAL,
    ROOT,
    STAGES,
    fake_frames,
    fake_of,
    file_hashes,
    portrait_frames,
    run_stage,
    statuses,
    write_part,
)
from tests.support.details import read_records
from tests.support.failing_work import make_jobs, processes, work
from tests.support.ray_workers import Doubler

pytestmark = pytest.mark.slow

NODE = {"num_cpus": 1, "memory": 4 * GIB, "object_store_memory": 100 * 2**20}
# A node counts as lost after three seconds.
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
}
TIMES = {"processing_seconds", "seconds"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(True, head_node_args={**NODE, "include_dashboard": False, "_system_config": HEALTH_CHECKS})
    for _ in range(2):
        cluster.add_node(**NODE)
    connect(cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def options(cluster: Cluster) -> tuple[str, ...]:
    return ("--executor", "ray", "--ray-address", cluster.address)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    sample_clips.face_clip(folder / "face.mp4", 20)
    sample_clips.faceless_clip(folder / "cup.mp4", 20)
    (folder / "empty.mp4").touch()
    for number in range(6):  # so large that a worker takes longer than Ray takes to remove a node
        sample_clips.face_clip(folder / f"face{number}.mp4", 20 + number, 1000, 750)
    return folder


def predict(videos: Path, output: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return programs.run(predict_command(videos, output, *options))


def predict_command(videos: Path, output: Path, *options: str | Path) -> list[str | Path]:
    details = output.with_suffix(".jsonl")
    files = ("--test-dir", videos, "--output", output, "--details", details)
    return [sys.executable, ROOT / "predict_folder.py", *files, *options]


@pytest.fixture(scope="module")
def local(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV of a local run."""
    output = tmp_path_factory.mktemp("local") / "scores.csv"
    assert predict(videos, output).returncode == 3  # empty.mp4
    return output


def check_same_results(output: Path, local: Path) -> None:
    """The same bytes, except times."""
    assert output.read_bytes() == local.read_bytes()
    results = [read_records(path.with_suffix(".jsonl")) for path in (output, local)]
    for records in results:
        for record in records.values():
            for name in TIMES:
                del record[name]
    assert results[0] == results[1]


def test_stages_give_the_bytes_of_a_local_run(options: tuple[str, ...], tmp_path: Path):
    roots = tmp_path / "local", tmp_path / "ray"
    frames = portrait_frames(21)
    for root in roots:
        folder = write_part(root, 0, {"aa.mp4": REAL, "bb.mp4": fake_of("aa.mp4"), "empty.mp4": REAL})
        sample_clips.write_clip(folder / "aa.mp4", frames)
        sample_clips.write_clip(folder / "bb.mp4", fake_frames(frames))
        (folder / "empty.mp4").touch()
    stages = (*STAGES, "compress_videos", "extract_images")
    for stage in stages:
        local, remote = (
            run_stage(stage, root, "--no-dataset-report", *extra)
            for root, extra in zip(roots, ((), options), strict=True)
        )
        assert (remote.returncode, remote.stdout) == (local.returncode, local.stdout), remote.stderr
    assert file_hashes(roots[1]) == file_hashes(roots[0])
    assert statuses(roots[1], "crops") == statuses(roots[0], "crops")
    assert statuses(roots[1], "bboxes")["empty"] == "unreadable"


def test_prediction_gives_the_bytes_of_a_local_run(videos: Path, local: Path, options: tuple[str, ...], tmp_path: Path):
    output = tmp_path / "scores.csv"
    finished = predict(videos, output, *options)
    assert finished.returncode == 3
    assert "empty.mp4" in finished.stdout
    check_same_results(output, local)


def test_lost_node_loses_no_video(
    cluster: Cluster, videos: Path, local: Path, options: tuple[str, ...], tmp_path: Path
):
    """Its workers are in the middle of a video."""
    output = tmp_path / "scores.csv"
    progress = tmp_path / "scores.csv.progress.jsonl"
    node = cluster.add_node(**NODE)
    with programs.started(predict_command(videos, output, *options), stderr=subprocess.PIPE) as process:
        programs.wait_for(lambda: progress.exists() and len(progress.read_text().splitlines()) > 1, "a result", process)
        cluster.remove_node(node, allow_graceful=False)
        _, errors = process.communicate(timeout=programs.LIMIT)
    assert process.returncode == 3
    assert "a worker died" in errors
    check_same_results(output, local)


def test_interrupted_run_resumes(videos: Path, local: Path, options: tuple[str, ...], tmp_path: Path):
    output = tmp_path / "scores.csv"
    progress = tmp_path / "scores.csv.progress.jsonl"
    with programs.started(predict_command(videos, output, *options)) as process:
        programs.wait_for(lambda: progress.exists() and len(progress.read_text().splitlines()) > 2, "results", process)
        process.kill()
    assert not output.exists()
    assert "finished by an earlier run" in predict(videos, output, *options).stderr
    check_same_results(output, local)


def test_failures_are_those_of_a_local_run(cluster: Cluster, tmp_path: Path):
    names = ("a", "dies", "raises", "unreadable", "memory", "sleeps", "stalls", "b")
    limits = TimeLimits(stall=2, clip=10)
    on_ray = partial(run_on_ray, address=cluster.address, resources=Resources(), limits=limits)
    outcomes = []
    for name, execute in (("local", partial(run_local, limits=limits)), ("ray", on_ray)):
        folder = tmp_path / name
        outcomes.append(jobs.run(work, make_jobs(folder, *names), folder, {}, 3, execute=execute))
        assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    local, remote = ({clip: (result.status, result.message) for clip, result in ran.items()} for ran in outcomes)
    assert remote == local
    assert "--clip-timeout" in remote["sleeps"][1]
    folder = tmp_path / "full"
    with pytest.raises(UserError, match="no space"):
        jobs.run(work, make_jobs(folder, "a", "full"), folder, {}, 3, execute=on_ray)


def test_lost_node_loses_no_clip(cluster: Cluster, tmp_path: Path):
    """Nor does one that joins while the run is in progress."""
    folder, node = tmp_path / "out", cluster.add_node(**NODE)
    names = [*(f"slow{number}" for number in range(40)), *(f"waits{number}" for number in range(6))]
    execute = partial(run_on_ray, address=cluster.address, resources=Resources(), limits=TimeLimits())

    def lose_node(*arguments: object) -> Iterator:
        lost = False
        for result in execute(*arguments):
            yield result
            if not lost and len(processes(folder)) == 4:  # a worker on each node
                cluster.remove_node(node, allow_graceful=False)
                cluster.add_node(**NODE)
                lost = True

    outcomes = jobs.run(work, make_jobs(folder, *names), folder, {}, None, execute=lose_node)
    assert {outcome.status for outcome in outcomes.values()} == {"ok"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert len(processes(folder)) >= 5


@pytest.mark.usefixtures("cluster")
def test_item_that_kills_workers_is_given_up(tmp_path: Path):
    pool = Pool(partial(Doubler, tmp_path), Resources(memory=0.1), 1, 60)
    pool._accept = pool._idle.append  # whatever its description
    items = [1, 13, 2, 3, 4]
    results = dict(pool.run(items))
    assert {index: result and result[1] for index, result in results.items()} == {0: 2, 1: None, 2: 4, 3: 6, 4: 8}
    assert pool._attempts[1] == MAX_ATTEMPTS
    assert ray.get(pool._queue.take.remote(0)) is None  # nothing was queued twice
    with pytest.raises(UserError, match="99 is too large"):
        list(pool.run([1, 99]))
    pool.close()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("known", ["first", "other"])
def test_workers_that_differ_are_not_used(tmp_path: Path, known: str):
    pool = Pool(partial(Doubler, tmp_path), Resources(memory=0.1), 3, 60)
    assert pool.describe(lambda description: description["name"] == known) == {"name": known}
    assert {result for _, result in pool.run(range(1, 9))} == {(known, 2 * number) for number in range(1, 9)}
    pool.close()


def test_room_on_a_node():
    node = {"CPU": 8.0, "GPU": 2.0, "memory": 16 * GIB}
    assert Resources().fit(node) == 8
    assert Resources(memory=6).fit(node) == 2
    assert Resources(cpus=3).fit(node) == 2
    assert Resources(gpus=0.5).fit(node) == 4
    assert Resources(gpus=1).fit({"CPU": 8.0, "memory": 16 * GIB}) == 0


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (("--ray-address", "127.0.0.1:9"), ("--ray-address 127.0.0.1:9", "ray start --head")),
        (("--ray-memory", "1000"), ("--ray-memory", "1000 GiB")),
        (("--ray-gpus", "1.5"), ("--ray-gpus 1.5",)),
        (("--models", __file__), (Path(__file__).name,)),
    ],
)
def test_errors(videos: Path, options: tuple[str, ...], tmp_path: Path, extra: tuple[str, ...], named: tuple[str, ...]):
    start = time.monotonic()
    finished = predict(videos, tmp_path / "scores.csv", *options, *extra)
    assert finished.returncode == 2
    assert all(name in finished.stderr for name in named)
    assert "Traceback" not in finished.stderr
    assert time.monotonic() - start < 60


def test_ray_that_is_not_installed(videos: Path, tmp_path: Path):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('No module named ray')")
    command = predict_command(videos, tmp_path / "scores.csv", "--executor", "ray")
    finished = programs.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert finished.returncode == 2
    assert "requirements-cluster.txt" in finished.stderr


def test_local_run_does_not_load_ray(videos: Path, tmp_path: Path):
    command = predict_command(videos / "cup.mp4", tmp_path / "scores.csv")
    finished = programs.run([command[0], "-X", "importtime", *command[1:]])
    loaded = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "inference.predictor" in loaded
    assert not {"ray", "fsspec", "s3fs", "moto"} & loaded
