"""The results of shards, `OUTPUT.shard-I-of-N.jsonl`, and their merge.

They have the format of --details. Each record also has the `stamp` of its video, which tells whether the video has
changed since.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.journal import stamp_of
from common.object_store import File
from common.shards import Shard, find_shards, shard_path
from common.text import abbreviate, plural
from inference.details import describe_run, sha256, write_details

# Keys of a header that say when, where and how a run was started. Shards may differ in them.
OF_THE_START = ("created", "directory", "arguments", "device")
# Keys that are not from `inference.details.describe_predictor`.
OF_THE_RUN = ("record", "schema_version", "version", "created", "directory", "arguments")


def results_path(output: Path, shard: Shard | None = None) -> Path:
    """Return the path of a shard's results."""
    return shard_path(output.with_name(f"{output.name}.jsonl"), shard)


def write_results(
    path: Path, header: Mapping[str, Any], records: Iterable[dict[str, Any]], stamps: Mapping[str, Any]
) -> None:
    """Write a shard's results; `stamps`: stamp of each video before it was scored. Raises OutputError."""
    write_details(path, header, [{**record, "stamp": stamps[record["filename"]]} for record in records])


def merge(
    args: argparse.Namespace, videos: Mapping[str, File], checkpoints: Sequence[Path]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the header and the records of --details from the results of all shards, without loading networks.

    Args:
        args: arguments of predict_folder.py.
        videos: file of each video by name.
        checkpoints: paths of the checkpoints.

    Raises:
        UserError: results are missing, outdated, of runs with different options or of other options than `args`.
    """
    from inference.schema import read_details  # loads pydantic, which only a merge needs

    files = _find_all(args.output)
    headers: dict[Path, dict[str, Any]] = {}
    records: dict[str, dict[str, Any]] = {}
    for file in files.values():
        headers[file], found = read_details(file)
        records |= {record["filename"]: record for record in found}
    _check_headers(headers)
    path, header = next(iter(headers.items()))
    _check_options(path, header, args, checkpoints)
    _check_videos(args.output, list(files), records, videos)
    description = {key: value for key, value in header.items() if key not in OF_THE_RUN}
    merged = describe_run(vars(args), description, args.aggregate)
    return merged, [{key: value for key, value in records[name].items() if key != "stamp"} for name in videos]


def _find_all(output: Path) -> dict[Shard, Path]:
    """Return the results of all shards. Raises UserError if some are missing, or if there are those of several N."""
    files = find_shards(results_path(output))
    counts = sorted({shard.count for shard in files})
    if not counts:
        name = results_path(output, Shard(0, 1)).name.replace("0-of-1", "I-of-N")
        raise UserError(f"--merge: there is no {output.with_name(name)}. Run the shards first, with the same --output")
    if len(counts) > 1:
        names = " or ".join(f"{results_path(output)}".removesuffix(".jsonl") + f".shard-*-of-{n}.jsonl" for n in counts)
        raise UserError(f"--merge: there are results of different numbers of shards. Delete {names}")
    missing = [str(Shard(index, counts[0])) for index in range(counts[0]) if Shard(index, counts[0]) not in files]
    if missing:
        remedy = "Run the same command with --shard instead of --merge for each of them"
        raise UserError(f"--merge: {output} lacks the results of the shards {abbreviate(missing)}. {remedy}")
    return files


def _check_headers(headers: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise UserError if the runs differ in something that the scores may depend on."""
    (first, expected), *others = ((path, _facts(header)) for path, header in headers.items())
    for path, facts in others:
        if different := [key for key in expected | facts if expected.get(key) != facts.get(key)]:
            names = ", ".join(different)
            raise UserError(f"{path}: {names} differ from {first}. Run one of the two shards again, like the others")


def _facts(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same in all shards. Checkpoints may have other paths on other machines."""
    models = [{**model, "file": None} for model in header["models"]]
    return {key: value for key, value in header.items() if key not in OF_THE_START} | {"models": models}


def _check_options(
    path: Path, header: Mapping[str, Any], args: argparse.Namespace, checkpoints: Sequence[Path]
) -> None:
    """Raise UserError if the shards had other options."""
    options = {name: (getattr(args, name), value) for name, value in header["method"].items()}
    options["models"] = list(map(sha256, checkpoints)), [model["sha256"] for model in header["models"]]
    if args.precision != "auto":
        options["precision"] = args.precision, header["precision"]
    if args.backend != "auto":
        options["backend"] = args.backend, header["backend"]
    if args.device != "auto":
        options["device"] = args.device.partition(":")[0], header["device"].partition(":")[0]
    names = [f"--{name.replace('_', '-')}" for name, (given, had) in options.items() if given != had]
    if names:
        raise UserError(f"{', '.join(names)}: not as in {path}. Give the same options to --merge and to all shards")
    given = header["arguments"]
    if (args.details or args.report) and not (given.get("details") or given.get("report")):
        remedy = "Run the shards again with --details or --report, which scores no video again"
        raise UserError(f"{path}: has no SHA-256 of the videos. {remedy}")


def _check_videos(
    output: Path, shards: Sequence[Shard], records: Mapping[str, Mapping[str, Any]], videos: Mapping[str, File]
) -> None:
    """Raise UserError if videos were added, removed or changed after their shards were run."""
    outdated = sorted(records.keys() ^ videos.keys())
    outdated += [name for name in videos if name in records and records[name].get("stamp") != stamp_of(videos[name])]
    if outdated:
        again = [str(shard) for shard in shards if any(name in shard for name in outdated)]
        what = f"{plural(len(outdated), 'video')} added, removed or changed since: {abbreviate(outdated)}"
        raise UserError(f"--merge: {output}: {what}. Run the shards {abbreviate(again)} again")
