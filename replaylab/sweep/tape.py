"""A session packed into arrays, which every combination of a sweep reads.

>>> tape = pack(session)                                                                     # doctest: +SKIP
>>> tape.symbols, len(tape.arrays.price)                                                     # doctest: +SKIP
(('BTCUSDT',), 199020)

What does not depend on the parameters is settled here: which events make a price, the last regime and
``tradingBlocked`` at each scoring event, the sign of each score, the book at each price event. The rules:
``docs/model.md``.
"""

from __future__ import annotations

import mmap
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.barriers import build_levels
from replaylab.compiled import compiled
from replaylab.errors import SweepError
from replaylab.features import (
    VISIBLE_LEVELS,
    InitialState,
    TradeColumns,
    regime_names,
    risk_flags,
    scores,
    trade_columns,
    usable_number,
    usable_price,
)
from replaylab.trading import PRICE_TYPES, Instrument, ResolvedPrices, resolve_prices

Array = npt.NDArray[Any]
PriceSource = str | Mapping[str, str]
# Kinds of ``Tape.order``: its entries are ``symbol · KINDS + kind``. A price part comes before the score of its event.
PRICE, SCORE, FORCE, FUNDING = 0, 1, 2, 3
KINDS = 4
# Later than every event.
NEVER = 2**62
# Events that are read at a time, and numbers of a book's levels that are held: they bound memory.
_BLOCK = 65_536
_SPILLED = 131_072
# What a tape is made of.
_TYPES = ("MARKET_TRADE", "MARKET_BOOK", "SCORING_UPDATE", "REGIME_UPDATE", "RISK_UPDATE", "FUNDING")


def layout(**fields: str) -> np.dtype[Any]:
    """Return a record type: names of fields by their type code.

    >>> layout(f8="price qty", i4="state").itemsize
    24
    """
    return np.dtype([(name, code) for code, names in fields.items() for name in names.split()], align=True)


# The book at a price event: best prices and their quantities (NaN while a side is empty), time of the book's last
# usable event, and its levels: rows ``book_from[2·state]`` to ``book_from[2·state + 2]``; state −1: a side is empty.
QUOTE = layout(f8="bid ask bid_qty ask_qty", i8="ts state")
# Quantity that a price event takes out of the queue of an order that sells, and of one that buys, at its price.
FLOW = layout(f8="sells buys")
# A funding settlement. ``mark``: the price that it is settled at, NaN before the first price.
SETTLEMENT = layout(i8="ts index", f8="rate mark")
# A symbol: whether it has a book, its instrument (0: no tick, no lot), end of what it carries in (NEVER: it stays;
# −NEVER: nothing), and the last exit before the session (−NEVER: none).
SYMBOL = layout(i8="has_book carried_until last_exit", f8="tick_num tick_den lot_num lot_den min_notional")
# What happens to carried positions of any symbol, in order: a part of realised PnL, or (``release``) a position's end.
# ``index``: the first event at or after that time.
CARRIED = layout(i8="ts index release", f8="pnl")
# The account before the session: carried positions, the UTC day (−1: unknown) with its realised PnL, the lowest that
# this was, and the day's entries; and the time of the session's last event.
START = layout(i8="open day entries last_ts", f8="pnl lowest")


class SessionLike(Protocol):
    """What a sweep needs of a session; ``replaylab.sessions.Session`` has it.

    ``initial_state``, ``instruments``, ``path`` and ``digest`` are read where there are any.
    """

    @property
    def events(self) -> pl.DataFrame: ...


class TapeArrays(NamedTuple):
    """Arrays by symbol, in event order; the rows of symbol ``s`` are ``x_from[s]:x_from[s + 1]``.

    ``*_index`` are positions in the session's events, ``*_ts`` nanoseconds since 1970. ``score`` is signed (+ LONG),
    ``score_regime`` an index into ``regimes`` (−1: none yet), ``score_blocked`` whether entries are blocked there.
    ``force`` rows are RISK_UPDATEs with ``forceClose``. ``order`` lists all rows of all symbols as they happened.
    ``quote`` and ``score_quote`` have a row per price and per score, ``flow`` a row per price; they are empty where no
    symbol has a book, or none has its prices from trades.
    """

    price: Array
    price_ts: Array
    price_index: Array
    price_from: Array
    quote: Array
    flow: Array
    score: Array
    score_ts: Array
    score_index: Array
    score_regime: Array
    score_blocked: Array
    score_from: Array
    score_quote: Array
    force_ts: Array
    force_index: Array
    force_from: Array
    funding: Array
    funding_from: Array
    order: Array
    symbol: Array
    carried: Array
    start: Array
    book_levels: Array
    book_from: Array


