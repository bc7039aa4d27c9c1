"""Trades in tables: a header or none, names in any case, and whatever order the columns have.

An archive describes its columns in a :class:`TradeTable`; :func:`read_trades` reads delimited text in blocks, and
:class:`TradeRows` turns frames of any source into rows of history. A line is a row: line breaks inside quotes are not
supported.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.errors import HistoryError, TimeError, did_you_mean
from replaylab.importers.files import Block, LineFile
from replaylab.importers.intake import NO_TEXT, Intake
from replaylab.timestamps import parse_ns

UNITS = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
# No exchange kept such records before, and the ranges of the four units stay far apart.
_FIRST, _LAST = parse_ns("2009-01-01"), parse_ns("2100-01-01")
_MAX_HEADER = 65_536
# A row of a thousand levels has some 50 KB.
_MAX_ROW = 1 << 20


class Clock:
    """Turns times of one clock into nanoseconds.

    >>> clock = Clock("local time")
    >>> clock.ns(1721347020984)
    1721347020984000000

    The first numbers decide the unit unless it is given. ``zone``: where ISO times without an offset are from
    (default UTC). What is no time, or in another unit, is None in a column and a ValueError of ``ns``.
    """

    def __init__(
        self,
        name: str,
        unit: str | None = None,
        allowed: tuple[str, ...] = tuple(UNITS),
        zone: str | None = None,
    ) -> None:
        if unit is not None and unit not in UNITS:
            raise HistoryError(f"a time unit is one of {', '.join(UNITS)}, found {unit!r}")
        if zone is not None:
            try:
                ZoneInfo(zone)
            except (ValueError, OSError, KeyError) as error:
                raise HistoryError(
                    f"time_zone is a name such as Europe/Berlin, found {zone!r}: {error}"
                ) from None
        self.name, self.unit, self.allowed, self.zone = name, unit, allowed, zone
        self.given = unit is not None

    def ns(self, value: int) -> int:
        """Return the nanoseconds of one time. Raises ValueError."""
        if self.unit is None:
            self.unit = next((unit for unit in self.allowed if _fits(value, unit)), None)
        if self.unit is None or not _fits(value, self.unit):
            raise ValueError(self.wrong(value))
        return value * UNITS[self.unit]

    def column(self, values: pl.Series) -> pl.Series:
        """Return nanoseconds of a column of whole numbers, null where one is no time in the unit."""
        if self.unit is None:
            sample = [int(value) for value in values.drop_nulls().head(1_000)]
            fitting = {unit: sum(_fits(value, unit) for value in sample) for unit in self.allowed}
            best = max(fitting, key=lambda unit: fitting[unit])
            self.unit = best if fitting[best] else None
        if self.unit is None:
            return pl.Series(values.name, [None], dtype=pl.Int64).new_from_index(0, len(values))
        scale = UNITS[self.unit]
        values = values.cast(pl.Int64, strict=False)
        inside = (values >= -(-_FIRST // scale)) & (values < _LAST // scale)
        return (values if inside.all() else values.set(~inside.fill_null(False), None)) * scale

    def wrong(self, found: Any) -> str:
        """Say why a time is not usable."""
        text = str(found).strip()
        if found is None or not text:
            return "no usable time, found nothing"
        shown = f"{self.name} {text if text.isdigit() else repr(text)}"
        if re.fullmatch(r"[\d.,]+[eE]\+?\d+", text):
            return f"{shown} has lost its last digits: write the column as whole numbers, not as 1.7E+12"
        fraction = text.partition(".")[2]
        if fraction.isdigit() and self.unit and len(fraction.rstrip("0")) > len(str(UNITS[self.unit])) - 1:
            return f"{shown} is finer than a nanosecond"
        whole = int(text) if text.isdigit() and len(text) < 25 else None
        if self.zone is not None and _iso_ns(text) is not None:
            return f"{shown} occurs twice or never in {self.zone}, where the clock changes"
        other = next((unit for unit in UNITS if whole is not None and _fits(whole, unit)), None)
        if other and self.unit:
            was = "was given as" if self.given else "began in"
            return f"{shown} is in {other}, but the {self.name} {was} {self.unit}"
        return f"{shown} is no time between 2009 and 2100 in {self.unit or ' or '.join(self.allowed)}"


def _fits(value: int, unit: str) -> bool:
    return _FIRST <= value * UNITS[unit] < _LAST


def parse_times(
    values: pl.Series, clock: Clock, note: Callable[[str], None] = lambda text: None
) -> pl.Series:
    """Return ns of whole numbers, decimals or ISO times as text, floats or datetimes; null where one is no time.

    Exact to the last digit, but for fractional floats: those are rounded to the microsecond, which ``note`` says.
    """
    if isinstance(values.dtype, pl.Datetime):
        moments = _in_utc(values, clock.zone)
        return Clock(clock.name, values.dtype.time_unit).column(moments.to_physical())
    if values.dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        if bool((values == whole).fill_null(True).all()):
            if bool((whole > 1 << 53).any()):
                note("times are floats of more than 16 digits, to the nearest 256")
            return clock.column(whole)
        clock.column(whole)
        per = {"s": 6, "ms": 3}.get(clock.unit or "s")
        if per is None:
            raise HistoryError(f"the times are fractions of {clock.unit}: floats cannot hold those exactly")
        note("times are fractional floats, rounded to the nearest microsecond")
        return Clock(clock.name, "us").column((values * 10**per).round().cast(pl.Int64, strict=False))
    if not isinstance(values.dtype, pl.String):
        return clock.column(values)
    dated = values.str.contains(r"^\s*\d{4}-\d\d-\d\d").fill_null(False)
    if dated.all():
        return _iso_times(values, clock.zone)
    if not dated.any():
        return _decimal_times(values, clock)
    dates = _iso_times(values.set(~dated, None), clock.zone)
    return dates.zip_with(dated, _decimal_times(values.set(dated, None), clock))


def _decimal_times(values: pl.Series, clock: Clock) -> pl.Series:
    even = _evenly_cut(values)
    if even is not None:
        whole, fraction, decimals = even
        ns = clock.column(whole)
        digits = len(str(UNITS[clock.unit or "ns"])) - 1
        if decimals <= digits:
            return ns + fraction * int(10 ** (digits - decimals))
    values = values.str.strip_chars()
    values = values.set(~values.str.contains(r"^\d{1,19}(\.\d*)?$").fill_null(False), None)
    parts = values.str.splitn(".", 2).struct.rename_fields(["whole", "fraction"]).struct
    ns = clock.column(parts.field("whole").cast(pl.Int64, strict=False))
    if clock.unit is None:
        return ns
    digits = len(str(UNITS[clock.unit])) - 1
    kept = parts.field("fraction").fill_null("").str.strip_chars_end("0")
    kept = kept.set(kept.str.len_bytes() > digits, None)  # finer than a nanosecond
    return ns + pl.Series(kept + "0" * digits).str.head(digits).replace("", "0").cast(pl.Int64, strict=False)


def _evenly_cut(values: pl.Series) -> tuple[pl.Series, pl.Series, int] | None:
    """Whole seconds, fraction and number of decimals where all texts have ten digits, a point, and the same length.

    That is what archives hold, and much faster than splitting each string at its point.
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


