"""Find the fields of JSON Lines, compiled: arrays in, arrays out.

It takes a line only when all is as usual: one object of the known fields, in any order, none twice; no escapes in
texts; times in UTC as ``2025-11-18T10:00:00.123Z`` or with ``+00:00``. Every line that it takes is a row, the very one
that ``decode`` makes of it; every other is only pointed at, for ``decode`` to look at.

Below the entry point everything is numbers, arrays too: an array that is handed on is counted by each call, with an
instruction that holds up all cores, and that took four times as long as all the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replaylab.compiled import compiled, merged
from replaylab.frames.syntax import is_null, json_object, plain_text, skip_blanks, utc_time
from replaylab.frames.words import address, byte, number, put_word, word

__all__ = ["JSON", "KEPT", "SLACK", "TEXT", "TIME", "Columns", "Table", "scan_lines", "table_of"]

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
    ``heap``. ``known`` (fields × rows) tells which are there, ``line`` counts lines from 0. ``odd`` has a row for
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
    """Return the number of the field whose name stands at ``place``, first looking where it usually is; else −1."""
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
