"""The market events of one symbol as arrays: what the compiled loops walk over.

>>> tapes = pack_market(session.events)                     # doctest: +SKIP
>>> tapes["BTCUSDT"].ts.shape                               # doctest: +SKIP
(199020,)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import DatasetError
from replaylab.features.book import OrderBook
from replaylab.features.incremental import book_columns
from replaylab.features.payloads import trade_sign, usable_number, usable_price

__all__ = ["BOOK", "TRADE", "MarketTape", "pack_market", "tape_of_trades"]

TRADE, BOOK = 0, 1
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Kinds = npt.NDArray[np.int8]
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


class _Trade(msgspec.Struct, gc=False):
    price: float | None = None
    qty: float | None = None
    side: Any = None
    off_market: Any = msgspec.field(default=None, name="offMarket")


_TRADES = msgspec.json.Decoder(list[_Trade])
_ANY = msgspec.json.Decoder()


def pack_market(
    events: pl.DataFrame,
    depth_levels: int = 5,
    *,
    initial_state: Mapping[str, Any] | None = None,
    symbols: Sequence[str] | None = None,
) -> dict[str, MarketTape]:
    """Return the tape of each symbol of a session's events (columns timestamp, type, symbol, payload as JSON text).

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
    books = (initial_state or {}).get("symbols")
    tapes = {}
    for (symbol,), part in sorted(parts.items()):
        start = books.get(symbol) if isinstance(books, Mapping) else None
        book = start.get("book") if isinstance(start, Mapping) else None
        tapes[str(symbol)] = _pack_symbol(str(symbol), part, ts, depth_levels, book)
    return tapes


def tape_of_trades(symbol: str, ts: Ints, price: Floats, qty: Floats, sign: Floats) -> MarketTape:
    """Return a tape of trades that are already arrays; ``index`` counts them.

    Rows whose price is not a finite number above zero are left out; unknown quantity or side: both become 0.
    """
    columns = np.zeros((ts.size, 6))
    columns[:, 0], columns[:, 1], columns[:, 2] = price, qty, sign
    _clean_trades(columns)
    good = (price > 0) & np.isfinite(price)
    index = np.arange(ts.size, dtype=np.int64)
    if not good.all():
        ts, columns, index = ts[good], np.ascontiguousarray(columns[good]), index[good]
    return MarketTape(symbol, np.zeros(ts.size, np.int8), ts.astype(np.int64), index, columns)


def _pack_symbol(
    symbol: str, part: pl.DataFrame, ts: Ints, levels: int, start: Mapping[str, Any] | None
) -> MarketTape:
    index = part["index"].to_numpy().astype(np.int64)
    is_book = (part["type"] == "MARKET_BOOK").to_numpy()
    columns = np.zeros((index.size, 6))
    keep = np.ones(index.size, dtype=bool)
    payloads = part["payload"]
    if not is_book.all():
        at = np.flatnonzero(~is_book)
        trades, usable = _read_trades(payloads.gather(at).to_list() if is_book.any() else payloads.to_list())
        columns[at] = trades
        keep[at] = usable
    if is_book.any():
        at = np.flatnonzero(is_book)
        book = OrderBook()
        if isinstance(start, Mapping):
            book.apply({**start, "kind": "snapshot"})
        for place, text in zip(at.tolist(), payloads.gather(at).to_list(), strict=True):
            if book.apply(_payload(text)):
                columns[place] = book_columns(book, levels)
            else:
                keep[place] = False
    kind = np.where(is_book, BOOK, TRADE).astype(np.int8)
    if not keep.all():
        index, kind, columns = index[keep], kind[keep], np.ascontiguousarray(columns[keep])
    return MarketTape(symbol, kind, ts[index], index, columns)


def _read_trades(texts: list[str]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the columns of MARKET_TRADE payloads and which of them have a usable price."""
    columns = np.zeros((len(texts), 6))
    off = np.zeros(len(texts), dtype=bool)
    nan = float("nan")
    for start in range(0, len(texts), _BLOCK):
        block = texts[start : start + _BLOCK]
        try:
            rows = _TRADES.decode(f"[{','.join(block)}]")
        except (msgspec.DecodeError, TypeError):
            rows = []
        if len(rows) != len(block):
            # Something unusual is in this block: one by one, by the model's own rules.
            rows = [_one_trade(_payload(text)) for text in block]
        part = slice(start, start + len(block))
        columns[part, 0] = [nan if row.price is None else row.price for row in rows]
        columns[part, 1] = [nan if row.qty is None else row.qty for row in rows]
        columns[part, 2] = [1.0 if row.side == "BUY" else -1.0 if row.side == "SELL" else 0.0 for row in rows]
        off[part] = [row.off_market is True for row in rows]
    _clean_trades(columns)
    price = columns[:, 0]
    return columns, (price > 0) & np.isfinite(price) & ~off


def _clean_trades(columns: Floats) -> None:
    """A trade without a usable quantity or side counts for its price alone."""
    qty, sign = columns[:, 1], columns[:, 2]
    unknown = ~np.isfinite(qty) | (qty < 0) | ((sign != 1.0) & (sign != -1.0))
    columns[unknown, 1] = 0.0
    columns[unknown, 2] = 0.0


def _one_trade(payload: Mapping[str, Any]) -> _Trade:
    sign = trade_sign(payload.get("side"))
    side = None if sign is None else payload["side"]
    return _Trade(
        usable_price(payload.get("price")), usable_number(payload.get("qty")), side, payload.get("offMarket")
    )


def _payload(text: str) -> dict[str, Any]:
    try:
        payload = _ANY.decode(text)
    except (msgspec.DecodeError, TypeError):
        return {}
    return payload if isinstance(payload, dict) else {}
