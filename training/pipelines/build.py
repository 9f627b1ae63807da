"""Build the parts of a training run: data, network, optimizer."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, Dataset

from common.allocator import keep_some_freed_memory
from common.errors import UserError
from preprocessing.crop_kinds import format_crop, recorded_crop
from preprocessing.crops import MarginCrop, SquareCrop
from preprocessing.layout import DIFFS, FOLDS_CSV, LANDMARKS
from training.datasets.classifier_dataset import ClassifierDataset, ValidationDataset, collate
from training.datasets.crop_cache import CropCache
from training.datasets.crop_source import CropSource
from training.datasets.folds import Crops, EpochBatchSampler, read_folds, training_rows, validation_rows
from training.losses import MASK_LOSS, BalancedLoss
from training.options import PADDING_PART
from training.pipelines.engine import Learner, Rates, set_rates
from training.tools.checkpoint import fit_weights, load_encoder, load_network
from training.tools.config import Config, OptimizerConfig
from training.tools.distributed import Distributed
from training.tools.imagenet import cached_weights
from training.tools.optimizers import build_optimizer
from training.transforms.albu import Augmentation
from training.zoo import build_network
from training.zoo.classifiers import DeepFakeClassifier

# Validation batches are larger than training batches by this factor, because no activations are kept for gradients.
VALIDATION_BATCH_FACTOR = 2

log = logging.getLogger(__name__)


class SetupError(UserError):
    """A training run that cannot be set up: conflicting options, missing folders or weights."""


class Data(NamedTuple):
    """The data of a training run.

    Attributes:
        crops: all crops of folds.csv.
        training_rows: rows of the crops to train on.
        validation_rows: rows of the crops to validate on.
        batches: batch sampler of `training`; set its epoch before each epoch.
        training: loader of this process' training batches.
        validation: loader of this process' validation batches.
    """

    crops: Crops
    training_rows: np.ndarray
    validation_rows: np.ndarray
    batches: EpochBatchSampler
    training: DataLoader
    validation: DataLoader


def build_data(args: argparse.Namespace, config: Config, dist: Distributed) -> Data:
    """Build the training and validation data. Raises FoldsError and SetupError."""
    dataset = build_training_dataset(args, config, masks=MASK_LOSS in config.losses)
    _check_folders(args.data_dir, dataset)
    crops, batch_size = dataset.source.crops, config.optimizer.batch_size
    batches = EpochBatchSampler(
        crops,
        dataset.rows,
        batch_size,
        config.batches_per_epoch,
        args.seed,
        not args.no_oversample,
        config.pairs,
        dist.rank,
        dist.world_size,
    )
    validated = validation_rows(crops, args.fold, args.public_validation)
    return Data(
        crops=crops,
        training_rows=dataset.rows,
        validation_rows=validated,
        batches=batches,
        training=build_loader(dataset, batches, args.workers, dist, persistent=args.workers > 0),
        validation=build_validation_loader(
            ValidationDataset(dataset.source, config.size, args.padding_part),
            validated,
            batch_size=batch_size * VALIDATION_BATCH_FACTOR,
            workers=args.workers,
            dist=dist,
        ),
    )


def _check_folders(data_dir: Path, dataset: ClassifierDataset) -> None:
    """Raise SetupError if masks are needed but missing; warn if face dropout lacks landmarks or masks."""
    masks, landmarks = (data_dir / name for name in (DIFFS, LANDMARKS))
    if not masks.is_dir() and (dataset.masks or dataset.only_changed or dataset.dropout == "block"):
        raise SetupError(f"{masks}: no such folder, and this run needs masks. Run preprocessing/generate_diffs.py")
    if dataset.self_blended and not landmarks.is_dir():
        raise SetupError(
            f"{landmarks}: no such folder, and self_blended needs landmarks. Run preprocessing/generate_landmarks.py"
        )
    if dataset.dropout == "face" and not landmarks.is_dir():
        log.warning("%s: no such folder, so face dropout cannot black out parts of faces", landmarks)
    if dataset.dropout == "face" and not masks.is_dir():
        log.warning("%s: no such folder, so face dropout blacks out image halves for real faces only", masks)


def build_training_dataset(args: argparse.Namespace, config: Config, masks: bool) -> ClassifierDataset:
    """Build the dataset of the training crops, with or without masks.

    Raises:
        FoldsError: the list of crops cannot be used.
        OutputError: the folder of the cache cannot be written.
        SetupError: the folder of the crops is missing, or holds crops of another kind than the configuration's.
    """
    source = read_source(args)
    check_kind(source, config.crop_spec())
    if args.cache_dir:
        cache = CropCache.open(args.cache_dir, source.root / source.crops_dir, source.crops, args.cache_gib)
        source = replace(source, cache=cache)
    return ClassifierDataset(
        source,
        training_rows(source.crops, args.fold, args.public_validation, args.hold_out),
        Augmentation(config.size, config.augmentation),
        args.seed,
        label_smoothing=args.label_smoothing,
        dropout=_dropout(args),
        padding_part=args.padding_part,
        only_changed=args.only_changed_frames,
        self_blended=config.self_blended,
        masks=masks,
    )


def read_source(args: argparse.Namespace) -> CropSource:
    """Read the list of crops and check that their folder exists. Raises FoldsError, SetupError."""
    crops = read_folds(args.folds_csv or args.data_dir / FOLDS_CSV)
    folder = args.data_dir / args.crops_dir
    if not folder.is_dir():
        raise SetupError(f"{folder}: no such folder. Run preprocessing/extract_crops.py, or check --crops-dir")
    return CropSource(args.data_dir, args.crops_dir, crops)


def check_kind(source: CropSource, crop: MarginCrop | SquareCrop) -> bool:
    """Check that the crops show the part of the frame that a network needs.

    Returns:
        Whether this is known: crops that preprocessing has not made have no record.

    Raises:
        SetupError: they show another part.
    """
    folder, needed = source.root / source.crops_dir, format_crop(crop)
    recorded = recorded_crop(folder)
    if recorded not in (None, needed):
        raise SetupError(
            f"{folder}: contains crops made with --crop {recorded}, but the network needs {needed}. Check --crops-dir, "
            "or make others with extract_crops.py --crop"
        )
    return recorded is not None


def build_validation_loader(
    dataset: ValidationDataset, rows: np.ndarray, batch_size: int, workers: int, dist: Distributed
) -> DataLoader:
    """Build the loader of this process' share of the crops in `rows`. Each crop goes to one process."""
    part = rows[dist.rank :: dist.world_size].tolist()
    batches = [part[first : first + batch_size] for first in range(0, len(part), batch_size)]
    return build_loader(dataset, batches, workers, dist)