def _iso_times(values: pl.Series, zone: str | None) -> pl.Series:
    plain = values.str.strip_chars()
    if bool(plain.str.contains(r"([a-zA-Y]|[+-]\d\d)$").any()):  # 12:00:00 UTC, 12:00:00+00
        plain = plain.str.replace(r"\s*(z|UTC|GMT)$", "Z").str.replace(r"(:.*[+-]\d\d)$", "${1}:00")
    plain = plain.str.replace("T", " ", literal=True)
    offset = plain.str.contains(r":.*(Z|[+-]\d\d:?\d\d)$").fill_null(False)
    aware = plain.set(~offset, None).str.replace("Z", "+00:00", literal=True)
    utc = aware.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%:z", time_unit="ns", strict=False).to_physical()
    naive = plain.set(offset, None).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False)
    found = utc.zip_with(offset, _in_utc(naive, zone).to_physical())
    # Other ISO forms, a date alone for instance.
    left = found.is_null() & values.is_not_null()
    if left.any():
        others = {text: _iso_ns(text) for text in plain.filter(left).unique()}
        some = plain.replace_strict(others, default=None, return_dtype=pl.Int64)
        at_utc = left & offset
        found = some.zip_with(at_utc, found)
        if not offset.all():
            moments = some.set(offset, None).cast(pl.Datetime("ns"))
            found = _in_utc(moments, zone).to_physical().zip_with(left & ~offset, found)
    first, last = _FIRST, _LAST
    return found.set(~((found >= first) & (found < last)).fill_null(False), None)


