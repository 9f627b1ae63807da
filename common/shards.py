"""Shards: parts of a run that several machines can process without knowing of each other.

The SHA-256 of a clip's id is a position from 0 to SPACE; shard I of N has the positions of the I-th of N equal parts.
So a clip's shard depends on nothing but its id and N.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

SPACE = 2**32
ARRAY = "SLURM_ARRAY_TASK_"  # of the environment variables of a job in a Slurm array


@dataclass(frozen=True, order=True)
class Shard:
    """Shard `index` (from 0) of `count`."""

    index: int
    count: int

    @property
    def positions(self) -> range:
        """The positions of the shard."""
        return range(self.index * SPACE // self.count, (self.index + 1) * SPACE // self.count)

    def __contains__(self, clip: str) -> bool:
        # Ids can be file names that are not valid UTF-8.
        digest = hashlib.sha256(clip.encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:4]) in self.positions

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard(0, 1)


def add_shard_options(parser: argparse.ArgumentParser, merge: str) -> None:
    """Add --shard and --merge to a parser. `merge`: what --merge writes or prints."""
    add = parser.add_argument_group("shards, see docs/cluster.md").add_mutually_exclusive_group().add_argument
    add(
        "--shard",
        type=parse_shard,
        metavar="I/N",
        help="process only the clips of shard I (from 0) of N; auto: of the Slurm array",
    )
    add("--merge", action="store_true", help=f"process no clip, but {merge} when all shards are finished")


def check_merge(args: argparse.Namespace) -> None:
    """Raise UserError if --merge is given together with an option that processes clips again."""
    for option in ("overwrite", "retry_failed"):
        if args.merge and getattr(args, option, False):
            raise UserError(
                f"--merge: processes no clip. Leave out --{option.replace('_', '-')}, or give it to --shard"
            )


def parse_shard(text: str) -> Shard:
    """Argument type: I/N or auto."""
    if text == "auto":
        return shard_of_array(os.environ)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 0 to N - 1")
    return Shard(int(match[1]), int(match[2]))


def shard_of_array(environment: Mapping[str, str]) -> Shard:
    """Return the shard of a job in a Slurm array, which must count from 0. Raises ArgumentTypeError."""
    if f"{ARRAY}ID" not in environment:
        raise argparse.ArgumentTypeError(f"auto: there is no Slurm array ({ARRAY}ID is not set). Pass I/N")
    try:
        index, first, last, count = (int(environment[f"{ARRAY}{name}"]) for name in ("ID", "MIN", "MAX", "COUNT"))
        is_complete = first == 0 <= index <= last == count - 1
    except (KeyError, ValueError):
        is_complete = False
    if not is_complete:
        found = ", ".join(f"{name}={environment[name]}" for name in sorted(environment) if name.startswith(ARRAY))
        raise argparse.ArgumentTypeError(f"auto: the Slurm array is not 0 to N - 1 ({found}). Pass I/N")
    return Shard(index, count)


def shard_path(path: Path, shard: Shard | None) -> Path:
    """Return the path of a shard's own file: `NAME.shard-I-of-N.SUFFIX` for `NAME.SUFFIX`, the path itself for None."""
    return path.with_suffix(f".shard-{shard.index}-of-{shard.count}{path.suffix}") if shard else path


def find_shards(path: Path) -> dict[Shard, Path]:
    """Return the files of shards that exist beside a file, see `shard_path`."""
    pattern = re.compile(re.escape(path.stem) + r"\.shard-(\d{1,6})-of-(\d{1,6})" + re.escape(path.suffix))
    matches = filter(None, (pattern.fullmatch(file.name) for file in sorted(path.parent.glob("*.shard-*"))))
    shards = {Shard(int(match[1]), int(match[2])) for match in matches}
    return {
        shard: file
        for shard in sorted(shards)
        if shard.index < shard.count and (file := shard_path(path, shard)).exists()
    }
