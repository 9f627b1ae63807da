"""What a training run is put together from: data, network, optimizer, by its arguments and its configuration."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError
from preprocessing.crops import MarginCrop, SquareCrop
from training.datasets.classifier_dataset import (
    PADDING_PART,
    ClassifierDataset,
    Source,
    ValidationDataset,
    concatenate,
)
from training.datasets.folds import Crops, EpochBatches, read_folds, training_rows, validation_rows
from training.losses import MASK_LOSS, BalancedLoss
from training.pipelines.engine import Learner
from training.tools.checkpoint import CheckpointError, load_encoder, load_network
from training.tools.config import Config
from training.tools.distributed import Distributed
from training.tools.optimizers import build_optimizer
from training.transforms.albu import Augmentation
from training.zoo import build_network

# Validation keeps nothing for gradients: so many times more crops go through at once.
VALIDATION_BATCH = 2
MOST_WORKERS = 8

log = logging.getLogger(__name__)


class SetupError(UserError):
    """Settings that do not go together, or weights that cannot be fetched."""


class Data(NamedTuple):
    """`batches` draws what `training` loads; its epoch is to be set before each."""

    crops: Crops
    batches: EpochBatches
    training: DataLoader
    validation: DataLoader


def build_data(args: argparse.Namespace, config: Config, dist: Distributed) -> Data:
    """Raises FoldsError, SetupError."""
    dataset = build_training_dataset(args, config, masks=MASK_LOSS in config.losses)
    if (dataset.masks or dataset.only_changed or dataset.dropout == "block") and not (args.data_dir / "diffs").is_dir():
        raise SetupError(f"{args.data_dir / 'diffs'}: no such folder, and masks are needed; run generate_diffs.py")
    if dataset.dropout == "face" and not (args.data_dir / "landmarks").is_dir():
        log.warning("%s: no landmarks, so no eyes, mouths and noses are blacked out", args.data_dir)
    if dataset.dropout == "face" and not (args.data_dir / "diffs").is_dir():
        log.warning("%s: no diffs, so halves are blacked out of reals alone; see --no-hardcore", args.data_dir)
    crops, optimizer = dataset.source.crops, config.optimizer
    batches = EpochBatches(
        dataset.rows,
        crops.fake[dataset.rows],
        optimizer.batch_size,
        config.batches_per_epoch,
        args.seed,
        not args.no_oversample,
        dist.rank,
        dist.world_size,
    )
    return Data(
        crops,
        batches,
        build_loader(dataset, batches, args.workers, dist, persistent=args.workers > 0),
        build_validation_loader(
            dataset.source,
            validation_rows(crops, args.fold, args.public_validation),
            config.size,
            args.padding_part,
            optimizer.batch_size * VALIDATION_BATCH,
            args.workers,
            dist,
        ),
    )


def build_validation_loader(
    source: Source, rows: np.ndarray, size: int, padding_part: int, batch_size: int, workers: int, dist: Distributed
) -> DataLoader:
    """This process' share of the crops, each of which is in one share."""
    rows = rows[dist.rank :: dist.world_size].tolist()
    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return build_loader(ValidationDataset(source, size, padding_part), batches, workers, dist)


def build_training_dataset(args: argparse.Namespace, config: Config, masks: bool) -> ClassifierDataset:
    """Raises FoldsError, SetupError."""
    source = read_source(args)
    return ClassifierDataset(
        source,
        training_rows(source.crops, args.fold, args.public_validation),
        Augmentation(config.size, config.augmentation),
        args.seed,
        args.label_smoothing,
        "none" if args.no_hardcore else args.dropout,
        args.padding_part,
        args.only_changed_frames,
        masks,
    )


def read_source(args: argparse.Namespace) -> Source:
    """Raises FoldsError, and SetupError where there is no folder of crops."""
    crops = read_folds(args.folds_csv or args.data_dir / "folds.csv")
    folder = args.data_dir / args.crops_dir
    if not folder.is_dir():
        raise SetupError(f"{folder}: no such folder; run preprocessing/extract_crops.py, or see --crops-dir")
    return Source(args.data_dir, args.crops_dir, crops)


