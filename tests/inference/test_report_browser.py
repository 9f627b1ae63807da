"""The report in a real browser. Skipped where Playwright or a Chromium is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

pytest.importorskip("playwright", reason="needs Playwright: pip install playwright")

from inference.report import write_report
from tests.support import browser, reports

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(browser.find_chromium() is None, reason="needs a Chromium of the system")
# Where content-visibility skips a section, it is not rendered, but it is as soon as it is scrolled to.
VISIBLE = "items => items.filter(item => item.checkVisibility({visibilityProperty: true})).length"


class Opened(NamedTuple):
    """A page in the browser, and what it did that it must not do: messages of the console, dialogs, requests."""

    page: Page
    events: list[str]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.launch() as started:
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "page.html"
    write_report(path, *reports.run(reports.BANDS))
    return path


@pytest.fixture
def opened(chromium: Browser, file: Path) -> Iterator[Opened]:
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    events: list[str] = []
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("dialog", lambda dialog: (events.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: events.append(request.url) if request.url != file.as_uri() else None)
    page.goto(file.as_uri())
    yield Opened(page, events)
    page.close()


def names(page: Page) -> list[str]:
    return [name for row in page.locator("#table tbody tr:visible th").all() if (name := row.inner_text())]


def test_loads_and_runs_no_names(opened: Opened) -> None:
    page, events = opened
    for details in page.locator("details.video").all():
        details.locator("summary").click()
    page.mouse.move(200, 400)
    assert not events
    assert page.evaluate("typeof window.pwned") == "undefined"
    assert reports.SCRIPT in names(page)
    assert "{{ 7 * 191 }}{% raw %}.mp4" in names(page)
    assert page.locator("h1").count() == 1
    assert page.locator("img").count() == 0


def test_sorts(opened: Opened) -> None:
    page, _ = opened
    button, header = page.locator("#table thead button").nth(1), page.locator("#table thead th").nth(1)
    assert header.get_attribute("aria-sort") == "none"
    button.click()
    assert header.get_attribute("aria-sort") == "descending"
    assert "line\\nbreak" in names(page)[0]
    button.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert "line\\nbreak" in names(page)[-1]


def test_filters(opened: Opened) -> None:
    page, _ = opened
    shown = page.locator("#shown")
    page.fill("#filter-name", "ALERT(1)")
    assert names(page) == [reports.SCRIPT]
    assert shown.inner_text() == "1 of 12 videos"
    assert page.locator("details.video:visible").count() == 1
    page.fill("#filter-name", "")
    page.select_option("#filter-result", "too large")
    assert names(page) == ["huge.mp4"]
    page.select_option("#filter-result", "")
    page.check("#filter-low")
    assert names(page) == [reports.HOSTILE[2]]
    page.uncheck("#filter-low")
    assert shown.inner_text() == "12 videos"
    assert len(names(page)) == 12


def test_expands(opened: Opened) -> None:
    page, _ = opened
    section = page.locator("details.video").nth(2)
    assert not section.evaluate("item => item.open")
    page.locator("#table tbody a").nth(2).click()
    assert section.evaluate("item => item.open")
    assert section.locator(".plot > svg").is_visible()
    page.keyboard.press("Escape")
    section.locator("summary").press("Enter")
    assert not section.evaluate("item => item.open")


def test_fits_a_phone(opened: Opened) -> None:
    page, _ = opened
    page.set_viewport_size({"width": 390, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    page.evaluate("document.querySelectorAll('.video').forEach(item => item.style.contentVisibility = 'visible')")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_dark_scheme(opened: Opened) -> None:
    page, _ = opened
    colors = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        style = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
        colors.append([sum(map(int, color[4:-1].split(","))) for color in style])
    (light, light_text), (dark, dark_text) = colors
    assert light > 700 > 150 > light_text
    assert dark < 150 < 600 < dark_text


def test_prints_all_details(opened: Opened) -> None:
    page, _ = opened
    plots = page.locator(".plot > svg")
    assert plots.evaluate_all(VISIBLE) == 0
    page.emulate_media(media="print")
    assert plots.evaluate_all(VISIBLE) == plots.count() == 9
    assert not page.locator("#filter-name").is_visible()
