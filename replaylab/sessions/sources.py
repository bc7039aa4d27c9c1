"""Where a session's events come from: every log and tape of a data root, as frames of rows.

Each source gives frames of ``rows.ROW_SCHEMA``, a bounded piece at a time, and one account per file: lines, rows and
rejects. Nothing here sorts or chooses between sources.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import orjson
import polars as pl

from replaylab import frames, history
from replaylab.errors import LogReadError
from replaylab.fsio import sha256_of
from replaylab.history import Kind
from replaylab.paths import DataRoot
from replaylab.records import OrderLogRecord, Record, TradeLogRecord
from replaylab.sessions.initial import StateBefore
from replaylab.sessions.options import BuildOptions, TypeFilter
from replaylab.timestamps import NS_PER_DAY, iso, parse_ns, to_ns

_HOUR = 3_600_000_000_000
_ROLLING = ("market_trades", "order_book", "metrics")


@dataclass
class Source:
    """One file that was read, and what it contained."""

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
        """Add the counts of one piece of the file."""
        self.lines += loaded.lines
        self.rows += loaded.rows
        self.rejects += loaded.rejects.height

    def to_dict(self, root: DataRoot) -> dict[str, Any]:
        """Return the account as ``meta.json`` stores it.

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

    def rows(self, before: StateBefore) -> Iterator[pl.DataFrame]:
        """Yield rows of all sources; ``before`` sees every line of the logs up to the end, also those before the range,
        for the state at its start."""
        for symbol in self.options.symbols:
            yield from self._state_events(symbol, before.see)
            if wanted := [kind for kind in _METRICS if self.types.wants(kind)]:
                yield from self._metrics(symbol, wanted)
        yield from self.market_rows()
        yield from self._day_log("orders", "EXECUTION_ORDER", OrderLogRecord, before.see_orders)
        yield from self._day_log("trades_log", "EXECUTION_TRADE", TradeLogRecord, before.see_trades)

    def market_rows(self) -> Iterator[pl.DataFrame]:
        """Yield the rows of tapes, books and funding alone."""
        for symbol in self.options.symbols:
            for kind, (event_type, payloads) in _MARKET.items():
                if not self.types.wants(event_type):
                    continue
                for frame, source in self._market(kind, symbol):
                    source.taken += frame.height
                    yield rows_frame(
                        _times(frame), SOURCE_RANK[kind], symbol, frame["seq"], event_type, payloads(frame)
                    )

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

    def _market(self, kind: Kind, symbol: str) -> Iterator[tuple[pl.DataFrame, Source]]:
        """Yield imported history, and the rolling file for the time that history does not cover."""
        start, end = self.options.start, self.options.end
        for day, path in history.day_files(self.root, kind, symbol).items():
            first = max(start, parse_ns(day))
            last = min(end, parse_ns(day) + NS_PER_DAY)
            if first >= last:
                continue
            source = self._account(path, f"history {kind}")
            source.rows = source.lines = int(pl.scan_parquet(path).select(pl.len()).collect().item())
            # An hour at a time: a busy day of a liquid market does not fit into the memory that is promised.
            for low in range(first, last, _HOUR):
                frame = history.scan(self.root, kind, symbol, low, min(low + _HOUR, last)).collect()
                if frame.height:
                    yield frame, source
        if kind == "funding":
            return
        path = self.root.market_trades(symbol) if kind == "trades" else self.root.order_book(symbol)
        if path.is_file():
            loaded = _load_rolling(self.root, kind, symbol, iso(start), iso(end))
            source = self._account(path, f"rolling {kind}", loaded)
            frame = uncovered(self.root, kind, symbol, loaded.frame)
            if frame.height:
                yield frame.with_columns(pl.col("line").alias("seq")), source

    def _metrics(self, symbol: str, wanted: list[str]) -> Iterator[pl.DataFrame]:
        path = self.root.metrics(symbol)
        if not path.is_file():
            return
        loaded = frames.load_metrics(self.root, [symbol], iso(self.options.start), iso(self.options.end))
        source = self._account(path, "metrics", loaded)
        frame = loaded.frame.filter(pl.col("type").is_in(wanted))
        if frame.height:
            rank = SOURCE_RANK["metrics"]
            rows = rows_frame(_times(frame), rank, symbol, frame["line"], frame["type"], frame["payload"])
            source.taken += rows.height
            yield rows

    def _day_log(
        self, log: str, event_type: str, kind: type[Record], see: Callable[[pl.DataFrame], None]
    ) -> Iterator[pl.DataFrame]:
        names = dict(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))
        wanted = self.types.wants(event_type)
        inside = (_ns() >= self.options.start) & pl.col("symbol").is_in(self.options.symbols)
        offset = 0
        for path, loaded in frames.scan_days(self.root, log, None, iso(self.options.end), keep_text=True):
            see(loaded.frame)
            frame = loaded.frame.filter(inside)
            if not wanted or not (frame.height or loaded.rejects.height):
                continue
            self._account(path, log, loaded).taken = frame.height
            # One order across day files: a record may be in another day's file than its timestamp says.
            order = pl.Series(range(offset, offset + frame.height), dtype=pl.Int64)
            offset += frame.height
            payload = _payloads(frame, names, set())
            rank = SOURCE_RANK[log]
            yield rows_frame(
                _times(frame), rank, frame["symbol"], order, event_type, payload, stamp=_stamps(frame)
            )

    def _account(self, path: Path, kind: str, loaded: frames.Loaded | None = None) -> Source:
        source = Source(path, kind)
        if loaded is not None:
            source.add(loaded)
        self.files.append(source)
        return source


