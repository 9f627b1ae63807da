"""Shared parts of the stages: the command line, running the jobs and the summary."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import cli, jobs
from common.executors import add_executor_options, add_time_limits, choose_executor
from common.local_executor import run_local
from common.outcome import Job, Outcome, StageError, Statuses
from common.shards import WHOLE, add_shard_options, check_merge
from common.text import abbreviate, plural
from preprocessing.contact_sheet import Sample, draw_samples
from preprocessing.crop_kinds import parse_crop
from preprocessing.crops import MarginCrop
from preprocessing.dataset import LAYOUTS, Dataset, read_dataset
from preprocessing.detector_scale import parse_scale
from preprocessing.layout import CROP_SUFFIX, CROPS, CROPS_SQUARE, DataRoot
from preprocessing.limits import MAX_PIXELS

STATUSES = Statuses(done=frozenset({"ok", "no_face"}), skipped=frozenset({"no_original", "no_video"}))

log = logging.getLogger(__name__)


def make_parser(docstring: str) -> argparse.ArgumentParser:
    """Make a stage's parser. All stages accept the same options, so that one command line fits every stage."""
    parser = cli.make_parser(docstring)
    add = parser.add_argument_group("data").add_argument
    add("--root-dir", type=Path, required=True, metavar="DATA_ROOT", help="folder of the dataset and the outputs")
    add("--layout", choices=("auto", *LAYOUTS), default="auto", help="layout of the dataset's files")
    add(
        "--crop",
        type=parse_crop,
        default="margin",
        metavar="KIND",
        help="kind of crops: margin, for the winning solution's networks; square, for the embedded model; or "
        "square:SIDE:CENTER, as in configurations",
    )
    add(
        "--crops-dir",
        type=Path,
        metavar="DIR",
        help=f"folder of the crops within DATA_ROOT (default: {CROPS}, or {CROPS_SQUARE} for square ones)",
    )
    add("--no-dataset-report", action="store_true", help="do not list the dataset's problems")
    run = parser.add_argument_group("run")
    add = run.add_argument
    add("--workers", type=cli.positive, help="number of worker processes (default: one per CPU core)")
    add("--retry-failed", action="store_true", help="re-run the clips that failed in an earlier run")
    add("--overwrite", action="store_true", help="start over instead of resuming")
    add("--max-pixels", type=cli.positive, default=MAX_PIXELS, metavar="N", help="largest frame size, width x height")
    add("--preview", type=cli.positive, metavar="N", help="write a contact sheet of N samples to DATA_ROOT/previews/")
    add_time_limits(run)
    add = parser.add_argument_group("face detector (stages 1 and 3)").add_argument
    add(
        "--detector-scale",
        type=parse_scale,
        default="auto",
        metavar="SCALE",
        help="scale of the detector's input: auto (by frame size) or a number (0.5 for the released checkpoints)",
    )
    add("--device", default="auto", help="device of the detector: auto, cpu, cuda or cuda:1")
    add_executor_options(parser)
    add_shard_options(parser, "print the summary")
    return parser


def data_root(args: argparse.Namespace) -> DataRoot:
    """Return the dataset's paths for a stage's arguments."""
    default = CROPS if args.crop.kind == MarginCrop.kind else CROPS_SQUARE
    return DataRoot(args.root_dir, args.crops_dir or Path(default))


def load_dataset(args: argparse.Namespace) -> Dataset:
    """Read the dataset and log its size and its problems. Raises DatasetError."""
    dataset = read_dataset(args.root_dir, args.layout)
    if not args.no_dataset_report:
        fakes = sum(video.fake for video in dataset.videos.values())
        log.info("%s: %s, %s", args.root_dir, plural(len(dataset.videos) - fakes, "real video"), plural(fakes, "fake"))
        for kind, names in dataset.problems.items():
            log.warning("%s (%d): %s", kind, len(names), abbreviate(names))
    return dataset


def run_jobs(
    args: argparse.Namespace,
    dataset: Dataset,
    function: Callable[..., Outcome],
    todo: list[Job],
    output: Path,
    settings: Mapping[str, Any],
    sample: Callable[[Path], Sample] | None = None,
    suffix: str = CROP_SUFFIX,
    extra: Mapping[str, Outcome] | None = None,
    uses_device: bool = False,
) -> int:
    """Run a stage over the clips of its shard, print the summary and write the contact sheet. Return the exit status.

    Args:
        args: a stage's arguments.
        dataset: the dataset.
        function: the stage's function, see `common.jobs.run`.
        todo: one job per clip.
        output: folder of the outputs.
        settings: what the outputs depend on.
        sample: reads an output file of the stage for the contact sheet; if None, no sheet is written.
        suffix: suffix of the stage's output files.
        extra: outcomes to add to the summary.
        uses_device: whether the function runs networks on `--device`.
    """
    root = Path(os.path.realpath(args.root_dir))  # unlike Path.resolve, accepts a symbolic link to itself
    if Path(os.path.realpath(output)) in (root, *root.parents):
        raise StageError(f"{output}: contains the dataset. Choose another folder for the outputs")
    check_merge(args)
    todo = [job for job in todo if is_in_shard(args, dataset, job.clip)]
    execute = run_local if args.merge else choose_executor(args, uses_device)
    outcomes = jobs.run(
        function,
        todo,
        output,
        settings,
        args.workers,
        STATUSES,
        args.retry_failed,
        args.overwrite,
        execute,
        args.shard,
        args.merge,
    )
    stray = {clip: outcome for clip, outcome in (extra or {}).items() if is_in_shard(args, dataset, clip)}
    remedy = f"Fix the cause and re-run with --retry-failed. All messages are in {jobs.journal_path(output).parent}"
    status = report({**outcomes, **stray}, remedy)
    if sample and args.preview and not args.shard:
        clips = [clip for clip, outcome in outcomes.items() if outcome.status == "ok"]
        print(draw_samples(output, clips, args.preview, sample, suffix))
    return status


def is_in_shard(args: argparse.Namespace, dataset: Dataset, clip: str) -> bool:
    """Return whether a run processes a clip. A fake is in the shard of its original, whose outputs it needs."""
    video = dataset.videos.get(clip)
    return ((video and video.original) or clip) in (args.shard or WHOLE)


def report(outcomes: Mapping[str, Outcome], remedy: str) -> int:
    """Print the summary of a stage. Return the exit status."""
    print(jobs.summarize(outcomes), flush=True)
    failed = [clip for clip, outcome in outcomes.items() if STATUSES.failed(outcome.status)]
    if failed:
        log.error("failed (%d): %s. %s", len(failed), abbreviate(failed), remedy)
    return cli.CLIPS_FAILED if failed else cli.OK
