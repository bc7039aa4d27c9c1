"""ReplayEngine: plays a session to the reference trading system or to a handler, timed or as fast as possible."""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson
import polars as pl

import replaylab
from replaylab import frames, fsio
from replaylab.errors import ConfigError, PriceError, ReplayError, SessionError, UnsafeNameError
from replaylab.params import Resolved, ScoringParams, TradingParams, resolve_params, resolve_scoring
from replaylab.paths import DataRoot
from replaylab.records import ReplayManifest, ReplayStatus
from replaylab.replay.control import (
    Publisher,
    ReplayControl,
    ReplayLock,
    end_dead_run,
    object_of,
    publish_failure,
    read_run,
    read_status,
)
from replaylab.replay.fidelity import signal_agreement
from replaylab.replay.player import EventFeed, Player, Subscriber, Target, check_speed
from replaylab.replay.targets import HandlerTarget, RunSetup, SystemTarget, check_inject_mode
from replaylab.sessions import AnySession, Session, SessionStore, as_session, playing, signal_frame
from replaylab.sweep import signalled
from replaylab.timestamps import iso, now_ns
from replaylab.trading import ExitRule, as_rule

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from replaylab.sweep import SweepResult


class ReplayEngine:
    """Plays replay sessions.

    >>> engine = ReplayEngine(lab.sessions)                                        # doctest: +SKIP
    >>> run = await engine.run_session("2025-11-18T10-11-BTCUSDT", speed_factor=20)  # doctest: +SKIP
    >>> run.trades, run.digest                                                     # doctest: +SKIP

    Without a ``handler`` it drives the reference trading system, in SIM mode, and records into
    ``replay/sessions/<id>/runs/<runId>/``, never into the live logs. A handler is any object with
    ``handle_event(event)``, plain or async; its ``reset()`` and ``finish()`` are called where it has them; see
    ``start_session`` for what it receives. ``deliver="state_events"`` gives it a StateEvent per signal.

    ``params`` and ``scoring``: None for those that the session recorded (``default_params``, ``default_scoring`` where
    it has none), a dict of changes to them, or a TradingParams and ScoringParams; ``scoring`` may also be a model with
    ``predict``. ``run.params_source`` and ``run.changes`` say what ran. ``signals``: scores of the user's own in place
    of the recorded ones (see ``replaylab.sweep.signalled``); ``rule``: an exit rule. ``cache_dir``: of packed sessions.

    The replay has a thread of its own. One replay per data root runs at a time, whichever process runs it.
    """

    def __init__(
        self,
        store: SessionStore | str | os.PathLike[str],
        handler: Any = None,
        *,
        params: TradingParams | Mapping[str, Any] | None = None,
        scoring: ScoringParams | Mapping[str, Any] | Any | None = None,
        signals: Any = None,
        rule: ExitRule | None = None,
        default_params: TradingParams | None = None,
        default_scoring: ScoringParams | None = None,
        deliver: Literal["replay_events", "state_events"] = "replay_events",
        run_mode: Literal["LIVE", "REPLAY"] = "LIVE",
        root: str | os.PathLike[str] | DataRoot | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.store = store if isinstance(store, SessionStore) else SessionStore(store)
        self.root = self.store.root if root is None else DataRoot(root)
        self.params = params
        self.scoring = scoring
        self.signals, self.rule = None if signals is None else signal_frame(signals), as_rule(rule)
        self.default_params = TradingParams.of(default_params, "default_params")
        self.default_scoring = ScoringParams.of(default_scoring, "default_scoring")
        resolve_params(params, default=self.default_params)
        self._resolve_scoring(None)
        if deliver not in ("replay_events", "state_events"):
            raise ConfigError(
                f'deliver: expected "replay_events" or "state_events", found {deliver!r}', field="deliver"
            )
        self._deliver = deliver
        self.run_mode = run_mode
        self.cache_dir = cache_dir
        self._handler = handler
        self._subscribers: list[Subscriber] = []
        self._session: Session | None = None
        self._feed: tuple[str, EventFeed] | None = None
        self._run: ActiveRun | None = None
        self._last: ReplayRun | None = None

    def __repr__(self) -> str:
        target = "the reference trading system" if self._handler is None else type(self._handler).__name__
        return f"ReplayEngine({str(self.root)!r}, {target})"

    # Playing

    def load_session(self, session_id: AnySession) -> ReplayManifest:
        """Open a session for ``start_session`` and return its manifest. Raises SessionNotFoundError, SessionError."""
        session = self.store.adopt(as_session(session_id, self.store))
        if self._session is None or self._session.path != session.path:
            self._feed = None
        self._session = session
        return session.manifest

    async def run_session(
        self,
        session_id: AnySession | None = None,
        speed_factor: float | None = None,
        loop: bool = False,
        inject_mode: str = "SCORING_ONLY",
        *,
        price_source: str | Mapping[str, str] = "auto",
        overload: Literal["stretch", "skip"] = "stretch",
        paused: bool = False,
        strict: bool = False,
    ) -> ReplayRun:
        """Play a session to its end and return the run; the options are those of ``start_session``.

        The event loop stays free: handlers run in the replay's thread. Cancelling stops the replay. Raises
        ReplayError when the handler fails.
        """
        caller = asyncio.get_running_loop()
        ended = asyncio.Event()
        cancelled = threading.Event()
        started: list[ActiveRun] = []

        def when_over() -> None:
            if not caller.is_closed():
                caller.call_soon_threadsafe(ended.set)

        def start() -> None:
            run = self._start(
                session_id,
                speed_factor,
                loop=loop,
                inject_mode=inject_mode,
                price_source=price_source,
                overload=overload,
                paused=paused,
                strict=strict,
                when_over=when_over,
            )
            started.append(run)
            if cancelled.is_set():
                run.player.stop()

        try:
            # In a thread: loading a large session takes seconds.
            await asyncio.to_thread(start)
            await ended.wait()
        except asyncio.CancelledError:
            # Cancelling does not end the thread that starts the replay.
            cancelled.set()
            for run in started:
                run.player.stop()
            raise
        started[0].raise_failure()
        return started[0].result

    def start_session(
        self,
        session_id: AnySession | None = None,
        speed_factor: float | None = None,
        loop: bool = False,
        inject_mode: str = "SCORING_ONLY",
        *,
        price_source: str | Mapping[str, str] = "auto",
        overload: Literal["stretch", "skip"] = "stretch",
        paused: bool = False,
        strict: bool = False,
    ) -> None:
        """Start playing a session and return at once.

        ``session_id``: None plays the loaded one. ``speed_factor``: None takes the manifest's, ``inf`` plays as fast
        as possible. ``inject_mode``: SCORING_ONLY feeds recorded signals, FULL_DECISION computes them from raw market
        events. ``overload``: what happens when the handler is too slow; "stretch" keeps every event and is late,
        "skip" leaves out market data that newer market data replaces, and never a signal. ``paused`` waits before the
        first event.

        A handler receives scores, regimes, RISK_UPDATE, FUNDING and market data; ``strict`` delivers SCORING_UPDATE and
        REGIME_UPDATE alone, the minimum of the specification. Raises SessionNotFoundError, ReplayRunningError,
        ReplayError, ConfigError, and PriceError for a session whose symbols have no prices.
        """
        self._start(
            session_id,
            speed_factor,
            loop=loop,
            inject_mode=inject_mode,
            price_source=price_source,
            overload=overload,
            paused=paused,
            strict=strict,
        )

    def _start(
        self,
        session_id: AnySession | None,
        speed_factor: float | None,
        *,
        loop: bool,
        inject_mode: str,
        price_source: str | Mapping[str, str],
        overload: Literal["stretch", "skip"],
        paused: bool,
        strict: bool,
        when_over: Callable[[], None] | None = None,
    ) -> ActiveRun:
        # One that was stopped a moment ago is about to end.
        if self._run is not None and not self._run.over.wait(10.0 if self._run.player.outcome else 0.0):
            raise ReplayError("this engine already plays a session; stop() it first")
        if session_id is not None:
            try:
                self.load_session(session_id)
            except (SessionError, UnsafeNameError) as error:
                name = session_id if isinstance(session_id, str) else getattr(session_id, "session_id", "?")
                publish_failure(self.root, name, error)
                raise
        if self._session is None:
            raise SessionError("no session is loaded: pass session_id")
        if overload not in ("stretch", "skip"):
            raise ReplayError(f'overload is "stretch" or "skip", found {overload!r}')
        session = self._session
        speed = check_speed(session.manifest.speed_factor if speed_factor is None else speed_factor)
        check_inject_mode(inject_mode)
        if strict and inject_mode != "SCORING_ONLY":
            raise ConfigError("strict=True belongs to inject_mode SCORING_ONLY", field="strict")
        feed = self._feed_of(session)
        setup = None if self._handler is not None else self._setup(feed, inject_mode, strict, price_source)
        lock = ReplayLock(self.root)
        hold: fsio.FolderLock | None = None
        try:
            lock.acquire()
            hold = playing(session.root, session.id)
            run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
            run_root = self.root.run(session.id, run_id)
            target: Target
            if setup is not None:
                target = SystemTarget(run_root, feed, setup, checkpoints=overload == "stretch")
            else:
                target = HandlerTarget(self._handler, feed, inject_mode, strict=strict, deliver=self._deliver)
            player = Player(
                feed,
                target,
                speed=speed,
                loop=loop,
                overload=overload,
                paused=paused,
                subscribers=self._subscribers,
            )
            run = ActiveRun(
                self.root,
                run_root,
                session,
                player,
                (hold, lock),
                inject_mode=inject_mode,
                strict=strict,
                run_mode=self.run_mode,
                when_over=when_over,
            )
            self._begin(run)
            return run
        except OSError as error:
            _release(hold, lock)
            failure = ReplayError(f"a replay records into {self.root}, which cannot be written: {error}")
            publish_failure(self.root, session.id, failure)
            raise failure from error
        except BaseException:
            _release(hold, lock)
            raise

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end of the replay; returns whether it has ended. Raises ReplayError when its handler failed."""
        if self._run is None:
            return True
        if not self._run.over.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
            return False
        self._run.raise_failure()
        return True

    def stop(self, timeout: float = 10.0, *, reason: str | None = None) -> bool:
        """Stop the replay, also one that another process runs on this data root; returns whether one was running.

        ``reason``: why a replay of this engine is interrupted, for its status and its record.
        When it returns, no more events are emitted. Called by a handler, it takes effect when the handler returns.
        """
        run = self._run
        if run is None or run.over.is_set():
            return ReplayControl(self.root).stop(timeout)
        run.player.stop(reason)
        seconds = min(timeout, threading.TIMEOUT_MAX)
        if threading.current_thread() is not run.thread and not run.over.wait(seconds):
            raise ReplayError(f"the handler did not return in {timeout:g} s; the replay ends when it does")
        return True

    # Steering

    def pause(self) -> None:
        """Hold before the next event."""
        self._order("pause")

    def resume(self) -> None:
        """Continue after a pause, with the remaining wait for the next event."""
        self._order("resume")

    def step(self, n: int = 1, unit: Literal["event", "decision"] = "event") -> int | None:
        """Pause, emit the next ``n`` events (or those up to the n-th decision), and return how many there were."""
        done: int | None = self._order("step", n, unit)
        return done

    def seek(self, to: int | str | datetime) -> int | None:
        """Go to an event's index, or a time; returns the index of the event that is next.

        What follows is the same as without the seek. Subscribers do not see the events in between."""
        index: int | None = self._order("seek", to)
        return index

    def next_event(self, type: str) -> int | None:  # noqa: A002
        """Go to the next event of a type (``"RISK*"``: of a prefix); returns its index, or raises ReplayError."""
        index: int | None = self._order("next_event", type)
        return index

    def next_gap(self, seconds: float = 60.0) -> int | None:
        """Go to the event after the next pause of more than ``seconds`` between two events; returns its index."""
        index: int | None = self._order("next_gap", seconds)
        return index

    def set_speed(self, factor: float) -> None:
        """Change the speed factor from now on."""
        self._order("set_speed", factor)

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
        """Return the status of this engine's replay; while it plays none, that of a replay in another process.

        Where none is running: of this engine's last run, or of the session that it has loaded.
        """
        run = self._run
        if run is not None and not run.over.is_set():
            return run.status()
        published = read_status(self.root)
        if published.running:
            return published
        loaded = self._session
        if run is not None and (loaded is None or loaded.id == run.session_id):
            return run.status()
        if loaded is None:
            return ReplayStatus(run_mode=self.run_mode)
        return ReplayStatus(
            session_id=loaded.id,
            total_events=loaded.events.height,
            speed_factor=loaded.manifest.speed_factor,
            rejects=loaded.rejects.height,
            run_mode=self.run_mode,
        )

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call ``callback(event)`` for every emitted event, in the replay's thread; returns an unsubscribe function."""
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
        """The run of this engine that ended last, or None."""
        run = self._run
        return self._last if run is None or not run.over.is_set() else run.result

    def sweep(
        self,
        session_id: AnySession | Sequence[AnySession],
        grid: Any,
        params: TradingParams | Mapping[str, Any] | None = None,
        *,
        price_source: str | Mapping[str, str] = "auto",
        scoring: Any = None,
        signals: Any = None,
        progress: bool = True,
        executor: Executor | None = None,
        method: str = "auto",
        threads: int | None = None,
        table_memory: float = 1e9,
        folder: str | os.PathLike[str] | None = None,
    ) -> SweepResult:
        """Run every combination of a grid over a session or a list of them; see ``replaylab.sweep.sweep``."""
        from replaylab.sweep import sweep

        given: Any = session_id
        several = isinstance(given, list | tuple)
        opened = [as_session(one, self.store) for one in (given if several else [given])]
        return sweep(
            opened if several else opened[0],
            grid,
            self.params if params is None else params,
            price_source=price_source,
            scoring=scoring,
            signals=self.signals if signals is None else signals,
            default=self.default_params,
            default_scoring=self.default_scoring,
            progress=progress,
            executor=executor,
            method=method,
            threads=threads,
            table_memory=table_memory,
            folder=folder,
            cache_dir=self.cache_dir,
        )

    # Inside

    def _setup(
        self, feed: EventFeed, inject_mode: str, strict: bool, price_source: str | Mapping[str, str]
    ) -> RunSetup:
        session = feed.session
        try:
            return RunSetup.of(
                session,
                resolve_params(self.params, session, self.default_params),
                self._resolve_scoring(session),
                inject_mode=inject_mode,
                strict=strict,
                price_source=price_source,
                events=None if self.signals is None else feed.frame,
                rule=self.rule,
            )
        except PriceError as error:
            publish_failure(self.root, session.id, error)
            raise

    def _resolve_scoring(self, session: Session | None) -> Any:
        if hasattr(self.scoring, "predict"):
            return self.scoring
        return resolve_scoring(self.scoring, session, self.default_scoring)

    def _playing(self) -> Player:
        run = self._run
        if run is None or run.over.is_set():
            raise ReplayError("this engine is not playing; start_session(...) first")
        return run.player

    def _loaded(self) -> Session:
        if self._session is None:
            raise SessionError("no session is loaded")
        return self._session

    def _order(self, command: str, *arguments: Any) -> Any:
        player = self._playing()
        return player.result_of(player.order(command, *arguments))

    def _begin(self, run: ActiveRun) -> None:
        before = self._run, self._last
        # Before its thread begins: a handler may send a command at the first event.
        self._run, self._last = run, self.last_run
        try:
            run.start()
        except BaseException:
            self._run, self._last = before
            raise

    def _feed_of(self, session: Session) -> EventFeed:
        """Return the events to play; those of the last run where the session's file has not changed since."""
        digest = session.digest
        if self._feed is None or self._feed[0] != digest:
            events = None if self.signals is None else signalled(session, self.signals).events
            self._feed = (digest, EventFeed(session, events))
        return self._feed[1]


class ReplayRun:
    """One run of a session, finished or under way.

    >>> run = engine.last_run                       # doctest: +SKIP
    >>> run.trades, run.orders, run.events          # doctest: +SKIP
    >>> run.digest                                  # doctest: +SKIP

    The tables are read from the run's own logs when asked for. ``record`` is ``run.json``: parameters, outcome,
    counts, unusable events, lateness, digest. ``root`` is the run's folder as a data root, for every loader.
    """

    def __init__(self, root: DataRoot, record: dict[str, Any]) -> None:
        self.root = root
        self.record = record

    @classmethod
    def open(cls, root: DataRoot, session_id: str, run_id: str) -> ReplayRun:
        """Return a run of a session; the outcome of a run whose process died is "died".

        Raises FileNotFoundError, and ReplayError for a damaged ``run.json``.
        """
        home = root.run(session_id, run_id)
        record = read_run(home.path / "run.json")
        if record["outcome"] == "running":
            status = read_status(root)
            if not status.running or status.run_id != run_id:
                record = end_dead_run(root, home.path / "run.json") or {**record, "outcome": "died"}
        return cls(home, record)

    @classmethod
    def all(cls, root: DataRoot, session_id: str) -> list[ReplayRun]:
        """Return the runs of a session, oldest first; of one whose record is damaged, ``error`` says so."""
        names = sorted(path.parent.name for _, path in root.files("run", session=session_id))
        return [cls._or_damaged(root, session_id, name) for name in names]

    @classmethod
    def _or_damaged(cls, root: DataRoot, session_id: str, run_id: str) -> ReplayRun:
        try:
            return cls.open(root, session_id, run_id)
        except ReplayError as error:
            home = root.run(session_id, run_id)
            at = iso((home.path / "run.json").stat().st_mtime_ns)
            record = {"runId": run_id, "startedAt": at, "outcome": "died", "error": str(error), "digest": ""}
            return cls(home, {**record, "eventsEmitted": 0, "unusable": {}})

    def __repr__(self) -> str:
        counts = self.record.get("counts", {})
        return (
            f"ReplayRun({self.id!r}, {self.record['outcome']}, {self.record['eventsEmitted']} events, "
            f"{counts.get('trades', 0)} trades{self._described()})"
        )

    def _described(self) -> str:
        params, source = self.params, self.params_source
        if params is None or source is None:
            return ""
        return f"; {Resolved(params, source, self.changes).describe()}"  # type: ignore[arg-type]

    @property
    def id(self) -> str:
        return str(self.record["runId"])

    @property
    def path(self) -> Path:
        return self.root.path

    @property
    def digest(self) -> str:
        """SHA-256 over all that the run emitted: equal for equal sessions and parameters, at any speed."""
        return str(self.record["digest"])

    @property
    def totals(self) -> dict[str, Any]:
        """Trades, realised PnL (USD) and counts of the run, in the on-disk form (camelCase)."""
        counts = self.record.get("counts", {})
        return {
            **{name: counts.get(name, 0) for name in ("trades", "orders", "stateEvents")},
            "realizedPnl": self.record.get("realizedPnl", 0.0),
            "entries": self.record.get("entries", {}),
        }

    def trade_records(self) -> list[dict[str, Any]]:
        """Return the closed trades as plain dicts in the on-disk form; ``trades`` counts lines that are none."""
        logs = (path.read_bytes().splitlines() for _, path in self.root.files("trades_log"))
        return [record for lines in logs for line in lines if (record := object_of(line)) is not None]

    @property
    def params(self) -> TradingParams | None:
        """The trading parameters that ran; None for a handler's run."""
        found = self.record.get("params")
        return None if found is None else TradingParams.from_dict(found)

    @property
    def params_source(self) -> str | None:
        """Where the parameters came from: "recorded" (the session's), "config", "given"; None for a handler's run."""
        return self.record.get("paramsSource")

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """What was changed in the recorded parameters: ``{field: (recorded, used)}``."""
        names = dict(
            zip(TradingParams.__struct_encode_fields__, TradingParams.__struct_fields__, strict=True)
        )
        return {names[name]: (old, new) for name, (old, new) in self.record.get("changes", {}).items()}

    @property
    def assumptions(self) -> str:
        """One line: prices and their spacing, fill models in force, holes, thin fills, late exits, whose parameters."""
        return str(self.record.get("assumptions", ""))

    @property
    def unusable(self) -> dict[str, int]:
        """Events by type whose payload lacked what the model needs."""
        return dict(self.record["unusable"])

    @cached_property
    def trades(self) -> pl.DataFrame:
        """Closed trades: the columns of ``frames.load_trades``."""
        return frames.load_trades(self.root).frame

    @cached_property
    def orders(self) -> pl.DataFrame:
        """Every order with each of its statuses: the columns of ``frames.load_orders``."""
        return frames.load_orders(self.root).frame

    @cached_property
    def events(self) -> pl.DataFrame:
        """State events, by symbol: the columns of ``frames.load_events``."""
        return frames.load_events(self.root).frame


class ActiveRun:
    """One run that is being played: the player, its thread, ``run.json``, the published status and the lock."""

    def __init__(
        self,
        root: DataRoot,
        run_root: DataRoot,
        session: Session,
        player: Player,
        locks: tuple[fsio.FolderLock, ReplayLock],
        *,
        inject_mode: str,
        strict: bool,
        run_mode: str,
        when_over: Callable[[], None] | None,
    ) -> None:
        self.player = player
        self.session_id = session.id
        target = player.target
        self._provenance = target.setup.provenance() if isinstance(target, SystemTarget) else {}
        self.over = threading.Event()
        self.result = ReplayRun(run_root, {})
        self._root = root
        self._session = session
        # Of the events that are played, whatever becomes of the file.
        self._digest, self._rejects = session.digest, session.rejects.height
        self._locks = locks
        self._inject_mode = inject_mode
        self._strict = strict
        self._run_mode = run_mode
        self._when_over = when_over
        self._run_id = run_root.path.name
        self._started_at = iso(now_ns())
        self.thread = threading.Thread(target=self._play, name="replaylab-replay", daemon=True)
        self._publisher = Publisher(root, self._run_id, self.status, player)

    def start(self) -> None:
        # Not with parents: the folder of a deleted session must not come back.
        self.result.path.parent.mkdir(exist_ok=True)
        self.result.path.mkdir()
        self._write_record()
        self._publisher.start()
        _running.add(self)
        self.thread.start()

    def status(self) -> ReplayStatus:
        player = self.player
        index, total = player.index, player.feed.total
        running = not self.over.is_set() and player.outcome is None
        return ReplayStatus(
            session_id=self._session.id,
            running=running,
            current_event_index=index,
            total_events=total,
            started_at=self._started_at,
            last_event_timestamp=iso(int(player.feed.times[index - 1])) if index else None,
            speed_factor=player.speed,
            paused=running and player.paused,
            inject_mode=self._inject_mode,
            run_id=self._run_id,
            lateness=player.lateness(exact=not running),
            rejects=self._rejects,
            error=self.player.problem,
            run_mode=self._run_mode,
            params_source=self._provenance.get("paramsSource"),
            changes=self._provenance.get("changes"),
            rewinds=player.rewinds,
            seek_ready=None if player.target.seek_ready is None else max(index, player.target.seek_ready),
        )

    def raise_failure(self) -> None:
        if self.player.error is not None:
            raise ReplayError(self.player.problem) from self.player.error

    def _play(self) -> None:
        try:
            self.player.run()
        finally:
            self._publisher.stop()
            for finish in (self._write_record, self._publisher.publish_end):
                try:
                    finish()
                except OSError as error:
                    self.player.error = self.player.error or error
            # Last: the next replay publishes after this one.
            _release(*self._locks)
            self.over.set()
            if self._when_over is not None:
                self._when_over()

    def _write_record(self) -> None:
        """Write ``run.json``: at the start with what is known, at the end with everything."""
        player = self.player
        achieved, per_second = player.achieved()
        lateness = player.lateness(exact=True)
        record = {
            "runId": self._run_id,
            "sessionId": self._session.id,
            "sessionDigest": self._digest,
            "replaylabVersion": replaylab.__version__,
            "startedAt": self._started_at,
            "endedAt": None if player.outcome is None else iso(now_ns()),
            "outcome": player.outcome or "running",
            "error": self.player.problem,
            "injectMode": self._inject_mode,
            "strict": self._strict,
            "speedFactor": player.speed,  # null: as fast as possible
            "loop": player.loop,
            "loops": player.loops,
            "overload": player.overload,
            "totalEvents": player.feed.total,
            "eventsEmitted": player.index,
            "eventsSkipped": player.skipped,
            "lateness": None if lateness is None else lateness.to_dict(),
            "achievedSpeed": achieved,
            "eventsPerSecond": per_second,
            **player.target.report(player.index),
        }
        if player.outcome is not None and self._inject_mode == "FULL_DECISION" and "params" in record:
            logged = frames.load_events(self.result.root).frame.rename(
                {"event_type": "type", "extra": "payload"}
            )
            record["agreement"] = signal_agreement(player.feed.frame.head(player.index), logged)
        if player.outcome is not None and isinstance(player.target, SystemTarget):
            trades = frames.load_trades(self.result.root).frame
            record["assumptions"] = player.target.setup.assumptions(player.feed, trades)
        self.result.record = record
        if not self.result.path.is_dir():
            raise FileNotFoundError(f"the run's folder {self.result.path} was deleted while it played")
        path = self.result.path / "run.json"
        fsio.write_atomic(path, orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n")


def _release(*held: fsio.FolderLock | ReplayLock | None) -> None:
    for one in held:
        if one is not None:
            one.release()


_running: weakref.WeakSet[ActiveRun] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Stop replays when the process ends normally, so that their status does not look like that of a crash."""
    for run in list(_running):
        if not run.over.is_set():
            run.player.stop()
            run.over.wait(2.0)