def known_symbols(root: DataRoot) -> list[str]:
    """Return every symbol of which the data root has logs, tape, book, funding or metrics, sorted."""
    rolling = (symbol for kind in _ROLLING for symbol in root.symbols(kind))
    return sorted({*frames.list_symbols(root), *history.symbols(root), *rolling})


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
        _times(frame),
        rank,
        symbol,
        frame["order"].cast(pl.Int64) * 2 + place,
        kind,
        payload,
        stamp=_stamps(frame),
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
_OPTIONAL = frozenset(
    field.name
    for kind in (TradeLogRecord, OrderLogRecord)
    for field in msgspec.structs.fields(kind)
    if not field.required
)


def _iso_or_null(moments: pl.Series) -> pl.Series:
    texts = [None if ns is None else iso(ns) for ns in moments.dt.timestamp("ns").to_list()]
    return pl.Series(moments.name, texts, dtype=pl.String)


def _stamps(frame: pl.DataFrame) -> pl.Series:
    return frame["timestamp_text"] if "timestamp_text" in frame.columns else iso_strings(_times(frame))


def _times(frame: pl.DataFrame) -> pl.Series:
    return frame["timestamp"].dt.timestamp("ns")


def _ns() -> pl.Expr:
    return pl.col("timestamp").dt.timestamp("ns")


def _sha256(source: Source) -> str | None:
    try:
        with source.path.open("rb") as file:
            state = os.fstat(file.fileno())
            if state.st_ino != source.inode or state.st_size < source.size:
                return None
            return sha256_of(file.fileno(), source.size)
    except FileNotFoundError:
        return None


ROW_SCHEMA: Mapping[str, pl.DataType] = {
    "ts": pl.Int64(),  # ns since 1970
    "rank": pl.Int8(),  # SOURCE_RANK of where it comes from
    "symbol": pl.String(),
    "seq": pl.Int64(),  # line or order within its source
    "type": pl.String(),
    "stamp": pl.String(),  # the timestamp's text
    "payload": pl.String(),  # JSON
}
SORT_KEYS = ("ts", "rank", "symbol", "seq")
# What causes comes before what it caused: prices, then signals, then orders, then the closed trade.
SOURCE_RANK = {
    name: rank
    for rank, name in enumerate(("book", "trades", "funding", "metrics", "events", "orders", "trades_log"))
}


def rows_frame(
    ts: pl.Series,
    rank: int,
    symbol: str | pl.Series,
    seq: pl.Series,
    event_type: str | pl.Series,
    payload: pl.Series,
    *,
    stamp: pl.Series | None = None,
) -> pl.DataFrame:
    """Return a frame of ``ROW_SCHEMA``; scalars are repeated, a missing ``stamp`` is written from ``ts``."""
    return pl.DataFrame({"ts": ts.cast(pl.Int64), "seq": seq.cast(pl.Int64), "payload": payload}).select(
        "ts",
        pl.lit(rank, pl.Int8).alias("rank"),
        (pl.lit(symbol) if isinstance(symbol, str) else symbol).alias("symbol"),
        "seq",
        (pl.lit(event_type) if isinstance(event_type, str) else event_type).alias("type"),
        (iso_strings(ts) if stamp is None else stamp).alias("stamp"),
        "payload",
    )


