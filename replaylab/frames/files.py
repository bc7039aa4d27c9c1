"""Reads whole log files: an open file to rows and rejects, a block at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import polars as pl

from replaylab.errors import LogReadError
from replaylab.frames.jsonl import BLOCK_BYTES, Loaded, blocks, concat, decode_block
from replaylab.frames.schema import TIMESTAMP, LogSchema
from replaylab.paths import DataRoot
from replaylab.timestamps import to_ns

# The scanner pays from 96 MB on (loading its machine code takes 0.5 s); once it is loaded, from 4 MB on.
SCANNER_BYTES = 96 << 20
SCANNER_LOADED_BYTES = 4 << 20
Time = str | datetime | date | None
Window = tuple[int | None, int | None]


class ReplacedError(LogReadError):
    """A file was emptied or removed while it was read: beginning again helps."""


def window(start: Time, end: Time) -> Window:
    """Return a half-open range as nanoseconds; None is open. Raises TimeError."""
    return (None if start is None else to_ns(start)), (None if end is None else to_ns(end))


def in_window(loaded: Loaded, span: Window, symbols: Iterable[str] | None = None) -> Loaded:
    """Return a load with only the rows of a time range and of some symbols."""
    conditions = []
    low, high = span
    if low is not None:
        conditions.append(pl.col("timestamp") >= pl.lit(low, pl.Int64).cast(TIMESTAMP))
    if high is not None:
        conditions.append(pl.col("timestamp") < pl.lit(high, pl.Int64).cast(TIMESTAMP))
    if symbols is not None:
        conditions.append(pl.col("symbol").is_in(list(symbols)))
    return replace(loaded, frame=loaded.frame.filter(*conditions)) if conditions else loaded


def read_file(file: BinaryIO, schema: LogSchema, name: str, span: Window = (None, None)) -> Loaded:
    """Return an open JSON Lines file as one load; ``name`` is what rejects call it."""
    return concat((in_window(loaded, span) for loaded, _ in _loads(file, schema, name)), schema.frame)


def chunks_of(
    file: BinaryIO,
    schema: LogSchema,
    name: str,
    span: Window,
    chunk_bytes: int,
    *,
    start: int = 0,
    line: int = 1,
    end: int | None = None,
) -> Iterator[Loaded]:
    """Yield an open JSON Lines file as loads of about ``chunk_bytes`` of text, from byte ``start`` to ``end``."""
    parts: list[Loaded] = []
    size = 0
    for loaded, length in _loads(
        file, schema, name, start=start, line=line, end=end, size=min(BLOCK_BYTES, chunk_bytes)
    ):
        parts.append(in_window(loaded, span))
        size += length
        if size >= chunk_bytes:
            yield concat(parts, schema.frame)
            parts, size = [], 0
    if parts:
        yield concat(parts, schema.frame)


def _loads(
    file: BinaryIO,
    schema: LogSchema,
    name: str,
    *,
    start: int = 0,
    line: int = 1,
    end: int | None = None,
    size: int = BLOCK_BYTES,
) -> Iterator[tuple[Loaded, int]]:
    """Yield the lines of an open file by block, each with its number of bytes; large files go through the scanner."""
    left = (os.fstat(file.fileno()).st_size if end is None else end) - start
    is_loaded = "replaylab.frames.scanner" in sys.modules
    if (
        schema.is_scannable
        and size >= BLOCK_BYTES
        and left >= (SCANNER_LOADED_BYTES if is_loaded else SCANNER_BYTES)
    ):
        from replaylab.frames import scanner

        fields = scanner.fields_for(schema)
        if fields is not None:
            start, line = yield from scanner.scan_blocks(
                file, schema, fields, name, start=start, line=line, end=end
            )
    for block in blocks(file, start=start, line=line, end=end, size=size):
        yield decode_block(schema, block, name), len(block.data)


def name_in(root: DataRoot, path: Path) -> str:
    """Return what a file is called in rejects and reports: relative to the root where it lies inside."""
    return root.relative(path) if path.is_relative_to(root.path) else str(path)


_EDGE = 4096


class Fingerprint(msgspec.Struct, frozen=True):
    """The first ``size`` bytes of a file: digests of the first and of the last 4 KiB of them."""

    size: int
    head: str
    tail: str

    def to_dict(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self)


def fingerprint(fd: int, size: int) -> Fingerprint:
    """Return the fingerprint of the first ``size`` bytes of an open file."""
    start = max(0, size - _EDGE)
    return Fingerprint(
        size, _digest(os.pread(fd, min(_EDGE, size), 0)), _digest(os.pread(fd, size - start, start))
    )


def begins_with(fd: int, known: Fingerprint) -> bool:
    """Return whether an open file still begins with the bytes of which ``known`` is the fingerprint."""
    return os.fstat(fd).st_size >= known.size and fingerprint(fd, known.size) == known


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