def _iso_ns(text: str) -> int | None:
    try:
        return parse_ns(text.strip())
    except TimeError:
        return None


def _in_utc(moments: pl.Series, zone: str | None) -> pl.Series:
    """Convert datetimes to UTC; those without a zone are of ``zone``, null where a clock change blurs them."""
    dtype = moments.dtype
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is None:
        if zone is None:
            return moments.dt.replace_time_zone("UTC")
        moments = moments.dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
    return moments.dt.convert_time_zone("UTC")


_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_MAX_NUMBER = 64
_SAMPLE_ROWS = 200  # show how a file writes its numbers and times


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
    short_header: bool = False  # the header may lack the name of the last column
    file_symbol: Callable[[str], str | None] | None = None  # the symbol in a file's name
    # Words of the side column, in lower case.
    buy_words: tuple[str, ...] = ("buy", "b")
    sell_words: tuple[str, ...] = ("sell", "s")
    any_words: bool = False  # the caller may name others
    unknown_sides: tuple[str, ...] = ()  # where the side is not known


@dataclass
class Layout:
    """The columns of one file."""

    columns: list[str]  # ours, or "" where not used
    header: list[str] | None
    delimiter: str
    decimal_comma: bool = False
    decimal_times: dict[str, bool] = field(default_factory=dict)

    def shown(self, ours: str) -> str:
        return (
            self.header[self.columns.index(ours)] if self.header else f"column {self.columns.index(ours) + 1}"
        )


def folded(name: str) -> str:
    """Return a header's name for comparison: lower case, letters and digits only."""
    return "".join(mark for mark in name.casefold() if mark.isalnum())


def cells_of(line: bytes, delimiter: str) -> list[str]:
    """Return the cells of a line, quotes taken off; [] where the quotes do not fit."""
    try:
        return [
            cell.strip() for cell in next(csv.reader([line.decode("utf-8", "replace")], delimiter=delimiter))
        ]
    except (csv.Error, StopIteration):
        return []


