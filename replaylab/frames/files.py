"""Read whole log files, live and archived: an open file to rows and rejects, a block at a time.

This module alone defines the layout of ``archive/``: ``archive/trades_log/day-YYYY-MM-DD.parquet``,
``archive/orders/...`` and, by symbol, ``archive/events/<symbol>/day-YYYY-MM-DD.parquet``; a second part of the same day
is ``day-YYYY-MM-DD.2.parquet``. The rows are those of the loaders. What is not a row (rejects, blank lines) is counted
and kept in the metadata of the file, under the key ``replaylab``, together with the fingerprint of the log that the
rows came from. Until the rows are deleted from that log, a marker file ``<part>.pending`` exists: a marked part is
ignored while its log holds the rows.
"""

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
import pyarrow.parquet as pq

from replaylab.errors import LogReadError
from replaylab.frames.jsonl import BLOCK_BYTES, Loaded, Reject, blocks, concat, decode_block, reject_frame
from replaylab.frames.schema import TIMESTAMP, LogSchema
from replaylab.paths import DataRoot, classify
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


METADATA_KEY = b"replaylab"


class PartInfo(msgspec.Struct, frozen=True, rename="camel"):
    """Metadata of a part. ``first_ns`` and ``last_ns`` bound its timestamps."""

    source: str
    source_bytes: int
    source_sha256: str
    fingerprint: Fingerprint
    lines: int
    rows: int
    blank: int
    rejects: list[Reject]
    first_ns: int | None
    last_ns: int | None
    version: int = 1


# Made while the module is imported: msgspec completes a type at its first use, for which threads must not compete.
_PART_INFO = msgspec.json.Decoder(PartInfo)


def archive_folder(root: DataRoot, live: Path) -> Path:
    """Return the folder of the parts of a log: by symbol for state events, one for all days of the others."""
    folder = root.archive_dir / live.parent.name
    return folder / live.stem if live.parent == root.events_dir else folder


def parts_of(root: DataRoot, live: Path) -> list[Path]:
    """Return the archived parts of the log whose live file is ``live``, by day and number."""
    log = classify(live)
    if log is None:
        return []
    known = {"symbol": log.symbol} if log.symbol is not None else {}
    found = root.files(f"archived_{log.kind}", **known)
    return [path for place, path in found if log.day in (None, place.day)]


def archived_days(root: DataRoot, log: str) -> set[str]:
    """Return the days of which ``log`` ("trades_log", "orders") has archived parts."""
    return {str(place.day) for place, _ in root.files(f"archived_{log}")}


def part_info(path: Path) -> PartInfo:
    """Read the metadata of a part; raises LogReadError for any other file."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return _PART_INFO.decode(metadata[METADATA_KEY])
    except (KeyError, msgspec.MsgspecError, OSError, ValueError) as error:
        raise LogReadError(f"{path}: not an archived log: {error}") from None


def pending_mark(part: Path) -> Path:
    """Return the path of the marker of a part whose rows may still be in the log too."""
    return part.with_name(f"{part.name}.pending")


def is_superseded(part: Path, info: PartInfo, fd: int) -> bool:
    """Return whether the open live file still holds the rows of a part (its clean-up was killed half-way)."""
    return pending_mark(part).exists() and begins_with(fd, info.fingerprint)


def read_part(path: Path, info: PartInfo, schema: pl.Schema) -> Iterator[Loaded]:
    """Yield the rows of a part, a row group at a time; rejects and counts come with the first.

    Raises LogReadError for rows that cannot be read.
    """
    account = Loaded(schema.to_frame(), reject_frame(info.rejects), info.lines - info.rows, info.blank, 0)
    try:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            frame = pl.DataFrame(pl.from_arrow(file.read_row_group(group)))
            # A part that was written before a column existed has nulls there.
            have = frame.columns
            frame = frame.select(
                pl.col(name).cast(dtype) if name in have else pl.lit(None, dtype).alias(name)
                for name, dtype in schema.items()
            )
            yield replace(account, frame=frame, lines=account.lines + frame.height, rows=frame.height)
            account = Loaded(schema.to_frame())
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise LogReadError(f"{path}: not an archived log: {error}") from None
    if account.lines:
        yield account
