"""Load logs: archived parts, cached rows and the live file of each, as rows and rejects.

>>> loaded = load_events("data", ["BTCUSDT"], start="2025-11-18T10:00Z", end="2025-11-18T11:00Z")  # doctest: +SKIP
>>> loaded.frame, loaded.rejects                                                                  # doctest: +SKIP

A missing folder or file gives an empty frame of the right columns. Times are half-open. Rows are in file order: symbols
or days sorted, lines as written.

The live file is opened before the archive is listed. The clean-up writes a part first and removes its source lines
after that, so each line is in at least one of the two; the fingerprint of the source shows when it is in both.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import orjson
import polars as pl

from replaylab.errors import ConfigError, LogReadError, RecordError, ReplaylabError
from replaylab.frames.cache import cached_chunks
from replaylab.frames.files import (
    PartInfo,
    ReplacedError,
    Time,
    Window,
    archived_days,
    in_window,
    is_superseded,
    name_in,
    part_info,
    parts_of,
    read_file,
    read_part,
    window,
)
from replaylab.frames.jsonl import (
    Loaded,
    concat,
    foreign_symbol,
    has_foreign_symbol,
    reject_frame,
)
from replaylab.frames.schema import LogSchema
from replaylab.paths import DataRoot, rotated_parts
from replaylab.records import (
    ExecutionSnapshot,
    HealthSnapshot,
    OrderLogRecord,
    Record,
    ReplayEvent,
    RiskSnapshot,
    StateEvent,
    TpslSnapshot,
    TradeLogRecord,
    decode_record,
)

CHUNK_BYTES = 64 << 20
_TRIES = 5
_Read = TypeVar("_Read")


def scan_log(
    root: DataRoot,
    live: Path,
    schema: LogSchema,
    span: Window = (None, None),
    chunk_bytes: int = CHUNK_BYTES,
    cache: Path | None = None,
) -> Iterator[tuple[Path, Loaded]]:
    """Yield every piece of a log with the file that it comes from: archived parts, rotated parts, the live file.

    Raises LogReadError when a file is replaced or rotated meanwhile: what is missing then is elsewhere.
    """
    file = open_log(live)
    if file is None:
        yield from _archived(root, live, None, schema, span)
        yield from _rotated(root, live, None, schema, span, cache)
        return
    with file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        yield from _archived(root, live, fd, schema, span)
        yield from _rotated(root, live, fd, schema, span, cache)
        for loaded in cached_chunks(file, live, schema, name_in(root, live), chunk_bytes, cache):
            yield live, in_window(loaded, span)
        after = os.fstat(fd)
        if after.st_size < size or not after.st_nlink:
            raise ReplacedError(f"{live}: this log was replaced while it was read; read it again")


def load_log(scan: Callable[[], Iterable[tuple[Path, Loaded]]], schema: LogSchema) -> Loaded:
    """Return all pieces of ``scan()`` as one load; begins again when a file was replaced while it was read."""
    return until_whole(lambda: concat((loaded for _, loaded in scan()), schema.frame))


def until_whole(read: Callable[[], _Read]) -> _Read:
    """Return ``read()``; it begins again when a file was replaced while it was read."""
    for _ in range(_TRIES - 1):
        try:
            return read()
        except ReplacedError:
            continue
    return read()


def open_log(path: Path) -> BinaryIO | None:
    """Return an open file, or None where there is none."""
    try:
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        return None


def _archived(
    root: DataRoot, live: Path, fd: int | None, schema: LogSchema, span: Window
) -> Iterator[tuple[Path, Loaded]]:
    nothing = schema.archived.to_frame()
    for path in parts_of(root, live):
        try:
            info = part_info(path)
            if fd is not None and is_superseded(path, info, fd):
                continue
            if _is_outside(info, span):
                yield path, Loaded(nothing, reject_frame(info.rejects), info.lines, info.blank, info.rows)
                continue
            for loaded in read_part(path, info, schema.archived):
                yield path, in_window(_of_own_symbol(loaded, schema, name_in(root, path)), span)
        except LogReadError as error:
            # How many lines a damaged part held is not known: it counts as one.
            yield path, Loaded(nothing, reject_frame([(name_in(root, path), 0, 0, str(error), "")]), lines=1)


def _rotated(
    root: DataRoot, live: Path, fd: int | None, schema: LogSchema, span: Window, cache: Path | None
) -> Iterator[tuple[Path, Loaded]]:
    """Yield the parts of a log that another program rotated, oldest first.

    The live file that was opened may be rotated right after that: a part that is this very file is left out.
    """
    before = _identities(live)
    opened = None if fd is None else os.fstat(fd)
    for path, identity in before:
        if opened is not None and identity == (opened.st_dev, opened.st_ino):
            continue
        name = name_in(root, path)
        try:
            with opened_log(path) as (file, problem):
                kept = None if path.suffix == ".gz" else cache
                for loaded in cached_chunks(file, path, schema, name, CHUNK_BYTES, kept):
                    yield path, in_window(loaded, span)
        except FileNotFoundError:
            raise ReplacedError(f"{live}: this log was rotated while it was read; read it again") from None
        if problem is not None:
            # How many lines are missing is not known: they count as one.
            yield path, Loaded(schema.frame.to_frame(), reject_frame([(name, 0, 0, problem, "")]), lines=1)
    if _identities(live) != before:
        raise ReplacedError(f"{live}: this log was rotated while it was read; read it again")


def _identities(live: Path) -> list[tuple[Path, tuple[int, int]]]:
    found = []
    for path in rotated_parts(live):
        with suppress(FileNotFoundError):
            state = path.stat()
            found.append((path, (state.st_dev, state.st_ino)))
    return found


@contextmanager
def opened_log(path: Path) -> Iterator[tuple[BinaryIO, str | None]]:
    """Open a log, decompressed where it is gzipped, and give the reason where its gzip content ends early."""
    with path.open("rb", buffering=0) as file:
        if path.suffix != ".gz":
            yield file, None
            return
        with tempfile.TemporaryFile(buffering=0) as whole, gzip.open(file) as source:
            problem = None
            try:
                # read() would drop what comes before a torn end.
                while data := source.read1(1 << 16):
                    whole.write(data)
            except (OSError, EOFError, zlib.error) as error:
                problem = f"not a whole gzip file: {error}; restore it from a copy"
            yield whole, problem


def _of_own_symbol(loaded: Loaded, schema: LogSchema, name: str) -> Loaded:
    """Turn archived rows of another symbol into rejects; their byte offset is not known."""
    if schema.symbol is None or not has_foreign_symbol(schema, loaded.frame):
        return loaded
    own = pl.col("symbol") == schema.symbol
    foreign = loaded.frame.filter(~own).select("line", "symbol").rows()
    rejects = [(name, line, 0, foreign_symbol(found, schema.symbol), "") for line, found in foreign]
    return replace(
        loaded,
        frame=loaded.frame.filter(own),
        rejects=pl.concat([loaded.rejects, reject_frame(rejects)]),
        rows=loaded.rows - len(rejects),
    )


def _is_outside(info: PartInfo, span: Window) -> bool:
    low, high = span
    if info.first_ns is None or info.last_ns is None:
        return True
    return (low is not None and info.last_ns < low) or (high is not None and info.first_ns >= high)


RootLike = DataRoot | str | os.PathLike[str]


class ParamsLine(Record, kw_only=True):
    """One line of ``system/trading_params.jsonl``: the parameters in force from then on."""

    times = ("timestamp",)
    timestamp: str
    params: dict[str, Any]


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

    ``symbols`` chooses files; None takes all. ``extra`` is a JSON string, as logged; ``expand`` names keys
    of it ("score", "components.flow") that become columns of their own. Large files are kept as Parquet under
    ``cache``, so that the next load is faster. Raises TimeError, UnsafeNameError and OSError.
    """
    root = DataRoot(root)
    span = window(start, end)

    def of_symbol(symbol: str) -> Loaded:
        schema = EVENTS.of_symbol(symbol)
        return load_log(lambda: scan_log(root, root.events(symbol), schema, span, cache=cache), schema)

    loaded = concat((of_symbol(symbol) for symbol in _symbols(root, symbols)), EVENTS.frame)
    loaded = replace(loaded, symbols=frozenset(list_symbols(root)))
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
    schema = LogSchema(StateEvent, keep_text, symbol)
    return scan_log(root, root.events(symbol), schema, window(start, end), chunk_bytes)


