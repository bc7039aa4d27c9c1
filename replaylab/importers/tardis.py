"""Tardis.dev CSV files: ``trades`` and ``incremental_book_L2``.

In a book file a row is a level; rows of one ``local_timestamp`` are one message. Rows before the first snapshot are
left out. Where ``is_snapshot`` turns true the book starts again; a snapshot of several messages becomes one snapshot
row and deltas that complete it. Quantity 0 deletes a level.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from replaylab.errors import HistoryError
from replaylab.features import OrderBook
from replaylab.history import level_lists
from replaylab.importers.files import Block, LineFile
from replaylab.importers.intake import Intake
from replaylab.importers.messages import Doubts, watch
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
        *(clock.column(frame[name]).alias(name) for name, clock in state.clocks.items()),
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
        intake.file.blank += int(empty.sum())
        intake.reject_all(
            frame.filter(~good & ~empty)["line"], lambda line: "not a level of a book", block.line
        )
        frame = frame.filter(good)
    return frame


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
