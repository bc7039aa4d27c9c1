"""A person's way through the page of `replaylab serve`, in a real browser, on a data root with hostile strings.

Screenshots go to the folder that REPLAYLAB_SCREENSHOTS names, or to the test's temporary folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from replaylab.replay import read_status
from tests.browser.driving import BROWSERS, browser_page, find_browser
from tests.roots import END, START
from tests.server.conftest import SESSION, TOKEN, serving, session_root

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def test_build_run_follow_stop(tmp_path: Path) -> None:
    """R9 without Jupyter: a session is built, played and stopped; strings of the data are shown and not interpreted."""
    executable = find_browser()
    if executable is None:
        pytest.skip(
            f"NOT TESTED IN A BROWSER: none of {', '.join(BROWSERS)} is installed (tools/install-chromium)"
        )
    pytest.importorskip("playwright.sync_api", reason="NOT TESTED IN A BROWSER: playwright is missing")
    root = session_root(tmp_path / "data")
    manifest = json.loads(root.manifest(SESSION).read_text())
    root.manifest(SESSION).write_text(json.dumps({**manifest, "notes": HOSTILE}))
    shots = Path(os.environ.get("REPLAYLAB_SCREENSHOTS") or tmp_path)
    shots.mkdir(parents=True, exist_ok=True)
    with serving(root, tmp_path / "log") as client, browser_page(executable, tmp_path / "profile") as page:
        failures: list[str] = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(f"{str(client.base_url).removesuffix('/api/replay/')}/?token={TOKEN}")
        sessions = page.locator("#sessions tbody tr")
        sessions.filter(has_text=SESSION).wait_for()
        page.locator("#badge", has_text="no logs yet · no replay runs").wait_for()
        assert TOKEN not in page.url

        _build(
            page, symbols="BTCUSDT", start="2025-11-18T11:00:00Z", end="2025-11-18T12:00:00Z", session="empty"
        )
        page.get_by_text("no session was built").wait_for()
        assert not root.manifest("empty").exists()
        _build(page, symbols="BTCUSDT, ETHUSDT", start=START, end=END, session="made-in-the-browser")
        made = sessions.filter(has_text="made-in-the-browser")
        made.wait_for()

        page.locator("#speed").fill("10")
        page.locator("#params").fill("slPct=0.2")
        made.get_by_role("button", name="Run").click()
        badge = page.locator("#badge.replay")
        badge.wait_for()
        assert badge.inner_text() == "REPLAY MODE · made-in-the-browser · 10×"
        assert (
            page.evaluate("() => call('GET', 'status').then(one => Object.values(one.changes)[0][1])") == 0.2
        )
        colours = badge.evaluate(
            "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).borderTopColor]"
        )
        assert colours == ["rgb(0, 0, 0)", "rgb(138, 43, 226)"], "black and purple"
        hotlist = page.locator("#hotlist tbody tr")
        hotlist.filter(has_text="ETHUSDT").wait_for()
        before = page.locator("#hotlist").inner_text()
        page.wait_for_timeout(1_500)
        assert page.locator("#hotlist").inner_text() != before, "the hotlist moves"
        page.screenshot(path=shots / "served-1-playing.png", full_page=True)
        page.locator("#pause").click()
        page.get_by_text("10× · paused").wait_for()
        page.locator("#logs").get_by_text("State changes").wait_for()
        line = page.locator("#timeline").bounding_box()
        page.mouse.click(line["x"] + 0.5 * line["width"], line["y"] + line["height"] / 2)
        page.wait_for_function("() => Math.abs(status.currentEventIndex / status.totalEvents - 0.5) < 0.03")
        page.locator("#bookmark").fill(HOSTILE)
        page.locator("#keep").click()
        page.locator("#bookmarks option", has_text="onerror").wait_for(state="attached")
        place = page.evaluate("() => Object.values(status.bookmarks)[0]")
        page.locator("#timeline").fill("200")
        page.wait_for_function("() => status.currentEventIndex === 200")
        page.locator("#bookmarks").select_option(index=1)
        page.wait_for_function("place => status.currentEventIndex === place", arg=place)
        page.locator("#forget").click()
        page.locator("#bookmarks", has_text="bookmarks: none").wait_for()
        sessions.filter(has_text="made-in-the-browser").get_by_role("button", name="Chart").click()
        frame = page.frame_locator("#frame")
        frame.locator(".bk-Figure").first.wait_for(timeout=60_000)
        page.locator("#timeline").fill("300")
        page.wait_for_function("() => status.currentEventIndex >= 300 && status.currentEventIndex < 700")
        inside = next(one for one in page.frames if "/chart/" in one.url)
        inside.wait_for_function("() => Bokeh.documents[0].get_model_by_name('cursor').location > 1.7e12")
        page.locator("#frame").scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        box = frame.locator(".bk-Figure").first.bounding_box()
        page.mouse.dblclick(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
        page.wait_for_function("() => status.currentEventIndex > 800")
        for width in (600, 960, 1440):
            page.set_viewport_size({"width": width, "height": 1250})
            page.screenshot(path=shots / f"served-chart-{width}.png", full_page=True)
            wide = page.evaluate(
                "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wide <= 0, f"the page scrolls sideways at {width}"
        # Slow enough that the rest of the minute lasts until the click on Stop.
        page.locator("#speed").fill("1")
        page.locator("#set-speed").click()
        page.wait_for_function("() => status.speedFactor === 1")
        page.locator("#resume").click()
        page.locator("#badge", has_not_text="paused").wait_for()
        page.locator("#stop").click()
        page.locator("#badge", has_text="no replay runs").wait_for()
        assert read_status(root).running is False

        page.locator("#speed").fill("inf")
        sessions.filter(has_text=SESSION).get_by_role("button", name="Run").click()
        for _ in range(20):
            for one in page.locator("#logs table").all():
                times = [text.strip() for text in one.locator("tbody td:first-child").all_inner_texts()]
                shown = [text for text in times if text]
                assert shown == sorted(shown, reverse=True), "the newest is first, also at full speed"
        page.locator("#position").get_by_text("1,202 of 1,202").wait_for()
        page.locator("#badge", has_text="no replay runs").wait_for()
        sessions.filter(has_text=SESSION).get_by_role("button", name="Load into detail").click()
        detail = page.locator("#detail-body")
        detail.get_by_text("finished").wait_for()
        assert "<img src=x onerror=" in detail.inner_text()
        assert page.locator("img").count() == 0
        assert page.title() == "replaylab"
        detail.get_by_role("button", name="Parameters").click()
        detail.get_by_text('"entryThreshold"').wait_for()
        page.screenshot(path=shots / "served-2-detail.png", full_page=True)
        page.evaluate(
            "text => { const run = {sessionId: text, running: true, speedFactor: null, runId: text,"
            " currentEventIndex: 0, totalEvents: 9, lastEventTimestamp: text}; showStatus(run);"
            " apply({kind: 'state', record: {symbol: text, toState: text, eventType: 'REGIME_UPDATE',"
            " extra: {regime: text}}}); }",
            HOSTILE,
        )
        assert badge.inner_text() == f"REPLAY MODE · {HOSTILE} · ∞×"
        hotlist.filter(has_text="onerror").wait_for()
        assert page.locator("img").count() == 0
        page.evaluate("() => showStatus({...status, running: false, runMode: 'REPLAY'})")
        assert badge.inner_text() == "REPLAY MODE · no replay runs"
        assert page.title() == "replaylab"
        assert failures == []


def _build(page: Any, *, symbols: str, start: str, end: str, session: str) -> None:
    values = {"from": start, "to": end, "symbols": symbols, "sessionId": session}
    for name, value in values.items():
        page.locator(f"#build [name={name}]").fill(value)
    page.get_by_role("button", name="Create session").click()
