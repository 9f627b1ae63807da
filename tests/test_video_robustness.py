"""The variants of videos whose scores are compared with those of the videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import video_robustness
from benchmarks.video_robustness import VARIANTS, Variant, make_variant
from inference.loading import load_predictor
from preprocessing import sample_clips
from preprocessing.video import Clip, read_frames


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return sample_clips.face_clip(tmp_path / "face.mp4", 30, 322, 240)


def test_cut_keeps_its_part_of_the_frames(clip: Path, tmp_path: Path) -> None:
    original = Clip(clip)
    for variant, first, last in ((VARIANTS["first third"], 0, 9), (VARIANTS["last third"], 20, 29)):
        cut = Clip(make_variant(clip, tmp_path / "cut.mp4", variant))
        assert (cut.total, cut.rate) == (10, original.rate)
        for index, expected in ((0, first), (9, last)):
            (shown,), (frame,) = (read_frames(*pair) for pair in ((cut, [index]), (original, [expected])))
            assert np.abs(shown.image.astype(int) - frame.image).mean() < 4
        (other,) = read_frames(original, [15])
        assert np.abs(shown.image.astype(int) - other.image).mean() > 10


def test_size_and_compression(clip: Path, tmp_path: Path) -> None:
    (small,) = read_frames(Clip(make_variant(clip, tmp_path / "small.mp4", Variant(scale=0.25))), [0])
    assert small.image.shape == (60, 80, 3)
    sizes = [make_variant(clip, tmp_path / f"{crf}.mp4", Variant(crf=crf)).stat().st_size for crf in (18, 28, 38)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < sizes[0] / 3


@pytest.mark.slow
def test_table_compares_with_the_unchanged_video(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert video_robustness.main(video_robustness.get_args_parser().parse_args([str(clip)])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| | face.mp4 | Largest difference |"
    rows = {name.strip(): (float(score), float(difference)) for _, name, score, difference, _ in map(cells, lines[2:])}
    assert list(rows) == list(VARIANTS)
    (expected,) = load_predictor(device="cpu").predict([clip])
    unchanged = rows["unchanged"][0]
    assert unchanged == pytest.approx(expected.score, abs=0.0051)
    for score, difference in rows.values():
        assert difference == pytest.approx(abs(score - unchanged), abs=0.011)


def cells(line: str) -> list[str]:
    return line.split("|")
