"""Average the weights of checkpoints of the same network.

    python -m training.pipelines.average_weights --checkpoints FIRST.pt LAST.pt --output average.pt

A network and the same network after fine-tuning are often worse than the average of their weights, which costs nothing
in inference (Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, CVPR 2022). The checkpoints must come from one
another or from a common one: the average of networks that were trained independently is useless. The result has the
recipe of the last checkpoint, without verdict bands, because these belong to other scores: calibrate it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common import cli
from common.errors import UserError


def get_args_parser() -> argparse.ArgumentParser:
    """Build the command-line parser."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("--checkpoints", type=Path, nargs="+", required=True, metavar="FILE", help="checkpoints to average")
    add("--output", type=Path, required=True, metavar="FILE", help="checkpoint to write")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write the average. Return the exit status."""
    import torch  # takes seconds

    from training.pipelines.calibration import training_of
    from training.tools.checkpoint import load_network, save_checkpoint

    networks, recipes = zip(*(load_network(path) for path in args.checkpoints), strict=True)
    for path, recipe in zip(args.checkpoints, recipes, strict=True):
        if (recipe.network, recipe.encoder) != (recipes[-1].network, recipes[-1].encoder):
            expected = f"{recipes[-1].network} with {recipes[-1].encoder}"
            raise UserError(f"{path}: has another network than {args.checkpoints[-1]}, {expected}. Leave it out")
    states = [network.state_dict() for network in networks]
    average = {
        key: torch.stack([state[key] for state in states]).mean(dim=0) if value.is_floating_point() else value
        for key, value in states[-1].items()
    }
    trained = {**training_of(args.checkpoints[-1]), "averaged": len(states)}
    save_checkpoint(args.output, average, replace(recipes[-1], bands=None), trained=trained)
    print(f"{args.output}: average of {len(states)} checkpoints")
    return cli.OK


if __name__ == "__main__":
    cli.main(main, get_args_parser())
