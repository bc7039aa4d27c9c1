"""A session packed into arrays: what every combination of a sweep reads, decoded once.

>>> tape = pack(session)                                                                     # doctest: +SKIP
>>> tape.symbols, len(tape.price)                                                            # doctest: +SKIP
(('BTCUSDT',), 199020)

What does not depend on the parameters is settled here: which events make a price, the last regime and
``tradingBlocked`` at each scoring event, the sign of each score. ``docs/model.md`` has the rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import SweepError, did_you_mean
from replaylab.features import InitialState, book_mids, regime_names, risk_flags, scores, trade_columns
from replaylab.sweep.lookup import Lookup, build_lookup

__all__ = ["FORCE", "KINDS", "PRICE", "SCORE", "SessionLike", "Tape", "TapeArrays", "pack"]

Array = npt.NDArray[Any]
PriceSource = str | Mapping[str, str]
SOURCES = ("trade", "book", "score")
# Kinds of ``Tape.order``: its entries are ``symbol · KINDS + kind``. A price part comes before the score of its event.
PRICE, SCORE, FORCE = 0, 1, 2
KINDS = 3


class SessionLike(Protocol):
    """What a sweep needs of a session; ``replaylab.sessions.Session`` has it."""

    @property
    def events(self) -> pl.DataFrame: ...


@dataclass(frozen=True)
class Tape:
    """Arrays by symbol, in event order; the rows of symbol ``s`` are ``x_from[s]:x_from[s + 1]``.

    ``*_index`` are positions in the session's events, ``*_ts`` nanoseconds since 1970. ``score`` is signed (+ LONG),
    ``score_regime`` an index into ``regimes`` (−1: none yet), ``score_blocked`` whether entries are blocked there.
    ``force`` rows are RISK_UPDATEs with ``forceClose``. ``order`` lists all rows of all symbols as they happened.
    """

    symbols: tuple[str, ...]
    regimes: tuple[str, ...]
    sources: tuple[str, ...]
    n_events: int
    price: Array
    price_ts: Array
    price_index: Array
    price_from: Array
    score: Array
    score_ts: Array
    score_index: Array
    score_regime: Array
    score_blocked: Array
    score_from: Array
    force_ts: Array
    force_index: Array
    force_from: Array
    order: Array
    unusable: dict[str, int] = field(default_factory=dict)

    @property
    def span(self) -> tuple[int, int] | None:
        """Times of the first and the last price or score in nanoseconds; None without any."""
        times = [part for part in (self.price_ts, self.score_ts) if len(part)]
        return (int(min(t.min() for t in times)), int(max(t.max() for t in times))) if times else None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays())

    @cached_property
    def lookup(self) -> Lookup:
        """Block minima and maxima and the like: built when first asked for."""
        return build_lookup(self.arrays())

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the lookup, which a worker builds faster than it travels.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def arrays(self) -> TapeArrays:
        """Return the arrays in the form that compiled code takes."""
        return TapeArrays(*(getattr(self, name) for name in TapeArrays._fields))


class TapeArrays(NamedTuple):
    """The arrays of a ``Tape``, under the same names."""

    price: Array
    price_ts: Array
    price_index: Array
    price_from: Array
    score: Array
    score_ts: Array
    score_index: Array
    score_regime: Array
    score_blocked: Array
    score_from: Array
    force_ts: Array
    force_index: Array
    force_from: Array
    order: Array


def pack(
    session: SessionLike | pl.DataFrame,
    price_source: PriceSource = "auto",
    initial_state: Mapping[str, Any] | None = None,
) -> Tape:
    """Return the tape of a session or of an events frame (``timestamp, type, symbol, payload``).

    ``price_source``: "trade", "book", "score", "auto" (the first of these that has usable prices), or a mapping of
    symbols to these. ``initial_state`` defaults to the session's. Symbols without scores are left out. Raises
    SweepError for a symbol that has scores but no prices, and for an unknown source or symbol in ``price_source``.
    """
    events = session if isinstance(session, pl.DataFrame) else session.events
    if initial_state is None:
        initial_state = getattr(session, "initial_state", None)
    return _Packing(events, price_source, initial_state or {}).tape()


class _Packing:
    def __init__(
        self, events: pl.DataFrame, price_source: PriceSource, initial_state: Mapping[str, Any]
    ) -> None:
        if events.height >= 2**31:
            raise SweepError(f"a session of {events.height:,} events is too long: the limit is 2^31")
        self.initial = InitialState.read(initial_state)
        self.n_events = events.height
        self.ts = events["timestamp"].dt.timestamp("ns").to_numpy()
        self.payload = events["payload"]
        names = sorted(set(events["symbol"].unique().drop_nulls().to_list()))
        self.names = names
        self.symbol = _codes(events["symbol"], names)
        kinds = ["MARKET_TRADE", "MARKET_BOOK", "SCORING_UPDATE", "REGIME_UPDATE", "RISK_UPDATE"]
        kind = _codes(events["type"], kinds)
        # Only a RISK_UPDATE may be for every symbol.
        named = self.symbol >= 0
        self.rows = {name: np.flatnonzero((kind == k) & named) for k, name in enumerate(kinds[:4])}
        self.rows["RISK_UPDATE"] = np.flatnonzero(kind == 4)
        self.unusable = {name: int(((kind == k) & ~named).sum()) for k, name in enumerate(kinds[:4])}
        self.wish = _wishes(price_source, names)

    def texts(self, rows: Array) -> list[str]:
        texts: list[str] = self.payload.gather(rows).to_list()
        return texts

    def tape(self) -> Tape:
        rows = self.rows["SCORING_UPDATE"]
        score, score_price = scores(self.texts(rows))
        usable = np.isfinite(score)
        self._count("SCORING_UPDATE", int((~usable & ~(score_price > 0)).sum()))
        scored_symbols = set(np.unique(self.symbol[rows[usable]]).tolist())
        kept = [s for s in range(len(self.names)) if s in scored_symbols]
        prices = self._prices(kept, rows, score_price)
        self._refuse_missing(kept, prices)
        score_rows, score = rows[usable], score[usable]
        by_symbol = [np.flatnonzero(self.symbol[score_rows] == s) for s in kept]
        regimes, regime = self._regimes(kept, [score_rows[part] for part in by_symbol])
        blocked, force = self._risk(kept, [score_rows[part] for part in by_symbol])
        price_rows = [prices[s][1] for s in kept]
        score_parts = [score_rows[part] for part in by_symbol]
        return Tape(
            symbols=tuple(self.names[s] for s in kept),
            regimes=tuple(regimes),
            sources=tuple(prices[s][0] for s in kept),
            n_events=self.n_events,
            price=_join([prices[s][2] for s in kept], np.float64),
            price_ts=_join([self.ts[part] for part in price_rows], np.int64),
            price_index=_join(price_rows, np.int32),
            price_from=_starts(price_rows),
            score=_join([score[part] for part in by_symbol], np.float64),
            score_ts=_join([self.ts[part] for part in score_parts], np.int64),
            score_index=_join(score_parts, np.int32),
            score_regime=_join(regime, np.int32),
            score_blocked=_join(blocked, np.uint8),
            score_from=_starts(score_parts),
            force_ts=_join([self.ts[part] for part in force], np.int64),
            force_index=_join(force, np.int32),
            force_from=_starts(force),
            order=_merge(price_rows, score_parts, force),
            unusable={name: count for name, count in self.unusable.items() if count},
        )

    def _count(self, kind: str, count: int) -> None:
        self.unusable[kind] = self.unusable.get(kind, 0) + count

    def _prices(
        self, kept: list[int], score_rows: Array, score_price: Array
    ) -> dict[int, tuple[str, Array, Array]]:
        """Per symbol: source, event rows, prices."""
        wanted = {self.names[s] for s in kept}
        found: dict[int, tuple[str, Array, Array]] = {}
        trade_rows = self._rows_of("MARKET_TRADE", wanted, ("trade", "auto"))
        trades = trade_columns(self.texts(trade_rows))
        trade_price, off_market = trades.price, trades.off_market
        good = trade_price > 0
        self._count("MARKET_TRADE", int((~good).sum()))
        good &= ~off_market
        for s in kept:
            wish = self.wish[self.names[s]]
            if wish in ("trade", "auto"):
                mine = good & (self.symbol[trade_rows] == s)
                found[s] = ("trade", trade_rows[mine], trade_price[mine])
                if wish == "trade" or mine.any():
                    continue
            if wish in ("book", "auto"):
                rows = self.rows["MARKET_BOOK"]
                rows = rows[self.symbol[rows] == s]
                mid, bad = book_mids(self.texts(rows), self.initial.of(self.names[s]).order_book())
                self._count("MARKET_BOOK", bad)
                has = mid > 0
                found[s] = ("book", rows[has], mid[has])
                if wish == "book" or has.any():
                    continue
            mine = (score_price > 0) & (self.symbol[score_rows] == s)
            found[s] = ("score", score_rows[mine], score_price[mine])
        return found

    def _rows_of(self, kind: str, names: set[str], wishes: tuple[str, ...]) -> Array:
        """Rows of a kind, of the symbols that need it: a capture's books are not decoded for nothing."""
        rows = self.rows[kind]
        needed = np.array([name in names and self.wish[name] in wishes for name in self.names], dtype=bool)
        return rows[needed[self.symbol[rows]]] if len(rows) else rows

    def _refuse_missing(self, kept: list[int], prices: dict[int, tuple[str, Array, Array]]) -> None:
        missing = [self.names[s] for s in kept if not len(prices[s][1])]
        if missing:
            wish = {self.wish[name] for name in missing}
            source = f" from {', '.join(sorted(wish))}" if wish != {"auto"} else ""
            raise SweepError(
                f"no prices{source} in this session for {', '.join(missing)}: a sweep needs them. Build the session "
                'with include_types that hold "MARKET_TRADE" or "MARKET_BOOK", or log SCORING_UPDATEs with a price '
                "and use price_source='score'."
            )

    def _regimes(self, kept: list[int], score_rows: list[Array]) -> tuple[list[str], list[Array]]:
        rows = self.rows["REGIME_UPDATE"]
        names = regime_names(self.texts(rows))
        self._count("REGIME_UPDATE", sum(name is None for name in names))
        start = [self.initial.of(self.names[s]).regime for s in kept]
        regimes = sorted({name for name in (*names, *start) if name is not None})
        code_of = {name: k for k, name in enumerate(regimes)}
        good = np.array([name is not None for name in names], dtype=bool)
        rows = rows[good] if len(rows) else rows
        codes = np.array([code_of[name] for name in names if name is not None], dtype=np.int32)
        parts = []
        for s, at, first in zip(kept, score_rows, start, strict=True):
            mine = self.symbol[rows] == s
            code = -1 if first is None else code_of[first]
            parts.append(_last_before(at, rows[mine], codes[mine], code))
        return regimes, parts

    def _risk(self, kept: list[int], score_rows: list[Array]) -> tuple[list[Array], list[Array]]:
        rows = self.rows["RISK_UPDATE"]
        blocked, force, bad = risk_flags(self.texts(rows))
        self._count("RISK_UPDATE", bad)
        blocked_parts, force_parts = [], []
        for s, at in zip(kept, score_rows, strict=True):
            # A row for every symbol (code −1) is one for this symbol too: the later of both counts.
            mine = (self.symbol[rows] == s) | (self.symbol[rows] < 0)
            says = mine & (blocked >= 0)
            start = self.initial.of(self.names[s]).trading_blocked
            blocked_parts.append(_last_before(at, rows[says], blocked[says], int(start)))
            force_parts.append(rows[mine & force])
        return blocked_parts, force_parts


