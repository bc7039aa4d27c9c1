"""A person's way through the dashboard: a real JupyterLab, a real browser.

Screenshots go to the folder that REPLAYLAB_SCREENSHOTS names, or to the test's temporary folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replaylab.lab import Lab
from replaylab.replay import read_status
from tests.browser.driving import (
    BROWSERS,
    browser_page,
    button,
    command,
    field,
    find_browser,
    jupyterlab,
    open_dashboard,
    tab,
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    opened = Lab.sample()
    yield opened
    shutil.rmtree(opened.root.path.parent)


@pytest.fixture(scope="module")
def jupyter(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with jupyterlab(lab.root.path, tmp_path_factory.mktemp("jupyter")) as address:
        yield address


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    executable = find_browser()
    if executable is None:
        pytest.skip(
            f"NOT TESTED IN A BROWSER: none of {', '.join(BROWSERS)} is installed (tools/install-chromium)"
        )
    pytest.importorskip("playwright.sync_api", reason="NOT TESTED IN A BROWSER: playwright is missing")
    with browser_page(executable, tmp_path / "profile") as opened:
        yield opened


@pytest.fixture
def shoot(page: Any, tmp_path: Path) -> Any:
    folder = Path(os.environ.get("REPLAYLAB_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: page.screenshot(path=folder / f"{name}.png")


def test_make_run_follow_stop(jupyter: str, page: Any, shoot: Any, lab: Lab) -> None:
    """R9 in a browser: a session is made with the form, played at 20×, seen to move, and stopped."""
    open_dashboard(page, jupyter)

    tab(page, "Logs & Events").click()
    field(page, "session id").fill("made-in-the-browser")
    field(page, "session id").press("Tab")
    shoot("1-sessions")
    button(page, "Create session").click()
    page.wait_for_selector(".rl-panel .rl-line.rl-chosen:has-text('made-in-the-browser')")
    assert lab.sessions.get_session("made-in-the-browser") is not None

    handle = page.locator(".rl-panel .widget-hslider:not(.rl-timeline) .noUi-handle[role='slider']").first
    for _ in range(4):
        handle.press("ArrowRight")
    page.wait_for_selector(".rl-panel .widget-readout:has-text('20×')")
    page.get_by_text("Parameters of the run: recorded, unchanged").click()
    field(page, "sl_pct").fill("0.2")
    field(page, "sl_pct").press("Tab")
    page.get_by_text("Parameters of the run: recorded, 1 changed").wait_for()
    shoot("2-made")
    page.get_by_text("Parameters of the run: recorded, 1 changed").click()
    button(page, "Run").click()
    badge = page.locator(".rl-badge.replay")
    badge.wait_for()
    assert "REPLAY MODE" in badge.inner_text()
    assert "made-in-the-browser" in badge.inner_text()
    assert "20×" in badge.inner_text()
    colours = badge.evaluate("e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).borderTopColor]")
    assert colours == ["rgb(0, 0, 0)", "rgb(138, 43, 226)"], "black and purple"

    hotlist = page.locator(".rl-panel .rl-table").first
    page.wait_for_selector(".rl-panel .rl-table .rl-meter")
    before = hotlist.inner_text()
    page.wait_for_function(
        "before => document.querySelector('.rl-panel .rl-table').innerText !== before", arg=before
    )
    page.wait_for_selector(".rl-panel img[src^='blob:']")
    page.wait_for_timeout(6_000)
    shoot("3-playing")
    command(page, "'apputils:change-theme', {theme: 'JupyterLab Dark'}")
    page.wait_for_selector("body[data-jp-theme-light='false']", state="attached")
    page.wait_for_timeout(1_500)
    shoot("4-playing-dark")

    button(page, "Stop").click()
    page.wait_for_selector(".rl-badge.calm")
    assert read_status(lab.root).running is False
    after = hotlist.inner_text()
    page.wait_for_timeout(1_000)
    assert hotlist.inner_text() == after, "nothing moves any more"
    page.get_by_text("parameters: recorded, changed: sl_pct 0.15 → 0.2").scroll_into_view_if_needed()
    shoot("5-stopped-dark")

    command(page, "'apputils:change-theme', {theme: 'JupyterLab Light'}")
    page.wait_for_selector("body[data-jp-theme-light='true']", state="attached")
    tab(page, "Logs & Events").click()
    button(page, "Load into detail").click()
    page.wait_for_selector(".rl-panel :text('Longest gaps')")
    page.wait_for_timeout(1_000)
    shoot("6-detail")
