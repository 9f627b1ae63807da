"""Versions of the software that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "facenet-pytorch",
    "av",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "scipy",
    "pandas",
    "apex",
)


def package_versions(*optional: str) -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results depend on.

    Args:
        optional: names of further packages that a result depends on.
    """
    versions = {"python": platform.python_version()}
    for package in (*PACKAGES, *optional):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
