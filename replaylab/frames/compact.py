"""The quick way through a block of lines as replaylab and ``JSON.stringify`` write them: no white space, every field in
its usual place, nothing unknown.

msgspec checks every line and finds the JSON object at its end; numpy finds the texts before it and checks that
the bytes between them are exactly those of the field names. Columns become views into the block: no text is copied.
Anything unusual gives None, and the block is read in another way.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from replaylab.frames.limits import has_huge_number, is_deep
from replaylab.frames.loaded import TIMESTAMP
from replaylab.frames.times import is_regular, parse_matrix

__all__ = ["CompactReader"]

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]
_NEWLINE, _QUOTE, _ESCAPE, _CLOSE = (ord(mark) for mark in '\n"\\}')
# Beyond the last byte a view may look this far.
_PADDING = b"\0" * 16
_INLINE = 12
# Places in a view are 32 bits wide.
_MOST_BYTES = 1 << 31
_LOW = np.array([(1 << 8 * min(size, 4)) - 1 for size in range(_INLINE + 1)], np.uint64)
_HIGH = np.array([(1 << 8 * max(0, size - 4)) - 1 for size in range(_INLINE + 1)], np.uint64)
_HALF = np.uint64(32)


class CompactReader:
    """Reads blocks of records whose fields are ``texts`` (the first is the timestamp) and then one JSON object.

    ``texts`` and ``last`` are pairs of a column's name and its name on disk.
    """

    def __init__(self, texts: list[tuple[str, str]], last: tuple[str, str]) -> None:
        self._names = [name for name, _ in texts]
        self._last = last[0]
        fields = [disk for _, disk in texts]
        marks = [f'{{"{fields[0]}":"', *(f'","{disk}":"' for disk in fields[1:]), f'","{last[1]}":{{']
        self._marks = [mark.encode() for mark in marks]
        kind = msgspec.defstruct("Last", [("value", msgspec.Raw)], rename={"value": last[1]}, gc=False)
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)

    def read(self, data: bytes) -> dict[str, pl.Series] | None:
        """Return the columns, ``timestamp_text`` among them, or None for a block that needs a closer look.

        Raises msgspec.DecodeError, UnicodeDecodeError or RecursionError for one that is not valid.
        """
        if not data.startswith(self._marks[0]) or len(data) > _MOST_BYTES:
            return None
        padded = data + _PADDING
        text = np.frombuffer(padded, np.uint8)
        body = text[: len(data)]
        ends = np.flatnonzero(body == _NEWLINE)
        if not len(ends) or ends[-1] != len(data) - 1 or (text[ends - 1] != _CLOSE).any():
            return None
        starts = np.zeros(len(ends), np.int64)
        starts[1:] = ends[:-1] + 1
        places = self._places(padded, body, starts)
        if places is None:
            return None
        begins = places[-1] + len(self._marks[-1]) - 1
        if (begins >= ends).any() or _escapes_before(data, body, starts, begins):
            return None
        if not self._objects_fill(data, len(ends), int((ends - 1 - begins).sum())):
            return None
        if not data.isascii():
            data.decode()
        columns = self._columns(padded, text, places)
        if columns is None or has_huge_number(data, body) or is_deep(data, begins, ends):
            return None
        columns[self._last] = _views(self._last, padded, begins, ends - 1 - begins)
        return columns

    def _places(self, padded: bytes, body: Bytes, starts: Places) -> list[Places] | None:
        """Return where each mark begins in each line, if every one is there."""
        quotes = np.flatnonzero(body == _QUOTE)
        first = np.searchsorted(quotes, starts)
        # Four quotes for every field and its name: the first mark has three of them, the value ends at the fourth.
        if first[-1] + 4 * (len(self._marks) - 1) > len(quotes):
            return None
        words = _words(padded)
        found = []
        for number, mark in enumerate(self._marks):
            place = starts if number == 0 else quotes[first + (4 * number - 1)]
            for at in (*range(0, len(mark) - 7, 8), len(mark) - 8):
                if (words[place + at] != np.frombuffer(mark, "<u8", 1, at)[0]).any():
                    return None
            found.append(place)
        return found

    def _objects_fill(self, data: bytes, lines: int, size: int) -> bool:
        """Tell whether every line is one JSON object, whose last field's value reaches to its end.

        A value that ends earlier (another field follows) is shorter, and none can be longer: so the sums tell.
        """
        records = self._decoder.decode_lines(data)
        return len(records) == lines and len(b"".join(map(attrgetter("value"), records))) == size

    def _columns(self, padded: bytes, text: Bytes, places: list[Places]) -> dict[str, pl.Series] | None:
        columns = {}
        for number, name in enumerate(self._names):
            begin = places[number] + len(self._marks[number])
            size = places[number + 1] - begin
            if number == 0:
                width = int(size[0])
                if (size != width).any():
                    return None
                if not is_regular(width):
                    return None
                rows = np.lib.stride_tricks.as_strided(text, (len(text) - width, width), (1, 1))[begin]
                times, sure = parse_matrix(rows, width)
                if not sure.all():
                    return None
                columns[name] = pl.Series(name, times).cast(TIMESTAMP)
                columns["timestamp_text"] = _views("timestamp_text", padded, begin, size)
            else:
                columns[name] = _views(name, padded, begin, size)
        return columns


def _words(padded: bytes) -> npt.NDArray[np.uint64]:
    """Return the eight bytes that begin at each place, as numbers."""
    return np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))


def _escapes_before(data: bytes, body: Bytes, starts: Places, begins: Places) -> bool:
    """Tell whether a text has an escape, so that its bytes are not its value."""
    if b"\\" not in data:
        return False
    escapes = np.flatnonzero(body == _ESCAPE)
    line = np.searchsorted(starts, escapes, side="right") - 1
    return bool((escapes < begins[line]).any())


def _views(name: str, padded: bytes, begin: Places, size: Places) -> pl.Series:
    """Return texts as Arrow views: up to twelve bytes inside the view, longer ones as a place in ``padded``."""
    words = _words(padded)
    known = np.minimum(size, _INLINE)
    views = np.empty((len(begin), 2), "<u8")
    views[:, 0] = size.astype(np.uint64) | ((words[begin] & _LOW[known]) << _HALF)
    views[:, 1] = np.where(size > _INLINE, begin.astype(np.uint64) << _HALF, words[begin + 4] & _HIGH[known])
    buffers = [None, pa.py_buffer(views), pa.py_buffer(padded)]
    return pl.Series(name, pa.Array.from_buffers(pa.string_view(), len(begin), buffers))
