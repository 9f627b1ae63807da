"""A real browser for tests and pictures of the report: the system's Chromium, driven by Playwright.

python -m tests.support.browser REPORT.html OUTPUT.png [--dark] [--width 1280] [--height 900]
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common import cli

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """The path of a Chromium of the system; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def launch() -> Iterator[Browser]:
    """Start the browser. Its sandbox does not work for the superuser."""
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def get_args_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("page", type=Path, help="HTML file")
    parser.add_argument("output", type=Path, help="picture to write (PNG, or PDF as it is printed)")
    parser.add_argument("--dark", action="store_true", help="use the dark color scheme")
    parser.add_argument("--width", type=cli.positive, default=1280, help="width of the window in pixels")
    parser.add_argument("--height", type=cli.positive, help="height of the picture in pixels (default: the whole page)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Write a picture of a page. Return the exit status."""
    size = {"width": args.width, "height": args.height or 900}
    with launch() as browser:
        page = browser.new_page(viewport=size, color_scheme="dark" if args.dark else "light")
        page.goto(args.page.resolve().as_uri())
        if args.output.suffix == ".pdf":
            page.pdf(path=args.output, format="A4", margin=dict.fromkeys(("top", "bottom", "left", "right"), "15mm"))
        else:
            if not args.height:  # sections outside of the window are not drawn
                for _ in range(4):  # the first times, their heights are estimates
                    size["height"] = page.evaluate("document.documentElement.scrollHeight")
                    page.set_viewport_size(size)
            page.screenshot(path=args.output)
    return cli.OK


if __name__ == "__main__":
    cli.main(main, get_args_parser())
