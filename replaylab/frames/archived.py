"""Read the archived (Parquet) parts of logs. This module alone defines the layout of ``archive/``.

``archive/trades_log/day-YYYY-MM-DD.parquet``, ``archive/orders/...`` and, by symbol,
``archive/events/<symbol>/day-YYYY-MM-DD.parquet``; a second part of the same day is ``day-YYYY-MM-DD.2.parquet``. The
rows are those of the loaders. What is not a row (rejects, blank lines) is counted and kept in the metadata of the
file, under the key ``replaylab``, together with the fingerprint of the log that the rows came from. Until the rows are
deleted from that log, a marker file ``<part>.pending`` exists: a marked part is ignored while its log holds the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import polars as pl
import pyarrow.parquet as pq

from replaylab.errors import LogReadError
from replaylab.frames.files import Fingerprint, begins_with
from replaylab.frames.jsonl import Loaded, Reject, reject_frame
from replaylab.paths import DataRoot, classify

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
        return msgspec.json.decode(metadata[METADATA_KEY], type=PartInfo)
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
            frame = frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
            yield replace(account, frame=frame, lines=account.lines + frame.height, rows=frame.height)
            account = Loaded(schema.to_frame())
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise LogReadError(f"{path}: not an archived log: {error}") from None
    if account.lines:
        yield account
