"""The scale of the face detector's input. The released checkpoints were trained and run with a fixed scale of 0.5."""

from __future__ import annotations

import argparse

# Scale by the longer side of the frame in pixels: the last row whose limit it exceeds applies.
SCALES = ((0, 2.0), (299, 1.0), (1000, 0.5), (1900, 0.33))


def scale_for(width: int, height: int) -> float:
    """Return the scale for a frame of this size in pixels."""
    return [scale for limit, scale in SCALES if max(width, height) > limit][-1]


def parse_scale(text: str) -> float | str:
    """Argument type: `auto` (by frame size) or a number greater than 0 and at most 4."""
    if text == "auto":
        return text
    if not 0 < float(text) <= 4:
        raise argparse.ArgumentTypeError(f"{text} is neither auto nor a number greater than 0 and at most 4")
    return float(text)
