"""A string from the data never becomes HTML: one hostile string in every field that a notebook shows."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ipywidgets as w
import orjson
import polars as pl
import pytest

from replaylab import Lab
from replaylab.notebook import Panel
from replaylab.notebook.live import LiveView, _change, _order, _trade
from replaylab.notebook.session_detail import describe
from replaylab.records import ReplayStatus
from replaylab.replay import News, SimRun
from replaylab.sessions import Session, save_session_frame
from tests.logging import sample_records as sample

HOSTILE = "\"'><img src=x onerror=alert(1)>"


def session(root: Path) -> Session:
    """A session with the string in each event's type and payload and in the notes."""
    frame = pl.DataFrame(
        {
            "timestamp": ["2025-11-18T10:00:00Z", "2025-11-18T10:00:01Z", "2025-11-18T10:00:02Z"],
            "type": [HOSTILE, "REGIME_UPDATE", "SCORING_UPDATE"],
            "symbol": ["A", "A", "A"],
            "payload": [
                orjson.dumps({"x": HOSTILE}).decode(),
                orjson.dumps({"regime": HOSTILE}).decode(),
                orjson.dumps({"score": 0.9, "price": 100.0, "reason": HOSTILE}).decode(),
            ],
        }
    )
    manifest = save_session_frame(root, frame, "s", notes=HOSTILE)
    path = Lab(root).root.manifest("s")
    changed = manifest.to_dict() | {"symbols": [HOSTILE], "eventTypes": [HOSTILE]}
    path.write_bytes(orjson.dumps(changed))
    return Session(root, "s")


def test_sessions_labs_and_runs(tmp_path: Path) -> None:
    root = tmp_path / HOSTILE
    shown: list[Any] = [session(root), Lab(root)]
    run = SimRun(Lab(root).root, (HOSTILE,), HOSTILE, HOSTILE, 1, {})
    run.__dict__.update(dict.fromkeys(("events", "orders", "trades"), pl.DataFrame()))
    shown.append(run)
    for one in shown:
        assert "<img" not in one._repr_html_(), one
        assert "&lt;img" in one._repr_html_(), one


def test_the_detail_of_a_session(tmp_path: Path) -> None:
    assert "<img" not in describe(session(tmp_path)).html


def test_lists_of_a_running_replay() -> None:
    text = dict.fromkeys(("symbol", "fromState", "toState", "reason", "side", "type", "status"), HOSTILE)
    numbers = {"avgFillPrice": 1.0, "price": None, "triggerPrice": None, "realizedPnl": 1.0}
    row = {"timestamp": HOSTILE, **text, **numbers}
    for show in (_change, lambda one: _order(one, lambda symbol, value: f"{value}"), _trade):
        assert "<img" not in show(row)


class Tags(HTMLParser):
    """Collects what a browser would make of a text: tags, and attributes with code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.bad: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("img", "script") or any(name.startswith("on") for name, _ in attrs):
            self.bad.append(self.get_starttag_text() or tag)


def widgets(widget: w.Widget) -> Iterator[w.Widget]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from widgets(child)


def shown_as_html(widget: w.Widget) -> list[str]:
    """Every text below a widget that the browser takes as HTML."""
    return [one.value for one in widgets(widget) if isinstance(one, w.HTML | w.HTMLMath)]


def assert_escaped(widget: w.Widget, *, somewhere: bool = True) -> None:
    texts = shown_as_html(widget)
    assert [bad for text in texts for bad in Tags(text).bad] == []
    assert not somewhere or any("&lt;img" in text for text in texts)
    for one in widgets(widget):
        assert not getattr(one, "description_allow_html", False)


@pytest.fixture
def panel(tmp_path: Path) -> Iterator[Panel]:
    root = tmp_path / HOSTILE
    session(root)
    made = Panel(Lab(root))
    made.tick()
    yield made
    made.close()


def test_the_table_of_sessions_and_its_actions(panel: Panel) -> None:
    """Symbols, types and notes of a manifest; a filter; an id that is to be deleted; messages."""
    assert panel.table.visible == ["s"]
    assert_escaped(panel.table.widget)
    panel.table.filter.value = HOSTILE
    assert_escaped(panel.table.widget)
    panel.table.select("s")
    panel.actions.offer(HOSTILE, running=False)
    panel.actions.delete.click()
    assert_escaped(panel.actions.widget)
    panel.controls.complain(HOSTILE)
    assert_escaped(panel.controls.widget)
    panel.controls.say(HOSTILE)
    assert_escaped(panel.controls.widget)
    panel.badge.value = panel._badge_text(ReplayStatus(session_id=HOSTILE, running=True))
    assert_escaped(panel.badge)
    panel._load()
    panel.settle()
    assert_escaped(panel.widget)


def test_the_form_with_the_string_in_every_field(panel: Panel) -> None:
    form = panel.form
    for field in (form.start, form.end, form.max_events, form.session_id, form.notes):
        field.value = HOSTILE
    form.create.click()
    assert_escaped(form.widget)
    assert all("&lt;img" in form.errors[name].value for name in ("start", "end", "max_events", "session_id"))
    form.offer([HOSTILE], (0, 10**18))
    form.symbols.value = (HOSTILE,)
    form.start.value, form.end.value = "2025-11-18T10:00:00Z", "2025-11-18T10:01:00Z"
    form.max_events.value = form.session_id.value = ""
    form.create.click()
    panel.settle()
    assert_escaped(form.widget)
    for problem in ("", "symbol ", "range ", "max_events "):
        form.refused(ValueError(problem + HOSTILE))
        assert_escaped(form.widget)
    form.say(HOSTILE)
    assert_escaped(form.widget)


def test_the_hotlist_and_the_lists_of_a_run() -> None:
    """Every text of every record that a run logs; records that are none are counted, and end nothing."""
    texts = ("symbol", "fromState", "toState", "reason")
    state = sample.state_event() | dict.fromkeys(texts, HOSTILE)
    records = [
        (
            "state",
            state
            | {"eventType": kind, "extra": {"regime": HOSTILE, "score": 0.5, "side": HOSTILE, "price": 1.0}},
        )
        for kind in ("SCORING_UPDATE", "REGIME_UPDATE", "EXECUTION_FILL", HOSTILE)
    ]
    order = sample.order() | {"symbol": HOSTILE, "clientOrderId": HOSTILE, "lastError": HOSTILE}
    trade = sample.trade() | {"symbol": HOSTILE, "reason": HOSTILE, "strategyId": HOSTILE}
    odd: list[Any] = [
        {},
        {"symbol": 1},
        state | {"symbol": None},
        state | {"extra": []},
        state | {"timestamp": HOSTILE},
    ]
    records += [
        ("order", order),
        ("trade", trade),
        *((kind, one) for one in odd for kind in ("state", "order", "trade")),
    ]
    view = LiveView()
    status = ReplayStatus(session_id="s", run_id="r")
    view.take(News(status, changed=True, began=True, records=records))  # type: ignore[arg-type]
    view.draw()
    assert_escaped(view.widget)
    assert view.hotlist.rows.keys() == {HOSTILE}
    assert view.unreadable == len(odd) * 3
    assert "15 lines of the run&#x27;s logs are no records" in view.changes.value
