"""Run a script that sends a signal to itself, when it imports a module or when it has recorded a number of clips.

python tests/support/interrupted.py SIGINT torch SCRIPT [arguments of the script]
python tests/support/interrupted.py SIGKILL 3 SCRIPT [arguments of the script]
"""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])


def main(name: str, moment: str, script: str, *arguments: str) -> None:
    number = signal.Signals[name]
    if moment.isdigit():
        signal_after_records(number, int(moment))
    else:
        sys.addaudithook(lambda event, args: event == "import" and args[0] == moment and os.kill(os.getpid(), number))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def signal_after_records(number: signal.Signals, count: int) -> None:
    from common.journal import Journal

    add, records = Journal.add, itertools.count(1)

    def add_and_signal(*args: Any) -> None:
        add(*args)
        if next(records) == count:
            os.kill(os.getpid(), number)

    Journal.add = add_and_signal


if __name__ == "__main__":
    main(*sys.argv[1:])
