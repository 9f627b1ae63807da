"""Command lines: help, argument types and exit statuses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import pytest

from common import __version__, cli
from common.errors import UserError


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