def _codes(column: pl.Series, names: list[str]) -> Array:
    codes = column.cast(pl.String).replace_strict(
        names, list(range(len(names))), default=-1, return_dtype=pl.Int32
    )
    return codes.fill_null(-1).to_numpy()


def _wishes(price_source: PriceSource, names: list[str]) -> dict[str, str]:
    if isinstance(price_source, str):
        chosen = dict.fromkeys(names, price_source)
    elif not isinstance(price_source, Mapping):
        raise SweepError(
            f"price_source: expected auto, trade, book, score, or a mapping of symbols to these; found {price_source!r}"
        )
    else:
        chosen = {**dict.fromkeys(names, "auto"), **price_source}
        for name in price_source:
            if name not in names:
                raise SweepError(
                    f"price_source names {name!r}, which is not in this session.{did_you_mean(name, names)}"
                )
    for source in {*chosen.values(), *([price_source] if isinstance(price_source, str) else [])}:
        if source not in (*SOURCES, "auto"):
            raise SweepError(
                f"price_source: expected auto, trade, book or score, found {source!r}."
                f"{did_you_mean(str(source), SOURCES)}"
            )
    return chosen


def _last_before(at: Array, rows: Array, values: Array, start: int) -> Array:
    """The last value at a row before each of ``at``; ``start`` where there is none yet."""
    with_start = np.concatenate(([start], values))
    picked: Array = with_start[np.searchsorted(rows, at)]
    return picked


def _join(parts: list[Array], dtype: Any) -> Array:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)


def _starts(parts: list[Array]) -> Array:
    return np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)


def _merge(price_rows: list[Array], score_rows: list[Array], force_rows: list[Array]) -> Array:
    """All rows of all symbols in the order of the session; the price part of an event before its score."""
    rows = _join([*price_rows, *score_rows, *force_rows], np.int64)
    codes = [
        np.full(len(part), s * KINDS + kind, dtype=np.int32)
        for kind, parts in ((PRICE, price_rows), (SCORE, score_rows), (FORCE, force_rows))
        for s, part in enumerate(parts)
    ]
    # Stable, and the parts come as PRICE, SCORE, FORCE: ties of one event stay in that order.
    order: Array = _join(codes, np.int32)[np.argsort(rows, kind="stable")]
    return order
