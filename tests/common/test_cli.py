"""Command lines: help, argument types and exit statuses."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common import __version__, cli
from common.errors import UserError
from tests.support import programs


def run_main(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, program: Callable = lambda _: cli.OK, resumable: bool = False
) -> int:
    """Return the exit status of a command line with one option."""
    parser = cli.make_parser("Do something.\n\n    python something.py\n")
    parser.add_argument("--number", type=cli.positive, default=1, help="number of things")
    monkeypatch.setattr(sys, "argv", ["something.py", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main(program, parser, resumable)
    assert isinstance(end.value.code, int)
    return end.value.code


def test_help_shows_each_default_once():
    parser = cli.make_parser("Do something.\n\n    python something.py --workers 4\n")
    parser.add_argument("--root", required=True, help="folder")
    parser.add_argument("--workers", default=4, help="number of workers")
    parser.add_argument("--seed", default=0, help="random seed")
    parser.add_argument("--out", help="file to write")
    parser.add_argument("--amp", help="precision (default: by device)")
    parser.add_argument("--models", nargs="*", default=[], help="checkpoints")
    parser.add_argument("--flag", action="store_true", help="a flag")
    text = parser.format_help()
    lines = {words[0]: line for line in text.splitlines() if (words := line.split())}
    assert lines["--workers"].endswith("number of workers (default: 4)")
    assert lines["--seed"].endswith("random seed (default: 0)")
    assert lines["--amp"].count("default") == 1
    for option in ("--root", "--out", "--models", "--flag"):
        assert "default" not in lines[option]
    assert "\n    python something.py --workers 4" in text  # examples keep their line breaks


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("12", 12), ("0", None), ("-1", None), ("1.5", None)])
def test_positive(text: str, value: int | None):
    if value is None:
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            cli.positive(text)
    else:
        assert cli.positive(text) == value


def test_not_negative():
    assert cli.not_negative("0") == 0
    with pytest.raises(argparse.ArgumentTypeError):
        cli.not_negative("-1")


def test_version_and_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert run_main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == __version__
    assert run_main(monkeypatch, "--help") == 0
    for wrong in (["--nonsense"], ["--number"], ["--number", "0"], ["--number", "many"]):
        assert run_main(monkeypatch, *wrong) == 2
        assert "usage: " in capsys.readouterr().err


@pytest.mark.parametrize("status", [cli.OK, cli.CLIPS_FAILED])
def test_exits_with_the_programs_status(monkeypatch: pytest.MonkeyPatch, status: int):
    assert run_main(monkeypatch, program=lambda _: status) == status


@pytest.mark.parametrize("error", [UserError("some.file: is damaged"), OSError(28, "No space left", "some.file")])
def test_expected_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
):
    def fail(_: argparse.Namespace) -> int:
        raise error

    assert run_main(monkeypatch, program=fail) == cli.CANNOT_CONTINUE == 2
    [message] = caplog.messages
    assert message.startswith("error: ")
    assert "some.file" in message
    assert caplog.records[0].exc_info is None


def test_os_errors_start_with_the_path(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def fail(_: argparse.Namespace) -> int:
        raise OSError(18, "Invalid cross-device link", "some.file", None, "other.file")

    assert run_main(monkeypatch, program=fail) == 2
    assert caplog.messages == ["error: some.file -> other.file: Invalid cross-device link"]


@pytest.mark.parametrize("options", [(), ("workers",), ("workers", "batch_size")])
def test_lack_of_memory_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, options: tuple[str, ...]
):
    def fail(args: argparse.Namespace) -> int:
        vars(args).update(dict.fromkeys(options, 1))
        raise MemoryError

    assert run_main(monkeypatch, program=fail) == 2
    [message] = caplog.messages
    assert message.startswith("error: out of memory. Use ")
    assert ("--workers" in message, "--batch-size" in message) == ("workers" in options, "batch_size" in options)


PROGRAM = r"""
import logging
from common import cli
from common.errors import UserError

def program(args):
    print("output")
    logging.getLogger().info("%s: skipped", args.name)
    try:
        raise ValueError(args.name)
    except ValueError:
        logging.getLogger().exception("unexpected")
    raise UserError(f"{args.name}: is damaged") if args.fail else SystemExit(0) if args.leave else None

parser = cli.make_parser("Do something.")
parser.add_argument("--name", default="")
parser.add_argument("--number", type=cli.finite)
parser.add_argument("--fail", action="store_true")
parser.add_argument("--leave", action="store_true")
cli.main(program, parser)
"""
NAME = "\x1b[2J\u202e\rname.mp4"


def run_program(*arguments: str, **options) -> subprocess.CompletedProcess[bytes]:
    """Run PROGRAM in a process of its own, because pytest handles log records itself."""
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=root, timeout=programs.LIMIT, **options)


@pytest.mark.parametrize("arguments", [("--fail",), ("--leave",), ("--number", NAME), ("--nonsense",)])
def test_names_cannot_control_the_terminal(arguments: tuple[str, ...]):
    errors = run_program("--name", NAME, *arguments, NAME, capture_output=True).stderr.decode()
    errors += run_program("--name", NAME, *arguments, capture_output=True).stderr.decode()
    assert r"\x1b[2J\u202e\rname.mp4" in errors
    assert not set("\x1b\u202e\r") & set(errors)


def test_error_is_one_line_whatever_the_name():
    done = run_program("--name", "a\nb", "--fail", capture_output=True)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1] == r"error: a\nb: is damaged"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_an_error(unbuffered: str):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("wb") as full:
        done = run_program("--fail", stdout=full, stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 2
    *_, last = done.stderr.decode().splitlines()
    assert last.startswith("error: standard output")


def test_finite():
    assert cli.finite("1.5") == 1.5
    for text in ("nan", "-inf", "1e999"):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            cli.finite(text)


def test_unexpected_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def fail(_: argparse.Namespace) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(sys, "argv", ["something.py"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(fail, cli.make_parser("Do something."))


@pytest.mark.parametrize("resumable", [True, False])
def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, resumable: bool):
    def interrupt(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    assert run_main(monkeypatch, program=interrupt, resumable=resumable) == cli.INTERRUPTED == 130
    [message] = caplog.messages
    assert ("resume" in message) == resumable
