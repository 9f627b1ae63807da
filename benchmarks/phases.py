"""Run predict_folder.py of a checkout and note when its phases end, for `benchmarks.startup`.

    python benchmarks/phases.py CHECKOUT ARGUMENTS...

The last line of standard error is a JSON object: the time at which each phase ended, in seconds since the epoch.
"""

import time

STARTED = time.time()

import json  # noqa: E402 after the interpreter's start has been noted
import runpy  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402


def noting(ends: dict[str, float], function: Callable, before: str, after: str) -> Callable:
    """Return a function that notes the end of one phase when it is called, and of another when it returns."""

    def noted(*args: Any, **options: Any) -> Any:
        ends[before] = time.time()
        result = function(*args, **options)
        ends[after] = time.time()
        return result

    return noted


def main(checkout: Path) -> None:
    """Run the program. Its arguments are in sys.argv."""
    ends = {"interpreter": STARTED}
    sys.path[0] = str(checkout)
    from inference import scorers, submission

    scorers.choose_scorer = noting(ends, scorers.choose_scorer, "arguments", "loading")
    submission.write_submission = noting(ends, submission.write_submission, "scoring", "writing")
    try:
        runpy.run_path(str(checkout / "predict_folder.py"), run_name="__main__")
    finally:
        print(json.dumps(ends), file=sys.stderr)


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    main(Path(sys.argv[0]))
