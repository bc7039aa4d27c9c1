"""The central logger: one method per stream type, the one place through which logs are written."""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import orjson
from msgspec import ValidationError, convert
from orjson import OPT_APPEND_NEWLINE, dumps

from replaylab.config import LoggingConfig
from replaylab.errors import ConfigError, InterlockError, LogWriteError, RecordError
from replaylab.fsio import Disk
from replaylab.logging.fast_check import FastCheck, Redactor
from replaylab.logging.files import (
    DONE,
    NO_DESCRIPTORS,
    DoneHandle,
    FileStreamManager,
    Handle,
    forget_dead_threads,
    members,
    when_alone,
)
from replaylab.logging.group_commit import GroupWriter, write_error
from replaylab.logging.health import LOW_DISK_BYTES, LogStats, Troubles, judge
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot, check_case, other_case
from replaylab.records import (
    ExecutionSnapshot,
    FeatureSnapshot,
    HealthSnapshot,
    MarketTrade,
    OrderBookSnapshot,
    OrderLogRecord,
    Record,
    RegimeSnapshot,
    ReplayEvent,
    ReplayManifest,
    RiskSnapshot,
    ScoringSnapshot,
    ServiceHealth,
    StateEvent,
    TpslSnapshot,
    TradeLogRecord,
    encode_record,
)
from replaylab.timestamps import check_time, date_key, iso, to_ns

Plain = Mapping[str, Any]
# What msgspec, orjson and values of other types than str raise in the fast check. No wider: a signal handler may raise
# anything in the middle of it.
_NOT_FAST = (ValidationError, TypeError, LookupError, AttributeError, UnicodeError)
_REMEMBERED_PATHS = 10_000
_WITHOUT_FREE_FIELDS = (TradeLogRecord, OrderLogRecord)
# Elements that a rolling file keeps: a tape of that size has about 1 MB.
_ROLLING_ELEMENTS = 10_000
_METRICS: dict[str, type[Record]] = {
    "FEATURE_SNAPSHOT": FeatureSnapshot,
    "SCORING_SNAPSHOT": ScoringSnapshot,
    "REGIME_SNAPSHOT": RegimeSnapshot,
}


class StreamType(StrEnum):
    """The kinds of log streams, as the specification names them."""

    STATE_EVENT = "STATE_EVENT"
    TRADE_LOG = "TRADE_LOG"
    ORDER_LOG = "ORDER_LOG"
    RISK_SNAPSHOT = "RISK_SNAPSHOT"
    TPSL_SNAPSHOT = "TPSL_SNAPSHOT"
    EXECUTION_SNAPSHOT = "EXECUTION_SNAPSHOT"
    REPLAY_SESSION_MANIFEST = "REPLAY_SESSION_MANIFEST"
    REPLAY_EVENTS = "REPLAY_EVENTS"
    HEALTH_SNAPSHOT = "HEALTH_SNAPSHOT"


