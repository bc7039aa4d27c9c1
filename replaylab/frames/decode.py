"""Lines to rows: whole blocks at once where every line is in order, line by line where one is not.

Both ways take the same lines and give the same rows; only the second can say what is wrong with a line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import orjson
import polars as pl

from replaylab.errors import RecordError, TimeError
from replaylab.frames.lines import Block, is_blank, meetings, preview, without_mark
from replaylab.frames.loaded import Loaded, Reject, reject_frame
from replaylab.frames.schema import Column, LogSchema
from replaylab.frames.times import parse_time, parse_times
from replaylab.records import decode_record
from replaylab.timestamps import parse_ns

__all__ = ["decode_block", "is_day"]

_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
# JSON that no double can hold: JavaScript never writes it, and it would fail whoever reads the text later.
_HUGE = r"\d[eE]\+?0*[1-9]\d\d|\d{309}"
_HUGE_BYTES = re.compile(_HUGE.encode())
_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _NotPlainError(Exception):
    """This block needs to be read line by line."""


def decode_block(schema: LogSchema, block: Block, file: str) -> Loaded:
    """Return the rows and rejects of a block; ``file`` is what rejects call the file."""
    try:
        return _whole(schema, block)
    except (_NotPlainError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _by_line(schema, block, file)


def _whole(schema: LogSchema, block: Block) -> Loaded:
    data = block.data
    # msgspec takes several values on a line, and one value on several lines. Inside valid JSON no "}" is followed
    # by a newline and "{", so this counts the places where one line's value ends and the next one's begins.
    lines = block.count
    if meetings(data) != lines - 1 or not data.startswith(b"{"):
        raise _NotPlainError
    records = schema.strict.decode_lines(data)
    if len(records) != lines:
        raise _NotPlainError
    frame = _frame(schema, records, np.arange(block.line, block.line + lines, dtype=np.int64), None)
    return Loaded(frame=frame, lines=lines, rows=lines)


def _by_line(schema: LogSchema, block: Block, file: str) -> Loaded:
    records: list[Any] = []
    numbers: list[int] = []
    unknown: list[str | None] = []
    rejects: list[Reject] = []
    lines = blank = 0
    last = block.line + block.count - 1
    torn = not block.data.endswith(b"\n")
    for number, offset, text in block.lines():
        lines += 1
        if is_blank(text):
            blank += 1
            continue
        try:
            record, more = _one(schema, without_mark(text, offset))
        except ValueError as error:
            reason = str(error)
            if torn and number == last:
                reason = f"torn last line: {reason}"
            rejects.append((file, number, offset, reason, preview(text)))
            continue
        records.append(record)
        numbers.append(number)
        unknown.append(more)
    frame = _frame(schema, records, np.array(numbers, np.int64), unknown)
    return Loaded(frame, reject_frame(rejects), lines, blank, len(records))


def _one(schema: LogSchema, text: bytes) -> tuple[Any, str | None]:
    """Return the record of one line, and the fields that it does not name; raises ValueError with the reason."""
    if b"\0" in text:
        raise ValueError("NUL bytes, as a crash of the machine leaves them")
    try:
        text.decode()
        record = schema.loose.decode(text)
        for column in schema.columns:
            _check(column, getattr(record, column.name))
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
        # The record type says it in full: which field, what was found, what is allowed.
        try:
            decode_record(schema.record, text)
        except RecordError as better:
            return str(better)
        except ValueError as better:
            return f"{schema.record.__name__}: {better}"
    if isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError):
        return f"{schema.record.__name__}: not valid JSON: {error}"
    return f"{schema.record.__name__}.{error}"


def _check(column: Column, value: Any) -> None:
    """Raise ValueError, naming the field, for what the types alone do not refuse."""
    if value is None:
        return
    if column.kind == "time":
        try:
            parse_time(value)
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


def is_day(text: str) -> bool:
    """Tell whether a text is a day of the calendar as YYYY-MM-DD."""
    if not _DAY.fullmatch(text):
        return False
    try:
        parse_ns(text)
    except TimeError:
        return False
    return True


def _join(raw: dict[str, msgspec.Raw]) -> str:
    parts = (orjson.dumps(key) + b":" + bytes(value) for key, value in raw.items())
    text = b"{" + b",".join(parts) + b"}"
    orjson.loads(text)
    return text.decode()


def _frame(
    schema: LogSchema, records: Sequence[Any], numbers: Any, unknown: Sequence[str | None] | None
) -> pl.DataFrame:
    """Return the columns of decoded records; raises _NotPlainError when a value needs a closer look.

    Records that were looked at one by one come with their ``unknown`` fields.
    """
    series = [
        _series(column, list(map(attrgetter(column.name), records)), checked=unknown is not None)
        for column in schema.columns
    ]
    if unknown is None:
        more = pl.Series("unknown_fields", [], dtype=pl.String).extend_constant(None, len(records))
    else:
        more = pl.Series("unknown_fields", unknown, dtype=pl.String)
    lines = pl.Series("line", numbers, dtype=pl.Int64)
    if not schema.keep_text:
        return pl.DataFrame([*series, more, lines])
    texts = pl.Series("timestamp_text", [record.timestamp for record in records], dtype=pl.String)
    return pl.DataFrame([*series, more, lines, texts])


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
    return series.cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")


def _json_series(name: str, values: list[Any], *, checked: bool) -> pl.Series:
    texts = [None if value is None else bytes(value) for value in values]
    try:
        series = pl.Series(name, texts, dtype=pl.Binary).cast(pl.String)
    except pl.exceptions.PolarsError:
        raise _NotPlainError from None
    if checked:
        return series
    if not series.str.starts_with("{").all() or series.str.contains(_HUGE).any():
        raise _NotPlainError
    return series
