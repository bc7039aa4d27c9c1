"""The market events of one symbol as arrays: what the compiled loops walk over.

>>> tapes = pack_market(session.events)                     # doctest: +SKIP
>>> tapes["BTCUSDT"].ts.shape                               # doctest: +SKIP
(199020,)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import DatasetError
from replaylab.features.book import OrderBook, risk_flag, usable_number, usable_price
from replaylab.features.initial import InitialState
from replaylab.features.state import book_columns

TRADE, BOOK = 0, 1
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Kinds = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]
T = TypeVar("T")
_NAN = math.nan
_BLOCK = 4096


@dataclass(frozen=True)
class MarketTape:
    """The usable market events of one symbol, in session order.

    ``kind`` is TRADE or BOOK, ``ts`` ns since 1970, ``index`` the position in the session, ``columns`` six numbers
    per event: price, quantity, taker sign (0 with quantity 0 where not known), nothing; or best bid, its quantity,
    best ask, its quantity, bid depth, ask depth (NaN for the price of an empty side).
    """

    symbol: str
    kind: Kinds
    ts: Ints
    index: Ints
    columns: Floats


def pack_market(
    events: pl.DataFrame,
    depth_levels: int = 5,
    *,
    initial_state: Mapping[str, Any] | None = None,
    symbols: Sequence[str] | None = None,
) -> dict[str, MarketTape]:
    """Return the tape of each symbol of a session's events (columns timestamp, type, symbol, payload as JSON string).

    ``depth_levels`` is how many levels of the book count as its depth; ``initial_state`` (the session's) may hold the
    books at its start. Unusable events and trades marked ``offMarket`` are left out, as the trading model leaves them.
    Raises DatasetError when the events are not sorted by time.
    """
    ts = events["timestamp"].dt.timestamp("ns").to_numpy()
    if ts.size and bool((np.diff(ts) < 0).any()):
        raise DatasetError("the events are not sorted by time: build the session again")
    market = (
        events.lazy()
        .with_row_index("index")
        .filter(pl.col("type").is_in(["MARKET_TRADE", "MARKET_BOOK"]) & pl.col("symbol").is_not_null())
        .select("index", "type", "symbol", "payload")
    )
    if symbols is not None:
        market = market.filter(pl.col("symbol").is_in(list(symbols)))
    parts = market.collect().partition_by("symbol", maintain_order=True, as_dict=True)
    start = InitialState.read(initial_state)
    return {
        str(symbol): _pack_symbol(str(symbol), part, ts, depth_levels, start.of(str(symbol)).order_book())
        for (symbol,), part in sorted(parts.items())
    }


def tape_of_trades(symbol: str, ts: Ints, price: Floats, qty: Floats, sign: Floats) -> MarketTape:
    """Return a tape of trades that are already arrays; ``index`` counts them.

    Rows whose price is not a finite number above zero are left out; unknown quantity or side: both become 0.
    """
    columns = np.zeros((ts.size, 6))
    columns[:, :3] = _cleaned(price, qty, sign)
    good = (price > 0) & np.isfinite(price)
    index = np.arange(ts.size, dtype=np.int64)
    if not good.all():
        ts, columns, index = ts[good], np.ascontiguousarray(columns[good]), index[good]
    return MarketTape(symbol, np.zeros(ts.size, np.int8), ts.astype(np.int64), index, columns)


def _pack_symbol(symbol: str, part: pl.DataFrame, ts: Ints, levels: int, book: OrderBook) -> MarketTape:
    index = part["index"].to_numpy().astype(np.int64)
    is_book = (part["type"] == "MARKET_BOOK").to_numpy()
    columns = np.zeros((index.size, 6))
    keep = np.ones(index.size, dtype=bool)
    payloads = part["payload"]
    if not is_book.all():
        at = np.flatnonzero(~is_book)
        trades = trade_columns(payloads.gather(at).to_list() if is_book.any() else payloads.to_list())
        columns[at, :3] = _cleaned(trades.price, trades.qty, trades.sign)
        keep[at] = (trades.price > 0) & ~trades.off_market
    if is_book.any():
        at = np.flatnonzero(is_book)
        for place, text in zip(at.tolist(), payloads.gather(at).to_list(), strict=True):
            if book.apply(_payload(text)):
                columns[place] = book_columns(book, levels)
            else:
                keep[place] = False
    kind = np.where(is_book, BOOK, TRADE).astype(np.int8)
    if not keep.all():
        index, kind, columns = index[keep], kind[keep], np.ascontiguousarray(columns[keep])
    return MarketTape(symbol, kind, ts[index], index, columns)


def _cleaned(price: Floats, qty: Floats, sign: Floats) -> Floats:
    """Return price, quantity, sign as columns. Without a usable quantity or side a trade counts for its price alone."""
    known = np.isfinite(qty) & (qty >= 0) & ((sign == 1.0) | (sign == -1.0))
    return np.column_stack([price, np.where(known, qty, 0.0), np.where(known, sign, 0.0)])


class TradeColumns(NamedTuple):
    """MARKET_TRADE payloads as arrays: price and quantity NaN where unusable, sign of the taker 0 where not known."""

    price: Floats
    qty: Floats
    sign: Floats
    off_market: Bools


class _Trade(msgspec.Struct, gc=False):
    price: float | None = None
    qty: float | None = None
    side: Any = None
    off_market: Any = msgspec.field(default=None, name="offMarket")


class _Score(msgspec.Struct, gc=False):
    score: float | None = None
    side: Any = None
    price: float | None = None


_TRADES = msgspec.json.Decoder(list[_Trade])
_SCORES = msgspec.json.Decoder(list[_Score])
_ANY = msgspec.json.Decoder()
_SIGNS = {"BUY": 1.0, "SELL": -1.0}
_DIRECTIONS = {"LONG": 1, "SHORT": -1}


def trade_columns(texts: Sequence[str]) -> TradeColumns:
    """Return the columns of MARKET_TRADE payloads (JSON strings)."""

    def one(payload: Mapping[str, Any]) -> _Trade:
        price, qty = usable_price(payload.get("price")), usable_number(payload.get("qty"))
        return _Trade(price, qty, payload.get("side"), payload.get("offMarket"))

    n = len(texts)
    price, qty, sign, off = np.empty(n), np.empty(n), np.zeros(n), np.zeros(n, dtype=bool)
    for part, rows in _blocks(texts, _TRADES, one):
        price[part] = [_NAN if row.price is None else row.price for row in rows]
        qty[part] = [_NAN if row.qty is None else row.qty for row in rows]
        sign[part] = [_SIGNS.get(row.side, 0.0) if isinstance(row.side, str) else 0.0 for row in rows]
        off[part] = [row.off_market is True for row in rows]
    qty[~np.isfinite(qty)] = np.nan
    return TradeColumns(_positive(price), qty, sign, off)


def scores(texts: Sequence[str]) -> tuple[Floats, Floats]:
    """Return the signed score and the price of SCORING_UPDATE payloads, each NaN where unusable."""

    def one(payload: Mapping[str, Any]) -> _Score:
        return _Score(
            usable_number(payload.get("score")), payload.get("side"), usable_price(payload.get("price"))
        )

    score, price, side = np.empty(len(texts)), np.empty(len(texts)), np.zeros(len(texts), dtype=np.int8)
    for part, rows in _blocks(texts, _SCORES, one):
        score[part] = [_NAN if row.score is None else row.score for row in rows]
        price[part] = [_NAN if row.price is None else row.price for row in rows]
        side[part] = [_DIRECTIONS.get(row.side, 0) if isinstance(row.side, str) else 0 for row in rows]
    score[~np.isfinite(score)] = np.nan
    return np.where(side == 0, score, side * np.abs(score)), _positive(price)


def regime_names(texts: Sequence[str]) -> list[str | None]:
    """Return the ``regime`` of REGIME_UPDATE payloads; None where it is not a text."""
    names = []
    for text in texts:
        name = _payload(text).get("regime")
        names.append(name if isinstance(name, str) else None)
    return names


def risk_flags(texts: Sequence[str]) -> tuple[Kinds, Bools, int]:
    """Return ``tradingBlocked`` (1, 0, −1: absent), ``forceClose`` and how many payloads have neither."""
    blocked = np.full(len(texts), -1, dtype=np.int8)
    force = np.zeros(len(texts), dtype=bool)
    silent = 0
    for i, text in enumerate(texts):
        payload = _payload(text)
        says_block, says_force = risk_flag(payload, "tradingBlocked"), risk_flag(payload, "forceClose")
        silent += says_block is None and says_force is None
        if says_block is not None:
            blocked[i] = says_block
        force[i] = bool(says_force)
    return blocked, force, silent


def book_mids(texts: Sequence[str], book: OrderBook | None = None) -> tuple[Floats, int]:
    """Return the mid after each MARKET_BOOK of one symbol (NaN: unusable or a side is empty), and the unusable count.

    ``book``: the one at the session's start (``InitialState.of(symbol).order_book()``); it is changed.
    """
    book = OrderBook() if book is None else book
    mids = np.full(len(texts), np.nan)
    bad = 0
    for i, text in enumerate(texts):
        if not book.apply(_payload(text)):
            bad += 1
            continue
        mid = book.mid()
        if mid is not None:
            mids[i] = mid
    return mids, bad


def _payload(text: str) -> dict[str, Any]:
    try:
        payload = _ANY.decode(text)
    except (msgspec.DecodeError, TypeError):
        return {}
    return payload if isinstance(payload, dict) else {}


def _blocks(
    texts: Sequence[str], decoder: msgspec.json.Decoder[list[T]], one: Callable[[Mapping[str, Any]], T]
) -> Iterator[tuple[slice, list[T]]]:
    """Yield decoded rows and their place. One typed decoding of thousands of rows is many times as fast as one each;
    a block that holds anything else is decoded row by row, by the model's own rules."""
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        try:
            rows = decoder.decode(f"[{','.join(block)}]")
        except (msgspec.DecodeError, TypeError):
            rows = []
        if len(rows) != len(block):
            rows = [one(_payload(text)) for text in block]
        yield slice(start, start + len(block)), rows


def _positive(price: Floats) -> Floats:
    """NaN where a price is not finite and above zero."""
    good = (price > 0) & np.isfinite(price)
    result: Floats = np.where(good, price, np.nan)
    return result
