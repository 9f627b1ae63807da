"""Shards of the stages and their merge give what a whole run gives."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.shards import Shard
from preprocessing import sample_clips
from tests.support import programs
from tests.support.datasets import (
    REAL,
    ROOT,
    fake_frames,
    fake_of,
    file_hashes,
    portrait_frames,
    preprocess,
    run_stage,
    stage_command,
    write_part,
)

pytestmark = pytest.mark.slow

INTERRUPTED = ROOT / "tests/support/interrupted.py"
SHARDS = [Shard(index, 4) for index in range(4)]
PAIRS = 5
FAST = ("--workers", "1", "--preview", "4")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, a damaged clip, and a fake whose original is missing."""
    root = tmp_path_factory.mktemp("dataset")
    names = [f"{number}.mp4" for number in range(PAIRS)]
    entries = dict.fromkeys(names, REAL) | {f"fake_{name}": fake_of(name) for name in names}
    folder = write_part(root, 0, {**entries, "bad.mp4": REAL, "orphan.mp4": fake_of("gone.mp4")})
    frames = portrait_frames(11 + PAIRS, 320, 240)
    for number, name in enumerate(names):
        sample_clips.write_clip(folder / name, frames[number : number + 11])
        sample_clips.write_clip(folder / f"fake_{name}", fake_frames(frames[number : number + 11]))
    (folder / "bad.mp4").write_text("no video")
    shutil.copy(folder / "fake_0.mp4", folder / "orphan.mp4")
    return root


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    root = tmp_path_factory.mktemp("whole") / "root"
    shutil.copytree(dataset, root)
    return root, preprocess(root, *FAST)


