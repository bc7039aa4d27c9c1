"""A session packed into arrays, which every combination of a sweep reads, and their memory-mapped cache.

>>> tape = open_tape(session, cache_dir=lab.config.cache_path)                                # doctest: +SKIP
>>> tape.symbols, len(tape.price)                                                            # doctest: +SKIP
(('BTCUSDT',), 199020)

What does not depend on the parameters is settled here: which events make a price, the last regime and
``tradingBlocked`` at each scoring event, the sign of each score, the book at each price event. The rules:
``docs/model.md``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
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
    regime_names,
    risk_flags,
    scores,
    trade_columns,
    usable_number,
    usable_price,
)
from replaylab.sweep.tape_file import check_ranges, is_checked, read_arrays, set_checked, write_arrays
from replaylab.trading import Instrument, ResolvedPrices, resolve_prices

Array = npt.NDArray[Any]
PriceSource = str | Mapping[str, str]
# Kinds of ``Tape.order``: its entries are ``symbol · KINDS + kind``. A price part comes before the score of its event.
PRICE, SCORE, FORCE, FUNDING = 0, 1, 2, 3
KINDS = 4
# Counts changes of what is packed.
_FORMAT = 4
# A cached tape that was not used for this long is deleted.
_KEPT_S = 30 * 86_400
# Later than every event.
NEVER = 2**62
# Payloads that are decoded at a time: bounds memory.
_BLOCK = 8192
_log = logging.getLogger("replaylab.sweep")


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


_DTYPES: dict[str, Any] = {
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
        for array in self.arrays:
            array.setflags(write=False)

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


@dataclass(frozen=True)
class TapeRef:
    """Names a tape: ``key`` is the digest of what it was packed from, ``path`` the file that holds it, if any."""

    key: str
    path: Path | None = None

    @property
    def book_path(self) -> Path:
        """The file of the book's levels."""
        assert self.path is not None
        return self.path.with_suffix(".book.arrow")


def open_tape(
    session: SessionLike | pl.DataFrame,
    price_source: PriceSource = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Tape, TapeRef | None]:
    """Return the tape of a session and the reference of its file, None where there is no file.

    A session with ``path`` and ``digest`` is packed once: later calls map ``cache_dir/tapes/<name>.arrow`` into memory
    as long as the digest of its events, its initial state, its instruments and the price source are the same. An events
    frame is packed at every call, as everything is with ``cache_dir=None``. Raises what ``pack`` raises.
    """
    path, digest = getattr(session, "path", None), getattr(session, "digest", None)
    if cache_dir is None or not isinstance(digest, str) or not isinstance(path, (str, os.PathLike)):
        return pack(session, price_source), None
    source = price_source if isinstance(price_source, str) else sorted(price_source.items())
    about = [_FORMAT, digest, source, getattr(session, "initial_state", None), _instruments(session)]
    key = hashlib.sha256(msgspec.json.encode(about, order="sorted")).hexdigest()
    # One file for each session and price source: a session that changed replaces its own.
    name = hashlib.sha256(repr((os.fspath(path), source)).encode()).hexdigest()[:20]
    ref = TapeRef(key, Path(cache_dir) / "tapes" / f"{name}.arrow")
    tape = read_tape(ref)
    if tape is None:
        tape = pack(session, price_source)
        try:
            _write(ref, tape)
        except OSError as error:
            _log.info("%s: the packed session cannot be cached: %s", ref.path, error)
            return tape, None
        # The mapped file in place of memory.
        tape = read_tape(ref) or tape
    return tape, ref


