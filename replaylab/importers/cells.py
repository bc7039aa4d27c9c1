"""Text tables as typed blocks: where the header is, which column is which, and which lines are no rows."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from replaylab.errors import HistoryError, did_you_mean
from replaylab.importers.clocks import UNITS
from replaylab.importers.intake import Intake
from replaylab.importers.reading import Block, LineFile

__all__ = ["Layout", "TradeTable", "detect", "folded", "parse"]

_NUMBER = re.compile(rb"[+-]?\d*\.?\d+(?:[eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class TradeTable:
    """What the columns of an archive are called and mean.

    ``names``: our column → the names it goes by in headers, folded (lower case, letters and digits only). Ours are
    time, received, price, qty, side (of the taker), maker (buyer is maker: true or false), id, symbol, kind (anything
    but MARKET is off the market). ``headerless``: our columns in order ("" = not used), by the number of columns.
    """

    names: Mapping[str, tuple[str, ...]]
    headerless: tuple[tuple[str, ...], ...] = ()
    required: tuple[str, ...] = ("time", "price", "qty")
    units: tuple[str, ...] = tuple(UNITS)
    numbered: bool = False  # ids are whole numbers that count up by one
    file_symbol: str | None = None  # pattern whose first group in a file's name is the symbol
    unknown_sides: tuple[str, ...] = ()  # what stands in the side column where the side is not known


@dataclass
class Layout:
    """The columns of one file."""

    columns: list[str]  # ours, or "" where not used
    header: list[str] | None
    delimiter: str
    decimal_times: dict[str, bool] = field(default_factory=dict)

    def shown(self, ours: str) -> str:
        return (
            self.header[self.columns.index(ours)] if self.header else f"column {self.columns.index(ours) + 1}"
        )


def folded(name: str) -> str:
    """Return a header's name for comparison: lower case, letters and digits only."""
    return "".join(mark for mark in name.casefold() if mark.isalnum())


def detect(
    block: Block, file: LineFile, intake: Intake, table: TradeTable, delimiter: str
) -> tuple[Layout | None, Block]:
    """Find header and columns in the first line that is not blank; return what follows them."""
    data, number = block
    while data:
        line, _, rest = data.partition(b"\n")
        if line.strip():
            break
        intake.file.lines += 1
        intake.file.blank += 1
        data, number = rest, number + 1
    else:
        return None, block
    cells = [cell.strip().strip('"') for cell in line.decode("utf-8", "replace").split(delimiter)]
    if any(_NUMBER.fullmatch(cell.encode()) for cell in cells):
        layout = _headerless(cells, file, number, table, delimiter)
        intake.note(f"{file.name}: no header, {len(cells)} columns")
        first = line
    else:
        columns = _by_name(cells, file, number, table)
        intake.note(f"{file.name}: header with {len(cells)} columns")
        intake.file.lines += 1
        intake.file.other += 1
        data, number = rest, number + 1
        first = next((one for one in data.split(b"\n", 8)[:8] if one.strip()), b"")
        width = first.count(delimiter.encode()) + 1
        if first and width == len(cells) + 1:
            # Some archives name a column less than they have; it is the last one.
            intake.note(f"{file.name}: the header is a column short; the last column is not used")
            columns.append("")
            cells.append("")
        layout = Layout(columns, cells, delimiter)
    values = first.split(delimiter.encode())
    for ours in ("time", "received"):
        if ours in layout.columns and layout.columns.index(ours) < len(values):
            layout.decimal_times[ours] = not values[layout.columns.index(ours)].strip().strip(b'"').isdigit()
    return layout, Block(data, number)


def _headerless(cells: list[str], file: LineFile, number: int, table: TradeTable, delimiter: str) -> Layout:
    for columns in table.headerless:
        if len(columns) == len(cells):
            return Layout(list(columns), None, delimiter)
    known = " or ".join(str(len(columns)) for columns in table.headerless)
    raise HistoryError(
        f"{file.name}:{number}: {len(cells)} columns and no header; "
        + (f"without a header there are {known}" if known else "a header is needed")
    )


