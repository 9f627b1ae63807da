"""Write the tables of docs/benchmarks.md from the results of benchmarks.

    python -m benchmarks.tables [FILE.json ...]

replaces each table of the page by that of its JSON file in benchmarks/results. The page has a line
`<!-- NAME.json -->` before the table and `<!-- end -->` after it. FILE.json is copied to benchmarks/results first.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from common import cli
from common.errors import UserError
from common.files import atomic_write
from common.text import plural

PAGE, RESULTS = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results"
TABLE = re.compile(r"(<!-- ([\w-]+\.json) -->\n).*?(<!-- end -->)", re.DOTALL)


def spread(values: Sequence[float]) -> str:
    """Format a mean and a standard deviation."""
    return "{:.3f} ± {:.3f}".format(*values)


# Heading and format of a table's columns, by the keys of a stage.
COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "plain": ("Plain", "{:.2f} s".format),
    "ours": ("This project", "{:.2f} s".format),
    "plain_images_per_s": ("Plain", "{:.1f} images/s".format),
    "images_per_s": ("This project", "{:.1f} images/s".format),
    "ratio": ("Speedup", "{:.1f}".format),
    "share": ("Share of the limit", "{:.0%}".format),
    "limited_by": ("Limit", str),
    "plain_memory": ("Memory, plain", "{:.0f} MiB".format),
    "memory": ("Memory", "{:.0f} MiB".format),
    "crops_seen": ("Crops seen", "{:,}".format),
    "auc": ("AUC", spread),
    "log_loss": ("Log loss", spread),
    "swaps_auc": ("AUC on swaps", spread),
}


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.json", help="results to publish")
    return parser


def main(args: argparse.Namespace) -> int:
    """Update the page. Return the exit status."""
    RESULTS.mkdir(exist_ok=True)
    for path in args.files:
        atomic_write(RESULTS / path.name, path.read_text())
    atomic_write(PAGE, update(PAGE.read_text(), RESULTS))
    return cli.OK


def update(page: str, folder: Path) -> str:
    """Return a page with the tables of the JSON files in a folder. Raises UserError if one is missing."""

    def replace(match: re.Match[str]) -> str:
        path = folder / match[2]
        if not path.exists():
            raise UserError(f"{path}: does not exist, but docs/benchmarks.md has a table of it. Run the benchmark")
        return f"{match[1]}{table(json.loads(path.read_text()))}\n{match[3]}"

    return TABLE.sub(replace, page)


def table(result: Mapping[str, Any]) -> str:
    """Return the results of a benchmark as Markdown: the work and the machine, the table, and the differences."""
    stages = dict(result["stages"])
    keys = [key for key in COLUMNS if any(key in stage for stage in stages.values())]
    lines = [textwrap.fill(f"{result['work']}, on {describe(result['machine'])}:", 120), ""]
    headings = [result.get("headings", {}).get(key, COLUMNS[key][0]) for key in keys]
    lines += ["| | " + " | ".join(headings) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, stage in stages.items():
        cells = [COLUMNS[key][1](stage[key]) if key in stage else "" for key in keys]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    summary = _summary(result)
    return "\n".join([*lines, "", summary] if summary else lines)


def _summary(result: Mapping[str, Any]) -> str:
    """Return the sentences about the ratio and the differences, if there are any."""
    sentences = [f"Speedup: **{result['ratio']:.1f}**."] if "ratio" in result else []
    if "max_score_difference" in result:
        sentences.append(f"Largest difference between video scores: {result['max_score_difference']:.2g}.")
    if "max_box_difference" in result:
        sentences.append(f"Largest difference between boxes: {result['max_box_difference']:.2g} pixels.")
    if "outputs_equal" in result:
        sentences.append("Outputs are equal." if result["outputs_equal"] else "**Outputs differ.**")
    return " ".join(sentences)


def describe(machine: Mapping[str, Any]) -> str:
    """Return a machine in words."""
    parts = [
        machine["cpu"],
        *machine["instruction_sets"][-1:],
        machine["gpu"],
        f"PyTorch {machine['versions']['torch']}",
    ]
    return f"{plural(machine['cores'], 'core')} ({', '.join(filter(None, parts))})"


if __name__ == "__main__":
    cli.main(main, get_args_parser())
