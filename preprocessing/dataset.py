"""Datasets: which videos there are, which are fake, what they were made from, and which must share a fold.

Three layouts are read into the same records: DFDC's parts with their metadata.json, FaceForensics++'s
original_sequences/ and manipulated_sequences/ (c23), and Celeb-DF's Celeb-real/, YouTube-real/ and Celeb-synthesis/.
Problems of a dataset are collected, not raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_regular_file
from common.text import abbreviate
from preprocessing.layout import VIDEO_SUFFIXES

# Longest file name in bytes. The names of outputs are a little longer, and file systems allow 255.
MAX_NAME = 200
CELEB_DF_TEST_LIST = "List_of_testing_videos.txt"
PART = re.compile(r"dfdc_train_part_(\d+)")


class DatasetError(UserError):
    """A folder that does not contain a dataset."""


@dataclass(frozen=True)
class Video:
    """A video of a dataset.

    Attributes:
        id: unique name, used to name the video's outputs.
        path: the file, which may be missing.
        fake: whether it is a fake.
        original: id of the real video that a fake was made from, if known; that video may not be in the dataset.
        group: videos of a group share a fold. DFDC: the part number; otherwise a person, or people linked by fakes.
        split: `train`, `val` or `test` in the official split, if there is one.
    """

    id: str
    path: Path
    fake: bool
    original: str | None
    group: str
    split: str | None = None


@dataclass
class Dataset:
    """The videos of a dataset.

    Attributes:
        layout: key of LAYOUTS.
        videos: the videos by id.
        problems: kind of problem -> names of the files or videos that have it.
    """

    layout: str
    videos: dict[str, Video] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)

    def original_of(self, video: Video) -> Video | None:
        """Return the real video that a fake was made from, if it is in the dataset."""
        original = self.videos.get(video.original or "")
        return original if original and not original.fake else None

    def report(self, problem: str, name: str) -> None:
        """Add a name to a kind of problem."""
        self.problems.setdefault(problem, []).append(name)


def read_dataset(root: Path, layout: str = "auto") -> Dataset:
    """Read a dataset; `auto` detects its layout. Raises DatasetError."""
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder")
    dataset = Dataset(detect_layout(root) if layout == "auto" else layout)
    if not _has_layout(root, dataset.layout):
        raise DatasetError(f"{root}: contains no dataset with the layout {layout}. Choose another folder or --layout")
    for video in LAYOUTS[dataset.layout](root, dataset):
        if video.id in dataset.videos:
            dataset.report("videos ignored because an earlier one has the same id", _relative(video.path, root))
        else:
            dataset.videos[video.id] = video
    if not dataset.videos:
        problems = "; ".join(f"{kind}: {abbreviate(names, 5)}" for kind, names in dataset.problems.items())
        raise DatasetError(f"{root}: contains no usable videos ({problems or 'it is empty'})")
    for video in dataset.videos.values():
        if video.fake and not dataset.original_of(video):
            dataset.report("fakes without a real original in the dataset", f"{video.id} (of {video.original})")
        if not video.path.is_file():
            found = video.path.exists() or video.path.is_symlink()
            problem = "videos that are not regular files" if found else "videos listed but not found"
            dataset.report(problem, _relative(video.path, root))
    return dataset


def detect_layout(root: Path) -> str:
    """Return the layout of the one dataset in a folder. Raises DatasetError."""
    found = [layout for layout in LAYOUTS if _has_layout(root, layout)]
    if not found:
        raise DatasetError(
            f"{root}: contains no dataset. Expected dfdc_train_part_*/ (dfdc), original_sequences/ (ffpp) or "
            "Celeb-real/ (celebdf)"
        )
    if len(found) > 1:
        raise DatasetError(f"{root}: contains several datasets. Choose one with --layout {'|'.join(found)}")
    return found[0]


def description_files(root: Path) -> list[Path]:
    """Return the files that describe the videos: metadata and official splits."""
    patterns = ("dfdc_train_part_*/metadata.json", "*.json", "splits/*.json", CELEB_DF_TEST_LIST)
    return [path for pattern in patterns for path in sorted(root.glob(pattern)) if path.is_file()]


def _has_layout(root: Path, layout: str) -> bool:
    if layout == "dfdc":
        return any(PART.fullmatch(path.name) for path in root.iterdir())
    return (root / {"ffpp": "original_sequences", "celebdf": "Celeb-real"}[layout]).is_dir()


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _dfdc(root: Path, dataset: Dataset) -> Iterator[Video]:
    """Read DFDC. A fake belongs to the part of its original, even if its file is in another one."""
    parts = {path: int(match[1]) for path in root.iterdir() if (match := PART.fullmatch(path.name))}
    folders = sorted(parts, key=lambda folder: (parts[folder], folder))
    entries = [entry for folder in folders for entry in _part_entries(folder, dataset)]
    # Part of each original; for an original that is not in the dataset, the part of its first fake.
    part_of: dict[str, int] = {}
    for path, entry in entries:
        if entry["label"] == "REAL":
            part_of.setdefault(path.stem, parts[path.parent])
    for path, entry in entries:
        fake = entry["label"] == "FAKE"
        original = Path(entry["original"]).stem if fake and entry.get("original") else None
        part = parts[path.parent]
        yield Video(path.stem, path, fake, original, str(part_of.setdefault(original, part) if original else part))


def _part_entries(folder: Path, dataset: Dataset) -> list[tuple[Path, dict[str, Any]]]:
    """Return the videos of a part's metadata.json with their entries; report the unusable and the unlisted ones."""
    try:
        listed = _read_metadata(folder / "metadata.json")
        names = [path.name for path in folder.iterdir()]
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        dataset.report("metadata files that cannot be read", f"{folder.name}/metadata.json ({reason})")
        return []
    entries = []
    for name, entry in listed:
        if problem := _entry_problem(name, entry):
            dataset.report(problem, f"{folder.name}/{name}")
        else:
            entries.append((folder / name, entry))
    found = {name for name in names if Path(name).suffix.lower() in VIDEO_SUFFIXES}
    for name in sorted(found - {name for name, _ in listed}):
        dataset.report("videos found but not listed", f"{folder.name}/{name}")
    return entries


