"""What a replay drives: the reference trading system with its recorder, or any object with ``handle_event``."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import orjson

from replaylab.errors import ConfigError, LogWriteError, ReplayError, did_you_mean
from replaylab.params import Settings, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import (
    ExecutionSnapshot,
    OrderLogRecord,
    Record,
    ReplayEvent,
    RiskSnapshot,
    StateEvent,
    TpslSnapshot,
    TradeLogRecord,
    encode_record,
)
from replaylab.replay.player import EventFeed, OnEvent
from replaylab.trading import ResolvedPrices, TradingSystem

_INJECT_MODES = ("SCORING_ONLY", "FULL_DECISION")
_HASH_ROWS = 65_536
_FLUSH_BYTES = 1 << 20


class SystemTarget:
    """The reference trading system in SIM mode, recording into the run's folder."""

    on_event: OnEvent | None = None
    handle: Callable[[ReplayEvent], Any] | None = None

    def __init__(
        self,
        run_root: DataRoot,
        feed: EventFeed,
        params: TradingParams,
        scoring: Any,
        inject_mode: str,
        prices: ResolvedPrices,
    ) -> None:
        self.recorder = RunRecorder(run_root)
        self._feed = feed
        self._params = params
        self._scoring = scoring
        self._inject_mode = inject_mode
        self._prices = prices
        self.system = self._new_system()
        self.on_event = self.system.on_event

    def begin(self, *, rewinding: bool = False) -> None:
        self.recorder.begin_again()
        self.system = self._new_system()
        self.on_event = self.system.on_event

    def settle(self, result: Any) -> None:
        """Do nothing: ``on_event`` returns nothing."""

    def finish(self) -> None:
        self.system.finish()

    def flush(self) -> None:
        self.recorder.flush()

    def close(self) -> None:
        self.recorder.flush()

    def report(self, emitted: int) -> dict[str, Any]:
        return {
            "digest": self.recorder.digest,
            "counts": dict(self.recorder.counts),
            "unusable": dict(self.system.unusable),
            "priceSources": self._prices.sources,
            "entries": asdict(self.system.counts),
            "params": self._params.to_dict(),
            "scoring": self._scoring.to_dict()
            if isinstance(self._scoring, Settings)
            else repr(self._scoring),
        }

    def _new_system(self) -> TradingSystem:
        # REPLAY whatever the configuration says: from here no order can reach a real market.
        return TradingSystem(
            self._params,
            recorder=self.recorder,
            scoring=self._scoring,
            inject_mode=self._inject_mode,
            price_sources=self._prices,
            instruments=getattr(self._feed.session, "instruments", None),
            initial_state=self._feed.session.initial_state,
            mode="SIM",
            run_mode="REPLAY",
        )


