"""The interactive chart and the report: what they show, that no extreme is lost, and that a browser opens them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import sync_playwright

from replaylab import Lab, ml
from replaylab.errors import ReplayError
from replaylab.notebook import Chart, Pyramid
from replaylab.notebook import chart as chart_module
from tests.browser.driving import FLAGS, find_browser


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab.sample()


@pytest.fixture(scope="module")
def session(lab: Lab) -> Any:
    manifest = lab.build_replay_session(
        "2025-11-18T10:00", "2025-11-18T11:00", ["BTCUSDT", "AIUSDT"], session_id="an-hour"
    )
    return lab.session(manifest)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 5_000, 300_001])
def test_a_view_has_the_extremes_of_its_range(size: int) -> None:
    """Whatever the range: its first and last value, its lowest and highest, in order, and not more than asked for."""
    rng = np.random.default_rng(size)
    values = np.cumsum(rng.normal(size=size))
    pyramid = Pyramid(values)
    for _ in range(40):
        start, end = np.sort(rng.integers(0, size + 1, 2))
        if start == end:
            continue
        places = pyramid.view(int(start), int(end), bins=100)
        assert (np.diff(places) > 0).all()
        assert places[0] == start
        assert places[-1] == end - 1
        assert len(places) <= 2 * 100 + 6
        assert values[places].min() == values[start:end].min()
        assert values[places].max() == values[start:end].max()


def test_the_pyramid_is_kept_in_the_cache_folder(tmp_path: Path) -> None:
    """Read again it gives the same views; a damaged file is replaced."""
    values = np.cumsum(np.random.default_rng(1).normal(size=200_000))
    first = Pyramid(values, tmp_path, "a")
    (kept,) = tmp_path.iterdir()
    again = Pyramid(values, tmp_path, "a")
    assert again.view(10, 190_000).tolist() == first.view(10, 190_000).tolist()
    kept.write_bytes(kept.read_bytes()[:500])
    assert Pyramid(values, tmp_path, "a").view(10, 190_000).tolist() == first.view(10, 190_000).tolist()


def source_of(chart: Chart, name: str) -> Any:
    from bokeh.models import ColumnDataSource

    return next(s for s in chart.figure.select({"type": ColumnDataSource}) if name in s.data)


def test_it_shows_the_recorded_trades(lab: Lab, session: Any) -> None:
    chart = lab.chart(session, symbol="BTCUSDT")
    trades = lab.trades(symbols=["BTCUSDT"])
    shown = source_of(chart, "mark_out_1s").data
    assert len(shown["side"]) == trades.height == int(repr(chart).split(" prices, ")[1].split()[0])
    assert shown["pnl"] == pytest.approx(trades.sort("entry_timestamp")["realized_pnl"].to_list(), rel=1e-9)
    expected = ml.mark_outs(session, trades.sort("entry_timestamp"))
    for name in ("mark_out_1s", "mark_out_5s", "mark_out_30s"):
        assert list(shown[name]) == pytest.approx(expected[name].to_list(), nan_ok=True)
    levels = source_of(chart, "level").data
    stops = lab.orders(symbols=["BTCUSDT"]).filter(pl.col("type") == "STOP_MARKET")
    assert set(levels["level"]) & set(stops["trigger_price"].to_list())


def test_trades_that_close_after_the_session_are_not_drawn(lab: Lab) -> None:
    lab.build_replay_session("2025-11-18T10:20", "2025-11-18T10:24", ["AIUSDT"], session_id="short")
    drawn = lab.chart("short")._overlays["recorded"][0]
    assert drawn.height > 0
    assert (drawn["exit_time"].dt.strftime("%H:%M") < "10:24").all()


def test_zooming_in_shows_every_price_and_the_quotes(lab: Lab, session: Any) -> None:
    chart = lab.chart(session, symbol="BTCUSDT")
    chart.show("2025-11-18T10:30:00", "2025-11-18T10:31:00")
    prices = chart._prices.data
    tape = session.events.filter((pl.col("type") == "MARKET_TRADE") & (pl.col("symbol") == "BTCUSDT"))
    low, high = (pl.datetime(2025, 11, 18, 10, minute, time_zone="UTC") for minute in (30, 31))
    inside = tape.filter(pl.col("timestamp").is_between(low, high))
    assert abs(len(prices["x"]) - inside.height) <= 2
    assert len(chart._bids.data["x"]) > 0
    assert (chart._bids.data["y"] < chart._asks.data["y"]).all()


def test_two_runs_lie_over_each_other(lab: Lab, session: Any) -> None:
    changed = lab.backtest(session, {"sl_pct": 0.4})
    chart = lab.chart(session, {"recorded": None, "wider": changed}, symbol="AIUSDT", depth=True)
    labels = [item.label.value for legend in chart._plot.legend for item in legend.items]
    assert any(label.startswith("recorded: ") for label in labels)
    assert any(label.startswith("wider: ") for label in labels)


def test_the_book_is_drawn_at_its_time(lab: Lab, session: Any) -> None:
    """Each column of the image has quantity around the quotes in the middle of the column's time."""
    chart = lab.chart(session, symbol="BTCUSDT", depth=True)
    drawn = chart.figure.select_one({"name": "depth"})
    image = drawn.data_source.data["image"][0]
    glyph = drawn.glyph
    far = 0
    for column in range(0, image.shape[1], 7):
        moment = (glyph.x + glyph.dw * (column + 0.5) / image.shape[1]) * 1e6
        quote = chart._quotes[int(np.searchsorted(chart._ts, int(moment), side="right")) - 1]
        filled = np.flatnonzero(image[:, column])
        if quote["state"] < 0:
            continue
        low, high = (glyph.y + glyph.dh * edge / image.shape[0] for edge in (filled[0], filled[-1] + 1))
        far += not (low <= quote["bid"] <= quote["ask"] <= high)
    assert far == 0