@pytest.fixture(scope="module")
def sharded(
    dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
    """The outputs of four shards, two of which run at a time. One was killed before, while it was cropping."""
    root = tmp_path_factory.mktemp("sharded") / "root"
    shutil.copytree(dataset, root)
    options = ("--shard", "1/4", *FAST)
    run_stage("detect_original_faces", root, *options)
    python, *script = stage_command("extract_crops", root, *options)
    killed = programs.run([python, INTERRUPTED, "SIGKILL", "3", *script])
    assert killed.returncode == -signal.SIGKILL
    assert len(lines(root, "crops", SHARDS[1])) == 1 + 3 < len(clips_of(SHARDS[1]))
    with ThreadPoolExecutor(2) as pool:
        return root, list(pool.map(lambda shard: preprocess(root, "--shard", str(shard), *FAST), SHARDS))


def clips_of(shard: Shard) -> set[str]:
    """The clips of a shard. A fake is in the shard of its original."""
    pairs = {clip: str(number) for number in range(PAIRS) for clip in (str(number), f"fake_{number}")}
    originals = {**pairs, "bad": "bad", "orphan": "gone"}
    return {clip for clip, original in originals.items() if original in shard}


def lines(root: Path, output: str, shard: Shard) -> list[dict]:
    """The lines of a shard's progress file."""
    path = root / "progress" / f"{output}.shard-{shard.index}-of-{shard.count}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def tables(printed: str) -> list[str]:
    """The output of preprocess_data.sh without the next command."""
    return [line for line in printed.splitlines() if not line.startswith("next:")]


def test_each_shard_has_its_clips(sharded: tuple[Path, list[subprocess.CompletedProcess[str]]]):
    root, done = sharded
    assert sum(map(len, map(clips_of, SHARDS))) == 2 * PAIRS + 2
    for shard, finished in zip(SHARDS, done, strict=True):
        assert finished.returncode == (3 if "bad" in clips_of(shard) else 0), finished.stderr
        assert "== generate_diffs" in finished.stdout
        assert "== generate_folds" not in finished.stdout
        assert "--merge, which writes folds.csv" in finished.stdout
        recorded = [line["clip"] for line in lines(root, "crops", shard)[1:]]
        assert set(recorded) == clips_of(shard)
        assert len(recorded) == len(clips_of(shard))  # also after the kill
    assert not (root / "folds.csv").exists()
    assert not (root / "previews").exists()


def test_merge_equals_a_whole_run(
    whole: tuple[Path, subprocess.CompletedProcess[str]],
    sharded: tuple[Path, list[subprocess.CompletedProcess[str]]],
    tmp_path: Path,
):
    expected, finished = whole
    root = shutil.copytree(sharded[0], tmp_path / "root")
    merged = preprocess(root, *FAST, "--merge")
    assert (merged.returncode, finished.returncode) == (3, 3), merged.stderr
    assert file_hashes(root) == file_hashes(expected)
    assert tables(merged.stdout.replace(str(root), str(expected))) == tables(finished.stdout)
    assert "run their shards with --retry-failed" in merged.stderr


def test_another_number_of_shards_repeats_nothing(
    sharded: tuple[Path, list[subprocess.CompletedProcess[str]]], tmp_path: Path
):
    """The runs read the records of all earlier ones."""
    root = shutil.copytree(sharded[0], tmp_path / "root")
    for shard in ("0/3", "1/3", "2/3"):
        assert run_stage("extract_crops", root, "--shard", shard).returncode in (0, 3)
        assert len(lines(root, "crops", Shard(int(shard[0]), 3))) == 1
    finished = run_stage("extract_crops", root)
    assert finished.returncode == 3
    assert len((root / "progress/crops.jsonl").read_text().splitlines()) == 1
    assert file_hashes(root) == file_hashes(sharded[0])
    # --overwrite and --retry-failed are for the clips of the shard only.
    bad = next(shard for shard in SHARDS if "bad" in clips_of(shard))
    run_stage("extract_crops", root, "--shard", str(bad), "--retry-failed")
    assert [line["clip"] for line in lines(root, "crops", bad)[-1:]] == ["bad"]
    run_stage("extract_crops", root, "--shard", "0/3", "--overwrite")
    repeated = {line["clip"] for line in lines(root, "crops", Shard(0, 3))[1:]}
    assert repeated == clips_of(Shard(0, 3))
    run_stage("extract_crops", root)
    assert len((root / "progress/crops.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("stage", ["compress_videos", "extract_images"])
def test_merge_of_the_extras(dataset: Path, tmp_path: Path, stage: str):
    expected, root = (shutil.copytree(dataset, tmp_path / name) for name in ("whole", "sharded"))
    finished = run_stage(stage, expected)
    assert run_stage(stage, root, "--shard", "0/2").returncode in (0, 3)
    missing = clips_of(Shard(1, 2))
    unmerged = run_stage(stage, root, "--merge")
    assert unmerged.returncode == 2
    assert f": {len(missing)} of {2 * PAIRS + 2} clips have no valid record: " in unmerged.stderr
    assert all(clip in unmerged.stderr for clip in missing)
    assert "Run their shards again" in unmerged.stderr
    assert run_stage(stage, root, "--shard", "1/2").returncode in (0, 3)
    merged = run_stage(stage, root, "--merge")
    assert (merged.returncode, merged.stdout) == (finished.returncode, finished.stdout)
    assert file_hashes(root) == file_hashes(expected)


def test_auto_is_the_shard_of_the_slurm_array(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = shutil.copytree(dataset, tmp_path / "root")
    for name, value in zip(("ID", "MIN", "MAX", "COUNT"), "1034", strict=True):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    run_stage("extract_images", root, "--shard", "auto")
    assert {line["clip"] for line in lines(root, "images", SHARDS[1])[1:]} == clips_of(SHARDS[1])


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("extract_images", ("--shard", "4/4"), "--shard: 4/4 is not I/N"),
        ("extract_images", ("--shard", "auto"), "--shard: auto: there is no Slurm array"),
        ("extract_images", ("--shard", "0/4", "--merge"), "--merge"),
        ("extract_images", ("--merge", "--overwrite"), "--merge: processes no clip. Leave out --overwrite"),
        ("extract_images", ("--merge", "--retry-failed"), "--merge: processes no clip. Leave out --retry-failed"),
        ("generate_folds", ("--shard", "0/4"), "--shard: folds.csv lists the crops of all shards"),
    ],
)
def test_wrong_usage(dataset: Path, stage: str, options: tuple[str, ...], message: str):
    finished = run_stage(stage, dataset, *options)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr
    assert {path.name for path in dataset.iterdir()} == {"dfdc_train_part_0"}
