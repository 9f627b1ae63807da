"""What the command lines share: arguments, messages, exit statuses.

0 all is done; 3 some clips failed (the others are done); 2 the stage cannot go on; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from preprocessing import preview
from preprocessing.dataset import LAYOUTS, Dataset, read_dataset
from preprocessing.errors import ReportedError
from preprocessing.jobs import FINE, Job, Outcome, StageError, journal_of, run, summary

log = logging.getLogger(__name__)


def get_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments of every stage; `description` is the script's docstring."""
    parser = argparse.ArgumentParser(
        description=description.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--root-dir", type=Path, required=True, help="folder of the dataset; results go there too")
    parser.add_argument("--layout", choices=("auto", *LAYOUTS), default="auto", help="how the dataset's files lie")
    return parser


def add_run_arguments(parser: argparse.ArgumentParser, preview: bool = False) -> None:
    """The arguments of the stages that work clip by clip."""
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count(), help="clips under way at once, each in a process"
    )
    parser.add_argument("--retry-failed", action="store_true", help="try clips again that failed in an earlier run")
    parser.add_argument("--overwrite", action="store_true", help="start afresh, whatever an earlier run has done")
    if preview:
        parser.add_argument("--preview", type=positive, metavar="N", help="draw N samples into previews/NAME.png")


def add_crops_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--crops-dir", type=Path, default=Path("crops"), help="folder of the crops in the root folder")


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return int(text)


def not_negative(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return int(text)


def detector_scale(text: str) -> float | str:
    if text == "auto":
        return text
    if not 0 < float(text) <= 4:
        raise argparse.ArgumentTypeError(f"{text} is not auto or a number above 0 and up to 4")
    return float(text)


def some(names: Sequence[str], limit: int = 10) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def load(args: argparse.Namespace) -> Dataset:
    """The dataset of the command line; its problems are logged. Raises DatasetError where there is none."""
    dataset = read_dataset(args.root_dir, args.layout)
    fakes = sum(video.fake for video in dataset.videos.values())
    log.info("%s: %d real videos, %d fakes", args.root_dir, len(dataset.videos) - fakes, fakes)
    for kind, names in dataset.problems.items():
        log.warning("%d %s: %s", len(names), kind, some(names))
    return dataset


def run_stage(
    args: argparse.Namespace,
    function: Callable[..., Outcome],
    todo: list[Job],
    output: Path,
    settings: Mapping[str, Any],
    images_of: Callable[[Path], list[np.ndarray]] | None = None,
    suffix: str = ".png",
    others: Mapping[str, Outcome] | None = None,
) -> int:
    """Run a stage over clips, print the table of outcomes (`others` are added), draw the preview: the exit status.

    `images_of` gives the images to draw for one of the stage's files, whose names end with `suffix`.
    """
    if output.resolve() in (args.root_dir.resolve(), *args.root_dir.resolve().parents):
        raise StageError(f"{output}: results need a folder of their own")
    outcomes = run(function, todo, output, settings, args.workers, args.retry_failed, args.overwrite)
    remedy = f"mend them and run this again with --retry-failed ({journal_of(output)} has all messages)"
    status = finish({**outcomes, **(others or {})}, remedy)
    if images_of and args.preview:
        print(preview.draw(output, outcomes, args.preview, images_of, suffix))
    return status


def finish(outcomes: Mapping[str, Outcome], remedy: str) -> int:
    """Print the table of a stage's outcomes; returns the exit status."""
    print(summary(outcomes), flush=True)
    failed = [clip for clip, outcome in outcomes.items() if outcome.status not in FINE]
    if failed:
        log.error("failed: %s; %s", some(failed), remedy)
    return 3 if failed else 0


def main(program: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser) -> None:
    """Run a command line and exit with its status."""
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parser.parse_args()
    try:
        with logging_redirect_tqdm():
            status = program(args)
    except (ReportedError, OSError) as error:
        log.error("error: %s", error)
        status = 2
    except KeyboardInterrupt:
        log.error("stopped; the same command takes up where this run was")
        status = 130
    sys.exit(status)