def detect(
    block: Block,
    file: LineFile,
    intake: Intake,
    table: TradeTable,
    delimiter: str | None,
    named: list[str] | None = None,
) -> tuple[Layout | None, Block]:
    """Find delimiter, header and columns in the first line that is not blank; return what follows them."""
    data, number = block.data, block.first_line
    while data:
        line, _, rest = data.partition(b"\n")
        if line.strip():
            break
        intake.file.lines += 1
        intake.file.blank += 1
        data, number = rest, number + 1
    else:
        return None, block
    _refuse_other_kinds(line, file, number)
    if delimiter is None:
        delimiter = max(",;\t|", key=lambda mark: line.count(mark.encode()))
    cells = cells_of(line, delimiter)
    numeric = any(len(cell) < _MAX_NUMBER and _NUMBER.fullmatch(cell.encode()) for cell in cells)
    if named is not None or numeric:
        layout = _headerless(cells, file, number, table, delimiter, named)
        if not numeric and {folded(cell) for cell in cells} & {folded(name) for name in named or () if name}:
            raise HistoryError(
                f"{file.name}:{number}: columns=... is for a file without a header, this is one: {line!r:.200}"
            )
        intake.note(f"{file.name}: no header, {len(cells)} columns")
        first = line
    else:
        columns = _by_name(cells, file, number, table)
        intake.note(f"{file.name}: header with {len(cells)} columns")
        intake.file.lines += 1
        intake.file.other += 1
        data, number = rest, number + 1
        first = next((one for one in _sample(data, 8) if one.strip()), b"")
        if table.short_header and first and len(cells_of(first, delimiter)) == len(cells) + 1:
            # Some archives name a column less than they have; it is the last one.
            intake.note(f"{file.name}: the header is a column short; the last column is not used")
            columns.append("")
            cells.append("")
        layout = Layout(columns, cells, delimiter)
    rows = [
        dict(zip(layout.columns, cells_of(one, delimiter), strict=False))
        for one in _sample(data, _SAMPLE_ROWS)
    ]
    numbers = [row.get(name, "") for row in rows for name in ("price", "qty")]
    commas, points = (
        sum(bool(re.fullmatch(rf"\d+{mark}\d+", cell)) for cell in numbers) for mark in (",", r"\.")
    )
    if delimiter != "," and commas > points:
        layout.decimal_comma = True
        intake.note(f"{file.name}: numbers with a decimal comma")
    for ours in ("time", "received"):
        times = [row.get(ours, "") for row in rows]
        layout.decimal_times[ours] = not any(cell.isdigit() for cell in times) or any(
            re.match(r"\d+\.\d|\d{4}-\d\d-\d\d", cell) for cell in times
        )
    return layout, Block(data, number)


def _sample(data: bytes, rows: int) -> list[bytes]:
    return [line for line in data.split(b"\n", rows)[:rows] if len(line) <= _MAX_HEADER]


def _refuse_other_kinds(line: bytes, file: LineFile, number: int) -> None:
    start = line.lstrip()[:4]
    if start[:1] in (b"{", b"["):
        raise HistoryError(f"{file.name}:{number}: this is JSON: use json, or the format of a capture")
    if b"\r" in line.rstrip(b"\r"):
        raise HistoryError(
            f"{file.name}:{number}: has carriage returns within the line: line breaks are \\n or \\r\\n, not \\r alone"
        )
    if start == b"PAR1":
        raise HistoryError(f"{file.name}: this is Parquet: use parquet")
    if len(line) > _MAX_HEADER:
        raise HistoryError(
            f"{file.name}:{number}: the first line has {len(line):,} bytes: no header of a table"
        )


def _headerless(
    cells: list[str], file: LineFile, number: int, table: TradeTable, delimiter: str, named: list[str] | None
) -> Layout:
    if named is not None:
        if len(named) != len(cells):
            raise HistoryError(f"{file.name}:{number}: {len(cells)} columns, but columns names {len(named)}")
        return Layout(_by_name(named, file, number, table), None, delimiter)
    for columns in table.headerless:
        if len(columns) == len(cells):
            return Layout(list(columns), None, delimiter)
    known = " or ".join(str(len(columns)) for columns in table.headerless)
    raise HistoryError(
        f"{file.name}:{number}: {len(cells)} columns and no header; "
        + (f"without a header there are {known}" if known else "name them in their order with columns=...")
    )


def _by_name(cells: list[str], file: LineFile, number: int, table: TradeTable) -> list[str]:
    columns = [""] * len(cells)
    for ours, index in find_columns(cells, table, f"{file.name}:{number}").items():
        columns[index] = columns[index] or ours
    return columns