def build_loader(
    dataset: Dataset, batches: Iterable[list], workers: int, dist: Distributed, persistent: bool = False
) -> DataLoader:
    """Build a loader of batches.

    Args:
        dataset: dataset whose samples are Batches of one.
        batches: the dataset's indices, batch by batch.
        workers: number of worker processes.
        dist: this process and its device.
        persistent: keep the worker processes between epochs.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=dist.device.type == "cuda",
        persistent_workers=persistent,
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # samples have their own seeds; leave PyTorch's global generator untouched
    )


def _init_worker(worker: int) -> None:  # noqa: ARG001
    cv2.setNumThreads(1)
    keep_some_freed_memory()  # an image is large enough for malloc to return it to the system each time


def _dropout(args: argparse.Namespace) -> str:
    return "none" if args.no_hardcore else args.dropout


def crop_spec(config: Config, padding_part: int) -> MarginCrop | SquareCrop:
    """Return the part of the frame that the network sees after --padding-part. Raises SetupError."""
    crop = config.crop_spec()
    if padding_part == PADDING_PART:
        return crop
    if crop != MarginCrop():
        raise SetupError(
            "--padding-part: only works with the default crop, but the configuration sets another. Remove it"
        )
    return MarginCrop(1 / padding_part)


def run_settings(args: argparse.Namespace, config: Config, crops: Crops, dist: Distributed) -> dict[str, Any]:
    """Return everything that the result depends on, as JSON values."""
    return {
        "config": config.model_dump(mode="json"),
        "seed": args.seed,
        "fold": args.fold,
        "crops_dir": str(args.crops_dir),
        "hold_out": sorted(set(args.hold_out)) or None,  # null: as in earlier versions, which lack the key
        "public_validation": args.public_validation,
        "label_smoothing": args.label_smoothing,
        "padding_part": args.padding_part,
        "dropout": _dropout(args),
        "oversample": not args.no_oversample,
        "only_changed_frames": args.only_changed_frames,
        "freeze_epochs": args.freeze_epochs,
        "folds_csv": crops.digest,
        "processes": dist.world_size,
    }


def init_network(config: Config, fresh: bool, weights: str | Path | None = None) -> DeepFakeClassifier:
    """Build a configuration's network on the CPU.

    Args:
        config: the configuration.
        fresh: set the initial weights of a new run; otherwise, the caller loads weights later.
        weights: checkpoint to start from instead of the configuration's pretrained encoder.

    Raises:
        CheckpointError: the checkpoint or the pretrained weights cannot be used.
        SetupError: the pretrained weights cannot be downloaded.
    """
    cached = cached_weights(config.encoder)
    use_imagenet = fresh and config.pretrained is True and not weights
    download = use_imagenet and not cached.is_file()
    try:
        network = build_network(
            config.network,
            config.encoder,
            pretrained=download,
            dropout=config.dropout,
            drop_path=config.drop_path,
        )
    except Exception as error:
        if not download:
            raise
        raise SetupError(
            f"pretrained: the weights of {config.encoder} cannot be downloaded ({type(error).__name__}: {error}). "
            f"Connect to the internet, or run ./download_weights.sh --imagenet {config.encoder} where there is a "
            "connection, or use --set pretrained=FILE or --set pretrained=false (random weights)"
        ) from None
    if fresh and weights:
        _copy_weights(network, weights)
    elif use_imagenet and not download:
        load_encoder(network.encoder, cached)
    elif fresh and isinstance(config.pretrained, str):
        load_encoder(network.encoder, config.pretrained)
    elif fresh and not config.pretrained:
        log.warning("pretrained is false: the encoder starts from random weights")
    return network


def _copy_weights(network: DeepFakeClassifier, path: str | Path) -> None:
    """Set a network's weights to those of a checkpoint. Raises CheckpointError."""
    weights = load_network(path)[0].state_dict()
    network.load_state_dict(fit_weights(path, weights, network, "the configuration's network"))


