"""Loaders of the ``<symbol>.json`` files: metrics, raw tape, order book. JSON, or JSON Lines in their place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import orjson
import polars as pl

from replaylab.errors import RecordError, TimeError
from replaylab.frames.files import Time, in_window, name_in, window
from replaylab.frames.jsonl import (
    Loaded,
    Reject,
    concat,
    foreign_symbol,
    is_blank,
    preview,
    reject_frame,
    whole,
    without_mark,
)
from replaylab.frames.schema import TIMESTAMP
from replaylab.paths import DataRoot
from replaylab.records import (
    FeatureSnapshot,
    MarketTrade,
    OrderBookSnapshot,
    Record,
    RegimeSnapshot,
    ScoringSnapshot,
    decode_record,
)
from replaylab.timestamps import parse_ns

RootLike = DataRoot | str | os.PathLike[str]
Row = dict[str, Any]
_SNAPSHOTS: dict[str, type[Record]] = {
    "FEATURE_SNAPSHOT": FeatureSnapshot,
    "SCORING_SNAPSHOT": ScoringSnapshot,
    "REGIME_SNAPSHOT": RegimeSnapshot,
}
_TRADES = pl.Schema(
    [
        ("timestamp", TIMESTAMP),
        ("symbol", pl.String()),
        ("price", pl.Float64()),
        ("qty", pl.Float64()),
        ("side", pl.String()),
        ("trade_id", pl.String()),
        ("unknown_fields", pl.String()),
        ("line", pl.Int64()),
    ]
)
_BOOKS = pl.Schema(
    [
        ("timestamp", TIMESTAMP),
        ("symbol", pl.String()),
        ("bids", pl.String()),
        ("asks", pl.String()),
        ("unknown_fields", pl.String()),
        ("line", pl.Int64()),
    ]
)
_METRICS = pl.Schema(
    [
        ("timestamp", TIMESTAMP),
        ("symbol", pl.String()),
        ("type", pl.String()),
        ("payload", pl.String()),
        ("line", pl.Int64()),
    ]
)
_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])


def load_metrics(
    root: RootLike, symbols: str | Iterable[str] | None = None, start: Time = None, end: Time = None
) -> Loaded:
    """Load ``metrics/<symbol>.json``: timestamp, symbol, type, payload, line.

    ``payload`` is the snapshot as a JSON string without type, timestamp and symbol. ``line`` counts the elements.
    """
    return _load(DataRoot(root), "metrics", _METRICS, _metric, symbols=symbols, start=start, end=end)


def load_market_trades_json(
    root: RootLike, symbols: str | Iterable[str] | None = None, start: Time = None, end: Time = None
) -> Loaded:
    """Load the raw tape of ``trades/<symbol>.json``.

    Columns: timestamp, symbol, price, qty, side (the taker's), trade_id, unknown_fields, line.
    """
    return _load(DataRoot(root), "market_trades", _TRADES, _trade, symbols=symbols, start=start, end=end)


def load_order_book_json(
    root: RootLike, symbols: str | Iterable[str] | None = None, start: Time = None, end: Time = None
) -> Loaded:
    """Load ``orderbook/<symbol>.json``.

    Columns: timestamp, symbol, bids and asks (JSON strings of [price, qty] pairs, best first), unknown_fields, line.
    """
    return _load(DataRoot(root), "order_book", _BOOKS, _book, symbols=symbols, start=start, end=end)


def _load(
    root: DataRoot,
    kind: str,
    schema: pl.Schema,
    make: Callable[[bytes, str], Row],
    *,
    symbols: str | Iterable[str] | None,
    start: Time,
    end: Time,
) -> Loaded:
    known = root.symbols(kind)
    names = known if symbols is None else [symbols] if isinstance(symbols, str) else sorted(set(symbols))
    span = window(start, end)
    loads = (in_window(_read(getattr(root, kind)(name), root, name, schema, make), span) for name in names)
    return replace(concat(loads, schema), symbols=frozenset(known))


def _read(
    path: Path, root: DataRoot, symbol: str, schema: pl.Schema, make: Callable[[bytes, str], Row]
) -> Loaded:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return concat((), schema)
    rows: list[Row] = []
    rejects: list[Reject] = []
    lines = blank = 0
    for number, offset, text in _elements(data):
        lines += 1
        if is_blank(text):
            blank += 1
            continue
        try:
            rows.append({**make(text, symbol), "line": number})
        except (RecordError, TimeError, orjson.JSONDecodeError) as error:
            rejects.append((name_in(root, path), number, offset, str(error), preview(text)))
    frame = pl.DataFrame(rows, schema=schema, orient="row") if rows else schema.to_frame()
    return Loaded(frame, reject_frame(rejects), lines, blank, len(rows))


def _elements(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, offset and text of each element: of the array, of the one object, else of the lines."""
    body = without_mark(data, 0)
    lead = len(data) - len(body)
    try:
        raws = [bytes(raw) for raw in _ELEMENTS.decode(body)]
    except (msgspec.DecodeError, RecursionError):
        raws = None
    if raws is not None:
        place = body.index(b"[") + 1
        for number, raw in enumerate(raws, start=1):
            place = body.index(raw, place)
            yield number, lead + place, raw
            place += len(raw)
        return
    try:
        is_object = isinstance(orjson.loads(body), dict)
    except orjson.JSONDecodeError:
        is_object = False
    if is_object:
        text = body.strip()
        yield 1, lead + body.index(text), text
    else:
        yield from ((n, at, without_mark(text, at)) for n, at, text in whole(data).lines())


def _plain(text: bytes) -> dict[str, Any]:
    plain = orjson.loads(text)
    if not isinstance(plain, dict):
        raise RecordError(f"expected a JSON object, found {preview(text, 60)}")
    return plain


def _ns(text: str) -> int:
    try:
        return parse_ns(text, clock=True)
    except TimeError as error:
        raise RecordError(f"timestamp: {error}", field="timestamp") from None


def _unknown(record: Record) -> str | None:
    return orjson.dumps(record.unknown_fields).decode() if record.unknown_fields else None


def _metric(text: bytes, symbol: str) -> Row:
    plain = _plain(text)
    kind = plain.get("type")
    if not isinstance(kind, str):
        raise RecordError("type: expected a text such as FEATURE_SNAPSHOT", field="type")
    plain.setdefault("symbol", symbol)
    known = _SNAPSHOTS.get(kind)
    if known is not None:
        decode_record(known, orjson.dumps(plain))
    stamp, name = plain.get("timestamp"), plain["symbol"]
    if not isinstance(stamp, str):
        raise RecordError("timestamp: expected a text, or this field is missing", field="timestamp")
    if not isinstance(name, str):
        raise RecordError("symbol: expected a string", field="symbol")
    if name != symbol:
        raise RecordError(foreign_symbol(name, symbol), field="symbol")
    rest = {key: value for key, value in plain.items() if key not in ("type", "timestamp", "symbol")}
    return {"timestamp": _ns(stamp), "symbol": name, "type": kind, "payload": orjson.dumps(rest).decode()}


def _trade(text: bytes, symbol: str) -> Row:
    trade = decode_record(MarketTrade, text)
    return {
        "timestamp": _ns(trade.timestamp),
        "symbol": symbol,
        "price": trade.price,
        "qty": trade.qty,
        "side": trade.side,
        "trade_id": trade.trade_id,
        "unknown_fields": _unknown(trade),
    }


def _book(text: bytes, symbol: str) -> Row:
    book = decode_record(OrderBookSnapshot, text)
    if book.symbol != symbol:
        raise RecordError(foreign_symbol(book.symbol, symbol), field="symbol")
    return {
        "timestamp": _ns(book.timestamp),
        "symbol": book.symbol,
        "bids": orjson.dumps(book.bids).decode(),
        "asks": orjson.dumps(book.asks).decode(),
        "unknown_fields": _unknown(book),
    }
