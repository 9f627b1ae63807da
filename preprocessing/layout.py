"""The interface between the stages: every folder, file name and CSV column of DATA_ROOT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BBOXES, CROPS, LANDMARKS, DIFFS, FOLDS_CSV = "bboxes", "crops", "landmarks", "diffs", "folds.csv"
# The same for square crops (--crop square).
CROPS_SQUARE, FOLDS_SQUARE_CSV = "crops_square", "folds_square.csv"
COMPRESSED, IMAGES, PREVIEWS, PROGRESS = "compressed", "images", "previews", "progress"
# Columns of folds.csv. label: 1 = fake. original: for a real video, its own id.
FOLDS_COLUMNS = ("video", "file", "label", "original", "frame", "fold")
# Endings of the names of crops, landmarks and masks, after <frame>_<face>.
CROP_SUFFIX, LANDMARKS_SUFFIX, DIFF_SUFFIX = ".png", ".npy", "_diff.png"
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".ts", ".mpg", ".mpeg"})
# Every 10th frame of a video is used.
FRAME_STEP = 10


def crop_name(frame: int, face: int) -> str:
    """Return the file name of a face's crop."""
    return f"{frame}_{face}{CROP_SUFFIX}"


def landmarks_name(crop: str) -> str:
    """Return the file name of the landmarks of a crop, given the crop's file name."""
    return crop.rpartition(".")[0] + LANDMARKS_SUFFIX


def diff_name(crop: str) -> str:
    """Return the file name of the mask of a fake's crop, given the crop's file name."""
    return crop.rpartition(".")[0] + DIFF_SUFFIX


@dataclass(frozen=True)
class DataRoot:
    """The paths of a dataset's files.

    Attributes:
        root: DATA_ROOT.
        crops_dir: folder of the crops, relative to `root`.
    """

    root: Path
    crops_dir: Path = Path(CROPS)

    def boxes(self, video: str) -> Path:
        """Return the JSON file of a real video's bounding boxes."""
        return self.root / BBOXES / f"{video}.json"

    def crops(self, video: str) -> Path:
        """Return the folder of a video's crops."""
        return self.root / self.crops_dir / video

    def kept_crops(self, video: str) -> Path:
        """Return the folder in which stage 1 keeps a real video's crops for stage 2."""
        return self.root / PROGRESS / "kept_crops" / video

    def landmarks(self, video: str) -> Path:
        """Return the folder of a real video's landmarks."""
        return self.root / LANDMARKS / video

    def diffs(self, video: str) -> Path:
        """Return the folder of a fake's masks."""
        return self.root / DIFFS / video