def test_rows_and_trades_are_linked_both_ways(lab: Lab, session: Any, tmp_path: Path) -> None:
    """A click on a row moves the chart to its trade; a click on a trade lights its row, and scrolls to it."""
    path = lab.chart(session, symbol="BTCUSDT", width=900).save(tmp_path / "chart.html")
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=find_browser(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1000, "height": 1000})
        page.goto(path.as_uri())
        rows = page.locator(".slick-row")
        rows.first.wait_for()
        page.evaluate("() => { d = Bokeh.documents[0]; plot = d.get_model_by_name('plot') }")
        page.evaluate(
            "() => { trades = d.get_model_by_name('trades-0').source; whole = {...plot.x_range.attributes} }"
        )
        last = page.evaluate("() => trades.data.side.length") - 1
        assert page.locator(".slick-cell.selected").count() == 0
        place = page.evaluate(
            """(i) => {
              const view = Bokeh.index.find_one(plot), box = view.el.getBoundingClientRect()
              return [box.x + view.frame.x_scale.compute(trades.data.entry_time[i]),
                      box.y + view.frame.y_scale.compute(trades.data.entry_price[i])]
            }""",
            last,
        )
        page.mouse.click(*place)
        page.locator(".slick-row:has(.slick-cell.selected)").wait_for()
        assert page.evaluate("() => trades.selected.indices") == [last]
        lit = page.locator(".slick-row:has(.slick-cell.selected)")
        assert lit.locator(".slick-cell:not(.selected)").count() == 0
        view = page.locator(".slick-viewport").first.bounding_box()
        found = lit.bounding_box()
        assert view["y"] <= found["y"] < view["y"] + view["height"]
        page.locator(".slick-row").first.click()
        page.wait_for_function("() => trades.selected.indices.length === 1")
        chosen = page.evaluate("() => trades.selected.indices[0]")
        assert chosen != last
        start, end, entry, closed = page.evaluate(
            "(i) => [plot.x_range.start, plot.x_range.end, trades.data.entry_time[i], trades.data.exit_time[i]]",
            chosen,
        )
        assert start < entry < closed < end
        browser.close()


def test_a_session_without_signals_has_a_chart(lab: Lab, session: Any) -> None:
    prints = session.events.filter(pl.col("type") == "MARKET_TRADE")
    saved = lab.save_session(prints, session_id="prints")
    chart = lab.chart(saved, symbol="BTCUSDT")
    assert len(chart._price) == prints.filter(pl.col("symbol") == "BTCUSDT").height


def test_a_chart_without_a_kernel_says_so(lab: Lab, session: Any) -> None:
    """The widget's page code with a kernel that is gone, and with one that answers."""
    chart = lab.chart(session, symbol="BTCUSDT")
    sent: list[dict[str, Any]] = []
    chart.widget.send = lambda content, buffers=None: sent.append(content)  # type: ignore[method-assign]
    chart._from_page(chart.widget, {"bokeh": True}, None)
    code = Path(chart_module.__file__).with_name("chart.js").read_text()
    with sync_playwright() as browsers:
        page = browsers.chromium.launch(executable_path=find_browser(), args=FLAGS).new_page()
        page.clock.install()
        page.evaluate(
            """async ([code, item, bokeh]) => {
              const {default: {render}} = await import("data:text/javascript;base64," +
                btoa(unescape(encodeURIComponent(code))))
              const model = (answer) => {
                const calls = new Set()
                return {get: () => item, on: (_, call) => calls.add(call), off: (_, call) => calls.delete(call),
                  send: () => answer && calls.forEach(call => call({bokeh}))}
              }
              window.draw = (id, answer) => {
                const el = document.body.appendChild(document.createElement("div"))
                el.id = id
                render({model: model(answer), el})
              }
              draw("gone", false)
            }""",
            [code, chart.widget.item, sent[0]["bokeh"]],
        )
        page.clock.run_for(14_000)
        assert page.inner_text("#gone") == ""
        page.clock.run_for(2_000)
        assert "run the cell again" in page.inner_text("#gone")
        page.evaluate("draw('here', true)")
        page.clock.run_for(1_000)
        page.locator("#here .bk-Figure").first.wait_for()
        page.clock.run_for(16_000)
        page.locator("#gone .bk-Figure").first.wait_for()