def build_learner(
    config: Config,
    network: DeepFakeClassifier,
    crop: MarginCrop | SquareCrop,
    dist: Distributed,
    compiled: bool = False,
) -> Learner:
    """Move a network to its device and build what trains it; see `wrap_model` for `compiled`. Raises OptimizerError."""
    torch.backends.cudnn.benchmark = True
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    network = dist.sync_batch_norms(network, compiled).to(dist.device).to(memory_format=memory_format)
    network.encoder.classifier.requires_grad_(False)  # timm's head for 1000 classes is not used
    for module in frozen_modules(network, config.frozen_stages):
        module.requires_grad_(False)
    amp_dtype = choose_amp_dtype(config, dist.device)
    optimizer, rates_at = _build_optimizer(config.optimizer, network, dist), _rates(config)
    set_rates(optimizer, rates_at(0, 0))
    return Learner(
        network=network,
        model=network,
        recipe=config.recipe(crop),
        loss=BalancedLoss(config.losses, config.ohem_samples, config.focal_gamma),
        loss_scope=config.loss_scope,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(dist.device.type, enabled=amp_dtype == torch.float16),
        rates_at=rates_at,
        clip_norm=config.optimizer.clip_norm,
        accumulate=config.optimizer.accumulate,
        amp_dtype=amp_dtype,
        dist=dist,
        memory_format=memory_format,
        ema=ModelEmaV3(network, decay=config.ema, use_warmup=True) if config.ema else None,
    )


def frozen_modules(network: DeepFakeClassifier, stages: int) -> list[nn.Module]:
    """Return the stem and the first block stages of an encoder; nothing for 0 stages."""
    encoder = network.encoder
    return [encoder.conv_stem, encoder.bn1, *encoder.blocks[:stages]] if stages else []


def _build_optimizer(config: OptimizerConfig, network: DeepFakeClassifier, dist: Distributed) -> torch.optim.Optimizer:
    """Build the optimizer of the parameters that require a gradient.

    With `classifier_lr`, the encoder and the rest are separate groups.
    """
    encoder, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (encoder if name.startswith("encoder.") else others).append(parameter)
    return build_optimizer(
        config.type,
        [*encoder, *others] if config.classifier_lr is None else [{"params": encoder}, {"params": others}],
        config.learning_rate,
        config.weight_decay,
        fused=dist.device.type == "cuda",
        momentum=config.momentum,
        nesterov=config.nesterov,
    )


def _rates(config: Config) -> Callable[[int, int], Rates]:
    """Return the learning rates and the momentum as a function of (epoch, batch)."""
    optimizer, schedule = config.optimizer, config.optimizer.schedule
    initial = [lr for lr in (optimizer.learning_rate, optimizer.classifier_lr) if lr is not None]
    curve = schedule.build()

    def rates(epoch: int, batch: int) -> Rates:
        time = epoch if schedule.mode == "epoch" else epoch * config.batches_per_epoch + batch
        try:
            return Rates(tuple(curve.lr(lr, time) for lr in initial), curve.momentum(time))
        except OverflowError:
            reason = f"the learning rate of epoch {epoch} is too large for a number"
            raise SetupError(f"optimizer.schedule.params: {reason}. Check them") from None

    return rates


def choose_amp_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """Return the AMP dtype; None for float32, which also replaces float16 on a CPU because it is slow there."""
    if config.fp16 and device.type == "cpu" and config.amp_dtype == "float16":
        log.info("using float32: mixed precision in float16 needs a GPU")
        return None
    return getattr(torch, config.amp_dtype) if config.fp16 else None


def wrap_model(learner: Learner, frozen: bool, compiled: bool) -> None:
    """Freeze or unfreeze the encoder and re-wrap the network, because DDP fixes its set of trained parameters."""
    for name, parameter in learner.network.encoder.named_parameters():
        parameter.requires_grad_(not frozen and not name.startswith("classifier."))
    model = learner.dist.wrap_ddp(learner.network)
    learner.model = torch.compile(model) if compiled else model


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Return the seed of PyTorch's generator for an epoch. Resuming therefore needs no saved generator state."""
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])
