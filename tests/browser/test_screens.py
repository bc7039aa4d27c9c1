"""The panel at three widths, light and dark, with its chart and timeline; and after its kernel was restarted.

Screenshots go to the folder that REPLAYLAB_SCREENSHOTS names, or to the test's temporary folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replaylab.lab import Lab
from replaylab.replay import read_status
from tests.browser.driving import browser_page, button, command, find_browser, jupyterlab, open_dashboard, tab

WIDTHS = (600, 960, 1440)
# What is wider than its place and can be scrolled sideways by itself.
SCROLLED = """() => [...document.querySelectorAll('.rl-panel, .rl-panel *')].filter(e => e.clientWidth > 0 &&
  e.scrollWidth > e.clientWidth + 1 && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX))
  .map(e => `${e.className} ${e.scrollWidth} > ${e.clientWidth}`)"""
# The places of everything that is a heading, rounded.
HEADINGS = """() => [...document.querySelectorAll('.rl-panel .rl-heading')].filter(e => e.offsetParent)
  .map(e => [e.innerText, Math.round(e.getBoundingClientRect().left), Math.round(e.getBoundingClientRect().top)])"""


@pytest.fixture(scope="module")
def lab() -> Lab:
    opened = Lab.sample()
    span = ("2025-11-18T10:00", "2025-11-18T11:00")
    opened.build_replay_session(
        *span, ["BTCUSDT", "AIUSDT"], session_id="an-hour", notes="of the screens' test"
    )
    opened.session("an-hour").set_bookmark("the middle", 9_000)
    return opened


@pytest.fixture(scope="module")
def page(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    executable = find_browser()
    if executable is None:
        pytest.skip("NOT TESTED IN A BROWSER: no Chromium is installed (tools/install-chromium)")
    home = tmp_path_factory.mktemp("jupyter")
    with jupyterlab(lab.root.path, home) as address, browser_page(executable, home / "profile") as opened:
        opened.wrong = []
        opened.on("pageerror", lambda problem: opened.wrong.append(str(problem)))
        opened.set_viewport_size({"width": 1440, "height": 1250})
        open_dashboard(opened, address)
        yield opened


@pytest.fixture(scope="module")
def shoot(page: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = Path(os.environ.get("REPLAYLAB_SCREENSHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: page.screenshot(path=folder / f"{name}.png")


def theme(page: Any, name: str) -> None:
    command(page, f"'apputils:change-theme', {{theme: 'JupyterLab {name}'}}")
    page.wait_for_selector(f"body[data-jp-theme-light='{str(name == 'Light').lower()}']", state="attached")


def test_first_sight(page: Any, shoot: Any) -> None:
    """Nothing was clicked: no question, nothing to run, the mode of the logs; nothing scrolls sideways by itself."""
    page.wait_for_selector(".rl-badge.calm:has-text('SIM · no replay runs')")
    assert page.get_by_text("Yes, delete").count() == 0 or not page.get_by_text("Yes, delete").is_visible()
    assert button(page, "Run").is_disabled()
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 1250})
        for name in ("Light", "Dark"):
            theme(page, name)
            page.wait_for_timeout(500)
            shoot(f"screens-first-{width}-{name.lower()}")
        heights = [row.bounding_box()["height"] for row in page.locator(".rl-panel .rl-line:visible").all()]
        assert max(heights) < 50, "notes are not broken after each letter"
        # In a narrow window the table of sessions scrolls, as one.
        scrolled = page.evaluate(SCROLLED)
        assert len(scrolled) <= (0 if width == 1440 else 1), scrolled
    theme(page, "Light")


def test_chart_timeline_and_end(page: Any, shoot: Any, lab: Lab) -> None:
    """The chart loads when first shown, its cursor follows, timeline and chart seek; at the end nothing jumps."""
    page.set_viewport_size({"width": 1440, "height": 1250})
    tab(page, "Logs & Events").click()
    page.locator(".rl-panel .rl-id").filter(has_text="an-hour").click()
    assert page.evaluate("() => window.Bokeh === undefined"), "BokehJS comes with the chart"
    button(page, "Run").click()
    page.locator(".rl-badge.replay").wait_for()
    tab(page, "Chart").click()
    page.locator(".rl-panel .bk-Figure").first.wait_for(timeout=90_000)
    page.wait_for_function("() => Bokeh.documents.length > 0")
    cursor = "() => Bokeh.documents.map(d => d.get_model_by_name('cursor')).filter(c => c).at(-1)?.location"
    page.wait_for_function(f"() => ({cursor})() > 0")
    page.locator(".rl-marks i[title^='the middle']").wait_for()
    line = page.locator(".rl-timeline .noUi-base").bounding_box()
    page.mouse.click(line["x"] + 0.6 * line["width"], line["y"] + line["height"] / 2)
    for _ in range(300):
        status = read_status(lab.root)
        if 0.55 < status.current_event_index / status.total_events < 0.7:
            break
        page.wait_for_timeout(100)
    assert 0.55 < status.current_event_index / status.total_events < 0.7
    page.wait_for_function(f"() => ({cursor})() > Date.UTC(2025, 10, 18, 10, 30)")
    shoot("screens-chart-light")
    figure = page.locator(".rl-panel .bk-Figure").first.bounding_box()
    page.mouse.dblclick(figure["x"] + 0.3 * figure["width"], figure["y"] + 0.5 * figure["height"])
    page.wait_for_function(f"() => ({cursor})() < Date.UTC(2025, 10, 18, 10, 25)")
    theme(page, "Dark")
    page.wait_for_timeout(500)
    shoot("screens-chart-dark")
    theme(page, "Light")
    tab(page, "Overview").click()
    page.wait_for_timeout(2_500)
    shoot("screens-playing")
    before = page.evaluate(HEADINGS)
    button(page, "Stop").click()
    page.wait_for_selector(".rl-badge.calm")
    page.get_by_text("Result of an-hour").wait_for()
    page.wait_for_timeout(1_000)
    after = page.evaluate(HEADINGS)
    listed = page.locator(".rl-panel .rl-table").nth(1).inner_text()
    assert "10:3" not in listed, "what happened after the time that was sought is gone"
    shoot("screens-ended")
    assert after[: len(before)] == before, "what was there stays where it was"
    assert page.wrong == []


def test_a_kernel_that_ended_is_marked(page: Any, shoot: Any) -> None:
    """A restart ends the replay: the old panel loses its purple and says why, the new one calls the run interrupted."""
    tab(page, "Logs & Events").click()
    if button(page, "Stop").is_enabled():
        button(page, "Stop").click()
        page.wait_for_selector(".rl-badge.calm")
    page.locator(".rl-panel .rl-id").filter(has_text="an-hour").first.click()
    button(page, "Run").click()
    page.locator(".rl-badge.replay").wait_for()
    page.set_viewport_size({"width": 960, "height": 1250})
    page.evaluate("() => { window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }")
    mark = "() => { const e = document.querySelector('.rl-beat'); return e && getComputedStyle(e, '::after').maxWidth }"
    page.wait_for_function(f"() => parseFloat(({mark})()) > 0", timeout=30_000)
    colour = page.locator(".rl-badge").first.evaluate("e => getComputedStyle(e).backgroundColor")
    assert colour == "rgba(0, 0, 0, 0)", "no purple badge without a process"
    shoot("screens-restarted")
    command(page, "'notebook:run-all-cells'")
    page.wait_for_selector(".rl-badge.calm")
    page.locator(".rl-panel").get_by_text("interrupted").first.wait_for()
    shoot("screens-again")
