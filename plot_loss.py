"""Draw the validation losses of training runs, to choose checkpoints by.

    python plot_loss.py --log-file logs/RUN.jsonl [logs/OTHER.jsonl ...] [--fake-weight 1.4] [--output loss.png]

The curve is (fake_weight * fake_loss + real_loss) / 2 per epoch. The five best epochs of each run are marked and
numbered; the first 16 epochs are passed over, if there are more.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import matplotlib as mpl

from common import cli
from common.errors import UserError
from common.files import atomic_file, make_folder
from training.tools.log import read_log

# The winning solution's weight of the fakes' loss, and what it took checkpoints from.
FAKE_WEIGHT = 1.4
FIRST = 16
BEST = 5

log = logging.getLogger(__name__)


class PlotError(UserError):
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
    stems = [path.stem for path in args.log_file]
    names = stems if len(set(stems)) == len(stems) else list(map(str, args.log_file))
    runs = {name: losses(path, args.fake_weight) for name, path in zip(names, args.log_file, strict=True)}
    if args.output:
        mpl.use("Agg")
    from matplotlib import pyplot

    # matplotlib chooses this one by itself where there is no screen
    output = args.output or (Path("loss.png") if mpl.get_backend().lower() == "agg" else None)
    figure = draw(runs, args.fake_weight)
    for name, run in runs.items():
        print(f"{name}: best epochs {', '.join(f'{epoch} ({run[epoch]:.4f})' for epoch in best_epochs(run))}")
    if output is None:
        pyplot.show()
        return 0
    make_folder(output.parent)
    with atomic_file(output) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    print(output)
    return 0


def losses(path: Path, fake_weight: float) -> dict[int, float]:
    """The weighted loss of each epoch that was validated; of a single class, its loss. Raises LogError, PlotError."""
    lines = [line for line in read_log(path) if line.get("fake_loss") is not None or line.get("real_loss") is not None]
    if not lines:
        raise PlotError(f"{path}: no epoch has a fake_loss or a real_loss")
    for missing, present in (("fake_loss", "real_loss"), ("real_loss", "fake_loss")):
        if any(line.get(missing) is None for line in lines):
            log.warning("%s: validated on one class in places, where the curve is its %s alone", path, present)
    return {line["epoch"]: _weighted(line.get("fake_loss"), line.get("real_loss"), fake_weight) for line in lines}


def _weighted(fake: float | None, real: float | None, fake_weight: float) -> float:
    if fake is None or real is None:
        return real if fake is None else fake
    return (fake_weight * fake + real) / 2


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
    cli.main(main, get_args_parser())
