"""Failures, drops and redactions of a logger: counted, reported in health, and, for dropped lines, logged."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from replaylab.errors import LogWriteError
from replaylab.logging.files import forget_dead_threads, members, when_alone
from replaylab.logging.group_commit import Entry
from replaylab.paths import DataRoot, is_safe_symbol
from replaylab.records import ReplayEvent, ServiceHealth, StateEvent, encode_record
from replaylab.timestamps import iso, now_ns

LOW_DISK_BYTES = 100 << 20
# A drop cannot be repaired: it stays in health long enough for a monitor to see it.
_DROPS_SHOWN_SECONDS = 300.0
_DEAD_SECONDS = 60.0
_NEAR_FULL = 0.8
_STALLED_SECONDS = 5.0
# The log that reports drops of lines without a usable symbol.
_NO_SYMBOL = "LOGGER"
_log = logging.getLogger("replaylab.logging")


@dataclass(frozen=True)
class LogStats:
    """What a logger did since it was made. ``failing`` names files whose last write failed, for ``failing_seconds``.

    ``busy_seconds``: seconds since the writer thread gave the disk its present lines. ``redactions`` counts the values
    replaced because of their keys, ``redacted_keys``.
    """

    lines: int
    bytes: int
    failures: int
    drops: int
    last_error: str | None
    last_error_at: str | None
    failing: tuple[str, ...]
    failing_seconds: float
    last_drop_seconds: float | None
    queued: int
    queue_size: int
    busy_seconds: float
    open_files: int
    redactions: int = 0
    redacted_keys: tuple[str, ...] = ()


@dataclass
class _Dropped:
    """Lines of one log that were dropped and are not reported in it yet."""

    count: int = 0
    first: str = ""
    last: str = ""
    streams: dict[str, int] = field(default_factory=dict)

    def add(self, other: _Dropped) -> None:
        times = [text for text in (self.first, self.last, other.first, other.last) if text]
        self.first, self.last = min(times), max(times)
        self.count += other.count
        for name, count in other.streams.items():
            self.streams[name] = self.streams.get(name, 0) + count


class Troubles:
    """Counts failures, drops and redactions; safe to use from many threads."""

    def __init__(self, root: DataRoot) -> None:
        self.failing: dict[str, float] = {}
        self.failures = 0
        self.drops = 0
        self.last_error: str | None = None
        self.last_error_ns: int | None = None
        self.failing_since: float | None = None
        self.last_failure: float | None = None
        self.last_drop: float | None = None
        self.redactions: dict[str, int] = {}
        self._root = root
        self._start_fresh()
        _all_troubles.add(self)

    def _start_fresh(self) -> None:
        """Also in a forked child: drops not reported yet are the parent's to report."""
        self._unreported: dict[tuple[str, str], _Dropped] = {}
        # A signal handler that logs may interrupt a call that holds it.
        self._lock = threading.RLock()

    def report(self, path: str, lines: int, error: LogWriteError | None) -> None:
        """Record the outcome of lines."""
        if error is not None:
            self.failed(path, lines, error)
        elif self.failing:
            self.worked(path)

    def failed(self, path: str, lines: int, error: LogWriteError) -> None:
        forget_dead_threads()
        with self._lock:
            is_new = path not in self.failing
            self.failing[path] = time.monotonic()
            self.last_failure = time.monotonic()
            self.failing_since = self.failing_since or self.last_failure
            self.failures += lines
            self.last_error, self.last_error_ns = str(error), now_ns()
        if is_new:
            _log.warning("cannot write: %s", error)

    def worked(self, path: str) -> None:
        """A write to ``path`` succeeded while some file was failing."""
        forget_dead_threads()
        with self._lock:
            self.failing_since = None
            recovered = self.failing.pop(path, None) is not None
            # A file without further writes (yesterday's, say) must not keep health at WARN for ever.
            oldest = time.monotonic() - _DEAD_SECONDS
            self.failing = {name: at for name, at in self.failing.items() if at > oldest}
        if recovered:
            _log.warning("writing again: %s", path)

    def redacted(self, key: str) -> None:
        """Record that the value of a key was replaced, and warn at the first of each key."""
        forget_dead_threads()
        with self._lock:
            is_new = key not in self.redactions
            self.redactions[key] = self.redactions.get(key, 0) + 1
        if is_new:
            _log.warning("values of %r are redacted in the logs: LoggingConfig.redact names this key", key)

    def dropped(self, stream: str | None, session_id: str | None, data: bytes) -> None:
        """Record a line that found the queue full; its log gets a line about it when there is room again.

        ``stream`` is None for a file that the next content replaces: that leaves no gap.
        """
        forget_dead_threads()
        with self._lock:
            self.drops += 1
            self.last_drop = time.monotonic()
            if stream is not None:
                plain = orjson.loads(data)
                symbol = plain.get("symbol")
                # Orders and trades accept any string as symbol.
                name = symbol if isinstance(symbol, str) and is_safe_symbol(symbol) else _NO_SYMBOL
                key = ("session", session_id) if session_id else ("symbol", name)
                when = str(plain.get("timestamp", ""))
                self._unreported.setdefault(key, _Dropped()).add(_Dropped(1, when, when, {str(stream): 1}))

    def report_lines(self) -> list[tuple[str, bytes, Entry]]:
        """Return a line for each log that lost some, to be written with the next group."""
        forget_dead_threads()
        with self._lock:
            unreported, self._unreported = self._unreported, {}
        found: list[tuple[str, bytes, Entry]] = []
        for (kind, name), dropped in unreported.items():
            extra = {
                "dropped": dropped.count,
                "firstTimestamp": dropped.first,
                "lastTimestamp": dropped.last,
                "streams": dropped.streams,
            }
            if kind == "session":
                path = self._root.session_events(name)
                line = encode_record(
                    ReplayEvent,
                    {
                        "timestamp": dropped.last,
                        "type": "LOG_LINES_DROPPED",
                        "symbol": None,
                        "payload": extra,
                    },
                )
            else:
                path = self._root.events(name)
                line = encode_record(
                    StateEvent,
                    {
                        "timestamp": dropped.last,
                        "symbol": name,
                        "fromState": "LOGGER",
                        "toState": "LOGGER",
                        "eventType": "LOG_LINES_DROPPED",
                        "reason": f"the queue of the logger was full: {dropped.count} lines were dropped",
                        "extra": extra,
                    },
                )
            found.append((os.fspath(path), line + b"\n", _Report(self._put_back, (kind, name), dropped)))
        return found

    def _put_back(self, key: tuple[str, str], dropped: _Dropped) -> None:
        forget_dead_threads()
        with self._lock:
            self._unreported.setdefault(key, _Dropped()).add(dropped)