def load_trades(
    root: RootLike, start: Time = None, end: Time = None, symbols: str | Iterable[str] | None = None
) -> Loaded:
    """Load closed trades: the fields of TradeLogRecord, then unknown_fields, line, file.

    Every day file is read, since a trade may lie in the file of another day than that of its timestamp. ``funding``
    and ``thin``, which replaylab's own records leave out where they are 0 and false, are 0.0 and False there; null
    means not known, in records of other systems.
    """
    loaded = _days(root, "trades_log", TRADES, start, end, symbols)
    return replace(loaded, frame=with_left_out(loaded.frame))


def with_left_out(trades: pl.DataFrame) -> pl.DataFrame:
    """Fill what replaylab's own trade records leave out: ``tp1_filled`` shows which are its own."""
    own = pl.col("tp1_filled").is_not_null()
    return trades.with_columns(
        pl.when(own).then(pl.col(name).fill_null(value)).otherwise(pl.col(name)).alias(name)
        for name, value in (("funding", 0.0), ("thin", False))
    )


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
            names = frozenset(loaded.frame["symbol"].unique().to_list())
            chosen = in_window(loaded, (None, None), wanted)
            by_file.setdefault(path, []).append(replace(chosen, symbols=names))
        return [
            (path, concat(parts, schema.archived if path.suffix == ".parquet" else schema.frame))
            for path, parts in by_file.items()
        ]

    for day in list_days(root, log):
        live = root.path / log / f"day-{day}.jsonl"
        yield from until_whole(partial(of_day, live))


