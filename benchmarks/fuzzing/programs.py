"""Targets: whole programs on folders of mutated clips."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fuzzing.clips import FAILURES, TIMEOUT, write_mutant, write_seed_clips
from benchmarks.fuzzing.target import Problem, Result, Target, clear, expect, generator
from common import cli
from inference.schema import read_details
from inference.submission import READ, STATUSES

ROOT = Path(__file__).resolve().parents[2]
# Seconds for a program with a folder of clips.
LIMIT = 900
# Options that make a program fast enough.
FAST = ("--device", "cpu", "--timeout", str(TIMEOUT))
# Statuses of the stages for a clip, by docs/formats.md; the worker process of a clip that crashes FFmpeg has `crashed`.
STAGE_STATUSES = {"ok", "no_face", "no_original", "no_boxes", "no_crops", "crashed", *FAILURES}


class ProgramTarget(Target):
    """Base class: a program reads a folder with the clips of a whole batch."""

    weight = 2.0
    batch = 50
    limit = 3 * LIMIT

    def prepare(self) -> None:
        write_seed_clips(self.seeds)

    def run(self, seed: int, numbers: Sequence[int], folder: Path) -> Iterator[Result]:
        """Yield the result of each clip. What concerns the whole program counts for the first clip."""
        clear(folder)
        try:
            statuses, problem = self.run_program(seed, numbers, folder), ""
        except Problem as found:
            statuses, problem = ["problem"] * len(numbers), str(found)
        for status in statuses:
            yield Result(status, problem)
            problem = ""

    def run_program(self, seed: int, numbers: Sequence[int], folder: Path) -> list[str]:
        """Run the program on the clips with these numbers. Return their statuses, or raise Problem."""
        raise NotImplementedError

    def start(self, arguments: Sequence[str | Path], allowed: tuple[int, ...]) -> int:
        """Run a Python program and return its exit status. Raises Problem."""
        command = [sys.executable, *map(str, arguments)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=LIMIT)
        except subprocess.TimeoutExpired as error:
            raise Problem(f"{' '.join(command)}: not finished after {LIMIT} s") from error
        output = f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
        expect(done.returncode in allowed, output)
        expect("Traceback" not in done.stderr and "Warning: " not in done.stderr, output)
        return done.returncode


class PredictTarget(ProgramTarget):
    """predict_folder.py."""

    name = "predict"

    def run_program(self, seed: int, numbers: Sequence[int], folder: Path) -> list[str]:
        videos = folder / "videos"
        videos.mkdir()
        paths = [
            write_mutant(generator(seed, self.name, number), self.seeds, videos, f"{number:08}") for number in numbers
        ]
        output, details = folder / "submission.csv", folder / "details.jsonl"
        options = ("--details", details, "--report", folder / "report.html", "--frames", "3", "--precision", "float32")
        command = ("predict_folder.py", "--test-dir", videos, "--output", output, *options, *FAST)
        status = self.start(command, (cli.OK, cli.CLIPS_FAILED))
        records = read_details(details)[1]
        rows = list(csv.reader(output.open(newline="")))[1:]
        expect([row[0] for row in rows] == [path.name for path in paths], "the CSV lacks clips")
        for path, row, record in zip(paths, rows, records, strict=True):
            self._check(path.name, row, record)
        statuses = [record["status"] for record in records]
        expect((status == cli.CLIPS_FAILED) == any(name not in READ for name in statuses), f"exit status {status}")
        return statuses

    def _check(self, name: str, row: list[str], record: dict[str, Any]) -> None:
        score, read = float(row[1]), record["status"] in READ
        expect(record["filename"] == name and record["status"] in STATUSES, f"{name}: {record}")
        expect(0 <= score <= 1 and score == record["score"], f"{name}: a score of {score}")
        expect(record["status"] == "ok" or score == 0.5, f"{name}: {record}")
        expect(bool(record["faces"]) == (record["status"] == "ok"), f"{name}: {record}")
        expect(bool(record["message"]) == (record["status"] != "ok"), f"{name}: {record}")
        if read:
            expect(record["frames"] > 0 and record["fps"] > 0 and record["duration"] > 0, f"{name}: {record}")
            expect(record["width"] > 0 and record["height"] > 0, f"{name}: {record}")


class PreprocessTarget(ProgramTarget):
    """The stages of preprocessing that read clips, and folds.csv."""

    name = "preprocess"

    def run_program(self, seed: int, numbers: Sequence[int], folder: Path) -> list[str]:
        part = folder / "dfdc_train_part_0"
        part.mkdir()
        metadata: dict[str, dict[str, str]] = {}
        rng = generator(seed, self.name, numbers[0])
        for number in numbers:
            path = write_mutant(generator(seed, self.name, number), self.seeds, part, f"{number:08}")
            metadata[path.name] = self._entry(rng, metadata)
        (part / "metadata.json").write_text(json.dumps(metadata))
        for stage in ("detect_original_faces", "extract_crops", "extract_images"):
            options = ("--root-dir", folder, "--workers", "1", *FAST)
            self.start((f"preprocessing/{stage}.py", *options), (cli.OK, cli.CLIPS_FAILED))
        clips = [Path(name).stem for name in metadata]
        self._statuses(folder / "progress/bboxes.jsonl")
        self._statuses(folder / "progress/images.jsonl")
        statuses = self._statuses(folder / "progress/crops.jsonl")
        # The clips that are not recorded have crashed a worker process; they are tried again by the next run.
        return [statuses.get(clip, "crashed") for clip in clips]

    def _entry(self, rng: random.Random, metadata: dict[str, dict[str, str]]) -> dict[str, str]:
        reals = [name for name, entry in metadata.items() if entry["label"] == "REAL"]
        if reals and rng.random() < 0.3:
            return {"label": "FAKE", "original": rng.choice(reals)}
        return {"label": "REAL"}

    def _statuses(self, journal: Path) -> dict[str, str]:
        """Return the status of each clip in a journal. Raises Problem if one is not documented."""
        lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
        for line in lines:
            expect(line["record"]["status"] in STAGE_STATUSES, f"{journal.name}: {line}")
        return {line["clip"]: line["record"]["status"] for line in lines}


def program_targets(seeds: Path) -> list[Target]:
    """Return the targets of this module."""
    return [PredictTarget(seeds), PreprocessTarget(seeds)]
