"""Stage 4: compute where each fake differs from its original.

    python preprocessing/generate_diffs.py --root-dir DATA_ROOT [--crops-dir crops] [--preview N]

writes DATA_ROOT/diffs/<fake>/<frame>_<face>_diff.png: one channel, 255 * (1 - SSIM) of the two crops (Wang et al.,
2004), clipped to 0..255; 0 means no difference.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli
from common.files import atomic_folder
from common.outcome import Job, Outcome
from common.text import plural
from preprocessing import stage
from preprocessing.contact_sheet import Sample
from preprocessing.images import encode_image, list_images, read_image
from preprocessing.layout import CROP_SUFFIX, DIFF_SUFFIX, DIFFS, diff_name

VERSION = 1


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    return stage.make_parser(__doc__)


def main(args: argparse.Namespace) -> int:
    """Compute the masks of all fakes. Return the exit status."""
    dataset, root = stage.load_dataset(args), stage.data_root(args)
    jobs = []
    for video in dataset.videos.values():
        if video.fake:
            original = dataset.original_of(video)
            crops, original_crops = root.crops(video.id), root.crops(original.id) if original else None
            inputs = tuple(folder for folder in (crops, original_crops) if folder)
            output = root.diffs(video.id)
            jobs.append(Job(video.id, inputs, output, (crops, original_crops, output)))
    settings = {"stage": Path(__file__).stem, "version": VERSION, "crops": str(args.crops_dir)}

    def sample(path: Path) -> Sample:
        fake = path.parent.name
        crop = path.name.removesuffix(DIFF_SUFFIX) + CROP_SUFFIX
        files = (root.crops(dataset.videos[fake].original or "") / crop, root.crops(fake) / crop, path)
        return Sample(
            f"{fake}/{crop.removesuffix(CROP_SUFFIX)}",
            [read_image(file) for file in files],
            ["original", "fake", "difference"],
        )

    return stage.run_jobs(args, dataset, diffs, jobs, args.root_dir / DIFFS, settings, sample, DIFF_SUFFIX)


def diffs(fake: Path, original: Path | None, output: Path) -> Outcome:
    """Write the masks of one fake; `fake` and `original` are folders of crops."""
    if original is None:
        return Outcome("no_original", f"{fake.name}: its original is not in the dataset")
    originals = {(frame, face): path for frame, face, path in list_images(original)}
    masks = unpaired = 0
    with atomic_folder(output) as folder:
        for frame, face, path in list_images(fake):
            if (frame, face) not in originals:
                unpaired += 1
                continue
            mask = difference(read_image(originals[frame, face]), read_image(path))
            (folder / diff_name(path.name)).write_bytes(encode_image(mask))
            masks += 1
    message = f"{plural(unpaired, 'crop')} without a counterpart in the original" if unpaired else ""
    return Outcome("ok" if masks else "no_face", message, {"masks": masks, "unpaired": unpaired})


def difference(original: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """Return 255 * (1 - SSIM) of two RGB crops, clipped: gray uint8 (height, width) of the fake."""
    return cv2.cvtColor(np.clip(dissimilarity(original, fake), 0, 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)


def dissimilarity(original: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """Return 255 * (1 - SSIM) of two crops (height, width, 3) uint8: float64 from 0 to 510 in the shape of the fake.

    An original of a different size is resized to the fake's.
    """
    from skimage.metrics import structural_similarity

    height, width = fake.shape[:2]
    if original.shape != fake.shape:
        enlarge = original.shape[0] * original.shape[1] < height * width
        original = cv2.resize(original, (width, height), interpolation=cv2.INTER_CUBIC if enlarge else cv2.INTER_AREA)
    window = min(7, (min(height, width) - 1) // 2 * 2 + 1)  # odd
    if window < 3:  # too small for SSIM
        return np.zeros(fake.shape)
    return 255 * (1 - structural_similarity(original, fake, win_size=window, channel_axis=2, full=True)[1])


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
