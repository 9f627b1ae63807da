"""Shared parts of the command lines: parsers, argument types, exit statuses."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable

from common import __version__
from common.errors import UserError

# Exit statuses: success; some clips failed; invalid usage, or the run cannot continue; Ctrl-C.
OK, CLIPS_FAILED, CANNOT_CONTINUE, INTERRUPTED = 0, 3, 2, 130

log = logging.getLogger(__name__)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep line breaks, and append the default to the help of each option that has one, except flags."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        no_default = action.required or action.nargs == 0 or action.default in (None, argparse.SUPPRESS, "", [])
        if not action.help or no_default or "(default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


def make_parser(docstring: str) -> argparse.ArgumentParser:
    """Make a parser with --version from a script's docstring.

    The first paragraph becomes the description, the rest the epilog.
    """
    description, _, epilog = docstring.partition("\n\n")
    parser = argparse.ArgumentParser(description=description, epilog=epilog.rstrip(), formatter_class=HelpFormatter)
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def positive(text: str) -> int:
    """Argument type: a positive integer."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)


def not_negative(text: str) -> int:
    """Argument type: a non-negative integer."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return int(text)


def main(
    program: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser, resumable: bool = False
) -> None:
    """Parse the command line, run the program and exit with its status.

    Args:
        program: takes the parsed arguments and returns the exit status.
        parser: the parser of the command line.
        resumable: whether the same command resumes an interrupted run.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names may not be valid UTF-8
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parser.parse_args()
    from tqdm.contrib.logging import logging_redirect_tqdm

    try:
        with logging_redirect_tqdm():
            status = program(args)
    except (UserError, OSError) as error:
        log.error("error: %s", error)
        status = CANNOT_CONTINUE
    except KeyboardInterrupt:
        log.error("stopped; run the same command again to resume" if resumable else "stopped")
        status = INTERRUPTED
    sys.exit(status)
