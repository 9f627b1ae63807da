"""A contact sheet of augmented training samples, to check what the network will see."""

from __future__ import annotations

from pathlib import Path

import cv2

from common.files import atomic_write, make_folder
from preprocessing.contact_sheet import Sample, draw_sheet
from preprocessing.images import encode_image
from training.datasets.classifier_dataset import ClassifierDataset
from training.datasets.folds import SampleIndex, epoch_order

SAMPLES = 40


def write_preview(dataset: ClassifierDataset, path: Path, oversample: bool = True, count: int = SAMPLES) -> None:
    """Write the first samples of epoch 0 with their masks as a PNG, and print its path.

    Args:
        dataset: training samples; it must return masks.
        path: PNG to write.
        oversample: whether an epoch has as many fakes as reals, see `training.datasets.folds.epoch_order`.
        count: number of samples.
    """
    order = epoch_order(dataset.source.crops.fake[dataset.rows], dataset.seed, epoch=0, oversample=oversample)
    samples = []
    for place, index in enumerate(order[:count]):
        batch = dataset[SampleIndex(int(dataset.rows[index]), 0, place)]
        assert batch.masks is not None
        images = [batch.images[0].numpy(), cv2.cvtColor(batch.masks[0].numpy(), cv2.COLOR_GRAY2RGB)]
        label = "FAKE" if batch.labels[0] > 0.5 else "REAL"
        mask = "mask" if batch.mask_known[0] else "no mask"
        excluded = "" if batch.valid[0] else ", excluded (unchanged)"
        name = dataset.source.crops.name(int(batch.rows[0]))
        samples.append(Sample(f"{label}{excluded} {name}", images, ["augmented", mask]))
    make_folder(path.parent)
    atomic_write(path, encode_image(draw_sheet(samples)))
    print(path)
