"""From videos and checkpoints to the probability that each video is fake.

from inference import predict, write_report

results = predict("VIDEOS")                # a folder or a video; the embedded model
write_report("report.html", *results)
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `predict` and `write_report` when they are used, because their libraries take seconds to load."""
    if name == "predict":
        from inference.results import predict

        return predict
    if name == "write_report":
        from inference.report import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
