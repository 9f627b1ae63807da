"""Score every video in a folder with the probability that its faces are fake.

    python predict_folder.py --test-dir VIDEOS --output submission.csv [--models A B ...]

writes a CSV with the columns filename and label, one row per video. Without --models, the embedded model in weights/
is used. After an interruption, the same command resumes.

Exit status: 0 if all videos were read (some may have no face), 3 if some videos or folders are unreadable, 2 for
invalid arguments or a run that cannot continue, 130 after Ctrl-C.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all imports are done, Ctrl-C ends the program silently

import argparse
import logging
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from common import cli
from common.allocator import keep_freed_memory
from common.device import PRECISIONS
from common.executors import add_executor_options, add_time_limits
from common.files import lock
from common.journal import Journal, journal_files, last_settings, stamp_of
from common.object_store import File
from common.shards import WHOLE, add_shard_options, check_merge, shard_path
from common.text import plural
from inference import submission
from inference.aggregation import FRAMES, STRATEGIES
from inference.backends import BACKENDS
from inference.details import AGGREGATES, describe_run, write_details
from inference.loading import DEFAULT_MODEL
from inference.scorers import Scorer, choose_scorer
from inference.shard_results import merge, results_path, write_results
from preprocessing.detector_scale import parse_scale
from preprocessing.limits import MAX_MEMORY, MAX_PIXELS, Limits

ROOT = Path(__file__).resolve().parent
MODEL_CARD = ROOT / "weights" / "MODEL_CARD.md"

log = logging.getLogger("predict_folder")


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument_group("input and output").add_argument
    add(
        "--test-dir",
        type=cli.path_or_url,
        required=True,
        metavar="VIDEOS",
        help="folder of videos (with subfolders) or one video; or its URL in an object store, such as s3://bucket/folder",
    )
    add("--output", type=Path, required=True, metavar="CSV", help="CSV file to write")
    add(
        "--details",
        type=Path,
        metavar="JSONL",
        help="JSON Lines file to write: the run, and status, people, faces and face scores of each video",
    )
    add("--report", type=Path, metavar="HTML", help="page to write: scores over time, faces and how they were scored")
    add("--explain", action="store_true", help="add heat maps to the --report: where networks see signs of a fake")
    add("--annotate", type=Path, metavar="DIR", help="write each video with boxes and scores drawn over it to DIR")
    add(
        "--models",
        nargs="+",
        metavar="CHECKPOINT",
        help="checkpoints: paths, or names in --weights-dir (default: the embedded model)",
    )
    add("--weights-dir", type=Path, default=ROOT / "weights", metavar="DIR", help="folder of the checkpoints")
    add("--overwrite", action="store_true", help="start over instead of resuming an earlier run")
    add = parser.add_argument_group("copies of videos in an object store").add_argument
    add("--cache-dir", type=Path, metavar="DIR", help="folder of the copies, which are kept (default: a temporary one)")
    add("--cache-size", type=cli.positive_number, default=10.0, metavar="GIB", help="size of all copies at most")
    add = parser.add_argument_group("method").add_argument
    add("--frames", type=cli.positive, default=FRAMES, help="number of frames, evenly spaced over each video")
    add("--strategy", choices=STRATEGIES, default="confident", help="how face scores are aggregated into a video score")
    add(
        "--aggregate",
        choices=AGGREGATES,
        default=AGGREGATES[0],
        help="how a video is scored: from all faces together (video), or by its most suspicious person",
    )
    add(
        "--detector-scale",
        type=parse_scale,
        default="auto",
        metavar="SCALE",
        help="scale of the face detector's input: auto (by frame size) or a number. The released checkpoints "
        "were trained and run with 0.5",
    )
    add = parser.add_argument_group("hardware").add_argument
    add("--device", default="auto", help="device of the networks: auto, cpu, cuda, cuda:1 or mps")
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="floating-point type of the classifiers")
    add(
        "--backend",
        choices=BACKENDS,
        default=BACKENDS[0],
        help="library that runs the classifiers; openvino is optional",
    )
    add("--batch-size", type=cli.positive, help="number of faces per forward pass (default: depends on the device)")
    add(
        "--workers",
        type=cli.positive,
        help="number of videos decoded concurrently (default: by number of CPU cores); on Ray, number of workers "
        "(default: all that fit)",
    )
    limits = parser.add_argument_group("limits of a video, which is too_large or unreadable beyond them")
    add = limits.add_argument
    add("--max-pixels", type=cli.positive, default=MAX_PIXELS, metavar="N", help="largest frame, width x height")
    add(
        "--decoder-memory",
        type=cli.positive,
        default=MAX_MEMORY,
        metavar="MIB",
        help="memory of each process that decodes a video",
    )
    add_time_limits(limits)
    add_executor_options(parser)
    add_shard_options(parser, "write the outputs")
    return parser


def _write_report(
    args: argparse.Namespace,
    header: dict[str, Any],
    records: list[dict[str, Any]],
    videos: Mapping[str, File],
    limits: Limits,
) -> None:
    """Write the page of --report."""
    from inference.report import make_explainer, write_report

    explainer = make_explainer(header, header["device"]) if args.explain else None
    write_report(args.report, header, records, videos, explainer, limits)


def _annotate(
    args: argparse.Namespace, records: list[dict[str, Any]], videos: Mapping[str, File], limits: Limits
) -> bool:
    """Write the videos of --annotate. Return whether all were written."""
    from inference.annotate import annotate_videos

    outcomes = annotate_videos(videos, records, args.annotate, limits, args.workers, args.shard, args.merge)
    written = sum(outcome.status == "ok" for outcome in outcomes.values())
    print(f"annotated {written} of {plural(len(outcomes), 'video')} in {args.annotate}")
    return written == len(outcomes)


def settings_of(args: argparse.Namespace, description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a video's record depends on, for the progress file."""
    return {
        "version": submission.RECORD_VERSION,
        "models": [model["sha256"] for model in description["models"]],
        "names": [model["name"] for model in description["models"]],
        "device": description["device"].partition(":")[0],
        "precision": description["precision"],
        "backend": description["backend"],
        "frames": args.frames,
        "strategy": args.strategy,
        "detector_scale": args.detector_scale,
        **{key: description[key] for key in ("device_name", "decoder", "packages")},
    }


