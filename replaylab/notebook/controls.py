"""Replay controls: progress, speed, the buttons that steer a replay, and the parameters of the next run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any

import ipywidgets as w

from replaylab.errors import ConfigError
from replaylab.features import usable_number
from replaylab.notebook.style import error, note
from replaylab.params import Declaration, TradingParams
from replaylab.records import ReplayStatus

SPEEDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0, math.inf)
# How long the timeline rests before the replay goes where it was dragged.
_REST_S = 0.25


class Controls:
    """Buttons call ``on_pause``, ``on_step``, ``on_decision``, ``on_stop`` and ``on_speed``; ``show`` draws a status.

    A click on the timeline, a drag of it and a chosen bookmark call ``on_seek(index)``; ``on_bookmark(name, index)``
    gives the event at an index a name, or takes it away (None).
    """

    def __init__(
        self,
        *,
        on_pause: Callable[[], None],
        on_step: Callable[[], None],
        on_decision: Callable[[], None],
        on_stop: Callable[[], None],
        on_speed: Callable[[float], None],
        on_seek: Callable[[int], None],
        on_bookmark: Callable[[str, int | None], None],
    ) -> None:
        narrow = w.Layout(width="7.5em")
        self.pause = w.Button(description="Pause", icon="pause", layout=narrow)
        self.step = w.Button(
            description="Step", icon="step-forward", layout=narrow, tooltip="one event, then hold"
        )
        self.decision = w.Button(
            description="Decision",
            icon="fast-forward",
            layout=narrow,
            tooltip="to the next signal that is acted upon or refused, order or fill, then hold",
        )
        self.stop = w.Button(description="Stop", icon="stop", layout=narrow, button_style="danger")
        self.speed = w.SelectionSlider(
            description="speed",
            options=[(speed_label(factor), factor) for factor in SPEEDS],
            value=1.0,
            continuous_update=True,
            layout=w.Layout(width="26em"),
            style={"description_width": "3.5em"},
        )
        # Sent while it is dragged; ``wanted`` has the newest place once it has rested.
        self.timeline = w.IntSlider(
            min=0,
            max=1,
            value=0,
            readout=False,
            continuous_update=True,
            layout=w.Layout(width="100%", margin="0"),
        )
        self.timeline.add_class("rl-timeline")
        self.timeline.observe(lambda change: self._dragged(), names="value")
        self.marks = w.HTML(layout=w.Layout(width="100%", margin="0"))
        self.bookmark = w.Dropdown(options=[("bookmarks: none", "")], layout=w.Layout(width="14em"))
        self.bookmark.observe(lambda change: self._chose(change["new"]), names="value")
        self.name = w.Text(placeholder="name of this place", layout=w.Layout(width="11em"))
        self.keep = w.Button(
            icon="bookmark", tooltip="keep this place as a bookmark", layout=w.Layout(width="3em")
        )
        self.forget = w.Button(
            icon="trash", tooltip="delete the chosen bookmark", layout=w.Layout(width="3em")
        )
        self.keep.on_click(lambda _: self._keep())
        self.forget.on_click(lambda _: self._forget())
        self._on_seek, self._on_bookmark = on_seek, on_bookmark
        self._bookmarks: dict[str, int] = {}
        self._moved_at: float | None = None
        self._index = 0
        self.where = w.HTML()
        self.message = w.HTML()
        self._drawing = False
        self.forget.disabled = True
        self.pause.on_click(lambda _: on_pause())
        self.step.on_click(lambda _: on_step())
        self.decision.on_click(lambda _: on_decision())
        self.stop.on_click(lambda _: on_stop())
        self._on_speed = on_speed
        self.speed.observe(lambda change: self._moved(float(change["new"])), names="value")
        middle = w.Layout(align_items="center", flex_flow="row wrap")
        self.widget = w.VBox(
            [
                w.VBox([self.timeline, self.marks], layout=w.Layout(width="100%", max_width="900px")),
                self.where,
                w.HBox([self.pause, self.step, self.decision, self.stop, self.speed], layout=middle),
                w.HBox([self.bookmark, self.forget, self.name, self.keep, self.message], layout=middle),
            ]
        )
        self.show(ReplayStatus())

    def _moved(self, value: float) -> None:
        if not self._drawing:
            self._on_speed(value)

    def set_speed(self, factor: float) -> None:
        """Move the slider without sending a command; a factor that is not on it is added."""
        self._drawing = True
        known = [value for _, value in self.speed.options]
        if factor not in known:
            self.speed.options = [(speed_label(value), value) for value in sorted({*known, factor})]
        self.speed.value = factor
        self._drawing = False

    def show(self, status: ReplayStatus) -> None:
        """Draw a status, of a replay of any process."""
        for button in (self.pause, self.step, self.decision, self.stop):
            button.disabled = not status.running
        self.pause.description, self.pause.icon = ("Resume", "play") if status.paused else ("Pause", "pause")
        self.timeline.disabled = not status.running
        self.keep.disabled = status.session_id is None
        self._index = status.current_event_index if status.session_id else 0
        if self._moved_at is not None and time.monotonic() - self._moved_at >= _REST_S:
            self._moved_at = None
            self._on_seek(self.timeline.value)
            # The next status shows where the replay went.
        elif self._moved_at is None:
            self._drawing = True
            if (total := max(status.total_events, 1)) != self.timeline.max:
                self.timeline.max = total
                self._draw_marks()
            self.timeline.value = min(self._index, total)
            self._drawing = False
        self.where.value = self._where(status)

    def offer_bookmarks(self, bookmarks: dict[str, int]) -> None:
        """Show the bookmarks of the session: name and index of the event."""
        if bookmarks == self._bookmarks:
            return
        self._bookmarks = bookmarks
        self._drawing = True
        heading = f"bookmarks: {len(bookmarks)}" if bookmarks else "bookmarks: none"
        chosen = self.bookmark.value
        self.bookmark.options = [
            (heading, ""),
            *((f"{name} · event {at:,}", name) for name, at in bookmarks.items()),
        ]
        self.bookmark.value = chosen if chosen in bookmarks else ""
        self.forget.disabled = not self.bookmark.value
        self._drawing = False
        self._draw_marks()

    def _draw_marks(self) -> None:
        ticks = (
            f'<i style="left:{100 * min(1.0, at / self.timeline.max):.3f}%" title="{escape(name)}, event {at:,}"></i>'
            for name, at in self._bookmarks.items()
        )
        self.marks.value = f'<div class="rl-marks">{"".join(ticks)}</div>'

    def _dragged(self) -> None:
        if not self._drawing:
            self._moved_at = time.monotonic()

    def _chose(self, name: str) -> None:
        self.forget.disabled = not name
        if not self._drawing and name and not self.timeline.disabled:
            self._on_seek(self._bookmarks[name])

    def _keep(self) -> None:
        name = self.name.value.strip()
        if not name:
            self.complain("give the bookmark a name first")
            return
        self.name.value = ""
        self._on_bookmark(name, self._index)

    def _forget(self) -> None:
        if self.bookmark.value:
            self._on_bookmark(self.bookmark.value, None)

    def _where(self, status: ReplayStatus) -> str:
        if status.session_id is None:
            return note("no replay runs: choose a session and press Run")
        parts = [f"{status.current_event_index:,} of {status.total_events:,} events"]
        if status.last_event_timestamp:
            parts.append(f"event time {status.last_event_timestamp[:23].rstrip('Z').replace('T', ' ')}")
        if status.lateness is not None:
            parts.append(f"lateness p50 {status.lateness.p50:.2f} ms, p99 {status.lateness.p99:.2f} ms")
        if status.paused:
            parts.append("paused")
        if not status.running:
            complete = status.current_event_index >= status.total_events
            stopped = "ended: stopped before the last event"
            parts.append("interrupted" if status.error else "ended" if complete else stopped)
        text = note(" · ".join(parts))
        return f"{text} {error(status.error)}" if status.error else text

    def say(self, text: str) -> None:
        """Show a message next to the buttons."""
        self.message.value = note(text)

    def complain(self, text: str) -> None:
        """Show an error next to the buttons."""
        self.message.value = error(text)


def speed_label(factor: float) -> str:
    return "as fast as it can" if math.isinf(factor) else f"{factor:,.10g}×"


_OPEN = ("LONG", "SHORT")


@dataclass
class Row:
    """One symbol. Prices and PnL in quote currency, ``qty`` in base currency (0 = no position)."""

    symbol: str
    score: float | None = None
    regime: str | None = None
    state: str = "IDLE"
    price: float | None = None
    side: str | None = None
    entry_price: float | None = None
    qty: float = 0.0
    realized_pnl: float = 0.0
    trades: int = 0
    levels: dict[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def open_pnl(self) -> float:
        """PnL of the open position at the last price, before fees."""
        if self.side not in _OPEN or self.price is None or self.entry_price is None:
            return 0.0
        return (1 if self.side == "LONG" else -1) * (self.price - self.entry_price) * self.qty

    @property
    def pnl(self) -> float:
        """Realised PnL of this run and the open one."""
        return self.realized_pnl + self.open_pnl


class Hotlist:
    """Symbols ranked by the size of their current score.

    >>> hotlist = Hotlist()
    >>> hotlist.state({"symbol": "BTCUSDT", "eventType": "SCORING_UPDATE", "toState": "IDLE",
    ...                "timestamp": "2025-11-18T10:00:00.000Z", "extra": {"score": -0.7, "price": 90000.0}})
    >>> [(row.symbol, row.score) for row in hotlist.ranked()]
    [('BTCUSDT', -0.7)]
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def row(self, symbol: str) -> Row:
        """The row of a symbol, made where there is none."""
        return self.rows.setdefault(symbol, Row(symbol))

    def ranked(self) -> list[Row]:
        """Rows by abs(score), the greatest first; those without a score last."""
        return sorted(
            self.rows.values(),
            key=lambda row: (row.score is None, -abs(row.score or 0.0), row.symbol),
        )

    def record(self, kind: str, record: dict[str, Any]) -> None:
        """Apply a record that the run logged: kind "state", "order" or "trade"."""
        {"state": self.state, "order": self.order, "trade": self.trade}[kind](record)

    def state(self, event: dict[str, Any]) -> None:
        """Apply a StateEvent."""
        row = self.row(event["symbol"])
        extra = event["extra"]
        row.state = event["toState"]
        kind = event["eventType"]
        if kind == "SCORING_UPDATE":
            score = usable_number(extra.get("score"))
            if score is not None:
                side = extra.get("side")
                row.score = abs(score) * (1 if side == "LONG" else -1) if side in _OPEN else score
            row.price = usable_number(extra.get("price")) or row.price
        elif kind == "REGIME_UPDATE":
            row.regime = str(extra.get("regime"))
        elif kind == "EXECUTION_FILL":
            row.side = event["toState"]
            row.entry_price, row.qty = (
                usable_number(extra.get("price")),
                usable_number(extra.get("qty")) or 0.0,
            )
        elif kind == "EXECUTION_PARTIAL":
            row.qty -= usable_number(extra.get("qty")) or 0.0
        elif kind == "EXECUTION_EXIT":
            row.side, row.entry_price, row.qty = None, None, 0.0

    def order(self, order: dict[str, Any]) -> None:
        """Apply an order: those that rest are levels, of a position or of a LIMIT entry that waits for its fill."""
        levels = self.row(order["symbol"]).levels
        if order["status"] != "NEW":
            levels.pop(order["clientOrderId"], None)
            return
        price = order["triggerPrice"] if order["triggerPrice"] is not None else order["price"]
        kind = "stop" if order["type"] == "STOP_MARKET" else "target" if order["reduceOnly"] else "entry"
        if order["type"] != "MARKET" and price is not None:
            levels[order["clientOrderId"]] = (kind, price)

    def trade(self, trade: dict[str, Any]) -> None:
        """Apply a closed trade."""
        row = self.row(trade["symbol"])
        row.realized_pnl += trade["realizedPnl"]
        row.trades += 1


