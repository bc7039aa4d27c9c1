"""What a row of history holds, and how it is read: lazily, in order, between two times."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from replaylab.errors import HistoryError
from replaylab.paths import DataRoot
from replaylab.timestamps import date_key, to_ns

Kind = Literal["trades", "book", "funding", "gaps"]
Time = str | datetime | date | int | None

_TIME = pl.Datetime("ns", "UTC")
_LEVELS = pl.List(pl.Array(pl.Float64, 2))
_Type = pl.DataType | type[pl.DataType]

_TRADES: dict[str, _Type] = {
    "timestamp": _TIME,  # the clock that the import chose: the exchange's unless asked otherwise
    "received_at": _TIME,  # local time of receipt, null where the source has none
    "price": pl.Float64,
    "qty": pl.Float64,
    "side": pl.String,  # of the taker: BUY, SELL, or null
    "trade_id": pl.String,
    "off_market": pl.Boolean,  # an insurance fund's print and the like: no price that one could trade at
    "seq": pl.Int64,  # order within the source; rows of one timestamp keep it
    "exchange_at": _TIME,  # the exchange's time where timestamp is not that, else null
}
_BOOK: dict[str, _Type] = {
    "timestamp": _TIME,
    "received_at": _TIME,
    "kind": pl.String,  # "snapshot" replaces the book; in a "delta" a quantity of 0 deletes the level
    "bids": _LEVELS,  # [price, quantity] pairs
    "asks": _LEVELS,
    "seq": pl.Int64,
    "exchange_at": _TIME,
}
_FUNDING: dict[str, _Type] = {
    "timestamp": _TIME,  # of the settlement
    "received_at": _TIME,
    "funding_rate": pl.Float64,  # 0.0001 is 0.01 %; longs pay a positive rate to shorts
    "mark_price": pl.Float64,  # at the settlement, null where the source has none
    "seq": pl.Int64,
    "exchange_at": _TIME,
}
_GAPS: dict[str, _Type] = {
    "timestamp": _TIME,  # begin of an interval in which the book is doubtful
    "end": _TIME,  # the next snapshot, or the update that uncrossed the book
    "what": pl.String,  # "missing" messages, or a best bid at or above the best ask: "crossed"
    "seq": pl.Int64,
}
TRADES_SCHEMA = pl.Schema(_TRADES)
BOOK_SCHEMA = pl.Schema(_BOOK)
FUNDING_SCHEMA = pl.Schema(_FUNDING)
GAPS_SCHEMA = pl.Schema(_GAPS)
SCHEMAS: dict[Kind, pl.Schema] = {
    "trades": TRADES_SCHEMA,
    "book": BOOK_SCHEMA,
    "funding": FUNDING_SCHEMA,
    "gaps": GAPS_SCHEMA,
}
KINDS: tuple[Kind, ...] = ("trades", "book", "funding")


class Coverage(NamedTuple):
    """First and last time (ns since 1970) and the number of rows of one tape."""

    first: int
    last: int
    rows: int


def scan_trades(
    root: str | os.PathLike[str] | DataRoot, symbol: str, start: Time = None, end: Time = None
) -> pl.LazyFrame:
    """Return the trades of ``symbol`` with ``start <= timestamp < end``, sorted by timestamp and seq.

    >>> scan_trades("data", "BTCUSDT", "2025-11-18", "2025-11-19").collect()          # doctest: +SKIP

    Columns: :data:`TRADES_SCHEMA`. Times are ISO strings, datetimes or integer ns; None is no bound. A symbol without
    history gives an empty frame.
    """
    return scan(DataRoot(root), "trades", symbol, start, end)


def scan_book(
    root: str | os.PathLike[str] | DataRoot, symbol: str, start: Time = None, end: Time = None
) -> pl.LazyFrame:
    """Return the book snapshots and deltas of ``symbol``, as :func:`scan_trades` returns trades.

    Columns: :data:`BOOK_SCHEMA`. Levels come best first in snapshots, in the source's order in deltas.
    """
    return scan(DataRoot(root), "book", symbol, start, end)


def scan_funding(
    root: str | os.PathLike[str] | DataRoot, symbol: str, start: Time = None, end: Time = None
) -> pl.LazyFrame:
    """Return the funding settlements of ``symbol``, as :func:`scan_trades` returns trades.

    Columns: :data:`FUNDING_SCHEMA`.
    """
    return scan(DataRoot(root), "funding", symbol, start, end)


def scan_gaps(
    root: str | os.PathLike[str] | DataRoot, symbol: str, start: Time = None, end: Time = None
) -> pl.LazyFrame:
    """Return the intervals in which the book of ``symbol`` is doubtful, of those that begin in ``start <= t < end``.

    Columns: :data:`GAPS_SCHEMA`. Imports find them; one that fills a gap does not delete its row.
    """
    return scan(DataRoot(root), "gaps", symbol, start, end)


def symbols(root: str | os.PathLike[str] | DataRoot, kind: Kind | None = None) -> list[str]:
    """Return the symbols that have history of ``kind`` ("trades", "book", "funding"; None: any of them), sorted."""
    kinds = KINDS if kind is None else (_kind(kind),)
    return sorted({symbol for one in kinds for symbol in DataRoot(root).symbols("history", tape=one)})


def days(root: str | os.PathLike[str] | DataRoot, kind: Kind, symbol: str) -> list[str]:
    """Return the UTC days ("YYYY-MM-DD") of which there is history, sorted."""
    return list(day_files(DataRoot(root), _kind(kind), symbol))


def coverage(root: str | os.PathLike[str] | DataRoot, kind: Kind, symbol: str) -> Coverage | None:
    """Return first and last time (ns) and the rows of a tape, or None where there is none. Reads no column whole."""
    files = list(day_files(DataRoot(root), _kind(kind), symbol).values())
    if not files:
        return None
    rows = sum(int(pl.scan_parquet(file).select(pl.len()).collect().item()) for file in files)
    time = pl.col("timestamp").dt.timestamp("ns")
    # Days do not overlap, and each is sorted: the ends of the tape are in its first and last file.
    first = pl.scan_parquet(files[0]).select(time.min()).collect().item()
    last = pl.scan_parquet(files[-1]).select(time.max()).collect().item()
    return Coverage(int(first), int(last), rows)


def level_lists(values: Sequence[float] | npt.NDArray[np.float64], counts: npt.ArrayLike) -> pl.Series:
    """Return a column of ``[[price, qty], ...]`` lists from flat ``price, qty, price, qty, ...`` numbers.

    >>> level_lists([1.0, 2.0, 0.5, 3.0], counts=[1, 0, 1]).to_list()
    [[[1.0, 2.0]], [], [[0.5, 3.0]]]

    ``counts``: the number of levels of each row.
    """
    ends = np.cumsum(np.asarray(counts, dtype=np.int64))
    offsets = pa.array(np.concatenate([np.zeros(1, dtype=np.int64), ends]))
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(values, type=pa.float64()), 2)
    return pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(offsets, pairs)), dtype=_LEVELS)


def day_files(root: DataRoot, kind: Kind, symbol: str) -> dict[str, Path]:
    """Return the existing file of each UTC day, in order of days."""
    return {place.day or "": path for place, path in root.files("history", tape=kind, symbol=symbol)}


def require_schema(frame: pl.DataFrame, kind: Kind) -> pl.DataFrame:
    """Return ``frame`` with exactly the columns of ``kind``; missing ones that may be null are added.

    Raises HistoryError for a missing or unknown column, a null where none may be, a price or quantity that
    is not a finite number above (quantity: at or above) zero, a side that is neither BUY nor SELL.
    """
    schema = SCHEMAS[_kind(kind)]
    unknown = [name for name in frame.columns if name not in schema]
    if unknown:
        raise HistoryError(f"no column {unknown[0]!r} in {kind} history: there are {', '.join(schema)}")
    optional = {"received_at", "exchange_at", "side", "trade_id", "off_market", "seq", "mark_price"}
    missing = [name for name in schema if name not in frame.columns and name not in optional]
    if missing:
        raise HistoryError(
            f"{kind} history needs the column {missing[0]!r}; there are {', '.join(frame.columns)}"
        )
    added: list[pl.Expr] = []
    for name, dtype in schema.items():
        if name not in frame.columns and name != "seq":
            added.append(pl.lit(False if name == "off_market" else None, dtype=dtype).alias(name))
    if "seq" not in frame.columns:
        added.append(pl.int_range(pl.len(), dtype=pl.Int64).alias("seq"))
    try:
        frame = frame.with_columns(added).select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    except pl.exceptions.PolarsError as error:
        raise HistoryError(f"{kind} history: a column has the wrong type: {error}") from None
    _require_values(frame, kind)
    return frame


def _require_values(frame: pl.DataFrame, kind: Kind) -> None:
    bad: dict[str, pl.Expr]
    if kind == "trades":
        price, qty = pl.col("price"), pl.col("qty")
        bad = {
            "a timestamp": pl.col("timestamp").is_null(),
            "a finite price above 0": ~(price.is_finite() & (price > 0)).fill_null(False),
            "a finite quantity of 0 or more": ~(qty.is_finite() & (qty >= 0)).fill_null(False),
            "the side BUY, SELL or null": ~pl.col("side").is_in(["BUY", "SELL"]).fill_null(True),
            "off_market true or false": pl.col("off_market").is_null(),
        }
    elif kind == "funding":
        mark = pl.col("mark_price")
        bad = {
            "a timestamp": pl.col("timestamp").is_null(),
            "a finite funding rate": ~pl.col("funding_rate").is_finite().fill_null(False),
            "a finite mark price above 0, or null": ~(mark.is_finite() & (mark > 0)).fill_null(True),
        }
    elif kind == "gaps":
        bad = {"a begin before the end": (pl.col("timestamp") <= pl.col("end")).fill_null(False).not_()}
    else:
        bad = {
            "a timestamp": pl.col("timestamp").is_null(),
            'the kind "snapshot" or "delta"': ~pl.col("kind").is_in(["snapshot", "delta"]).fill_null(False),
            "bids and asks": pl.col("bids").is_null() | pl.col("asks").is_null(),
        }
    counts = frame.select(**{name: expr.sum() for name, expr in bad.items()}).row(0, named=True)
    for name, count in counts.items():
        if count:
            row = frame.row(frame.select(bad[name].arg_true().first()).item(), named=True)
            raise HistoryError(f"{kind} history: {count} rows lack {name}; the first: {row}")


def scan(root: DataRoot, kind: Kind, symbol: str, start: Time, end: Time) -> pl.LazyFrame:
    """Return the rows of one tape with ``start <= timestamp < end``."""
    low, high = _ns(start), _ns(end)
    first_day = "" if low is None else date_key(low)
    last_day = "9" if high is None else date_key(high)
    wanted = [path for day, path in day_files(root, kind, symbol).items() if first_day <= day <= last_day]
    if not wanted:
        return pl.LazyFrame(schema=SCHEMAS[kind])
    frame = pl.scan_parquet(wanted)
    if low is not None:
        frame = frame.filter(pl.col("timestamp") >= pl.lit(low).cast(_TIME))
    if high is not None:
        frame = frame.filter(pl.col("timestamp") < pl.lit(high).cast(_TIME))
    return frame


def _kind(kind: Kind) -> Kind:
    if kind not in SCHEMAS:
        raise HistoryError(f'expected "trades", "book" or "funding", found {kind!r}')
    return kind


def _ns(time: Time) -> int | None:
    return time if time is None or isinstance(time, int) else to_ns(time)
