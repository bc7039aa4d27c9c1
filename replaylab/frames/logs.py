"""One loader for each log: JSON Lines in, rows and rejects out.

>>> loaded = load_events("data", ["BTCUSDT"], start="2025-11-18T10:00Z", end="2025-11-18T11:00Z")  # doctest: +SKIP
>>> loaded.frame, loaded.rejects                                                                  # doctest: +SKIP

A folder or file that does not exist gives an empty frame of the right columns. Times are half-open. Rows stand in the
order of the files: symbols or days sorted, lines as written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from replaylab.frames.archived import archived_days, archived_symbols
from replaylab.frames.cache import cached_chunks
from replaylab.frames.decode import is_day
from replaylab.frames.expand import expand_json
from replaylab.frames.files import (
    Time,
    in_window,
    name_in,
    read_file,
    window,
)
from replaylab.frames.loaded import Loaded, concat
from replaylab.frames.schema import LogSchema
from replaylab.frames.sources import CHUNK_BYTES, load_log, open_log, scan_log, until_whole
from replaylab.paths import DataRoot, is_safe_name
from replaylab.records import OrderLogRecord, Record, ReplayEvent, StateEvent, TradeLogRecord
from replaylab.records.base import check_timestamp

__all__ = [
    "EVENTS",
    "ORDERS",
    "TRADES",
    "list_days",
    "list_symbols",
    "load_events",
    "load_orders",
    "load_replay_events",
    "load_trades",
    "load_trading_params",
    "scan_days",
    "scan_event_chunks",
    "scan_event_files",
]

RootLike = DataRoot | str | os.PathLike[str]


class ParamsLine(Record, kw_only=True):
    """One line of ``system/trading_params.jsonl``: the parameters in force from then on."""

    timestamp: str
    params: dict[str, Any]

    def __post_init__(self) -> None:
        check_timestamp(self.timestamp)


EVENTS = LogSchema(StateEvent)
TRADES = LogSchema(TradeLogRecord)
ORDERS = LogSchema(OrderLogRecord)
REPLAY_EVENTS = LogSchema(ReplayEvent)
PARAMS = LogSchema(ParamsLine)


def load_events(
    root: RootLike,
    symbols: str | Iterable[str] | None = None,
    start: Time = None,
    end: Time = None,
    expand: str | Iterable[str] | None = None,
    *,
    cache: Path | None = None,
) -> Loaded:
    """Load state events: timestamp, symbol, from_state, to_state, event_type, reason, extra, unknown_fields, line.

    ``symbols`` chooses files; None takes all. ``extra`` is JSON text, byte for byte as logged; ``expand`` names keys
    of it ("score", "components.flow") that become columns of their own. Large files are kept as Parquet under
    ``cache``, so that the next load is faster. Raises TimeError, UnsafeNameError and OSError.
    """
    root = DataRoot(root)
    span = window(start, end)

    def of_symbol(symbol: str) -> Loaded:
        return load_log(lambda: scan_log(root, root.events(symbol), EVENTS, span, cache=cache), EVENTS)

    loaded = concat((of_symbol(symbol) for symbol in _symbols(root, symbols)), EVENTS.frame)
    if expand is None:
        return loaded
    return replace(loaded, frame=expand_json(loaded.frame, "extra", expand))


def scan_event_chunks(
    root: RootLike, symbol: str, start: Time = None, end: Time = None, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Loaded]:
    """Yield the state events of one symbol in loads of about ``chunk_bytes`` of text, for files beyond memory.

    Raises LogReadError when the file is replaced meanwhile.
    """
    return (loaded for _, loaded in scan_event_files(root, symbol, start, end, chunk_bytes))


def scan_event_files(
    root: RootLike,
    symbol: str,
    start: Time = None,
    end: Time = None,
    chunk_bytes: int = CHUNK_BYTES,
    *,
    keep_text: bool = False,
) -> Iterator[tuple[Path, Loaded]]:
    """Yield what ``scan_event_chunks`` yields with the file it comes from: archived parts, then the live file.

    ``keep_text`` adds the column ``timestamp_text`` to the rows of the live file.
    """
    root = DataRoot(root)
    schema = LogSchema(StateEvent, keep_text=True) if keep_text else EVENTS
    return scan_log(root, root.events(symbol), schema, window(start, end), chunk_bytes)


def load_trades(
    root: RootLike, start: Time = None, end: Time = None, symbols: str | Iterable[str] | None = None
) -> Loaded:
    """Load closed trades: the fields of TradeLogRecord, then unknown_fields, line, file.

    Every day file is read, since a trade may lie in another day's file than its timestamp says.
    """
    return _days(root, "trades_log", TRADES, start, end, symbols)


def load_orders(
    root: RootLike, start: Time = None, end: Time = None, symbols: str | Iterable[str] | None = None
) -> Loaded:
    """Load orders: the fields of OrderLogRecord, then unknown_fields, line, file."""
    return _days(root, "orders", ORDERS, start, end, symbols)


def scan_days(
    root: RootLike,
    log: str,
    start: Time = None,
    end: Time = None,
    symbols: str | Iterable[str] | None = None,
    *,
    keep_text: bool = False,
) -> Iterator[tuple[Path, Loaded]]:
    """Yield the files of ``log`` ("trades_log" or "orders"), archived ones too, each with what was chosen of it.

    ``keep_text`` adds the column ``timestamp_text`` to the rows of live files.
    """
    root = DataRoot(root)
    span = window(start, end)
    wanted = None if symbols is None else _listed(symbols)
    schema = {"trades_log": TRADES, "orders": ORDERS}[log]
    if keep_text:
        schema = LogSchema(schema.record, keep_text=True)

    def of_day(live: Path) -> list[tuple[Path, Loaded]]:
        by_file: dict[Path, list[Loaded]] = {}
        for path, loaded in scan_log(root, live, schema, span):
            by_file.setdefault(path, []).append(in_window(loaded, (None, None), wanted))
        return [
            (path, concat(parts, schema.frame if path == live else schema.archived))
            for path, parts in by_file.items()
        ]

    for day in list_days(root, log):
        live = root.path / log / f"day-{day}.jsonl"
        yield from until_whole(partial(of_day, live))


def load_replay_events(
    path: str | os.PathLike[str], *, keep_text: bool = False, cache: Path | None = None
) -> Loaded:
    """Load the ``events.jsonl`` of a session: timestamp, type, symbol, payload (JSON text), unknown_fields, line.

    ``keep_text`` adds ``timestamp_text``, the timestamp as it was written. Large files are kept as Parquet under
    ``cache``, so that the next load is faster.
    """
    place = Path(path)
    schema = LogSchema(ReplayEvent, keep_text=True) if keep_text else REPLAY_EVENTS

    def scan() -> Iterator[tuple[Path, Loaded]]:
        file = open_log(place)
        if file is not None:
            with file:
                for loaded in cached_chunks(file, place, schema, str(place), CHUNK_BYTES, cache):
                    yield place, loaded

    return load_log(scan, schema)


def load_trading_params(root: RootLike) -> Loaded:
    """Load the parameters that were in force: timestamp, params (JSON text), unknown_fields, line."""
    root = DataRoot(root)
    return _load(root.trading_params, PARAMS, name_in(root, root.trading_params))


def list_symbols(root: RootLike) -> list[str]:
    """Return the symbols that have state events, archived ones too, sorted."""
    root = DataRoot(root)
    return sorted({*_stems(root.events_dir, ".jsonl"), *archived_symbols(root)})


def list_days(root: RootLike, log: str) -> list[str]:
    """Return the days ("YYYY-MM-DD") of ``log`` ("trades_log" or "orders"), archived ones too, sorted."""
    root = DataRoot(root)
    names = _stems(root.path / log, ".jsonl")
    live = {name.removeprefix("day-") for name in names if name.startswith("day-")}
    return sorted({day for day in live if is_day(day)} | archived_days(root, log))


def _days(
    root: RootLike, log: str, schema: LogSchema, start: Time, end: Time, symbols: str | Iterable[str] | None
) -> Loaded:
    whole = DataRoot(root)
    loads = [
        replace(loaded, frame=loaded.frame.with_columns(pl.lit(name_in(whole, path)).alias("file")))
        for path, loaded in scan_days(whole, log, start, end, symbols)
    ]
    return concat(loads, pl.Schema([*schema.frame.items(), ("file", pl.String())]))


def _load(path: Path, schema: LogSchema, name: str) -> Loaded:
    file = open_log(path)
    if file is None:
        return concat((), schema.frame)
    with file:
        return read_file(file, schema, name)


def _symbols(root: DataRoot, symbols: str | Iterable[str] | None) -> list[str]:
    return list_symbols(root) if symbols is None else _listed(symbols)


def _listed(symbols: str | Iterable[str]) -> list[str]:
    return [symbols] if isinstance(symbols, str) else sorted(set(symbols))


def _stems(folder: Path, suffix: str) -> list[str]:
    """Return what stands before ``suffix`` in the file names of a folder, where that is a name we would write."""
    if not folder.is_dir():
        return []
    # A folder of such a name is no log.
    paths = (path for path in folder.iterdir() if path.name.endswith(suffix) and not path.is_dir())
    stems = (path.name.removesuffix(suffix) for path in paths)
    return sorted(stem for stem in stems if is_safe_name(stem))
