"""Order books in tables of levels: Tardis.dev files (and its trades), and tables of any other source.

Tardis: in an ``incremental_book_L2`` file a row is a level; rows of one ``local_timestamp`` are one message. Rows
before the first snapshot are left out. Where ``is_snapshot`` turns true the book starts again; a snapshot of several
messages becomes one snapshot row and deltas that complete it. Quantity 0 deletes a level.

Other tables have a column per level (``bid_px_00, bid_sz_00``; ``bids[0].price, bids[0].amount``; ``bid_price_1,
bid_qty_1``), and each row is a snapshot; or a row per level (``timestamp, side, price, qty``), and the rows of one time
are a snapshot, or, where a column ``is_snapshot`` is false, a change of the book.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replaylab.errors import HistoryError
from replaylab.features import OrderBook
from replaylab.history import level_lists
from replaylab.importers.files import Block, LineFile
from replaylab.importers.intake import NO_TEXT, Intake
from replaylab.importers.messages import Doubts, watch
from replaylab.importers.text_tables import (
    Clock,
    Layout,
    TradeTable,
    cell_of,
    cells_of,
    folded,
    parse,
    parse_times,
    read_trades,
)

_TRADES = TradeTable(
    names={
        "symbol": ("symbol",),
        "time": ("timestamp",),
        "received": ("localtimestamp",),
        "id": ("id",),
        "side": ("side",),
        "price": ("price",),
        "qty": ("amount",),
    },
    required=("symbol", "time", "received", "side", "price", "qty"),
    units=("us",),
    unknown_sides=("unknown",),
)
# The columns of a book file, and ours.
_BOOK = {
    "exchange": "",
    "symbol": "symbol",
    "timestamp": "time",
    "local_timestamp": "received",
    "is_snapshot": "snapshot",
    "side": "side",
    "price": "price",
    "amount": "qty",
}
_LAYOUT = Layout([*_BOOK.values()], [*_BOOK], ",", decimal_times={"time": False, "received": False})


def read_trades_of_tardis(files: Iterable[Path], intake: Intake) -> None:
    """Read ``trades`` files."""
    read_trades(files, intake, _TRADES)


def read_tardis(files: Iterable[Path], intake: Intake) -> None:
    """Read ``incremental_book_L2`` files."""
    watched: dict[str, tuple[OrderBook, Doubts]] = {}
    for file in intake.open(files):
        state = _State(intake)
        for block in file.blocks():
            rows = _parse(block, file, intake, state)
            if rows is not None:
                # The last message of a block may continue in the next one.
                _take(rows, intake, state, watched, last=False)
        _take(None, intake, state, watched, last=True)
        skipped = sum(one.skipped for one in state.symbols.values())
        if skipped:
            intake.note(f"{file.name}: {skipped} rows before the first snapshot left out")
    for name, (_, doubts) in watched.items():
        doubts.store(name, intake)


class LevelRows:
    """Joins rows of levels (line, timestamp, local_timestamp, is_snapshot, side, price, amount) to messages.

    A message is the rows of one time in a row: of receipt where there is one. ``every_message``: each is a snapshot;
    else one begins where ``is_snapshot`` turns true, and rows before the first are left out.
    """

    def __init__(self, intake: Intake, *, every_message: bool = False) -> None:
        self.intake, self.every_message = intake, every_message
        self.skipped = 0
        self._rest: pl.DataFrame | None = None
        self._in_snapshot: bool | None = None  # whether the last row was of a snapshot; None before the first
        self._messages = 0

    def take(self, rows: pl.DataFrame | None, *, last: bool) -> Iterator[pl.DataFrame]:
        """Yield a frame of book rows. The last message waits for the next call unless this is the ``last``."""
        if self._rest is not None:
            rows = self._rest if rows is None else pl.concat([self._rest, rows])
            self._rest = None
        if rows is None or rows.is_empty():
            return
        if not last:
            time = _time(rows)
            same = time == time[-1]
            keep = 0 if same.all() else len(same) - int((~same).reverse().arg_max() or 0)
            self._rest, rows = rows[keep:], rows[:keep]
        if not rows.is_empty() and self._in_snapshot is None and not self.every_message:
            rows = self._from_first_snapshot(rows)
        if not rows.is_empty():
            yield self._joined(rows)

    def _from_first_snapshot(self, rows: pl.DataFrame) -> pl.DataFrame:
        first = rows["is_snapshot"].arg_max() or 0 if rows["is_snapshot"].any() else rows.height
        self.skipped += first
        self.intake.file.rows_in_lines -= first
        self.intake.file.other += first
        return rows[first:]

    def _joined(self, rows: pl.DataFrame) -> pl.DataFrame:
        """A row per message, its levels as lists."""
        time, snapshot = _time(rows).to_numpy(), rows["is_snapshot"].to_numpy()
        starts = np.concatenate([[True], (np.diff(time) != 0) | (snapshot[1:] != snapshot[:-1])])
        group = np.cumsum(starts) - 1
        count = int(group[-1]) + 1
        heads = np.flatnonzero(starts)
        was = np.concatenate([[bool(self._in_snapshot)], snapshot[heads][:-1]])
        self._in_snapshot = bool(snapshot[-1])
        rows = rows.with_columns(pl.Series(group, dtype=pl.Int64).alias("group"))
        sides = {}
        for side, best_first in (("bid", True), ("ask", False)):
            one = rows.filter(pl.col("side") == side)
            one = one.sort(["group", "price"], descending=[False, best_first], maintain_order=True)
            flat = one.select("price", "amount").to_numpy().ravel()
            sides[side] = level_lists(flat, np.bincount(one["group"].to_numpy(), minlength=count))
        first = self._messages
        self._messages += count
        head = rows[heads.tolist()]
        begins = snapshot[heads] & (self.every_message | ~was)
        return pl.DataFrame(
            {
                "line": head["line"],
                "exchange_at": head["timestamp"],
                "received_at": head["local_timestamp"],
                "kind": pl.Series(begins).replace_strict(
                    {True: "snapshot", False: "delta"}, return_dtype=pl.String
                ),
                "bids": sides["bid"],
                "asks": sides["ask"],
                "seq": pl.int_range(first, first + count, dtype=pl.Int64, eager=True),
            }
        )


def _time(rows: pl.DataFrame) -> pl.Series:
    return rows.select(pl.coalesce("local_timestamp", "timestamp")).to_series()


class _State:
    """Where a file stands between two blocks."""

    def __init__(self, intake: Intake) -> None:
        self.clocks = {name: Clock(name, None, ("us",)) for name in ("timestamp", "local_timestamp")}
        self.symbols: dict[str, LevelRows] = {}
        self.header = False


def _parse(block: Block, file: LineFile, intake: Intake, state: _State) -> pl.DataFrame | None:
    data, number = block.data, block.first_line
    if not state.header:
        line, _, data = data.partition(b"\n")
        found = line.decode("utf-8", "replace").strip().split(",")
        if found != list(_BOOK):
            raise HistoryError(
                f"{file.name}:{number}: expected the header {','.join(_BOOK)}, found {','.join(found):.200}"
            )
        state.header = True
        intake.file.lines += 1
        intake.file.other += 1
        number += 1
    block = Block(data, number)
    frame = parse(block, _LAYOUT, intake)
    if frame is None:
        return None
    frame = frame.with_columns(
        *(clock.column(frame[_BOOK[name]]).alias(name) for name, clock in state.clocks.items()),
        pl.col("snapshot")
        .replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)
        .alias("is_snapshot"),
        pl.col("qty").alias("amount"),
    )
    price, amount = pl.col("price"), pl.col("amount")
    rules: list[tuple[str, pl.Expr, str | Callable[[Any], str]]] = [
        *((name, pl.col(name).is_not_null(), clock.wrong) for name, clock in state.clocks.items()),
        ("symbol", pl.col("symbol").is_not_null(), "the name of a market"),
        ("is_snapshot", pl.col("is_snapshot").is_not_null(), "true or false"),
        ("side", pl.col("side").is_in(["bid", "ask"]), "bid or ask"),
        ("price", (price > 0) & price.is_finite(), "a number above 0"),
        ("amount", (amount >= 0) & amount.is_finite(), "a number of 0 or more"),
    ]
    for name, good, expected in rules:
        frame = _checked(frame, name, good, expected, block, intake)
    return frame


def _checked(
    frame: pl.DataFrame,
    name: str,
    good: pl.Expr,
    expected: str | Callable[[Any], str],
    block: Block,
    intake: Intake,
) -> pl.DataFrame:
    """Return the good rows, and reject the others with what their column has."""
    kept = frame.select(good.fill_null(False).alias("good"))["good"]
    if kept.all():
        return frame
    cell = cell_of(block, _LAYOUT)

    def reason(line: int) -> str:
        found = cell(line, _BOOK[name])
        return expected(found) if callable(expected) else f"{name} must be {expected}, found {found!r:.200}"

    intake.reject_all(frame.filter(~kept)["line"], reason, block.line)
    return frame.filter(kept)


def _take(
    rows: pl.DataFrame | None,
    intake: Intake,
    state: _State,
    watched: dict[str, tuple[OrderBook, Doubts]],
    *,
    last: bool,
) -> None:
    parts = (
        {}
        if rows is None
        else {str(name): part for (name,), part in rows.group_by("symbol", maintain_order=True)}
    )
    for name in parts.keys() | (state.symbols.keys() if last else {}):
        part = parts.get(name)
        if not intake.wants(name):
            intake.file.other += 0 if part is None else part.height
            continue
        intake.file.rows_in_lines += 0 if part is None else part.height
        for messages in state.symbols.setdefault(name, LevelRows(intake)).take(part, last=last):
            intake.book(name, messages)
            watch(messages, *watched.setdefault(name, (OrderBook(), Doubts())))


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
    intake.reject_all(bad["line"], lambda line: clocks["time"].wrong(values[line]), NO_TEXT)
    return frame.filter(pl.col("_at").is_not_null())


def _reject_bad(frame: pl.DataFrame, good: Any, intake: Intake, reason: str) -> pl.DataFrame:
    intake.reject_all(frame.filter(~pl.Series(good))["line"], lambda line: reason, NO_TEXT)
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