def main(args: argparse.Namespace) -> int:
    """Score the videos and write the results. Return the exit status."""
    if args.explain and not args.report:
        raise submission.UsageError("--explain: adds heat maps to a report. Add --report HTML")
    check_merge(args)
    if isinstance(args.test_dir, str):
        if args.executor == "ray" and not args.cache_dir:
            raise submission.UsageError("--cache-dir: is missing. Name a folder on a local disk of each node")
        _interrupt_on(signal.SIGINT, signal.SIGTERM)  # to remove the copies
    keep_freed_memory()
    with submission.open_videos(args.test_dir, args.cache_dir, args.cache_size) as found:
        return _run(args, found)


def _run(args: argparse.Namespace, found: submission.Found) -> int:
    """Score the videos or merge the results of shards. Return the exit status."""
    outputs = [args.output, shard_path(submission.journal_path(args.output), args.shard)]
    outputs += filter(None, (args.details, args.report, args.shard and results_path(args.output, args.shard)))
    submission.check_outputs(outputs, found.videos)
    if args.annotate:
        from inference.annotate import check_folder

        check_folder(args.annotate, found.videos, outputs)
    checkpoints = submission.find_checkpoints(args.models, args.weights_dir) if args.models else [DEFAULT_MODEL]
    limits = Limits(args.max_pixels, args.decoder_memory, args.timeout, args.clip_timeout)
    if args.merge:
        submission.warn_of_unlisted(found)
        with lock(args.output):
            header, records = merge(args, found.videos, checkpoints)
            return _write_outputs(args, header, records, found, limits)
    with closing(choose_scorer(args, checkpoints, limits)) as scorer:
        return _score(args, scorer, found, limits)


def _interrupt_on(*numbers: signal.Signals) -> None:
    """Let signals raise KeyboardInterrupt that would end the program, but not those that are ignored."""
    for number in numbers:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def _score(args: argparse.Namespace, scorer: Scorer, found: submission.Found, limits: Limits) -> int:
    """Score the videos of the shard, by default all, and write the results. Return the exit status."""
    _interrupt_on(signal.SIGINT)
    shard = args.shard or WHOLE
    videos = {name: path for name, path in found.videos.items() if name in shard}
    progress = submission.journal_path(args.output)
    previous = cache(lambda: [last_settings(path) for path in journal_files(progress)])
    description = scorer.describe(lambda description: settings_of(args, description) in previous())
    names = [model["name"] for model in description["models"]]
    where = f"{description['device']} in {description['precision']}"
    if description["backend"] != BACKENDS[0]:
        where += f" with {description['backend']}"
    submission.log_start(found._replace(videos=videos), names, where)
    if args.models is None:
        log.info("the embedded model is small and often wrong, see %s", MODEL_CARD)
    header = describe_run(vars(args), description, args.aggregate)
    settings = settings_of(args, description)
    with lock(args.output, shard.positions):
        journal = Journal(progress, settings, args.overwrite, submission.is_record, args.shard, videos)
        if journal.changed:
            log.info("starting over: settings changed since the last run (%s)", ", ".join(journal.changed))
        stamps = {name: stamp_of(path) for name, path in videos.items()} if args.shard else {}
        scored = submission.score_videos(videos, scorer.score, journal)
        hash_files = bool(args.details or args.report)
        records = submission.complete_records(scored, header, videos, journal, hash_files)
        if args.shard:
            write_results(results_path(args.output, args.shard), header, records, stamps)
        return _write_outputs(args, header, records, found, limits)


def _write_outputs(
    args: argparse.Namespace,
    header: dict[str, Any],
    records: list[dict[str, Any]],
    found: submission.Found,
    limits: Limits,
) -> int:
    """Write the outputs, which shards leave to --merge except for annotated videos. Return the exit status."""
    if not args.shard:
        submission.write_submission(args.output, records)
        if args.details:
            write_details(args.details, header, records)
        if args.report:
            _write_report(args, header, records, found.videos, limits)
    annotated = not args.annotate or _annotate(args, records, found.videos, limits)
    print(submission.summarize(records, found.unlisted))
    failed = any(record["status"] not in submission.READ for record in records) or not annotated
    return cli.CLIPS_FAILED if failed or found.unlisted else cli.OK


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