def _by_name(cells: list[str], file: LineFile, number: int, table: TradeTable) -> list[str]:
    columns = []
    for cell in cells:
        ours = next((ours for ours, names in table.names.items() if folded(cell) in names), "")
        columns.append(ours if ours not in columns else "")
    for ours in table.required:
        if ours not in columns:
            wanted = table.names[ours]
            hint = did_you_mean(wanted[0], cells)
            raise HistoryError(
                f"{file.name}:{number}: the header has no column for {ours} ({' or '.join(wanted)}); "
                f"it has {', '.join(cells)}.{hint}"
            )
    return columns


def parse(block: Block, layout: Layout, intake: Intake) -> Iterator[tuple[pl.DataFrame, Block]]:
    """Yield the block as a frame of typed columns and ``line``; what has not the right columns is rejected."""
    if not block.data:
        return
    commas = len(layout.columns) - 1
    marks = np.frombuffer(block.data, dtype=np.uint8)  # some ten times as fast as bytes.count
    ends = np.flatnonzero(marks == ord("\n"))
    rows = len(ends) + (not block.data.endswith(b"\n"))
    regular = int(np.count_nonzero(marks == ord(layout.delimiter))) == rows * commas
    blank = bool((np.diff(ends, prepend=-1) <= 2).any())  # or a line of one character, which is looked at too
    lines: pl.Series | None = None
    data = block.data
    frame = None if blank or not regular else _typed(data, layout)
    if frame is None or frame.height != rows:
        data, lines = _regular_lines(block, layout, intake)
        frame = _typed(data, layout) if data else None
    intake.file.lines += rows
    if frame is None:
        return
    if lines is None:
        lines = pl.int_range(block.first_line, block.first_line + rows, dtype=pl.Int64, eager=True)
    yield frame.with_columns(lines.alias("line")), block


def _typed(data: bytes, layout: Layout) -> pl.DataFrame | None:
    """Read the columns that are used; a cell that is no number becomes null. None where rows differ in width."""
    schema: dict[str, type[pl.DataType]] = {}
    used = []
    for index, ours in enumerate(layout.columns):
        kind: type[pl.DataType] = pl.String
        if ours in ("price", "qty"):
            kind = pl.Float64
        elif ours in ("time", "received") and not layout.decimal_times.get(ours, False):
            kind = pl.Int64
        schema[ours or f"unused {index}"] = kind
        if ours:
            used.append(index)
    try:
        return pl.read_csv(
            io.BytesIO(data),
            has_header=False,
            schema=schema,
            columns=used,
            separator=layout.delimiter,
            ignore_errors=True,
        )
    except pl.exceptions.PolarsError:
        return None


def _regular_lines(block: Block, layout: Layout, intake: Intake) -> tuple[bytes, pl.Series]:
    """Return the lines with the right number of columns, and their numbers; reject the others."""
    kept, numbers = [], []
    width = len(layout.columns)
    for number, line in enumerate(block.data.split(b"\n"), block.first_line):
        if not line.strip():
            continue
        if b'"' in line:
            cells = len(next(csv.reader([line.decode("utf-8", "replace")], delimiter=layout.delimiter)))
        else:
            cells = line.count(layout.delimiter.encode()) + 1
        if cells == width and b"\0" not in line:
            kept.append(line)
            numbers.append(number)
        else:
            intake.reject(number, f"expected {width} columns, found {cells}", line)
    total = block.data.count(b"\n") + (not block.data.endswith(b"\n"))
    rejected = sum(1 for line in block.data.split(b"\n") if line.strip()) - len(kept)
    intake.file.blank += total - len(kept) - rejected
    return b"\n".join(kept), pl.Series(numbers, dtype=pl.Int64)
