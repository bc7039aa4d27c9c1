"""The form that builds a session; each error is shown next to the field that caused it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as w
import orjson

from replaylab import frames, history
from replaylab.errors import SessionExistsError, TimeError, UnsafeNameError
from replaylab.notebook.style import error, note
from replaylab.paths import DataRoot, safe_name
from replaylab.timestamps import iso, parse_ns

_MINUTE = 60_000_000_000
ALL_TYPES = "all signals and market data"
TYPES = (
    ALL_TYPES,
    "SCORING_UPDATE",
    "REGIME_UPDATE",
    "RISK_UPDATE",
    "EXECUTION_*",
    "MARKET_TRADE",
    "MARKET_BOOK",
    "FEATURE_SNAPSHOT",
    "STATE_EVENT",
)


@dataclass(frozen=True)
class BuildRequest:
    """The validated fields of the form."""

    start: str
    end: str
    symbols: list[str]
    include_types: list[str] | None
    max_events: int | None
    session_id: str | None
    notes: str | None


class BuildForm:
    """``on_request`` is called with a BuildRequest once every field is valid."""

    def __init__(self, on_request: Callable[[BuildRequest], None]) -> None:
        self._on_request = on_request
        self._span = (0, 0)
        self._moving = False
        wide = {"layout": w.Layout(width="26em"), "style": {"description_width": "7em"}}
        self.start = w.Text(description="from (UTC)", placeholder="2025-11-18T10:00:00Z", **wide)
        self.end = w.Text(description="to (UTC)", placeholder="2025-11-18T11:00:00Z", **wide)
        self.range = w.IntRangeSlider(
            description="range", readout=False, min=0, max=1, value=(0, 1), disabled=True, **wide
        )
        self.symbols = w.SelectMultiple(description="symbols", rows=4, **wide)
        self.types = w.SelectMultiple(description="types", options=TYPES, value=(ALL_TYPES,), rows=4, **wide)
        self.max_events = w.Text(description="max events", placeholder="no limit", **wide)
        self.session_id = w.Text(description="session id", placeholder="made from range and symbols", **wide)
        self.notes = w.Text(description="notes", **wide)
        self.create = w.Button(description="Create session", icon="plus", button_style="primary")
        self.result = w.HTML()
        self.errors = {
            name: w.HTML()
            for name in ("start", "end", "symbols", "types", "max_events", "session_id", "notes")
        }
        self.create.on_click(lambda _: self._submit())
        self.range.observe(self._range_moved, names="value")
        for field in (self.start, self.end):
            field.observe(self._range_typed, names="value")
        rows = [("start", self.start), ("end", self.end), (None, self.range), ("symbols", self.symbols)]
        more = [
            ("types", self.types),
            ("max_events", self.max_events),
            ("session_id", self.session_id),
            ("notes", self.notes),
        ]
        columns = [
            w.VBox([w.VBox([field, self.errors[name]]) if name else field for name, field in part])
            for part in (rows, more)
        ]
        self.widget = w.VBox(
            [
                w.HTML('<div class="rl-heading">Build a session</div>'),
                w.HBox(columns, layout=w.Layout(flex_flow="row wrap")),
                w.HBox([self.create, self.result], layout=w.Layout(align_items="center")),
            ]
        )

    def offer(self, symbols: Sequence[str], span: tuple[int, int] | None) -> None:
        """Offer the symbols that have logs, and the range that the logs cover (ns); typed values stay."""
        names = tuple(symbols)
        if names != tuple(self.symbols.options):
            chosen = [name for name in self.symbols.value if name in names] or list(names)
            self.symbols.options = names
            self.symbols.value = tuple(chosen)
        if span is None or span == self._span:
            return
        first, last = span[0] // _MINUTE * _MINUTE, -(-(span[1] + 1) // _MINUTE) * _MINUTE
        untouched = not self.start.value or self._span != (0, 0)
        self._span = span
        self._moving = True
        minutes = max(1, (last - first) // _MINUTE)
        self._first = first
        self.range.max = minutes
        self.range.disabled = False
        self._moving = False
        if untouched:
            self.range.value = (0, minutes)
            self.start.value, self.end.value = _text(first), _text(last)

    def clear_errors(self) -> None:
        for field in self.errors.values():
            field.value = ""
        self.result.value = ""

    def show_error(self, name: str, text: str) -> None:
        """Show an error next to a field, or below the form where no field caused it."""
        self.errors.get(name, self.result).value = error(text)

    def say(self, text: str) -> None:
        """Show a remark below the form."""
        self.result.value = note(text)

    def _range_moved(self, change: Any) -> None:
        if self._moving:
            return
        low, high = change["new"]
        self._moving = True
        self.start.value, self.end.value = (
            _text(self._first + low * _MINUTE),
            _text(self._first + high * _MINUTE),
        )
        self._moving = False

    def _range_typed(self, _: Any) -> None:
        if self._moving or self.range.disabled:
            return
        try:
            low, high = parse_ns(self.start.value.strip()), parse_ns(self.end.value.strip())
        except TimeError:
            return
        ends = [min(max(round((ns - self._first) / _MINUTE), 0), self.range.max) for ns in (low, high)]
        if ends[0] <= ends[1]:
            self._moving = True
            self.range.value = (ends[0], ends[1])
            self._moving = False

    def _submit(self) -> None:
        self.clear_errors()
        request = self.read()
        if request is not None:
            self._on_request(request)

    def read(self) -> BuildRequest | None:
        """Return the request, or None with an error next to each wrong field."""
        good = True
        moments: list[int] = []
        for name, field in (("start", self.start), ("end", self.end)):
            try:
                moments.append(parse_ns(field.value.strip()))
            except TimeError as problem:
                self.show_error(name, str(problem))
                good = False
        if len(moments) == 2 and moments[0] >= moments[1]:
            self.show_error("end", "the end must be later than the start")
            good = False
        if not self.symbols.value:
            self.show_error("symbols", "choose at least one symbol")
            good = False
        if not self.types.value:
            self.show_error("types", "choose at least one type")
            good = False
        limit = self.max_events.value.strip().replace(",", "").replace("_", "")
        if limit and not limit.isdecimal():
            self.show_error(
                "max_events", f"expected a whole number, or nothing for no limit, found {limit!r}"
            )
            good = False
        name = self.session_id.value.strip()
        try:
            if name:
                safe_name(name, "session id")
        except UnsafeNameError as problem:
            self.show_error("session_id", str(problem))
            good = False
        if not good:
            return None
        return BuildRequest(
            start=self.start.value.strip(),
            end=self.end.value.strip(),
            symbols=list(self.symbols.value),
            include_types=None if ALL_TYPES in self.types.value else list(self.types.value),
            max_events=int(limit) if limit else None,
            session_id=name or None,
            notes=self.notes.value.strip() or None,
        )

    def refused(self, problem: Exception) -> None:
        """Show why a build was refused, next to the field that the message is about."""
        text = str(problem)
        if isinstance(problem, SessionExistsError):
            field = "session_id"
            text = (
                f"a session named {self.session_id.value.strip()} exists: choose another name, or leave it empty "
                "for one made from range and symbols"
            )
        else:
            by_word = {
                "holds no events": "end",
                "market data of": "symbols",
                "symbol": "symbols",
                "max_events": "max_events",
                "range": "end",
            }
            field = next((name for word, name in by_word.items() if word in text), "")
        self.show_error(field, text)


def _text(ns: int) -> str:
    return iso(ns).replace(".000Z", "Z")


_EDGE_BYTES = 65_536


def covered(root: DataRoot) -> tuple[list[str], tuple[int, int] | None]:
    """Return the symbols that have logs or tapes, and the first and last moment of them (ns), or None.

    Of each event log only the first and last lines are read.
    """
    logged = frames.list_symbols(root)
    taped = history.symbols(root, "trades")
    moments: list[int] = []
    for symbol in logged:
        moments += _edges(root.events(symbol))
    for symbol in taped:
        found = history.coverage(root, "trades", symbol)
        if found is not None:
            moments += [found[0], found[1]]
    return sorted({*logged, *taped}), (min(moments), max(moments)) if moments else None


def _edges(path: Path) -> list[int]:
    """Timestamps of the first and the last readable line near the edges of a log."""
    try:
        with path.open("rb") as file:
            head = file.read(_EDGE_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _EDGE_BYTES))
            tail = file.read()
    except FileNotFoundError:
        return []
    first = next((ns for line in head.splitlines() if (ns := _moment(line)) is not None), None)
    last = next((ns for line in reversed(tail.splitlines()) if (ns := _moment(line)) is not None), None)
    return [ns for ns in (first, last) if ns is not None]


def _moment(line: bytes) -> int | None:
    try:
        return parse_ns(orjson.loads(line)["timestamp"])
    except (orjson.JSONDecodeError, TimeError, KeyError, TypeError):
        return None
