"""Trades in text tables: a header or none, names in any case, and whatever order the columns have.

An archive describes its columns in a :class:`TradeTable`; :func:`read_trades` does the rest in blocks. A line is a
row: line breaks inside quotes are not supported.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from replaylab.errors import HistoryError, did_you_mean
from replaylab.importers.intake import Block, Intake, LineFile
from replaylab.timestamps import parse_ns

UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
# No exchange kept such records before, and the ranges of the four units stay far apart.
_FIRST, _LAST = parse_ns("2009-01-01"), parse_ns("2100-01-01")


class Clock:
    """Turns numbers of one clock into nanoseconds.

    >>> clock = Clock("local time")
    >>> clock.ns(1721347020984, "a.gz", 1)
    1721347020984000000

    The first time decides the unit unless it is given. A later time that is in another unit contradicts it:
    HistoryError with file and line.
    """

    def __init__(self, name: str, unit: str | None = None, allowed: tuple[str, ...] = tuple(UNITS)) -> None:
        if unit is not None and unit not in UNITS:
            raise HistoryError(f"a time unit is one of {', '.join(UNITS)}, found {unit!r}")
        self.name, self.unit, self.allowed = name, unit, allowed
        self.given = unit is not None

    def detect(self, value: int, file: str, line: int) -> str:
        """Return the unit, found from ``value`` if it is not known yet. Raises HistoryError."""
        if self.unit is None:
            self.unit = next((unit for unit in self.allowed if _fits(value, unit)), None)
        if self.unit is None:
            raise HistoryError(
                f"{file}:{line}: {self.name} {value} is no time between 2009 and 2100 in {' or '.join(self.allowed)}"
            )
        return self.unit

    def ns(self, value: int, file: str, line: int) -> int:
        """Return the nanoseconds of one time."""
        unit = self.detect(value, file, line)
        if not _fits(value, unit):
            self._refuse(value, file, line)
        return value * UNITS[unit]

    def column(self, values: pl.Series, lines: pl.Series, file: str) -> pl.Series:
        """Return nanoseconds of a column of whole numbers; nulls stay."""
        present = values.drop_nulls()
        if present.is_empty():
            return values.cast(pl.Int64)
        first = values.is_not_null().arg_max() or 0
        unit = self.detect(int(values[first]), file, int(lines[first]))
        least, most = int(present.min()), int(present.max())  # type: ignore[arg-type]
        if not (_fits(least, unit) and _fits(most, unit)):
            low, high = -(-_FIRST // UNITS[unit]), _LAST // UNITS[unit]
            bad = ((values < low) | (values >= high)).fill_null(False).arg_max() or 0
            self._refuse(int(values[bad]), file, int(lines[bad]))
        return values.cast(pl.Int64) * UNITS[unit]

    def _refuse(self, value: int, file: str, line: int) -> None:
        other = next((unit for unit in UNITS if _fits(value, unit)), None)
        was = "was given as" if self.given else "began in"
        raise HistoryError(
            f"{file}:{line}: {self.name} {value} is "
            + (f"in {other}" if other else "no time between 2009 and 2100")
            + f", but the {self.name} {was} {self.unit}"
        )


def _fits(value: int, unit: str) -> bool:
    return _FIRST <= value * UNITS[unit] < _LAST


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
    file_symbol: Callable[[str], str | None] | None = None  # the symbol in a file's name
    unknown_sides: tuple[str, ...] = ()  # values of the side column where the side is not known


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
    blank = bool((np.diff(ends, prepend=-1) <= 2).any())  # or a line of one character, which is checked too
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


_DATE = re.compile(r"\s*\d{4}-\d\d-\d\d", re.ASCII)
_BUY, _SELL = ("Buy", "BUY", "buy", "B", "b"), ("Sell", "SELL", "sell", "S", "s")
_TRUE, _FALSE = ("true", "True", "TRUE", "1", "t", "T"), ("false", "False", "FALSE", "0", "f", "F")


def read_trades(
    files: Iterable[Path],
    intake: Intake,
    table: TradeTable,
    *,
    unit: str | None = None,
    delimiter: str = ",",
) -> None:
    """Read files of trades into ``intake``. Raises HistoryError for what contradicts the table or itself."""
    for file in intake.open(files):
        clocks = {
            "time": Clock("time", unit, table.units),
            "received": Clock("receive time", None, table.units),
        }
        state = TradesState(file.name, clocks)
        reader: _TableReader | None = None
        for block in file.blocks():
            if reader is None:
                layout, block = detect(block, file, intake, table, delimiter)
                if layout is None:
                    continue
                reader = _TableReader(file, layout, intake, table, state, block)
            for frame, raw in parse(block, reader.layout, intake):
                reader.take(frame, raw)
        if reader is None:
            intake.note(f"{file.name} is empty")


def side_of(frame: pl.DataFrame) -> pl.Expr:
    """BUY or SELL of a ``side`` column of texts, or of a ``maker`` column; null where it says neither."""
    if "side" in frame.columns:
        return (
            pl.when(pl.col("side").is_in(_BUY))
            .then(pl.lit("BUY"))
            .when(pl.col("side").is_in(_SELL))
            .then(pl.lit("SELL"))
        ).otherwise(pl.lit(None, dtype=pl.String))
    if "maker" in frame.columns:  # a buyer who was the maker had a seller take
        return (
            pl.when(pl.col("maker").is_in(_TRUE))
            .then(pl.lit("SELL"))
            .when(pl.col("maker").is_in(_FALSE))
            .then(pl.lit("BUY"))
        ).otherwise(pl.lit(None, dtype=pl.String))
    return pl.lit(None, dtype=pl.String)


def tick_rule(price: pl.Series, last_price: float | None, last_side: str | None) -> pl.Series:
    """Return sides by the tick rule: BUY after a rise, SELL after a fall, as before at the same price.

    Before the first move there is no side. A price that is missing or not above 0 moves nothing.
    Source: C. M. C. Lee and M. J. Ready, "Inferring trade direction from intraday data", Journal of Finance 46 (1991).
    """
    price = price.set(~(price > 0).fill_null(False), None).fill_null(strategy="forward")
    if last_price is not None:
        price = price.fill_null(last_price)
    before = price.shift(1, fill_value=last_price)
    step = pl.when(price > before).then(pl.lit("BUY")).when(price < before).then(pl.lit("SELL"))
    sides = pl.select(step.otherwise(pl.lit(None, dtype=pl.String)).alias("side"))["side"]
    sides = sides.fill_null(strategy="forward")
    return sides if last_side is None else sides.fill_null(last_side)


def parse_times(values: pl.Series, clock: Clock, lines: pl.Series, file: str) -> pl.Series:
    """Return integer ns of times that are whole numbers, or decimal numbers as text; exact to the last digit."""
    if values.dtype.is_integer():
        return clock.column(values, lines, file)
    present = values.drop_nulls()
    if len(present) and _DATE.match(present[0]):
        clock.unit = clock.unit or "ns"
        return values.str.to_datetime(time_unit="ns", time_zone="UTC", strict=False).to_physical()
    even = _evenly_cut(values)
    if even is not None:
        whole, fraction, decimals = even
        ns = clock.column(whole, lines, file)
        digits = len(str(UNITS[clock.unit or "ns"])) - 1
        if decimals <= digits:
            return ns + fraction * int(10 ** (digits - decimals))
    parts = values.str.strip_chars().str.splitn(".", 2).struct.rename_fields(["whole", "fraction"]).struct
    whole, fraction = parts.field("whole").cast(pl.Int64, strict=False), parts.field("fraction").fill_null("")
    ns = clock.column(whole, lines, file)
    if clock.unit is None:
        return ns
    digits = len(str(UNITS[clock.unit])) - 1
    kept = fraction.str.strip_chars_end("0")
    below = (
        kept.str.pad_end(digits, "0").cast(pl.Int64, strict=False)
        if digits
        else kept.replace("", "0").cast(pl.Int64)
    )
    too_fine = kept.str.len_bytes() > digits
    if too_fine.any():
        index = too_fine.arg_max() or 0
        raise HistoryError(
            f"{file}:{lines[index]}: {clock.name} {values[index]!r} is finer than a nanosecond"
        )
    return ns + below


def _evenly_cut(values: pl.Series) -> tuple[pl.Series, pl.Series, int] | None:
    """Whole seconds, fraction and number of decimals where all texts have ten digits, a point, and the same length.

    That is what archives hold, and much faster than taking each text apart where its point is.
    """
    length = values.str.len_bytes()
    if (
        values.null_count()
        or length.min() != length.max()
        or not bool((values.str.slice(10, 1) == ".").all())
    ):
        return None
    decimals = int(length[0]) - 11
    whole = values.str.head(10).cast(pl.Int64, strict=False)
    fraction = values.str.slice(11).cast(pl.Int64, strict=False)
    unsigned = (
        bool((values.str.slice(11, 1).is_between(pl.lit("0"), pl.lit("9"))).all()) if decimals else False
    )
    if not unsigned or whole.null_count() or fraction.null_count():
        return None
    return whole, fraction, decimals


@dataclass
class TradesState:
    """What one file's rows so far let know: units of its clocks, direction of time, last price and side."""

    name: str
    clocks: dict[str, Clock]
    backwards: bool | None = None
    last_price: float | None = None
    last_side: str | None = None

    def trades(
        self,
        frame: pl.DataFrame,
        exchange: pl.Series,
        received: pl.Series | None,
        intake: Intake,
        *,
        numbered: bool = False,
    ) -> pl.DataFrame:
        """Return rows for ``Intake.trades`` (and ``symbol`` where the frame has one), with sides by the tick rule where
        no column has them."""
        if self.backwards is None:
            steps = exchange.diff().drop_nulls()
            self.backwards = int((steps < 0).sum()) > int((steps > 0).sum())
            if self.clocks["time"].unit:
                order = ", newest first" if self.backwards else ""
                intake.note(f"{self.name}: times in {self.clocks['time'].unit}{order}")
        off_market = (
            (pl.col("kind").fill_null("").str.to_uppercase() != "MARKET")
            if "kind" in frame.columns
            else pl.lit(False)
        )
        seq = (
            pl.col("id").cast(pl.Int64) if numbered else -pl.col("line") if self.backwards else pl.col("line")
        )
        trades = frame.select(
            "line",
            exchange.alias("exchange_at"),
            pl.lit(None, dtype=pl.Int64).alias("received_at")
            if received is None
            else received.alias("received_at"),
            pl.col("price").cast(pl.Float64, strict=False),
            pl.col("qty").cast(pl.Float64, strict=False),
            side_of(frame).alias("side"),
            (pl.col("id") if "id" in frame.columns else pl.lit(None, dtype=pl.String)).alias("trade_id"),
            off_market.alias("off_market"),
            seq.alias("seq"),
            *(["symbol"] if "symbol" in frame.columns else []),
        )
        return trades if {"side", "maker"} & {*frame.columns} else self._by_tick_rule(trades, intake)

    def _by_tick_rule(self, trades: pl.DataFrame, intake: Intake) -> pl.DataFrame:
        if self.backwards:
            raise HistoryError(
                f"{self.name}: without a side column the trades must run forwards in time (tick rule)"
            )
        sides = tick_rule(trades["price"], self.last_price, self.last_side)
        known = trades["price"].filter(trades["price"] > 0)
        if len(known):
            self.last_price = float(known[-1])
        self.last_side = sides[-1]
        intake.note(f"{self.name}: no side column, sides by the tick rule")
        return trades.with_columns(sides.alias("side"))


