"""The way back in a run: checkpoints of the trading system, and a tape of all that the run ever recorded.

A run that went on to event 5,000,000 and was sought back to 100 shows the records of 100 events. What it recorded after
them stays on the tape, so that a seek forward brings it back without playing. The same events give the same records, so
the first one at a place writes the tape there: the run itself, or a scout that plays ahead in idle time.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from replaylab.replay.player import EventFeed, OnEvent
from replaylab.trading import ClosedTrade, TradingSystem

TAPE_FOLDER = ".tape"
_FLUSH_BYTES = 1 << 20
_SHOWN_BYTES = 1 << 22  # that one flush brings back from the tape
_SHORTEST = 1 << 16
_SETTLING_NS = 300_000_000
# Reasons of state events that say only that a signal came.
_NO_DECISION = frozenset(
    ("score below entry threshold", "regime", "risk", "position open", "position closing", "entry pending")
) | {"position carried"}
_FREE_BYTES = 2 << 30  # a scout leaves this much of the disk alone


@dataclass(slots=True)
class _Log:
    """One file of a run. ``end``: bytes recorded, ``waiting`` ones included; ``shown``, ``taped``: bytes in the files.

    ``stale``: the shown file is the tape's own, and must be replaced.
    """

    path: Path
    tape: Path
    end: int = 0
    shown: int = 0
    taped: int = 0
    stale: bool = False
    waiting: list[bytes] = field(default_factory=list)


class Tape:
    """All that a run recorded, by file. Until the run first goes back (``apart``) the tape is the run's own files."""

    def __init__(self, root: DataRoot) -> None:
        self._root = root
        self._folder = root.path / TAPE_FOLDER
        self._numbers: dict[Path, int] = {}
        self.logs: list[_Log] = []
        self.apart = False

    def number(self, path: Path) -> int:
        """Return the number of a file; new ones are added."""
        found = self._numbers.get(path)
        if found is None:
            found = self._numbers[path] = len(self.logs)
            self.logs.append(_Log(path, self._folder / str(found)))
        return found

    def write(self) -> None:
        """Write all waiting lines. Raises OSError."""
        for log in self.logs:
            if log.waiting:
                data = b"".join(log.waiting)
                if self.apart:
                    _append(log.tape, data)
                    log.taped += len(data)
                else:
                    _append(log.path, data)
                    log.shown += len(data)
                log.waiting.clear()

    def part(self) -> None:
        """Keep the shown files as the tape; ``show`` replaces them by new ones, so that readers notice."""
        if self.apart:
            return
        self.write()
        self._folder.mkdir(exist_ok=True)
        for log in self.logs:
            log.tape.unlink(missing_ok=True)
            if log.shown:
                os.link(log.path, log.tape)
                log.stale = True
            log.taped = log.shown
        self.apart = True

    def copy(self) -> None:
        """Copy a part of the shown files to the tape; they are ``apart`` when nothing is left."""
        self._folder.mkdir(exist_ok=True)
        left = _FLUSH_BYTES
        for log in self.logs:
            if log.taped < log.shown and left > 0:
                data = _read(log.path, log.taped, min(log.shown - log.taped, left))
                _append(log.tape, data)
                log.taped += len(data)
                left -= len(data)
        self.apart = all(log.taped == log.shown for log in self.logs)

    def show(self, sizes: Sequence[int], most: int) -> bool:
        """Bring the shown files to these sizes; returns whether some are shorter yet, after ``most`` bytes.

        What is too long is replaced by a new file at once: a reader sees the old one or the beginning of the new one.
        """
        if not self.apart:
            return False
        behind = False
        pairs = list(zip(self.logs, [*sizes, *[0] * (len(self.logs) - len(sizes))], strict=True))
        for log, size in pairs:
            if log.stale or log.shown > size:
                most -= self._replace(log, size, most)
        for log, size in pairs:
            if log.shown < size and most > 0:
                data = self._lines(log, log.shown, size, most)
                _append(log.path, data)
                log.shown += len(data)
                most -= len(data)
            behind = behind or log.shown < size
        return behind

    def forget(self) -> None:
        """Delete the tape's own files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _replace(self, log: _Log, size: int, most: int) -> int:
        data = self._lines(log, 0, size, most) if size and most > 0 else b""
        if data:
            part = log.path.with_name(f".{log.path.name}.part")
            part.write_bytes(data)
            part.replace(log.path)
        else:
            log.path.unlink(missing_ok=True)
        log.shown, log.stale = len(data), False
        return len(data)

    @staticmethod
    def _lines(log: _Log, start: int, stop: int, most: int) -> bytes:
        """Read whole lines from the tape, up to ``stop``."""
        data = _read(log.tape, start, min(stop - start, max(most, _SHORTEST)))
        whole = data.rfind(b"\n") + 1
        return data[:whole] if whole and start + len(data) < stop else data


def _append(path: Path, data: bytes) -> None:
    # Not with parents: the folder of a deleted session must not come back.
    path.parent.mkdir(exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(data)


def _read(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a recorder is on the tape: sizes of the files, digest, counts and the newest snapshots."""

    sizes: array[int]
    digest: Any
    counts: Counter[str]
    realized_pnl: float
    snapshots: dict[str, bytes]


