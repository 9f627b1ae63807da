"""The color of a score, in annotated videos and in the report."""

from __future__ import annotations

import numpy as np

# Red, green and blue from 0 to 255 at the scores 0, 0.5 and 1. Blue and vermillion are from the palette of Okabe and
# Ito, which is safe for color-blind people; https://jfly.uni-koeln.de/color/
REAL, UNDECIDED, FAKE = (0, 114, 178), (221, 221, 221), (213, 94, 0)


def score_color(score: float) -> tuple[int, int, int]:
    """Return the color of a score as (red, green, blue), 0 to 255: blue (0) to light gray (0.5) to vermillion (1)."""
    channels = zip(REAL, UNDECIDED, FAKE, strict=True)
    red, green, blue = (round(float(np.interp(score, (0, 0.5, 1), channel))) for channel in channels)
    return red, green, blue