DTYPES: dict[str, Any] = {
    **dict.fromkeys(("price", "score", "book_levels"), np.float64),
    **dict.fromkeys(("price_ts", "score_ts", "force_ts"), np.int64),
    **dict.fromkeys(("price_from", "score_from", "force_from", "funding_from", "book_from"), np.int64),
    **dict.fromkeys(("price_index", "score_index", "force_index", "score_regime", "order"), np.int32),
    "score_blocked": np.uint8,
    "quote": QUOTE,
    "flow": FLOW,
    "score_quote": QUOTE,
    "funding": SETTLEMENT,
    "symbol": SYMBOL,
    "carried": CARRIED,
    "start": START,
}


@dataclass(frozen=True)
class Tape:
    """The arrays of a session, and what names them. ``prices``: sources and books of all symbols with a price event.

    ``unusable`` counts events without the field that they need, by type.
    """

    symbols: tuple[str, ...]
    regimes: tuple[str, ...]
    prices: ResolvedPrices
    instruments: dict[str, dict[str, Any]]
    n_events: int
    unusable: dict[str, int]
    arrays: TapeArrays

    def __post_init__(self) -> None:
        # Packed, mapped or unpickled: kernels are compiled for one type, and nothing writes into a tape.
        for column in self.arrays:
            column.setflags(write=False)

    @property
    def sources(self) -> tuple[str, ...]:
        """The price source of each symbol."""
        return tuple(self.prices.sources[name] for name in self.symbols)

    @property
    def span(self) -> tuple[int, int] | None:
        """Times of the first and the last price or score in nanoseconds; None without any."""
        times = [part for part in (self.arrays.price_ts, self.arrays.score_ts) if len(part)]
        return (int(min(t.min() for t in times)), int(max(t.max() for t in times))) if times else None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    @cached_property
    def lookup(self) -> Lookup:
        """What the chain kernel reads of a tape in addition: built at the first use."""
        return build_lookup(self.arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the lookup, which a worker builds faster than it travels.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))


def pack(
    session: SessionLike | pl.DataFrame,
    price_source: PriceSource = "auto",
    initial_state: Mapping[str, Any] | None = None,
) -> Tape:
    """Return the tape of a session or of an events frame (``timestamp, type, symbol, payload``).

    ``price_source``: see ``trading.resolve_prices``. ``initial_state`` defaults to the session's. Symbols without
    scores are left out. A session on disk is read twice, in blocks (``Session.event_blocks``), so that the memory is
    that of its arrays; the levels of books lie in a temporary file, mapped into memory. Raises PriceError for a symbol
    that has scores but no prices and for an unknown source or symbol in ``price_source``, SessionError for a malformed
    initial state or events that change meanwhile, SweepError for a session that is too long.
    """
    if initial_state is None:
        initial_state = getattr(session, "initial_state", None)
    return _Packing(session, price_source, initial_state).tape()


def instruments_of(session: Any) -> dict[str, dict[str, Any]]:
    found = getattr(session, "instruments", None) or {}
    return {str(name): dict(entry) for name, entry in found.items() if isinstance(entry, Mapping)}