class RunRecorder:
    """Has the central logger's methods, for the records of a run, which can be repeated at any time.

    Lines wait in memory and are written by ``flush`` (and at a megabyte): a replay is reproducible, so a crash of the
    process loses nothing that cannot be made again. ``digest`` is over every record in the order in which it was
    recorded; no run id and no wall clock is in it.

    ``tape``: that of another recorder, which shows the run's files; this one only records. ``behind``: the files that
    the run shows are shorter than what it has recorded, and grow with each ``flush``. ``decisions`` counts orders,
    and state events of signals that were acted upon or refused.
    """

    def __init__(self, root: DataRoot, tape: Tape | None = None) -> None:
        self.root = root
        self.tape = Tape(root) if tape is None else tape
        self._shows = tape is None
        self._clear()

    def _clear(self) -> None:
        self.counts: Counter[str] = Counter()
        self.realized_pnl = 0.0
        self.behind = False
        self._settles = 0
        self._sizes: list[int] = []
        self._snapshots: dict[str, bytes] = {}
        self._unwritten: set[str] = set()
        self._ordered: list[bytes] = []
        self._waiting = 0
        self._hash = hashlib.sha256()
        self._symbols: dict[str, int] = {}
        self.decisions = 0

    @property
    def digest(self) -> str:
        """SHA-256 in hex over all records so far."""
        self._hash_waiting()
        return self._hash.hexdigest()

    def log_state_event(self, symbol: str, event: StateEvent) -> None:
        number = self._symbols.get(symbol)
        if number is None:
            number = self._symbols[symbol] = self.tape.number(self.root.events(symbol))
        self.counts["stateEvents"] += 1
        if event.reason not in _NO_DECISION:
            self.decisions += 1
        self._add(number, _line(StateEvent, event))

    def log_trade(self, record: TradeLogRecord) -> None:
        line = _line(TradeLogRecord, record)
        self.counts["trades"] += 1
        self.realized_pnl += record.realized_pnl
        self._add(self.tape.number(self.root.trades_log(record.date_key)), line)

    def log_order(self, record: OrderLogRecord) -> None:
        line = _line(OrderLogRecord, record)
        self.counts["orders"] += 1
        self.decisions += 1
        # The trading system writes UTC timestamps: the first ten characters are the day.
        self._add(self.tape.number(self.root.orders(record.timestamp[:10])), line)

    def write_risk_snapshot(self, snapshot: RiskSnapshot) -> None:
        self._snapshot("risk", RiskSnapshot, snapshot)

    def write_tpsl_snapshot(self, snapshot: TpslSnapshot) -> None:
        self._snapshot("tpsl", TpslSnapshot, snapshot)

    def write_execution_snapshot(self, snapshot: ExecutionSnapshot) -> None:
        self._snapshot("execution", ExecutionSnapshot, snapshot)

    @property
    def settled(self) -> bool:
        """Whether the last ``go_to`` is long enough ago for another one, as of a hand that drags, not to follow."""
        return time.monotonic_ns() >= self._settles

    def flush(self, most: int = _SHOWN_BYTES) -> None:
        """Write all waiting lines and snapshots, and of what lies behind about ``most`` bytes. Raises LogWriteError.

        Less comes back from the tape until it is ``settled``: it may be cut again at once.
        """
        if not (self._waiting or self.behind):
            return
        if not self.settled:
            most = min(most, _FLUSH_BYTES)
        self._hash_waiting()
        try:
            self.tape.write()
            if self._shows:
                self.behind = self.tape.show(self._sizes, most)
                self._write_snapshots()
        except OSError as error:
            where = str(error.filename or self.root.path)
            raise LogWriteError(
                error.errno, f"the run cannot be recorded: {error.strerror}", where
            ) from error
        self._waiting = 0

    def close(self) -> None:
        """Write everything, and keep no tape. Raises LogWriteError."""
        try:
            self.flush()
            while self.behind:
                self.flush()
        finally:
            self.tape.forget()

    def begin_again(self) -> None:
        """Delete all records so far, in memory and on disk: the run starts from the beginning."""
        for folder in (
            self.root.events_dir,
            self.root.trades_log_dir,
            self.root.orders_dir,
            self.root.system_dir,
        ):
            shutil.rmtree(folder, ignore_errors=True)
        self.tape.forget()
        self.tape = Tape(self.root)
        self._clear()

    def place(self) -> Place:
        """Return where this recorder is, for ``go_to``."""
        self._hash_waiting()
        sizes, snapshots = array("q", self._sizes), dict(self._snapshots)
        return Place(sizes, self._hash.copy(), self.counts.copy(), self.realized_pnl, snapshots)

    def go_to(self, place: Place) -> None:
        """Go to a place on the tape; the next ``flush`` brings the files that the run shows there."""
        self.tape.part()
        self._ordered.clear()
        self._hash = place.digest.copy()
        self._sizes = place.sizes.tolist()
        self.counts = place.counts.copy()
        self.realized_pnl = place.realized_pnl
        self._unwritten |= {*self._snapshots, *place.snapshots}
        self._snapshots = dict(place.snapshots)
        self.behind = True
        self._settles = time.monotonic_ns() + _SETTLING_NS

    def _add(self, number: int, line: bytes) -> None:
        log, sizes, size = self.tape.logs[number], self._sizes, len(line)
        while len(sizes) <= number:
            sizes.append(0)
        if sizes[number] == log.end:
            log.waiting.append(line)
            log.end += size
        sizes[number] += size
        self._note(line)

    def _note(self, line: bytes) -> None:
        self._ordered.append(line)
        self._waiting += len(line)
        if self._waiting > _FLUSH_BYTES:
            self.flush()

    def _snapshot(self, name: str, cls: type[Record], snapshot: Record) -> None:
        line = _line(cls, snapshot)
        self._snapshots[name] = line
        self._unwritten.add(name)
        self._note(line)

    def _write_snapshots(self) -> None:
        for name in self._unwritten:
            path, text = self.root.snapshot(name), self._snapshots.get(name)
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(msgspec.json.format(text, indent=2) + b"\n")
        self._unwritten.clear()

    def _hash_waiting(self) -> None:
        if self._ordered:
            self._hash.update(b"".join(self._ordered))
            self._ordered.clear()


