"""Plot the validation loss of training runs, to select checkpoints.

    python plot_loss.py --log-file logs/RUN.jsonl [logs/OTHER.jsonl ...] [--fake-weight 1.4] [--output loss.png]

plots (fake_weight * fake_loss + real_loss) / 2 per epoch. The five best epochs of each run are marked with their
numbers; the first 16 epochs, 0 to 15, are not considered if there are later ones. Epochs whose loss is not finite are
left out. A star marks the epoch that training saved as RUN_best.pt, which may be a different one: in training, both
classes have the same weight.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common import cli
from common.errors import UserError
from common.files import atomic_file, make_folder
from common.text import abbreviate, printable
from training.tools.log import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# How the winning solution selected checkpoints: the weight of fake_loss, the first epoch considered, and the number of
# best epochs.
FAKE_WEIGHT, FIRST_EPOCH, BEST_COUNT = 1.4, 16, 5

# Color, marker and line style of one run after another: runs are told apart without color, too. The colors are those of
# Okabe and Ito, Color Universal Design, 2008.
STYLES = tuple(
    zip(
        ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9"),
        ("o", "s", "^", "D", "v", "P", "X"),
        ("-", "--", "-.", ":", "-", "--", "-."),
        strict=True,
    )
)

log = logging.getLogger(__name__)


class PlotError(UserError):
    """A log that has nothing to plot."""


class Run(NamedTuple):
    """The finite validation losses of a run.

    Attributes:
        losses: epoch -> weighted loss, or the loss of the only class.
        best_in_training: epoch with the lowest unweighted loss, whose checkpoint is RUN_best.pt.
    """

    losses: dict[int, float]
    best_in_training: int


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--log-file", type=Path, nargs="+", required=True, metavar="JSONL", help="training logs, LOGDIR/RUN.jsonl")
    add("--fake-weight", type=cli.finite, default=FAKE_WEIGHT, metavar="WEIGHT", help="weight of fake_loss")
    add("--output", type=Path, metavar="PNG", help="file to write (default: a window, or loss.png without a display)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Plot the runs and print their best epochs. Return the exit status."""
    stems = [path.stem for path in args.log_file]
    names = list(map(printable, stems if len(set(stems)) == len(stems) else map(str, args.log_file)))
    runs = {name: read_run(path, args.fake_weight) for name, path in zip(names, args.log_file, strict=True)}

    import matplotlib as mpl

    if args.output:
        mpl.use("Agg")
    from matplotlib import pyplot

    # Without a display, matplotlib chooses the Agg backend, which has no windows.
    output = args.output or (Path("loss.png") if mpl.get_backend().lower() == "agg" else None)
    figure = plot(runs, args.fake_weight)
    for name, run in runs.items():
        epochs = ", ".join(f"{epoch} ({run.losses[epoch]:.4f})" for epoch in best_epochs(run.losses))
        print(f"{name}: best epochs {epochs}")
        if args.fake_weight != 1 and best_epochs(run.losses)[0] != run.best_in_training:
            print(
                f"{name}: training selected epoch {run.best_in_training} (RUN_best.pt) with both classes weighted "
                f"equally; the fake weight here is {args.fake_weight:g}"
            )
    if output is None:
        pyplot.show()
        return cli.OK
    make_folder(output.parent)
    with atomic_file(output) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    print(printable(str(output)))
    return cli.OK


def read_run(path: Path, fake_weight: float) -> Run:
    """Read the finite losses of the epochs that were validated. Raises LogError, PlotError."""
    lines = [line for line in read_log(path) if line.get("fake_loss") is not None or line.get("real_loss") is not None]
    if not lines:
        raise PlotError(f"{path}: no epoch has a fake_loss or a real_loss. Choose a log with validated epochs")
    for missing, present in (("fake_loss", "real_loss"), ("real_loss", "fake_loss")):
        epochs = [line["epoch"] for line in lines if line.get(missing) is None]
        if epochs:
            where = "all epochs" if len(epochs) == len(lines) else f"epochs {abbreviate([str(n) for n in epochs])}"
            log.warning("%s: validated on one class only in %s; the plot shows the %s there", path, where, present)
    losses = {line["epoch"]: _weighted(line, fake_weight) for line in lines}
    left_out = [str(epoch) for epoch, loss in losses.items() if not math.isfinite(loss)]
    if len(left_out) == len(losses):
        raise PlotError(f"{path}: no epoch has a finite loss. Choose another log")
    if left_out:
        log.warning("%s: left out because the loss is not finite: %s", path, f"epochs {abbreviate(left_out)}")
    unweighted = {line["epoch"]: _weighted(line, 1) for line in lines if math.isfinite(losses[line["epoch"]])}
    finite = {epoch: losses[epoch] for epoch in unweighted}
    return Run(finite, min(unweighted, key=unweighted.__getitem__))


def _weighted(line: Mapping[str, Any], fake_weight: float) -> float:
    """Return the weighted loss of an epoch, or the loss of the only class."""
    fake, real = line.get("fake_loss"), line.get("real_loss")
    if fake is None:
        return line["real_loss"]
    return fake if real is None else (fake_weight * fake + real) / 2


def best_epochs(losses: Mapping[int, float]) -> list[int]:
    """Return up to five epochs with the lowest loss, best first. Early epochs count only if there are no later ones."""
    late = [epoch for epoch in losses if epoch >= FIRST_EPOCH]
    return sorted(late or losses, key=losses.__getitem__)[:BEST_COUNT]


def plot(runs: Mapping[str, Run], fake_weight: float) -> Figure:
    """Plot one curve per run with its best epochs."""
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    star: dict[str, Any] = {
        "marker": "*",
        "markersize": 14,
        "markerfacecolor": "white",
        "linestyle": "none",
        "zorder": 4,
    }
    figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
    for (name, (losses, best_in_training)), (color, marker, dashes) in zip(runs.items(), cycle(STYLES), strict=False):
        look: dict[str, Any] = {"color": color, "marker": marker}
        label = name.replace("$", r"\$")
        axes.plot(
            list(losses), list(losses.values()), dashes, markersize=3, linewidth=1.3, label=label, zorder=2, **look
        )
        for epoch in best_epochs(losses):
            axes.plot(epoch, losses[epoch], markersize=8, zorder=3, **look)
            place: dict[str, Any] = {"xytext": (0, -14), "textcoords": "offset points", "ha": "center", "color": color}
            axes.annotate(str(epoch), (epoch, losses[epoch]), **place)
        axes.plot(best_in_training, losses[best_in_training], color=color, **star)
    axes.plot([], [], color="gray", label="best epoch in training (classes weighted equally)", **star)
    axes.set(xlabel="epoch", ylabel=f"validation loss, ({fake_weight:g} * fake_loss + real_loss) / 2")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    cli.main(main, get_args_parser())
