"""Square crops by the real scripts: the pixels that prediction uses, and never mixed with crops with a margin."""

from __future__ import annotations

import json
import shutil
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from common.journal import last_settings
from inference.decoder import Decoder
from inference.ensemble import CropSpec, Ensemble
from inference.predictor import Predictor
from preprocessing import sample_clips
from preprocessing.boxes import read_boxes
from preprocessing.crop_kinds import KINDS, parse_crop
from preprocessing.crops import MarginCrop, SquareCrop, center_in_square, resize_longer_side
from preprocessing.faces import Face
from preprocessing.images import read_image
from preprocessing.layout import DataRoot
from preprocessing.limits import Limits
from tests.support import face_crops, programs
from tests.support.datasets import (
    REAL,
    ROOT,
    fake_frames,
    fake_of,
    file_hashes,
    portrait_frames,
    preprocess,
    run_stage,
    write_part,
)
from training.datasets.classifier_dataset import ValidationDataset
from training.pipelines import build, scoring
from training.pipelines.build import SetupError
from training.tools.checkpoint import load_network
from training.tools.config import read_config

DEFAULT, CONFIG = ROOT / "weights/default_lite0.pt", ROOT / "configs/default_lite0.json"
FRAMES = (0, 10, 20)
# A kind of crop that extends beyond the frame, and its folder.
WIDE, WIDE_CROPS = "square:2.5:0.4", "wide"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real video and its fake with all three kinds of crops, the embedded model's first."""
    root = tmp_path_factory.mktemp("dfdc")
    folder = write_part(root, 0, {"real.mp4": REAL, "fake.mp4": fake_of("real.mp4")})
    frames = portrait_frames(FRAMES[-1] + 1, 320, 240)
    sample_clips.write_clip(folder / "real.mp4", frames)
    sample_clips.write_clip(folder / "fake.mp4", fake_frames(frames))
    done = preprocess(root, "--crop", "square", "--workers", 1, "--preview", 4)
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stdout.splitlines() if line.startswith(("==", "next"))]
    stages = ["== detect_original_faces", "== extract_crops", "== generate_folds"]
    assert steps == [*stages, f"next: ./train_default.sh {root}"]
    names = {path.name for path in root.iterdir()}
    assert names == {"bboxes", "crops_square", "folds_square.csv", "previews", "progress", "dfdc_train_part_0"}
    assert [path.name for path in (root / "previews").iterdir()] == ["crops_square.png"]
    done = run_stage("extract_crops", root, "--crop", WIDE, "--crops-dir", WIDE_CROPS)
    assert done.returncode == 0, done.stderr
    before = file_hashes(root)
    done = preprocess(root, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert before.items() <= file_hashes(root).items()
    return root


class KnownFaces:
    """A detector that finds the boxes of stage 1."""

    batch = threads = 1

    def __init__(self, boxes: Path):
        self.boxes = iter(read_boxes(boxes).values())

    def shrink(self, image: np.ndarray) -> np.ndarray:
        return image

    def detect(self, frames: Sequence[np.ndarray], _shrunk: Sequence[np.ndarray]) -> list[list[Face]]:
        return [[Face(np.array(box), 1.0, np.zeros((5, 2))) for box in next(self.boxes)] for _ in frames]


def network_inputs(clip: Path, boxes: Path, spec: CropSpec, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What prediction gives to a network with this crop, face by face."""
    ensemble, inputs = Ensemble([DEFAULT], "cpu", "float32"), []

    def start(batch: dict[CropSpec, np.ndarray]) -> torch.Tensor:
        inputs.extend(batch[spec].copy())
        return torch.zeros(1, len(batch[spec]))

    monkeypatch.setattr(ensemble, "start", start)
    monkeypatch.setattr(ensemble, "crop_specs", [spec])
    detector = KnownFaces(boxes)
    predictor = Predictor(ensemble, detector, frames=len(FRAMES), decoders=[Decoder(Limits())])  # type: ignore[arg-type]
    [result] = predictor.predict([clip])
    assert [face["frame"] for face in result.faces] == list(FRAMES)
    return np.stack(inputs)


@pytest.mark.slow
@pytest.mark.parametrize("clip", ["real", "fake"])
@pytest.mark.parametrize(("kind", "folder"), [("square", "crops_square"), (WIDE, WIDE_CROPS)])
def test_crops_are_what_prediction_uses(
    root: Path, clip: str, kind: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the square extends beyond the frame. Validation shows them to the network in the same way."""
    boxes, rule, size = DataRoot(root).boxes("real"), parse_crop(kind), 160
    seen = network_inputs(root / f"dfdc_train_part_0/{clip}.mp4", boxes, CropSpec(rule, size), monkeypatch)
    assert {path.name for path in (root / folder / clip).iterdir()} == {f"{frame}_0.png" for frame in FRAMES}
    files = Namespace(data_dir=root, crops_dir=Path(folder), folds_csv=root / "folds_square.csv")
    source = build.read_source(files)
    rows = {source.crops.name(row): row for row in range(len(source.crops))}
    for expected, (frame, [box]) in zip(seen, read_boxes(boxes).items(), strict=True):
        crop = read_image(root / folder / clip / f"{frame}_0.png")
        side = round((box[3] - box[1]) * rule.side)
        assert (crop.shape == (side, side, 3)) == (kind == "square")
        assert max(crop.shape[:2]) <= side
        np.testing.assert_array_equal(center_in_square(resize_longer_side(crop, size), size), expected)
        validated = ValidationDataset(source, size)[rows[f"{clip}/{frame}_0.png"]].images
        np.testing.assert_array_equal(validated.numpy()[0], expected)


@pytest.mark.slow
def test_kinds_are_recorded_and_not_mixed(root: Path, tmp_path: Path) -> None:
    """Progress files of crops with a margin have the settings of earlier versions."""
    found = {name: last_settings(root / f"progress/{name}.jsonl") for name in ("crops", "crops_square", WIDE_CROPS)}
    common = {"stage": "extract_crops", "version": 1}
    assert found == {
        "crops": common,
        "crops_square": {**common, "crop": "square:0.84:0.56"},
        WIDE_CROPS: {**common, "crop": WIDE},
    }
    before = file_hashes(root)
    for kind, folder, other in (
        ("square", "crops", "margin"),
        ("margin", "crops_square", "square:0.84:0.56"),
        (WIDE, "crops_square", "square:0.84:0.56"),
    ):
        for stage, options in (("extract_crops", ("--overwrite",)), ("generate_landmarks", ())):
            done = run_stage(stage, root, "--crop", kind, "--crops-dir", folder, *options)
            assert done.returncode == 2
            assert f"{root / folder}: contains crops made with --crop {other}, not " in done.stderr
            assert str(root / f"progress/{folder}.jsonl") in done.stderr
    assert file_hashes(root) == before
    copy = tmp_path / "copy"  # as the message says
    shutil.copytree(root, copy)
    shutil.rmtree(copy / "crops")
    (copy / "progress/crops.jsonl").unlink()
    assert run_stage("extract_crops", copy, "--crop", "square", "--crops-dir", "crops").returncode == 0
    assert hashes_of(copy / "crops") == hashes_of(root / "crops_square")


@pytest.mark.slow
def test_kept_crops_with_a_margin_are_not_used(root: Path, tmp_path: Path) -> None:
    """Stage 1 has kept crops of the other kind; stage 2 decodes the video."""
    shutil.copytree(root / "dfdc_train_part_0", tmp_path / "dfdc_train_part_0")
    assert run_stage("detect_original_faces", tmp_path, "--workers", 1).returncode == 0
    kept = DataRoot(tmp_path).kept_crops("real")
    assert json.loads((kept / "source.json").read_text())["crop"] == "margin"
    assert (kept / "0_0.png").read_bytes() == (root / "crops/real/0_0.png").read_bytes()
    assert run_stage("extract_crops", tmp_path, "--crop", "square").returncode == 0
    assert hashes_of(tmp_path / "crops_square") == hashes_of(root / "crops_square")
    assert not kept.exists()


@pytest.mark.slow
def test_training_and_evaluation_need_their_kind(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    choice = {"fold": 0, "public_validation": False, "half": None, "people": None}
    place = Namespace(checkpoint=DEFAULT, data_dir=root, folds_csv=None, **choice)
    fold = scoring.read_fold(
        Namespace(**{**vars(place), "crops_dir": Path("crops_square"), "folds_csv": root / "folds_square.csv"})
    )
    assert len(fold.rows) == 4  # frames 0 and 20 of both videos
    assert "--crops-dir" not in caplog.text
    with pytest.raises(SetupError, match=r"crops: contains .* --crop margin, .* needs square:0\.84:0\.56"):
        scoring.read_fold(Namespace(**vars(place), crops_dir=Path("crops")))
    options = ("--data-dir", root, "--output-dir", tmp_path, "--logdir", tmp_path, "--device", "cpu")
    done = programs.run([sys.executable, face_crops.TRAIN_CLASSIFIER, "--config", CONFIG, *options])
    assert done.returncode == 2
    assert f"{root / 'crops'}: contains crops made with --crop margin" in done.stderr
    config, square = read_config(ROOT / "configs/lite0.json"), Path("crops_square")
    with pytest.raises(SetupError, match="but the network needs margin"):
        build.check_kind(build.read_source(Namespace(**vars(place), crops_dir=square)), config.crop_spec())


def test_train_default_uses_the_square_crops_in_every_step(tmp_path: Path) -> None:
    """A program that writes its arguments down stands in for Python."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = - ] || echo "$@" >> "{tmp_path}/commands"\n')
    python.chmod(0o755)
    for folder in ("plain", "square/crops_square"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("plain", "square"):
        command = [ROOT / "train_default.sh", tmp_path / folder, tmp_path / "out", "--workers", "0"]
        assert programs.run(command, env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)}).returncode == 0
    commands = (tmp_path / "commands").read_text().splitlines()
    options = f" --crops-dir crops_square --folds-csv {tmp_path}/square/folds_square.csv"
    assert [options in command for command in commands] == [False] * 5 + [True] * 5
    programs_run = [Path(command.split()[0]).stem for command in commands]
    train = "train_classifier"
    assert programs_run == [train, "crop_landmarks", train, "calibrate", "evaluate"] * 2
    steps = [f"{tmp_path}/out/step{number}_{face_crops.NETWORK}_last.pt" for number in (1, 2)]
    assert "--resume" not in commands[0]
    assert f" --resume {steps[0]} --from-zero " in commands[2]
    assert f" --checkpoint {steps[1]} " in commands[3]
    assert all(command.endswith(" --workers 0") for command in commands if "crop_landmarks" not in command)


def test_square_is_the_embedded_models_crop() -> None:
    assert KINDS["square"] == read_config(CONFIG).crop_spec() == load_network(DEFAULT)[1].crop


@pytest.mark.parametrize(
    ("text", "crop"),
    [("margin", MarginCrop()), ("square:1:-0.5", SquareCrop(1, -0.5)), ("square:2:.5", SquareCrop(2, 0.5))],
)
def test_names_of_kinds(text: str, crop: MarginCrop | SquareCrop) -> None:
    assert parse_crop(text) == crop


@pytest.mark.parametrize("text", ["", "round", "margin:0.5", "square:1", "square:1:2:3", "square:a:1", "1:1"])
def test_other_names_are_rejected(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="square:SIDE:CENTER"):
        parse_crop(text)


@pytest.mark.parametrize(
    ("text", "name"), [("square:0:0.5", "side"), ("square:nan:0.5", "side"), ("square:1:3", "center")]
)
def test_numbers_out_of_range_are_rejected(text: str, name: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"the {name} is not from"):
        parse_crop(text)


def hashes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}