def find_columns(names: list[str], table: TradeTable, where: str) -> dict[str, int]:
    """Return our names of the columns that are there, with their positions.

    Raises HistoryError for a needed one that is missing, and for two of one name.
    """
    have = [folded(name) for name in names]
    found: dict[str, int] = {}
    for ours in dict.fromkeys((*table.names, *table.required)):
        wanted = table.names.get(ours, (ours,))
        known = next((name for name in wanted if name in have), None)
        if known is not None:
            found[ours] = have.index(known)
            if have.count(known) > 1:
                raise HistoryError(
                    f"{where}: two columns have the name {names[found[ours]]!r} (without regard to case and marks): "
                    "rename one"
                )
        elif ours in table.required:
            raise HistoryError(
                f"{where}: no column for {ours} ({' or '.join(wanted)}); it has {', '.join(names)[:500]}."
                + did_you_mean(wanted[0], names)
            )
    return found


def parse(block: Block, layout: Layout, intake: Intake) -> pl.DataFrame | None:
    """Return the block as a frame of typed columns and ``line``; what has not the right columns is rejected."""
    if not block.data:
        return None
    if len(block.data) > _MAX_ROW:
        sizes = np.diff(block.ends, prepend=0)
        if bool((sizes > _MAX_ROW).any()):
            return _between_long_lines(block, sizes, layout, intake)
    commas = len(layout.columns) - 1
    marks = np.frombuffer(block.data, dtype=np.uint8)  # some ten times as fast as bytes.count
    rows = len(block.ends)
    intake.file.lines += rows
    regular = int(np.count_nonzero(marks == ord(layout.delimiter))) == rows * commas
    regular &= not bool((marks == ord('"')).any())  # a quote that is not closed would join lines
    blank = bool(
        (np.diff(block.ends, prepend=0) <= 2).any()
    )  # or a line of one character, which is checked too
    frame = None if blank or not regular else _typed(block.data, layout)
    if frame is not None and frame.height == rows:
        lines = pl.int_range(block.first_line, block.first_line + rows, dtype=pl.Int64, eager=True)
        return frame.with_columns(lines.alias("line"))
    data, lines = _regular_lines(block, layout, intake)
    frame = _typed(data, layout) if data else None
    if frame is None and not data:
        return None
    if frame is None or frame.height != len(lines):
        raise HistoryError(
            f"{intake.file.name}: lines {block.first_line} to {block.first_line + rows - 1} cannot be split into rows"
        )
    return frame.with_columns(lines.alias("line"))


def _between_long_lines(
    block: Block, sizes: npt.NDArray[np.int64], layout: Layout, intake: Intake
) -> pl.DataFrame | None:
    """Parse what is before, between and after lines that are longer than any row, and reject those unread."""
    frames, first = [], 0
    long = np.flatnonzero(sizes > _MAX_ROW)
    for index in [*long.tolist(), len(sizes)]:
        start = int(block.ends[first - 1]) if first else 0
        end = int(block.ends[index - 1]) if index else 0
        frames.append(parse(Block(block.data[start:end], block.first_line + first), layout, intake))
        first = index + 1
    intake.file.lines += len(long)
    intake.reject_all(
        (long + block.first_line).tolist(),
        lambda line: (
            f"the line has {int(sizes[line - block.first_line]):,} bytes, a row has at most {_MAX_ROW:,}"
        ),
        block.line,
    )
    found = [frame for frame in frames if frame is not None]
    return pl.concat(found) if found else None


def _typed(data: bytes, layout: Layout) -> pl.DataFrame | None:
    """Read the columns that are used; a cell that is no number becomes null. None where rows differ in width."""
    kinds: dict[str, type[pl.DataType]] = {}
    for ours in layout.columns:
        if ours in ("price", "qty"):
            kinds[ours] = pl.Float64
        elif ours in ("time", "received") and not layout.decimal_times[ours]:
            kinds[ours] = pl.Int64
    frame = None if layout.decimal_comma else _cells(data, layout, kinds)
    if frame is not None and not any(frame[ours].null_count() for ours in kinds):
        return frame
    # The reader takes no number with a space behind it, and a point as well as a comma for a decimal comma.
    frame = _cells(data, layout, {}) if layout.decimal_comma or frame is not None else None
    if frame is None:
        return None
    texts = {ours: pl.col(ours).str.strip_chars() for ours in kinds}
    if layout.decimal_comma:
        for ours in {"price", "qty"} & {*kinds}:
            plain = pl.when(~texts[ours].str.contains(".", literal=True)).then(texts[ours])
            texts[ours] = plain.str.replace(",", ".", literal=True)
    return frame.with_columns(texts[ours].cast(kind, strict=False) for ours, kind in kinds.items())