_all_troubles: weakref.WeakSet[Troubles] = weakref.WeakSet()


def _start_fresh_after_fork() -> None:
    for troubles in members(_all_troubles):
        troubles._start_fresh()


os.register_at_fork(after_in_child=_start_fresh_after_fork)
when_alone(_start_fresh_after_fork)


@dataclass(frozen=True)
class _Report:
    """Receives the outcome of a line about drops; if it could not be written, the drops are reported later."""

    put_back: Callable[[tuple[str, str], _Dropped], None]
    key: tuple[str, str]
    dropped: _Dropped

    def finish(self, error: LogWriteError | None) -> None:
        if error is not None:
            self.put_back(self.key, self.dropped)


def judge(root: DataRoot, stats: LogStats, *, low_disk_bytes: int = LOW_DISK_BYTES) -> ServiceHealth:
    """Return the health of the service "logging".

    ERROR when nothing can be written at all: the data root refuses, every write has failed for a minute, or the disk
    has not finished one for as long.
    WARN for writes that fail or take more than five seconds, lines dropped in the last five minutes, a queue more than
    80 % full, or a disk with less than ``low_disk_bytes`` left. OK else; earlier failures and redactions stay in the
    message.
    """
    status, reasons = "OK", []
    folder = next((path for path in (root.path, *root.path.parents) if path.exists()), root.path)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        status = "ERROR"
        reasons.append(f"the data root {folder} cannot be written")
    if stats.failing:
        dead = stats.failing_seconds >= _DEAD_SECONDS
        status = "ERROR" if dead or status == "ERROR" else "WARN"
        reasons.append(f"{len(stats.failing)} files cannot be written")
    if stats.last_drop_seconds is not None and stats.last_drop_seconds < _DROPS_SHOWN_SECONDS:
        status = "WARN" if status == "OK" else status
        reasons.append(f"{stats.drops} lines dropped, the queue was full")
    if stats.busy_seconds >= _STALLED_SECONDS:
        dead = stats.busy_seconds >= _DEAD_SECONDS
        status = "ERROR" if dead or status == "ERROR" else "WARN"
        reasons.append(f"the disk has not finished the last lines after {stats.busy_seconds:.0f} s")
    if stats.queued >= stats.queue_size * _NEAR_FULL:
        status = "WARN" if status == "OK" else status
        reasons.append(f"the queue is near full: {stats.queued} of {stats.queue_size} lines wait")
    free = _free_bytes(folder)
    if free is not None and free < low_disk_bytes:
        status = "WARN" if status == "OK" else status
        reasons.append(f"the disk is {'full' if free == 0 else 'low'}: {free >> 20} MiB free")
    if stats.failures:
        reasons.append(
            f"{stats.failures} lines failed, the last at {stats.last_error_at}: {stats.last_error}"
        )
    if stats.redactions:
        reasons.append(f"{stats.redactions} values redacted, of the keys {', '.join(stats.redacted_keys)}")
    plain: dict[str, Any] = {
        "status": status,
        "lastUpdateAt": iso(now_ns()),
        "message": "; ".join(reasons) or None,
    }
    return ServiceHealth.from_dict(plain)


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
