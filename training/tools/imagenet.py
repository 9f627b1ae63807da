"""ImageNet weights of the encoders as files in the cache of torch.hub, where training starts from them offline.

    python -m training.tools.imagenet ENCODER ...     # print the URL of each encoder's weights
    python -m training.tools.imagenet --folder        # print the folder of the cache
    python -m training.tools.imagenet --check FILE    # exit with status 0 if the content of FILE matches its name

The files are those of timm's GitHub release, which the published code used. Their names end with the first digits of
their SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path, PurePosixPath

import timm
import torch

from common import cli
from training.tools.checkpoint import CheckpointError, load_encoder
from training.zoo.encoders import ENCODERS, build_encoder


def weights_url(encoder: str) -> str:
    """Return the URL of an encoder's ImageNet weights."""
    return vars(timm.get_pretrained_cfg(ENCODERS[encoder].timm_name))["url"]


def cache_folder() -> Path:
    """Return the folder of torch.hub's cache: $TORCH_HOME/hub/checkpoints, by default in ~/.cache/torch."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_weights(encoder: str) -> Path:
    """Return the place of an encoder's ImageNet weights in the cache, where they may be missing."""
    return cache_folder() / _file_name(encoder)


def check_weights(path: Path) -> str:
    """Check a file, which may still be named NAME.part, and return its encoder. Raises CheckpointError."""
    name = path.name.removesuffix(".part")
    encoder = next((encoder for encoder in ENCODERS if _file_name(encoder) == name), None)
    if encoder is None:
        raise CheckpointError(path, "is not the name of an encoder's ImageNet weights. Check the name")
    expected = PurePosixPath(name).stem.rpartition("-")[2]
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror}). Download it again") from None
    if not found.startswith(expected):
        reason = f"its SHA-256 starts with {found[: len(expected)]}, not with {expected}. Download it again"
        raise CheckpointError(path, reason)
    load_encoder(build_encoder(encoder), path)
    return encoder


def _file_name(encoder: str) -> str:
    return PurePosixPath(weights_url(encoder)).name


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("encoders", nargs="*", type=encoder_name, metavar="ENCODER", help="name of an encoder")
    parser.add_argument("--folder", action="store_true", help="print the folder of the cache")
    parser.add_argument("--check", type=Path, nargs="+", default=[], metavar="FILE", help="file to check")
    return parser


def encoder_name(text: str) -> str:
    """Argument type: the name of an encoder."""
    if text not in ENCODERS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(ENCODERS)}")
    return text


def main(args: argparse.Namespace) -> int:
    """Print what is asked for, and what is wrong with a file. Return the exit status."""
    if args.folder:
        print(cache_folder())
    for encoder in args.encoders:
        print(weights_url(encoder))
    status = cli.OK
    for path in args.check:
        try:
            print(f"{path}: {check_weights(path)}")
        except CheckpointError as error:
            print(error, file=sys.stderr)
            status = cli.CANNOT_CONTINUE
    return status


if __name__ == "__main__":
    cli.main(main, get_args_parser())