def _line(cls: type[Record], record: Any) -> bytes:
    return encode_record(cls, record) + b"\n"


def freeze(system: TradingSystem) -> bytes:
    """Return the state of a system as bytes; what it shares with copies is not in it."""
    file = io.BytesIO()
    _Freezer(file, system.shared).dump(system)
    return file.getvalue()


def thaw(state: bytes, shared: Sequence[Any]) -> TradingSystem:
    """Return a system in a state that ``freeze`` returned; ``shared``: as the system had, or others in their places."""
    found: TradingSystem = _Thawer(io.BytesIO(state), shared).load()
    return found


class _Freezer(pickle.Pickler):
    """Writes a system; of the objects in ``shared`` only their places."""

    def __init__(self, file: io.BytesIO, shared: Sequence[Any]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._places = {id(one): place for place, one in enumerate(shared) if one is not None}

    def persistent_id(self, found: Any) -> int | None:
        return self._places.get(id(found))


class _Thawer(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: Sequence[Any]) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, place: int) -> Any:
        return self._shared[place]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The system before event ``index``, where its recorder was, and how many trades were closed."""

    index: int
    state: bytes
    place: Place
    trades: int


class Checkpoints:
    """Checkpoints of one run by index, ``spacing`` events apart, of at most ``most_bytes`` in all.

    Where they become too many, every second one goes. The time that making one takes bounds how many there are:
    one part of making them to ``share`` parts of playing.
    """

    def __init__(self, stride: int, *, most_bytes: int = 256 << 20, share: int = 10) -> None:
        self.stride = self.spacing = stride
        self._most_bytes = most_bytes
        self._share = share
        self._bytes = 0
        self._next = 0
        self.cost_ns = 0  # of making the last one
        self._found: list[Checkpoint] = []
        self._indices: list[int] = []
        # Of the system that is furthest: the trades of every checkpoint are the first ones of these.
        self._trades: list[ClosedTrade] = []

    @property
    def last(self) -> int:
        """The index of the last checkpoint; −1 before the first."""
        return self._indices[-1] if self._indices else -1

    def before(self, index: int) -> Checkpoint:
        """Return the last checkpoint at or before an index."""
        return self._found[bisect_right(self._indices, index) - 1]

    def due(self, index: int) -> bool:
        """Whether a checkpoint belongs here that there is not yet, and there was time enough since the last one."""
        return index % self.spacing == 0 and time.monotonic_ns() >= self._next

    def add(self, index: int, system: TradingSystem, recorder: RunRecorder) -> None:
        """Add the checkpoint of a system that has taken the events before ``index``."""
        began = time.monotonic_ns()
        self._trades.extend(system.trades[len(self._trades) :])
        state = freeze(system)
        at = bisect_right(self._indices, index)
        self._found.insert(at, Checkpoint(index, state, recorder.place(), len(system.trades)))
        self._indices.insert(at, index)
        self._bytes += len(state)
        while self._bytes > self._most_bytes and len(self._found) > 2:
            self._thin()
        now = time.monotonic_ns()
        self.cost_ns = now - began
        self._next = now + self._share * self.cost_ns

    def system_at(self, found: Checkpoint, system: TradingSystem, recorder: RunRecorder) -> TradingSystem:
        """Return a system at a checkpoint, which records there."""
        recorder.go_to(found.place)
        return thaw(found.state, (*system.shared[:-2], recorder, self._trades[: found.trades]))

    def _thin(self) -> None:
        self.spacing *= 2
        last = self.last
        self._found = [one for one in self._found if one.index % self.spacing == 0 or one.index == last]
        self._indices = [one.index for one in self._found]
        self._bytes = sum(len(one.state) for one in self._found)


class Scout:
    """Plays ahead of a run, a little at a time, and leaves checkpoints and the tape behind."""

    def __init__(
        self,
        feed: EventFeed,
        checkpoints: Checkpoints,
        index: int,
        system: TradingSystem,
        recorder: RunRecorder,
        entry: Callable[[TradingSystem], OnEvent],
    ) -> None:
        self._feed = feed
        self._checkpoints = checkpoints
        self.index = index
        self._system = system
        self._recorder = recorder
        self._on_event = entry(system)

    def play(self, rows: int, limit_ns: int) -> bool:
        """Play at most ``rows`` events and about ``limit_ns`` long; returns whether it can play more."""
        if shutil.disk_usage(self._recorder.root.path).free < _FREE_BYTES:
            return False
        checkpoints, feed = self._checkpoints, self._feed
        until = time.monotonic_ns() + limit_ns
        block = feed.block(self.index, min(rows, checkpoints.stride - self.index % checkpoints.stride))
        events = zip(block.times, block.types, block.symbols, block.payloads(), strict=True)
        for ts, kind, symbol, payload in events:
            self._on_event(self.index, ts, kind, symbol, payload)
            self.index += 1
            if time.monotonic_ns() > until:
                break
        over = self.index >= feed.total
        if self.index > checkpoints.last and (over or checkpoints.due(self.index)):
            checkpoints.add(self.index, self._system, self._recorder)
        return not over