class HandlerTarget:
    """A user's object with ``handle_event``, plain or async; ``reset`` and ``finish`` are called where it has them."""

    on_event: OnEvent | None = None
    handle: Callable[[ReplayEvent], Any] | None = None

    def __init__(self, handler: Any, feed: EventFeed, inject_mode: str) -> None:
        if not callable(getattr(handler, "handle_event", None)):
            raise ReplayError(
                f"a handler needs a method handle_event(event), {type(handler).__name__} has none"
            )
        self._handler = handler
        self._feed = feed
        self._recomputes = inject_mode == "FULL_DECISION"
        self._loop: asyncio.AbstractEventLoop | None = None
        self.handle = self._only_fed(handler.handle_event) if self._recomputes else handler.handle_event

    def begin(self, *, rewinding: bool = False) -> None:
        reset = getattr(self._handler, "reset", None)
        if callable(reset):
            self.settle(reset())
        elif rewinding:
            raise ReplayError(
                f"seeking back needs a method reset() that restores the initial state; "
                f"{type(self._handler).__name__} has none"
            )

    def finish(self) -> None:
        finish = getattr(self._handler, "finish", None)
        if callable(finish):
            self.settle(finish())

    def flush(self) -> None:
        """Do nothing: a handler writes its own records."""

    def close(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
            self._loop = None

    def report(self, emitted: int) -> dict[str, Any]:
        return {
            "digest": self._digest(emitted),
            "counts": {},
            "unusable": {},
            "handler": type(self._handler).__qualname__,
        }

    def settle(self, result: Any) -> None:
        """Run a coroutine to its end, on a loop of the replay's own thread."""
        if inspect.isawaitable(result):
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(_awaited(result))

    @staticmethod
    def _only_fed(handle: Callable[[ReplayEvent], Any]) -> Callable[[ReplayEvent], Any]:
        """Withhold recorded scores and regimes from a handler that makes its own."""

        def fed(event: ReplayEvent) -> Any:
            return None if event.type.startswith(("SCORING", "REGIME")) else handle(event)

        return fed

    def _digest(self, emitted: int) -> str:
        """Hash the events that were played: the only output that every handler has."""
        found = hashlib.sha256(b"FULL_DECISION\n" if self._recomputes else b"SCORING_ONLY\n")
        for rows in self._feed.frame.head(emitted).iter_slices(_HASH_ROWS):
            found.update(rows["timestamp"].dt.timestamp("ns").to_numpy().astype("<i8").tobytes())
            for column in ("type", "symbol", "payload"):
                found.update(orjson.dumps(rows[column].to_list()))
        return found.hexdigest()


async def _awaited(result: Any) -> Any:
    return await result


def check_inject_mode(inject_mode: str) -> str:
    """Return the inject mode; raises ConfigError for any other value."""
    if inject_mode not in _INJECT_MODES:
        hint = did_you_mean(str(inject_mode), _INJECT_MODES)
        raise ConfigError(
            f'inject_mode: expected "SCORING_ONLY" or "FULL_DECISION", found {inject_mode!r}.{hint}',
            field="inject_mode",
        )
    return inject_mode


class RunRecorder:
    """Has the central logger's methods, for the records of a run, which can be repeated at any time.

    Lines wait in memory and are written by ``flush`` (and at a megabyte): a replay is reproducible, so a crash of the
    process loses nothing that cannot be made again. ``digest`` is over every record in the order in which it was
    recorded; no run id and no wall clock is in it.
    """

    def __init__(self, root: DataRoot) -> None:
        self.root = root
        self.counts: Counter[str] = Counter()
        self._lines: dict[Path, list[bytes]] = {}
        self._snapshots: dict[str, bytes] = {}
        self._ordered: list[bytes] = []
        self._size = 0
        self._hash = hashlib.sha256()
        self._event_lines: dict[str, list[bytes]] = {}

    @property
    def digest(self) -> str:
        """SHA-256 in hex over all records so far."""
        self._hash_waiting()
        return self._hash.hexdigest()

    def log_state_event(self, symbol: str, event: StateEvent) -> None:
        line = _line(StateEvent, event)
        lines = self._event_lines.get(symbol)
        if lines is None:
            lines = self._event_lines[symbol] = self._lines.setdefault(self.root.events(symbol), [])
        lines.append(line)
        self.counts["stateEvents"] += 1
        self._add(line)

    def log_trade(self, record: TradeLogRecord) -> None:
        line = _line(TradeLogRecord, record)
        self._lines.setdefault(self.root.trades_log(record.date_key), []).append(line)
        self.counts["trades"] += 1
        self._add(line)

    def log_order(self, record: OrderLogRecord) -> None:
        line = _line(OrderLogRecord, record)
        # The trading system writes UTC timestamps: the first ten characters are the day.
        self._lines.setdefault(self.root.orders(record.timestamp[:10]), []).append(line)
        self.counts["orders"] += 1
        self._add(line)

    def write_risk_snapshot(self, snapshot: RiskSnapshot) -> None:
        self._snapshot("risk", RiskSnapshot, snapshot)

    def write_tpsl_snapshot(self, snapshot: TpslSnapshot) -> None:
        self._snapshot("tpsl", TpslSnapshot, snapshot)

    def write_execution_snapshot(self, snapshot: ExecutionSnapshot) -> None:
        self._snapshot("execution", ExecutionSnapshot, snapshot)

    def flush(self) -> None:
        """Write all waiting lines and snapshots. Raises LogWriteError."""
        if not self._size:
            return
        self._hash_waiting()
        try:
            for path, lines in self._lines.items():
                if lines:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("ab", buffering=0) as file:
                        file.write(b"".join(lines))
                    lines.clear()
            for name, text in self._snapshots.items():
                path = self.root.snapshot(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(msgspec.json.format(text, indent=2) + b"\n")
            self._snapshots.clear()
        except OSError as error:
            raise LogWriteError(
                error.errno, f"the run cannot be recorded: {error.strerror}", str(path)
            ) from error
        self._size = 0

    def begin_again(self) -> None:
        """Delete all records so far, in memory and on disk: the run starts from the beginning."""
        for folder in (
            self.root.events_dir,
            self.root.trades_log_dir,
            self.root.orders_dir,
            self.root.system_dir,
        ):
            shutil.rmtree(folder, ignore_errors=True)
        self.counts.clear()
        self._lines.clear()
        self._event_lines.clear()
        self._snapshots.clear()
        self._ordered.clear()
        self._size = 0
        self._hash = hashlib.sha256()

    def _add(self, line: bytes) -> None:
        self._ordered.append(line)
        self._size += len(line)
        if self._size > _FLUSH_BYTES:
            self.flush()

    def _snapshot(self, name: str, cls: type[Record], snapshot: Record) -> None:
        line = _line(cls, snapshot)
        self._snapshots[name] = line
        self._add(line)

    def _hash_waiting(self) -> None:
        if self._ordered:
            self._hash.update(b"".join(self._ordered))
            self._ordered.clear()


def _line(cls: type[Record], record: Any) -> bytes:
    return encode_record(cls, record) + b"\n"
