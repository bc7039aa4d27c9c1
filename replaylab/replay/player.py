"""The thread that plays a session: waits for the time of each event, emits it, and carries out commands in between.

Also what it is made of: ``EventFeed`` (the session's events in blocks), ``Pacer`` (deadlines), ``Meter`` (lateness),
``coalesce`` (what ``overload="skip"`` leaves out) and ``Target`` (what it plays to).
"""

from __future__ import annotations

import math
import operator
import queue
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from datetime import date
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl

from replaylab.errors import ReplayError
from replaylab.records import Lateness, ReplayEvent
from replaylab.sessions import Session, iso_strings
from replaylab.timestamps import to_ns

Outcome = Literal["finished", "stopped", "failed"]
Subscriber = Callable[[ReplayEvent], None]
OnEvent = Callable[
    [int, int, str, str | None, dict[str, Any]], None
]  # index, ns since 1970, type, symbol, payload

_BLOCK_BYTES = 1 << 20
_MOST_ROWS = 4_096


class PlayedEvent(ReplayEvent, kw_only=True):
    """A ReplayEvent that was checked when its session was loaded, and is not checked again."""

    def __post_init__(self) -> None:
        pass


class Block:
    """A few events: parallel lists; ``start`` is the index of the first."""

    __slots__ = ("_stamps", "due", "frame", "payload_texts", "start", "stop", "symbols", "times", "types")

    def __init__(self, frame: pl.DataFrame, start: int, times: list[int], due: list[int]) -> None:
        self.frame = frame
        self.start = start
        self.stop = start + frame.height
        self.times = times
        self.due = due
        self.types: list[str] = frame["type"].to_list()
        self.symbols: list[str | None] = frame["symbol"].to_list()
        self.payload_texts: list[str] = frame["payload"].to_list()
        self._stamps: list[str] | None = None

    def payload(self, place: int) -> dict[str, Any]:
        """Decode one payload into a new dict: a handler may change it."""
        found: dict[str, Any] = orjson.loads(self.payload_texts[place])
        return found

    def payloads(self) -> list[dict[str, Any]]:
        """Decode all payloads at once."""
        found: list[dict[str, Any]] = orjson.loads("[" + ",".join(self.payload_texts) + "]")
        return found

    def event(self, place: int, payload: dict[str, Any]) -> ReplayEvent:
        """Return one event as a record."""
        if self._stamps is None:
            self._stamps = self.frame["timestamp_text"].to_list()
        return PlayedEvent(
            timestamp=self._stamps[place],
            type=self.types[place],
            symbol=self.symbols[place],
            payload=payload,
        )


