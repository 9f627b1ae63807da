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
from pathlib import Path

from common import cli
from common.allocator import keep_freed_memory
from common.device import PRECISIONS
from common.files import lock
from common.journal import Journal
from common.watchdog import TIMEOUT
from inference import submission
from inference.aggregation import FRAMES, STRATEGIES
from preprocessing.detector_scale import parse_scale
from preprocessing.limits import MAX_MEMORY, MAX_PIXELS, Limits

ROOT = Path(__file__).resolve().parent
DEFAULT_MODEL = ROOT / "weights" / "default_lite0.pt"
MODEL_CARD = ROOT / "weights" / "MODEL_CARD.md"

log = logging.getLogger("predict_folder")


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument_group("input and output").add_argument
    add(
        "--test-dir", type=Path, required=True, metavar="VIDEOS", help="folder of videos (with subfolders) or one video"
    )
    add("--output", type=Path, required=True, metavar="CSV", help="CSV file to write")
    add(
        "--details",
        type=Path,
        metavar="JSONL",
        help="JSON Lines file to write: status, faces and face scores of each video",
    )
    add(
        "--models",
        nargs="+",
        metavar="CHECKPOINT",
        help="checkpoints: paths, or names in --weights-dir (default: the embedded model)",
    )
    add("--weights-dir", type=Path, default=ROOT / "weights", metavar="DIR", help="folder of the checkpoints")
    add("--overwrite", action="store_true", help="start over instead of resuming an earlier run")
    add = parser.add_argument_group("method").add_argument
    add("--frames", type=cli.positive, default=FRAMES, help="number of frames, evenly spaced over each video")
    add("--strategy", choices=STRATEGIES, default="confident", help="how face scores are aggregated into a video score")
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
    add("--batch-size", type=cli.positive, help="number of faces per forward pass (default: depends on the device)")
    add("--workers", type=cli.positive, help="number of videos decoded concurrently (default: by number of CPU cores)")
    add = parser.add_argument_group("limits of a video, which is too_large or unreadable beyond them").add_argument
    add("--max-pixels", type=cli.positive, default=MAX_PIXELS, metavar="N", help="largest frame, width x height")
    add(
        "--decoder-memory",
        type=cli.positive,
        default=MAX_MEMORY,
        metavar="MIB",
        help="memory of each process that decodes a video",
    )
    add(
        "--timeout",
        type=cli.positive,
        default=int(TIMEOUT),
        metavar="SECONDS",
        help="time without progress after which decoding a video is given up",
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Score the videos and write the results. Return the exit status."""
    keep_freed_memory()
    found = submission.find_videos(args.test_dir)
    progress = submission.journal_path(args.output)
    submission.check_outputs([args.output, progress, *([args.details] if args.details else [])], found.videos)
    checkpoints = submission.find_checkpoints(args.models, args.weights_dir) if args.models else [DEFAULT_MODEL]

    # Imported only after the arguments have been checked, because loading PyTorch takes seconds. Meanwhile, the
    # decoders start.
    from inference.decoder import Decoder, default_workers

    limits = Limits(args.max_pixels, args.decoder_memory, args.timeout)
    decoders = [Decoder(limits) for _ in range(args.workers or default_workers())]

    from inference.ensemble import Ensemble
    from inference.predictor import Predictor
    from preprocessing.faces import FaceDetector

    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    ensemble = Ensemble(checkpoints, args.device, args.precision)
    scale = None if args.detector_scale == "auto" else args.detector_scale
    detector = FaceDetector("inference", ensemble.device, scale)
    predictor = Predictor(ensemble, detector, args.strategy, args.frames, args.batch_size, decoders)
    settings = {
        "version": submission.RECORD_VERSION,
        "models": [submission.sha256(path) for path in checkpoints],
        "names": ensemble.names,
        "device": ensemble.device.type,
        "precision": ensemble.precision,
        "frames": args.frames,
        "strategy": args.strategy,
        "detector_scale": args.detector_scale,
    }
    submission.log_start(found, ensemble.names, f"{ensemble.device} in {ensemble.precision}")
    if args.models is None:
        log.info("the embedded model is small and often wrong, see %s", MODEL_CARD)

    with lock(args.output):
        journal = Journal(progress, settings, args.overwrite, submission.is_record)
        if journal.changed:
            log.info("starting over: settings changed since the last run (%s)", ", ".join(journal.changed))
        records = submission.score_videos(found.videos, predictor, journal)
        submission.write_submission(args.output, records)
        if args.details:
            submission.write_details(args.details, records)
    print(submission.summarize(records, found.unlisted))
    failed = any(record["status"] not in submission.READ for record in records)
    return cli.CLIPS_FAILED if failed or found.unlisted else cli.OK


if __name__ == "__main__":
    cli.main(main, get_args_parser(), resumable=True)
