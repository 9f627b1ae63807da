"""Stage 4: compute where each fake differs from its original.

    python preprocessing/generate_diffs.py --root-dir DATA_ROOT [--crop KIND] [--crops-dir DIR] [--preview N]

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
# Parameters of SSIM (Wang et al., 2004): side of the windows in pixels, and the constants for a range of 1.
WINDOW, K1, K2 = 7, 0.01, 0.03
# Rows of a crop that are processed together.
STRIP = 32


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
    settings = {"stage": Path(__file__).stem, "version": VERSION, "crops": str(root.crops_dir)}

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
    """Return 255 * (1 - SSIM) of two crops (height, width, 3) uint8: float32 from 0 to 510 in the shape of the fake.

    An original of a different size is resized to the fake's.
    """
    height, width = fake.shape[:2]
    if original.shape != fake.shape:
        enlarge = original.shape[0] * original.shape[1] < height * width
        original = cv2.resize(original, (width, height), interpolation=cv2.INTER_CUBIC if enlarge else cv2.INTER_AREA)
    window = min(WINDOW, (min(height, width) - 1) // 2 * 2 + 1)  # odd
    if window < 3:  # too small for SSIM
        return np.zeros(fake.shape, np.float32)
    return 255 - 255 * structural_similarity(original, fake, window)


def structural_similarity(x: np.ndarray, y: np.ndarray, window: int) -> np.ndarray:
    """Return the SSIM map of two uint8 images of the same shape: float32 in that shape, from -1 to 1.

    Equals scikit-image's up to the rounding to float32 and takes a fifth of the time: the sums over the windows are
    exact integers, and few rows at a time are processed in the CPU's cache.

    Args:
        x: an image.
        y: the other image.
        window: side of the windows in pixels, odd and at most 7, so that all terms fit in int32.
    """
    change = cv2.absdiff(x, y)
    images = x, y, cv2.multiply(x, y, dtype=cv2.CV_16U), cv2.multiply(change, change, dtype=cv2.CV_16U)
    size = window, window
    sums = [cv2.boxFilter(image, cv2.CV_32S, size, normalize=False, borderType=cv2.BORDER_REFLECT) for image in images]
    similarity = np.empty(x.shape, np.float32)
    for start in range(0, len(x), STRIP):
        rows = slice(start, start + STRIP)
        similarity[rows] = _similarity(window * window, *(values[rows] for values in sums))
    return similarity


def _similarity(n: int, x: np.ndarray, y: np.ndarray, products: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return SSIM, given the sums over n pixels of x, y, x y and (x - y)^2 in int32.

    Terms of means are multiplied by n^2, and those of sample variances and covariances by n (n - 1).
    """
    means, shift = x * y, (x - y) ** 2
    covariance, noise = n * products - means, n * squares - shift  # noise: the variance of x - y
    luminance, structure, shift, noise = (term.astype(np.float32) for term in (2 * means, 2 * covariance, shift, noise))
    luminance += n**2 * (255 * K1) ** 2
    structure += n * (n - 1) * (255 * K2) ** 2
    return luminance * structure / ((luminance + shift) * (structure + noise))


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
