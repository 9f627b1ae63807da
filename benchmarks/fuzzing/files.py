"""Targets: the text and array files that the programs read, in the process of the fuzzer."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import pyplot

import plot_loss
from benchmarks.fuzzing.mutations import mutate_bytes, mutate_json, mutate_lines, mutate_table, odd_json
from benchmarks.fuzzing.target import Target, expect
from common.journal import Journal, JournalError
from inference import submission
from preprocessing.boxes import face_numbers, read_boxes
from preprocessing.crops import cut_faces
from preprocessing.dataset import Dataset, read_dataset
from preprocessing.extract_crops import make_jobs
from preprocessing.generate_folds import assign_folds, check_folds
from preprocessing.images import encode_image
from preprocessing.layout import CROPS, DIFFS, FOLDS_COLUMNS, FRAME_STEP, LANDMARKS, VIDEO_SUFFIXES, DataRoot
from training.datasets.classifier_dataset import ClassifierDataset
from training.datasets.crop_source import CropSource
from training.datasets.folds import Crops, SampleIndex, read_folds, training_rows, validation_rows
from training.options import DROPOUTS
from training.pipelines.build import crop_spec
from training.pipelines.submissions import score_submission
from training.tools.config import read_config
from training.tools.log import EpochLog, read_log
from training.tools.metrics import evaluate, write_scores
from training.tools.recipe import Recipe
from training.transforms.albu import Augmentation

ROOT = Path(__file__).resolve().parents[2]
# Size and modification time of the clips in a journal.
STAMP = [1000, 1700000000000000000]


def mutate_text(rng: random.Random, text: bytes) -> bytes:
    """Change lines or bytes of a text file."""
    return mutate_lines(rng, text) if rng.random() < 0.4 else mutate_bytes(rng, text)


def mutate_json_file(rng: random.Random, value: Any) -> bytes:
    """Return the content of a JSON file with changes of its values or of its bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, json.dumps(value).encode())
    return mutate_json(rng, value).encode(errors="surrogateescape")


class JournalTarget(Target):
    """Progress files: every whole record counts, whatever the rest of the file looks like."""

    name = "journal"

    def __init__(self, seeds: Path):
        super().__init__(seeds)
        self.settings = {"version": 4, "models": ["a1b2"], "frames": 32, "strategy": "confident"}
        self.records = {f"clip {number}.mp4": self._record(f"clip {number}.mp4", number / 8) for number in range(8)}

    def _record(self, name: str, score: float) -> dict[str, Any]:
        scores = {"score": score, "video_score": score, "model_scores": {}}
        return {"filename": name, "status": "ok", "message": "", "notes": [], **scores, "faces": [], "people": []}

    def make(self, rng: random.Random, folder: Path) -> None:
        path = folder / "original.jsonl"
        journal = Journal(path, self.settings)
        for name in [*self.records, next(iter(self.records))]:
            journal.add(name, STAMP, self.records[name])
        original = path.read_bytes()
        path.unlink()
        self.hash = journal.hash
        (folder / "progress.jsonl").write_bytes(self._mutate(rng, original))

    def _mutate(self, rng: random.Random, original: bytes) -> bytes:
        if rng.random() < 0.5:
            return mutate_text(rng, original)
        lines = original.splitlines()
        for place in rng.sample(range(len(lines)), rng.choice((1, 1, 2, 5))):
            lines[place] = mutate_json(rng, json.loads(lines[place])).encode()
        return b"\n".join([*lines, b""])

    def check(self, rng: random.Random, folder: Path) -> str:
        path = folder / "progress.jsonl"
        content = path.read_bytes()
        whole = self._whole_records(content)
        try:
            journal = self._open(path)
        except JournalError:
            expect(not whole, f"refused, although the records of {sorted(whole)} are whole")
            expect(path.read_bytes() == content, "refused and changed")
            raise
        for name in whole:
            expect(journal.get(name, STAMP) == self.records[name], f"the whole record of {name} is lost")
        self._check_copies(folder, content)
        new = self._record("new.mp4", rng.random())
        journal.add("new.mp4", STAMP, new)
        again = self._open(path)
        expect(again.get("new.mp4", STAMP) == new, "a record that was added is lost")
        for name in self.records:
            expect(repr(journal.get(name, STAMP)) == repr(again.get(name, STAMP)), f"{name} changes when read again")
        copies = [copy for copy in folder.iterdir() if copy != path]
        expect(len(copies) <= 1, "the journal is still damaged after it was repaired")
        return "repaired" if copies else "ok"

    def _open(self, path: Path) -> Journal:
        return Journal(path, self.settings, is_valid=submission.is_record)

    def _whole_records(self, content: bytes) -> set[str]:
        """Return the clips whose last record in the file is as it was written."""
        lines = content.split(b"\n")
        whole: dict[str, bool] = {}
        for line in lines:
            for name in self.records:
                if json.dumps(name).encode() in line or not line.isascii():
                    whole[name] = self._is_whole(line, name)
        return {name for name, is_whole in whole.items() if is_whole}

    def _is_whole(self, line: bytes, name: str) -> bool:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return False
        return value == {"clip": name, "stamp": STAMP, "settings": self.hash, "record": self.records[name]}

    def _check_copies(self, folder: Path, content: bytes) -> None:
        for copy in folder.glob("*.damaged*"):
            expect(copy.read_bytes() == content, "the copy of the damaged file differs from it")


