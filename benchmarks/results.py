"""Results of benchmarks as JSON: ratios, times by stage and the machine. `benchmarks.tables` makes tables of them."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.cores import available_cores
from common.files import atomic_write
from common.versions import package_versions

# Names of the instruction sets that decide how fast networks are, by PyTorch's names.
INSTRUCTION_SETS = {"avx2": "AVX2", "avx512_f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX"}


class Stage(NamedTuple):
    """Times of a stage in seconds.

    Attributes:
        plain: of the plain version.
        ours: of this project.
        limit: of the fastest that this machine could do, see `benchmarks.limits`; None if that is not measured.
        limited_by: what the limit is.
    """

    plain: float
    ours: float
    limit: float | None = None
    limited_by: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the stage as it is in the JSON file: with the ratio and the share of the limit that is reached."""
        times = {"plain": self.plain, "ours": self.ours, "ratio": self.plain / self.ours}
        if self.limit is not None:
            times |= {"limit": self.limit, "share": self.limit / self.ours}
        rounded: dict[str, Any] = {key: round(value, 3) for key, value in times.items()}
        return {**rounded, "limited_by": self.limited_by} if self.limit is not None else rounded


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add the option --json."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="JSON file to write the results to")


def write_json(path: Path | None, work: str, result: Mapping[str, Any]) -> None:
    """Write the results of the benchmark that this process runs, with its command and the machine.

    Args:
        path: the value of --json; None writes nothing.
        work: what was measured, such as "2 clips, 66 faces, one B7".
        result: `stages` (name to dict) and, if they were measured, `ratio`, and `max_score_difference` or
            `outputs_equal`; `headings` replaces headings of `benchmarks.tables.COLUMNS`.
    """
    if path:
        module = f"benchmarks.{Path(sys.argv[0]).stem}"
        command = f"python -m {module}"
        content = {"benchmark": module, "command": command, "work": work, "machine": machine(), **result}
        atomic_write(path, json.dumps(content, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """Return what times depend on: processor, GPU and versions."""
    import torch  # here, so that a process which only measures others is small

    from inference.details import device_name

    capabilities = torch.cpu.get_capabilities()
    has_gpu = torch.cuda.is_available()
    return {
        "cpu": device_name("cpu"),
        "cores": available_cores(),
        "instruction_sets": [name for key, name in INSTRUCTION_SETS.items() if capabilities.get(key)],
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": package_versions(),
    }


def stage_table(stages: Mapping[str, Stage]) -> str:
    """Return the stages as text for a terminal."""
    lines = [f"{'':24}{'plain':>10}{'ours':>10}{'ratio':>8}{'of limit':>10}"]
    for name, stage in stages.items():
        share = f"{stage.limit / stage.ours:10.0%}  {stage.limited_by}" if stage.limit is not None else ""
        times = f"{stage.plain:9.2f}s{stage.ours:9.2f}s{stage.plain / stage.ours:8.2f}"
        lines.append(f"{name:24}{times}{share}")
    return "\n".join(lines)
