"""What the stages' command lines share: arguments, messages, exit statuses.

0 all is done; 3 some clips failed (the others are done); 2 the stage cannot go on; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from preprocessing.dataset import LAYOUTS, Dataset, DatasetError, read_dataset
from preprocessing.jobs import FINE, Outcome, StageError, summary
from preprocessing.output import OutputError

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


def detector_scale(text: str) -> float | str:
    if text == "auto":
        return text
    if not 0 < float(text) <= 4:
        raise argparse.ArgumentTypeError(f"{text} is not auto or a number above 0 and up to 4")
    return float(text)


def some(names: Sequence[str], limit: int = 5) -> str:
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


def finish(outcomes: Mapping[str, Outcome]) -> int:
    """Print the table of a stage's outcomes; returns the exit status."""
    print(summary(outcomes))
    failed = [clip for clip, outcome in outcomes.items() if outcome.status not in FINE]
    if failed:
        log.error("failed: %s; mend them and run the same command again with --retry-failed", some(failed))
    return 3 if failed else 0


def main(stage: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser) -> None:
    """Run a stage's command line and exit with its status."""
    sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parser.parse_args()
    try:
        with logging_redirect_tqdm():
            status = stage(args)
    except (DatasetError, OutputError, StageError) as error:
        log.error("error: %s", error)
        status = 2
    except KeyboardInterrupt:
        log.error("stopped; the same command takes up where this run was")
        status = 130
    sys.exit(status)
