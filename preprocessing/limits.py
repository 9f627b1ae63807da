"""What decoding a video may take. Loads no library, so that command lines can show the defaults at once."""

from __future__ import annotations

from typing import NamedTuple

from common.watchdog import CLIP_TIMEOUT, TIMEOUT

# Default limit of a frame's size, in pixels: 8192 x 4320 (8K) is within it.
MAX_PIXELS = 36_000_000
# Default limit of the memory of a process that decodes, in MiB. H.264, HEVC, VP9 or AV1 in 8K takes 330 to 580.
MAX_MEMORY = 768


class Limits(NamedTuple):
    """What decoding a video may take.

    Attributes:
        pixels: largest frame, width * height.
        memory: memory of a process that decodes, in MiB.
        timeout: seconds without progress after which a video is given up.
        clip_timeout: seconds of decoding after which a video is given up.
    """

    pixels: int = MAX_PIXELS
    memory: int = MAX_MEMORY
    timeout: float = TIMEOUT
    clip_timeout: float = CLIP_TIMEOUT