class _Packing:
    """One session on its way into arrays: two passes over its blocks, of which one is in memory at a time.

    The first pass reads what every symbol has: times, scores, and the rare events. Only then is it known where prices
    come from; the second pass reads trades and books of the symbols that are kept, those with a usable score.
    """

    def __init__(
        self, session: SessionLike | pl.DataFrame, price_source: PriceSource, initial_state: Any
    ) -> None:
        self.session = session
        self.initial = InitialState.read(initial_state)
        self.instruments = instruments_of(session)
        self.unusable = dict.fromkeys(_TYPES, 0)
        self.codes: dict[str, int] = {}
        self.regimes: dict[str, int] = {}
        # How many events there are of a type and a symbol.
        self.counts: Counter[tuple[str, int]] = Counter()
        # By type: event rows, symbols, and what their payloads hold.
        self.read: dict[str, list[tuple[Array, ...]]] = {name: [] for name in _TYPES[2:]}
        times: list[Array] = []
        self.prices = resolve_prices(self._first(times), price_source, initial_state=initial_state)
        self.ts = _join(times, np.int64)

    def tape(self) -> Tape:
        rows, symbol, score, score_price = self._columns("SCORING_UPDATE", np.float64, np.float64)
        usable = np.isfinite(score)
        self._count("SCORING_UPDATE", int((~usable).sum()))
        names = {code: name for name, code in self.codes.items()}
        kept = sorted(np.unique(symbol[usable]).tolist(), key=names.__getitem__)
        self.prices.require(names[s] for s in kept)
        by_symbol = [np.flatnonzero(usable & (symbol == s)) for s in kept]
        at_scores = [rows[part] for part in by_symbol]
        sources = [self.prices.sources[names[s]] for s in kept]
        with_book = any(names[s] in self.prices.books for s in kept)
        # Room for each event that can be a price: parts that are joined later would take twice the memory.
        room = np.cumsum([0, *(self.counts[PRICE_TYPES[by], s] for by, s in zip(sources, kept, strict=True))])
        kinds = {"rows": np.int32, "price": np.float64, "flow": FLOW, "quote": QUOTE}
        present = {"flow": "trade" in sources, "quote": with_book}
        whole = {name: np.empty(room[-1] * present.get(name, True), kind) for name, kind in kinds.items()}
        found = []
        for k, (s, at) in enumerate(zip(kept, at_scores, strict=True)):
            parts = {name: column[room[k] : room[k + 1]] for name, column in whole.items()}
            one = _Followed(names[s], self.prices, self.initial.of(names[s]), self.ts, at, parts)
            if one.source == "score":
                good = (score_price > 0) & (symbol == s)
                one.add_prices(rows[good], score_price[good])
            found.append(one)
        self._second(kept, found, with_book=with_book)
        levels, book_from = _joined_levels(found)
        price_from = np.cumsum([0, *(one.n for one in found)])
        whole = {name: _close_up(column, room, price_from) for name, column in whole.items()}
        index, price = whole["rows"], whole["price"]
        at_prices, prices = np.split(index, price_from[1:-1]), np.split(price, price_from[1:-1])
        regimes, regime = self._regimes(kept, at_scores)
        blocked, force = self._risk(kept, at_scores)
        funding = [self._funding(*each) for each in zip(kept, at_prices, prices, strict=False)]
        carried, start = self._carried()
        arrays = TapeArrays(
            price=price,
            price_ts=self.ts[index],
            price_index=index,
            price_from=price_from.astype(np.int64),
            quote=whole["quote"],
            flow=whole["flow"],
            score=_join([score[part] for part in by_symbol], np.float64),
            score_ts=_join([self.ts[part] for part in at_scores], np.int64),
            score_index=_join(at_scores, np.int32),
            score_regime=_join(regime, np.int32),
            score_blocked=_join(blocked, np.uint8),
            score_from=_starts(at_scores),
            score_quote=_join([part for one in found for part in one.score_quotes], QUOTE),
            force_ts=_join([self.ts[part] for part in force], np.int64),
            force_index=_join(force, np.int32),
            force_from=_starts(force),
            funding=_join(funding, SETTLEMENT),
            funding_from=_starts(funding),
            order=_merge(at_prices, at_scores, force, [part["index"] for part in funding]),
            symbol=_join([self._symbol(one.name) for one in found], SYMBOL),
            carried=carried,
            start=start,
            book_levels=levels,
            book_from=book_from,
        )
        return Tape(
            symbols=tuple(one.name for one in found),
            regimes=tuple(regimes),
            prices=self.prices,
            instruments=self.instruments,
            n_events=len(self.ts),
            unusable={name: count for name, count in self.unusable.items() if count},
            arrays=arrays,
        )

    def _blocks(self) -> Iterator[pl.DataFrame]:
        given: Any = self.session
        if isinstance(given, pl.DataFrame):
            blocks: Iterable[pl.DataFrame] = (given,)
        else:
            blocks = given.event_blocks() if hasattr(given, "event_blocks") else (given.events,)
        for block in blocks:
            yield from block.iter_slices(_BLOCK)

    def _first(self, times: list[Array]) -> Iterator[pl.DataFrame]:
        """The first pass; hands the blocks on to what resolves the price sources."""
        start = 0
        for block in self._blocks():
            if start + block.height >= 2**31:
                raise SweepError(
                    f"a session of {start + block.height:,} events is too long: the limit is 2^31"
                )
            times.append(_times(block))
            symbol, kind = self._coded(block)
            named = symbol >= 0
            # Only a RISK_UPDATE may be for every symbol.
            everyone = (kind == _TYPES.index("RISK_UPDATE")) & block["symbol"].is_null().to_numpy()
            for k, name in enumerate(_TYPES):
                self._count(name, int(((kind == k) & ~named & ~everyone).sum()))
                rows = np.flatnonzero((kind == k) & (named | everyone))
                for s, count in zip(*np.unique(symbol[rows], return_counts=True), strict=True):
                    self.counts[name, int(s)] += int(count)
                if name in self.read and len(rows):
                    texts = block["payload"].gather(rows).to_list()
                    values = self._values(name, texts)
                    self.read[name].append(((rows + start).astype(np.int32), symbol[rows], *values))
            start += block.height
            yield block

    def _second(self, kept: list[int], found: list[_Followed], *, with_book: bool) -> None:
        """The second pass, where a symbol needs it."""
        start = 0
        if with_book or any(one.source == "trade" for one in found):
            for block in self._blocks():
                end = start + block.height
                if not np.array_equal(_times(block), self.ts[start:end]):
                    raise SweepError("the session changed while it was read: run this again")
                symbol, kind = self._coded(block)
                for s, one in zip(kept, found, strict=True):
                    if one.source == "trade":
                        rows = np.flatnonzero((symbol == s) & (kind == _TYPES.index("MARKET_TRADE")))
                        trades = trade_columns(block["payload"].gather(rows).to_list())
                        self._count("MARKET_TRADE", one.add_trades(rows + start, trades))
                    if with_book:
                        mine = (symbol == s) & (kind == _TYPES.index("MARKET_BOOK")) & one.has_book
                        rows = np.flatnonzero(mine)
                        texts = block["payload"].gather(rows).to_list()
                        self._count("MARKET_BOOK", one.follow(rows + start, texts, end))
                start = end

    def _coded(self, block: pl.DataFrame) -> tuple[Array, Array]:
        """Symbol and type of each row by number, −1: none that counts."""
        for name in block["symbol"].unique().drop_nulls().sort().to_list():
            if name:
                self.codes.setdefault(str(name), len(self.codes))
        return _codes(block["symbol"], list(self.codes)), _codes(block["type"], list(_TYPES))

    def _values(self, kind: str, texts: list[str]) -> tuple[Array, ...]:
        """What the first pass keeps of payloads."""
        if kind == "SCORING_UPDATE":
            return scores(texts)
        if kind == "RISK_UPDATE":
            return risk_flags(texts)[:2]
        if kind == "FUNDING":
            payloads = [_decoded(text) for text in texts]
            rates = [usable_number(payload.get("fundingRate")) for payload in payloads]
            marks = [usable_price(payload.get("markPrice")) for payload in payloads]
            return np.array(rates, dtype=np.float64), np.array(marks, dtype=np.float64)
        names = regime_names(texts)
        self._count(kind, sum(name is None for name in names))
        codes = [-1 if name is None else self.regimes.setdefault(name, len(self.regimes)) for name in names]
        return (np.array(codes, dtype=np.int32),)

    def _columns(self, name: str, *kinds: Any) -> list[Array]:
        """Event rows, symbols and values of a type that the first pass read."""
        parts, types = self.read.pop(name), (np.int32, np.int32, *kinds)
        return [_join([part[k] for part in parts], kind) for k, kind in enumerate(types)]

    def _count(self, kind: str, count: int) -> None:
        self.unusable[kind] += count

    def _regimes(self, kept: list[int], score_rows: list[Array]) -> tuple[list[str], list[Array]]:
        rows, symbol, code = self._columns("REGIME_UPDATE", np.int32)
        names = {number: name for name, number in self.codes.items()}
        start = [self.initial.of(names[s]).regime for s in kept]
        regimes = sorted({*self.regimes, *(name for name in start if name is not None)})
        code_of = {name: k for k, name in enumerate(regimes)}
        # By the number that the first pass gave; the last is that of no name.
        sorted_code = np.array([*(code_of[name] for name in self.regimes), -1], dtype=np.int32)
        parts = []
        for s, at, first in zip(kept, score_rows, start, strict=True):
            mine = (symbol == s) & (code >= 0)
            last = -1 if first is None else code_of[first]
            parts.append(_last_before(at, rows[mine], sorted_code[code[mine]], last))
        return regimes, parts

    def _risk(self, kept: list[int], score_rows: list[Array]) -> tuple[list[Array], list[Array]]:
        rows, symbol, blocked, force = self._columns("RISK_UPDATE", np.int8, np.bool_)
        names = {number: name for name, number in self.codes.items()}
        blocked_parts, force_parts = [], []
        for s, at in zip(kept, score_rows, strict=True):
            # A row for every symbol (code −1) is one for this symbol too: the later of both counts.
            mine = (symbol == s) | (symbol < 0)
            set_here = mine & (blocked >= 0)
            start = self.initial.of(names[s]).trading_blocked
            blocked_parts.append(_last_before(at, rows[set_here], blocked[set_here], int(start)))
            force_parts.append(rows[mine & force])
        return blocked_parts, force_parts

    def _funding(self, s: int, price_rows: Array, price: Array) -> Array:
        rows, symbol, rate, mark = self._settlements
        mine = symbol == s
        rows, rate, mark = rows[mine], rate[mine], mark[mine]
        good = np.isfinite(rate)
        self._count("FUNDING", int((~good).sum()))
        settled = np.empty(len(rows), dtype=SETTLEMENT)
        settled["ts"], settled["index"], settled["rate"] = self.ts[rows], rows, rate
        settled["mark"] = np.where(np.isnan(mark), _last_before(rows, price_rows, price, np.nan), mark)
        usable: Array = settled[good]
        return usable

    @cached_property
    def _settlements(self) -> list[Array]:
        return self._columns("FUNDING", np.float64, np.float64)

    def _symbol(self, name: str) -> Array:
        start = self.initial.of(name)
        known = Instrument.read(self.instruments.get(name))
        until = -NEVER
        if start.carried is not None:
            until = NEVER if start.carried.closed_ns is None else start.carried.closed_ns
        last = -NEVER if start.last_exit_ns is None else start.last_exit_ns
        row = (name in self.prices.books, until, last, *known.tick, *known.lot, known.min_notional_usd)
        return np.array([row], dtype=SYMBOL)

    def _carried(self) -> tuple[Array, Array]:
        """Return what happens to carried positions, and the account before the session."""
        changes = []
        opened = 0
        for start in self.initial.symbols.values():
            if start.carried is None:
                continue
            opened += 1
            changes += [(part.ns, 0, part.realized_pnl) for part in start.carried.parts]
            if start.carried.closed_ns is not None:
                changes.append((start.carried.closed_ns, 1, 0.0))
        changes.sort(key=lambda change: change[0])
        carried = np.zeros(len(changes), dtype=CARRIED)
        for k, (ts, *change) in enumerate(changes):
            carried[k] = (ts, np.searchsorted(self.ts, ts), *change)
        account = self.initial.account
        last = int(self.ts[-1]) if len(self.ts) else 0
        row: tuple[float, ...] = (opened, -1, 0, last, 0.0, 0.0)
        if account is not None:
            pnl, lowest = account.realized_pnl, account.lowest_realized_pnl
            row = (opened, account.day, account.entries, last, pnl, lowest)
        return carried, np.array([row], dtype=START)


