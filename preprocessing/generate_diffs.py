"""Stage 4: show where a fake differs from its original.

    python preprocessing/generate_diffs.py --root-dir DATA_ROOT [--crops-dir crops] [--preview N]

writes DATA_ROOT/diffs/<fake id>/<frame>_<face>_diff.png, one channel: 1 - SSIM of the two crops (Wang et al. 2004),
from 0, the same, to 255.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from preprocessing import command
from preprocessing.images import encode_image, list_images, read_image
from preprocessing.jobs import Job, Outcome
from preprocessing.output import whole_folder

OUTPUT = "diffs"
VERSION = 1


def get_args_parser() -> argparse.ArgumentParser:
    parser = command.get_parser(__doc__)
    command.add_run_arguments(parser, preview=True)
    command.add_crops_dir(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    dataset = command.load(args)
    crops, output = args.root_dir / args.crops_dir, args.root_dir / OUTPUT
    todo = []
    for video in dataset.videos.values():
        if video.fake:
            source = dataset.original_of(video)
            folders = (crops / video.id, crops / source.id if source else None)
            inputs = tuple(folder for folder in folders if folder)
            todo.append(Job(video.id, inputs, output / video.id, (*folders, output / video.id)))
    settings = {"stage": Path(__file__).stem, "version": VERSION, "crops": str(args.crops_dir)}
    originals = {video.id: video.original for video in dataset.videos.values()}

    def drawn(path: Path) -> list[np.ndarray]:
        name, fake = path.name.replace("_diff", ""), path.parent.name
        return [read_image(image) for image in (crops / originals[fake] / name, crops / fake / name, path)]

    return command.run_stage(args, diffs, todo, output, settings, drawn, "_diff.png")


def diffs(fake: Path, original: Path | None, output: Path) -> Outcome:
    """Write the masks of one fake; `fake` and `original` are the folders of their crops."""
    if original is None:
        return Outcome("no_original", f"{fake.name}: its original is not in the dataset")
    originals = {(frame, face): path for frame, face, path in list_images(original)}
    masks = unpaired = 0
    with whole_folder(output) as folder:
        for frame, face, path in list_images(fake):
            if (frame, face) not in originals:
                unpaired += 1
                continue
            mask = difference(read_image(originals[frame, face]), read_image(path))
            (folder / f"{path.stem}_diff.png").write_bytes(encode_image(mask))
            masks += 1
    message = f"{unpaired} crops have no counterpart in the original" if unpaired else ""
    return Outcome("ok" if masks else "no_face", message, {"masks": masks, "unpaired": unpaired})


def difference(original: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """Grey uint8 (height, width) of the fake: 255 (1 - SSIM), clipped, for two RGB crops."""
    return cv2.cvtColor(np.clip(dissimilarity(original, fake), 0, 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)


def dissimilarity(original: np.ndarray, fake: np.ndarray) -> np.ndarray:
    """255 (1 - SSIM), from 0 to 510, float64 in the shape of the fake, for two crops (height, width, 3) uint8.

    An original of another size is resized to the fake's.
    """
    from skimage.metrics import structural_similarity

    height, width = fake.shape[:2]
    if original.shape != fake.shape:
        larger = original.shape[0] * original.shape[1] < height * width
        original = cv2.resize(original, (width, height), interpolation=cv2.INTER_CUBIC if larger else cv2.INTER_AREA)
    window = min(7, (min(height, width) - 1) // 2 * 2 + 1)
    if window < 3:  # too small for any structure
        return np.zeros(fake.shape)
    return 255 * (1 - structural_similarity(original, fake, win_size=window, channel_axis=2, full=True)[1])


if __name__ == "__main__":
    command.main(main, get_args_parser())
