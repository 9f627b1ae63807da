"""A sheet of augmented samples, so that a person sees what the network is going to see."""

from __future__ import annotations

from pathlib import Path

import cv2

from preprocessing.images import encode_image
from preprocessing.output import make_folder, write_whole
from preprocessing.preview import sheet
from training.datasets.classifier_dataset import ClassifierDataset
from training.datasets.folds import Draw, epoch_order

SAMPLES = 40


def draw_samples(dataset: ClassifierDataset, path: Path, count: int = SAMPLES) -> None:
    """Draw the first samples of epoch 0, each with its mask and its label. The dataset must give masks."""
    order = epoch_order(dataset.source.crops.fake[dataset.rows], dataset.seed, epoch=0)
    captions, rows = [], []
    for place, index in enumerate(order[:count]):
        sample = dataset[Draw(int(dataset.rows[index]), 0, place)]
        label, name = float(sample.labels[0]), dataset.source.crops.name(int(sample.rows[0]))
        kind = ("fake" if label > 0.5 else "real") if sample.known[0] else "fake, no mask"
        captions.append(f"{label:.2f} {kind}{'' if sample.valid[0] else ', unchanged'}: {name}")
        rows.append([sample.images[0].numpy(), cv2.cvtColor(sample.masks[0].numpy(), cv2.COLOR_GRAY2RGB)])
    make_folder(path.parent)
    write_whole(path, encode_image(sheet(captions, rows)))
    print(path)