def build_loader(
    dataset: Dataset, batches: Any, workers: int, dist: Distributed, persistent: bool = False
) -> DataLoader:
    """Samples are seeded by themselves: the loader's own generator keeps its draws out of PyTorch's."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=concatenate,
        pin_memory=dist.device.type == "cuda",
        persistent_workers=persistent,
        worker_init_fn=_one_thread,
        generator=torch.Generator(),
    )


def _one_thread(worker: int) -> None:  # noqa: ARG001
    cv2.setNumThreads(1)


def default_workers() -> int:
    """One a core, the cores divided among the processes of this machine."""
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def crop_spec(config: Config, padding_part: int) -> MarginCrop | SquareCrop:
    """The part of the frame that the network sees, once the margin has been cut down. Raises SetupError."""
    crop = config.crop_spec()
    if padding_part == PADDING_PART:
        return crop
    if crop != MarginCrop():
        raise SetupError("--padding-part cuts down the margin of one third, which crops by the configuration have not")
    return MarginCrop(1 / padding_part)


def run_settings(args: argparse.Namespace, config: Config, crops: Crops, dist: Distributed) -> dict[str, Any]:
    """All that decides on the result, as JSON."""
    return {
        "config": config.model_dump(mode="json"),
        "seed": args.seed,
        "fold": args.fold,
        "crops_dir": str(args.crops_dir),
        "public_validation": args.public_validation,
        "label_smoothing": args.label_smoothing,
        "padding_part": args.padding_part,
        "dropout": "none" if args.no_hardcore else args.dropout,
        "oversample": not args.no_oversample,
        "only_changed_frames": args.only_changed_frames,
        "freeze_epochs": args.freeze_epochs,
        "folds_csv": crops.digest,
        "processes": dist.world_size,
    }


def init_network(config: Config, fresh: bool, weights: str | Path | None = None) -> nn.Module:
    """The network of a configuration, on the CPU.

    If `fresh`, with the weights that it starts from: those of the checkpoint `weights`, or the configuration's
    pretrained encoder. Raises CheckpointError, and SetupError where nothing can be downloaded.
    """
    download = fresh and config.pretrained is True and not weights
    try:
        built = build_network(config.network, config.encoder, download, config.dropout, config.drop_path)
    except Exception as error:
        if not download:
            raise
        raise SetupError(
            f"the published weights of {config.encoder} cannot be fetched ({type(error).__name__}: {error}); "
            "connect to the internet, or give --set pretrained=FILE or pretrained=false (random weights)"
        ) from None
    if fresh and weights:
        _copy_weights(built, weights)
    elif fresh and isinstance(config.pretrained, str):
        load_encoder(built.encoder, config.pretrained)
    elif fresh and not config.pretrained:
        log.warning("the encoder starts from random weights (pretrained is false)")
    return built


def _copy_weights(built: nn.Module, path: str | Path) -> None:
    """Raises CheckpointError for those of another network."""
    try:
        built.load_state_dict(load_network(path)[0].state_dict())
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise CheckpointError(path, f"its weights are not those of the configuration's network: {first}") from None


def build_learner(config: Config, network: nn.Module, crop: MarginCrop | SquareCrop, dist: Distributed) -> Learner:
    """The network on its device, and what trains it. Raises OptimizerError."""
    torch.backends.cudnn.benchmark = True
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    network = dist.sync_batch_norms(network).to(dist.device, memory_format=memory_format)
    network.encoder.get_classifier().requires_grad_(False)  # timm's head of 1000 classes is not used
    amp_dtype = choose_amp_dtype(config, dist.device)
    optimizer, schedule = config.optimizer, config.optimizer.schedule
    curve = schedule.curve()
    return Learner(
        network=network,
        model=network,
        recipe=config.recipe(crop),
        loss=BalancedLoss(config.losses, config.ohem_samples),
        optimizer=build_optimizer(
            optimizer.type,
            network.parameters(),
            optimizer.learning_rate,
            optimizer.weight_decay,
            momentum=optimizer.momentum,
            nesterov=optimizer.nesterov,
        ),
        scaler=torch.amp.GradScaler(dist.device.type, enabled=amp_dtype == torch.float16),
        lr_at=lambda epoch, step: curve.rate(optimizer.learning_rate, epoch if schedule.mode == "epoch" else step),
        clip_norm=optimizer.clip_norm,
        accumulate=optimizer.accumulate,
        amp_dtype=amp_dtype,
        dist=dist,
        memory_format=memory_format,
        ema=ModelEmaV3(network, decay=config.ema, use_warmup=True) if config.ema else None,
    )


def choose_amp_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """None: float32, also where float16 is asked for on a CPU, which is slow at it."""
    if config.fp16 and device.type == "cpu" and config.amp_dtype == "float16":
        log.info("float32: mixed precision in float16 is for GPUs")
        return None
    return getattr(torch, config.amp_dtype) if config.fp16 else None


def wrap_model(learner: Learner, frozen: bool, compiled: bool) -> None:
    """Freeze the encoder or thaw it, and share the network anew: only what is trained takes part in averaging."""
    for name, parameter in learner.network.encoder.named_parameters():
        parameter.requires_grad_(not frozen and not name.startswith("classifier."))
    model = learner.dist.wrap_ddp(learner.network)
    learner.model = torch.compile(model) if compiled else model


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """For PyTorch's generators (dropout, stochastic depth), anew each epoch: so nothing needs to be restored."""
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])
