"""The thread that plays a session: waits for each event's time, emits it, and obeys between events."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal

from replaylab.errors import ReplayError
from replaylab.records import Lateness, ReplayEvent
from replaylab.replay.clock import Pacer
from replaylab.replay.feed import Block, EventFeed
from replaylab.replay.meter import Meter
from replaylab.replay.overload import Late, coalesce
from replaylab.replay.targets import Target

__all__ = ["Player"]

_FLUSH_NS = 200_000_000
_ROOM_NS = 2_000_000
_SKIP_AFTER_NS = 20_000_000
_MOST_COALESCED = 10_000
Outcome = Literal["finished", "stopped", "failed"]
Subscriber = Callable[[ReplayEvent], None]


class Player:
    """Plays one run. ``run`` is the body of its thread; every other method may be called from any thread.

    ``index`` is the next event's. Commands are carried out between two events, by the playing thread.
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
        self.skipped = 0
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
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

    # For other threads.

    @property
    def speed(self) -> float:
        return self._pacer.speed

    def stop(self) -> None:
        """End the run before its next event."""
        self._stopping = True
        self._attention = True
        self._wake.set()

    def ask(self, command: Callable[[], Any]) -> Any:
        """Have the playing thread carry out a command and return its result; raises what it raises.

        From within a handler or subscriber, the command is carried out after it has returned, and None is returned.
        """
        future: Future[Any] = Future()
        with self._over:
            if self.outcome is not None:
                raise ReplayError("the replay has ended")
            self._commands.put((future, command))
            self._attention = True
            self._wake.set()
        return None if threading.get_ident() == self._thread else future.result()

    def lateness(self, *, exact: bool = False) -> Lateness | None:
        """Return how late paced events were; of the latest ones unless ``exact``."""
        return self._meter.lateness(exact=exact)

    def achieved(self) -> tuple[float | None, float | None]:
        """Return the speed that was reached and events per second, over the time in which it played."""
        return self._meter.achieved(self.emitted, self._reached())

    # The playing thread.

    def run(self) -> None:
        """Play until the end, a stop, or an error."""
        self._thread = threading.get_ident()
        outcome: Outcome = "failed"
        try:
            outcome = self._play()
        except Exception as error:
            self.error = error
        finally:
            self._close_stretch()
            try:
                self.target.close()
            except Exception as error:
                outcome, self.error = "failed", self.error or error
            with self._over:
                self.outcome = outcome
            self._refuse_the_rest()

    def _play(self) -> Outcome:
        self.target.begin()
        self._start_at(self._time_of(0))
        while True:
            if self._attention:
                self._obey()
                if self._stopping:
                    return "stopped"
            if self.index >= self.feed.total:
                self.target.finish()
                if not (self.loop and self.feed.total):
                    return "finished"
                self.loops += 1
                self._close_stretch()
                self._go_back(rewinding=False)
                self._start_at(self._time_of(0))
            elif self._pacer.unlimited:
                self._burst(self.feed.total)
            else:
                self._next_in_time()

    def _burst(self, limit: int, *, quiet: bool = False, only_stop: bool = False) -> None:
        """Emit events up to index ``limit`` without waiting; leaves early when there is something to obey."""
        feed, target = self.feed, self.target
        on_event, handle = target.on_event, target.handle
        while self.index < limit:
            block = feed.block(self.index)
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
                        self._tell(event)
                    index += 1
            if not quiet:
                self.emitted += index - block.start
            if index < block.start + stop:
                return

    def _next_in_time(self) -> None:
        """Wait for the next event and emit it; returns without it when there is something to obey."""
        index = self.index
        block, place = self._at(index)
        # Decoded before the wait, so that it costs no lateness.
        payload = block.payload(place)
        event = None
        if self.target.handle is not None or self.subscribers:
            event = block.event(place, payload)
        due = self._pacer.due(block.due[place])
        self._use_the_time(due, block, place)
        if not self._pacer.wait_until(due, self._wake):
            return
        late = time.monotonic_ns() - due
        self._meter.note(late)
        if late > _SKIP_AFTER_NS and self.overload == "skip" and block.types[place].startswith("MARKET_"):
            self._skip_late()
            return
        self.index = index + 1
        self.emitted += 1
        self._emit(index, block.times[place], block.types[place], block.symbols[place], payload, event)

    def _emit(
        self,
        index: int,
        ts: int,
        kind: str,
        symbol: str | None,
        payload: dict[str, Any],
        event: ReplayEvent | None,
    ) -> None:
        target = self.target
        if target.on_event is not None:
            target.on_event(index, ts, kind, symbol, payload)
        elif target.handle is not None and event is not None:
            result = target.handle(event)
            if result is not None:
                target.settle(result)
        if event is not None and self.subscribers:
            self._tell(event)

    def _tell(self, event: ReplayEvent) -> None:
        for subscriber in list(self.subscribers):
            try:
                subscriber(event)
            except Exception as error:
                # A screen that cannot draw is no reason to end a run.
                self.subscribers.remove(subscriber)
                warnings.warn(f"a subscriber failed and is not called again: {error!r}", stacklevel=2)

    def _skip_late(self) -> None:
        """Emit what is left of a run of late market data once newer data has replaced older."""
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
        for at, kind, symbol, payload in kept:
            block, place = self._at(at)
            self.index = at + 1
            self.emitted += 1
            event = None
            if self.target.handle is not None or self.subscribers:
                event = block.event(place, payload)
            self._emit(at, block.times[place], kind, symbol, payload, event)
        self.index = index

    def _at(self, index: int) -> tuple[Block, int]:
        block = self._block
        if block is None or not block.start <= index < block.stop:
            ready = self._next_block
            block = ready if ready is not None and ready.start == index else self.feed.block(index)
            self._block, self._next_block = block, None
        return block, index - block.start

    def _use_the_time(self, due: int, block: Block, place: int) -> None:
        """Do before a wait what would make an event late: write records, decode the next block."""
        now = time.monotonic_ns()
        since = now - self._flushed
        if since > _FLUSH_NS and (due - now > _ROOM_NS or since > 5 * _FLUSH_NS):
            self.target.flush()
            self._flushed = now = time.monotonic_ns()
        half_way = place > (block.stop - block.start) // 2 and block.stop < self.feed.total
        if half_way and self._next_block is None and due - now > _ROOM_NS:
            self._next_block = self.feed.block(block.stop)

    # Time.

    def _time_of(self, index: int) -> int:
        """Return an event's time; past the end, the last event's."""
        return int(self.feed.due[min(index, self.feed.total - 1)]) if self.feed.total else 0

    def _reached(self) -> int:
        """Return the time of the last event that was emitted."""
        return self._time_of(max(0, self.index - 1))

    def _start_at(self, ts: int) -> None:
        """Let time run from ``ts``, or hold it there while paused."""
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
        """Return the event time that it is, never past the next event: what is overdue is due now."""
        if self._held is not None:
            return self._held
        if self._pacer.unlimited:
            return self._reached()
        return min(self._pacer.position(), self._time_of(self.index))

    def _close_stretch(self) -> None:
        self._meter.end(self._reached())

    # Commands: called by the playing thread alone.

    def _obey(self) -> None:
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
                except Exception as error:
                    # The handler failed while it was played to: that ends the run, whoever asked.
                    future.set_exception(error)
                    raise
            if self._stopping or not self.paused:
                return
            self.target.flush()
            if not self._attention:
                self._wake.wait()

    def _refuse_the_rest(self) -> None:
        while True:
            try:
                future, _ = self._commands.get_nowait()
            except queue.Empty:
                return
            future.set_exception(ReplayError("the replay has ended"))

    def pause(self) -> None:
        if not self.paused:
            self._held = self._now()
            self._close_stretch()
            self.paused = True

    def resume(self) -> None:
        if self.paused:
            held = self._now()
            self.paused = False
            self._start_at(held)

    def step(self, n: int) -> int:
        """Pause, emit the next ``n`` events, and return how many there were."""
        self.pause()
        before = self.index
        self._burst(min(self.feed.total, before + n), only_stop=True)
        self._held = self._reached()
        return self.index - before

    def set_speed(self, speed: float) -> None:
        now = self._now()
        self._close_stretch()
        self._pacer.speed = speed
        self._start_at(now)

    def seek(self, index: int, ts: int | None = None) -> int:
        """Make ``index`` the next event; ``ts`` is the time to be at. Returns the index."""
        self._close_stretch()
        if index < self.index:
            self._go_back(rewinding=True)
        self._burst(index, quiet=True, only_stop=True)
        self._start_at(self._time_of(index) if ts is None else ts)
        return index

    def _go_back(self, *, rewinding: bool) -> None:
        self.target.begin(rewinding=rewinding)
        self.index = 0
        self._block = None
