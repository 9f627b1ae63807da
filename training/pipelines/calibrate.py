"""Calibrate a checkpoint's scores and shrink the file for distribution.

    python -m training.pipelines.calibrate --checkpoint RUN_last.pt --data-dir ROOT --fold 0 --output model.pt

Fits a temperature and an offset to one half of the fold's originals and their fakes, so that the result can be
measured on the other half (see --half of evaluate.py; with --people, no person is in both). Use RUN_last.pt, because
RUN_best.pt was selected on both halves. Temperature and offset are folded into the last layer, so that the new
checkpoint is used like any other. It has float16 weights and none of the state that resumes training.

The new checkpoint also stores verdict bands: the scores up to which a face is likely real and from which it is likely
fake, with at most 5 % of each class on the wrong side. --bands-only adds them to a checkpoint without changing scores.

With --flip, the new checkpoint averages the logits of a crop and its mirror image, and with --shift those of the crop
shifted up and down, in calibration and in prediction. Each option doubles the number of forward passes per crop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common import cli
from common.errors import UserError
from common.files import make_folder
from training import options
from training.options import HALVES


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="checkpoint of a training run")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--bands-only", action="store_true", help="add verdict bands and leave the scores as they are")
    parser.add_argument("--flip", action="store_true", help="average the logits of each crop and its mirror image")
    parser.add_argument(
        "--shift",
        type=options.shift,
        default=0.0,
        metavar="S",
        help="average the logits of each crop shifted up and down by this fraction of its side",
    )
    options.add_data_arguments(parser)
    parser.set_defaults(half=HALVES[0])
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the calibrated checkpoint. Return the exit status."""
    if args.output.resolve() == args.checkpoint.resolve():
        raise UserError(f"--output {args.output}: would overwrite the checkpoint to calibrate. Choose another name")
    if args.bands_only and (args.flip or args.shift):
        option = "--flip" if args.flip else "--shift"
        raise UserError(f"{option}: would change the scores, which --bands-only keeps. Use one of them")
    make_folder(args.output.parent)

    from training.pipelines.calibration import calibrate  # loads PyTorch and scikit-learn, which takes seconds

    result = calibrate(args)
    bands = result["bands"]
    if not args.bands_only:
        print(f"temperature {result['temperature']:.4f}, offset {result['offset']:.4f}, from {result['crops']} crops")
    print(f"likely real up to {bands.real:.4f}, likely fake from {bands.fake:.4f}, from {bands.faces} faces")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")
    return cli.OK


if __name__ == "__main__":
    cli.main(main, get_args_parser())
