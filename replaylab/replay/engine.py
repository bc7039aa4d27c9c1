"""ReplayEngine: plays a session to the trading system, or to yours, in its own time or as fast as it can."""

from __future__ import annotations

import asyncio
import operator
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any, Literal

import polars as pl

from replaylab.errors import ReplayError, SessionError, UnsafeNameError
from replaylab.params import ScoringParams, TradingParams
from replaylab.paths import DataRoot
from replaylab.records import ReplayEvent, ReplayManifest, ReplayStatus
from replaylab.replay.clock import check_speed
from replaylab.replay.feed import EventFeed
from replaylab.replay.player import Player
from replaylab.replay.run import ReplayRun
from replaylab.replay.running import Running
from replaylab.replay.status import ReplayLock, clear_stop_request, publish_failure, read_status, stop_replay
from replaylab.replay.targets import HandlerTarget, SystemTarget, Target, check_inject_mode, price_sources
from replaylab.sessions import Session, SessionStore
from replaylab.timestamps import to_ns

__all__ = ["ReplayEngine"]

SessionLike = str | Session | ReplayManifest
Subscriber = Callable[[ReplayEvent], None]


class ReplayEngine:
    """Plays replay sessions.

    >>> engine = ReplayEngine(lab.sessions)                                        # doctest: +SKIP
    >>> run = await engine.run_session("2025-11-18T10-11-BTCUSDT", speed_factor=20)  # doctest: +SKIP
    >>> run.trades, run.digest                                                     # doctest: +SKIP

    Without a ``handler`` it drives the reference trading system with ``params`` and ``scoring``, in SIM mode, and
    records into ``replay/sessions/<id>/runs/<runId>/``, never into the live logs. A handler is any object with
    ``handle_event(event)``, plain or async; its ``reset()`` and ``finish()`` are called where it has them.

    The replay has a thread of its own. One replay per data root runs at a time, whichever process runs it.
    """

    def __init__(
        self,
        store: SessionStore | str | os.PathLike[str],
        handler: Any = None,
        *,
        params: TradingParams | None = None,
        scoring: ScoringParams | Any | None = None,
        run_mode: Literal["LIVE", "REPLAY"] = "LIVE",
        root: str | os.PathLike[str] | DataRoot | None = None,
        give: Callable[[pl.DataFrame], Any] | None = None,
    ) -> None:
        self.store = store if isinstance(store, SessionStore) else SessionStore(store)
        self.root = self.store.root if root is None else DataRoot(root)
        self.params = TradingParams.of(params, "params")
        self.scoring = ScoringParams() if scoring is None else scoring
        self.run_mode = run_mode
        self._handler = handler
        self._give = give
        self._subscribers: list[Subscriber] = []
        self._session: Session | None = None
        self._feed: tuple[tuple[int, int], EventFeed] | None = None
        self._run: Running | None = None
        self._last: ReplayRun | None = None

    def __repr__(self) -> str:
        target = "the reference trading system" if self._handler is None else type(self._handler).__name__
        return f"ReplayEngine({str(self.root)!r}, {target})"

    # Playing

    def load_session(self, session_id: SessionLike) -> ReplayManifest:
        """Make a session the one to play, and return its manifest. Raises SessionNotFoundError, SessionError."""
        session = self.store.open(session_id)
        if self._session is None or self._session.path != session.path:
            self._feed = None
        self._session = session
        return session.manifest

    async def run_session(
        self,
        session_id: SessionLike | None = None,
        speed_factor: float | None = None,
        loop: bool = False,
        inject_mode: str = "SCORING_ONLY",
        **options: Any,
    ) -> ReplayRun:
        """Play a session to its end and return the run; takes what ``start_session`` takes.

        The event loop stays free: handlers run in the replay's thread. Cancelling stops the replay. Raises
        ReplayError when the handler fails.
        """
        caller = asyncio.get_running_loop()
        ended = caller.create_future()

        def tell() -> None:
            if not ended.done():
                ended.set_result(None)

        def when_over() -> None:
            if not caller.is_closed():
                caller.call_soon_threadsafe(tell)

        # Loading a large session takes a while, too.
        options |= {"speed_factor": speed_factor, "loop": loop, "inject_mode": inject_mode}
        given_up = threading.Event()
        started: list[Running] = []

        def start() -> None:
            self.start_session(session_id, _when_over=when_over, **options)
            started.append(self._require_run())
            if given_up.is_set():
                started[0].player.stop()

        try:
            await asyncio.to_thread(start)
            await ended
        except asyncio.CancelledError:
            # Starting goes on in its thread when nobody waits for it any more.
            given_up.set()
            for run in started:
                run.player.stop()
            raise
        run = started[0]
        run.raise_failure()
        return run.result

    def start_session(
        self,
        session_id: SessionLike | None = None,
        speed_factor: float | None = None,
        loop: bool = False,
        inject_mode: str = "SCORING_ONLY",
        *,
        price_source: str | Mapping[str, str] = "auto",
        overload: Literal["stretch", "skip"] = "stretch",
        paused: bool = False,
        _when_over: Callable[[], None] | None = None,
    ) -> None:
        """Start playing a session and return at once.

        ``session_id``: None plays the loaded one. ``speed_factor``: None takes the manifest's, ``inf`` plays as fast
        as it can. ``inject_mode``: SCORING_ONLY feeds recorded signals, FULL_DECISION lets raw market events make
        them anew. ``overload``: what happens when the handler is too slow; "stretch" keeps every event and is late,
        "skip" leaves out market data that newer market data replaces, and never a signal. ``paused`` waits before the
        first event. Raises SessionNotFoundError, ReplayRunningError, ReplayError, ConfigError.
        """
        if self._run is not None and not self._run.over.is_set():
            raise ReplayError("this engine is playing already; stop() it first")
        if session_id is not None:
            try:
                self.load_session(session_id)
            except (SessionError, UnsafeNameError) as error:
                publish_failure(self.root, str(session_id), error)
                raise
        if self._session is None:
            raise SessionError("no session is loaded: name one")
        if overload not in ("stretch", "skip"):
            raise ReplayError(f'overload is "stretch" or "skip", found {overload!r}')
        session = self._session
        speed = check_speed(session.manifest.speed_factor if speed_factor is None else speed_factor)
        check_inject_mode(inject_mode)
        lock = ReplayLock(self.root)
        try:
            lock.acquire()
            clear_stop_request(self.root)
            feed = self._feed_of(session)
            run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
            run_root = self.root.run(session.id, run_id)
            target: Target
            if self._handler is None:
                sources = price_sources(feed, price_source)
                target = SystemTarget(run_root, feed, self.params, self.scoring, inject_mode, sources)
            else:
                target = HandlerTarget(self._handler, feed, inject_mode)
            player = Player(
                feed,
                target,
                speed=speed,
                loop=loop,
                overload=overload,
                paused=paused,
                subscribers=self._subscribers,
            )
            run = Running(self.root, run_root, session, player, lock, inject_mode, self._give, _when_over)
            self._start(run)
        except OSError as error:
            lock.release()
            failure = ReplayError(f"a replay records into {self.root}, which cannot be written: {error}")
            publish_failure(self.root, session.id, failure)
            raise failure from error
        except BaseException:
            lock.release()
            raise

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the replay; returns whether it has ended. Raises ReplayError when its handler failed."""
        if self._run is None:
            return True
        if not self._run.over.wait(timeout):
            return False
        self._run.raise_failure()
        return True

    def stop(self, timeout: float = 10.0) -> bool:
        """Stop the replay, also one that another process runs on this data root; returns whether one was running.

        When it returns, no more events are emitted. Called by a handler, it takes effect when the handler returns.
        """
        run = self._run
        if run is None or run.over.is_set():
            return stop_replay(self.root, timeout)[0]
        run.player.stop()
        if threading.current_thread() is not run.thread and not run.over.wait(timeout):
            raise ReplayError(
                f"the handler did not return within {timeout:g} s; the replay ends when it does"
            )
        return True

    # Steering

    def pause(self) -> None:
        """Hold before the next event."""
        player = self._playing()
        player.ask(player.pause)

    def resume(self) -> None:
        """Go on after a pause, with what was left of the wait for the next event."""
        player = self._playing()
        player.ask(player.resume)

    def step(self, n: int = 1) -> int | None:
        """Pause, emit the next ``n`` events at once, and return how many there were."""
        events = _whole(n)
        if events is None or events < 1:
            raise ReplayError(f"a step is one event or more, found {n!r}")
        player = self._playing()
        done: int | None = player.ask(lambda: player.step(events))
        return done

    def seek(self, to: int | str | datetime) -> int | None:
        """Go to an event's index, or a time; returns the index of the event that is next.

        What lies between is played without waiting, so that the system's state is right; going back, it is played
        from the start: what follows is the same as without the seek. Subscribers do not see those events.
        """
        player = self._playing()
        feed = player.feed
        index = _whole(to)
        if index is not None:
            if not 0 <= index <= feed.total:
                raise ReplayError(f"an index from 0 to {feed.total}, found {to!r}")
            return self._go(player, index)
        if not isinstance(to, (str, date)):
            raise ReplayError(f"expected the index of an event, or a time, found {to!r}")
        ts = to_ns(to)
        return self._go(player, feed.index_of_time(ts), ts)

    def next_event(self, type: str) -> int | None:  # noqa: A002
        """Go to the next event of a type (``"RISK*"``: of a prefix); returns its index, or raises ReplayError."""
        player = self._playing()
        index = player.feed.next_of_type(type, player.index)
        if index is None:
            raise ReplayError(f"there is no event of type {type} from here on")
        return self._go(player, index)

    def next_gap(self, seconds: float = 60.0) -> int | None:
        """Go to the event after the next silence of more than ``seconds``; returns its index."""
        player = self._playing()
        index = player.feed.next_gap(seconds, player.index)
        if index is None:
            raise ReplayError(f"there is no gap of more than {seconds:g} s from here on")
        return self._go(player, index)

    def set_speed(self, factor: float) -> None:
        """Change the speed factor from now on."""
        speed = check_speed(factor)
        player = self._playing()
        player.ask(lambda: player.set_speed(speed))

    def add_bookmark(self, name: str, index: int | None = None) -> int:
        """Name the next event (or the one at ``index``); kept with the session. Returns the index."""
        if index is None:
            index = self._playing().index
        self._loaded().set_bookmark(name, index)
        return index

    def seek_bookmark(self, name: str) -> int | None:
        """Go to a bookmark; returns its index."""
        marks = self.bookmarks
        if name not in marks:
            raise ReplayError(f"no bookmark {name!r}; there are {', '.join(marks) or 'none'}")
        return self.seek(marks[name])

    @property
    def bookmarks(self) -> dict[str, int]:
        """Names and indices, in order of the session."""
        return self._loaded().bookmarks

    # Watching

    def get_status(self) -> ReplayStatus:
        """Return what is played now: by this engine, else by whichever process plays on this data root."""
        run = self._run
        return run.status() if run is not None and not run.over.is_set() else read_status(self.root)

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Have ``callback(event)`` called for every emitted event, in the replay's thread; returns an unsubscribe."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    def views(self) -> list[dict[str, Any]]:
        """Return the reference system's view of each symbol: score, regime, state, position, levels."""
        target = None if self._run is None else self._run.player.target
        return target.system.views() if isinstance(target, SystemTarget) else []

    @property
    def last_run(self) -> ReplayRun | None:
        """The run that ended last, or None."""
        run = self._run
        return self._last if run is None or not run.over.is_set() else run.result

    def sweep(
        self, session_id: SessionLike, grid: Any, params: TradingParams | None = None, **options: Any
    ) -> Any:
        """Run every combination of a grid over a session; see ``replaylab.sweep.sweep``."""
        from replaylab.sweep import sweep

        return sweep(self.store.open(session_id), grid, self.params if params is None else params, **options)

    # Inside

    def _playing(self) -> Player:
        run = self._run
        if run is None or run.over.is_set():
            raise ReplayError("this engine is not playing; start_session(...) first")
        return run.player

    def _loaded(self) -> Session:
        if self._session is None:
            raise SessionError("no session is loaded")
        return self._session

    def _start(self, run: Running) -> None:
        before = self._run, self._last
        # Before its thread begins: the first event may already be answered with a command.
        self._run, self._last = run, self.last_run
        try:
            run.start()
        except BaseException:
            self._run, self._last = before
            raise

    def _require_run(self) -> Running:
        if self._run is None:
            raise ReplayError("no run")
        return self._run

    @staticmethod
    def _go(player: Player, index: int, ts: int | None = None) -> int | None:
        found: int | None = player.ask(lambda: player.seek(index, ts))
        return found

    def _feed_of(self, session: Session) -> EventFeed:
        """Return the session's events; those of the last run again, if the file is still the same."""
        path = self.root.session_events(session.id)
        about = path.stat() if path.is_file() else None
        mark = (about.st_mtime_ns, about.st_size) if about else (0, 0)
        if self._feed is None or self._feed[0] != mark:
            self._feed = (mark, EventFeed(self.store.open(session.id)))
        return self._feed[1]


def _whole(value: Any) -> int | None:
    """Return a whole number as an int, numpy's too; None for anything else. True is not meant as 1."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
