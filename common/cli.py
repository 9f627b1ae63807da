"""Shared parts of the command lines: parsers, argument types, exit statuses."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from common import __version__
from common.collector import forget_garbage
from common.errors import UserError
from common.text import printable

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


class Parser(argparse.ArgumentParser):
    """A parser whose error messages are printable: arguments may be file names that a shell has expanded."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


class PrintableFormatter(logging.Formatter):
    """Format records for a terminal: file names cannot control it, and a message is one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


def make_parser(docstring: str) -> argparse.ArgumentParser:
    """Make a parser with --version from a script's docstring.

    The first paragraph becomes the description, the rest the epilog.
    """
    description, _, epilog = docstring.partition("\n\n")
    parser = Parser(description=description, epilog=epilog.rstrip(), formatter_class=HelpFormatter)
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def path_or_url(text: str) -> Path | str:
    """Argument type: a URL, which contains `://` and stays a string, or a path."""
    return text if "://" in text else Path(text)


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


def finite(text: str) -> float:
    """Argument type: a finite number."""
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return float(text)


def positive_number(text: str) -> float:
    """Argument type: a positive finite number."""
    if finite(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return float(text)


def not_negative_number(text: str) -> float:
    """Argument type: a non-negative finite number."""
    if finite(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return float(text)


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
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    args = parser.parse_args()
    from tqdm.contrib.logging import logging_redirect_tqdm

    try:
        with logging_redirect_tqdm():
            status = program(args)
    except UserError as error:
        for message in error.args:
            log.error("error: %s", message)
        status = CANNOT_CONTINUE
    except OSError as error:
        if error.filename is not None or _flush_output():
            log.error("error: %s", _describe(error))
        status = CANNOT_CONTINUE
    except MemoryError:
        log.error("error: out of memory. %s", _memory_remedy(args))
        status = CANNOT_CONTINUE
    except KeyboardInterrupt:
        log.error("stopped; run the same command again to resume" if resumable else "stopped")
        status = INTERRUPTED
    forget_garbage()
    sys.exit(status if _flush_output() else CANNOT_CONTINUE)


def _describe(error: OSError) -> str:
    """Return the message of an OSError, with the path of its file first. Writing to standard output has no path."""
    paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
    where = " -> ".join(paths) or "standard output or another stream"
    return f"{where}: {error.strerror or str(error) or type(error).__name__}"


def _memory_remedy(args: argparse.Namespace) -> str:
    """Return what to do about a lack of memory, with the options that the program has."""
    options = {"workers": "fewer --workers", "batch_size": "a smaller --batch-size"}
    remedies = [remedy for name, remedy in options.items() if hasattr(args, name)]
    return f"Use {' or '.join(remedies)}" if remedies else "Use a machine with more memory"


def _flush_output() -> bool:
    """Write what is left of standard output. Return False, after an error message, if it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        log.error("error: standard output: cannot be written (%s)", error.strerror)
        # The interpreter flushes again when it exits, which would fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
