"""What labels and features read of a session: its decision times, and the prices of each symbol, as arrays.

Decision times are those of the scores, or::

    features(session, at=time_grid(session, "1s"))            # a grid of time, or simply at="1s"
    features(session, at=value_bars(session, 50_000))         # a row whenever 50,000 USD have been traded
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import DatasetError
from replaylab.features import InitialState, SymbolStart, book_mids, pack_market, scores, trade_columns
from replaylab.params import TradingParams
from replaylab.timestamps import period_ns
from replaylab.trading import PRICE_TYPES, formulas, resolve_prices

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
PriceSource = str | Mapping[str, str]
# A longer pause between two prices of a symbol is a hole: the default of TradingParams.
MAX_GAP_S: float | None = TradingParams().max_gap_s
_UTC = pl.Datetime("ns", "UTC")
_NO_PRICES = np.empty(0, dtype=np.int64), np.empty(0)


class SessionLike(Protocol):
    """What features and labels need of a session; ``replaylab.sessions.Session`` has it."""

    @property
    def events(self) -> pl.DataFrame: ...


@dataclass(frozen=True)
class Prices:
    """The price events of one symbol: time in ns, price, position in ``session.events``; all ascending in time."""

    source: str
    ts: Ints
    price: Floats
    index: Ints


@dataclass(frozen=True)
class Decisions:
    """Decision times of one symbol. A decision at ``index`` knows the events up to and including that position.

    ``score`` is the signed score there (nan where there is none); ``row`` the position among all decisions.
    """

    symbol: str
    ts: Ints
    index: Ints
    score: Floats
    row: Ints


def as_polars(frame: Any) -> pl.DataFrame:
    """Return a frame of either library as polars; anything else is refused with DatasetError."""
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if type(frame).__module__.split(".")[0] == "pandas":
        converted: pl.DataFrame = pl.from_pandas(frame)
        return converted
    raise DatasetError(f"expected a polars or pandas frame, found {type(frame).__name__}")


def gap_ns(max_gap_s: float | None) -> int | None:
    """Return the longest pause that is no hole in nanoseconds; None for none. Raises DatasetError."""
    if max_gap_s is None:
        return None
    if not (np.isfinite(max_gap_s) and max_gap_s > 0):
        raise DatasetError(f"max_gap_s: expected seconds above 0 or None, found {max_gap_s!r}")
    return formulas.seconds_to_ns(float(max_gap_s))


def event_times(session: SessionLike) -> Ints:
    """Return the timestamps of all events in nanoseconds; refuses a session that is out of order."""
    ts: Ints = session.events["timestamp"].dt.timestamp("ns").to_numpy()
    if bool((np.diff(ts) < 0).any()):
        raise DatasetError("the session's events are not sorted by time: build the session again")
    return ts


def decisions(
    session: SessionLike, at: str | pl.DataFrame = "scoring", symbols: Sequence[str] | None = None
) -> list[Decisions]:
    """Return decision times by symbol, symbols in the order of their names.

    ``at``: "scoring" (every SCORING_UPDATE), or a frame with ``timestamp`` (or ``t_start``), ``symbol`` and, where a
    decision knows events of its own timestamp too, ``event_index``; without it a decision knows only
    what lies strictly before its timestamp.
    """
    ts, events = event_times(session), session.events
    if isinstance(at, str):
        if at != "scoring":
            raise DatasetError(f"at must be 'scoring' or a frame of decision times, found {at!r}")
        rows = np.flatnonzero((events["type"] == "SCORING_UPDATE").fill_null(False).to_numpy())
        rows = rows[events["symbol"].gather(rows).is_not_null().to_numpy()]
        names, index, moments = events["symbol"].gather(rows), rows.astype(np.int64), ts[rows]
        score, _ = scores(events["payload"].gather(rows).to_list())
    else:
        names, index, moments = _given(as_polars(at), ts)
        score = np.full(len(index), np.nan)
    chosen = sorted(names.unique().to_list()) if symbols is None else sorted(symbols)
    code = names.to_numpy()
    found = []
    for symbol in chosen:
        row = np.flatnonzero(code == symbol)
        order = np.argsort(index[row], kind="stable")
        row = row[order]
        found.append(Decisions(symbol, moments[row], index[row], score[row], row))
    return found


def _given(at: pl.DataFrame, ts: Ints) -> tuple[pl.Series, Ints, Ints]:
    time = "timestamp" if "timestamp" in at.columns else "t_start"
    for name in (time, "symbol"):
        if name not in at.columns:
            raise DatasetError(f"the frame of decision times has no column {name!r}")
    moments: Ints = at[time].cast(_UTC).dt.timestamp("ns").to_numpy()
    if "event_index" not in at.columns:
        return at["symbol"], np.searchsorted(ts, moments, side="left").astype(np.int64) - 1, moments
    index: Ints = at["event_index"].cast(pl.Int64).to_numpy()
    outside = (index < -1) | (index >= len(ts))
    late = ~outside & (index >= 0) & (ts[np.clip(index, 0, max(len(ts) - 1, 0))] > moments)
    if outside.any() or late.any():
        raise DatasetError(
            f"{int(outside.sum())} event_index values lie outside the session and {int(late.sum())} name an event "
            "after their decision time: is the frame of this session?"
        )
    return at["symbol"], index, moments


def prices_by_symbol(
    session: SessionLike, symbols: Sequence[str], price_source: PriceSource = "auto"
) -> dict[str, Prices]:
    """Return the price events of each symbol, by the trading model's rules (``docs/model.md``).

    ``price_source``: "trade", "book" (mid), "score", "auto" (the first of these with usable prices), or a mapping of
    symbols to these. A symbol without prices has empty arrays. Raises PriceError for an unknown source.
    """
    events, ts = session.events, event_times(session)
    initial = InitialState.read(getattr(session, "initial_state", None))
    sources = resolve_prices(session, price_source, initial_state=initial).sources
    found = {}
    for symbol in symbols:
        source = sources.get(symbol)
        rows, price = _NO_PRICES if source is None else _prices(events, symbol, source, initial.of(symbol))
        found[symbol] = Prices(source or "none", ts[rows], price, rows)
    return found


def _prices(events: pl.DataFrame, symbol: str, source: str, start: SymbolStart) -> tuple[Ints, Floats]:
    mine = (events["symbol"] == symbol) & (events["type"] == PRICE_TYPES[source])
    rows = np.flatnonzero(mine.fill_null(value=False).to_numpy()).astype(np.int64)
    payloads = events["payload"].gather(rows).to_list()
    if source == "trade":
        trades = trade_columns(payloads)
        price = np.where(trades.off_market, np.nan, trades.price)
    elif source == "book":
        price, _ = book_mids(payloads, start.order_book())
    else:
        _, price = scores(payloads)
    good = price > 0
    return rows[good], price[good]


def time_grid(session: SessionLike, every: str, symbols: Sequence[str] | None = None) -> pl.DataFrame:
    """Return decision times at whole multiples of ``every`` ("500ms", "1s", "5m", "1h", "1d"), for each symbol.

    Columns ``timestamp, symbol, event_index``. A decision at t knows what lies strictly before t. The grid covers the
    session's time, from the first multiple after its first event. Raises TimeError for another period.
    """
    step = period_ns(every)
    ts = event_times(session)
    names = _symbols(session) if symbols is None else sorted(symbols)
    if not len(ts) or not names:
        return _frame([], [], [])
    grid = np.arange(ts[0] // step + 1, ts[-1] // step + 1, dtype=np.int64) * step
    index = np.searchsorted(ts, grid, side="left") - 1
    times, places = np.repeat(grid, len(names)), np.repeat(index, len(names))
    return _frame(times.tolist(), names * len(grid), places.tolist())


def value_bars(session: SessionLike, usd: float, symbols: Sequence[str] | None = None) -> pl.DataFrame:
    """Return a decision at each trade that completes ``usd`` of traded value (price · quantity) of its symbol.

    Columns ``timestamp, symbol, event_index``; a decision knows that trade. The count starts again from zero at
    each bar: the part of a trade beyond a bar is not carried over.
    """
    if not (np.isfinite(usd) and usd > 0):
        raise DatasetError(f"a bar holds a value above zero, found {usd!r}")
    tapes = pack_market(session.events, symbols=None if symbols is None else list(symbols))
    times: list[int] = []
    names: list[str] = []
    index: list[int] = []
    for symbol, tape in tapes.items():
        trades = tape.kind == 0
        value = np.where(trades, tape.columns[:, 0] * tape.columns[:, 1], 0.0)
        total = 0.0
        for place, amount in zip(np.flatnonzero(trades).tolist(), value[trades].tolist(), strict=True):
            total += amount
            if total >= usd:
                total = 0.0
                times.append(int(tape.ts[place]))
                names.append(symbol)
                index.append(int(tape.index[place]))
    return _frame(times, names, index).sort("event_index", "symbol")


def _symbols(session: SessionLike) -> list[str]:
    # Every symbol that the session has, also one whose first event is still to come at a decision: rows, not values.
    named = session.events["symbol"].drop_nulls().unique().to_list()
    return sorted(str(name) for name in named)


def _frame(times: list[int], names: list[str], index: list[int]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "timestamp": pl.Series(times, dtype=pl.Int64).cast(_UTC),
            "symbol": pl.Series(names, dtype=pl.String),
            "event_index": pl.Series(index, dtype=pl.Int64),
        }
    )
