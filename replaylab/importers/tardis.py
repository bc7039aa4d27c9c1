"""Tardis.dev CSV files: ``trades`` and ``incremental_book_L2``.

In a book file a row is a level; rows of one ``local_timestamp`` are one message. Rows before the first snapshot are
left out. Where ``is_snapshot`` turns true the book starts again; a snapshot of several messages becomes one snapshot
row and deltas that complete it. Quantity 0 deletes a level.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from replaylab.errors import HistoryError
from replaylab.history import level_lists
from replaylab.importers.intake import Block, Intake, LineFile
from replaylab.importers.text_tables import Clock, TradeTable, read_trades

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
_BOOK: dict[str, type[pl.DataType]] = {
    "exchange": pl.String,
    "symbol": pl.String,
    "timestamp": pl.Int64,
    "local_timestamp": pl.Int64,
    "is_snapshot": pl.String,
    "side": pl.String,
    "price": pl.Float64,
    "amount": pl.Float64,
}


def read_single(files: Iterable[Path], intake: Intake) -> None:
    """Read ``trades`` files."""
    read_trades(files, intake, _TRADES)


def read_book(files: Iterable[Path], intake: Intake) -> None:
    """Read ``incremental_book_L2`` files."""
    for file in intake.open(files):
        state = _State()
        for block in file.blocks():
            rows = _parse(block, file, intake, state)
            if rows is not None:
                # The last message of a block may continue in the next one.
                _take(rows, file, intake, state, last=False)
        if state.rest is not None:
            _take(state.rest.clear(), file, intake, state, last=True)
        if state.skipped:
            intake.note(f"{file.name}: {state.skipped} rows before the first snapshot left out")


class _State:
    """Where a file stands between two blocks."""

    def __init__(self) -> None:
        self.clocks = {name: Clock(name, None, ("us",)) for name in ("timestamp", "local_timestamp")}
        self.rest: pl.DataFrame | None = None
        self.in_snapshot: dict[
            str, bool
        ] = {}  # symbols whose book is known, and whether the last row was snapshot
        self.messages = 0
        self.skipped = 0
        self.header = False


def _parse(block: Block, file: LineFile, intake: Intake, state: _State) -> pl.DataFrame | None:
    data, number = block
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
    if not data:
        return None
    rows = data.count(b"\n") + (not data.endswith(b"\n"))
    intake.file.lines += rows
    try:
        frame = pl.read_csv(io.BytesIO(data), has_header=False, schema=_BOOK, ignore_errors=True)
    except pl.exceptions.PolarsError as error:
        raise HistoryError(f"{file.name}: from line {number} on: {error}") from None
    if frame.height != rows:
        raise HistoryError(f"{file.name}: from line {number} on: {rows} lines hold {frame.height} rows")
    lines = pl.int_range(number, number + rows, dtype=pl.Int64, eager=True)
    frame = frame.with_columns(
        lines.alias("line"),
        state.clocks["timestamp"].column(frame["timestamp"], lines, file.name).alias("timestamp"),
        state.clocks["local_timestamp"]
        .column(frame["local_timestamp"], lines, file.name)
        .alias("local_timestamp"),
        pl.col("is_snapshot").replace_strict(
            {"true": True, "false": False}, default=None, return_dtype=pl.Boolean
        ),
    )
    empty = frame.select(pl.all_horizontal(pl.col(name).is_null() for name in _BOOK).alias("empty"))["empty"]
    price, amount = pl.col("price"), pl.col("amount")
    fine = (
        pl.all_horizontal(pl.col(name).is_not_null() for name in _BOOK)
        & pl.col("side").is_in(["bid", "ask"])
        & (price > 0)
        & price.is_finite()
        & (amount >= 0)
        & amount.is_finite()
    ).fill_null(False)
    good = frame.select(fine.alias("fine"))["fine"]
    if not good.all():
        texts = data.split(b"\n")
        intake.file.blank += int(empty.sum())
        for line_number in frame.filter(~good & ~empty)["line"]:
            intake.reject(line_number, "not a level of a book", texts[line_number - number])
        frame = frame.filter(good)
    return frame


def _take(rows: pl.DataFrame, file: LineFile, intake: Intake, state: _State, *, last: bool) -> None:
    if state.rest is not None:
        rows = pl.concat([state.rest, rows])
    state.rest = None
    if rows.is_empty():
        return
    if not last:
        going_on = rows["local_timestamp"] == rows["local_timestamp"][-1]
        keep = (
            len(going_on) - int((~going_on).cast(pl.Int64).reverse().arg_max() or 0)
            if not going_on.all()
            else 0
        )
        state.rest, rows = rows[keep:], rows[:keep]
        if rows.is_empty():
            return
    for key, part in rows.group_by("symbol", maintain_order=True):
        name = str(key[0])
        if not intake.wants(name):
            intake.file.other += part.height
            continue
        part = _from_first_snapshot(name, part, intake, state)
        if not part.is_empty():
            intake.file.rows_in_lines += part.height
            intake.book(name, _messages(name, part, state))


def _from_first_snapshot(name: str, rows: pl.DataFrame, intake: Intake, state: _State) -> pl.DataFrame:
    if name in state.in_snapshot:
        return rows
    first = rows["is_snapshot"].arg_max() or 0 if rows["is_snapshot"].any() else rows.height
    state.skipped += first
    intake.file.other += first
    if first < rows.height:
        state.in_snapshot[name] = False
    return rows[first:]


def _messages(name: str, rows: pl.DataFrame, state: _State) -> pl.DataFrame:
    """A row per message, its levels as lists."""
    time, snapshot = rows["local_timestamp"].to_numpy(), rows["is_snapshot"].to_numpy()
    starts = np.concatenate([[True], (np.diff(time) != 0) | (snapshot[1:] != snapshot[:-1])])
    group = np.cumsum(starts) - 1
    count = int(group[-1]) + 1
    heads = np.flatnonzero(starts)
    was = np.concatenate([[state.in_snapshot[name]], snapshot[heads][:-1]])
    state.in_snapshot[name] = bool(snapshot[-1])
    rows = rows.with_columns(pl.Series(group, dtype=pl.Int64).alias("group"))
    sides = {}
    for side, best_first in (("bid", True), ("ask", False)):
        one = rows.filter(pl.col("side") == side)
        one = one.sort(["group", "price"], descending=[False, best_first], maintain_order=True)
        flat = one.select("price", "amount").to_numpy().ravel()
        sides[side] = level_lists(flat, np.bincount(one["group"].to_numpy(), minlength=count))
    first = state.messages
    state.messages += count
    head = rows[heads.tolist()]
    return pl.DataFrame(
        {
            "line": head["line"],
            "exchange_at": head["timestamp"],
            "received_at": head["local_timestamp"],
            "kind": pl.Series(snapshot[heads] & ~was).replace_strict(
                {True: "snapshot", False: "delta"}, return_dtype=pl.String
            ),
            "bids": sides["bid"],
            "asks": sides["ask"],
            "seq": pl.int_range(first, first + count, dtype=pl.Int64, eager=True),
        }
    )