def read_tape(ref: TapeRef) -> Tape | None:
    """Return the tape of a reference, mapped into memory; None if a file is missing, damaged or of another key."""
    if ref.path is None:
        return None
    arrays: dict[str, Array] = {}
    paths = (ref.path, ref.book_path)
    try:
        checked = all(is_checked(path) for path in paths)
        for path in paths:
            encoded, some = read_arrays(path, _DTYPES)
            header = _HEADER.decode(encoded)
            if header.key != ref.key:
                return None
            arrays |= some
        prices = ResolvedPrices(header.sources, frozenset(header.books), header.chosen)
        tape = Tape(
            header.symbols,
            header.regimes,
            prices,
            header.instruments,
            header.n_events,
            header.unusable,
            TapeArrays(**arrays),
        )
        if not checked:
            if len(tape.symbols) != len(tape.arrays.symbol) or not 0 <= tape.n_events < 2**31:
                return None
            with_flow = "trade" in tape.sources
            check_ranges(tape.arrays, KINDS, tape.n_events, len(tape.regimes), with_flow=with_flow)
        for path in paths:
            # Written at most once a day: what is remembered of a checked file holds while its times do.
            if time.time() - path.stat().st_mtime > 86_400:
                os.utime(path)
                checked = False
            if not checked:
                set_checked(path)
        return tape
    except (OSError, ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        if not isinstance(error, FileNotFoundError):
            _log.info("%s: the packed session is made again: %s", ref.path, error)
        return None


class _Header(msgspec.Struct):
    key: str
    symbols: tuple[str, ...]
    regimes: tuple[str, ...]
    sources: dict[str, str]
    books: list[str]
    chosen: str | dict[str, str]
    instruments: dict[str, dict[str, Any]]
    n_events: int
    unusable: dict[str, int]


# Made while the module is imported: msgspec completes a type at its first use, for which threads must not compete.
_HEADER = msgspec.json.Decoder(_Header)


def _write(ref: TapeRef, tape: Tape) -> None:
    """Write a tape; the levels of books have a file of their own. Raises OSError."""
    assert ref.path is not None
    prices = tape.prices
    header = _Header(
        ref.key,
        tape.symbols,
        tape.regimes,
        prices.sources,
        sorted(prices.books),
        prices.chosen,
        tape.instruments,
        tape.n_events,
        tape.unusable,
    )
    folder = ref.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _KEPT_S:
                old.unlink()
    arrays = tape.arrays._asdict()
    levels = {"book_levels": arrays.pop("book_levels")}
    for path, some in ((ref.book_path, levels), (ref.path, arrays)):
        write_arrays(path, msgspec.json.encode(header), some)


def pack(
    session: SessionLike | pl.DataFrame,
    price_source: PriceSource = "auto",
    initial_state: Mapping[str, Any] | None = None,
) -> Tape:
    """Return the tape of a session or of an events frame (``timestamp, type, symbol, payload``).

    ``price_source``: see ``trading.resolve_prices``. ``initial_state`` defaults to the session's. Symbols without
    scores are left out. The levels of books lie in a temporary file, mapped into memory. Raises PriceError for a symbol
    that has scores but no prices and for an unknown source or symbol in ``price_source``, SessionError for a malformed
    initial state, SweepError for a session that is too long.
    """
    if initial_state is None:
        initial_state = getattr(session, "initial_state", None)
    return _Packing(session, price_source, initial_state).tape()


def _instruments(session: Any) -> dict[str, dict[str, Any]]:
    found = getattr(session, "instruments", None) or {}
    return {str(name): dict(entry) for name, entry in found.items() if isinstance(entry, Mapping)}


class _Packing:
    """One session on its way into arrays. Lists are by symbol that is kept: one with a usable score."""

    def __init__(
        self, session: SessionLike | pl.DataFrame, price_source: PriceSource, initial_state: Any
    ) -> None:
        events = session if isinstance(session, pl.DataFrame) else session.events
        if events.height >= 2**31:
            raise SweepError(f"a session of {events.height:,} events is too long: the limit is 2^31")
        self.initial = InitialState.read(initial_state)
        self.instruments = _instruments(session)
        self.prices = resolve_prices(session, price_source, initial_state=initial_state)
        self.ts = events["timestamp"].dt.timestamp("ns").to_numpy()
        self.payload = events["payload"]
        self.names = sorted(set(events["symbol"].unique().drop_nulls().to_list()) - {""})
        self.symbol = _codes(events["symbol"], self.names)
        kinds = [
            "MARKET_TRADE",
            "MARKET_BOOK",
            "SCORING_UPDATE",
            "REGIME_UPDATE",
            "RISK_UPDATE",
            "FUNDING",
        ]
        kind = _codes(events["type"], kinds)
        named = self.symbol >= 0
        self.rows = {name: np.flatnonzero((kind == k) & named) for k, name in enumerate(kinds)}
        self.unusable = {name: int(((kind == k) & ~named).sum()) for k, name in enumerate(kinds)}
        # Only a RISK_UPDATE may be for every symbol.
        everyone = (kind == 4) & events["symbol"].is_null().to_numpy()
        self.rows["RISK_UPDATE"] = np.flatnonzero((kind == 4) & named | everyone)
        self.unusable["RISK_UPDATE"] -= int(everyone.sum())

    def payloads(self, rows: Array) -> list[str]:
        found: list[str] = self.payload.gather(rows).to_list()
        return found

    def tape(self) -> Tape:
        rows = self.rows["SCORING_UPDATE"]
        score, score_price = scores(self.payloads(rows))
        usable = np.isfinite(score)
        self._count("SCORING_UPDATE", int((~usable).sum()))
        kept = np.unique(self.symbol[rows[usable]]).tolist()
        self.prices.require(self.names[s] for s in kept)
        score_rows, score = rows[usable], score[usable]
        by_symbol = [np.flatnonzero(self.symbol[score_rows] == s) for s in kept]
        at_scores = [score_rows[part] for part in by_symbol]
        found = [self._prices(s, rows, score_price) for s in kept]
        books = _Books()
        quotes = [self._book(*each, books) for each in zip(kept, found, at_scores, strict=True)]
        at_prices = [part.rows for part in found]
        regimes, regime = self._regimes(kept, at_scores)
        blocked, force = self._risk(kept, at_scores)
        funding = [self._funding(s, part) for s, part in zip(kept, found, strict=True)]
        carried, start = self._carried()
        with_book = any(self.names[s] in self.prices.books for s in kept)
        with_trades = any(self.prices.sources[self.names[s]] == "trade" for s in kept)
        arrays = TapeArrays(
            price=_join([part.price for part in found], np.float64),
            price_ts=_join([self.ts[part] for part in at_prices], np.int64),
            price_index=_join(at_prices, np.int32),
            price_from=_starts(at_prices),
            quote=_join([pair[0] for pair in quotes] if with_book else [], QUOTE),
            flow=_join([part.flow for part in found] if with_trades else [], FLOW),
            score=_join([score[part] for part in by_symbol], np.float64),
            score_ts=_join([self.ts[part] for part in at_scores], np.int64),
            score_index=_join(at_scores, np.int32),
            score_regime=_join(regime, np.int32),
            score_blocked=_join(blocked, np.uint8),
            score_from=_starts(at_scores),
            score_quote=_join([pair[1] for pair in quotes] if with_book else [], QUOTE),
            force_ts=_join([self.ts[part] for part in force], np.int64),
            force_index=_join(force, np.int32),
            force_from=_starts(force),
            funding=_join(funding, SETTLEMENT),
            funding_from=_starts(funding),
            order=_merge(at_prices, at_scores, force, [part["index"] for part in funding]),
            symbol=_join([self._symbol(s) for s in kept], SYMBOL),
            carried=carried,
            start=start,
            **books.arrays(),
        )
        return Tape(
            symbols=tuple(self.names[s] for s in kept),
            regimes=tuple(regimes),
            prices=self.prices,
            instruments=self.instruments,
            n_events=len(self.ts),
            unusable={name: count for name, count in self.unusable.items() if count},
            arrays=arrays,
        )

    def _count(self, kind: str, count: int) -> None:
        self.unusable[kind] = self.unusable.get(kind, 0) + count

    def _mine(self, kind: str, s: int) -> Array:
        """Event rows of a type and a symbol."""
        rows = self.rows[kind]
        mine: Array = rows[self.symbol[rows] == s]
        return mine

    def _prices(self, s: int, score_rows: Array, score_price: Array) -> _Prices:
        source = self.prices.sources[self.names[s]]
        if source == "score":
            good = (score_price > 0) & (self.symbol[score_rows] == s)
            return _Prices(score_rows[good], score_price[good])
        if source == "book":
            # Their prices come with the book.
            return _Prices(self._mine("MARKET_BOOK", s), None)
        rows = self._mine("MARKET_TRADE", s)
        trades = trade_columns(self.payloads(rows))
        self._count("MARKET_TRADE", int((~(trades.price > 0) & ~trades.off_market).sum()))
        good = (trades.price > 0) & ~trades.off_market
        qty = np.where(trades.qty > 0.0, trades.qty, 0.0)[good]
        flow = np.empty(len(qty), dtype=FLOW)
        flow["sells"] = np.where(trades.sign[good] < 0.0, 0.0, qty)
        flow["buys"] = np.where(trades.sign[good] > 0.0, 0.0, qty)
        return _Prices(rows[good], trades.price[good], flow)

    def _book(self, s: int, found: _Prices, score_rows: Array, books: _Books) -> tuple[Array, Array]:
        """Follow a symbol's book: the quote at each of its prices and scores; the prices where they are the mids."""
        start = self.initial.of(self.names[s])
        rows = self._mine("MARKET_BOOK", s) if self.names[s] in self.prices.books else np.empty(0, np.int64)
        from_book = found.values is None
        wanted = np.concatenate((rows if from_book else found.rows, score_rows))
        quotes = np.empty(len(wanted), dtype=QUOTE)
        # The quote after each event of the book; first that of the start.
        first = np.searchsorted(rows, wanted, side="right")
        needed = np.zeros(len(rows) + 1, dtype=bool)
        needed[first] = True
        after = np.empty(len(rows) + 1, dtype=QUOTE)
        book = start.order_book()
        ts = -NEVER if start.book is None or not len(self.ts) else int(self.ts[0])
        usable = np.zeros(len(rows) + 1, dtype=bool)
        after[0] = books.quote(book, ts)
        for at in range(0, len(rows), _BLOCK):
            part = rows[at : at + _BLOCK]
            times = self.ts[part].tolist()
            for k, payload in enumerate(self.payloads(part), at + 1):
                if book.apply(_decoded(payload)):
                    usable[k] = True
                    ts = times[k - 1 - at]
                if needed[k]:
                    after[k] = books.quote(book, ts)
        self._count("MARKET_BOOK", len(rows) - int(usable.sum()))
        quotes[:] = after[first]
        n = len(wanted) - len(score_rows)
        if from_book:
            mid = (quotes["bid"][:n] + quotes["ask"][:n]) / 2.0
            good = usable[1:] & np.isfinite(mid)
            found.rows, found.values = rows[good], mid[good]
            return quotes[:n][good], quotes[n:]
        return quotes[:n], quotes[n:]

    def _regimes(self, kept: list[int], score_rows: list[Array]) -> tuple[list[str], list[Array]]:
        rows = self.rows["REGIME_UPDATE"]
        names = regime_names(self.payloads(rows))
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
        blocked, force, _ = risk_flags(self.payloads(rows))
        blocked_parts, force_parts = [], []
        for s, at in zip(kept, score_rows, strict=True):
            # A row for every symbol (code −1) is one for this symbol too: the later of both counts.
            mine = (self.symbol[rows] == s) | (self.symbol[rows] < 0)
            set_here = mine & (blocked >= 0)
            start = self.initial.of(self.names[s]).trading_blocked
            blocked_parts.append(_last_before(at, rows[set_here], blocked[set_here], int(start)))
            force_parts.append(rows[mine & force])
        return blocked_parts, force_parts

    def _funding(self, s: int, found: _Prices) -> Array:
        rows = self._mine("FUNDING", s)
        payloads = [_decoded(payload) for payload in self.payloads(rows)]
        rates = [usable_number(payload.get("fundingRate")) for payload in payloads]
        marks = [usable_price(payload.get("markPrice")) for payload in payloads]
        good = np.array([rate is not None for rate in rates], dtype=bool)
        self._count("FUNDING", int((~good).sum()))
        settled = np.empty(len(rows), dtype=SETTLEMENT)
        settled["ts"], settled["index"] = self.ts[rows], rows
        settled["rate"] = np.array(rates, dtype=np.float64)
        last = _last_before(rows, found.rows, found.price, np.nan)
        settled["mark"] = [own or price for own, price in zip(marks, last.tolist(), strict=True)]
        usable: Array = settled[good]
        return usable

    def _symbol(self, s: int) -> Array:
        name = self.names[s]
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


class _Prices:
    """Event rows and prices of a symbol's price events, and what they take out of queues."""

    def __init__(self, rows: Array, values: Array | None, flow: Array | None = None) -> None:
        self.rows = rows
        self.values = values
        self._flow = flow

    @property
    def price(self) -> Array:
        assert self.values is not None
        return self.values

    @property
    def flow(self) -> Array:
        return np.zeros(len(self.rows), dtype=FLOW) if self._flow is None else self._flow


class _Books:
    """Collects the visible levels of books, each state once, in a temporary file."""

    def __init__(self) -> None:
        self._file: Any = None
        self._waiting: list[float] = []
        self._starts = [0]
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
                    self._waiting += level
                self._starts.append(self._starts[-1] + len(side))
            if len(self._waiting) > 1_000_000:
                self._spill()
        return (bids[0][0], asks[0][0], bids[0][1], asks[0][1], ts, len(self._starts) // 2 - 1)

    def arrays(self) -> dict[str, Array]:
        """Return ``book_levels`` (price, quantity, price, ...) and ``book_from`` (the row where each side begins)."""
        if self._file is None:
            levels = np.array(self._waiting, dtype=np.float64)
        else:
            self._spill()
            levels = np.frombuffer(
                mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.float64
            )
            self._file.close()
        return {"book_levels": levels, "book_from": np.array(self._starts, dtype=np.int64)}

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - the map keeps it open
        self._file.write(np.array(self._waiting, dtype=np.float64).data)
        self._file.flush()
        self._waiting = []


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


def _last_before(at: Array, rows: Array, values: Array, start: float) -> Array:
    """The last value at a row before each of ``at``; ``start`` where there is none yet."""
    with_start = np.concatenate(([start], values))
    picked: Array = with_start[np.searchsorted(rows, at)]
    return picked


def _join(parts: list[Array], dtype: Any) -> Array:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)


def _starts(parts: list[Array]) -> Array:
    return np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)


def _merge(*rows_of: list[Array]) -> Array:
    """All rows of all symbols, by kind, in the order of the session; the price part of an event before its score."""
    rows = _join([part for parts in rows_of for part in parts], np.int64)
    codes = [
        np.full(len(part), s * KINDS + kind, dtype=np.int32)
        for kind, parts in enumerate(rows_of)
        for s, part in enumerate(parts)
    ]
    # Stable, and the parts come by kind: ties of one event stay in that order.
    order: Array = _join(codes, np.int32)[np.argsort(rows, kind="stable")]
    return order


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