class EventFeed:
    """All events of a session by index; ``times`` in ns since 1970, ``due`` never going back.

    ``events``: played in place of the session's own, such as its events with other signals.
    """

    def __init__(self, session: Session, events: pl.DataFrame | None = None) -> None:
        self.session = session
        if events is None:
            self.frame = session.events.with_columns(session.timestamp_texts)
        else:
            stamps = iso_strings(events["timestamp"].dt.timestamp("ns")).alias("timestamp_text")
            self.frame = events.with_columns(stamps)
        self.total = self.frame.height
        self.times: npt.NDArray[np.int64] = (
            self.frame["timestamp"].dt.timestamp("ns").to_numpy().astype(np.int64, copy=False)
        )
        # Files made by other programs may be out of order; an event is never due before the one it follows.
        self.due: npt.NDArray[np.int64] = np.maximum.accumulate(self.times) if self.total else self.times
        size = self.frame["payload"].str.len_bytes().sum() or 0
        average = max(1, int(size) // max(1, self.total))
        self._rows = max(16, min(_MOST_ROWS, _BLOCK_BYTES // average))

    def block(self, index: int, most: int = _MOST_ROWS) -> Block:
        """Return the block that begins with an event, of at most ``most`` events."""
        frame = self.frame.slice(index, min(self._rows, most))
        part = slice(index, index + frame.height)
        return Block(frame, index, self.times[part].tolist(), self.due[part].tolist())

    def index_of_time(self, ts: int) -> int:
        """Return the index of the first event at or after a time."""
        return int(np.searchsorted(self.due, ts, side="left"))

    def next_of_type(self, pattern: str, index: int) -> int | None:
        """Return the first event from ``index`` on whose type is ``pattern``, or begins with it before a ``*``."""
        kinds = self.frame["type"].slice(index)
        hits = kinds.str.starts_with(pattern[:-1]) if pattern.endswith("*") else kinds == pattern
        found = hits.arg_true()
        return index + int(found[0]) if len(found) else None

    def next_gap(self, seconds: float, index: int) -> int | None:
        """Return the first event after ``index`` that comes more than ``seconds`` after the one before it."""
        wide = np.flatnonzero(np.diff(self.due[index:]) > round(seconds * 1e9))
        return index + int(wide[0]) + 1 if len(wide) else None


# How long before a deadline sleeping ends and spinning begins: longer than the kernel is late in waking a thread.
SPIN_NS = 250_000


def check_speed(factor: float) -> float:
    """Return a speed factor as a float; raises ReplayError unless it is above 0 (infinity is allowed)."""
    try:
        value = math.nan if isinstance(factor, bool | str) else float(factor)
    except (TypeError, ValueError):
        value = math.nan
    if not value > 0:
        raise ReplayError(f"a speed factor is a number above 0, or inf, found {factor!r}")
    return value


class Pacer:
    """Maps times of events to times of the monotonic clock.

    >>> pacer = Pacer(speed=10.0)
    >>> pacer.begin(event_ts=0)
    >>> pacer.due(5_000_000_000) - pacer.due(0)      # five seconds at ten times the speed
    500000000

    A change of speed and a pause move the origin; between them every deadline is computed from the same origin.
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._origin = 0
        self._event_origin = 0

    @property
    def unlimited(self) -> bool:
        """Whether events are emitted as fast as possible, without deadlines."""
        return self.speed == math.inf

    def begin(self, event_ts: int) -> None:
        """Make an event of time ``event_ts`` due now."""
        self._event_origin = event_ts
        self._origin = time.monotonic_ns()

    def due(self, event_ts: int) -> int:
        """Return the deadline of an event, in ns of the monotonic clock."""
        return self._origin + round((event_ts - self._event_origin) / self.speed)

    def position(self) -> int:
        """Return the present event time."""
        return self._event_origin + round((time.monotonic_ns() - self._origin) * self.speed)

    @staticmethod
    def wait_until(deadline: int, wake: threading.Event) -> bool:
        """Sleep, then spin, until ``deadline``; returns False at once when ``wake`` is set."""
        while True:
            left = deadline - time.monotonic_ns()
            if left <= SPIN_NS:
                break
            # A thread cannot sleep for centuries: long waits are split.
            if wake.wait(min((left - SPIN_NS) / 1e9, 3_600.0)):
                return False
        while time.monotonic_ns() < deadline:
            if wake.is_set():
                return False
        return not wake.is_set()


_LATEST = 20_000


class Meter:
    """Measures one run. Written by the playing thread, read by any.

    Lateness is the time of emission minus the time an event was due, in ns. The last ``size`` values are kept.
    """

    def __init__(self, size: int) -> None:
        self._late = np.zeros(max(size, 1_024), np.int64)
        self._count = 0
        self._most = 0
        # Event time and wall time played in closed stretches, and where the open one began.
        self._event_ns = 0
        self._wall_ns = 0
        self._open: tuple[int, int] | None = None

    def note(self, late: int) -> None:
        """Add the lateness of one event."""
        self._late[self._count % len(self._late)] = late
        self._count += 1
        self._most = max(self._most, late)

    def begin(self, event_ts: int) -> None:
        """Start a stretch of playing at event time ``event_ts``."""
        self._open = (event_ts, time.monotonic_ns())

    def end(self, event_ts: int) -> None:
        """End the stretch at event time ``event_ts``; without effect where none is open."""
        if self._open is not None:
            self._event_ns += event_ts - self._open[0]
            self._wall_ns += time.monotonic_ns() - self._open[1]
            self._open = None

    def lateness(self, *, exact: bool = False) -> Lateness | None:
        """Return p50, p99 and max in ms, of the latest events unless ``exact``; None before the first."""
        if not self._count:
            return None
        size = len(self._late)
        if exact or self._count <= _LATEST:
            values = self._late[: min(self._count, size)]
        else:
            end = self._count % size
            values = self._late[max(0, end - _LATEST) : end] if end else self._late[-_LATEST:]
        p50, p99 = (float(value) / 1e6 for value in np.percentile(values, [50, 99]))
        return Lateness(p50=p50, p99=p99, max=self._most / 1e6)

    def achieved(self, events: int, reached: int) -> tuple[float | None, float | None]:
        """Return the speed reached, and events per second, over the time in which it played."""
        event_ns, wall_ns = self._event_ns, self._wall_ns
        if self._open is not None:
            event_ns += reached - self._open[0]
            wall_ns += time.monotonic_ns() - self._open[1]
        if wall_ns <= 0:
            return None, None
        return event_ns / wall_ns, events / (wall_ns / 1e9)


Late = tuple[int, str, str | None, dict[str, Any]]  # index, type, symbol, payload


def coalesce(late: list[Late]) -> list[Late]:
    """Return the newest event of each symbol and type out of a run of late MARKET_* events, in order.

    A book delta is merged into the book event before it, so the book that a handler keeps stays right; of trades the
    last one is kept, and the last off-market print. A malformed event, which cannot be merged, is kept.
    """
    kept: dict[Any, Late] = {}
    for event in late:
        index, kind, symbol, payload = event
        key: Any = (kind, symbol, payload.get("offMarket") is True)
        if kind == "MARKET_BOOK" and payload.get("kind") == "delta" and key in kept:
            merged = _merge(kept[key][3], payload)
            if merged is None:
                # The earlier one stays under a key of its own, and merging continues from here.
                kept[index, "malformed"] = kept.pop(key)
            else:
                event = (index, kind, symbol, merged)
        kept.pop(key, None)
        kept[key] = event
    return sorted(kept.values(), key=lambda event: event[0])


def _merge(earlier: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any] | None:
    """Return one book event that does what two do; None when either is malformed."""
    whole = earlier.get("kind", "snapshot") == "snapshot"
    merged: dict[str, Any] = {"kind": "snapshot" if whole else "delta"}
    for side in ("bids", "asks"):
        try:
            levels = {price: qty for price, qty in earlier[side]}  # noqa: C416 - pairs, or it raises
            levels |= {price: qty for price, qty in delta[side]}  # noqa: C416
            rows = [[price, qty] for price, qty in levels.items() if not whole or qty > 0]
            merged[side] = sorted(rows, key=lambda row: row[0], reverse=side == "bids")
        except (KeyError, TypeError, ValueError):
            return None
    return merged


class Target(Protocol):
    """What a player plays to. It receives events through ``on_event`` (decoded fields) or ``handle`` (a record)."""

    on_event: OnEvent | None
    handle: Callable[[ReplayEvent], Any] | None
    stride: int  # no block goes beyond a multiple of it: there ``keep`` may make a checkpoint

    @property
    def decisions(self) -> int | None: ...  # so far; None where they are not known

    @property
    def seek_ready(self) -> int | None: ...  # see ReplayStatus

    def settle(self, result: Any) -> None:
        """Await what ``handle`` returned, where that is not None."""

    def begin(self, *, rewinding: bool = False) -> None:
        """Start from the session's initial state; ``rewinding`` where the same events follow again."""

    def go_to(self, index: int, present: int) -> int:
        """Go back to where the way to ``index`` is short, if it is shorter than from ``present``; return where."""

    def keep(self, index: int) -> None:
        """Make a checkpoint before event ``index``, if it is time for one."""

    def idle(self, index: int, room_ns: int | None = None) -> bool:
        """Work ahead for some milliseconds, where ``room_ns`` is enough for it; return whether there is more to do."""

    def finish(self) -> None:
        """End the session: its last event was played."""

    def flush(self) -> None:
        """Write what was recorded."""

    def close(self) -> None:
        """Release all resources; called once, after a failure too."""

    def report(self, emitted: int) -> dict[str, Any]:
        """Return digest, counts and unusable events for ``run.json``, after ``emitted`` events."""


STEP_UNITS = ("event", "decision")
COMMANDS = ("pause", "resume", "step", "seek", "set_speed", "next_event", "next_gap")
_FLUSH_NS = 200_000_000
_ROOM_NS = 2_000_000
_IDLE_NS = 8_000_000
_SKIP_AFTER_NS = 20_000_000
_MOST_COALESCED = 10_000


class Player:
    """Plays one run. ``run`` is the body of its thread; ``stop``, ``order`` and the properties are for all threads.

    ``index`` is that of the next event. Commands run between two events, in the playing thread.
    """

    def __init__(
        self,
        feed: EventFeed,
        target: Target,
        *,
        speed: float,
        loop: bool = False,
        overload: Literal["stretch", "skip"] = "stretch",
        paused: bool = False,
        subscribers: list[Subscriber] | None = None,
    ) -> None:
        self.feed = feed
        self.target = target
        self.loop = loop
        self.overload = overload
        self.paused = paused
        self.subscribers: list[Subscriber] = [] if subscribers is None else subscribers
        self.index = 0
        self.loops = 0
        self.rewinds = 0
        self.skipped = 0
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self._pacer = Pacer(speed)
        self._attention = paused
        self._stopping = False
        self._wake = threading.Event()
        self._commands: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._thread: int | None = None
        self._over = threading.Lock()
        # The event time that a pause holds; None while time runs.
        self._held: int | None = None
        self._block: Block | None = None
        self._next_block: Block | None = None
        self._meter = Meter(feed.total)
        self._flushed = 0
        self.emitted = 0

    # For all threads.

    @property
    def speed(self) -> float:
        return self._pacer.speed

    def stop(self, reason: str | None = None) -> None:
        """End the run before its next event; with a ``reason`` it counts as interrupted, and its error says why."""
        if reason is not None:
            self.error = ReplayError(reason)
        self._stopping = True
        self._attention = True
        self._wake.set()

    def order(self, name: str, *arguments: Any) -> Future[Any]:
        """Queue a command for the playing thread; the future holds its result, or the error that it raised.

        Commands: ``pause``, ``resume``, ``step`` n unit, ``seek`` index or time, ``set_speed`` factor, ``next_event``
        type, ``next_gap`` seconds. Raises ReplayError or TimeError for a wrong argument and after the replay's end.
        """
        if name not in COMMANDS:
            raise ReplayError(f"command {name!r}: expected one of {', '.join(COMMANDS)}")
        try:
            command = getattr(self, f"_plan_{name}")(*arguments)
        except TypeError as error:
            raise ReplayError(f"command {name}: wrong arguments {list(arguments)!r}: {error}") from None
        future: Future[Any] = Future()
        with self._over:
            if self.outcome is not None:
                raise ReplayError("the replay has ended")
            self._commands.put((future, command))
            self._attention = True
            self._wake.set()
        return future

    def result_of(self, future: Future[Any]) -> Any:
        """Wait for a command and return its result, or raise its error.

        From within a handler or subscriber a command runs after that has returned: None is returned at once.
        """
        return None if threading.get_ident() == self._thread else future.result()

    def lateness(self, *, exact: bool = False) -> Lateness | None:
        """Return how late paced events were; of the latest ones unless ``exact``."""
        return self._meter.lateness(exact=exact)

    def achieved(self) -> tuple[float | None, float | None]:
        """Return the speed that was reached and events per second, over the time in which it played."""
        return self._meter.achieved(self.emitted, self._reached())

    @property
    def problem(self) -> str | None:
        """What went wrong and where, or why the replay was interrupted; None where nothing did."""
        if self.error is None:
            return None
        at = max(0, self.index - 1)
        if self.outcome == "stopped":
            return f"interrupted at event {at}: {self.error}"
        return f"the replay failed at event {at}: {type(self.error).__name__}: {self.error}"

    # The playing thread.

    def run(self) -> None:
        """Play until the end, a stop, or an error."""
        self._thread = threading.get_ident()
        outcome: Outcome = "failed"
        try:
            outcome = self._play()
        except (
            BaseException
        ) as error:  # SystemExit too: a handler that exits ends its replay, and nothing silently
            self.error = error
        finally:
            self._close_stretch()
            try:
                self.target.close()
            except BaseException as error:
                outcome, self.error = "failed", self.error or error
            with self._over:
                self.outcome = outcome
            self._refuse_the_rest()

    def _play(self) -> Outcome:
        self.target.begin()
        self._start_at(self._time_of(0))
        while True:
            if self._attention:
                self._run_commands()
                if self._stopping:
                    return "stopped"
            if self.index >= self.feed.total:
                self.target.finish()
                if not (self.loop and self.feed.total):
                    return "finished"
                self.loops += 1
                self._close_stretch()
                self.target.begin()
                self.index, self._block = 0, None
                self._start_at(self._time_of(0))
            elif self._pacer.unlimited:
                self._burst(self.feed.total)
            else:
                self._next_in_time()

    def _burst(self, limit: int, *, quiet: bool = False, only_stop: bool = False) -> None:
        """Emit events up to index ``limit`` without waiting; returns early when a command waits."""
        feed, target = self.feed, self.target
        on_event, handle = target.on_event, target.handle
        while self.index < limit:
            block = feed.block(self.index, target.stride - self.index % target.stride)
            stop = min(block.stop, limit) - block.start
            subscribers = [] if quiet else list(self.subscribers)
            index = block.start
            if on_event is not None and not subscribers:
                rows = zip(block.times[:stop], block.types, block.symbols, block.payloads(), strict=False)
                for ts, kind, symbol, payload in rows:
                    if self._attention and (self._stopping or not only_stop):
                        break
                    self.index = index + 1
                    on_event(index, ts, kind, symbol, payload)
                    index += 1
            else:
                payloads = block.payloads()
                for place in range(stop):
                    if self._attention and (self._stopping or not only_stop):
                        break
                    event = block.event(place, payloads[place])
                    self.index = index + 1
                    if on_event is not None:
                        on_event(index, block.times[place], event.type, event.symbol, payloads[place])
                    elif handle is not None:
                        result = handle(event)
                        if result is not None:
                            target.settle(result)
                    if subscribers:
                        self._notify(event)
                    index += 1
            if not quiet:
                self.emitted += index - block.start
            if index < block.start + stop:
                return
            target.keep(self.index)

    def _next_in_time(self) -> None:
        """Wait for the next event and emit it; returns without it when a command arrives."""
        index = self.index
        block, place = self._at(index)
        # Decoded before the wait, so that it costs no lateness.
        payload = block.payload(place)
        event = None
        if self.target.handle is not None or self.subscribers:
            event = block.event(place, payload)
        due = self._pacer.due(block.due[place])
        self._prepare(due, block, place)
        if not self._pacer.wait_until(due, self._wake):
            return
        late = time.monotonic_ns() - due
        self._meter.note(late)
        if late > _SKIP_AFTER_NS and self.overload == "skip" and block.types[place].startswith("MARKET_"):
            self._skip_late()
            return
        self.index = index + 1
        self.emitted += 1
        self._emit(block, place, payload, event)

    def _emit(self, block: Block, place: int, payload: dict[str, Any], event: ReplayEvent | None) -> None:
        target = self.target
        if target.on_event is not None:
            kind, symbol = block.types[place], block.symbols[place]
            target.on_event(block.start + place, block.times[place], kind, symbol, payload)
        elif target.handle is not None and event is not None:
            result = target.handle(event)
            if result is not None:
                target.settle(result)
        if event is not None and self.subscribers:
            self._notify(event)

    def _notify(self, event: ReplayEvent) -> None:
        for subscriber in list(self.subscribers):
            try:
                subscriber(event)
            except Exception as error:
                # A screen that cannot draw must not end a run.
                self.subscribers.remove(subscriber)
                warnings.warn(f"a subscriber failed and is not called again: {error!r}", stacklevel=2)

    def _skip_late(self) -> None:
        """Emit a run of late market data without the events that newer ones in it replace."""
        now = time.monotonic_ns()
        late: list[Late] = []
        index = self.index
        while index < self.feed.total and len(late) < _MOST_COALESCED:
            block, place = self._at(index)
            kind = block.types[place]
            if not kind.startswith("MARKET_") or self._pacer.due(block.due[place]) > now:
                break
            late.append((index, kind, block.symbols[place], block.payload(place)))
            index += 1
        kept = coalesce(late)
        self.skipped += len(late) - len(kept)
        for at, _, _, payload in kept:
            block, place = self._at(at)
            self.index = at + 1
            self.emitted += 1
            event = None
            if self.target.handle is not None or self.subscribers:
                event = block.event(place, payload)
            self._emit(block, place, payload, event)
        self.index = index

    def _at(self, index: int) -> tuple[Block, int]:
        block = self._block
        if block is None or not block.start <= index < block.stop:
            ready = self._next_block
            block = ready if ready is not None and ready.start == index else self.feed.block(index)
            self._block, self._next_block = block, None
        return block, index - block.start

    def _prepare(self, due: int, block: Block, place: int) -> None:
        """Do before a wait what would delay an event: write records, decode the next block."""
        now = time.monotonic_ns()
        since = now - self._flushed
        if since > _FLUSH_NS and (due - now > _ROOM_NS or since > 5 * _FLUSH_NS):
            self.target.flush()
            self._flushed = now = time.monotonic_ns()
        while due - now > _IDLE_NS and not self._attention and self.target.idle(self.index, due - now):
            now = time.monotonic_ns()
        half_way = place > (block.stop - block.start) // 2 and block.stop < self.feed.total
        if half_way and self._next_block is None and due - now > _ROOM_NS:
            self._next_block = self.feed.block(block.stop)

    # Event time.

    def _time_of(self, index: int) -> int:
        """Return an event's time; past the end, the last event's."""
        return int(self.feed.due[min(index, self.feed.total - 1)]) if self.feed.total else 0

    def _reached(self) -> int:
        """Return the time of the last event that was emitted."""
        return self._time_of(max(0, self.index - 1))

    def _start_at(self, ts: int) -> None:
        """Start the clock at event time ``ts``, or hold it there while paused."""
        if self.paused:
            self._held = ts
            return
        self._held = None
        if self.index < self.feed.total and not self._pacer.unlimited:
            # Before the clock starts: the first event is as punctual as the others.
            block, place = self._at(self.index)
            block.event(place, {})
        self._pacer.begin(ts)
        self._meter.begin(ts)

    def _now(self) -> int:
        """Return the present event time, at most that of the next event: an overdue event is due now."""
        if self._held is not None:
            return self._held
        if self._pacer.unlimited:
            return self._reached()
        return min(self._pacer.position(), self._time_of(self.index))

    def _close_stretch(self) -> None:
        self._meter.end(self._reached())

    # Commands. A _plan_ method checks the arguments in the caller's thread and returns what the playing thread runs.

    def _plan_pause(self) -> Callable[[], None]:
        return self._pause

    def _plan_resume(self) -> Callable[[], None]:
        return self._resume

    def _plan_step(self, n: Any = 1, unit: Any = "event") -> Callable[[], int]:
        number = _whole(n)
        if unit not in STEP_UNITS:
            raise ReplayError(f"step: expected a unit of {', '.join(STEP_UNITS)}, found {unit!r}")
        if number is None or number < 1:
            raise ReplayError(f"step: expected a number of {unit}s ≥ 1, found {n!r}")
        if unit == "decision" and self.target.decisions is None:
            raise ReplayError("step: a handler's decisions are not known; expected the unit event")
        return lambda: self._step(number, unit)

    def _plan_set_speed(self, factor: Any) -> Callable[[], None]:
        speed = check_speed(factor)
        return lambda: self._set_speed(speed)

    def _plan_seek(self, to: Any) -> Callable[[], int]:
        index, ts = _whole(to), None
        if index is None:
            if not isinstance(to, str | date):
                raise ReplayError(f"seek: expected the index of an event, or a time, found {to!r}")
            ts = to_ns(to)
            index = self.feed.index_of_time(ts)
        elif not 0 <= index <= self.feed.total:
            raise ReplayError(f"seek: expected an index from 0 to {self.feed.total}, found {to!r}")
        return lambda: self._seek(index, ts)

    def _plan_next_event(self, pattern: Any) -> Callable[[], int]:
        index = self.feed.next_of_type(str(pattern), self.index)
        if index is None:
            raise ReplayError(f"there is no event of type {pattern} from event {self.index} on")
        return lambda: self._seek(index)

    def _plan_next_gap(self, seconds: Any) -> Callable[[], int]:
        index = self.feed.next_gap(float(seconds), self.index)
        if index is None:
            raise ReplayError(f"there is no gap of more than {seconds:g} s from event {self.index} on")
        return lambda: self._seek(index)

    def _run_commands(self) -> None:
        while True:
            self._attention = False
            self._wake.clear()
            while not self._stopping:
                try:
                    future, command = self._commands.get_nowait()
                except queue.Empty:
                    break
                try:
                    future.set_result(command())
                except ReplayError as refusal:
                    future.set_exception(refusal)
                except BaseException as error:
                    # The handler failed at an event of this command: that ends the run.
                    future.set_exception(error)
                    raise
            if self._stopping or not self.paused:
                return
            self.target.flush()
            while not self._attention and self.target.idle(self.index):
                pass
            if not self._attention:
                self._wake.wait()

    def _refuse_the_rest(self) -> None:
        while True:
            try:
                future, _ = self._commands.get_nowait()
            except queue.Empty:
                return
            future.set_exception(ReplayError("the replay has ended"))

    def _pause(self) -> None:
        if not self.paused:
            self._held = self._now()
            self._close_stretch()
            self.paused = True

    def _resume(self) -> None:
        if self.paused:
            held = self._now()
            self.paused = False
            self._start_at(held)

    def _step(self, n: int, unit: str) -> int:
        """Pause, emit the next ``n`` events, or those up to the n-th decision, and return how many there were."""
        self._pause()
        before = self.index
        if unit == "event":
            self._burst(min(self.feed.total, before + n), only_stop=True)
        for _ in range(0 if unit == "event" else min(n, self.feed.total)):
            self._play_to_decision()
        self._held = self._reached()
        return self.index - before

    def _play_to_decision(self) -> None:
        target, before = self.target, self.target.decisions
        on_event = target.on_event or (lambda *_: None)

        def watched(*event: Any) -> None:
            on_event(*event)
            if target.decisions != before:
                self._attention = True

        target.on_event = watched
        try:
            while target.decisions == before and self.index < self.feed.total:
                self._attention = False  # other commands follow this one anyway
                if self._stopping:
                    break
                self._burst(self.feed.total)
        finally:
            target.on_event = on_event

    def _set_speed(self, speed: float) -> None:
        now = self._now()
        self._close_stretch()
        self._pacer.speed = speed
        self._start_at(now)

    def _seek(self, index: int, ts: int | None = None) -> int:
        """Make ``index`` the next event, at event time ``ts`` (None: its own). Returns the index."""
        self._close_stretch()
        back = index < self.index
        at = self.target.go_to(index, self.index)
        if at != self.index:
            self.index, self._block = at, None
        self.rewinds += back
        self._burst(index, quiet=True, only_stop=True)
        if back:
            self.target.flush()
        self._start_at(self._time_of(index) if ts is None else ts)
        return index


def _whole(value: Any) -> int | None:
    """Return a whole number as an int, numpy's too; None for anything else, also for True."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