@dataclass
class _TableReader:
    """Turns the typed blocks of one file into trades and hands them over, symbol by symbol."""

    file: LineFile
    layout: Layout
    intake: Intake
    table: TradeTable
    state: TradesState
    block: Block

    def take(self, frame: pl.DataFrame, block: Block) -> None:
        self.block = block
        frame = self._known_sides(frame)
        if self.table.numbered:
            whole = frame["id"].cast(pl.Int64, strict=False).is_not_null()
            frame = self._only(frame, whole, "id", "the id must be a whole number")
        if frame.is_empty():
            return
        lines, clocks = frame["line"], self.state.clocks
        exchange = parse_times(frame["time"], clocks["time"], lines, self.file.name)
        received = None
        if "received" in frame.columns:
            received = parse_times(frame["received"], clocks["received"], lines, self.file.name)
        trades = self.state.trades(frame, exchange, received, self.intake, numbered=self.table.numbered)
        backwards = bool(self.state.backwards)
        for symbol, rows in self._by_symbol(trades):
            self.intake.trades(
                symbol, rows, backwards=backwards, numbered=self.table.numbered, text=self._line
            )

    def _line(self, number: int) -> str:
        return self.block.data.split(b"\n")[number - self.block.first_line].decode("utf-8", "replace")

    def _only(self, frame: pl.DataFrame, good: pl.Series, column: str, expected: str) -> pl.DataFrame:
        """Return the good rows; reject the others with what their column has."""
        if good.all():
            return frame
        for line, found in frame.filter(~good).select("line", column).iter_rows():
            self.intake.reject(line, f"{expected}, found {found!r}", self._line(line))
        return frame.filter(good)

    def _known_sides(self, frame: pl.DataFrame) -> pl.DataFrame:
        column = "side" if "side" in frame.columns else "maker" if "maker" in frame.columns else None
        if column is None:
            return frame
        allowed = [*_BUY, *_SELL, *self.table.unknown_sides] if column == "side" else [*_TRUE, *_FALSE]
        expected = "a buy or sell" if column == "side" else "true or false"
        good = frame[column].is_in(allowed).fill_null(False)
        return self._only(frame, good, column, f"{self.layout.shown(column)} must be {expected}")

    def _by_symbol(self, trades: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        intake, name = self.intake, self.file.name
        if "symbol" in trades.columns:
            for (symbol,), rows in trades.group_by("symbol", maintain_order=True):
                if symbol is None or not str(symbol).strip():
                    for line in rows["line"]:
                        intake.reject(line, "no symbol")
                elif intake.wants(str(symbol)):
                    yield str(symbol), rows.drop("symbol")
                else:
                    intake.file.other += rows.height
            return
        named = self.table.file_symbol(self.file.hint) if self.table.file_symbol else None
        symbol = intake.symbol or named
        if symbol is None:
            raise HistoryError(f"{name}: neither the rows nor the file's name has a symbol: give symbol=...")
        if named and intake.symbol and named != intake.symbol and intake.save_as is None:
            raise HistoryError(
                f"{name} is named after {named}, but symbol={intake.symbol!r} is asked for. "
                f"To store it under that name: symbol={named!r}, save_as={intake.symbol!r}"
            )
        yield symbol, trades
