"""Train a classifier of face crops.

    python training/pipelines/train_classifier.py --config configs/lite0.json --data-dir DATA_ROOT
    torchrun --nproc-per-node 4 training/pipelines/train_classifier.py --config configs/b7.json --data-dir DATA_ROOT

DATA_ROOT is what preprocess_data.sh has worked on. Every epoch leaves a checkpoint, with which predict_folder.py can
score videos, and a line of figures. Stopped, the same command takes up the run after its last whole epoch, and ends
as if it had not been stopped. --preview FILE.png draws augmented samples instead: look at them before you train.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from common import cli
from common.allocator import keep_freed_memory
from common.files import make_folder
from training.datasets.classifier_dataset import DROPOUTS, PADDING_PART
from training.pipelines import build
from training.pipelines.checkpointing import Best, Checkpoints, restore
from training.pipelines.engine import Learner, score_crops, train_one_epoch
from training.pipelines.samples import draw_samples
from training.tools import metrics
from training.tools.config import parse_change, read_config
from training.tools.distributed import init_distributed
from training.tools.log import EpochLog

log = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,  # or the scripts that start this would not know their own options among the user's
    )
    add = parser.add_argument_group("what is trained").add_argument
    add("--config", type=Path, required=True, help="JSON file, see configs/")
    add("--set", type=change, action="append", default=[], metavar="KEY=VALUE", help="change the configuration")
    add("--epochs", type=cli.positive, help="the same as --set optimizer.schedule.epochs=N")
    add("--opt-level", choices=("O0", "O1"), help="O0: float32, O1: mixed precision (default: fp16 of the config)")
    add("--freeze-epochs", type=cli.not_negative, default=0, help="so many epochs only train the last layer")
    add("--seed", type=cli.not_negative, default=777, help="of everything that is drawn")
    add = parser.add_argument_group("data").add_argument
    add("--data-dir", type=Path, required=True, help="folder of the dataset")
    add("--crops-dir", type=Path, default=Path("crops"), help="folder of the crops in it")
    add("--folds-csv", type=Path, help="list of the crops (default: folds.csv in the data folder)")
    add("--fold", type=int, default=0, help="validate on this fold, train on the others")
    add("--public-validation", action="store_true", help="validate on DFDC's 400 public test videos instead")
    add("--label-smoothing", type=label_smoothing, default=0.01, help="labels are this far from 0 and 1")
    add("--padding-part", type=padding_part, default=PADDING_PART, help="cut the margin down to 1/N of the face")
    add("--no-oversample", action="store_true", help="every crop once an epoch, instead of as many fakes as reals")
    add("--no-hardcore", action="store_true", help="no drop-out of parts of the face (--dropout none)")
    add("--dropout", choices=DROPOUTS, default="face", help="black out parts of the face, or one side of the image")
    add("--only-changed-frames", action="store_true", help="leave out fakes whose mask shows no change")
    add = parser.add_argument_group("run").add_argument
    add("--output-dir", type=Path, default=Path("weights"), help="folder of the checkpoints")
    add("--logdir", type=Path, default=Path("logs"), help="folder of the logs")
    add("--prefix", default="", help="the run's name is PREFIX, network, encoder, fold")
    add("--resume", default="auto", metavar="auto|none|FILE", help="start of a run that has no last checkpoint yet")
    add("--from-zero", action="store_true", help="of --resume FILE take the weights alone, and start at epoch 0")
    add("--zero-score", action="store_true", help="forget the best score when the run is taken up")
    add("--test-every", type=cli.positive, default=1, help="validate every N epochs")
    add(
        "--workers",
        type=cli.not_negative,
        default=build.default_workers(),
        help="processes that load data, for each that trains",
    )
    add("--device", default="auto", help="auto, cpu, cuda")
    add("--compile", action="store_true", help="torch.compile the network")
    add("--preview", type=Path, metavar="FILE.png", help="draw augmented samples with labels and masks, train nothing")
    return parser


def main(args: argparse.Namespace) -> int:
    config = read_config(args.config, changes(args))
    if args.preview:
        draw_samples(build.build_training_dataset(args, config, masks=True), args.preview)
        return 0
    for folder in (args.output_dir, args.logdir):
        make_folder(folder)
    checkpoints = Checkpoints(args.output_dir, f"{args.prefix}{config.network}_{config.encoder}_{args.fold}")
    with init_distributed(args.device) as dist:
        logging.getLogger().setLevel(logging.INFO if dist.is_main_process else logging.WARNING)
        data = build.build_data(args, config, dist)
        source = find_resume_checkpoint(args, checkpoints)
        if dist.device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(args.seed)
        network = build.init_network(config, fresh=source is None, weights=args.resume if args.from_zero else None)
        learner = build.build_learner(config, network, build.crop_spec(config, args.padding_part), dist)
        settings = build.run_settings(args, config, data.crops, dist)
        start, best = restore(learner, source, settings) if source else (0, Best())
        if start >= config.optimizer.schedule.epochs:
            log.info("%s: all %d epochs are done", checkpoints.name, start)
            return 0
        if source:
            log.info("taken up from %s, at epoch %d", source, start)
        if dist.is_main_process:
            checkpoints.describe(settings, start, sys.argv)
        train(args, learner, data, checkpoints, settings, start, Best() if args.zero_score else best)
    return 0


def train(
    args: argparse.Namespace,
    learner: Learner,
    data: build.Data,
    checkpoints: Checkpoints,
    settings: dict[str, Any],
    start: int,
    best: Best,
) -> None:
    """The epochs from `start` on, each with its figures and its checkpoint."""
    dist, frozen = learner.dist, None
    epochs = settings["config"]["optimizer"]["schedule"]["epochs"]
    if learner.lr_at(epochs - 1, (epochs - 1) * len(data.batches)) == 0:
        log.warning("the learning rate falls to 0 before the last epoch; see optimizer.schedule.params")
    epoch_log = EpochLog(args.logdir, checkpoints.name, start) if dist.is_main_process else None
    for epoch in range(start, epochs):
        torch.manual_seed(build.epoch_seed(args.seed, epoch, dist.rank))
        if frozen != (epoch < args.freeze_epochs):
            frozen = epoch < args.freeze_epochs
            build.wrap_model(learner, frozen, args.compile)
        learner.network.train()
        if frozen:
            learner.network.encoder.eval()  # or its batch norms would go on to move
        data.batches.epoch = epoch
        figures: dict[str, Any] = {"epoch": epoch, **train_one_epoch(learner, data.training, epoch, data.crops)}
        scores = None
        if (epoch + 1) % args.test_every == 0 or epoch + 1 == epochs:
            scored = score_crops(learner.eval_network, learner.recipe, data.validation, dist, learner.amp_dtype)
            scores = metrics.VideoScores.from_crops(data.crops, *scored)
            figures |= metrics.class_losses(scores.scores, scores.fake)
            figures |= metrics.evaluate(scores.scores, scores.fake)
            figures["bce"] = figures.pop("balanced_log_loss")
            if best.bce is None or figures["bce"] < best.bce:
                best = Best(epoch, figures["bce"])
        if epoch_log:
            epoch_log.add(figures)
            checkpoints.save(learner, epoch, best, settings, scores)
            print(summary(figures, epochs, best), flush=True)


def summary(figures: dict[str, Any], epochs: int, best: Best) -> str:
    """An epoch for a person to read."""
    text = "epoch {epoch}/{last}: loss {train_loss:.4f}, rate {lr:.2e}, {images_per_second:.1f} images/s"
    text = text.format(last=epochs - 1, **figures)
    if figures["broken"]:
        text += f", {figures['broken']} broken images"
    if "bce" in figures:
        names = ("fake_loss", "real_loss", "bce", "auc")
        shown = " ".join(f"{name} {figures[name]:.4f}" for name in names if figures[name] is not None)
        text += f" | {figures['videos']} videos: {shown}"
    return text + (" (best)" if best.epoch == figures["epoch"] else "")


def find_resume_checkpoint(args: argparse.Namespace, checkpoints: Checkpoints) -> Path | None:
    """The checkpoint to go on from: the run's own last one, else that of --resume; None for a fresh start."""
    if args.from_zero and args.resume in ("auto", "none"):
        raise build.SetupError("--from-zero goes with --resume FILE, whose weights the run starts from")
    own = checkpoints.path("last")
    if args.resume != "none" and own.is_file():
        if args.resume != "auto":
            log.warning("%s is not used: the run goes on from its own %s", args.resume, own)
        return own
    return None if args.from_zero or args.resume in ("auto", "none") else Path(args.resume)


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of the configuration that the command line sets."""
    short = {
        "optimizer.schedule.epochs": args.epochs,
        "fp16": None if args.opt_level is None else args.opt_level == "O1",
    }
    return {**dict(args.set), **{key: value for key, value in short.items() if value is not None}}


def change(text: str) -> tuple[str, Any]:
    try:
        return parse_change(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def label_smoothing(text: str) -> float:
    if not 0 <= float(text) < 0.5:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 0.5")
    return float(text)


def padding_part(text: str) -> int:
    if int(text) < PADDING_PART:
        raise argparse.ArgumentTypeError(f"{text} is below {PADDING_PART}, the margin that the crops have")
    return int(text)


if __name__ == "__main__":
    cli.main(main, get_args_parser())