class _Followed:
    """The prices of a symbol, and its book at each price and each score, as the blocks come by."""

    def __init__(
        self,
        name: str,
        prices: ResolvedPrices,
        start: Any,
        ts: Array,
        at_scores: Array,
        columns: dict[str, Array],
    ) -> None:
        self.name = name
        self.source = prices.sources[name]
        self.has_book = name in prices.books
        self.levels = _Levels()
        # Price events: n of them, of which the first ``_quoted`` have their quote.
        self.columns, self.n, self._quoted = columns, 0, 0
        self.score_quotes: list[Array] = []
        self._ts, self._at_scores = ts, at_scores
        self._book = start.order_book()
        self._book_ts = -NEVER if start.book is None or not len(ts) else int(ts[0])
        # None until it is needed: most states of a book are at no price.
        self._quote: tuple[Any, ...] | None = self.levels.quote(self._book, self._book_ts)

    def add_prices(self, rows: Array, price: Array, flow: Array | None = None) -> None:
        """Add price events."""
        here = slice(self.n, self.n + len(rows))
        self.columns["rows"][here] = rows
        self.columns["price"][here] = price
        if len(self.columns["flow"]):
            self.columns["flow"][here] = np.zeros((), FLOW) if flow is None else flow
        self.n += len(rows)

    def add_trades(self, rows: Array, trades: TradeColumns) -> int:
        """Add the prices of trades; returns how many have none."""
        good = (trades.price > 0) & ~trades.off_market
        qty = np.where(trades.qty > 0.0, trades.qty, 0.0)[good]
        flow = np.empty(len(qty), dtype=FLOW)
        flow["sells"] = np.where(trades.sign[good] < 0.0, 0.0, qty)
        flow["buys"] = np.where(trades.sign[good] > 0.0, 0.0, qty)
        self.add_prices(rows[good], trades.price[good], flow)
        return int((~(trades.price > 0) & ~trades.off_market).sum())

    def follow(self, rows: Array, payloads: list[str], end: int) -> int:
        """Follow the book up to the event ``end``; returns how many of its events are unusable.

        Adds the quote at each price and score on the way; where the prices are the book's mids, these prices.
        """
        from_book = self.source == "book"
        waiting, n_scores = self.columns["rows"][self._quoted : self.n], np.searchsorted(self._at_scores, end)
        at_prices = rows if from_book else waiting[: np.searchsorted(waiting, end)]
        wanted = np.concatenate((at_prices, self._at_scores[:n_scores]))
        self._at_scores = self._at_scores[n_scores:]
        # The quote after each event of the book; first that before them.
        first = np.searchsorted(rows, wanted, side="right")
        needed = np.zeros(len(rows) + 1, dtype=bool)
        needed[first] = True
        after = np.empty(len(rows) + 1, dtype=QUOTE)
        usable = np.zeros(len(rows) + 1, dtype=bool)
        if needed[0]:
            self._quote = after[0] = self._quote or self.levels.quote(self._book, self._book_ts)
        for k, (ts, payload) in enumerate(zip(self._ts[rows].tolist(), payloads, strict=True), 1):
            if self._book.apply(_decoded(payload)):
                usable[k] = True
                self._book_ts = ts
            self._quote = None
            if needed[k]:
                self._quote = after[k] = self.levels.quote(self._book, self._book_ts)
        quotes, score_quotes = np.split(after[first], [len(at_prices)])
        self.score_quotes.append(score_quotes)
        if from_book:
            mid = (quotes["bid"] + quotes["ask"]) / 2.0
            good = usable[1:] & np.isfinite(mid)
            self.add_prices(rows[good], mid[good])
            quotes = quotes[good]
        self.columns["quote"][self._quoted : self._quoted + len(quotes)] = quotes
        self._quoted += len(quotes)
        return len(rows) - int(usable.sum())


