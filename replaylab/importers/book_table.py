"""Order books in tables of any source: a column per level, or a row per level.

With columns per level (``bid_px_00, bid_sz_00``; ``bids[0].price, bids[0].amount``; ``bid_price_1, bid_qty_1``) each
row is a snapshot. With a row per level (``timestamp, side, price, qty``) the rows of one time are a snapshot, or, where
a column ``is_snapshot`` is false, a change of the book in which a quantity of 0 deletes a level.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab.errors import HistoryError
from replaylab.features import OrderBook
from replaylab.history import level_lists
from replaylab.importers.files import LineFile
from replaylab.importers.intake import Intake
from replaylab.importers.messages import Doubts, watch
from replaylab.importers.tardis import LevelRows
from replaylab.importers.text_tables import Clock, Layout, cells_of, folded, parse, parse_times

_NAMES = {
    "time": ("timestamp", "time", "ts", "tsevent", "transactiontime"),
    "received": ("localtimestamp", "receivedat", "tsrecv"),
    "side": ("side",),
    "price": ("price",),
    "qty": ("qty", "quantity", "amount", "size", "volume"),
    "snapshot": ("issnapshot", "snapshot"),
}
_BID, _ASK = ("bid", "bids", "buy", "b"), ("ask", "asks", "sell", "s", "a")


def read_book_table(
    files: Iterable[Path],
    intake: Intake,
    *,
    timestamp: str | None = None,
    timestamp_unit: str | None = None,
    time_zone: str | None = None,
    side: str | None = None,
    price: str | None = None,
    qty: str | None = None,
    received_at: str | None = None,
    buy_word: str | None = None,
    sell_word: str | None = None,
    delimiter: str = ",",
) -> None:
    """Read books from CSV or Parquet, ``symbol`` names the market.

    Columns are found by common names; the options name others. ``buy_word``, ``sell_word``: the words of the side for
    bids and asks.
    """
    if intake.symbol is None:
        raise HistoryError("a book-table names no symbol: give symbol=...")
    intake.wants(intake.symbol)
    given = {"time": timestamp, "received": received_at, "side": side, "price": price, "qty": qty}
    words = dict.fromkeys(_BID, "bid") | dict.fromkeys(_ASK, "ask")
    words |= {
        word.lower(): name for word, name in ((buy_word, "bid"), (sell_word, "ask")) if word is not None
    }
    book, doubts = OrderBook(), Doubts()
    for path in files:
        clocks = {
            "time": Clock("time", timestamp_unit, zone=time_zone),
            "received": Clock("receive time", zone=time_zone),
        }
        rows = LevelRows(intake, every_message=True)
        for frame in _frames(path, intake, delimiter):
            named = {ours: _find(frame.columns, given.get(ours), names) for ours, names in _NAMES.items()}
            levels = _level_columns(frame.columns)
            found = _timed(frame, named, clocks, intake)
            if levels:
                messages = [_snapshots(found, levels, intake)]
            else:
                rows.every_message = named["snapshot"] is None
                messages = list(rows.take(_long(found, named, words, intake), last=False))
            for message in messages:
                _store(message, intake, book, doubts)
        for message in rows.take(None, last=True):
            _store(message, intake, book, doubts)
    doubts.store(intake.symbol, intake)


def _store(frame: pl.DataFrame, intake: Intake, book: OrderBook, doubts: Doubts) -> None:
    if not frame.is_empty():
        intake.book(intake.symbol or "", frame)
        watch(frame, book, doubts)


def _frames(path: Path, intake: Intake, delimiter: str) -> Iterator[pl.DataFrame]:
    """Yield the rows of a file as columns of strings or numbers, with ``line``."""
    with path.open("rb") if path.is_file() else _missing(path) as stream:
        parquet = stream.read(4) == b"PAR1"
    if not parquet:
        for file in intake.open([path]):
            yield from _text_frames(file, intake, delimiter)
        return
    intake.begin(path.name)
    first = 1
    try:
        with pq.ParquetFile(path) as source:
            for batch in source.iter_batches(100_000):
                frame = pl.DataFrame(pl.from_arrow(batch))
                intake.file.lines += frame.height
                lines = pl.int_range(first, first + frame.height, dtype=pl.Int64, eager=True)
                first += frame.height
                yield frame.with_columns(lines.alias("line"))
    except (OSError, pa.ArrowException) as error:
        raise HistoryError(f"{path}: damaged after row {first - 1}: {error}") from None


def _missing(path: Path) -> Any:
    raise HistoryError(f"{path}: cannot be read: no such file")


def _text_frames(file: LineFile, intake: Intake, delimiter: str) -> Iterator[pl.DataFrame]:
    layout: Layout | None = None
    for block in file.blocks():
        if layout is None:
            header = block.line(block.first_line)
            names = cells_of(header, delimiter)
            if len(header) > 65_536 or len({*names}) < len(names) or len(names) < 3:
                raise HistoryError(f"{file.name}:1: expected a header of a table, found {header!r:.200}")
            layout = Layout([f"={name}" for name in names], names, delimiter)
            intake.file.lines += 1
            intake.file.other += 1
            block = type(block)(block.data[int(block.ends[0]) :], block.first_line + 1)
        frame = parse(block, layout, intake)
        if frame is not None:
            yield frame.rename(lambda name: name.removeprefix("="))


def _find(columns: list[str], given: str | None, names: tuple[str, ...]) -> str | None:
    wanted = names if given is None else (folded(given),)
    found = next((column for name in wanted for column in columns if folded(column) == name), None)
    if given is not None and found is None:
        raise HistoryError(f"no column {given!r}; there are {', '.join(columns)[:500]}")
    return found


def _level_columns(columns: list[str]) -> dict[tuple[str, int], dict[str, str]]:
    """Return the columns of price and quantity by side and level."""
    found: dict[tuple[str, int], dict[str, str]] = {}
    for column in columns:
        parts = re.fullmatch(r"(?:best_?)?(bid|ask)s?(.*)", column.lower())
        if parts is None:
            continue
        rest, number = parts[2], re.search(r"\d+", parts[2])
        kind = "qty" if re.search("size|sz|qty|amount|quantity|vol", rest) else "price"
        if kind == "price" and not re.fullmatch(r"[\W_\d]*(price|px|p)?[\W_\d]*", rest):
            continue  # a count of orders
        found.setdefault((parts[1], int(number[0]) if number else 0), {})[kind] = column
    return {key: pair for key, pair in sorted(found.items()) if len(pair) == 2}


def _timed(
    frame: pl.DataFrame, named: dict[str, str | None], clocks: dict[str, Clock], intake: Intake
) -> pl.DataFrame:
    """Add both clocks in ns; reject rows without a time."""
    time, received = named["time"], named["received"]
    if time is None:
        raise HistoryError(
            f"{intake.file.name}: no column for the time; it has {', '.join(frame.columns)[:500]}"
        )
    note = intake.note
    frame = frame.with_columns(
        parse_times(frame[time], clocks["time"], note).alias("_at"),
        (
            pl.lit(None, dtype=pl.Int64)
            if received is None
            else parse_times(frame[received], clocks["received"], note)
        ).alias("_received"),
    )
    bad = frame.filter(pl.col("_at").is_null())
    values = dict(bad.select("line", time).head(1_000).iter_rows())
    intake.reject_all(bad["line"], lambda line: clocks["time"].wrong(values[line]), lambda line: b"")
    return frame.filter(pl.col("_at").is_not_null())


def _reject_bad(frame: pl.DataFrame, good: Any, intake: Intake, reason: str) -> pl.DataFrame:
    intake.reject_all(frame.filter(~pl.Series(good))["line"], lambda line: reason, lambda line: b"")
    return frame.filter(pl.Series(good))


def _snapshots(
    frame: pl.DataFrame, levels: dict[tuple[str, int], dict[str, str]], intake: Intake
) -> pl.DataFrame:
    """Return a snapshot per row of a table with columns per level; empty cells are levels that are not there."""
    numbers = {
        name: frame[name].cast(pl.Float64, strict=False) for pair in levels.values() for name in pair.values()
    }
    good = np.ones(frame.height, dtype=bool)
    for name, values in numbers.items():
        empty = frame[name].is_null() | (frame[name].cast(pl.String) == "")
        good &= (empty | (values.is_finite() & (values >= 0)).fill_null(False)).fill_null(True).to_numpy()
    kept = _reject_bad(frame, good, intake, "a price or quantity of a level must be a number of 0 or more")
    sides = {}
    for side in ("bid", "ask"):
        pairs = [pair for (one, _), pair in levels.items() if one == side]
        price, qty = (
            np.column_stack(
                [numbers[pair[kind]].filter(pl.Series(good)).fill_null(0.0).to_numpy() for pair in pairs]
            )
            if pairs
            else np.zeros((kept.height, 0))
            for kind in ("price", "qty")
        )
        order = np.argsort(
            -price if side == "bid" else np.where(price > 0, price, np.inf), axis=1, kind="stable"
        )
        price, qty = np.take_along_axis(price, order, 1), np.take_along_axis(qty, order, 1)
        there = (price > 0) & (qty > 0)
        sides[side] = level_lists(np.column_stack([price[there], qty[there]]).ravel(), there.sum(axis=1))
    intake.file.rows_in_lines += kept.height
    return pl.DataFrame(
        {
            "line": kept["line"],
            "exchange_at": kept["_at"],
            "received_at": kept["_received"],
            "kind": pl.repeat("snapshot", kept.height, eager=True),
            "bids": sides["bid"],
            "asks": sides["ask"],
            "seq": kept["line"],
        }
    )


def _long(
    frame: pl.DataFrame, named: dict[str, str | None], words: dict[str, str], intake: Intake
) -> pl.DataFrame:
    """Return a row per level: line, at, received_at, is_snapshot, side (bid, ask), price, amount."""
    for ours in ("side", "price", "qty"):
        if named[ours] is None:
            raise HistoryError(
                f"{intake.file.name}: neither columns of levels (bid_price_0, bid_qty_0, ...) nor a column for {ours}; "
                f"it has {', '.join(frame.columns)[:500]}"
            )
    flag = named["snapshot"]
    flagged = pl.lit("true") if flag is None else pl.col(flag).cast(pl.String).str.to_lowercase()
    rows = frame.select(
        "line",
        pl.col("_at").alias("timestamp"),
        pl.col("_received").alias("local_timestamp"),
        flagged.replace_strict({"true": True, "1": True, "false": False, "0": False}, default=None).alias(
            "is_snapshot"
        ),
        pl.col(str(named["side"]))
        .cast(pl.String)
        .str.strip_chars()
        .str.to_lowercase()
        .replace_strict(words, default=None, return_dtype=pl.String)
        .alias("side"),
        pl.col(str(named["price"])).cast(pl.Float64, strict=False).alias("price"),
        pl.col(str(named["qty"])).cast(pl.Float64, strict=False).alias("amount"),
    )
    price, amount = rows["price"], rows["amount"]
    good = (price.is_finite() & (price > 0) & amount.is_finite() & (amount >= 0)).fill_null(False)
    rows = _reject_bad(rows, good, intake, "price must be a number above 0, the quantity one of 0 or more")
    rows = _reject_bad(
        rows, rows["side"].is_not_null(), intake, f"the side must be one of {', '.join(words)}"
    )
    rows = _reject_bad(rows, rows["is_snapshot"].is_not_null(), intake, "is_snapshot must be true or false")
    intake.file.rows_in_lines += rows.height
    return rows