def _cells(data: bytes, layout: Layout, kinds: Mapping[str, type[pl.DataType]]) -> pl.DataFrame | None:
    schema = {
        ours or f"unused {index}": kinds.get(ours, pl.String) for index, ours in enumerate(layout.columns)
    }
    used = [index for index, ours in enumerate(layout.columns) if ours]
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
    marks, ends = np.frombuffer(block.data, dtype=np.uint8), block.ends
    starts = np.concatenate([[0], ends[:-1]])

    def count(found: Any) -> Any:
        return np.add.reduceat(found, starts, dtype=np.int64)

    at, quoted = np.flatnonzero(marks == ord(layout.delimiter)), np.flatnonzero(marks == ord('"'))
    line_of = np.searchsorted(ends, at, side="right")
    quotes_before = np.searchsorted(quoted, at) - np.searchsorted(quoted, starts)[line_of]
    # A delimiter after an odd number of quotes is inside of them.
    cells = np.bincount(line_of[quotes_before % 2 == 0], minlength=len(ends)) + 1
    blank = count(marks > ord(" ")) == 0
    damaged = (count(marks == 0) > 0) | (count(marks == ord('"')) % 2 == 1)
    foreign = _not_utf8(block, count(marks > 127) > 0)
    width = len(layout.columns)
    numbers = np.arange(block.first_line, block.first_line + len(ends))
    good = ~blank & ~damaged & ~foreign & (cells == width)
    intake.file.blank += int(blank.sum())
    hint = " (a decimal comma?)" if layout.delimiter == "," else ""
    intake.reject_all(
        numbers[~blank & ~damaged & ~foreign & ~good].tolist(),
        lambda line: f"expected {width} columns, found {cells[line - block.first_line]}{hint}",
        block.line,
    )
    intake.reject_all(
        numbers[damaged & ~blank].tolist(),
        lambda line: "NUL bytes, or a quote that is not closed",
        block.line,
    )
    intake.reject_all(
        numbers[foreign & ~damaged].tolist(), lambda line: "bytes that are no text in UTF-8", block.line
    )
    return marks[np.repeat(good, ends - starts)].tobytes(), pl.Series(numbers[good], dtype=pl.Int64)