def test_an_unknown_symbol_is_named(lab: Lab, session: Any) -> None:
    with pytest.raises(ReplayError, match="Did you mean 'BTCUSDT'"):
        lab.chart(session, symbol="BTCUSD")


def test_a_report_opens_without_a_network(lab: Lab, session: Any, tmp_path: Path) -> None:
    """One file of at most 5 MB: the verdict's own words, charts that react, no request to anywhere, no error."""
    result = lab.sweep(session, {"sl_pct": [0.1, 0.2, 0.3], "tp1_pct": [0.1, 0.2]}, progress=False)
    path = lab.report(result, tmp_path / "report.html")
    assert path.stat().st_size <= 5_000_000
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=find_browser(), args=FLAGS)
        page = browser.new_context(offline=True, viewport={"width": 1200, "height": 900}).new_page()
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:", "blob:")) else wrong.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        page.locator(".slick-row").first.wait_for()
        text = page.inner_text("body")
        for reason in (result.verdict().title, *result.verdict().reasons):
            assert " ".join(reason.split()) in " ".join(text.split())
        assert result.assumptions in text
        assert session.digest in text
        view = (
            "() => Object.values(Bokeh.documents[0]._all_models ? [...Bokeh.documents[0]._all_models.values()] : [])\
            .filter(m => m.type === 'Range1d' && m.end - m.start > 1e5).map(m => m.end - m.start)[0]"
        )
        before = page.evaluate(view)
        page.locator(".slick-row").nth(2).click()
        page.wait_for_timeout(500)
        after = page.evaluate(view)
        assert after < before
        assert wrong == []
        browser.close()


def test_reports_of_a_session_and_a_backtest(lab: Lab, session: Any, tmp_path: Path) -> None:
    for name, subject in (("session", "an-hour"), ("backtest", lab.backtest(session, {"sl_pct": 0.4}))):
        text = lab.report(subject, tmp_path / f"{name}.html").read_text()
        assert "an-hour" in text
        assert "<h2>Parameters</h2>" in text
    assert "sl_pct" in text
    assert "0.4" in text
    frame = lab.backtest(session.events, {"sl_pct": 0.4, "market_fill": "print"})
    with pytest.raises(ReplayError, match="save its events"):
        lab.report(frame, tmp_path / "x.html")
    engine = lab.engine()
    engine.start_session("an-hour", speed_factor=float("inf"))
    engine.wait()
    run = engine.last_run
    text = lab.report(run, tmp_path / "run.html").read_text()
    assert f"ReplayRun(&#x27;{run.id}&#x27;" in text
    assert "realizedPnl" in text
    study = lab.sweep(["an-hour"], {"sl_pct": [0.3, 0.4]}, progress=False)
    for subject in (study, lab.what_if("an-hour", {"sl_pct": 0.4}), lab.trades(), None):
        with pytest.raises(ReplayError, match="a report is of a session"):
            lab.report(subject, tmp_path / "x.html")


def test_a_report_escapes_what_it_shows(lab: Lab, session: Any, tmp_path: Path) -> None:
    trades = lab.trades().with_columns(reason=pl.lit("<img src=x onerror=alert(1)>"))
    text = lab.report(session, tmp_path / "r.html", run=trades).read_text()
    assert "<img src=x" not in text.replace(json.dumps("<img src=x onerror=alert(1)>")[1:-1], "")


def test_the_cursor_follows_a_replay_and_a_click_seeks(lab: Lab, session: Any) -> None:
    """Bound to a replay of this root: the cursor goes to its time, and a double click seeks it."""
    import time

    from replaylab.timestamps import parse_ns

    engine = lab.engine()
    chart = lab.chart(session, symbol="BTCUSDT")
    engine.start_session("an-hour", speed_factor=1.0)
    chart.follow()
    wanted = parse_ns("2025-11-18T10:40:00Z") / 1e6
    try:
        time.sleep(0.5)
        chart._from_page(None, {"seek": wanted}, [])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not chart._cursor.location >= wanted - 5_000:
            time.sleep(0.2)
        assert chart._cursor.location >= wanted - 5_000
    finally:
        chart.unfollow()
        engine.stop()