class DatasetTarget(Target):
    """metadata.json of DFDC, and the official splits of FaceForensics++ and Celeb-DF."""

    name = "dataset"

    def make(self, rng: random.Random, folder: Path) -> None:
        rng.choice((self._dfdc, self._dfdc, self._dfdc, self._faceforensics, self._celeb_df))(rng, folder)

    def _dfdc(self, rng: random.Random, folder: Path) -> None:
        for part in (0, 1, 10):
            path = folder / f"dfdc_train_part_{part}"
            path.mkdir()
            names = [f"{part}{letter}.mp4" for letter in "abcd"]
            entries: dict[str, dict[str, str]] = {name: {"label": "REAL", "split": "train"} for name in names[:2]}
            entries |= {name: {"label": "FAKE", "split": "train", "original": names[0]} for name in names[2:]}
            for name in names[:3]:
                (path / name).touch()
            mutated = part == 0 or rng.random() < 0.3
            content = mutate_json_file(rng, entries) if mutated else json.dumps(entries).encode()
            (path / "metadata.json").write_bytes(content)

    def _faceforensics(self, rng: random.Random, folder: Path) -> None:
        for kind, names in (("original_sequences/youtube", ("000", "003")), ("manipulated_sequences/M", ("000_003",))):
            videos = folder / kind / "c23/videos"
            videos.mkdir(parents=True)
            for name in names:
                (videos / f"{name}.mp4").touch()
        (folder / "splits").mkdir()
        for split, pairs in (("train", [["000", "003"], ["001", "002"]]), ("val", [["004", "005"]])):
            (folder / f"splits/{split}.json").write_bytes(mutate_json_file(rng, pairs))

    def _celeb_df(self, rng: random.Random, folder: Path) -> None:
        for name in ("Celeb-real/id0_0000.mp4", "YouTube-real/00170.mp4", "Celeb-synthesis/id0_id1_0000.mp4"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        lines = b"1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n"
        (folder / "List_of_testing_videos.txt").write_bytes(mutate_text(rng, lines))

    def check(self, rng: random.Random, folder: Path) -> str:
        dataset = read_dataset(folder)
        for video in dataset.videos.values():
            self._check_video(DataRoot(folder), dataset, video.id)
        check_folds(dataset, assign_folds(dataset, rng.choice((1, 2, 16)), 777))
        json.dumps([[job.clip, [str(path) for path in job.inputs]] for job in make_jobs(dataset, DataRoot(folder))])
        return "problems" if dataset.problems else "ok"

    def _check_video(self, root: DataRoot, dataset: Dataset, name: str) -> None:
        """A video is a file of the dataset, and its outputs are where they belong."""
        video = dataset.videos[name]
        path = video.path.relative_to(root.root)
        expect(".." not in path.parts and path.suffix.lower() in VIDEO_SUFFIXES, f"the video {path} lies elsewhere")
        outputs = (root.boxes(name), root.crops(name), root.landmarks(name), root.diffs(name))
        for output, folder in zip(outputs, ("bboxes", CROPS, LANDMARKS, DIFFS), strict=True):
            expect(output.parent == root.root / folder, f"{output} lies elsewhere")
        expect(name.isprintable() and bool(name), f"the id {name!r} is not printable")
        expect(video.original is None or isinstance(video.original, str), f"the original {video.original!r}")


class FoldsTarget(Target):
    """folds.csv: no value changes on the way."""

    name = "folds"

    def make(self, rng: random.Random, folder: Path) -> None:
        rows: list[tuple[str, ...]] = [FOLDS_COLUMNS]
        for number in range(12):
            fake = number % 3 > 0
            video, original = (f"clip{number}" if fake else f"real{number}"), f"real{number - number % 3}"
            rows.append((video, f"{20 * number}_0.png", str(int(fake)), original, str(20 * number), str(number // 6)))
        table = mutate_table(rng, rows)
        (folder / "folds.csv").write_bytes(table if rng.random() < 0.7 else mutate_text(rng, table))

    def check(self, rng: random.Random, folder: Path) -> str:
        path = folder / "folds.csv"
        crops = read_folds(path)
        for row, expected in enumerate(self._rows(path)):
            found = (crops.videos[crops.video[row]], crops.files[crops.file[row]], str(int(crops.fake[row])))
            found += (crops.videos[crops.original[row]], str(crops.frame[row]), str(crops.fold[row]))
            for value, text in zip(found, expected, strict=True):
                expect(value == text or self._is_number(value, text), f"row {row}: {text!r} became {value!r}")
        validation_rows(crops, int(crops.fold[0]), half=rng.choice((None, "report")))
        training_rows(crops, int(crops.fold[0]))
        return "ok"

    def _rows(self, path: Path) -> list[tuple[str, ...]]:
        """Read the rows with another parser, which agrees on files without lines of another length."""
        text = path.read_bytes().decode(errors="surrogateescape")
        table = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
        header = table[0]
        if any(len(row) != len(header) for row in table) or len(set(header)) < len(header):
            return []
        return [tuple(row[header.index(name)] for name in FOLDS_COLUMNS) for row in table[1:]]

    def _is_number(self, value: str, text: str) -> bool:
        return bool(re.fullmatch(r"\s*[-+]?[0-9]+\s*", text)) and int(text) == int(value)


class BoxesTarget(Target):
    """Bounding boxes: what is read can be cropped."""

    name = "boxes"

    def make(self, rng: random.Random, folder: Path) -> None:
        boxes = {
            "0": [[10.5, 12.25, 40.0, 50.0], [60, 10, 90.5, 50]],
            "10": [[11.5, 12.25, 41.0, 50.0], [60, 12, 90.5, 52]],
            "20": None,
            "30": [[1e3, -1e3, 1.1e3, -900]],
        }
        (folder / "clip.json").write_bytes(mutate_json_file(rng, boxes))

    def check(self, rng: random.Random, folder: Path) -> str:
        boxes = read_boxes(folder / "clip.json")
        image = np.zeros((64, 96, 3), np.uint8)
        numbers = face_numbers(boxes)
        for frame, found in boxes.items():
            expect(frame >= 0 and frame % FRAME_STEP == 0, f"frame {frame}")
            expect(all(math.isfinite(side) for box in found for side in box), f"frame {frame}: {found}")
            faces = list(zip(numbers[frame], found, strict=True))
            expect(len(set(numbers[frame])) == len(found), f"frame {frame}: faces share a number")
            for _, crop in cut_faces(image, faces, rng.choice((None, (96, 64), (1920, 1080)))):
                expect(crop.size > 0, f"frame {frame}: an empty crop")
                encode_image(crop)
        return "ok" if boxes else "empty"


class CropsTarget(Target):
    """Crops, landmarks and masks, read as samples of the training."""

    name = "crops"
    batch = 100

    def __init__(self, seeds: Path):
        super().__init__(seeds)
        row = np.zeros(2, np.int32)
        # A fake and its original.
        number = np.arange(2, dtype=np.int32)
        self.crops = Crops(["fake", "real"], ["0_0.png"], number, row, row + 1, number == 0, row, row, "")

    def make(self, rng: random.Random, folder: Path) -> None:
        image = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (60, 50, 3), np.uint8)
        points = np.array([[15, 20], [35, 20], [25, 32], [17, 42], [33, 42]])
        files = {
            f"{CROPS}/fake/0_0.png": encode_image(image),
            f"{CROPS}/real/0_0.png": encode_image(image),
            f"{DIFFS}/fake/0_0_diff.png": encode_image(image[..., 0]),
            f"{LANDMARKS}/real/0_0.npy": self._array(points.astype(rng.choice(("int16", "int64", "float32", "uint8")))),
        }
        broken = rng.choice([*files, f"{LANDMARKS}/real/0_0.npy"])
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True)
            if name == broken:
                content = (
                    self._odd_array(rng) if name.endswith("npy") and rng.random() < 0.5 else mutate_bytes(rng, content)
                )
            (folder / name).write_bytes(content)

    def _odd_array(self, rng: random.Random) -> bytes:
        kind = rng.choice(("int16", "float64", "float16", "complex64", "bool", "S3", "U3", "datetime64[s]", "int64"))
        array = np.zeros(rng.choice(((5, 2), (5, 2), (0, 2), (5,), (), (4, 2), (2, 5), (5, 2, 1))), kind)
        if kind in ("float64", "float16", "int64"):
            values = (0, 1, 59, -60, 120, 32767, -32768, 2**40) + (
                (math.nan, math.inf, 1e300) if kind == "float64" else ()
            )
            with np.errstate(over="ignore"):
                array[...] = np.array([rng.choice(values) for _ in range(array.size)]).reshape(array.shape)
        return self._array(array)

    def _array(self, array: np.ndarray) -> bytes:
        content = io.BytesIO()
        np.save(content, array)
        return content.getvalue()

    def check(self, rng: random.Random, folder: Path) -> str:
        source = CropSource(folder, Path(CROPS), self.crops)
        samples = ClassifierDataset(
            source, np.arange(2), Augmentation(32), rng.randrange(2**32), dropout=rng.choice(DROPOUTS), masks=True
        )
        broken = []
        for row in range(2):
            sample = samples[SampleIndex(row, 0, row)]
            expect(sample.images.shape == (1, 32, 32, 3), f"a sample of shape {tuple(sample.images.shape)}")
            broken += sample.broken
        return "replaced" if broken else "ok"


class LogTarget(Target):
    """Training logs: read for resuming and for plots."""

    name = "log"

    def make(self, rng: random.Random, folder: Path) -> None:
        lines = []
        for epoch in range(6):
            line = {
                "epoch": epoch,
                "train_loss": 0.5,
                "lr": 0.1,
                "fake_loss": 0.4 - epoch / 90,
                "real_loss": 0.3,
                "bce": 0.35,
            }
            lines.append(json.dumps(line).encode())
        for place in rng.sample(range(6), rng.choice((0, 1, 1, 2))):
            lines[place] = mutate_json(rng, json.loads(lines[place])).encode()
        content = b"\n".join([*lines, b""])
        (folder / "run.jsonl").write_bytes(content if rng.random() < 0.5 else mutate_text(rng, content))

    def check(self, rng: random.Random, folder: Path) -> str:
        path = folder / "run.jsonl"
        epochs = read_log(path)
        for before, after in pairwise(epochs):
            expect(before["epoch"] < after["epoch"], "epochs do not increase")
        start = rng.randint(1, 7)
        EpochLog(folder, "run", start).add({"epoch": start, "train_loss": 0.5})
        kept = [line for line in epochs if line["epoch"] < start]
        expect(repr(read_log(path)[:-1]) == repr(kept), "resuming changes the epochs before")
        run = plot_loss.read_run(path, rng.choice((1.4, 0.0, -1.0, 1e300)))
        best = plot_loss.best_epochs(run.losses)
        expect(bool(best) and all(math.isfinite(loss) for loss in run.losses.values()), "no best epoch")
        if rng.random() < 0.02:
            figure = plot_loss.plot({"run": run}, 1.4)
            figure.savefig(io.BytesIO(), format="png", dpi=40)
            pyplot.close(figure)
        return "ok"


class ConfigTarget(Target):
    """Configurations: what is accepted can be trained with."""

    name = "config"

    def make(self, rng: random.Random, folder: Path) -> None:
        paths = sorted((ROOT / "configs").glob("*.json"))
        content = mutate_json_file(rng, json.loads(rng.choice(paths).read_text()))
        (folder / "config.json").write_bytes(content)

    def check(self, rng: random.Random, folder: Path) -> str:
        keys = ("size", "optimizer.learning_rate", "optimizer.schedule", "optimizer.schedule.params", "normalize.mean")
        keys += (
            "crop",
            "augmentation.noise_variance",
            "losses",
            "a.b",
            "network.x",
            "",
            ".",
            "optimizer.schedule.type",
        )
        changes = {rng.choice(keys): odd_json(rng) for _ in range(rng.choice((0, 0, 1, 2)))}
        config = read_config(folder / "config.json", changes)
        config.optimizer.schedule.build()
        recipe = config.recipe(crop_spec(config, 3))
        expect(Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe, "its recipe cannot be loaded")
        json.dumps(config.model_dump(mode="json"))
        if config.size <= 64 or rng.random() < 0.1:
            augmented = Augmentation(config.size, config.augmentation)(
                np.zeros((40, 30, 3), np.uint8), None, np.random.SeedSequence(1)
            )
            expect(augmented[0].shape == (config.size, config.size, 3), "a wrong shape")
        return "ok"


class SubmissionTarget(Target):
    """Scores and labels that are evaluated."""

    name = "submission"
    batch = 100

    def make(self, rng: random.Random, folder: Path) -> None:
        names = [f"clip{number}.mp4" for number in range(10)]
        rows = [("filename", "label"), *((name, f"0.{number + 1}5") for number, name in enumerate(names))]
        labels = {
            name: {"label": "FAKE", "original": "clip0.mp4"} if number % 2 else {"label": "REAL"}
            for number, name in enumerate(names)
        }
        mutated = rng.random()
        table = mutate_table(rng, rows) if mutated < 0.7 else "\n".join(map(",".join, rows)).encode()
        content = mutate_json_file(rng, labels) if mutated > 0.5 else json.dumps(labels).encode()
        (folder / "submission.csv").write_bytes(table if rng.random() < 0.8 else mutate_text(rng, table))
        (folder / "metadata.json").write_bytes(content)

    def check(self, rng: random.Random, folder: Path) -> str:
        half = rng.choice((None, None, "report", "calibration"))
        scores = score_submission(folder / "submission.csv", folder / "metadata.json", half)
        metrics = evaluate(scores.scores, scores.fake)
        expect(all(value is None or math.isfinite(value) for value in metrics.values()), f"metrics {metrics}")
        write_scores(folder / "scores.csv", scores)
        return "ok"


def file_targets(seeds: Path) -> list[Target]:
    """Return the targets of this module."""
    cv2.setNumThreads(1)
    types = (
        JournalTarget, DatasetTarget, FoldsTarget, BoxesTarget, CropsTarget, LogTarget, ConfigTarget, SubmissionTarget,
    )  # fmt: skip
    return [target(seeds) for target in types]
