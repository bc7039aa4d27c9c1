"""A session packed into arrays, which every combination of a sweep reads, and their memory-mapped cache.

>>> tape = open_tape(session, cache_dir=lab.config.cache_path)                                # doctest: +SKIP
>>> tape.symbols, len(tape.price)                                                            # doctest: +SKIP
(('BTCUSDT',), 199020)

What does not depend on the parameters is settled here: which events make a price, the last regime and
``tradingBlocked`` at each scoring event, the sign of each score. ``docs/model.md`` has the rules.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from replaylab.barriers import build_levels
from replaylab.compiled import compiled
from replaylab.errors import SweepError
from replaylab.features import InitialState, book_mids, regime_names, risk_flags, scores, trade_columns
from replaylab.fsio import atomic_path
from replaylab.trading import resolve_prices

__all__ = [
    "FORCE",
    "KINDS",
    "PRICE",
    "SCORE",
    "TICK",
    "PriceSource",
    "SessionLike",
    "Tape",
    "TapeArrays",
    "TapeRef",
    "open_tape",
    "pack",
    "read_tape",
]

Array = npt.NDArray[Any]
PriceSource = str | Mapping[str, str]
# Kinds of ``Tape.order``: its entries are ``symbol · KINDS + kind``. A price part comes before the score of its event.
PRICE, SCORE, FORCE = 0, 1, 2
KINDS = 3
# Counts changes of what is packed.
_FORMAT = 2
# A cached tape that was not used for this long is deleted.
_KEPT_S = 30 * 86_400
_log = logging.getLogger("replaylab.sweep")


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

    def __post_init__(self) -> None:
        # Packed, mapped or unpickled: kernels are compiled for one type, and nothing writes into a tape.
        for array in self.arrays():
            array.setflags(write=False)

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
        """What the chain kernel reads of a tape in addition: built at the first use."""
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


@dataclass(frozen=True)
class TapeRef:
    """Names a tape: ``key`` is the digest of what it was packed from, ``path`` the file that holds it, if any."""

    key: str
    path: Path | None = None


def open_tape(
    session: SessionLike | pl.DataFrame,
    price_source: PriceSource = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Tape, TapeRef | None]:
    """Return the tape of a session and the reference of its file, None where there is no file.

    A session with ``path`` and ``digest`` is packed once: later calls map ``cache_dir/tapes/<name>.arrow`` into memory
    as long as the digest of its events, its initial state and the price source are the same. An events frame is packed
    at every call, as everything is with ``cache_dir=None``. Raises what ``pack`` raises.
    """
    path, digest = getattr(session, "path", None), getattr(session, "digest", None)
    if cache_dir is None or not isinstance(digest, str) or not isinstance(path, (str, os.PathLike)):
        return pack(session, price_source), None
    source = price_source if isinstance(price_source, str) else sorted(price_source.items())
    about = [_FORMAT, digest, source, getattr(session, "initial_state", None)]
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
    return tape, ref


def read_tape(ref: TapeRef) -> Tape | None:
    """Return the tape of a reference, mapped into memory; None if its file is missing, damaged or of another key."""
    if ref.path is None:
        return None
    try:
        batch = pa.ipc.open_file(pa.memory_map(os.fspath(ref.path))).get_batch(0)
        header = msgspec.json.decode(batch.schema.metadata[b"tape"])
        if header["key"] != ref.key:
            return None
        arrays = {
            name: batch.column(name).values.to_numpy(zero_copy_only=True) for name in TapeArrays._fields
        }
        os.utime(ref.path)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, msgspec.DecodeError):
        return None
    return Tape(
        symbols=tuple(header["symbols"]),
        regimes=tuple(header["regimes"]),
        sources=tuple(header["sources"]),
        n_events=header["n_events"],
        unusable=header["unusable"],
        **arrays,
    )


def _write(ref: TapeRef, tape: Tape) -> None:
    """Write a tape as an Arrow IPC file of one row, a list column per array; no reader sees a part of it."""
    assert ref.path is not None
    names = ("symbols", "regimes", "sources", "n_events", "unusable")
    header = {"key": ref.key, **{name: getattr(tape, name) for name in names}}
    columns = {
        name: pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), pa.array(array))
        for name, array in tape.arrays()._asdict().items()
    }
    batch = pa.record_batch(columns).replace_schema_metadata({"tape": msgspec.json.encode(header)})
    folder = ref.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.arrow"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _KEPT_S:
                old.unlink()
    with (
        atomic_path(ref.path) as part,
        pa.OSFile(os.fspath(part), "wb") as file,
        pa.ipc.new_file(file, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def pack(
    session: SessionLike | pl.DataFrame,
    price_source: PriceSource = "auto",
    initial_state: Mapping[str, Any] | None = None,
) -> Tape:
    """Return the tape of a session or of an events frame (``timestamp, type, symbol, payload``).

    ``price_source``: see ``trading.resolve_prices``. ``initial_state`` defaults to the session's. Symbols without
    scores are left out. Raises PriceError for a symbol that has scores but no prices and for an unknown source or
    symbol in ``price_source``, SessionError for a malformed initial state, SweepError for a session that is too long.
    """
    if initial_state is None:
        initial_state = getattr(session, "initial_state", None)
    return _Packing(session, price_source, initial_state).tape()


class _Packing:
    def __init__(
        self, session: SessionLike | pl.DataFrame, price_source: PriceSource, initial_state: Any
    ) -> None:
        events = session if isinstance(session, pl.DataFrame) else session.events
        if events.height >= 2**31:
            raise SweepError(f"a session of {events.height:,} events is too long: the limit is 2^31")
        self.initial = InitialState.read(initial_state)
        self.prices = resolve_prices(session, price_source, initial_state=initial_state)
        self.n_events = events.height
        self.ts = events["timestamp"].dt.timestamp("ns").to_numpy()
        self.payload = events["payload"]
        self.names = sorted(set(events["symbol"].unique().drop_nulls().to_list()) - {""})
        self.symbol = _codes(events["symbol"], self.names)
        kinds = ["MARKET_TRADE", "MARKET_BOOK", "SCORING_UPDATE", "REGIME_UPDATE", "RISK_UPDATE"]
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
        self._count("SCORING_UPDATE", int((~usable & ~(score_price > 0)).sum()))
        scored_symbols = set(np.unique(self.symbol[rows[usable]]).tolist())
        kept = [s for s in range(len(self.names)) if s in scored_symbols]
        self.prices.require(self.names[s] for s in kept)
        prices = [self._prices(s, rows, score_price) for s in kept]
        score_rows, score = rows[usable], score[usable]
        by_symbol = [np.flatnonzero(self.symbol[score_rows] == s) for s in kept]
        regimes, regime = self._regimes(kept, [score_rows[part] for part in by_symbol])
        blocked, force = self._risk(kept, [score_rows[part] for part in by_symbol])
        price_rows = [found[0] for found in prices]
        score_parts = [score_rows[part] for part in by_symbol]
        return Tape(
            symbols=tuple(self.names[s] for s in kept),
            regimes=tuple(regimes),
            sources=tuple(self.prices.sources[self.names[s]] for s in kept),
            n_events=self.n_events,
            price=_join([found[1] for found in prices], np.float64),
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

    def _prices(self, s: int, score_rows: Array, score_price: Array) -> tuple[Array, Array]:
        """Event rows and prices of a symbol."""
        source = self.prices.sources[self.names[s]]
        if source == "score":
            good = (score_price > 0) & (self.symbol[score_rows] == s)
            return score_rows[good], score_price[good]
        kind = {"trade": "MARKET_TRADE", "book": "MARKET_BOOK"}[source]
        rows = self.rows[kind]
        rows = rows[self.symbol[rows] == s]
        if source == "book":
            price, bad = book_mids(self.payloads(rows), self.initial.of(self.names[s]).order_book())
            self._count(kind, bad)
        else:
            trades = trade_columns(self.payloads(rows))
            self._count(kind, int((~(trades.price > 0)).sum()))
            price = np.where(trades.off_market, np.nan, trades.price)
        good = price > 0
        return rows[good], price[good]

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
        blocked, force, bad = risk_flags(self.payloads(rows))
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


# What a chain reads of one price event, together: one trip to memory. ``next_score``: the first score at or after it.
TICK = np.dtype([("price", "f8"), ("ts", "i8"), ("index", "i4"), ("next_score", "i4")], align=True)


class Lookup(NamedTuple):
    """Price events in one piece, block maxima and minima of prices and scores, and per score the price after it."""

    ticks: Array
    score_after: Array
    price_high: Array
    price_low: Array
    price_offsets: Array
    score_high: Array
    score_low: Array
    score_offsets: Array


def build_lookup(tape: TapeArrays) -> Lookup:
    """Return the lookup of a tape's arrays."""
    ticks = np.empty(len(tape.price), dtype=TICK)
    after = np.empty(len(tape.score), dtype=np.int32)
    _follow(
        tape.price,
        tape.price_ts,
        tape.price_index,
        tape.price_from,
        tape.score_index,
        tape.score_from,
        ticks,
        after,
    )
    return Lookup(ticks, after, *build_levels(tape.price), *build_levels(tape.score))


@compiled
def _follow(
    price: Any,
    price_ts: Any,
    price_index: Any,
    price_from: Any,
    score_index: Any,
    score_from: Any,
    ticks: Any,
    after: Any,
) -> None:
    """One walk along prices and scores of each symbol."""
    for k in range(len(price_from) - 1):
        c = score_from[k]
        last = score_from[k + 1]
        end = price_from[k + 1]
        waiting = c
        for x in range(price_from[k], end):
            index = price_index[x]
            while c < last and score_index[c] < index:
                c += 1
            # A score at a price event's own index comes after that price.
            while waiting < c:
                after[waiting] = x
                waiting += 1
            ticks[x].price = price[x]
            ticks[x].ts = price_ts[x]
            ticks[x].index = index
            ticks[x].next_score = c
        while waiting < last:
            after[waiting] = end
            waiting += 1