def iso_strings(ts: pl.Series) -> pl.Series:
    """Return the ISO strings of nanoseconds since 1970, the same as ``timestamps.iso`` gives one by one."""
    ns = ts.cast(pl.Int64)
    if len(ns) < 64:
        return pl.Series("stamp", [iso(value) for value in ns.to_list()], dtype=pl.String)
    moment = pl.col("ns").cast(pl.Datetime("ns"))
    whole_ms, whole_us = pl.col("ns") % 1_000_000 == 0, pl.col("ns") % 1_000 == 0
    frame = pl.DataFrame({"ns": ns})
    if frame.select(whole_ms.all()).item():
        text = moment.dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
    else:
        text = (
            pl.when(whole_ms)
            .then(moment.dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"))
            .when(whole_us)
            .then(moment.dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
            .otherwise(moment.dt.strftime("%Y-%m-%dT%H:%M:%S%.9fZ"))
        )
    return frame.select(text.alias("stamp")).to_series()


def trade_payloads(frame: pl.DataFrame) -> pl.Series:
    """Return MARKET_TRADE payloads of a frame with price, qty, side, trade_id and optionally off_market."""
    texts = pl.DataFrame(
        {
            "price": _numbers(frame["price"]),
            "qty": _numbers(frame["qty"]),
            "side": _quoted(frame["side"]),
            "id": _quoted(frame["trade_id"]),
        }
    )
    off = frame["off_market"].fill_null(False) if "off_market" in frame.columns else pl.lit(False)
    end = pl.when(off).then(pl.lit(',"offMarket":true}')).otherwise(pl.lit("}"))
    whole = pl.format(
        '{}{},"qty":{},"side":{},"tradeId":{}{}', pl.lit('{"price":'), "price", "qty", "side", "id", end
    )
    return texts.select(whole.alias("payload")).to_series()


def book_payloads(frame: pl.DataFrame) -> pl.Series:
    """Return MARKET_BOOK payloads of a frame with bids and asks (pairs, or JSON string) and optionally kind."""
    kinds = frame["kind"].to_list() if "kind" in frame.columns else ["snapshot"] * frame.height
    bids, asks = (_levels_json(frame[side]) for side in ("bids", "asks"))
    texts = [
        f'{{"bids":{bid},"asks":{ask},"kind":"{kind}"}}'
        for bid, ask, kind in zip(bids, asks, kinds, strict=True)
    ]
    return pl.Series("payload", texts, dtype=pl.String)


def funding_payloads(frame: pl.DataFrame) -> pl.Series:
    """Return FUNDING payloads of a frame with funding_rate and mark_price (left out where null)."""
    rate, mark = _numbers(frame["funding_rate"]), _numbers(frame["mark_price"])
    texts = [
        f'{{"fundingRate":{one}}}' if other == "null" else f'{{"fundingRate":{one},"markPrice":{other}}}'
        for one, other in zip(rate, mark, strict=True)
    ]
    return pl.Series("payload", texts, dtype=pl.String)


_MARKET: dict[Kind, tuple[str, Callable[[pl.DataFrame], pl.Series]]] = {
    "trades": ("MARKET_TRADE", trade_payloads),
    "book": ("MARKET_BOOK", book_payloads),
    "funding": ("FUNDING", funding_payloads),
}
_METRICS = ("FEATURE_SNAPSHOT", "SCORING_SNAPSHOT", "REGIME_SNAPSHOT")


def json_lines(rows: pl.DataFrame) -> bytes:
    """Return the lines of ``events.jsonl`` for sorted rows, each with its newline."""
    if rows.is_empty():
        return b""
    quoted = {kind: orjson.dumps(kind).decode() for kind in rows["type"].unique().to_list()}
    lines = rows.select(
        pl.concat_str(
            [
                pl.lit('{"timestamp":"'),
                pl.col("stamp"),
                pl.lit('","type":'),
                pl.col("type").replace_strict(quoted, return_dtype=pl.String),
                # A symbol was checked to be a safe file name: nothing in it needs escaping.
                pl.lit(',"symbol":"'),
                pl.col("symbol"),
                pl.lit('","payload":'),
                pl.col("payload"),
                pl.lit("}\n"),
            ]
        )
    ).to_series()
    return "".join(lines.to_list()).encode()


def _numbers(values: pl.Series) -> pl.Series:
    if values.is_empty():
        return pl.Series([], dtype=pl.String)
    data: Any = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    text = orjson.dumps(data.astype("float64", copy=True), option=orjson.OPT_SERIALIZE_NUMPY)
    return pl.Series(text[1:-1].decode().split(","), dtype=pl.String)


def _quoted(values: pl.Series) -> pl.Series:
    """Return each text as JSON; most hold nothing to escape, and need no encoder one by one."""
    texts = values.cast(pl.String)
    odd = texts.str.contains(r'["\\\x00-\x1f]').fill_null(False)
    frame = pl.DataFrame({"text": texts})
    plain = frame.select(
        pl.when(pl.col("text").is_null())
        .then(pl.lit("null"))
        .otherwise(pl.concat_str([pl.lit('"'), pl.col("text"), pl.lit('"')]))
    ).to_series()
    if not odd.any():
        return plain
    return pl.Series(
        [
            orjson.dumps(text).decode() if strange else easy
            for text, strange, easy in zip(texts.to_list(), odd.to_list(), plain.to_list(), strict=True)
        ],
        dtype=pl.String,
    )


def _levels_json(levels: pl.Series) -> list[str]:
    if levels.dtype == pl.String:
        return levels.to_list()
    return [orjson.dumps(pairs).decode() for pairs in levels.to_list()]


Moment = str | datetime | None
_TAPE = {
    "timestamp": pl.Datetime("ns", "UTC"),
    "symbol": pl.String(),
    "price": pl.Float64(),
    "qty": pl.Float64(),
    "side": pl.String(),
    "trade_id": pl.String(),
    "off_market": pl.Boolean(),
}
_BOOKS = {
    "timestamp": pl.Datetime("ns", "UTC"),
    "symbol": pl.String(),
    "kind": pl.String(),
    "bids": pl.List(pl.Array(pl.Float64, 2)),
    "asks": pl.List(pl.Array(pl.Float64, 2)),
}


def load_tape(
    root: DataRoot, symbols: Iterable[str] | None = None, start: Moment = None, end: Moment = None
) -> frames.Loaded:
    """Load trades: timestamp, symbol, price, qty, side, trade_id, off_market; sorted by time within each symbol."""
    return _load(root, "trades", _TAPE, symbols, start, end)


def load_books(
    root: DataRoot, symbols: Iterable[str] | None = None, start: Moment = None, end: Moment = None
) -> frames.Loaded:
    """Load book snapshots and deltas: timestamp, symbol, kind, bids, asks ([price, qty] pairs)."""
    return _load(root, "book", _BOOKS, symbols, start, end)


def _load(
    root: DataRoot,
    kind: Kind,
    schema: dict[str, pl.DataType],
    symbols: Iterable[str] | None,
    start: Moment,
    end: Moment,
) -> frames.Loaded:
    known = {
        *history.symbols(root, kind),
        *root.symbols("market_trades" if kind == "trades" else "order_book"),
    }
    names = sorted(known if symbols is None else set(symbols))
    low, high = (None if moment is None else to_ns(moment) for moment in (start, end))
    pieces, rejects = [pl.DataFrame(schema=schema)], []
    lines = blank = rows = 0
    for name in names:
        tape = history.scan(root, kind, name, low, high).collect()
        rolling = _load_rolling(root, kind, name, start, end)
        lines, blank, rows = lines + rolling.lines, blank + rolling.blank, rows + rolling.rows
        rejects.append(rolling.rejects)
        extra = uncovered(root, kind, name, rolling.frame)
        pieces.append(_shape(tape, name, schema))
        pieces.append(_shape(_with_levels(extra) if kind == "book" else extra, name, schema))
    frame = pl.concat(pieces).sort("symbol", "timestamp", maintain_order=True)
    bad = pl.concat(rejects) if rejects else frames.Loaded(frame).rejects
    return frames.Loaded(frame, bad, lines, blank, rows, frozenset(known))


def _load_rolling(root: DataRoot, kind: Kind, symbol: str, start: Moment, end: Moment) -> frames.Loaded:
    load = frames.load_market_trades_json if kind == "trades" else frames.load_order_book_json
    return load(root, [symbol], start, end)


def uncovered(root: DataRoot, kind: Kind, symbol: str, rolling: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of a rolling file that lie outside the time that imported history covers."""
    span = history.coverage(root, kind, symbol)
    if span is None or rolling.is_empty():
        return rolling
    time = pl.col("timestamp").dt.timestamp("ns")
    return rolling.filter((time < span.first) | (time > span.last))


def _shape(frame: pl.DataFrame, symbol: str, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    missing = {
        "symbol": pl.lit(symbol),
        "off_market": pl.lit(False),
        "kind": pl.lit("snapshot"),
    }
    added = [
        expr.alias(name) for name, expr in missing.items() if name in schema and name not in frame.columns
    ]
    return frame.with_columns(added).select(pl.col(name).cast(dtype) for name, dtype in schema.items())


def _with_levels(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(
        pl.Series(side, [orjson.loads(text) for text in frame[side].to_list()], dtype=_BOOKS[side])
        for side in ("bids", "asks")
    )
