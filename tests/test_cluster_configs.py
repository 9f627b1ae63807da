"""The files in configs/cluster/: their options exist, and they are what Slurm, Ray and KubeRay expect."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import programs

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "configs" / "cluster"
SLURM = CLUSTER / "slurm.sh"
PAGE = ROOT / "docs" / "cluster.md"
# Programs of this project in a command line, with what their options are checked by.
PROGRAMS = {
    "predict_folder.py": ("predict_folder",),
    "predict_submission.sh": ("predict_folder",),
    "preprocess_data.sh": ("preprocessing.detect_original_faces", "preprocessing.generate_folds"),
}


def text_of(path: Path) -> str:
    """A file without comment signs and with joined lines."""
    return re.sub(r"\\\n *", "", re.sub(r"^#+ *", "", path.read_text(), flags=re.MULTILINE))


def commands() -> list[tuple[str, str]]:
    """The program and the options of each command line in the files and on the page."""
    found = []
    for path in (*sorted(CLUSTER.iterdir()), PAGE):
        for line in text_of(path).splitlines():
            program = re.search(rf"({'|'.join(map(re.escape, PROGRAMS))})( .*)", line)
            if program and " --" in program[2]:
                found.append((program[1], program[2].replace('"', " ").replace(")", " ")))
    return found


def test_options_in_commands_exist() -> None:
    assert {program for program, _ in commands()} == PROGRAMS.keys()
    for program, line in commands():
        for module in PROGRAMS[program]:
            parser = importlib.import_module(module).get_args_parser()
            options = re.findall(r"(?<=\s)--[a-z][a-z-]*", line)
            assert set(options) - set(parser._option_string_actions) == set(), line


def test_every_file_is_documented() -> None:
    assert {path.name for path in CLUSTER.iterdir() if f"configs/cluster/{path.name}" not in PAGE.read_text()} == set()


def test_shellcheck_accepts_the_script() -> None:
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed")
    finished = programs.run([shellcheck, SLURM])
    assert (finished.returncode, finished.stdout) == (0, "")


def test_slurm_directives_come_before_the_first_command() -> None:
    """Slurm ignores those after it."""
    lines = SLURM.read_text().splitlines()
    first_command = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives
    assert max(directives) < first_command
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[number]) for number in directives)
    output = re.search(r"--output=(\S+)/", SLURM.read_text())
    assert output
    assert (ROOT / output[1]).is_dir()  # Slurm does not create it, and the job fails


@pytest.mark.parametrize(
    ("index", "part"), [("2", ["--shard", "auto"]), (None, ["--merge"])], ids=["shard of an array", "merge"]
)
def test_slurm_script_adds_the_part_of_the_run(index: str | None, part: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    array = {"SLURM_ARRAY_TASK_ID": index, "SLURM_ARRAY_TASK_COUNT": "4"} if index else {}
    command = [SLURM, "printf", "%s\n", "a video"]
    finished = programs.run(command, env={**environment, **array, "SLURM_CPUS_PER_TASK": "8"})
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == ["a video", "--workers", "8", *part]


@pytest.mark.slow
def test_slurm_array_and_merge_equal_a_whole_run(tmp_path: Path, face_video: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in "abc":
        (videos / f"{name}.mp4").symlink_to(face_video)
    (videos / "d.mp4").write_bytes(b"not a video")

    def predict(output: str, *prefix: str | Path, **slurm: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, ROOT / "predict_folder.py", "--test-dir", videos, "--device", "cpu"]
        environment = {**os.environ, "SLURM_CPUS_PER_TASK": "1", **slurm}
        return programs.run([*prefix, *program, "--output", tmp_path / output], env=environment)

    assert predict("whole.csv").returncode == 3
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "1"}
    statuses = [predict("merged.csv", SLURM, **array, SLURM_ARRAY_TASK_ID=index).returncode for index in "01"]
    assert sorted(statuses) == [0, 3]  # one has the unreadable video
    assert not (tmp_path / "merged.csv").exists()
    assert predict("merged.csv", SLURM).returncode == 3
    assert (tmp_path / "merged.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_ray_accepts_the_cluster() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    ray = find_spec("ray")
    if ray is None or ray.origin is None:
        pytest.skip("Ray is not installed")
    cluster = read("ray.yaml")
    schema = Path(ray.origin).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(cluster, json.loads(schema.read_text()))
    assert cluster["provider"].keys() == {"type", "head_ip", "worker_ips"}
    for kind in ("head", "worker"):
        *_, start = cluster[f"{kind}_start_ray_commands"]
        assert ray_start_accepts(start.partition(" start ")[2])


def ray_start_accepts(arguments: str) -> bool:
    """Whether `ray start` has the options."""
    from ray.scripts.scripts import start

    options = {option for parameter in start.params for option in parameter.opts}
    return {argument.partition("=")[0] for argument in shlex.split(arguments)} <= options


def test_kubernetes_job() -> None:
    job = read("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    interpreter, program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (interpreter, Path(program).name) == ("python", "predict_folder.py")
    assert f"WORKDIR {Path(program).parent}\n" in (ROOT / "Dockerfile").read_text()
    args = importlib.import_module("predict_folder").get_args_parser().parse_args(arguments)
    assert args.executor == "ray"
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        parameters = " ".join(f"--{key}" for key in group["rayStartParams"])
        assert find_spec("ray") is None or ray_start_accepts(parameters)
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]
        mounts = tuple(mount["mountPath"] for mount in container["volumeMounts"])
        assert all(Path(path).is_relative_to(*mounts) for path in (args.test_dir, args.output))


def test_memory_of_a_kubernetes_pod_fits_its_workers() -> None:
    """One worker per CPU, each with the default of --ray-memory, besides Ray's object store."""
    args = importlib.import_module("predict_folder").get_args_parser().parse_args(["--test-dir", "a", "--output", "b"])
    for group in read("rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        store = int(group["rayStartParams"]["object-store-memory"])
        assert int(limits["memory"].removesuffix("Gi")) * 2**30 - store > limits["cpu"] * args.ray_memory * 2**30


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())