def _not_utf8(block: Block, suspects: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which of the suspected lines cannot be decoded."""
    found = np.zeros(len(suspects), dtype=bool)
    for index in np.flatnonzero(suspects).tolist():
        try:
            block.line(block.first_line + index).decode()
        except UnicodeDecodeError:
            found[index] = True
    return found


_TRUE, _FALSE = ("true", "1", "t", "1.0"), ("false", "0", "f", "0.0")


def read_trades(
    files: Iterable[Path],
    intake: Intake,
    table: TradeTable,
    *,
    unit: str | None = None,
    zone: str | None = None,
    delimiter: str | None = ",",
    columns: list[str] | None = None,
) -> None:
    """Read files of trades into ``intake``. Raises HistoryError for what contradicts the table or itself."""
    for file in intake.open(files):
        rows = TradeRows(file.name, file.hint, intake, table, unit, zone)
        layout: Layout | None = None
        for block in file.blocks():
            if layout is None:
                layout, block = detect(block, file, intake, table, delimiter, columns)
                if layout is None:
                    continue
                rows.shown = layout.shown
            frame = parse(block, layout, intake)
            if frame is not None:
                rows.take(frame, block.line, cell_of(block, layout))


def cell_of(block: Block, layout: Layout) -> Callable[[int, str], str | None]:
    """Return a function that gives a cell by the number of its line and our name of its column."""

    def cell(line: int, ours: str) -> str | None:
        cells = cells_of(block.line(line), layout.delimiter)
        index = layout.columns.index(ours)
        return cells[index] if index < len(cells) else None

    return cell


class TradeRows:
    """Turns frames of our columns into trades and hands them over, symbol by symbol.

    Sides are by the tick rule where no column has them: the history finds them once all rows are in order.
    """

    def __init__(
        self,
        name: str,
        hint: str,
        intake: Intake,
        table: TradeTable,
        unit: str | None = None,
        zone: str | None = None,
    ) -> None:
        self.name, self.hint, self.intake, self.table = name, hint, intake, table
        self.clocks = {
            "time": Clock("time", unit, table.units, zone),
            "received": Clock("receive time", None, table.units, zone),
        }
        self.backwards: bool | None = None
        self.shown: Callable[[str], str] = str
        self.text: Callable[[int], bytes] = NO_TEXT
        self.cell: Callable[[int, str], str | None] | None = None

    def take(
        self,
        frame: pl.DataFrame,
        text: Callable[[int], bytes] = NO_TEXT,
        cell: Callable[[int, str], str | None] | None = None,
    ) -> None:
        """Take rows: ``line`` and our columns. ``text``, ``cell``: a line, and a cell of it, as the file has them."""
        self.text, self.cell = text, cell
        for name in ("side", "maker", "id", "symbol", "kind"):
            if name in frame.columns:
                frame = frame.with_columns(pl.col(name).cast(pl.String))
        frame = self._known_sides(frame)
        if self.table.numbered:
            whole = frame["id"].cast(pl.Int64, strict=False).is_not_null()
            frame = self._only(frame, whole, "id", "the id must be a whole number")
        for name in ("price", "qty"):
            number = frame[name].cast(pl.Float64, strict=False)
            good = number.is_not_null()
            frame = self._only(frame, good, name, f"{self.shown(name)} must be a number above 0")
            frame = frame.with_columns(number.filter(good))
        frame = self._with_times(frame)
        if frame.is_empty():
            return
        self._detect_order(frame["exchange_at"])
        trades = self._rows(frame)
        for symbol, rows in self._by_symbol(trades):
            self.intake.trades(
                symbol,
                rows,
                backwards=bool(self.backwards),
                numbered=self.table.numbered,
                tick_rule=not {"side", "maker"} & {*frame.columns},
                text=text,
            )

    def _with_times(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add both clocks in ns, null for a receive time that is not there; reject what is no time."""
        for name, to in (("time", "exchange_at"), ("received", "received_at")):
            if name not in frame.columns:
                frame = frame.with_columns(pl.lit(None, dtype=pl.Int64).alias(to))
                continue
            clock = self.clocks[name]
            values = frame[name]
            if values.dtype == pl.String and values.str.contains(",", literal=True).any():
                values = values.str.replace(",", ".", literal=True)
            times = parse_times(values, clock, lambda text: self.intake.note(f"{self.name}: {text}"))
            good = times.is_not_null() if name == "time" else times.is_not_null() | values.is_null()
            frame = self._only(frame.with_columns(times.alias(to)), good, name, clock.wrong)
        return frame

    def _detect_order(self, times: pl.Series) -> None:
        if self.backwards is None:
            steps = times.diff().drop_nulls()
            self.backwards = int((steps < 0).sum()) > int((steps > 0).sum())
            if self.clocks["time"].unit:
                order = ", newest first" if self.backwards else ""
                self.intake.note(f"{self.name}: times in {self.clocks['time'].unit}{order}")

    def _rows(self, frame: pl.DataFrame) -> pl.DataFrame:
        has = {*frame.columns}
        nothing = pl.lit(None, dtype=pl.String)
        side = pl.lit(None, dtype=pl.String)
        if "side" in has:
            side = self._either("side", self.table.buy_words, self.table.sell_words)
        elif "maker" in has:  # a buyer who was the maker had a seller take
            side = self._either("maker", _FALSE, _TRUE)
        seq = (
            pl.col("id").cast(pl.Int64)
            if self.table.numbered
            else -pl.col("line")
            if self.backwards
            else pl.col("line")
        )
        return frame.select(
            "line",
            "exchange_at",
            "received_at",
            "price",
            "qty",
            side.alias("side"),
            (pl.col("id") if "id" in has else nothing).alias("trade_id"),
            (
                pl.col("kind").fill_null("").str.to_uppercase() != "MARKET"
                if "kind" in has
                else pl.lit(False)
            ).alias("off_market"),
            seq.alias("seq"),
            *(["symbol"] if "symbol" in has else []),
        )

    def _either(self, column: str, buy: tuple[str, ...], sell: tuple[str, ...]) -> pl.Expr:
        word = _word(column)
        return pl.when(word.is_in(buy)).then(pl.lit("BUY")).when(word.is_in(sell)).then(pl.lit("SELL"))

    def _only(
        self, frame: pl.DataFrame, good: pl.Series, column: str, expected: str | Callable[[Any], str]
    ) -> pl.DataFrame:
        """Return the good rows; reject the others with what their column has."""
        if good.all():
            return frame
        bad = frame.filter(~good)
        values = dict(bad.select("line", column).head(1_000).iter_rows())

        def reason(line: int) -> str:
            found = self.cell(line, column) if self.cell else values[line]
            if callable(expected):
                return expected(found)
            hint = ""
            if (
                column in ("price", "qty")
                and isinstance(found, str)
                and re.search(r",|[1-9].*\.|\..*[1-9]", found)
            ):
                hint = (
                    " (a comma is read as a decimal comma only where ; or a tab separates the columns, "
                    "and then in all rows)"
                )
            return f"{expected}, found {'nothing' if found is None else repr(found)[:200]}{hint}"

        self.intake.reject_all(bad["line"], reason, self.text)
        return frame.filter(good)

    def _known_sides(self, frame: pl.DataFrame) -> pl.DataFrame:
        column = "side" if "side" in frame.columns else "maker" if "maker" in frame.columns else None
        if column is None:
            return frame
        table = self.table
        if column == "side":
            allowed = [*table.buy_words, *table.sell_words, *table.unknown_sides]
            words = ", ".join((*table.buy_words, *table.sell_words))
            hint = f" ({words}; buy_word and sell_word name others)" if table.any_words else ""
            expected = f"a buy or sell{hint}"
        else:
            allowed, expected = [*_TRUE, *_FALSE], "true or false"
        word = _word(column)
        good = frame.select(word.is_in(allowed).fill_null("" in allowed).alias("good"))["good"]
        if table.unknown_sides and bool(
            frame.select((word.is_null() | word.is_in(table.unknown_sides)).any()).item()
        ):
            self.intake.note(f"{self.name}: rows without a side; theirs stays unknown (null)")
        return self._only(frame, good, column, f"{self.shown(column)} must be {expected}")

    def _by_symbol(self, trades: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        intake, name = self.intake, self.name
        if "symbol" in trades.columns:
            for (symbol,), rows in trades.group_by("symbol", maintain_order=True):
                if symbol is None or not str(symbol).strip():
                    intake.reject_all(rows["line"], lambda line: "no symbol", self.text)
                elif intake.wants(str(symbol)):
                    yield str(symbol), rows.drop("symbol")
                else:
                    intake.file.other += rows.height
            return
        named = self.table.file_symbol(self.hint) if self.table.file_symbol else None
        symbol = intake.symbol or named
        if symbol is None:
            raise HistoryError(f"{name}: neither the rows nor the file's name has a symbol: give symbol=...")
        if named and intake.symbol and named != intake.symbol and intake.save_as is None:
            raise HistoryError(
                f"{name} is named after {named}, but symbol={intake.symbol!r} is asked for. "
                f"To store it under that name: symbol={named!r}, save_as={intake.symbol!r}"
            )
        yield symbol, trades


def _word(column: str) -> pl.Expr:
    return pl.col(column).str.strip_chars().str.to_lowercase()
