"""Draw the validation losses of training runs, to choose checkpoints by.

    python plot_loss.py --log-file logs/RUN.jsonl [logs/OTHER.jsonl ...] [--fake-weight 1.4] [--output loss.png]

The curve is (fake_weight * fake_loss + real_loss) / 2 per epoch. The five best epochs of each run are marked and
numbered; the first 16 epochs are passed over, if there are more.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from preprocessing import command
from preprocessing.errors import ReportedError
from preprocessing.output import make_folder, whole_file
from training.tools.log import read_log

# The winning solution's weight of the fakes' loss, and what it took checkpoints from.
FAKE_WEIGHT = 1.4
FIRST = 16
BEST = 5

log = logging.getLogger(__name__)


class PlotError(ReportedError):
    """Logs in which there is nothing to draw."""


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--log-file", type=Path, nargs="+", required=True, help="logs of training, LOGDIR/RUN.jsonl")
    parser.add_argument("--fake-weight", type=float, default=FAKE_WEIGHT, help="of the fakes' loss")
    parser.add_argument("--output", type=Path, help="PNG to write (default: a window; without a screen, loss.png)")
    return parser


def main(args: argparse.Namespace) -> int:
    runs = {path.stem: losses(path, args.fake_weight) for path in args.log_file}
    screen = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    output = args.output or (None if screen else Path("loss.png"))
    import matplotlib as mpl

    if output:
        mpl.use("Agg")
    figure = draw(runs, args.fake_weight)
    for name, run in runs.items():
        print(f"{name}: best epochs {', '.join(f'{epoch} ({run[epoch]:.4f})' for epoch in best_epochs(run))}")
    if output is None:
        from matplotlib import pyplot

        pyplot.show()
        return 0
    make_folder(output.parent)
    with whole_file(output) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    print(output)
    return 0


def losses(path: Path, fake_weight: float) -> dict[int, float]:
    """The weighted loss of each epoch that was validated. Raises LogError, PlotError."""
    lines = read_log(path)
    found = {line["epoch"]: _weighted(line, fake_weight) for line in lines}
    found = {epoch: loss for epoch, loss in found.items() if loss is not None}
    if not found:
        raise PlotError(f"{path}: none of its {len(lines)} epochs has a fake_loss and a real_loss")
    return found


def _weighted(line: dict[str, Any], fake_weight: float) -> float | None:
    if line.get("fake_loss") is None or line.get("real_loss") is None:
        return None
    return (fake_weight * line["fake_loss"] + line["real_loss"]) / 2


def best_epochs(run: dict[int, float]) -> list[int]:
    """The five of the lowest loss, the best one first; from the seventeenth epoch on, if there are so many."""
    late = [epoch for epoch in run if epoch >= FIRST]
    return sorted(late or run, key=run.get)[:BEST]


def draw(runs: dict[str, dict[int, float]], fake_weight: float) -> Any:
    """A figure with a curve a run."""
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
    for name, run in runs.items():
        (line,) = axes.plot(list(run), list(run.values()), marker=".", label=name, zorder=2)
        for epoch in best_epochs(run):
            axes.plot(epoch, run[epoch], marker="o", color=line.get_color(), zorder=3)
            axes.annotate(str(epoch), (epoch, run[epoch]), (0, -14), textcoords="offset points", ha="center")
    axes.set(xlabel="epoch", ylabel=f"validation loss, ({fake_weight:g} fake + real) / 2")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    command.main(main, get_args_parser())