def load_replay_events(
    path: str | os.PathLike[str], *, keep_text: bool = False, cache: Path | None = None
) -> Loaded:
    """Load the ``events.jsonl`` of a session: timestamp, type, symbol, payload (JSON string), unknown_fields, line.

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
    """Load the parameters that were in force: timestamp, params (JSON string), unknown_fields, line."""
    root = DataRoot(root)
    return _load(root.trading_params, PARAMS, name_in(root, root.trading_params))


def list_symbols(root: RootLike) -> list[str]:
    """Return the symbols that have state events, archived ones too, sorted."""
    root = DataRoot(root)
    rotated = {str(place.symbol) for place in root.rotated("events")}
    return sorted({*root.symbols("events"), *root.symbols("archived_events"), *rotated})


def list_days(root: RootLike, log: str) -> list[str]:
    """Return the days ("YYYY-MM-DD") of ``log`` ("trades_log" or "orders"), archived ones too, sorted."""
    root = DataRoot(root)
    days = {str(place.day) for place in (*(place for place, _ in root.files(log)), *root.rotated(log))}
    return sorted(days | archived_days(root, log))


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


SNAPSHOT_RECORDS: dict[str, type[Record]] = {
    "risk": RiskSnapshot,
    "tpsl": TpslSnapshot,
    "execution": ExecutionSnapshot,
    "health": HealthSnapshot,
}


def load_snapshot(root: DataRoot | str | os.PathLike[str], name: str) -> Record | None:
    """Return the snapshot ``name`` ("risk", "tpsl", "execution", "health"), or None where there is none.

    Raises RecordError, naming the file, for one that is not the record it should be; UnsafeNameError for other names.
    """
    path = DataRoot(root).snapshot(name)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return decode_record(SNAPSHOT_RECORDS[name], data)
    except RecordError as error:
        raise RecordError(f"{path}: {error}", field=error.field) from None


def held_mode(root: DataRoot | str | os.PathLike[str]) -> str | None:
    """Return the mode of the system that wrote a root's logs: SIM, DRY_RUN or LIVE; None where none has yet."""
    try:
        snapshot: Any = load_snapshot(root, "execution")
    except (ReplaylabError, OSError):
        return None
    return None if snapshot is None else str(snapshot.mode)


def expand_json(frame: pl.DataFrame, column: str, keys: str | Iterable[str]) -> pl.DataFrame:
    """Return ``frame`` with one more column for each key of the JSON objects in ``column``.

    A dot steps into an object ("components.flow"), unless the whole key is there. Numbers become Float64 or Int64,
    strings String, flags Boolean; mixed types and non-scalar values become JSON strings. Where the key is missing
    the value is null. A key that is the name of a column already comes as ``<column>_<key>``.
    """
    wanted = [keys] if isinstance(keys, str) else list(dict.fromkeys(keys))
    if not all(isinstance(key, str) for key in wanted):
        raise ConfigError(f"expand: expected names of fields, found {wanted!r}", field="expand")
    found: dict[str, list[Any]] = {key: [] for key in wanted}
    for text in frame[column].to_list():
        plain = None if text is None else orjson.loads(text)
        for key, values in found.items():
            values.append(_look_up(plain, key))
    series = [
        _series(f"{column}_{key}" if key in frame.columns else key, values) for key, values in found.items()
    ]
    return frame.with_columns(series)


def _look_up(plain: Any, key: str) -> Any:
    if not isinstance(plain, dict):
        return None
    if key in plain:
        return plain[key]
    first, dot, rest = key.partition(".")
    return _look_up(plain.get(first), rest) if dot else None


def _series(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pl.Series(name, values, dtype=pl.Null)
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    if kinds == {str}:
        return pl.Series(name, values, dtype=pl.String)
    if kinds == {int} and all(value is None or -(2**63) <= value < 2**63 for value in values):
        return pl.Series(name, values, dtype=pl.Int64)
    if kinds <= {int, float}:
        whole = [None if value is None else float(value) for value in values]
        return pl.Series(name, whole, dtype=pl.Float64)
    texts = [None if value is None else orjson.dumps(value).decode() for value in values]
    return pl.Series(name, texts, dtype=pl.String)
