"""Writes what a run records: into the run's own folder, in large pieces, with a digest over every record."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from replaylab.errors import LogWriteError
from replaylab.paths import DataRoot
from replaylab.records import (
    ExecutionSnapshot,
    OrderLogRecord,
    Record,
    RiskSnapshot,
    StateEvent,
    TpslSnapshot,
    TradeLogRecord,
    encode_record,
)

__all__ = ["RunRecorder"]

_FLUSH_BYTES = 1 << 20


class RunRecorder:
    """Has the central logger's methods, for a run that can be made again at any time.

    Lines wait in memory and are written by ``flush`` (and by themselves at a megabyte): a replay is reproducible, so
    a crash of the process loses nothing that matters. ``digest`` is over every record in the order in which it was
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
        self._take(line)

    def log_trade(self, record: TradeLogRecord) -> None:
        line = _line(TradeLogRecord, record)
        self._lines.setdefault(self.root.trades_log(record.date_key), []).append(line)
        self.counts["trades"] += 1
        self._take(line)

    def log_order(self, record: OrderLogRecord) -> None:
        line = _line(OrderLogRecord, record)
        # The trading system stamps in UTC: the text begins with the day.
        self._lines.setdefault(self.root.orders(record.timestamp[:10]), []).append(line)
        self.counts["orders"] += 1
        self._take(line)

    def write_risk_snapshot(self, snapshot: RiskSnapshot) -> None:
        self._snapshot("risk", RiskSnapshot, snapshot)

    def write_tpsl_snapshot(self, snapshot: TpslSnapshot) -> None:
        self._snapshot("tpsl", TpslSnapshot, snapshot)

    def write_execution_snapshot(self, snapshot: ExecutionSnapshot) -> None:
        self._snapshot("execution", ExecutionSnapshot, snapshot)

    def flush(self) -> None:
        """Write what waits. Raises LogWriteError."""
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
        """Forget everything recorded so far, on disk too: the run starts from the beginning."""
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

    def _take(self, line: bytes) -> None:
        self._ordered.append(line)
        self._size += len(line)
        if self._size > _FLUSH_BYTES:
            self.flush()

    def _snapshot(self, name: str, cls: type[Record], snapshot: Record) -> None:
        line = _line(cls, snapshot)
        self._snapshots[name] = line
        self._take(line)

    def _hash_waiting(self) -> None:
        if self._ordered:
            self._hash.update(b"".join(self._ordered))
            self._ordered.clear()


def _line(cls: type[Record], record: Any) -> bytes:
    return encode_record(cls, record) + b"\n"
