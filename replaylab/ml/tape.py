"""What labels and features read of a session: its decision times, and the prices of each symbol, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import DatasetError, did_you_mean
from replaylab.features import InitialState, SymbolStart, book_mids, scores, trade_columns

__all__ = ["Decisions", "Prices", "SessionLike", "as_polars", "decisions", "event_times", "prices_by_symbol"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
PriceSource = str | Mapping[str, str]
_SOURCES = ("trade", "book", "score")


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
    moments: Ints = at[time].cast(pl.Datetime("ns", "UTC")).dt.timestamp("ns").to_numpy()
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
    symbols to these. A symbol without prices has empty arrays. Raises DatasetError for an unknown source.
    """
    events, ts = session.events, event_times(session)
    initial = InitialState.read(getattr(session, "initial_state", None))
    found = {}
    for symbol in symbols:
        wish = price_source if isinstance(price_source, str) else price_source.get(symbol, "auto")
        if wish not in ("auto", *_SOURCES):
            raise DatasetError(f"no price source {wish!r}.{did_you_mean(str(wish), ('auto', *_SOURCES))}")
        mine = (events["symbol"] == symbol).fill_null(False)
        for source in _SOURCES if wish == "auto" else (wish,):
            rows, price = _prices(events, mine, source, initial.of(symbol))
            if len(rows):
                break
        else:
            source, rows, price = wish, np.empty(0, dtype=np.int64), np.empty(0)
        found[symbol] = Prices(source, ts[rows], price, rows)
    return found


def _prices(events: pl.DataFrame, mine: pl.Series, source: str, start: SymbolStart) -> tuple[Ints, Floats]:
    kind = {"trade": "MARKET_TRADE", "book": "MARKET_BOOK", "score": "SCORING_UPDATE"}[source]
    rows = np.flatnonzero((mine & (events["type"] == kind)).fill_null(False).to_numpy()).astype(np.int64)
    texts = events["payload"].gather(rows).to_list()
    if source == "trade":
        trades = trade_columns(texts)
        price, good = trades.price, (trades.price > 0) & ~trades.off_market
    elif source == "book":
        price, _ = book_mids(texts, start.order_book())
        good = price > 0
    else:
        _, price = scores(texts)
        good = price > 0
    return rows[good], price[good]
