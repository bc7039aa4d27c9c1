"""Bytes at an address, for compiled code: one at a time, or eight as a number whose lowest byte comes first.

numba's own indexing has no way to read eight bytes at once. Nothing here looks whether a place is inside an array:
the caller must know. Made for x86-64 and ARM64, which are little-endian and read at any place.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from numba import extending, types
from numba.core import cgutils

from replaylab.compiled import compiled, merged, one_at_a_time, was_compiled
from replaylab.frames.jsonl import Block, Loaded, decode_block, decode_lines, frame_of, has_foreign_symbol
from replaylab.frames.schema import TIMESTAMP, LogSchema

_BYTE, _WORD = cgutils.int8_t, cgutils.intp_t


def _at(builder: Any, kind: Any, start: Any, place: Any) -> Any:
    return builder.inttoptr(builder.add(start, place), kind.as_pointer())


def _address(_typing: Any, data: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(array.data, _WORD)

    return types.int64(data), code


def _byte(_typing: Any, start: Any, place: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.load(_at(builder, _BYTE, *arguments), align=1), _WORD)

    return types.int64(types.int64, types.int64), code


def _load_word(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
    return builder.load(_at(builder, _WORD, *arguments), align=1)


def _number(_typing: Any, start: Any, place: Any) -> Any:
    return types.int64(types.int64, types.int64), _load_word


def _word(_typing: Any, start: Any, place: Any) -> Any:
    return types.uint64(types.int64, types.int64), _load_word


def _put_word(_typing: Any, start: Any, place: Any, value: Any) -> Any:
    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        first, at, given = arguments
        builder.store(given, _at(builder, _WORD, first, at), align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.uint64), code


def _first_bit(_typing: Any, value: Any) -> Any:
    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], cgutils.false_bit)

    return types.int64(types.uint64), code


_compile: Any = extending.intrinsic
# address(array): where its first byte is. The array must be in use for as long as the address is.
address = cast(Callable[[npt.NDArray[Any]], int], _compile(_address))
# byte, number, word (start, place): what is ``place`` bytes behind the address ``start``, the number as a signed one.
# put_word(start, place, word) writes there.
byte = cast(Callable[[int, int], int], _compile(_byte))
number = cast(Callable[[int, int], int], _compile(_number))
word = cast(Callable[[int, int], np.uint64], _compile(_word))
put_word = cast(Callable[[int, int, np.uint64], None], _compile(_put_word))
# first_bit(word): the lowest bit that is set, counted from 0; 64 where none is.
first_bit = cast(Callable[[np.uint64], int], _compile(_first_bit))


_TAB, _RETURN, _BLANK, _QUOTE, _ESCAPE = 9, 13, 32, 34, 92
_OPEN, _CLOSE, _OPEN_LIST, _CLOSE_LIST, _COLON, _COMMA = 123, 125, 91, 93, 58, 44
_ZERO, _NINE, _MINUS, _PLUS, _POINT = 48, 57, 45, 43, 46
_MOST_DEPTH = 60
_MOST_DIGITS = 100
_NS = 1_000_000_000
_MONTHS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], np.int64)
_TENS = np.array([10**power for power in range(10)], np.int64)


def _each(value: int) -> np.uint64:
    """Return a word of eight such bytes."""
    return np.uint64(value * 0x0101010101010101)


_ONES, _HIGH, _QUOTES, _ESCAPES, _BLANKS, _ZEROS = map(_each, (1, 128, _QUOTE, _ESCAPE, _BLANK, _ZERO))
_TO_HIGH = _each(128 - 10)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_TRUE, _NULL, _ALSE = (np.uint64(int.from_bytes(text, "little")) for text in (b"true", b"null", b"alse"))


@merged
def skip_blanks(data: int, place: int) -> int:
    """Return where white space ends; a newline is the end of the line and none of it."""
    mark = byte(data, place)
    while mark <= _BLANK and (mark in (_BLANK, _TAB, _RETURN)):
        place += 1
        mark = byte(data, place)
    return place


@merged
def is_null(data: int, place: int) -> bool:
    return bool(word(data, place) & _LOW_HALF == _NULL)


@merged
def plain_text(data: int, place: int) -> int:
    """Return where the quote after a text without escapes is."""
    while True:
        place = _next_mark(data, place)
        mark = byte(data, place)
        if mark == _QUOTE:
            return place
        if mark < 128:
            return -1
        place = _beyond_ascii(data, place)
        if place < 0:
            return -1


@merged
def _text_end(data: int, place: int) -> int:
    """Return what comes after the quote at the end of a text; escapes are allowed."""
    while True:
        place = _next_mark(data, place)
        mark = byte(data, place)
        if mark == _QUOTE:
            return place + 1
        if mark == _ESCAPE:
            place = _escaped(data, place + 1)
        elif mark < 128:
            return -1
        else:
            place = _beyond_ascii(data, place)
        if place < 0:
            return -1


@merged
def _next_mark(data: int, place: int) -> int:
    """Return the next quote, escape, control character or byte beyond ASCII."""
    while True:
        eight = word(data, place)
        quotes = eight ^ _QUOTES
        escapes = eight ^ _ESCAPES
        found = (
            ((quotes - _ONES) & ~quotes)
            | ((escapes - _ONES) & ~escapes)
            | ((eight - _BLANKS) & ~eight)
            | eight
        ) & _HIGH
        if found != 0:
            return place + (first_bit(found) >> 3)
        place += 8


@merged
def _escaped(data: int, place: int) -> int:
    """Return what comes after an escape, whose letter is at ``place``; −1 for none, and for halves of a pair."""
    mark = byte(data, place)
    # " / \ b f n r t
    if (
        mark == 34
        or mark == 47
        or mark == 92
        or mark == 98
        or mark == 102
        or mark == 110
        or mark == 114
        or mark == 116
    ):
        return place + 1
    if mark != 117:
        return -1
    for step in range(1, 5):
        digit = byte(data, place + step)
        if not (_ZERO <= digit <= _NINE or 65 <= digit <= 70 or 97 <= digit <= 102):
            return -1
    if byte(data, place + 1) | 32 == 100 and byte(data, place + 2) >= 56:
        return -1
    return place + 5


@merged
def _beyond_ascii(data: int, place: int) -> int:
    """Return what comes after a character of two to four bytes (Unicode standard, table 3-7)."""
    first, second = byte(data, place), byte(data, place + 1)
    if 0xC2 <= first <= 0xDF:
        return place + 2 if 0x80 <= second <= 0xBF else -1
    third = byte(data, place + 2)
    if 0xE0 <= first <= 0xEF:
        low = 0xA0 if first == 0xE0 else 0x80
        high = 0x9F if first == 0xED else 0xBF
        return place + 3 if low <= second <= high and 0x80 <= third <= 0xBF else -1
    if 0xF0 <= first <= 0xF4:
        low = 0x90 if first == 0xF0 else 0x80
        high = 0x8F if first == 0xF4 else 0xBF
        if low <= second <= high and 0x80 <= third <= 0xBF and 0x80 <= byte(data, place + 3) <= 0xBF:
            return place + 4
    return -1


@merged
def json_object(data: int, place: int) -> int:
    """Return what comes after the object that begins at ``place``.

    Not taken are more than 60 levels, and numbers of more than 100 digits or with an exponent of three.
    """
    # A bit for each level: 1 is an object, 0 a list.
    levels = 0
    depth = 0
    while True:
        mark = byte(data, place)
        if mark == _QUOTE:
            place = _text_end(data, place + 1)
            if place < 0:
                return -1
        elif mark == _MINUS or _ZERO <= mark <= _NINE:
            place = _number_end(data, place)
            if place < 0:
                return -1
        elif mark in (_OPEN, _OPEN_LIST):
            if depth == _MOST_DEPTH:
                return -1
            inside = 1 if mark == _OPEN else 0
            place = skip_blanks(data, place + 1)
            if byte(data, place) != (_CLOSE if inside else _CLOSE_LIST):
                levels = levels << 1 | inside
                depth += 1
                if inside:
                    place = _value_of_name(data, place)
                    if place < 0:
                        return -1
                continue
            place += 1
        else:
            four = word(data, place) & _LOW_HALF
            if four in (_TRUE, _NULL):
                place += 4
            elif mark == 102 and word(data, place + 1) & _LOW_HALF == _ALSE:
                place += 5
            else:
                return -1
        # Behind a value: brackets that close, then a comma or the end.
        while True:
            if depth == 0:
                return place
            place = skip_blanks(data, place)
            mark = byte(data, place)
            if mark == _COMMA:
                break
            if mark != (_CLOSE if levels & 1 else _CLOSE_LIST):
                return -1
            levels >>= 1
            depth -= 1
            place += 1
        place = skip_blanks(data, place + 1)
        if levels & 1:
            place = _value_of_name(data, place)
            if place < 0:
                return -1


@merged
def _value_of_name(data: int, place: int) -> int:
    """Return where the value of the name at ``place`` begins."""
    if byte(data, place) != _QUOTE:
        return -1
    place = _text_end(data, place + 1)
    if place < 0:
        return -1
    place = skip_blanks(data, place)
    if byte(data, place) != _COLON:
        return -1
    return skip_blanks(data, place + 1)


@merged
def _number_end(data: int, place: int) -> int:
    start = place
    if byte(data, place) == _MINUS:
        place += 1
    if byte(data, place) == _ZERO:
        place += 1
    else:
        digits = _digits_end(data, place)
        if digits == place:
            return -1
        place = digits
    if byte(data, place) == _POINT:
        digits = _digits_end(data, place + 1)
        if digits == place + 1:
            return -1
        place = digits
    if place - start > _MOST_DIGITS:
        return -1
    if byte(data, place) | 32 == 101:
        place += 1
        if byte(data, place) == _PLUS or byte(data, place) == _MINUS:
            place += 1
        digits = _digits_end(data, place)
        if digits == place or digits - place > 2:
            return -1
        place = digits
    return place


@merged
def _digits_end(data: int, place: int) -> int:
    while True:
        digits = word(data, place) ^ _ZEROS
        others = ((digits + _TO_HIGH) | digits) & _HIGH
        if others != 0:
            return place + (first_bit(others) >> 3)
        place += 8


@merged
def utc_time(data: int, place: int, size: int, clock: int) -> tuple[bool, int]:
    """Return whether a text is a time in UTC with seconds and up to nine decimals, and its nanoseconds since 1970.

    ``clock`` remembers the second that was read last, as text (three words) and as number: most lines of a log share it
    with the line before.
    """
    end = place + size
    if size >= 20 and byte(data, end - 1) == 90:
        end -= 1
    elif (
        size >= 25
        and byte(data, end - 6) == _PLUS
        and byte(data, end - 5) == _ZERO
        and byte(data, end - 4) == _ZERO
        and byte(data, end - 3) == _COLON
        and byte(data, end - 2) == _ZERO
        and byte(data, end - 1) == _ZERO
    ):
        end -= 6
    else:
        return False, 0
    first, second, third = word(data, place), word(data, place + 8), word(data, place + 11)
    if first != word(clock, 0) or second != word(clock, 8) or third != word(clock, 16):
        found = _whole_second(data, place)
        if found == _NO_SECOND:
            return False, 0
        put_word(clock, 0, first)
        put_word(clock, 8, second)
        put_word(clock, 16, third)
        put_word(clock, 24, np.uint64(found))
    whole = number(clock, 24) * _NS
    decimals = end - place - 20
    if decimals < 0:
        return end == place + 19, whole
    if decimals == 0 or decimals > 9 or byte(data, place + 19) != _POINT:
        return False, 0
    fraction = 0
    for step in range(decimals):
        digit = byte(data, place + 20 + step) - _ZERO
        if digit < 0 or digit > 9:
            return False, 0
        fraction = fraction * 10 + digit
    return True, whole + fraction * _TENS[9 - decimals]


_NO_SECOND = -(1 << 62)


@merged
def _whole_second(data: int, place: int) -> int:
    """Return the seconds since 1970 of ``2025-11-18T10:00:00``, in the years that nanoseconds can hold."""
    if (
        byte(data, place + 4) != _MINUS
        or byte(data, place + 7) != _MINUS
        or byte(data, place + 10) != 84
        or byte(data, place + 13) != _COLON
        or byte(data, place + 16) != _COLON
    ):
        return _NO_SECOND
    year = _two(data, place) * 100 + _two(data, place + 2)
    month, day = _two(data, place + 5), _two(data, place + 8)
    hour, minute, second = _two(data, place + 11), _two(data, place + 14), _two(data, place + 17)
    # What is no digit makes a number of more than two.
    if _two(data, place) > 99 or _two(data, place + 2) > 99 or year < 1678 or year > 2261:
        return _NO_SECOND
    if month < 1 or month > 12 or hour > 23 or minute > 59 or second > 59 or day < 1:
        return _NO_SECOND
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if day > _MONTHS[month] + (1 if leap and month == 2 else 0):
        return _NO_SECOND
    # Days since 1970 of a Gregorian date, with years that begin in March so that the leap day is their last.
    shifted = year - (1 if month <= 2 else 0)
    in_era = shifted % 400
    in_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    days = shifted // 400 * 146_097 + in_era * 365 + in_era // 4 - in_era // 100 + in_year - 719_468
    return days * 86_400 + hour * 3_600 + minute * 60 + second


@merged
def _two(data: int, place: int) -> int:
    """Return the number of two digits; 1000 where there are none."""
    tens, ones = byte(data, place) - _ZERO, byte(data, place + 1) - _ZERO
    return tens * 10 + ones if 0 <= tens <= 9 and 0 <= ones <= 9 else 1000


# A time is a number; of one that is KEPT the text is wanted too.
TIME, TEXT, JSON, KEPT = 0, 1, 2, 3
# So many more bytes than are used must lie behind the text and behind the heap: both are handled in words of eight.
SLACK = 16
_NEWLINE, _QUOTE, _OPEN, _CLOSE, _COLON, _COMMA = 10, 34, 123, 125, 58, 44
# A row of the table: the name with its closing quote, a mask of what counts of it, its length, kind, may it be missing.
_NAME_BYTES = 32
_MASK, _LENGTH, _KIND, _OPTIONAL, _ROW = 32, 64, 72, 80, 88
# A view holds up to twelve bytes itself.
_INLINE = 12
# How many of a column's latest texts are remembered, to be pointed at again.
_SLOTS = 16
# The lowest 0 to 8 bytes of a word.
_LOWEST = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
_HALF = np.uint64(32)

Bytes = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int64]
Table = npt.NDArray[np.uint64]


class Columns(NamedTuple):
    """What was found; a row for each line that was taken.

    ``views`` (fields × rows × 2) are Arrow's string views: up to 12 bytes inside, longer texts as a place in
    ``heap``. ``known`` (fields × rows) marks the fields present, ``line`` counts lines from 0. ``odd`` has a row for
    each line that was not taken: its number, where it begins, and where the next one does.
    """

    stamps: Whole
    views: Table
    known: Bytes
    line: Whole
    heap: Bytes
    odd: Whole


def table_of(columns: list[tuple[str, int, bool]]) -> Table | None:
    """Return what is to be known of fields: name on disk, kind, may it be missing. None where a name is too long."""
    rows = []
    for name, kind, optional in columns:
        text = f'{name}"'.encode()
        if len(text) > _NAME_BYTES:
            return None
        mask = b"\xff" * len(text)
        numbers = np.array([len(text), kind, optional], "<u8").tobytes()
        rows.append(text.ljust(_NAME_BYTES, b"\0") + mask.ljust(_NAME_BYTES, b"\0") + numbers)
    return np.frombuffer(b"".join(rows), "<u8").reshape(len(columns), -1).copy()


@compiled
def scan_lines(data: Bytes, size: int, fields: Table, columns: Columns) -> tuple[int, int, int]:
    """Fill ``columns`` with the lines in the first ``size`` bytes of ``data``, of which the last is a newline.

    Returns the numbers of rows, of bytes in the heap, and of odd lines.
    """
    stamps, views, known, line, odd = columns.stamps, columns.views, columns.known, columns.line, columns.odd
    count = len(fields)
    # Words to work with: where each field's value is and its length, the second that was read last, the latest texts.
    work = np.zeros(count * (2 + 2 * _SLOTS) + 4, np.uint64)
    text, table, heap, places = address(data), address(fields), address(columns.heap), address(work)
    clock = places + 16 * count
    slots = clock + 32
    rows = used = odds = lines = place = 0
    while place < size:
        stop, stamp, seen = _line(text, place, table, count, places, clock)
        if stop >= 0:
            stamps[rows] = stamp
            line[rows] = lines
            for field in range(count):
                is_there = seen >> field & 1
                known[field, rows] = is_there
                low = high = np.uint64(0)
                if is_there and _of(table, field, _KIND) != TIME:
                    low, high, used = _view(
                        text,
                        number(places, 16 * field),
                        number(places, 16 * field + 8),
                        heap,
                        used,
                        slots + 16 * _SLOTS * field if _of(table, field, _KIND) == TEXT else 0,
                    )
                views[field, rows, 0] = low
                views[field, rows, 1] = high
            rows += 1
        else:
            stop = place
            while byte(text, stop) != _NEWLINE:
                stop += 1
            odd[odds, 0] = lines
            odd[odds, 1] = place
            odd[odds, 2] = stop + 1
            odds += 1
        lines += 1
        place = stop + 1
    # Used here, so that it is there until here.
    work[0] = 0
    return rows, used, odds


@merged
def _line(text: int, place: int, table: int, count: int, places: int, clock: int) -> tuple[int, int, int]:
    """Return where a line ends, its time, and a bit for each field that is there; −1 for a line that is not taken."""
    stamp = seen = absent = expected = 0
    place = skip_blanks(text, place)
    if byte(text, place) != _OPEN:
        return -1, 0, 0
    while True:
        # Behind the brace or a comma: a name that is known and was not there before.
        place = skip_blanks(text, place + 1)
        if byte(text, place) != _QUOTE:
            return -1, 0, 0
        field = _field(text, place + 1, table, count, expected)
        if field < 0 or seen >> field & 1:
            return -1, 0, 0
        expected = field + 1
        place = skip_blanks(text, place + 1 + _of(table, field, _LENGTH))
        if byte(text, place) != _COLON:
            return -1, 0, 0
        place = skip_blanks(text, place + 1)
        kind = _of(table, field, _KIND)
        mark = byte(text, place)
        start = after = place
        if kind == JSON and mark == _OPEN:
            stop = after = json_object(text, place)
        elif kind != JSON and mark == _QUOTE:
            start = place + 1
            stop = plain_text(text, start)
            after = stop + 1
        elif _of(table, field, _OPTIONAL) and is_null(text, place):
            stop = place
            after = place + 4
            absent |= 1 << field
        else:
            return -1, 0, 0
        if stop < 0:
            return -1, 0, 0
        if kind in (TIME, KEPT):
            sure, stamp = utc_time(text, start, stop - start, clock)
            if not sure:
                return -1, 0, 0
        seen |= 1 << field
        put_word(places, 16 * field, np.uint64(start))
        put_word(places, 16 * field + 8, np.uint64(stop - start))
        place = skip_blanks(text, after)
        if byte(text, place) != _COMMA:
            break
    if byte(text, place) != _CLOSE:
        return -1, 0, 0
    place = skip_blanks(text, place + 1)
    if byte(text, place) != _NEWLINE:
        return -1, 0, 0
    for field in range(count):
        if not seen >> field & 1 and not _of(table, field, _OPTIONAL):
            return -1, 0, 0
    return place, stamp, seen & ~absent


@merged
def _of(table: int, field: int, what: int) -> int:
    return number(table, _ROW * field + what)


@merged
def _field(text: int, place: int, table: int, count: int, expected: int) -> int:
    """Return the number of the field whose name stands at ``place``, the expected field first; else −1."""
    for step in range(count):
        field = expected + step
        if field >= count:
            field -= count
        row = _ROW * field
        differ = (word(text, place) ^ word(table, row)) & word(table, row + _MASK)
        at = 8
        while differ == 0 and at < _of(table, field, _LENGTH):
            differ = (word(text, place + at) ^ word(table, row + at)) & word(table, row + _MASK + at)
            at += 8
        if differ == 0:
            return field
    return -1


@merged
def _view(
    text: int, start: int, size: int, heap: int, used: int, slots: int
) -> tuple[np.uint64, np.uint64, int]:
    """Return the two words of a text's view, and the heap's length: a long text goes there, or is there already.

    ``slots`` are the latest texts of the column: place and length of each; 0 where it makes no sense to remember.
    """
    low = np.uint64(size) | word(text, start) << _HALF
    if size <= _INLINE:
        low = np.uint64(size) | (word(text, start) & _LOWEST[min(size, 4)]) << _HALF
        return low, word(text, start + 4) & _LOWEST[max(size - 4, 0)], used
    slot = slots
    if slots != 0:
        slot += 16 * ((size + 7 * byte(text, start) + byte(text, start + size - 1)) % _SLOTS)
        at = number(slot, 0)
        if number(slot, 8) == size and _is_same(text, start, heap, at, size):
            return low, np.uint64(at) << _HALF, used
        put_word(slot, 0, np.uint64(used))
        put_word(slot, 8, np.uint64(size))
    for step in range(0, size, 8):
        put_word(heap, used + step, word(text, start + step))
    return low, np.uint64(used) << _HALF, used + size


@merged
def _is_same(text: int, start: int, heap: int, at: int, size: int) -> bool:
    for step in range(0, size, 8):
        if (word(text, start + step) ^ word(heap, at + step)) & _LOWEST[min(size - step, 8)] != 0:
            return False
    return True


_PIECE_BYTES = 4 << 20
_KINDS = {"text": TEXT, "json": JSON}
# If more than every fourth line is odd, decoding the whole block is faster than decoding its odd lines one by one.
_FEW = 4
_WORKERS = min(8, os.cpu_count() or 1)
_log = logging.getLogger("replaylab.frames")


def fields_for(schema: LogSchema) -> Table | None:
    """Return what the scanner needs to know of a log; None for one whose records it cannot read."""
    if not schema.is_scannable:
        return None
    kinds = {**_KINDS, "time": KEPT if schema.keep_text else TIME}
    return table_of([(column.disk, kinds[column.kind], column.optional) for column in schema.columns])


def scan_blocks(
    file: BinaryIO,
    schema: LogSchema,
    fields: Table,
    name: str,
    *,
    start: int,
    line: int,
    end: int | None,
    piece: int = _PIECE_BYTES,
) -> Generator[tuple[Loaded, int], None, tuple[int, int]]:
    """Yield the loads of an open file piece by piece, each with its bytes; return where it stopped, and in which line.

    Each piece of up to ``piece`` bytes holds whole lines. Pieces are scanned at the same time and yielded in order.
    """
    if not was_compiled(scan_lines):
        # A warning, so that it shows without logging configured: compiling takes longer than most loads.
        _log.warning("compiling the reader of large logs (once per installation, some five seconds)")
        warm_up()
    ready: deque[tuple[Future[Loaded], bytearray, int]] = deque()
    free = [bytearray(piece + SLACK) for _ in range(_WORKERS + 2)]
    rest = b""
    file.seek(start)
    with ThreadPoolExecutor(_WORKERS, "replaylab-scan") as pool:
        while True:
            if not free:
                yield _next(ready, free)
            buffer = free.pop()
            buffer[: len(rest)] = rest
            room = piece if end is None else min(piece, end - start)
            size = len(rest) + file.readinto(memoryview(buffer)[len(rest) : room])  # type: ignore[attr-defined]
            cut = buffer.rfind(b"\n", 0, size) + 1
            if size == len(rest) or not cut:
                break
            rest = bytes(memoryview(buffer)[cut:size])
            count = int(np.count_nonzero(np.frombuffer(buffer, np.uint8, cut) == 10))
            ready.append(
                (
                    pool.submit(
                        _scan, schema, fields, buffer, cut, offset=start, line=line, count=count, name=name
                    ),
                    buffer,
                    cut,
                )
            )
            start += cut
            line += count
        while ready:
            yield _next(ready, free)
    return start, line


def warm_up() -> None:
    """Compile the scanner, or load it when that was done before."""
    with one_at_a_time():
        scan_lines(np.zeros(SLACK, np.uint8), 0, np.zeros((1, 11), np.uint64), _room(1, 1, 0))


def _next(ready: deque[tuple[Future[Loaded], bytearray, int]], free: list[bytearray]) -> tuple[Loaded, int]:
    future, buffer, size = ready.popleft()
    loaded = future.result()
    free.append(buffer)
    return loaded, size


def _scan(
    schema: LogSchema,
    fields: Table,
    buffer: bytearray,
    size: int,
    *,
    offset: int,
    line: int,
    count: int,
    name: str,
) -> Loaded:
    found = _room(count, len(fields), size)
    rows, used, odd = scan_lines(np.frombuffer(buffer, np.uint8), size, fields, found)
    frame = _frame(schema, found, rows, used, line)
    if odd * _FEW > count or has_foreign_symbol(schema, frame):
        return decode_block(schema, Block(bytes(memoryview(buffer)[:size]), offset, line, count), name)
    if not odd:
        return Loaded(frame=frame, lines=count, rows=rows)
    text = memoryview(buffer)
    places = found.odd[:odd].tolist()
    rest = decode_lines(
        schema,
        [(line + at, offset + begin, bytes(text[begin : stop - 1])) for at, begin, stop in places],
        name,
    )
    both = pl.concat([frame, rest.frame]).sort("line") if rest.rows else frame
    return Loaded(both, rest.rejects, count, rest.blank, rows + rest.rows)


def _room(lines: int, fields: int, size: int) -> Columns:
    return Columns(
        stamps=np.empty(lines, np.int64),
        views=np.empty((fields, lines, 2), np.uint64),
        known=np.empty((fields, lines), np.uint8),
        line=np.empty(lines, np.int64),
        heap=np.empty(size + SLACK, np.uint8),
        odd=np.empty((lines, 3), np.int64),
    )


def _frame(schema: LogSchema, found: Columns, rows: int, used: int, line: int) -> pl.DataFrame:
    heap = pa.py_buffer(found.heap[:used].tobytes())
    series: dict[str, pl.Series] = {}
    for number, column in enumerate(schema.columns):
        if column.kind == "time":
            series[column.name] = pl.Series(column.name, found.stamps[:rows]).cast(TIMESTAMP)
            if schema.keep_text:
                series["timestamp_text"] = _texts("timestamp_text", found, number, rows, heap)
        else:
            series[column.name] = _texts(column.name, found, number, rows, heap)
    return frame_of(schema, series, line + found.line[:rows])


def _texts(name: str, found: Columns, number: int, rows: int, heap: pa.Buffer) -> pl.Series:
    known: npt.NDArray[np.uint8] = found.known[number, :rows]
    present = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    buffers = [present, pa.py_buffer(found.views[number, :rows]), heap]
    return pl.Series(name, pa.Array.from_buffers(pa.string_view(), rows, buffers))
