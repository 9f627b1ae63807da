"""Options with which libx264 encodes the same frames to the same bytes on every run."""

from __future__ import annotations

import cv2

# From cv::CpuFeatures, which OpenCV's Python module does not export.
CPU_AVX_512F = 13


def reproducible_options(crf: int) -> dict[str, str]:
    """Return the encoder's options for a constant rate factor."""
    options = {"crf": str(crf), "threads": "1"}  # the number of threads changes the bytes
    if cv2.checkHardwareSupport(CPU_AVX_512F):
        options["x264-params"] = "asm=avx2"  # x264's AVX-512 code is not deterministic
    return options
