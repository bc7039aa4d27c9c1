"""Where a session's events come from: every log and tape of a data root, as frames of rows.

Each source gives frames of ``rows.ROW_SCHEMA``, a bounded piece at a time, and one account per file: lines, rows and
rejects. Nothing here sorts or chooses between sources.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from replaylab import frames, history
from replaylab.errors import LogReadError
from replaylab.history.tapes import Kind
from replaylab.paths import DataRoot
from replaylab.records import OrderLogRecord, Record, TradeLogRecord
from replaylab.sessions.options import BuildOptions, TypeFilter
from replaylab.sessions.rows import SOURCE_RANK, book_payloads, iso_texts, rows_frame, trade_payloads
from replaylab.sessions.tapes import uncovered
from replaylab.timestamps import NS_PER_DAY, iso, parse_ns

__all__ = ["Source", "Sources", "in_day_logs", "known_symbols"]

_HOUR = 3_600_000_000_000
_HASH_CHUNK = 1 << 20


@dataclass
class Source:
    """One file that was read, and what was in it."""

    path: Path
    kind: str
    lines: int = 0
    rows: int = 0
    rejects: int = 0
    taken: int = 0
    size: int = field(init=False)
    inode: int = field(init=False)

    def __post_init__(self) -> None:
        try:
            state = self.path.stat()
        except FileNotFoundError:
            raise LogReadError(
                f"{self.path}: this log was moved away while it was read; read it again"
            ) from None
        self.size, self.inode = state.st_size, state.st_ino

    def add(self, loaded: frames.Loaded) -> None:
        """Count what one piece of the file held."""
        self.lines += loaded.lines
        self.rows += loaded.rows
        self.rejects += loaded.rejects.height

    def to_dict(self, root: DataRoot) -> dict[str, Any]:
        """Return the account as ``meta.json`` holds it.

        The hash is of the bytes there were when reading began; None where another file has taken their place.
        """
        return {
            "file": root.relative(self.path),
            "kind": self.kind,
            "bytes": self.size,
            "sha256": _sha256(self),
            "lines": self.lines,
            "rows": self.rows,
            "rejects": self.rejects,
            "taken": self.taken,
        }


class Sources:
    """All rows that a build asks for. ``files`` fills while ``rows()`` is read."""

    def __init__(self, root: DataRoot, options: BuildOptions) -> None:
        self.root = root
        self.options = options
        self.types: TypeFilter = options.types
        self.files: list[Source] = []

    def rows(self, on_events: Callable[[str, pl.DataFrame], None]) -> Iterator[pl.DataFrame]:
        """Yield rows of all sources; ``on_events(symbol, frame)`` sees every state event before the end, also
        those before the range, for what stood at its start."""
        for symbol in self.options.symbols:
            yield from self._state_events(symbol, on_events)
            if self.types.wants("FEATURE_SNAPSHOT"):
                yield from self._features(symbol)
        yield from self.market_rows()
        if self.types.wants("EXECUTION_ORDER"):
            yield from self._day_log("orders", "EXECUTION_ORDER", OrderLogRecord)
        if self.types.wants("EXECUTION_TRADE"):
            yield from self._day_log("trades_log", "EXECUTION_TRADE", TradeLogRecord)

    def market_rows(self) -> Iterator[pl.DataFrame]:
        """Yield the rows of tapes and books alone."""
        for symbol in self.options.symbols:
            if self.types.wants("MARKET_TRADE"):
                yield from self._tape(symbol)
            if self.types.wants("MARKET_BOOK"):
                yield from self._books(symbol)

    def _state_events(
        self, symbol: str, on_events: Callable[[str, pl.DataFrame], None]
    ) -> Iterator[pl.DataFrame]:
        seen: dict[Path, Source] = {}
        order = 0
        chunks = frames.scan_event_files(self.root, symbol, None, iso(self.options.end), keep_text=True)
        for path, loaded in chunks:
            source = seen.get(path)
            if source is None:
                source = seen[path] = self._account(path, "events")
            source.add(loaded)
            on_events(symbol, loaded.frame)
            # The order over archived parts and the live file is the order in which they were logged.
            frame = loaded.frame.with_row_index("order", order)
            order += frame.height
            chosen = frame.filter(_ns() >= self.options.start)
            if chosen.is_empty():
                continue
            rank = SOURCE_RANK["events"]
            kinds = chosen["event_type"].unique().to_list()
            wanted = [kind for kind in kinds if kind != "STATE_EVENT" and self.types.wants(kind)]
            own = chosen.filter(pl.col("event_type").is_in(wanted))
            # Both forms of one line stay side by side: the signal first, then the whole record.
            pieces = [_event_rows(own, symbol, rank, own["event_type"], own["extra"], 0)]
            if self.types.wants("STATE_EVENT"):
                whole = _payloads(chosen, _STATE_FIELDS, {"extra"})
                pieces.append(_event_rows(chosen, symbol, rank, "STATE_EVENT", whole, 1))
            rows = pl.concat(pieces)
            source.taken += rows.height
            yield rows

    def _tape(self, symbol: str) -> Iterator[pl.DataFrame]:
        rank = SOURCE_RANK["trades"]
        for frame, source in self._market("trades", symbol):
            rows = rows_frame(
                _times(frame), rank, symbol, frame["seq"], "MARKET_TRADE", trade_payloads(frame)
            )
            source.taken += rows.height
            yield rows

    def _books(self, symbol: str) -> Iterator[pl.DataFrame]:
        rank = SOURCE_RANK["book"]
        for frame, source in self._market("book", symbol):
            rows = rows_frame(_times(frame), rank, symbol, frame["seq"], "MARKET_BOOK", book_payloads(frame))
            source.taken += rows.height
            yield rows

    def _market(self, kind: Kind, symbol: str) -> Iterator[tuple[pl.DataFrame, Source]]:
        """Yield imported history, and the rolling file for the time that history does not cover."""
        start, end = self.options.start, self.options.end
        scan = history.scan_trades if kind == "trades" else history.scan_book
        for day in history.days(self.root, kind, symbol):
            first = max(start, parse_ns(day))
            last = min(end, parse_ns(day) + NS_PER_DAY)
            if first >= last:
                continue
            path = self.root.history_dir(kind, symbol) / f"day-{day}.parquet"
            source = self._account(path, f"history {kind}")
            source.rows = source.lines = int(pl.scan_parquet(path).select(pl.len()).collect().item())
            # An hour at a time: a busy day of a liquid market does not fit into the memory that is promised.
            for low in range(first, last, _HOUR):
                frame = scan(self.root, symbol, low, min(low + _HOUR, last)).collect()
                if frame.height:
                    yield frame, source
        path = self.root.market_trades(symbol) if kind == "trades" else self.root.order_book(symbol)
        if path.is_file():
            load = frames.load_market_trades_json if kind == "trades" else frames.load_order_book_json
            loaded = load(self.root, [symbol], iso(start), iso(end))
            source = self._account(path, f"rolling {kind}", loaded)
            frame = uncovered(self.root, kind, symbol, loaded.frame)
            if frame.height:
                yield frame.with_columns(pl.col("line").alias("seq")), source

    def _features(self, symbol: str) -> Iterator[pl.DataFrame]:
        path = self.root.metrics(symbol)
        if not path.is_file():
            return
        loaded = frames.load_metrics(self.root, [symbol], iso(self.options.start), iso(self.options.end))
        source = self._account(path, "metrics", loaded)
        frame = loaded.frame.filter(pl.col("type") == "FEATURE_SNAPSHOT")
        if frame.height:
            rank = SOURCE_RANK["metrics"]
            rows = rows_frame(_times(frame), rank, symbol, frame["line"], frame["type"], frame["payload"])
            source.taken += rows.height
            yield rows

    def _day_log(self, log: str, event_type: str, kind: type[Record]) -> Iterator[pl.DataFrame]:
        names = dict(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))
        start, end = iso(self.options.start), iso(self.options.end)
        offset = 0
        for path, loaded in frames.scan_days(
            self.root, log, start, end, self.options.symbols, keep_text=True
        ):
            frame = loaded.frame
            if not (frame.height or loaded.rejects.height):
                continue
            self._account(path, log, loaded).taken = frame.height
            # One order across day files: a record may lie in another day's file than its timestamp says.
            order = pl.Series(range(offset, offset + frame.height), dtype=pl.Int64)
            offset += frame.height
            payload = _payloads(frame, names, set())
            rank = SOURCE_RANK[log]
            yield rows_frame(_times(frame), rank, frame["symbol"], order, event_type, payload, _stamps(frame))

    def _account(self, path: Path, kind: str, loaded: frames.Loaded | None = None) -> Source:
        source = Source(path, kind)
        if loaded is not None:
            source.add(loaded)
        self.files.append(source)
        return source


def known_symbols(root: DataRoot) -> list[str]:
    """Return every symbol of which the data root holds anything: logs, tape or book."""
    found = {*frames.list_symbols(root), *history.symbols(root)}
    for folder in ("trades", "orderbook", "metrics"):
        found |= {file.stem for file in (root.path / folder).glob("*.json") if not file.name.startswith(".")}
    return sorted(found)


def in_day_logs(root: DataRoot, symbol: str) -> bool:
    """Return whether the order log or the trade log knows a symbol."""
    return any(
        loaded.frame.height
        for log in ("orders", "trades_log")
        for _, loaded in frames.scan_days(root, log, symbols=[symbol])
    )


_STATE_FIELDS = {
    "timestamp": "timestamp",
    "symbol": "symbol",
    "from_state": "fromState",
    "to_state": "toState",
    "event_type": "eventType",
    "reason": "reason",
    "extra": "extra",
}


def _event_rows(
    frame: pl.DataFrame, symbol: str, rank: int, kind: str | pl.Series, payload: pl.Series, place: int
) -> pl.DataFrame:
    return rows_frame(
        _times(frame), rank, symbol, frame["order"].cast(pl.Int64) * 2 + place, kind, payload, _stamps(frame)
    )


def _payloads(frame: pl.DataFrame, names: dict[str, str], json_columns: set[str]) -> pl.Series:
    """Return each row as the JSON record it was: known fields by their names on disk, then the unknown ones."""
    # As texts, all times: a Python datetime would drop the nanoseconds.
    moments = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime)]
    others = [_iso_or_null(frame[name]) for name in moments if name != "timestamp"]
    table = frame.with_columns(_stamps(frame).alias("timestamp"), *others)
    have = [name for name in names if name in table.columns]
    unknown = (
        table["unknown_fields"].to_list() if "unknown_fields" in table.columns else [None] * table.height
    )
    texts = []
    for row, more in zip(table.select(have).iter_rows(), unknown, strict=True):
        record: dict[str, Any] = {}
        for name, value in zip(have, row, strict=True):
            if value is None and name in _OPTIONAL:
                continue
            record[names[name]] = (
                orjson.Fragment(value) if name in json_columns and value is not None else value
            )
        if more:
            record |= orjson.loads(more)
        texts.append(orjson.dumps(record).decode())
    return pl.Series("payload", texts, dtype=pl.String)


# Fields that a record may leave out: a null in the frame means that it did.
_OPTIONAL = frozenset({"entry_timestamp", "reason", "tp1_filled", "fees"})


def _iso_or_null(moments: pl.Series) -> pl.Series:
    texts = [None if ns is None else iso(ns) for ns in moments.dt.timestamp("ns").to_list()]
    return pl.Series(moments.name, texts, dtype=pl.String)


def _stamps(frame: pl.DataFrame) -> pl.Series:
    return frame["timestamp_text"] if "timestamp_text" in frame.columns else iso_texts(_times(frame))


def _times(frame: pl.DataFrame) -> pl.Series:
    return frame["timestamp"].dt.timestamp("ns")


def _ns() -> pl.Expr:
    return pl.col("timestamp").dt.timestamp("ns")


def _sha256(source: Source) -> str | None:
    digest = hashlib.sha256()
    left = source.size
    try:
        with source.path.open("rb") as file:
            if os.fstat(file.fileno()).st_ino != source.inode:
                return None
            while left and (data := file.read(min(left, _HASH_CHUNK))):
                digest.update(data)
                left -= len(data)
    except FileNotFoundError:
        return None
    return None if left else digest.hexdigest()