class _Levels:
    """Collects the visible levels of a book, each state once, in a temporary file."""

    def __init__(self) -> None:
        self.file: Any = None
        self.waiting = array("d")
        self.starts = array("q", [0])
        self._last: Any = None

    def quote(self, book: Any, ts: int) -> tuple[float, float, float, float, int, int]:
        """Return the QUOTE of a book, whose levels are kept if they are not those of the last one."""
        bids, asks = book.top(VISIBLE_LEVELS)
        if not bids or not asks:
            return (np.nan, np.nan, np.nan, np.nan, ts, -1)
        if (bids, asks) != self._last:
            self._last = (bids, asks)
            for side in self._last:
                for level in side:
                    self.waiting.extend(level)
                self.starts.append(self.starts[-1] + len(side))
            if len(self.waiting) > _SPILLED:
                self.file = self.file or tempfile.TemporaryFile()  # noqa: SIM115 - closed with the last reference
                self.file.write(self.waiting)
                self.waiting = array("d")
        return (bids[0][0], asks[0][0], bids[0][1], asks[0][1], ts, len(self.starts) // 2 - 1)


def _joined_levels(found: list[_Followed]) -> tuple[Array, Array]:
    """Return ``book_levels`` (price, quantity, price, ...) and ``book_from`` (the row where each side begins).

    States are counted over all symbols: those in the quotes are changed.
    """
    starts, rows = [np.zeros(1, np.int64)], 0
    for one in found:
        base = sum(map(len, starts)) // 2
        for quotes in (one.columns["quote"][: one.n], *one.score_quotes):
            quotes["state"] += np.where(quotes["state"] >= 0, base, 0)
        own = np.frombuffer(one.levels.starts, np.int64)
        starts.append(own[1:] + rows)
        rows += int(own[-1])
    if all(one.levels.file is None for one in found):
        levels = _join([np.frombuffer(one.levels.waiting) for one in found], np.float64)
        return levels, np.concatenate(starts)
    with tempfile.TemporaryFile() as file:
        for one in found:
            if one.levels.file is not None:
                one.levels.file.seek(0)
                shutil.copyfileobj(one.levels.file, file, 1 << 20)
                one.levels.file.close()
            file.write(one.levels.waiting)
        file.flush()
        # The map keeps the file.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype=np.float64), np.concatenate(starts)


def _decoded(payload: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(payload)
    except (msgspec.DecodeError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _codes(column: pl.Series, names: list[str]) -> Array:
    codes = column.cast(pl.String).replace_strict(
        names, list(range(len(names))), default=-1, return_dtype=pl.Int32
    )
    return codes.fill_null(-1).to_numpy()


def _times(block: pl.DataFrame) -> Array:
    return block["timestamp"].dt.timestamp("ns").to_numpy()


def _last_before(at: Array, rows: Array, values: Array, start: float) -> Array:
    """The last value at a row before each of ``at``; ``start`` where there is none yet."""
    with_start = np.concatenate(([start], values))
    picked: Array = with_start[np.searchsorted(rows, at)]
    return picked


def _join(parts: list[Array], dtype: Any) -> Array:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)


def _starts(parts: list[Array]) -> Array:
    return np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)


def _close_up(column: Array, room: Array, places: Array) -> Array:
    """Move the parts of a column, each at the start of its room, to where one ends at the next one's start."""
    for k in range(len(room) - 1):
        length = places[k + 1] - places[k]
        if len(column) and room[k] != places[k]:
            column[places[k] : places[k + 1]] = column[room[k] : room[k] + length]
    return column[: places[-1]]


def _merge(*rows_of: list[Array]) -> Array:
    """All rows of all symbols, by kind, in the order of the session; the price part of an event before its score."""
    rows = _join([part for parts in rows_of for part in parts], np.int32)
    codes = [s * KINDS + kind for kind, parts in enumerate(rows_of) for s in range(len(parts))]
    # Stable, and the parts come by kind: ties of one event stay in that order.
    order = np.argsort(rows, kind="stable")
    return np.repeat(np.array(codes, np.int32), [len(part) for parts in rows_of for part in parts])[order]


# What a chain reads of one price event, together: one trip to memory. ``next_score``: the first score at or after it.
TICK = layout(f8="price", i8="ts", i4="index next_score")


class Lookup(NamedTuple):
    """Price events in one piece, block maxima and minima of prices and scores, and per score the price after it.

    ``pauses``: ns since the symbol's price event before. ``all_ts`` and ``all_index`` are those of the scores of all
    symbols together.
    """

    ticks: Array
    pauses: Array
    score_after: Array
    price_high: Array
    price_low: Array
    price_offsets: Array
    score_high: Array
    score_low: Array
    score_offsets: Array
    all_ts: Array
    all_index: Array


def build_lookup(tape: TapeArrays) -> Lookup:
    """Return the lookup of a tape's arrays."""
    ticks = np.empty(len(tape.price), dtype=TICK)
    after = np.empty(len(tape.score), dtype=np.int32)
    _follow(tape, ticks, after)
    order = np.argsort(tape.score_index)
    pauses = np.diff(tape.price_ts, prepend=tape.price_ts[:1])
    pauses[tape.price_from[:-1][tape.price_from[:-1] < len(pauses)]] = 0
    prices, found = build_levels(tape.price), build_levels(tape.score)
    return Lookup(ticks, pauses, after, *prices, *found, tape.score_ts[order], tape.score_index[order])


@compiled
def _follow(tape: Any, ticks: Any, after: Any) -> None:
    """One walk along prices and scores of each symbol."""
    for k in range(len(tape.price_from) - 1):
        c = tape.score_from[k]
        last = tape.score_from[k + 1]
        end = tape.price_from[k + 1]
        waiting = c
        for x in range(tape.price_from[k], end):
            index = tape.price_index[x]
            while c < last and tape.score_index[c] < index:
                c += 1
            # A score at a price event's own index comes after that price.
            while waiting < c:
                after[waiting] = x
                waiting += 1
            ticks[x].price = tape.price[x]
            ticks[x].ts = tape.price_ts[x]
            ticks[x].index = index
            ticks[x].next_score = c
        while waiting < last:
            after[waiting] = end
            waiting += 1
