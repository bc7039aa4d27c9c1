"""Bodies of requests, and what the routes do with them.

The store, builds in a worker process, one replay in a process of its own.
Nothing here blocks the event loop: files are read in threads, builds and replays run in other processes.
"""

from __future__ import annotations

import asyncio
import errno
import math
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, Literal, TypeVar

import orjson
from msgspec import field
from tornado import web

from replaylab.config import Config
from replaylab.errors import (
    InterlockError,
    LogWriteError,
    RecordError,
    ReplayError,
    ReplaylabError,
    ReplayRunningError,
    SessionError,
    SessionExistsError,
    SessionNotFoundError,
    TimeError,
    did_you_mean,
)
from replaylab.frames import held_mode
from replaylab.lab import Lab
from replaylab.params import TradingParams
from replaylab.paths import DataRoot, safe_name, safe_symbol
from replaylab.records import HealthSnapshot, Record, ReplayManifest, ReplayStatus, decode_record
from replaylab.replay import ReplayControl, ReplayProcess, ReplayRun, RunFollower, read_status
from replaylab.sessions import known_symbols
from replaylab.timestamps import iso, now_ns, parse_ns

_STREAM_PERIOD_S = 0.2
_MOST_STREAMS = 64
_STOP_TIMEOUT_S = 10.0


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error: one that replaylab raises on purpose, or one of the system."""
    for one in (error, error.__cause__):
        number = getattr(one, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            return 507
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return 403
    if isinstance(error, SessionNotFoundError):
        return 404
    if isinstance(error, SessionExistsError | ReplayRunningError | InterlockError | ReplayError):
        return 409
    if isinstance(error, LogWriteError):
        return 507
    return 400 if isinstance(error, ReplaylabError) else 500


class Service:
    """One data root, served. Made and closed by the extension."""

    def __init__(
        self,
        root: str,
        *,
        config: Config,
        max_events: int,
        max_waiting_builds: int,
        start_timeout: float,
    ) -> None:
        self.root = DataRoot(root)
        self._config = config
        self._lab = Lab(self.root, config=config)
        self._max_events = max_events
        self._max_waiting_builds = max_waiting_builds
        self._start_timeout = start_timeout
        self._builders: ProcessPoolExecutor | None = None
        self._waiting_builds = 0
        self._replay: ReplayProcess | None = None
        self._control = ReplayControl(self.root)
        self._turn = asyncio.Lock()
        # What streams read has threads of its own: no other request waits behind it.
        self._readers = ThreadPoolExecutor(2, "stream")
        self._streams = 0

    # Sessions

    async def sessions(self) -> dict[str, Any]:
        """All manifests, with the time of asking and the mode of the system that wrote the logs."""
        manifests = await asyncio.to_thread(self._lab.sessions.list_sessions)
        mode = await asyncio.to_thread(held_mode, self.root)
        return {"timestamp": iso(now_ns()), "logsMode": mode, "sessions": manifests}

    async def session(self, session_id: str) -> ReplayManifest:
        """One manifest; raises SessionNotFoundError."""
        safe_name(session_id, "session id")
        manifest = await asyncio.to_thread(self._lab.sessions.get_session, session_id)
        if manifest is None:
            raise SessionNotFoundError(f"there is no session {session_id!r}")
        return manifest

    async def setup(self, session_id: str) -> dict[str, Any]:
        """What a run of a session starts from: parameters and their source, regimes, and the bookmarks."""
        await self.session(session_id)

        def read() -> dict[str, Any]:
            session = self._lab.sessions.open(session_id)
            recorded = session.recorded_params
            return {
                "sessionId": session_id,
                "paramsSource": "config" if recorded is None else "recorded",
                "params": (recorded or self._config.trading).to_dict(),
                "regimes": session.initial_regimes,
                "bookmarks": session.bookmarks,
            }

        return await asyncio.to_thread(read)

    async def set_bookmark(self, session_id: str, request: BookmarkRequest) -> dict[str, Any]:
        """Give an event of a session a name, or take the name away; 409 where the session has no such event."""
        await self.session(session_id)

        def write() -> dict[str, Any]:
            session = self._lab.sessions.open(session_id)
            try:
                session.set_bookmark(request.name, request.index)
            except SessionError as error:
                raise web.HTTPError(409, "%s", str(error)) from None
            return {"bookmarks": session.bookmarks}

        return await asyncio.to_thread(write)

    async def runs(self, session_id: str) -> dict[str, Any]:
        """The runs of a session, oldest first: totals, and which parameters ran."""
        await self.session(session_id)
        found = await asyncio.to_thread(ReplayRun.all, self.root, session_id)
        return {"sessionId": session_id, "runs": [_summary(run) for run in found]}

    async def one_run(self, session_id: str, run_id: str) -> dict[str, Any]:
        """One run: its record, totals and trades."""
        await self.session(session_id)
        safe_name(run_id, "run id")

        def read() -> dict[str, Any]:
            run = ReplayRun.open(self.root, session_id, run_id)
            return {**run.record, "totals": run.totals, "trades": run.trade_records()}

        try:
            return await asyncio.to_thread(read)
        except FileNotFoundError:
            raise SessionNotFoundError(f"session {session_id!r} has no run {run_id!r}") from None

    async def chart(self, session_id: str, symbol: str | None) -> str:
        """The interactive chart of a session as a page: its recorded trades, and those of its last run."""
        await self.session(session_id)

        def draw() -> str:
            runs = ReplayRun.all(self.root, session_id)
            shown = {"last run": runs[-1]} if runs and runs[-1].record["outcome"] != "running" else {}
            return self._lab.chart(session_id, {**shown, "recorded": None}, symbol=symbol).html(in_frame=True)

        return await asyncio.to_thread(draw)

    async def delete(self, session_id: str) -> dict[str, Any]:
        """Delete a session and its runs, also a damaged one; 409 for one that is being replayed or pinned."""
        safe_name(session_id, "session id")
        try:
            await asyncio.to_thread(self._lab.sessions.delete_session, session_id)
        except SessionNotFoundError:
            raise
        except SessionError as error:
            raise web.HTTPError(409, "%s", str(error)) from None
        return {"success": True, "message": f"session {session_id} is deleted"}

    async def build(self, request: BuildRequest) -> dict[str, Any]:
        """Build a session in the worker process and return its manifest, with the ``warnings`` of the build.

        Answers 413 beyond the limit of this server, 503 when too many builds wait.
        """
        limit = self._max_events
        known = await asyncio.to_thread(known_symbols, self.root)
        for symbol in request.symbols:
            if symbol not in known:
                raise web.HTTPError(
                    404,
                    f"symbols: there are no logs of {symbol}; there are {', '.join(sorted(known)) or 'none at all'}",
                )
        if parse_ns(request.from_) >= parse_ns(request.to):
            raise RecordError("to: the end of the range must be later than its start", field="to")
        if request.max_events is not None and request.max_events > limit:
            raise web.HTTPError(413, f"maxEvents: this server builds at most {limit:,} events")
        if self._waiting_builds >= self._max_waiting_builds:
            raise web.HTTPError(503, "too many builds are waiting: try again later")
        self._waiting_builds += 1
        try:
            options = {
                "include_types": request.include_types,
                # One more than allowed: a session of exactly the limit is not refused.
                "max_events": limit + 1 if request.max_events is None else request.max_events,
                "session_id": request.session_id,
                "notes": request.notes,
            }
            built = await self._in_worker(request, options)
        finally:
            self._waiting_builds -= 1
        if request.max_events is None and int(built.get("totalEvents", 0)) > limit:
            await asyncio.to_thread(self._lab.sessions.delete_session, built["sessionId"])
            raise web.HTTPError(
                413,
                f"the range holds more than {limit:,} events, the most that this server builds: "
                "take a shorter range, fewer types or symbols, or give maxEvents",
            )
        return built

    async def _in_worker(self, request: BuildRequest, options: dict[str, Any]) -> dict[str, Any]:
        if self._builders is None:
            # Spawned, not forked: a forked copy of a server with threads may hang.
            context = multiprocessing.get_context("spawn")
            self._builders = ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_begin_worker)
        job = (str(self.root), request.from_, request.to, request.symbols, options)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._builders, _build, *job)
        except BrokenProcessPool:
            self._builders = None
            raise web.HTTPError(500, "the build was killed, perhaps for want of memory") from None

    # Replay

    async def status(self) -> ReplayStatus:
        """The replay of this data root, whichever process runs it, with this server's run mode."""
        status = await asyncio.to_thread(read_status, self.root)
        # A session may be replayed by a process with another configuration: its own mode is in its status.
        status.run_mode = status.run_mode if status.running else self._config.run_mode
        return status

    async def run(self, request: RunRequest) -> dict[str, Any]:
        """Start a replay in a child process."""
        speed = None if request.speed_factor is None else float(request.speed_factor)
        async with self._turn:
            if (now := await self.status()).running:
                raise ReplayRunningError(f"a replay of {now.session_id} is running: stop it first")
            if self._replay is not None:
                # It has ended, or is about to: its status says so before its process is gone.
                await asyncio.to_thread(self._replay.wait, _STOP_TIMEOUT_S)
            self._replay = await asyncio.to_thread(
                lambda: ReplayProcess.start(
                    self.root,
                    request.session_id,
                    speed_factor=speed,
                    inject_mode=request.inject_mode or "SCORING_ONLY",
                    loop=request.loop,
                    strict=request.strict,
                    params=request.params,
                    default_params=self._config.trading,
                    default_scoring=self._config.scoring,
                    run_mode=self._config.run_mode,
                    timeout=self._start_timeout,
                )
            )
        started = await self.status()
        return {
            "success": True,
            "message": f"replay of {request.session_id} started at {started.speed_factor or speed or 1:g}×",
        }

    async def stop(self) -> dict[str, Any]:
        """Stop the replay, whichever process runs it."""
        async with self._turn:
            session_id = (await self.status()).session_id
            if not await asyncio.to_thread(self._control.stop, _STOP_TIMEOUT_S):
                raise ReplayError("no replay is running")
            if self._replay is not None:
                await asyncio.to_thread(self._replay.wait, _STOP_TIMEOUT_S)
        return {"success": True, "message": f"replay of {session_id} stopped"}

    async def pause(self) -> dict[str, Any]:
        return await self._steer(self._control.pause, message="paused")

    async def resume(self) -> dict[str, Any]:
        return await self._steer(self._control.resume, message="continues")

    async def step(self, n: int, unit: str) -> dict[str, Any]:
        return await self._steer(self._control.step, n, unit, message=f"stepped by {n} {unit}{'s' * (n > 1)}")

    async def seek(self, to: int | str) -> dict[str, Any]:
        return await self._steer(self._control.seek, to, message=f"is at {to}")

    async def set_speed(self, factor: float) -> dict[str, Any]:
        return await self._steer(self._control.set_speed, factor, message=f"runs at {factor:g}×")

    async def _steer(self, command: Callable[..., object], *arguments: Any, message: str) -> dict[str, Any]:
        await asyncio.to_thread(command, *arguments)
        return {"success": True, "message": f"replay of {(await self.status()).session_id} {message}"}

    # Watching

    async def health(self) -> HealthSnapshot:
        return await asyncio.to_thread(self._lab.health)

    async def stream(self, heartbeat_s: float) -> AsyncGenerator[tuple[str, Any], None]:
        """Yield ``("status" | "replay" | "record", value)`` as they come, and a heartbeat where nothing does.

        Answers 503 where as many streams are open as this server serves.
        """
        if self._streams >= _MOST_STREAMS:
            raise web.HTTPError(503, f"{_MOST_STREAMS} streams are open, the most that this server serves")
        self._streams += 1
        follower = RunFollower(self.root)
        quiet = 0.0
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    news = await loop.run_in_executor(self._readers, follower.poll)
                    messages = list(news.messages())
                except (OSError, ReplaylabError):
                    # A file that cannot be read now (no rights, a disk that fails) must not end the stream.
                    messages = []
                for name, value in messages:
                    quiet = 0.0
                    yield name, value
                quiet += _STREAM_PERIOD_S
                if quiet >= heartbeat_s:
                    quiet = 0.0
                    yield "heartbeat", None
                await asyncio.sleep(_STREAM_PERIOD_S)
        finally:
            self._streams -= 1
            # After a poll that may be under way; a closed server has no more threads.
            with suppress(RuntimeError):
                self._readers.submit(follower.close)

    async def close(self) -> None:
        """Stop the replay that this server started and give up builds that wait."""
        if self._replay is not None:
            await asyncio.to_thread(self._replay.stop)
        if self._builders is not None:
            self._builders.shutdown(wait=False, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._lab.close()


def _begin_worker() -> None:
    """End with the server, also where it is killed, and not at Ctrl-C: a build that has begun is finished first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_server, daemon=True).start()


def _end_with_server() -> None:
    server = multiprocessing.parent_process()
    if server is not None:
        server.join()
        os._exit(1)


def _build(root: str, start: str, end: str, symbols: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Build in the worker process; returns the manifest as plain data, with the warnings of the build."""
    from replaylab.sessions import build_replay_session

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        manifest = build_replay_session(root, start, end, symbols, progress=False, **options)
    messages = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    return {**manifest.to_dict(), "warnings": messages}


def _summary(run: ReplayRun) -> dict[str, Any]:
    names = ("runId", "startedAt", "endedAt", "outcome", "error", "injectMode", "digest")
    setup = ("paramsSource", "changes", "assumptions")
    return {**{name: run.record.get(name) for name in (*names, *setup)}, "totals": run.totals}


class Request(Record, kw_only=True):
    """Base of all bodies."""

    def check(self) -> None:
        """Raise RecordError, naming the field, for values that the types alone do not exclude."""


R = TypeVar("R", bound=Request)


class EmptyRequest(Request, kw_only=True):
    """A body without fields, or no body."""


class BuildRequest(Request, kw_only=True):
    """``POST /api/replay/sessions``."""

    from_: str = field(name="from")
    to: str
    symbols: list[str]
    include_types: list[str] | None = None
    max_events: Any = None
    session_id: str | None = None
    notes: str | None = None

    def check(self) -> None:
        _try("from", _moment, self.from_)
        _try("to", _moment, self.to)
        if not self.symbols:
            raise _wrong("symbols", "at least one symbol", self.symbols)
        for symbol in self.symbols:
            _try("symbols", safe_symbol, symbol)
        for kind in self.include_types or ():
            if not kind or "*" in kind[:-1]:
                raise _wrong("includeTypes", "types such as SCORING_UPDATE or EXECUTION_*", kind)
        if self.include_types is not None and not self.include_types:
            raise _wrong("includeTypes", "at least one type, or null", self.include_types)
        if self.max_events is not None:
            limit = _whole(self.max_events)
            if limit is None:
                raise _wrong("maxEvents", "a whole number ≥ 0, or null", self.max_events)
            self.max_events = limit
        if self.session_id is not None:
            _try("sessionId", safe_name, self.session_id)


class RunRequest(Request, kw_only=True):
    """``POST /api/replay/run``. ``speed_factor``: a number, or "inf", since JSON has no infinity."""

    session_id: str
    speed_factor: Any = None
    inject_mode: Literal["SCORING_ONLY", "FULL_DECISION"] | None = None
    loop: bool = False
    strict: bool = False
    params: dict[str, Any] | None = None

    def check(self) -> None:
        if self.speed_factor is not None:
            _check_speed(self.speed_factor)
        names = TradingParams.__struct_encode_fields__
        for name in self.params or ():
            if name not in names:
                hint = did_you_mean(name, names)
                raise RecordError(f"params.{name}: there is no such parameter.{hint}", field=name)


class SeekRequest(Request, kw_only=True):
    """``POST /api/replay/seek``. ``to``: an index, or an ISO time."""

    to: Any

    def check(self) -> None:
        if isinstance(self.to, str):
            _try("to", _moment, self.to)
            return
        index = _whole(self.to)
        if index is None:
            raise _wrong("to", "an index ≥ 0 or an ISO time", self.to)
        # Beyond any session all indices are alike, and this one fits into 64 bits.
        self.to = min(index, 1 << 62)


class BookmarkRequest(Request, kw_only=True):
    """``POST /api/replay/sessions/ID/bookmarks``. ``index``: an event's; null takes the name away."""

    name: str
    index: Any = None

    def check(self) -> None:
        if not self.name.strip():
            raise _wrong("name", "a name", self.name)
        if self.index is None:
            return
        index = _whole(self.index)
        if index is None:
            raise _wrong("index", "an index ≥ 0, or null", self.index)
        self.index = min(index, 1 << 62)


class StepRequest(Request, kw_only=True):
    """``POST /api/replay/step``. ``n``: how many of ``unit``, events or decisions."""

    n: Any = 1
    unit: Any = "event"

    def check(self) -> None:
        if self.unit not in ("event", "decision"):
            raise _wrong("unit", "event or decision", self.unit)
        events = _whole(self.n)
        if not events:
            raise _wrong("n", "a whole number ≥ 1", self.n)
        self.n = min(events, 1 << 62)


class SpeedRequest(Request, kw_only=True):
    """``POST /api/replay/speed``."""

    speed_factor: Any

    def check(self) -> None:
        _check_speed(self.speed_factor)


def _whole(value: Any) -> int | None:
    """The whole number ≥ 0 that a JSON number is (1.0 is one, says JSON Schema), or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    return int(value) if value == int(value) else None


def _check_speed(value: Any) -> None:
    if value == "inf":
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _wrong("speedFactor", 'a number above 0, or "inf"', value)


def _moment(text: str) -> None:
    parse_ns(text)
    if not "1700" <= text[:4] < "2200":
        raise TimeError(f"expected a year from 1700 to 2199, found {text!r}")


def _wrong(name: str, expected: str, found: Any) -> RecordError:
    return RecordError(f"{name}: expected {expected}, found {found!r}", field=name)


def _try(name: str, check: Callable[[str], object], value: str) -> None:
    try:
        check(value)
    except ReplaylabError as error:
        raise RecordError(f"{name}: {error}", field=name) from None


def read_body(cls: type[R], body: bytes) -> R:
    """Return the request in a body; raises RecordError that names the field, unknown ones too."""
    try:
        request = decode_record(cls, body)
    except orjson.JSONDecodeError as error:
        # Valid for one reader of JSON and not for the other: nested a thousand deep, say.
        raise RecordError(f"{cls.__name__}: not usable JSON: {error}") from None
    for name in request.unknown_fields:
        hint = did_you_mean(name, cls.__struct_encode_fields__)
        raise RecordError(f"{cls.__name__}.{name}: there is no such field.{hint}", field=name)
    request.check()
    return request