class Logger:
    """Writes every log and snapshot of a data root.

    >>> logger = Logger("data")                                     # doctest: +SKIP
    >>> logger.log_state_event("BTCUSDT", event).result()           # doctest: +SKIP
    >>> await logger.log_trade(trade)                               # doctest: +SKIP

    Records are record objects, or plain dicts in their on-disk (camelCase) form. Each method checks its record first
    and raises RecordError, naming the field, before anything is written; then it returns a Handle, which raises
    LogWriteError when the disk refused. What a settled handle promises is the ``durability`` of ``config``.

    With ``run_mode="REPLAY"`` the logs of a live root cannot be written (InterlockError): a replay records into its
    own run folder, for which ``replay_run=True`` is given. Safe to use from many threads and processes.
    """

    def __init__(
        self,
        root: DataRoot | str | os.PathLike[str],
        config: LoggingConfig = LoggingConfig(),  # noqa: B008 - immutable
        *,
        run_mode: Literal["LIVE", "REPLAY"] = "LIVE",
        replay_run: bool = False,
        disk: Disk | None = None,
    ) -> None:
        self.root = DataRoot(root)
        self.config = config
        self.streams = FileStreamManager(disk=disk)
        self._replay_run = replay_run
        self._locked = run_mode == "REPLAY" and not replay_run
        self._troubles = Troubles(self.root)
        self._redactor = Redactor(config.redact, self._troubles.redacted)
        self._has_secret = self._redactor.has_secret
        self._check = FastCheck()
        self._append_now = self.streams.append
        self._event_paths: dict[str, str] = {}
        self._day_paths: dict[tuple[str, str], str] = {}
        self._spellings: dict[str, str] = {}
        self._rolling: dict[str, deque[bytes]] = {}
        self._rolling_lock = threading.RLock()
        self._writer: GroupWriter | None = None
        _loggers.add(self)
        if config.queue or config.durability == "fsync":
            self._writer = GroupWriter(
                self.streams,
                sync=config.durability == "fsync",
                size=config.queue_size,
                max_delay_s=config.max_delay_ms / 1000,
                overflow=config.overflow,
                extra_lines=self._troubles.report_lines,
                report=self._troubles.report,
            )
            # A logger that was not closed: its thread holds the writer, and must end with the logger.
            weakref.finalize(self, self._writer.abandon).atexit = False

    def _start_fresh(self) -> None:
        """In a forked child, and in the last thread of an ending interpreter, locks of other threads stay locked."""
        self._rolling_lock = threading.RLock()
        self._check.start_fresh()

    def log_state_event(self, symbol: str, event: StateEvent | Plain) -> Handle:
        """Append to ``events/<symbol>.jsonl``."""
        # The busiest method: everything that a plain event needs is inline. See FastCheck.
        try:
            convert(event, self._check.form)
            text = event["timestamp"]  # type: ignore[index]
            if (
                text[10] == "T"
                and text[-1] == "Z"
                and "19" < text < "21"
                and len(text) <= 30
                and event["symbol"] == symbol  # type: ignore[index]
            ):
                line = dumps(event, None, OPT_APPEND_NEWLINE)
            else:
                line = self._state_event(symbol, event)
        except _NOT_FAST:
            line = self._state_event(symbol, event)
        path = self._event_paths.get(symbol) or self._event_path(symbol)
        if self._writer is not None:
            return self._append(StreamType.STATE_EVENT, path, line)
        try:
            self._append_now(path, line)
        except OSError as cause:
            return self._failed(path, cause)
        if self._troubles.failing:
            self._troubles.worked(path)
        return DONE

    def _state_event(self, symbol: str, event: StateEvent | Plain) -> bytes:
        """Return the line of a state event after the full check."""
        line = encode_record(StateEvent, event)
        free: Any = event
        if isinstance(event, StateEvent):
            found = event.symbol
            free = event.to_dict() if event.__dict__ else event.extra
        else:
            found = event["symbol"]
        _check_symbol("StateEvent", found, symbol)
        if self._has_secret(free):
            line = self._redact(line)
        elif isinstance(event, dict):
            self._check.learn(event["extra"])
        return line + b"\n"

    def log_trade(self, record: TradeLogRecord | Plain) -> Handle:
        """Append a closed trade to ``trades_log/day-<dateKey>.jsonl``.

        A plain dict without ``dateKey`` gets the UTC day of its ``timestamp``.
        """
        if isinstance(record, Mapping) and "dateKey" not in record and "timestamp" in record:
            record = _with_date_key(record)
        line = self._encode(TradeLogRecord, record)
        self._check_live("log_trade")
        day = record.date_key if isinstance(record, TradeLogRecord) else str(record["dateKey"])
        path = self._day_paths.get(("trades_log", day)) or self._day_path("trades_log", day)
        return self._append(StreamType.TRADE_LOG, path, line + b"\n")

    def log_order(self, record: OrderLogRecord | Plain) -> Handle:
        """Append an order to ``orders/day-<UTC day of its timestamp>.jsonl``."""
        line = self._encode(OrderLogRecord, record)
        self._check_live("log_order")
        timestamp = record.timestamp if isinstance(record, OrderLogRecord) else record["timestamp"]
        day = _utc_day(timestamp)
        path = self._day_paths.get(("orders", day)) or self._day_path("orders", day)
        return self._append(StreamType.ORDER_LOG, path, line + b"\n")

    def log_trading_params(
        self, timestamp: str, params: TradingParams, scoring: ScoringParams | None = None
    ) -> Handle:
        """Append the parameters in force from ``timestamp`` on to ``system/trading_params.jsonl``.

        A session takes them as its recorded parameters; ``scoring`` where the scores are replaylab's own.
        """
        self._check_live("log_trading_params")
        try:
            check_time(timestamp)
        except (TypeError, ValueError) as error:
            raise RecordError(f"timestamp: {error}", field="timestamp") from None
        record = {"timestamp": timestamp, "params": params.to_dict()}
        line = orjson.dumps(record if scoring is None else {**record, "scoring": scoring.to_dict()})
        return self._append("TRADING_PARAMS", os.fspath(self.root.trading_params), line + b"\n")

    def write_risk_snapshot(self, snapshot: RiskSnapshot | Plain) -> Handle:
        """Overwrite ``system/risk_snapshot.json``."""
        return self._snapshot("risk", RiskSnapshot, snapshot)

    def write_tpsl_snapshot(self, snapshot: TpslSnapshot | Plain) -> Handle:
        """Overwrite ``system/tpsl_snapshot.json``."""
        return self._snapshot("tpsl", TpslSnapshot, snapshot)

    def write_execution_snapshot(self, snapshot: ExecutionSnapshot | Plain) -> Handle:
        """Overwrite ``system/execution_snapshot.json``."""
        return self._snapshot("execution", ExecutionSnapshot, snapshot)

    def write_health_snapshot(self, snapshot: HealthSnapshot | Plain) -> Handle:
        """Overwrite ``system/health_snapshot.json``; in REPLAY mode too: it describes this process."""
        line = self._encode(HealthSnapshot, snapshot)
        return self._overwrite(os.fspath(self.root.snapshot("health")), _indented(line))

    def write_metrics(
        self,
        symbol: str,
        snapshots: Iterable[FeatureSnapshot | ScoringSnapshot | RegimeSnapshot | Plain],
        *,
        keep: int = _ROLLING_ELEMENTS,
    ) -> Handle:
        """Append to ``metrics/<symbol>.json``, a JSON array of its newest ``keep`` elements.

        >>> logger.write_metrics("BTCUSDT", [ScoringSnapshot(...)])  # doctest: +SKIP

        A plain dict names its ``type``: FEATURE_SNAPSHOT, SCORING_SNAPSHOT or REGIME_SNAPSHOT. Each call rewrites the
        file (atomically, some 5 ms at 10,000 elements): collect the snapshots of about a second. One process writes
        the rolling files of a symbol; earlier elements of the file are kept.
        """
        elements = []
        for snapshot in snapshots:
            kind, plain = _typed(snapshot)
            line = self._encode(_METRICS[kind], plain)
            _check_symbol(_METRICS[kind].__name__, plain["symbol"], symbol)
            elements.append(line)
        path = self._of_symbol(self.root.metrics(symbol), symbol)
        return self._roll("write_metrics", path, elements, keep)

    def write_tape(
        self, symbol: str, trades: Iterable[MarketTrade | Plain], *, keep: int = _ROLLING_ELEMENTS
    ) -> Handle:
        """Append prints to ``trades/<symbol>.json``, a JSON array of the newest ``keep``; see ``write_metrics``."""
        elements = [self._encode(MarketTrade, trade) for trade in trades]
        path = self._of_symbol(self.root.market_trades(symbol), symbol)
        return self._roll("write_tape", path, elements, keep)

    def write_order_book(self, symbol: str, book: OrderBookSnapshot | Plain) -> Handle:
        """Overwrite ``orderbook/<symbol>.json``: ``[price, qty]`` pairs, best first."""
        line = self._encode(OrderBookSnapshot, book)
        self._check_live("write_order_book")
        found = book.symbol if isinstance(book, OrderBookSnapshot) else book["symbol"]
        _check_symbol("OrderBookSnapshot", found, symbol)
        path = self._of_symbol(self.root.order_book(symbol), symbol)
        return self._overwrite(os.fspath(path), _indented(line))

    def write_replay_manifest(self, session_id: str, manifest: ReplayManifest | Plain) -> Handle:
        """Overwrite ``replay/sessions/<sessionId>/manifest.json``."""
        line = self._encode(ReplayManifest, manifest)
        found = manifest.session_id if isinstance(manifest, ReplayManifest) else manifest["sessionId"]
        if found != session_id:
            raise RecordError(
                f"ReplayManifest.sessionId: expected {session_id!r}, found {found!r}", field="sessionId"
            )
        return self._overwrite(os.fspath(self.root.manifest(session_id)), _indented(line))

    def append_replay_event(self, session_id: str, event: ReplayEvent | Plain) -> Handle:
        """Append to ``replay/sessions/<sessionId>/events.jsonl``."""
        line = self._encode(ReplayEvent, event)
        path = os.fspath(self.root.session_events(session_id))
        return self._append(StreamType.REPLAY_EVENTS, path, line + b"\n", session_id)

    def flush(self, timeout: float | None = None) -> None:
        """Return when every line logged before this call is as safe as the durability setting says, or has failed.

        The handle of a line has its own outcome. Raises TimeoutError when that takes longer than ``timeout`` seconds.
        """
        if self._writer is not None:
            self._writer.flush(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Write the waiting lines and close every file. A logger that is used again opens its files again."""
        if self._writer is not None:
            self._writer.close(timeout)
        self.streams.close()

    def stats(self) -> LogStats:
        """Return what was written so far, and what was not."""
        troubles, writer, now = self._troubles, self._writer, time.monotonic()
        lines, size = self.streams.written
        at, since, dropped = troubles.last_error_ns, troubles.failing_since, troubles.last_drop
        return LogStats(
            lines=lines,
            bytes=size,
            failures=troubles.failures,
            drops=troubles.drops,
            last_error=troubles.last_error,
            last_error_at=iso(at) if at is not None else None,
            failing=tuple(troubles.failing),
            failing_seconds=(troubles.last_failure or 0.0) - since if since is not None else 0.0,
            last_drop_seconds=now - dropped if dropped is not None else None,
            queued=writer.waiting if writer is not None else 0,
            queue_size=self.config.queue_size,
            busy_seconds=writer.busy_seconds if writer is not None else 0.0,
            open_files=self.streams.open_files,
            redactions=sum(troubles.redactions.values()),
            redacted_keys=tuple(troubles.redactions),
        )

    def health(self, *, low_disk_bytes: int = LOW_DISK_BYTES) -> ServiceHealth:
        """Return the health of logging: OK, WARN or ERROR with the reason and counts; see ``docs/durability.md``."""
        return judge(self.root, self.stats(), low_disk_bytes=low_disk_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            self.close()
            return
        from asyncio import to_thread

        # The disk may be slow: the event loop runs on meanwhile.
        await to_thread(self.close)

    def _encode(self, cls: type[Record], value: Record | Plain) -> bytes:
        line = encode_record(cls, value)
        free: Any
        if not isinstance(value, Record):
            free = value if type(value) is dict else dict(value)
        elif cls in _WITHOUT_FREE_FIELDS:
            free = value.unknown_fields
        else:
            free = value.to_dict()
        if free and self._has_secret(free):
            line = self._redact(line)
        return line

    def _redact(self, line: bytes) -> bytes:
        plain = orjson.loads(line)
        return orjson.dumps(self._redactor.redact(plain)) if self._has_secret(plain) else line

    def _event_path(self, symbol: str) -> str:
        self._check_live("log_state_event")
        path = os.fspath(self._of_symbol(self.root.events(symbol), symbol))
        if len(self._event_paths) < _REMEMBERED_PATHS:
            self._event_paths[symbol] = path
        return path

    def _of_symbol(self, path: Path, symbol: str) -> Path:
        """Return the path of a symbol's file; raises UnsafeNameError for one that differs from another only in case."""
        if self._replay_run:
            return path  # its symbols are those of a session
        key = f"{path.parent.name}/{symbol.casefold()}"
        known = self._spellings.get(key)
        if known is None:
            try:
                self.streams.with_descriptor(lambda: check_case(path, symbol))
            except OSError:
                return (
                    path  # the folder cannot be listed: the line that is written next says why, or is written
                )
            if len(self._spellings) < _REMEMBERED_PATHS:
                self._spellings.setdefault(key, symbol)
        elif known != symbol and not path.exists():
            raise other_case(symbol, known)
        elif known != symbol:
            check_case(path, symbol)
        return path

    def _day_path(self, log: Literal["trades_log", "orders"], day: str) -> str:
        path = os.fspath(self.root.orders(day) if log == "orders" else self.root.trades_log(day))
        if len(self._day_paths) < _REMEMBERED_PATHS:
            self._day_paths[log, day] = path
        return path

    def _snapshot(self, name: str, cls: type[Record], snapshot: Record | Plain) -> Handle:
        line = self._encode(cls, snapshot)
        self._check_live(f"write_{name}_snapshot")
        return self._overwrite(os.fspath(self.root.snapshot(name)), _indented(line))

    def _check_live(self, method: str) -> None:
        if self._locked:
            raise InterlockError(
                f"{method}: run_mode is REPLAY, and {self.root} is a live data root; a replay records into its own "
                "run folder (root.run(session_id, run_id))"
            )

    def _append(self, stream: str, path: str, line: bytes, session_id: str | None = None) -> Handle:
        if self._writer is not None:
            handle = self._writer.put(path, line)
            return handle or self._dropped(stream, path, line, session_id)
        try:
            self.streams.append(path, line)
        except OSError as error:
            return self._failed(path, error)
        if self._troubles.failing:
            self._troubles.worked(path)
        return DONE

    def _roll(self, method: str, path: Path, elements: list[bytes], keep: int) -> Handle:
        """Append elements to a rolling file; what it held before the first call is read once."""
        self._check_live(method)
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ConfigError(f"{method}: keep: expected a whole number ≥ 1, found {keep!r}", field="keep")
        name = os.fspath(path)
        forget_dead_threads()
        with self._rolling_lock:
            try:
                held = self._rolling.get(name) or self.streams.with_descriptor(lambda: _elements_of(path))
            except OSError as error:
                return self._failed(name, error)
            held = self._rolling[name] = deque([*held, *elements], maxlen=keep)
            return self._overwrite(name, b"[\n" + b",\n".join(held) + b"\n]\n")

    def _overwrite(self, path: str, data: bytes) -> Handle:
        if self._writer is not None:
            handle = self._writer.put(path, data, overwrite=True)
            return handle or self._dropped(None, path, data, None)
        try:
            self.streams.write_file(path, data, sync=False)
        except OSError as error:
            return self._failed(path, error)
        if self._troubles.failing:
            self._troubles.worked(path)
        return DONE

    def _failed(self, path: str, error: OSError) -> Handle:
        cause = write_error(error, path)
        self._troubles.failed(path, 1, cause)
        if error.errno in NO_DESCRIPTORS:
            # Nothing can be logged at all: a caller that drops handles must not lose every line with one warning.
            raise cause from None
        return DoneHandle(cause)

    def _dropped(self, stream: str | None, path: str, line: bytes, session_id: str | None) -> Handle:
        self._troubles.dropped(stream, session_id, line)
        waiting = (
            f"the queue is full ({self.config.queue_size} lines wait for the disk): this line is dropped"
        )
        return DoneHandle(LogWriteError(errno.EAGAIN, waiting, path))


_loggers: weakref.WeakSet[Logger] = weakref.WeakSet()


def _start_fresh_alone() -> None:
    for logger in members(_loggers):
        logger._start_fresh()


os.register_at_fork(after_in_child=_start_fresh_alone)
when_alone(_start_fresh_alone)


def _check_symbol(record: str, found: Any, symbol: str) -> None:
    if found != symbol:
        raise RecordError(
            f"{record}.symbol: expected {symbol!r}, the symbol it is logged for, found {found!r}",
            field="symbol",
        )


def _typed(snapshot: Record | Plain) -> tuple[str, dict[str, Any]]:
    """Return the type of a metrics element, and its fields with the type first."""
    kind: Any
    if isinstance(snapshot, Record):
        kind = next(
            (name for name, cls in _METRICS.items() if isinstance(snapshot, cls)), type(snapshot).__name__
        )
        plain = snapshot.to_dict()
    elif isinstance(snapshot, Mapping):
        kind, plain = snapshot.get("type"), dict(snapshot)
    else:
        raise RecordError(f"expected a snapshot or a dict, found a {type(snapshot).__name__}")
    if kind not in _METRICS:
        raise RecordError(f"type: expected one of {', '.join(_METRICS)}, found {kind!r}", field="type")
    return kind, {"type": kind, **plain}


def _elements_of(path: Path) -> list[bytes]:
    """Return the elements of a rolling file, a JSON array or JSON Lines; raises OSError where it is neither."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        is_array = data.lstrip().startswith(b"[")
        raw = _ARRAY.decode(data) if is_array else _ARRAY_ELEMENT.decode_lines(data)
    except msgspec.DecodeError as error:
        reason = f"it is neither a JSON array nor JSON Lines ({error}); move it away to begin again"
        raise OSError(errno.EINVAL, reason, os.fspath(path)) from None
    return [bytes(element) for element in raw]


_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_ARRAY_ELEMENT = msgspec.json.Decoder(msgspec.Raw)


def _indented(line: bytes) -> bytes:
    return msgspec.json.format(line, indent=2)


def _with_date_key(record: Plain) -> Plain:
    """Return the dict with a dateKey, placed where the specification has it: after the timestamp."""
    try:
        day = _utc_day(record["timestamp"])
    except (TypeError, ValueError):
        return record
    return {"timestamp": record["timestamp"], "dateKey": day, **record}


def _utc_day(timestamp: Any) -> str:
    if type(timestamp) is str and timestamp[-1:] == "Z":
        return timestamp[:10]
    # With an offset, or a datetime: the encoder writes those as ISO strings.
    return date_key(to_ns(timestamp))