_COLUMNS = 2
_OFF, _NONE = "off", "none"
_FLAGS = {True: "yes", False: "no"}


class RunParams:
    """A field for each declared parameter; ``changes`` is what differs from the base, ready for a replay.

    ``offer`` sets the base: the parameters that the chosen session recorded, or those of the configuration.
    """

    def __init__(self) -> None:
        self.base = TradingParams()
        self.source = "configured"
        self._declared = {one.name: one for one in TradingParams.declarations()}
        self.fields = {name: _field(one) for name, one in self._declared.items()}
        self.notes = {name: w.HTML(layout=w.Layout(width="13em")) for name in self._declared}
        self.reset = w.Button(description="Reset", icon="undo", tooltip="back to the recorded values")
        self.reset.on_click(lambda _: self._show(self.base))
        self.problem = w.HTML()
        rows = [
            w.HBox([self.fields[name], self.notes[name]], layout=w.Layout(align_items="center"))
            for name in self._declared
        ]
        height = -(-len(rows) // _COLUMNS)
        columns = [w.VBox(rows[start : start + height]) for start in range(0, len(rows), height)]
        self.widget = w.Accordion(
            [
                w.VBox(
                    [
                        w.HBox(columns, layout=w.Layout(flex_flow="row wrap", grid_gap="0 16px")),
                        w.HBox([self.reset, self.problem], layout=w.Layout(align_items="center")),
                    ]
                )
            ],
            selected_index=None,
        )
        self._showing = False
        for name, cell in self.fields.items():
            cell.observe(lambda _, name=name: self._edited(name), names="value")
        self.offer(self.base, "configured")

    def offer(self, base: TradingParams, source: str, used: TradingParams | None = None) -> None:
        """Set the base and where it comes from ("recorded", "configured"), and show ``used`` (default: the base)."""
        self.base, self.source = base, source
        self._show(used or base)

    def changes(self) -> dict[str, Any] | None:
        """Return the changed fields and their values, or None with a message next to each invalid field."""
        found: dict[str, Any] = {}
        valid = True
        for name in self._declared:
            try:
                value = self._read(name)
            except ConfigError as problem:
                self.notes[name].value = error(str(problem))
                valid = False
                continue
            if value != getattr(self.base, name):
                found[name] = value
        if not valid:
            return None
        try:
            self.base.with_changes(found)
        except ConfigError as problem:
            self.problem.value = error(str(problem))
            return None
        self.problem.value = ""
        return found

    def _show(self, params: TradingParams) -> None:
        self._showing = True
        for name, cell in self.fields.items():
            cell.value = _shown(self._declared[name], getattr(params, name))
        self._showing = False
        for name in self._declared:
            self._annotate(name)
        self._title()

    def _edited(self, name: str) -> None:
        if not self._showing:
            self._annotate(name)
            self._title()

    def _annotate(self, name: str) -> None:
        declared = self._declared[name]
        base = getattr(self.base, name)
        unit = f" {declared.unit}" if declared.unit and base is not None else ""
        shown = _FLAGS[base] if declared.kind == "flag" else _shown(declared, base)
        text = f"{self.source} {shown}{unit}"
        try:
            changed = self._read(name) != base
        except ConfigError as problem:
            self.notes[name].value = error(str(problem))
            return
        self.notes[name].value = f"<b>{note(text)}</b> ✎" if changed else note(text)

    def _title(self) -> None:
        changes = self.changes()
        count = "invalid" if changes is None else f"{len(changes)} changed" if changes else "unchanged"
        self.widget.titles = (f"Parameters of the run: {self.source}, {count}",)

    def _read(self, name: str) -> Any:
        declared, value = self._declared[name], self.fields[name].value
        if isinstance(value, str):
            value = _parsed(declared, value.strip())
        try:
            declared.check(value)
        except ValueError:
            raise ConfigError(f"{name}: expected {declared.allowed}, found {value!r}") from None
        return value


def _field(declared: Declaration) -> Any:
    common = {
        "description": declared.name,
        "tooltip": declared.help,
        "style": {"description_width": "13em"},
        "layout": w.Layout(width="21em"),
    }
    if declared.kind == "flag":
        return w.Dropdown(options=[(word, flag) for flag, word in _FLAGS.items()], **common)
    if declared.kind == "choice":
        return w.Dropdown(options=declared.choices, **common)
    return w.Text(placeholder=_OFF, **common)


def _shown(declared: Declaration, value: Any) -> Any:
    if declared.kind in ("flag", "choice"):
        return value
    if value is None:
        return _OFF
    if declared.kind == "names":
        return ", ".join(value) or _NONE
    return repr(value).removesuffix(".0")


def _parsed(declared: Declaration, text: str) -> Any:
    """Return what a text field holds; raises ConfigError."""
    if declared.kind == "choice":
        return text
    if text in ("", _OFF):
        return None
    if declared.kind == "names":
        return () if text == _NONE else tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return int(text) if declared.kind == "whole" else float(text)
    except ValueError:
        raise ConfigError(f"{declared.name}: expected {declared.allowed}, found {text!r}") from None