def _read_metadata(path: Path) -> list[tuple[str, Any]]:
    """Return the names and entries of a metadata.json, including repeated names."""
    entries = json.loads(read_regular_file(path), object_pairs_hook=tuple)  # an object becomes a tuple of its pairs
    if not isinstance(entries, tuple):
        raise ValueError("not a JSON object")
    return [(name, dict(entry) if isinstance(entry, tuple) else entry) for name, entry in entries]


def _entry_problem(name: str, entry: Any) -> str | None:
    """Return what is wrong with an entry of metadata.json, if anything."""
    if len(name.encode(errors="replace")) > MAX_NAME:
        return "file names that are too long"
    if not name or name.startswith(".") or name != Path(name).name or "\\" in name or not name.isprintable():
        return "invalid file names"
    if Path(name).suffix.lower() not in VIDEO_SUFFIXES:
        return "file names without the suffix of a video"
    if not isinstance(entry, dict) or not isinstance(original := entry.get("original") or "", str):
        return "malformed entries of metadata.json"
    if not original.isprintable():
        return "malformed entries of metadata.json"
    if entry.get("label") not in ("REAL", "FAKE"):
        return "labels other than REAL and FAKE"
    return None


def _faceforensics(root: Path, dataset: Dataset) -> Iterator[Video]:
    """Read FaceForensics++. Fakes are named <target>_<source>, in DeepFakeDetection with __<scene>__<hash> appended."""
    splits = _official_splits(root, dataset)
    reals = sorted(root.glob("original_sequences/*/c23/videos/*.mp4"))
    fakes = sorted(root.glob("manipulated_sequences/*/c23/videos/*.mp4"))
    pairs = {path: path.stem.partition("__")[0].split("_") for path in fakes}
    group = _linked_groups(pairs.values())
    for path in reals:
        person = path.stem.partition("__")[0]
        yield Video(path.stem, path, False, None, group.get(person, person), splits.get(person))
    for path in fakes:
        target, scene = pairs[path][0], path.stem.split("__")[1:2]
        original = "__".join([target, *scene])
        method = path.relative_to(root).parts[1]
        yield Video(f"{method}_{path.stem}", path, True, original, group[target], splits.get(target))


def _linked_groups(pairs: Iterable[list[str]]) -> dict[str, str]:
    """Return the group of each person. People linked by pairs share a group, named after the first in sorted order."""
    group: dict[str, str] = {}
    for pair in pairs:
        merged = {group.get(person, person) for person in pair}
        members = [person for person in group if group[person] in merged]
        group |= dict.fromkeys([*members, *pair], min(merged))
    return group


def _official_splits(root: Path, dataset: Dataset) -> dict[str, str]:
    """Return the split of each person from train.json, val.json and test.json (lists of pairs) in root or splits/."""
    splits: dict[str, str] = {}
    for split in ("train", "val", "test"):
        for path in (root / f"{split}.json", root / "splits" / f"{split}.json"):
            if path.is_file():
                try:
                    splits |= {person: split for pair in json.loads(path.read_bytes()) for person in pair}
                except (OSError, ValueError, TypeError, RecursionError) as error:
                    dataset.report("split files that cannot be read", f"{_relative(path, root)} ({error})")
    return splits


def _celeb_df(root: Path, dataset: Dataset) -> Iterator[Video]:
    """Read Celeb-DF. A fake id0_id1_0000 is the video id0_0000 with the face of id1."""
    test_list = root / CELEB_DF_TEST_LIST
    lines = test_list.read_text(errors="replace").splitlines() if test_list.is_file() else []
    tests = {line.split()[-1] for line in lines if line.strip()}
    for folder in ("Celeb-real", "YouTube-real", "Celeb-synthesis"):
        for path in sorted((root / folder).glob("*.mp4")):
            name, fake = _relative(path, root), folder == "Celeb-synthesis"
            ids = path.stem.split("_")
            if folder != "YouTube-real" and len(ids) != 2 + fake:
                dataset.report("file names without the id of a person", name)
                continue
            original = f"{ids[0]}_{ids[-1]}" if fake else None
            # Each video from YouTube shows a different person.
            yield Video(path.stem, path, fake, original, ids[0], "test" if name in tests else None)


LAYOUTS = {"dfdc": _dfdc, "ffpp": _faceforensics, "celebdf": _celeb_df}
