"""Cuts a JSON Lines file into blocks of whole lines. A line ends at ``\\n``; the last one may lack it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa

from replaylab.errors import RecordError, TimeError, did_you_mean
from replaylab.frames.schema import TIMESTAMP, Column, LogSchema
from replaylab.records import decode_record
from replaylab.timestamps import is_day, parse_ns

BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_NEWLINE, _RETURN, _OPEN, _CLOSE = (ord(mark) for mark in "\n\r{}")


@dataclass(frozen=True)
class Block:
    """Whole lines of one file: ``offset`` of the first byte, ``line`` number of the first line (from 1)."""

    data: bytes
    offset: int
    line: int
    count: int

    def lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield line number, byte offset and bytes (without newline) of every line."""
        offset, line = self.offset, self.line
        texts = self.data.split(b"\n")
        if not texts[-1]:
            texts.pop()
        for text in texts:
            yield line, offset, text
            offset += len(text) + 1
            line += 1


def blocks(
    file: BinaryIO, *, start: int = 0, line: int = 1, end: int | None = None, size: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Yield the lines of an open file from byte ``start`` (where ``line`` begins) up to ``end`` or its last byte.

    A block is about ``size`` bytes, longer where one line is. Bytes appended while reading are read too.
    """
    file.seek(start)
    offset = start
    place = start
    # Pieces of a line whose end has not been read yet: a list, since a torn tail may be a gigabyte of NULs.
    rest: list[bytes] = []
    while True:
        chunk = file.read(size if end is None else min(size, end - place))
        if not chunk:
            break
        place += len(chunk)
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            rest.append(chunk)
            continue
        data = b"".join((*rest, chunk[:cut]))
        rest = [chunk[cut:]] if cut < len(chunk) else []
        count = _newlines(data)
        yield Block(data, offset, line, count)
        offset += len(data)
        line += count
    if rest:
        yield Block(b"".join(rest), offset, line, 1)


def whole(data: bytes) -> Block:
    """Return all of a file as one block."""
    return Block(data, 0, 1, _newlines(data) + bool(data and not data.endswith(b"\n")))


def meetings(data: bytes) -> int:
    """Return how often a ``}`` is followed by a line end and a ``{``."""
    text = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(text == _NEWLINE)
    ends = ends[(ends > 0) & (ends < len(text) - 1)]
    before = text[ends - 1]
    # A Windows line end: look one further back.
    before = np.where((before == _RETURN) & (ends > 1), text[ends - 2], before)
    return int(np.count_nonzero((before == _CLOSE) & (text[ends + 1] == _OPEN)))


def is_blank(text: bytes) -> bool:
    """Return whether a line holds nothing but JSON white space (``\\r`` of a Windows line end included)."""
    return not text.strip(b" \t\r")


def without_mark(text: bytes, offset: int) -> bytes:
    """Return a line without the byte order mark that some editors put at the start of a file."""
    return text[len(_BOM) :] if offset == 0 and text.startswith(_BOM) else text


def preview(text: bytes, length: int = 200) -> str:
    """Return the beginning of a line as text; bytes that are not UTF-8 become ``\\xNN``."""
    return text[:length].decode("utf-8", "backslashreplace").replace("\x00", "\\x00")


def _newlines(data: bytes) -> int:
    # Several times as fast as bytes.count, which stops at every one of them.
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _NEWLINE))


REJECTS_SCHEMA = pl.Schema(
    {"file": pl.String, "line": pl.Int64, "offset": pl.Int64, "reason": pl.String, "text": pl.String}
)
_TOGETHER = 32
_SMALL_ROWS = 50_000
Reject = tuple[str, int, int, str, str]


def reject_frame(rejects: Sequence[Reject] = ()) -> pl.DataFrame:
    """Return rejects as a frame; ``line`` counts from 1, ``offset`` is in bytes, ``text`` is a preview."""
    return pl.DataFrame(list(rejects), schema=REJECTS_SCHEMA, orient="row")


@dataclass(frozen=True)
class Loaded:
    """Rows and rejects of one load.

    >>> loaded = load_events("data", "BTCUSDT")                              # doctest: +SKIP
    >>> loaded.lines == loaded.rows + len(loaded.rejects) + loaded.blank     # doctest: +SKIP
    True

    ``rows`` counts the lines that are good records, before ``start``, ``end`` and ``symbols`` choose among them;
    ``frame`` holds the chosen ones in the order of the files. ``rejects`` has the columns file, line, offset
    (bytes), reason, text. ``lines`` are all lines of the files read, ``blank`` those with nothing on them.
    ``symbols``: those that the log holds in the time range asked for, before ``symbols`` chose among them.
    """

    frame: pl.DataFrame
    rejects: pl.DataFrame = field(default_factory=reject_frame)
    lines: int = 0
    blank: int = 0
    rows: int = 0
    symbols: frozenset[str] = frozenset()

    def missing(self, wanted: str | Iterable[str] | None) -> list[str]:
        """Return a message for each wanted symbol that the files do not hold, with the closest name.

        >>> Loaded(pl.DataFrame(), symbols=frozenset({"BTCUSDT"})).missing("btcusdt")
        ["there is nothing of symbol 'btcusdt'. Did you mean 'BTCUSDT'?"]
        """
        names = [wanted] if isinstance(wanted, str) else sorted(set(wanted or ()))
        known = sorted(self.symbols)
        listed = f" Symbols: {', '.join(known[:10])}{' ...' if len(known) > 10 else ''}." if known else ""
        return [
            f"there is nothing of symbol {name!r}.{did_you_mean(name, known) or listed}"
            for name in names
            if name not in self.symbols
        ]


def concat(parts: Iterable[Loaded], schema: pl.Schema) -> Loaded:
    """Return several loads as one; without any, an empty frame of ``schema``."""
    frames: list[pl.DataFrame] = []
    small: list[pl.DataFrame] = []
    rejects: list[pl.DataFrame] = []
    lines = blank = rows = 0
    symbols: set[str] = set()
    for part in parts:
        symbols |= part.symbols
        lines, blank, rows = lines + part.lines, blank + part.blank, rows + part.rows
        if part.rejects.height:
            rejects.append(part.rejects)
        # Small pieces are copied together as they come: their memory is used again, and the whole has few chunks.
        is_small = part.frame.height < _SMALL_ROWS
        if is_small and part.frame.height:
            small.append(part.frame)
        if small and (not is_small or len(small) == _TOGETHER):
            frames.append(pl.concat(small, rechunk=True))
            small = []
        if not is_small:
            frames.append(part.frame)
    if small:
        frames.append(pl.concat(small, rechunk=True))
    return Loaded(
        frame=pl.concat(frames, rechunk=False) if frames else schema.to_frame(),
        rejects=pl.concat(rejects) if rejects else reject_frame(),
        lines=lines,
        blank=blank,
        rows=rows,
        symbols=frozenset(symbols),
    )


_ZERO = ord("0")
# Positions of the digits of "2025-11-18T10:00:00.123Z", and the characters between them.
_DATE = (0, 1, 2, 3, 5, 6, 8, 9)
_CLOCK = (11, 12, 14, 15, 17, 18)
_MARKS = ((4, ord("-")), (7, ord("-")), (10, ord("T")), (13, ord(":")), (16, ord(":")))
_NS = 1_000_000_000


def parse_times(texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return nanoseconds since 1970 of each text, and a mask of those that are no times (their value is 0).

    Texts of the common form with ``Z`` and the same number of decimals are computed as columns of digits; all
    others one by one.
    """
    count = len(texts)
    values = np.zeros(count, np.int64)
    bad = np.zeros(count, np.bool_)
    if not count:
        return values, bad
    width = len(texts[0])
    joined = "".join(texts)
    regular = (width == 20 or 22 <= width <= 30) and joined.isascii() and set(map(len, texts)) == {width}
    if regular:
        matrix = np.frombuffer(joined.encode(), np.uint8).reshape(count, width)
        values, sure = _columns(matrix, width)
        rest = np.flatnonzero(~sure)
    else:
        rest = np.arange(count)
    for place in rest.tolist():
        try:
            values[place] = parse_ns(texts[place], clock=True)
        except TimeError:
            values[place] = 0
            bad[place] = True
    return values, bad


def _columns(
    matrix: npt.NDArray[np.uint8], width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the values, and a mask of the rows that are certainly right; the others need a closer look."""
    fraction = tuple(range(20, width - 1))
    sure = matrix[:, width - 1] == ord("Z")
    for place, mark in _MARKS:
        sure &= matrix[:, place] == mark
    if fraction:
        sure &= matrix[:, 19] == ord(".")
    # Below "0" wraps around to a large number, so one comparison finds every byte that is not a digit.
    digits = {place: matrix[:, place] - _ZERO for place in (*_DATE, *_CLOCK, *fraction)}
    for column in digits.values():
        sure &= column <= 9

    def number(*places: int) -> npt.NDArray[np.int64]:
        total = digits[places[0]].astype(np.int64)
        for place in places[1:]:
            total *= 10
            total += digits[place]
        return total

    year, month, day = number(0, 1, 2, 3), number(5, 6), number(8, 9)
    hour, minute, second = number(11, 12), number(14, 15), number(17, 18)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    lengths = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)
    in_month = (month >= 1) & (month <= 12)
    last = lengths[np.where(in_month, month, 0)] + (leap & (month == 2))
    sure &= in_month & (day >= 1) & (day <= last) & (year >= 1678) & (year <= 2261)
    sure &= (hour < 24) & (minute < 60) & (second < 60)
    # Days since 1970 of a proleptic Gregorian date, with years that begin in March so that the leap day is last.
    shifted = year - (month <= 2)
    era_year = shifted % 400
    from_march = (month + 9) % 12
    day_of_year = (153 * from_march + 2) // 5 + day - 1
    days = (
        (shifted // 400) * 146_097 + era_year * 365 + era_year // 4 - era_year // 100 + day_of_year - 719_468
    )
    seconds = days * 86_400 + hour * 3_600 + minute * 60 + second
    values = np.where(sure, seconds, 0) * _NS
    if fraction:
        values += np.where(sure, number(*fraction) * 10 ** (9 - len(fraction)), 0)
    return values, sure


# JSON that no double can hold: JavaScript never writes it, and later readers of the JSON would fail on it.
_HUGE = r"\d[eE]\+?0*[1-9]\d\d|\d{309}"
_HUGE_BYTES = re.compile(_HUGE.encode())
_HUGE_TEXT = re.compile(_HUGE)
_NEWLINE, _OPEN, _ZERO, _EXPONENTS = ord("\n"), ord("{"), ord("0"), (ord("e"), ord("E"))
_NULLS = pl.Series("unknown_fields", [None] * 65_536, dtype=pl.String)
# orjson reads 1024 levels; lines that may be deeper are decoded one by one.
_DEPTH = 1000
_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _NotPlainError(Exception):
    """This block needs to be read line by line."""


def decode_block(schema: LogSchema, block: Block, file: str) -> Loaded:
    """Return the rows and rejects of a block; ``file`` is what rejects call the file."""
    try:
        return _whole(schema, block)
    except (_NotPlainError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        torn = 0 if block.data.endswith(b"\n") else block.line + block.count - 1
        return decode_lines(schema, block.lines(), file, torn)


def _whole(schema: LogSchema, block: Block) -> Loaded:
    data = block.data
    # msgspec takes several values on a line, and one value on several lines. Inside valid JSON no "}" is followed
    # by a newline and "{", so this counts the places where one line's value ends and the next one's begins.
    lines = block.count
    if meetings(data) != lines - 1 or not data.startswith(b"{") or _has_huge_number(data):
        raise _NotPlainError
    if not data.isascii():
        # msgspec does not look into values that another of the same name replaces.
        data.decode()
    records = schema.strict.decode_lines(data)
    if len(records) != lines:
        raise _NotPlainError
    frame = _frame(schema, records, np.arange(block.line, block.line + lines, dtype=np.int64), None)
    if has_foreign_symbol(schema, frame):
        raise _NotPlainError
    return Loaded(frame=frame, lines=lines, rows=lines)


def has_foreign_symbol(schema: LogSchema, frame: pl.DataFrame) -> bool:
    """Return whether a row is of another symbol than the log."""
    return schema.symbol is not None and bool((frame["symbol"] != schema.symbol).any())


def foreign_symbol(found: str, expected: str) -> str:
    """Return the reason of the reject of a line in the log of another symbol."""
    return f"symbol: found {found!r} in the log of {expected!r}; move the line to the log of its symbol"


def decode_lines(
    schema: LogSchema, lines: Iterable[tuple[int, int, bytes]], file: str, torn: int = 0
) -> Loaded:
    """Return the rows and rejects of single lines: number, offset and bytes of each; number ``torn`` has no end."""
    records: list[Any] = []
    numbers: list[int] = []
    unknown: list[str | None] = []
    rejects: list[Reject] = []
    count = blank = 0
    for number, offset, text in lines:
        count += 1
        if is_blank(text):
            blank += 1
            continue
        try:
            record, more = _one(schema, without_mark(text, offset))
        except ValueError as error:
            reason = f"torn last line: {error}" if number == torn else str(error)
            rejects.append((file, number, offset, reason, preview(text)))
            continue
        records.append(record)
        numbers.append(number)
        unknown.append(more)
    frame = _frame(schema, records, np.array(numbers, np.int64), unknown)
    return Loaded(frame, reject_frame(rejects), count, blank, len(records))


def _one(schema: LogSchema, text: bytes) -> tuple[Any, str | None]:
    """Return the record of one line and its unknown fields as JSON; raises ValueError with the reason."""
    if b"\0" in text:
        raise ValueError("NUL bytes, as a crash of the machine leaves them")
    try:
        text.decode()
        record = schema.loose.decode(text)
        for column in schema.columns:
            _check(column, getattr(record, column.name))
        if schema.symbol is not None and record.symbol != schema.symbol:
            raise ValueError(foreign_symbol(record.symbol, schema.symbol))
        more = None
        if _HUGE_BYTES.search(text):
            orjson.loads(text)
        raw = _RAW.decode(text)
        if len(raw) > len(schema.names) or not schema.names.issuperset(raw):
            more = _join({key: value for key, value in raw.items() if key not in schema.names})
    except (ValueError, RecursionError) as error:
        raise ValueError(_explain(schema, text, error)) from None
    return record, more


def _explain(schema: LogSchema, text: bytes, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte {text[error.start]:#04x} at {error.start} of the line"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        # The record type gives the full reason: field, value found, values allowed.
        try:
            decode_record(schema.record, _without_nulls(schema, text))
        except RecordError as better:
            return str(better)
        except ValueError as better:
            return f"{schema.record.__name__}: {better}"
    if isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError):
        return f"{schema.record.__name__}: not valid JSON: {error}"
    return f"{schema.record.__name__}.{error}"


def _without_nulls(schema: LogSchema, text: bytes) -> bytes:
    """Return a line with values for the nulls that an imported log may have, so that its real fault is found."""
    nullable = [column for column in schema.columns if column.nullable and not column.optional]
    if not nullable:
        return text
    record = orjson.loads(text)
    for column in nullable:
        if isinstance(record, dict) and column.disk in record and record[column.disk] is None:
            record[column.disk] = 0.0 if column.kind == "float" else ""
    return orjson.dumps(record)


def _check(column: Column, value: Any) -> None:
    """Raise ValueError, naming the field, for what the types alone do not refuse."""
    if value is None:
        return
    if column.kind == "time":
        try:
            parse_ns(value, clock=True)
        except TimeError as error:
            raise ValueError(f"{column.disk}: {error}") from None
    elif column.kind == "day" and not is_day(value):
        raise ValueError(f'{column.disk}: expected a day as YYYY-MM-DD, found "{value}"')
    elif column.kind == "json":
        text = bytes(value)
        if not text.startswith(b"{"):
            raise ValueError(f"{column.disk}: expected an object, found {preview(text, 60)}")
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{column.disk}: not usable JSON: {error}") from None


def _join(raw: dict[str, msgspec.Raw]) -> str:
    parts = (orjson.dumps(key) + b":" + bytes(value) for key, value in raw.items())
    text = b"{" + b",".join(parts) + b"}"
    orjson.loads(text)
    return text.decode()


def _frame(
    schema: LogSchema, records: Sequence[Any], numbers: Any, unknown: Sequence[str | None] | None
) -> pl.DataFrame:
    """Return the columns of decoded records; raises _NotPlainError when a value needs a closer look.

    ``unknown``: the unknown fields of records decoded one by one.
    """
    series = {
        column.name: _series(column, list(map(attrgetter(column.name), records)), checked=unknown is not None)
        for column in schema.columns
    }
    if unknown is not None:
        series["unknown_fields"] = pl.Series("unknown_fields", unknown, dtype=pl.String)
    if schema.keep_text:
        texts = [record.timestamp for record in records]
        series["timestamp_text"] = pl.Series("timestamp_text", texts, dtype=pl.String)
    return frame_of(schema, series, numbers)


def frame_of(schema: LogSchema, series: Mapping[str, pl.Series], numbers: Any) -> pl.DataFrame:
    """Return columns in the order of the schema, with the numbers of their lines; without unknown fields, nulls."""
    given = {**series, "line": pl.Series("line", numbers, dtype=pl.Int64)}
    if "unknown_fields" not in given:
        given["unknown_fields"] = _nulls(len(numbers))
    return pl.DataFrame([given[name] for name in schema.frame.names()])


def _nulls(count: int) -> pl.Series:
    # A slice of what is there already costs a hundredth of making it.
    if count <= len(_NULLS):
        return _NULLS.slice(0, count)
    return pl.Series(_NULLS.name, [None] * count, dtype=pl.String)


def _series(column: Column, values: list[Any], *, checked: bool) -> pl.Series:
    name = column.name
    if column.kind == "float":
        return pl.Series(name, values, dtype=pl.Float64)
    if column.kind == "int":
        return pl.Series(name, values, dtype=pl.Int64)
    if column.kind == "bool":
        return pl.Series(name, values, dtype=pl.Boolean)
    if column.kind == "time":
        return _time_series(name, values)
    if column.kind == "json":
        return _json_series(name, values, checked=checked)
    series = pl.Series(name, values, dtype=pl.String)
    if column.kind == "day" and not checked and not all(map(is_day, series.drop_nulls().unique().to_list())):
        raise _NotPlainError
    return series


def _time_series(name: str, values: list[Any]) -> pl.Series:
    known = values if None not in values else [value for value in values if value is not None]
    times, bad = parse_times(known)
    if bad.any():
        raise _NotPlainError
    if known is values:
        series = pl.Series(name, times)
    else:
        left = iter(times.tolist())
        whole = [None if value is None else next(left) for value in values]
        series = pl.Series(name, whole, dtype=pl.Int64)
    return series.cast(TIMESTAMP)


def _json_series(name: str, values: list[Any], *, checked: bool) -> pl.Series:
    """Return raw JSON objects as a column of unchanged strings; raises _NotPlainError for any other value."""
    if checked or not values or None in values:
        texts = [None if value is None else bytes(value).decode() for value in values]
        if not checked and any(text is not None and not _is_plain_object(text) for text in texts):
            raise _NotPlainError
        return pl.Series(name, texts, dtype=pl.String)
    # Joins are ten times as fast as a text for each. No JSON on one line holds a newline, so those are the edges.
    lines = np.frombuffer(b"\n".join(values), np.uint8)
    joined = b"".join(values)
    ends = np.flatnonzero(lines == _NEWLINE)
    if len(ends) != len(values) - 1:
        raise _NotPlainError
    offsets = np.zeros(len(values) + 1, np.int64)
    offsets[1:-1] = ends - np.arange(len(ends))
    offsets[-1] = len(joined)
    data = np.frombuffer(joined, np.uint8)
    if (data[offsets[:-1]] != _OPEN).any() or _is_deep(joined, offsets):
        raise _NotPlainError
    texts_in_a_row = pa.LargeStringArray.from_buffers(
        len(values), pa.py_buffer(offsets), pa.py_buffer(joined)
    )
    return pl.Series(name, texts_in_a_row)


def _has_huge_number(text: bytes) -> bool:
    """Return whether a number may exceed the range of doubles: an exponent of three digits, or 309 digits."""
    data = np.frombuffer(text, np.uint8)
    for mark in _EXPONENTS:
        places = np.flatnonzero(data == mark) - 1
        places = places[(data[places] - _ZERO) < 10]
        if len(places) and any(_HUGE_BYTES.match(text, place) for place in places.tolist()):
            return True
    # A run of 309 digits covers a whole row of 128 bytes: checking nine positions excludes nearly all rows.
    rows = data[: len(data) // 128 * 128].reshape(-1, 128)
    spots = (rows[:, (0, 16, 32, 48, 64, 80, 96, 112, 127)] - _ZERO) < 10
    full = np.flatnonzero(spots.all(axis=1))
    return any(rows[place].tobytes().isdigit() for place in full.tolist())


def _is_deep(joined: bytes, offsets: npt.NDArray[np.int64]) -> bool:
    """Return whether a line may be nested more deeply than orjson reads."""
    long = np.flatnonzero(np.diff(offsets) > 2 * _DEPTH)
    for start, end in zip(offsets[long].tolist(), offsets[long + 1].tolist(), strict=True):
        if joined.count(b"{", start, end) + joined.count(b"[", start, end) >= _DEPTH:
            return True
    return False


def _is_plain_object(text: str) -> bool:
    return text.startswith("{") and not _HUGE_TEXT.search(text)
