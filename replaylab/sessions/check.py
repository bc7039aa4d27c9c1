"""Findings about a session's data that change what a replay or a sweep of it means.

::

    session.check()                      # a table of findings; .warnings are those that distort results
    check_events(frame)                  # the same for a DataFrame of events

Clock of the signals against the tape, holes, missing trade ids, gaps that the import found in the book, crossed and
thin books, signals without prices, density of prices, positions of two strategies in one log, carried positions and the
parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.features import MarketTape, pack_market
from replaylab.params import TradingParams

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_SECOND = 1_000_000_000
# Shifts tried between the two clocks, and the smallest that is reported: a bot's own delay stays below it.
_WIDEST, _STEP, _LEAST = 10 * _SECOND, 20_000_000, 200_000_000
_SAMPLE, _FEWEST = 2_000, 50
_THIN_BPS = 5.0
_STALE_S = 60.0


@dataclass(frozen=True)
class Finding:
    """``kind`` (such as "clock_offset"), ``level`` ("warning": it distorts results; "note"), ``symbol`` or None, the
    ``value`` in the unit that ``message`` names."""

    kind: str
    level: Literal["warning", "note"]
    symbol: str | None
    value: float | None
    message: str


class Findings(Sequence[Finding]):
    """The findings of a check, in a table: ``frame``, ``warnings``, and each by its place."""

    def __init__(self, found: Sequence[Finding]) -> None:
        self._found = sorted(found, key=lambda one: one.level != "warning")

    def __getitem__(self, place: Any) -> Any:
        return self._found[place]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._found)

    def of(self, kind: str) -> list[Finding]:
        """Return the findings of one kind."""
        return [one for one in self if one.kind == kind]

    @property
    def warnings(self) -> list[str]:
        """The messages of findings that distort results."""
        return [one.message for one in self if one.level == "warning"]

    @property
    def frame(self) -> pl.DataFrame:
        """``level, kind, symbol, value, message``, warnings first."""
        names = ("level", "kind", "symbol", "value", "message")
        rows = {name: [getattr(one, name) for one in self] for name in names}
        return pl.DataFrame(
            rows, schema={name: pl.Float64 if name == "value" else pl.String for name in names}
        )

    def __repr__(self) -> str:
        lines = "".join(f"\n  {one.level:<8}{one.message}" for one in self)
        return f"<Findings: {len(self.warnings)} warnings, {len(self) - len(self.warnings)} notes>{lines}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{one.level}</td><td>{one.kind}</td><td>{escape(one.message)}</td></tr>" for one in self
        )
        return f"<table><thead><tr><th>level<th>kind<th>finding</tr></thead><tbody>{rows}</tbody></table>"


def check_events(
    events: pl.DataFrame,
    *,
    initial_state: Mapping[str, Any] | None = None,
    recorded_params: TradingParams | None = None,
    gaps: Mapping[str, Any] | None = None,
) -> Findings:
    """Return what a session's events show of their own quality; see the module.

    ``gaps``: what imports found doubtful in the books, as ``meta.json`` keeps it.
    """
    found: list[Finding] = []
    tapes = pack_market(events, 1, initial_state=initial_state)
    signals = events.filter((pl.col("type") == "SCORING_UPDATE") & pl.col("symbol").is_not_null()).select(
        "symbol",
        ns=pl.col("timestamp").dt.timestamp("ns"),
        price=pl.col("payload").str.json_path_match("$.price").cast(pl.Float64, strict=False),
    )
    max_gap = 900.0 if recorded_params is None else recorded_params.max_gap_s
    for symbol in sorted({*tapes, *signals["symbol"].unique()}):
        tape, own = tapes.get(symbol), signals.filter(pl.col("symbol") == symbol)
        if tape is None or not len(tape.ts):
            priced = own["price"].is_not_null().sum()
            if not priced:
                message = f"{symbol}: {own.height:,} signals, but no prices: it cannot be swept or replayed"
                found.append(Finding("no_prices", "warning", symbol, own.height, message))
            continue
        times, prices = _prices(tape)
        found += _density(symbol, times, max_gap)
        found += _book(symbol, tape)
        if own.height and len(times):
            found += _signals(symbol, own, times, prices)
    found += _trade_ids(events)
    found += _overlaps(events)
    found += _start(initial_state, recorded_params)
    found += _imported(gaps or {})
    return Findings(found)


def _prices(tape: MarketTape) -> tuple[Ints, Floats]:
    """Times and prices of the trades; of the mid of the book where there are fewer than a hundred."""
    trades = tape.kind == 0
    if trades.sum() < 100 and not trades.all():
        mids = (tape.columns[:, 0] + tape.columns[:, 2]) / 2
        usable = ~trades & np.isfinite(mids)
        return tape.ts[usable], mids[usable]
    return tape.ts[trades], tape.columns[trades, 0]


def _density(symbol: str, times: Ints, max_gap: float | None) -> list[Finding]:
    if len(times) < 2:
        return []
    gaps = np.diff(times) / _SECOND
    spacing = float(np.median(np.diff(np.unique(times)))) / _SECOND if times[0] != times[-1] else 0.0
    found = [
        Finding("density", "note", symbol, spacing, f"{symbol}: prices {spacing:.3g} s apart (median)"),
    ]
    holes = gaps[gaps > max_gap] if max_gap is not None else gaps[:0]
    if len(holes):
        message = (
            f"{symbol}: {len(holes)} holes without prices of more than {max_gap:g} s, {holes.sum() / 3600:.2g} h in "
            f"all, the longest {holes.max() / 3600:.2g} h"
        )
        found.append(Finding("hole", "note", symbol, float(holes.sum()), message))
    return found


def _book(symbol: str, tape: MarketTape) -> list[Finding]:
    book = tape.columns[tape.kind != 0]
    book = book[np.isfinite(book[:, 0]) & np.isfinite(book[:, 2])]
    if not len(book):
        return []
    found = []
    crossed = int((book[:, 0] >= book[:, 2]).sum())
    if crossed:
        message = (
            f"{symbol}: the book is crossed (best bid ≥ best ask) after {crossed:,} of {len(book):,} changes"
        )
        level: Literal["warning", "note"] = "warning" if crossed > 0.01 * len(book) else "note"
        found.append(Finding("crossed_book", level, symbol, crossed, message))
    spread = float(np.median(2e4 * (book[:, 2] - book[:, 0]) / (book[:, 2] + book[:, 0])))
    if spread > _THIN_BPS:
        message = f"{symbol}: the spread is {spread:.3g} bps (median): fills at the last print are too good"
        found.append(Finding("thin_book", "note", symbol, spread, message))
    return found


def _signals(symbol: str, signals: pl.DataFrame, times: Ints, prices: Floats) -> list[Finding]:
    found = []
    at = signals["ns"].to_numpy()
    place = np.searchsorted(times, at, side="right") - 1
    age = np.where(place >= 0, (at - times[np.maximum(place, 0)]) / _SECOND, np.inf)
    stale = float((age > _STALE_S).mean())
    if stale > 0.01:
        message = f"{symbol}: {stale:.0%} of its signals have no price within {_STALE_S:g} s before them"
        found.append(Finding("stale_prices", "note", symbol, stale, message))
    offset = clock_offset(at, signals["price"].to_numpy(), times, prices)
    if offset is not None and abs(offset) * 1e9 >= _LEAST:
        way = "behind" if offset > 0 else "ahead of"
        effect = (
            "signals come before the moves that they follow, which makes an edge"
            if offset > 0
            else "they come late"
        )
        message = (
            f"{symbol}: the clock of the signals is {1000 * abs(offset):,.0f} ms {way} the tape's (their prices fit "
            f"best at {1000 * offset:+,.0f} ms): {effect}"
        )
        found.append(Finding("clock_offset", "warning", symbol, offset, message))
    return found


def clock_offset(at: Ints, logged: Floats, times: Ints, prices: Floats) -> float | None:
    """Return by how many seconds the tape must be read later than the signals to show the prices that they logged.

    The shift of least mean |ln logged − ln tape| within ±10 s, in steps of 20 ms; None where fewer than 50 signals have
    prices, or where no shift fits clearly better (by a third) than none.
    """
    usable = np.isfinite(logged) & (logged > 0) & (at > times[0] + _WIDEST) & (at < times[-1] - _WIDEST)
    at, logs = at[usable], np.log(logged[usable])
    if len(at) < _FEWEST:
        return None
    chosen = np.linspace(0, len(at) - 1, min(len(at), _SAMPLE)).astype(np.int64)
    at, logs, tape = at[chosen], logs[chosen], np.log(prices)
    shifts = np.arange(-_WIDEST, _WIDEST + 1, _STEP)
    errors = np.array(
        [np.abs(logs - tape[np.searchsorted(times, at + shift, side="right") - 1]).mean() for shift in shifts]
    )
    here = errors[len(shifts) // 2]
    if not errors.min() < here * 2 / 3:
        return None
    # Between two prices all shifts fit alike: the middle of those.
    fitting = shifts[errors <= errors.min() + 0.02 * (here - errors.min())]
    best = fitting[np.abs(fitting - shifts[errors.argmin()]) <= _SECOND]
    return float(best.mean()) / _SECOND


def _trade_ids(events: pl.DataFrame) -> list[Finding]:
    """Findings on numbers missing between consecutive trade ids, which an exchange counts up by one."""
    ids = events.filter(pl.col("type") == "MARKET_TRADE").select(
        "symbol", id=pl.col("payload").str.json_path_match("$.tradeId").cast(pl.Int64, strict=False)
    )
    found = []
    for (symbol,), part in ids.drop_nulls().partition_by("symbol", as_dict=True).items():
        steps = np.diff(np.unique(part["id"].to_numpy()))
        gaps = steps[steps > 1] - 1
        # Ids that are mostly apart count something else than this symbol's trades.
        if len(gaps) and len(gaps) < 0.1 * len(steps):
            message = f"{symbol}: {gaps.sum():,} trade ids are missing in {len(gaps):,} places: the capture lost trades"
            found.append(Finding("missing_ids", "note", str(symbol), float(gaps.sum()), message))
    return found


def _overlaps(events: pl.DataFrame) -> list[Finding]:
    """Findings on logged positions of one symbol that overlap: one strategy holds one position at a time."""
    trades = events.filter(pl.col("type") == "EXECUTION_TRADE").select(
        "symbol",
        end=pl.col("timestamp").dt.timestamp("ns"),
        held=pl.col("payload").str.json_path_match("$.durationSeconds").cast(pl.Float64, strict=False),
    )
    found = []
    for (symbol,), part in trades.drop_nulls().partition_by("symbol", as_dict=True).items():
        end = part["end"].to_numpy()
        start = end - np.rint(part["held"].to_numpy() * 1e9).astype(np.int64)
        order = np.lexsort((end, start))
        latest = np.maximum.accumulate(end[order])[:-1]
        overlapping = int((start[order][1:] < latest - 1_000_000).sum())
        if overlapping:
            message = (
                f"{symbol}: {overlapping} of {len(end)} logged positions begin while another is open: the log mixes "
                "two strategies or accounts"
            )
            found.append(Finding("overlapping_positions", "warning", str(symbol), overlapping, message))
    return found


def _start(state: Mapping[str, Any] | None, params: TradingParams | None) -> list[Finding]:
    found = []
    symbols = (state or {}).get("symbols") or {}
    carried = [name for name, entry in symbols.items() if isinstance(entry, Mapping) and entry.get("carried")]
    if carried:
        message = f"positions that were open before the start are carried in: {', '.join(sorted(carried))}"
        found.append(Finding("carried", "note", None, len(carried), message))
    if params is None:
        message = "no parameters were recorded: runs use those of the configuration"
        found.append(Finding("parameters", "note", None, None, message))
    return found


def _imported(gaps: Mapping[str, Any]) -> list[Finding]:
    """Findings on intervals in which the import could not trust the book."""
    found = []
    reasons = {"missing": "update messages are missing from", "crossed": "best bid and ask cross in"}
    for symbol, kinds in gaps.items():
        for what, about in kinds.items():
            count, seconds = int(about["count"]), float(about["seconds"])
            message = (
                f"{symbol}: {reasons.get(what, what)} the imported book in {count:,} intervals, {seconds:.3g} s in "
                f"all, the first at {about['first']}: fills from the book are doubtful there"
            )
            found.append(Finding(f"book_{what}", "note", symbol, seconds, message))
    return found
