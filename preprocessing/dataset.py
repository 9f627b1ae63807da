"""The videos of a dataset: which are fake, what of, and what must not be divided between folds.

Three layouts become the same records: DFDC's parts with their metadata.json, FaceForensics++'s
original_sequences/ and manipulated_sequences/ (c23), and Celeb-DF's Celeb-real/, YouTube-real/ and
Celeb-synthesis/. What is wrong with a dataset is listed, not raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.text import abbreviate
from preprocessing.layout import VIDEO_SUFFIXES

LONGEST_NAME = 200  # bytes: results' names are a little longer than the video's, and 255 is the most
CELEB_DF_TESTS = "List_of_testing_videos.txt"
PART = re.compile(r"dfdc_train_part_(\d+)")


class DatasetError(UserError):
    """A folder that is no dataset. The message says what was looked for."""


@dataclass(frozen=True)
class Video:
    """A video of a dataset.

    id: its name in all results. original: the id of the real video that a fake was made from (it need not be
    in the dataset), or None. group: videos of one group must stay in one fold (of DFDC, the number of the
    part). split: train, val or test where the dataset's authors say so.
    """

    id: str
    path: Path
    fake: bool
    original: str | None
    group: str
    split: str | None = None


@dataclass
class Dataset:
    """Videos by id, in order, and the names of what is wrong by the kind of problem."""

    layout: str
    videos: dict[str, Video] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)

    def original_of(self, video: Video) -> Video | None:
        """The real video that a fake was made from, if it is in the dataset."""
        original = self.videos.get(video.original)
        return original if original and not original.fake else None

    def report(self, kind: str, name: str) -> None:
        self.problems.setdefault(kind, []).append(name)


def read_dataset(root: Path, layout: str = "auto") -> Dataset:
    """Read a dataset; `auto` detects its layout. Raises DatasetError."""
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder")
    dataset = Dataset(detect_layout(root) if layout == "auto" else layout)
    if not _has_layout(root, dataset.layout):
        raise DatasetError(f"{root}: has no dataset of the layout {layout}. Choose another --layout or folder")
    for video in LAYOUTS[dataset.layout](root, dataset):
        if video.id in dataset.videos:
            dataset.report("videos with the id of an earlier one, ignored", str(video.path.relative_to(root)))
        else:
            dataset.videos[video.id] = video
    if not dataset.videos:
        problems = "; ".join(f"{kind}: {abbreviate(names, 5)}" for kind, names in dataset.problems.items())
        raise DatasetError(f"{root}: has no usable videos ({problems or 'it is empty'})")
    for video in dataset.videos.values():
        if video.fake and not dataset.original_of(video):
            dataset.report("fakes without a real original in the dataset", f"{video.id} (of {video.original})")
        if not video.path.is_file():
            dataset.report("videos listed but not found", str(video.path.relative_to(root)))
    return dataset


def detect_layout(root: Path) -> str:
    """Return the layout of the one dataset in a folder. Raises DatasetError."""
    found = [layout for layout in LAYOUTS if _has_layout(root, layout)]
    if not found:
        raise DatasetError(
            f"{root}: has no dataset: neither dfdc_train_part_*/ (dfdc) nor original_sequences/ (ffpp) nor "
            "Celeb-real/ (celebdf)"
        )
    if len(found) > 1:
        raise DatasetError(f"{root}: has several datasets. Choose one with --layout {'|'.join(found)}")
    return found[0]


def _has_layout(root: Path, layout: str) -> bool:
    if layout == "dfdc":
        return any(PART.fullmatch(path.name) for path in root.iterdir())
    return (root / {"ffpp": "original_sequences", "celebdf": "Celeb-real"}[layout]).is_dir()


def description_files(root: Path) -> list[Path]:
    """The files that tell which videos are what: metadata and official splits."""
    patterns = ("dfdc_train_part_*/metadata.json", "*.json", "splits/*.json", CELEB_DF_TESTS)
    return [path for pattern in patterns for path in sorted(root.glob(pattern))]


def _dfdc(root: Path, dataset: Dataset) -> Iterator[Video]:
    parts = {path: int(match[1]) for path in root.iterdir() if (match := PART.fullmatch(path.name))}
    home: dict[str, int] = {}  # the part of each real video, and of missing ones that of their first fake
    entries = []
    for folder, part in sorted(parts.items(), key=lambda item: (item[1], item[0])):
        metadata = _metadata(folder, dataset)
        names = set()
        for name, entry in metadata or ():
            problem = _problem(name, entry)
            names.add(name)
            if problem:
                dataset.report(problem, f"{folder.name}/{name}")
            else:
                entries.append((folder / name, part, entry))
                if entry["label"] == "REAL":
                    home.setdefault(Path(name).stem, part)
        if metadata is not None:
            there = (path.name for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
            for name in sorted(set(there) - names):
                dataset.report("videos there, but not listed", f"{folder.name}/{name}")
    for path, part, entry in entries:
        fake = entry["label"] == "FAKE"
        original = Path(entry["original"]).stem if fake and entry.get("original") else None
        # A fake belongs to its original's part, in whichever it lies itself.
        group = home.setdefault(original, part) if original else part
        yield Video(path.stem, path, fake, original, str(group))


def _metadata(folder: Path, dataset: Dataset) -> list[tuple[str, Any]] | None:
    """The entries of a part's metadata.json, repeated ones too; None if it cannot be read."""
    path = folder / "metadata.json"
    try:
        entries = json.loads(path.read_bytes(), object_pairs_hook=_Pairs)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        dataset.report("metadata files that cannot be read", f"{folder.name}/{path.name} ({reason})")
        return None
    if not isinstance(entries, _Pairs):
        dataset.report("metadata files that cannot be read", f"{folder.name}/{path.name} (holds no object)")
        return None
    return [(name, dict(entry) if isinstance(entry, _Pairs) else entry) for name, entry in entries]


