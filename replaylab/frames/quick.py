"""The quick way through a large log: compiled code finds the fields, on all cores, and texts are copied once.

Lines that it does not take go the careful way of ``decode``, one by one. Pieces without a line end, such as a torn
tail or a line of many megabytes, are left to whoever reads on.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from replaylab.compiled import one_at_a_time, was_compiled
from replaylab.frames.decode import decode_block, decode_lines, frame_of
from replaylab.frames.lines import Block
from replaylab.frames.loaded import TIMESTAMP, Loaded
from replaylab.frames.scan import JSON, KEPT, SLACK, TEXT, TIME, Columns, Table, scan_lines, table_of
from replaylab.frames.schema import LogSchema

__all__ = ["fields_for", "quick_loads", "warm_up"]

_PIECE_BYTES = 4 << 20
_KINDS = {"text": TEXT, "json": JSON}
# With more odd lines than every fourth, looking at each is slower than decoding all of them together.
_FEW = 4
_WORKERS = min(8, os.cpu_count() or 1)
_log = logging.getLogger("replaylab.frames")


def fields_for(schema: LogSchema) -> Table | None:
    """Return what the scanner needs to know of a log; None for one whose records it cannot read."""
    if not schema.is_scannable:
        return None
    kinds = {**_KINDS, "time": KEPT if schema.keep_text else TIME}
    return table_of([(column.disk, kinds[column.kind], column.optional) for column in schema.columns])


def quick_loads(
    file: BinaryIO,
    schema: LogSchema,
    fields: Table,
    name: str,
    start: int,
    line: int,
    end: int | None,
    piece: int = _PIECE_BYTES,
) -> Generator[tuple[Loaded, int], None, tuple[int, int]]:
    """Yield the loads of an open file piece by piece, each with its bytes; return where it stopped, and in which line.

    Each piece of up to ``piece`` bytes holds whole lines. Pieces are scanned at the same time and yielded in order.
    """
    if not was_compiled(scan_lines):
        # Seen where nobody has set up logging: it takes longer than most loads.
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
                (pool.submit(_scan, schema, fields, buffer, cut, start, line, count, name), buffer, cut)
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
    offset: int,
    line: int,
    count: int,
    name: str,
) -> Loaded:
    found = _room(count, len(fields), size)
    rows, used, odd = scan_lines(np.frombuffer(buffer, np.uint8), size, fields, found)
    if odd * _FEW > count:
        return decode_block(schema, Block(bytes(memoryview(buffer)[:size]), offset, line, count), name)
    frame = _frame(schema, found, rows, used, line)
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
