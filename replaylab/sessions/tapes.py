"""Market data as a notebook reads it: imported history, and the rolling files for the time it does not cover."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import orjson
import polars as pl

from replaylab import frames, history
from replaylab.history.tapes import Kind
from replaylab.paths import DataRoot
from replaylab.timestamps import to_ns

__all__ = ["load_books", "load_tape"]

Moment = str | datetime | None
_TAPE = {
    "timestamp": pl.Datetime("ns", "UTC"),
    "symbol": pl.String(),
    "price": pl.Float64(),
    "qty": pl.Float64(),
    "side": pl.String(),
    "trade_id": pl.String(),
    "off_market": pl.Boolean(),
}
_BOOKS = {
    "timestamp": pl.Datetime("ns", "UTC"),
    "symbol": pl.String(),
    "kind": pl.String(),
    "bids": pl.List(pl.Array(pl.Float64, 2)),
    "asks": pl.List(pl.Array(pl.Float64, 2)),
}


def load_tape(
    root: DataRoot, symbols: Iterable[str] | None = None, start: Moment = None, end: Moment = None
) -> frames.Loaded:
    """Load trades: timestamp, symbol, price, qty, side, trade_id, off_market; sorted by time within each symbol."""
    return _load(root, "trades", _TAPE, symbols, start, end)


def load_books(
    root: DataRoot, symbols: Iterable[str] | None = None, start: Moment = None, end: Moment = None
) -> frames.Loaded:
    """Load book snapshots and deltas: timestamp, symbol, kind, bids, asks ([price, qty] pairs)."""
    return _load(root, "book", _BOOKS, symbols, start, end)


def _load(
    root: DataRoot,
    kind: Kind,
    schema: dict[str, pl.DataType],
    symbols: Iterable[str] | None,
    start: Moment,
    end: Moment,
) -> frames.Loaded:
    folder = "trades" if kind == "trades" else "orderbook"
    if symbols is None:
        rolling_names = {file.stem for file in (root.path / folder).glob("*.json") if file.stem[:1] != "."}
        names = sorted({*history.symbols(root, kind), *rolling_names})
    else:
        names = sorted(set(symbols))
    scan = history.scan_trades if kind == "trades" else history.scan_book
    read = frames.load_market_trades_json if kind == "trades" else frames.load_order_book_json
    low, high = (None if moment is None else to_ns(moment) for moment in (start, end))
    pieces, rejects = [pl.DataFrame(schema=schema)], []
    lines = blank = rows = 0
    for name in names:
        tape = scan(root, name, low, high).collect()
        rolling = read(root, [name], start, end)
        lines, blank, rows = lines + rolling.lines, blank + rolling.blank, rows + rolling.rows
        rejects.append(rolling.rejects)
        extra = uncovered(root, kind, name, rolling.frame)
        pieces.append(_shape(tape, name, schema))
        pieces.append(_shape(_with_levels(extra) if kind == "book" else extra, name, schema))
    frame = pl.concat(pieces).sort("symbol", "timestamp", maintain_order=True)
    bad = pl.concat(rejects) if rejects else frames.Loaded(frame).rejects
    return frames.Loaded(frame, bad, lines, blank, rows)


def uncovered(root: DataRoot, kind: Kind, symbol: str, rolling: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of a rolling file that lie outside the time that imported history covers."""
    span = history.coverage(root, kind, symbol)
    if span is None or rolling.is_empty():
        return rolling
    time = pl.col("timestamp").dt.timestamp("ns")
    return rolling.filter((time < span.first) | (time > span.last))


def _shape(frame: pl.DataFrame, symbol: str, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    missing = {
        "symbol": pl.lit(symbol),
        "off_market": pl.lit(False),
        "kind": pl.lit("snapshot"),
    }
    added = [
        expr.alias(name) for name, expr in missing.items() if name in schema and name not in frame.columns
    ]
    return frame.with_columns(added).select(pl.col(name).cast(dtype) for name, dtype in schema.items())


def _with_levels(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(
        pl.Series(side, [orjson.loads(text) for text in frame[side].to_list()], dtype=_BOOKS[side])
        for side in ("bids", "asks")
    )