class _Pairs(list):
    """A JSON object as its pairs, so that a name that stands twice is seen."""


def _problem(name: str, entry: Any) -> str | None:
    """What is wrong with an entry of metadata.json, if anything."""
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        return "names that are too long"
    if not name or name.startswith(".") or name != Path(name).name or "\\" in name or not name.isprintable():
        return "names that are no names of files in their folder"
    if Path(name).suffix.lower() not in VIDEO_SUFFIXES:
        return "names that are not a video's"
    if not isinstance(entry, dict) or not isinstance(entry.get("original") or "", str):
        return "malformed entries of metadata.json"
    if entry.get("label") not in ("REAL", "FAKE"):
        return "labels that are neither REAL nor FAKE"
    return None


def _faceforensics(root: Path, dataset: Dataset) -> Iterator[Video]:
    """Fakes are named after their target and source (000_003; 01_02__scene__hash of DeepFakeDetection)."""
    splits = _official_splits(root, dataset)
    reals = sorted(root.glob("original_sequences/*/c23/videos/*.mp4"))
    fakes = sorted(root.glob("manipulated_sequences/*/c23/videos/*.mp4"))
    pairs = {path: path.stem.partition("__")[0].split("_") for path in fakes}
    group: dict[str, str] = {}
    for pair in pairs.values():  # both faces of a pair stay together
        common = min(group.get(person, person) for person in pair)
        merged = {group.get(person, person) for person in pair}
        group |= {person: common for person, old in group.items() if old in merged} | dict.fromkeys(pair, common)
    for path in reals:
        person = path.stem.partition("__")[0]
        yield Video(path.stem, path, False, None, group.get(person, person), splits.get(person))
    for path in fakes:
        target, scene = pairs[path][0], path.stem.split("__")[1:2]
        original = "__".join([target, *scene])
        method = path.relative_to(root).parts[1]
        yield Video(f"{method}_{path.stem}", path, True, original, group[target], splits.get(target))


def _official_splits(root: Path, dataset: Dataset) -> dict[str, str]:
    """FaceForensics++'s train.json, val.json, test.json (lists of pairs), beside the data or in splits/."""
    splits = {}
    for split in ("train", "val", "test"):
        for path in (root / f"{split}.json", root / "splits" / f"{split}.json"):
            if path.is_file():
                try:
                    splits |= {person: split for pair in json.loads(path.read_bytes()) for person in pair}
                except (ValueError, TypeError) as error:
                    dataset.report("split files that cannot be read", f"{path.relative_to(root)} ({error})")
    return splits


def _celeb_df(root: Path, dataset: Dataset) -> Iterator[Video]:
    """A fake id0_id1_0000 is the video id0_0000 with the face of id1."""
    path = root / CELEB_DF_TESTS
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    tests = {line.split()[-1] for line in lines if line.strip()}
    for folder in ("Celeb-real", "YouTube-real", "Celeb-synthesis"):
        for path in sorted((root / folder).glob("*.mp4")):
            fake = folder == "Celeb-synthesis"
            names = path.stem.split("_")
            if folder != "YouTube-real" and len(names) != 2 + fake:
                dataset.report("names that do not tell the person", str(path.relative_to(root)))
                continue
            # A person's videos stay together; those from YouTube have a person each.
            split = "test" if path.relative_to(root).as_posix() in tests else None
            original = f"{names[0]}_{names[-1]}" if fake else None
            yield Video(path.stem, path, fake, original, names[0], split)


LAYOUTS = {"dfdc": _dfdc, "ffpp": _faceforensics, "celebdf": _celeb_df}
