"""The control plane of replays: one status and one list of commands per data root, for every process.

Files in ``system/``: ``replay_status.json`` (what is played, at which event, by which process; acknowledgements of
commands), ``replay_commands.jsonl`` (commands, each with an id and the run it is for) and ``replay.lock``, held by the
process that plays. The death of that process frees the lock, and its status is recognised by process id and start time.

    control = ReplayControl("data")
    control.pause(); control.step(3); control.seek("2025-11-18T10:30:00Z"); control.resume()
    control.stop()
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import date
from pathlib import Path
from typing import Any, Literal

import msgspec
import orjson

from replaylab import errors, fsio
from replaylab.errors import (
    ConfigError,
    RecordError,
    ReplayError,
    ReplaylabError,
    ReplayRunningError,
    SessionError,
    TimeError,
    UnsafeNameError,
)
from replaylab.paths import DataRoot
from replaylab.records import ReplayStatus
from replaylab.replay.checkpoints import TAPE_FOLDER
from replaylab.replay.player import Player
from replaylab.sessions import read_bookmarks
from replaylab.timestamps import iso, now_ns, parse_ns, to_ns

RootLike = str | os.PathLike[str] | DataRoot
# Processes of another machine cannot be looked up: there, a heartbeat this old means that the replay is dead.
_SILENCE_NS = 15_000_000_000
_RELEASE_S = 0.5  # how long a replay that has published its end may still hold its lock
_LISTEN_S = 0.02
_PUBLISH_S = 0.2
_HEARTBEAT_S = 2.0
_POLL_S = 0.004
_KEPT_ACKNOWLEDGEMENTS = 100
_FIELDS = ReplayStatus.__struct_encode_fields__


class ReplayControl:
    """Steers the replay of a data root, whichever process runs it.

    >>> control = ReplayControl("data")                                      # doctest: +SKIP
    >>> control.pause(); control.step(3); control.resume()                   # doctest: +SKIP
    >>> control.status().current_event_index                                 # doctest: +SKIP

    With ``session_id`` it refuses to steer a replay of another session. Every method waits until the replay has
    acknowledged the command. Raises ReplayError where no replay runs, where the replay refuses the command, and where
    it does not answer within ``timeout`` seconds (a handler that takes long: commands run between two events).
    """

    def __init__(self, root: RootLike, session_id: str | None = None, *, timeout: float = 60.0) -> None:
        self.root = DataRoot(root)
        self.session_id = session_id
        self.timeout = timeout

    def __repr__(self) -> str:
        return f"ReplayControl({str(self.root)!r}, {self.session_id!r})"

    def status(self) -> ReplayStatus:
        """Return the published status."""
        return read_status(self.root)

    def pause(self) -> None:
        """Hold before the next event."""
        self._send("pause")

    def resume(self) -> None:
        """Continue after a pause, with the remaining wait for the next event."""
        self._send("resume")

    def step(self, n: int = 1, unit: Literal["event", "decision"] = "event") -> int:
        """Pause, emit the next ``n`` events at once, and return how many there were.

        ``unit="decision"``: up to the n-th event at which the system acts upon a signal or refuses it, sends an order,
        or fills one; where there are fewer, to the end.
        """
        return int(self._send("step", _plain_int(n), unit))

    def seek(self, to: int | str | date) -> int:
        """Go to an event's index, or a time; returns the index of the next event."""
        return int(self._send("seek", iso(to_ns(to)) if isinstance(to, date) else _plain_int(to)))

    def set_speed(self, factor: float) -> None:
        """Change the speed factor; ``float("inf")`` plays as fast as possible."""
        # JSON has no infinity.
        self._send("set_speed", "inf" if factor == math.inf else factor)

    def stop(self, timeout: float = 10.0) -> bool:
        """Stop the replay and wait for its end; returns whether one was running.

        Raises ReplayError where its handler does not return within ``timeout`` seconds.
        """
        run_id = self._run_id()
        if run_id is None:
            return False
        self._write(run_id, "stop")
        limit = time.monotonic() + timeout
        while (now := read_status(self.root)).running and now.run_id == run_id:
            if time.monotonic() > limit:
                raise ReplayError(
                    f"the replay of {now.session_id} did not stop within {timeout:g} s: its handler has not returned"
                )
            time.sleep(_POLL_S)
        return True

    def _run_id(self) -> str | None:
        """Return the id of the run that this object steers, or None where none is running."""
        status = _published(self.root)[1]
        mine = self.session_id is None or status.session_id == self.session_id
        return status.run_id if status.running and mine else None

    def _send(self, command: str, *arguments: Any) -> Any:
        """Send a command and return the value of its acknowledgement; raises ReplayError."""
        run_id = self._run_id()
        if run_id is None:
            what = "no replay" if self.session_id is None else f"no replay of session {self.session_id}"
            raise ReplayError(f"{what} is running in {self.root}")
        number = self._write(run_id, command, *arguments)
        limit = time.monotonic() + self.timeout
        while True:
            plain, status = _published(self.root)
            answer = (plain.get("acknowledged") or {}).get(number)
            if answer is not None:
                if "error" in answer:
                    raise error_of(answer["error"])
                return answer.get("value")
            if status.run_id != run_id or not status.running:
                raise ReplayError(f"the replay of {status.session_id} has ended")
            if time.monotonic() > limit:
                raise ReplayError(f"the replay did not acknowledge {command!r} within {self.timeout:g} s")
            time.sleep(_POLL_S)

    def _write(self, run_id: str, command: str, *arguments: Any) -> str:
        """Append a command to the list and return its id."""
        number = secrets.token_hex(8)
        line = (
            orjson.dumps({"id": number, "runId": run_id, "command": command, "arguments": arguments}) + b"\n"
        )
        # One write call on a file opened for appending: lines of several processes do not mix.
        fd = os.open(self.root.replay_commands, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)
        return number


def _plain_int(value: Any) -> Any:
    """Return numpy integers as int; any other value unchanged, for the replay to refuse."""
    with contextlib.suppress(TypeError):
        return value if isinstance(value, bool) else operator.index(value)
    return value


def error_of(plain: dict[str, Any]) -> ReplaylabError:
    """Return the error of another process, ``{"kind", "message"}``, as an exception of the same class."""
    kind = getattr(errors, str(plain.get("kind")), ReplayError)
    known = isinstance(kind, type) and issubclass(kind, ReplaylabError)
    found: ReplaylabError = (kind if known else ReplayError)(str(plain.get("message")))
    if isinstance(found, ConfigError | RecordError):
        found.field = plain.get("field")
    # Of a disk that is full or may not be written.
    found.errno = plain.get("errno")  # type: ignore[attr-defined]
    return found


def plain_error(error: BaseException) -> dict[str, Any]:
    """Return an error as plain data, for ``error_of`` in another process."""
    number = getattr(error, "errno", None) or getattr(error.__cause__, "errno", None)
    field = getattr(error, "field", None)
    return {"kind": type(error).__name__, "message": str(error), "field": field, "errno": number}


class ReplayLock:
    """Held while a replay of a data root runs: one at a time, over all processes."""

    def __init__(self, root: RootLike) -> None:
        self._root = DataRoot(root)
        self._held: fsio.Lock | None = None

    def acquire(self) -> None:
        """Acquire the lock; raises ReplayRunningError while another replay holds it."""
        limit = time.monotonic() + _RELEASE_S
        while True:
            try:
                self._held = fsio.lock(self._root.replay_lock, timeout=0)
            except TimeoutError:
                now = read_status(self._root)
                # A replay that has published its end is about to release the lock.
                if not now.running and time.monotonic() < limit:
                    time.sleep(0.005)
                    continue
                what = f"session {now.session_id}" if now.session_id else "another session"
                raise ReplayRunningError(
                    f"a replay of {what} is running in {self._root}; stop it first"
                ) from None
            return

    def release(self) -> None:
        """Release the lock; without effect where it is not held."""
        if self._held is not None:
            self._held.release()
            self._held = None


class Publisher:
    """The thread beside a running replay: publishes its status and carries commands of all processes to the player.

    It publishes at most five times a second, at least every two seconds, and at once after a command. It looks for
    commands every 20 ms by the size of one file, so that the playing thread is not disturbed.
    """

    def __init__(
        self,
        root: DataRoot,
        run_id: str,
        status: Callable[[], ReplayStatus],
        player: Player,
    ) -> None:
        self._root = root
        self._run_id = run_id
        self._status = status
        self._player = player
        self._over = False
        self._wake = threading.Event()
        self._offset = 0
        self._pending: dict[str, Future[Any]] = {}
        self._acknowledged: dict[str, dict[str, Any]] = {}
        self._thread = threading.Thread(target=self._watch, name="replaylab-control", daemon=True)

    def start(self) -> None:
        """Publish at once, then from a thread. Raises OSError where the data root cannot be written."""
        # Commands to earlier runs.
        self._root.replay_commands.unlink(missing_ok=True)
        publish(self._root, self._status())
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._over = True
        self._wake.set()
        self._thread.join()

    def publish_end(self) -> None:
        """Publish the final status. Raises OSError."""
        self._collect()
        publish(self._root, self._status(), self._acknowledged)

    def _watch(self) -> None:
        published = time.monotonic()
        known: ReplayStatus | None = None
        while not self._over:
            self._wake.wait(_LISTEN_S)
            self._wake.clear()
            self._listen()
            answered = self._collect()
            since = time.monotonic() - published
            # The end is published once run.json is complete.
            if self._player.outcome is not None or (since < _PUBLISH_S and not answered):
                continue
            status = self._status()
            if status == known and since < _HEARTBEAT_S and not answered:
                continue
            # A full disk does not end the replay: its status is published again when there is room.
            with contextlib.suppress(OSError):
                publish(self._root, status, self._acknowledged)
            published = time.monotonic()
            known = status

    def _listen(self) -> None:
        """Read new commands and hand them to the player."""
        path = self._root.replay_commands
        try:
            if path.stat().st_size <= self._offset:
                return
            with path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return
        # A line that is being written has no newline yet: it is read next time.
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(orjson.JSONDecodeError):
                self._carry_out(orjson.loads(line))

    def _carry_out(self, command: Any) -> None:
        if not isinstance(command, dict) or command.get("runId") not in (self._run_id, None):
            return
        number, name = str(command.get("id")), str(command.get("command"))
        arguments = command.get("arguments") or []
        future: Future[Any] = Future()
        try:
            if name == "stop":
                self._player.stop()
                future.set_result(None)
            else:
                if name == "set_speed":
                    arguments = [math.inf if item == "inf" else item for item in arguments]
                future = self._player.order(name, *arguments)
        except (ReplaylabError, TypeError, ValueError) as error:
            future.set_exception(error)
        self._pending[number] = future
        future.add_done_callback(lambda _: self._wake.set())

    def _collect(self) -> bool:
        """Turn finished commands into acknowledgements; returns whether there were any."""
        done = [number for number, future in self._pending.items() if future.done()]
        for number in done:
            future = self._pending.pop(number)
            error = future.exception()
            self._acknowledged[number] = (
                {"value": future.result()} if error is None else {"error": plain_error(error)}
            )
        while len(self._acknowledged) > _KEPT_ACKNOWLEDGEMENTS:
            del self._acknowledged[next(iter(self._acknowledged))]
        return bool(done)


def publish(
    root: DataRoot, status: ReplayStatus, acknowledged: dict[str, dict[str, Any]] | None = None
) -> None:
    """Write the status of this process's replay where every process can read it. Raises OSError."""
    plain = {
        **status.to_dict(),
        "pid": os.getpid(),
        "host": platform.node(),
        "processStart": fsio.process_started(),
        "heartbeatAt": iso(now_ns()),
        "acknowledged": acknowledged or {},
    }
    # A status is worth nothing after a crash of the machine: no sync.
    fsio.write_atomic(root.replay_status, orjson.dumps(plain, option=orjson.OPT_INDENT_2) + b"\n")


def publish_failure(root: RootLike, session_id: str, error: Exception) -> None:
    """Publish that a replay could not start, for health; does nothing while another one runs.

    The caller raises the error anyway, so a root that cannot be written, or does not exist, is left alone.
    """
    data = DataRoot(root)
    if not data.path.is_dir():
        return
    lock = ReplayLock(data)
    try:
        lock.acquire()
        publish(data, ReplayStatus(session_id=session_id, error=str(error)))
    except (OSError, ReplayRunningError):
        return
    finally:
        lock.release()


def read_status(root: RootLike) -> ReplayStatus:
    """Return the status of a data root's replay, whichever process runs it.

    A run whose process died is not running: its ``error`` says so, and the first reader ends it in the files too.
    Before the first replay, an empty status.
    """
    data = DataRoot(root)
    try:
        plain, status = _published(data)
    except ReplayError as error:
        return ReplayStatus(error=str(error))
    if plain.get("running") and not status.running and status.session_id and status.run_id:
        with contextlib.suppress(UnsafeNameError):
            end_dead_run(data, data.run(status.session_id, status.run_id).path / "run.json")
    if status.session_id:
        # A damaged or unreadable list of names must not hide the replay.
        with contextlib.suppress(OSError, UnsafeNameError, SessionError):
            status.bookmarks = read_bookmarks(data, status.session_id)
    return status


class _RunForm(msgspec.Struct, rename="camel"):
    """What is read of ``run.json``."""

    run_id: str
    outcome: Literal["running", "finished", "stopped", "failed", "died"]
    started_at: str
    ended_at: str | None = None
    error: str | None = None
    events_emitted: int = 0
    digest: str = ""
    counts: dict[str, int] = {}
    realized_pnl: float = 0.0
    entries: dict[str, int] = {}
    unusable: dict[str, int] = {}
    params: dict[str, Any] | None = None
    params_source: str | None = None
    changes: dict[str, tuple[Any, Any]] = {}
    assumptions: str | None = None


# Made while the module is imported: msgspec completes a type at its first use, for which threads must not compete.
_RUN_FORM = msgspec.json.Decoder(_RunForm)


def read_run(path: Path) -> dict[str, Any]:
    """Return the record in a ``run.json``. Raises FileNotFoundError, and ReplayError for a damaged one."""
    data = path.read_bytes()
    try:
        _RUN_FORM.decode(data)
        record: dict[str, Any] = orjson.loads(data)
    except (msgspec.DecodeError, orjson.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReplayError(
            f"{path} cannot be read: {error}. The logs of this run may be whole: bring the file back, or delete "
            "its folder"
        ) from None
    return record


def object_of(line: bytes) -> dict[str, Any] | None:
    """Return the object in a line of a log; None for anything else, the fragment that a kill left for instance."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def end_dead_run(root: DataRoot, path: Path) -> dict[str, Any] | None:
    """End a run whose process was killed: in ``run.json`` (``path``), which is returned, and in the published status.

    None where a replay runs (it may be this one, about to publish itself) or the files cannot be read or written.
    """
    with (
        contextlib.suppress(OSError, ReplayError, orjson.JSONDecodeError),
        fsio.lock(root.replay_lock, timeout=0),
    ):
        plain, status = _published(root)
        record = read_run(path)
        if record["outcome"] == "running":
            ended = plain.get("heartbeatAt") if status.run_id == record["runId"] else None
            error = "the process that ran this replay ended without ending the run"
            shutil.rmtree(path.parent / TAPE_FOLDER, ignore_errors=True)
            record |= {"outcome": "died", "endedAt": ended, "error": error}
            fsio.write_atomic(path, orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n")
        if plain.get("running") and not status.running:
            plain |= {"running": False, "paused": False, "error": status.error}
            fsio.write_atomic(root.replay_status, orjson.dumps(plain, option=orjson.OPT_INDENT_2) + b"\n")
        return record
    return None


def _published(root: DataRoot) -> tuple[dict[str, Any], ReplayStatus]:
    """Return the published status, all fields and as a record; raises ReplayError where it cannot be read."""
    try:
        plain = orjson.loads(root.replay_status.read_bytes())
        if not isinstance(plain, dict):
            raise TypeError(f"expected an object, found {type(plain).__name__}")
        status = ReplayStatus.from_dict({name: plain[name] for name in _FIELDS if name in plain})
    except FileNotFoundError:
        return {}, ReplayStatus()
    except (OSError, orjson.JSONDecodeError, RecordError, TypeError) as error:
        raise ReplayError(f"{root.replay_status} cannot be read: {error}") from None
    if status.running and not _is_alive(plain):
        status.running = status.paused = False
        status.error = (
            f"the process that ran this replay ended without publishing its end (process {plain.get('pid')})"
        )
    return plain, status


def _is_alive(plain: dict[str, Any]) -> bool:
    if plain.get("host") != platform.node():
        try:
            return now_ns() - parse_ns(plain.get("heartbeatAt", "")) < _SILENCE_NS
        except (TimeError, TypeError):
            return False
    pid = plain.get("pid")
    started = plain.get("processStart")
    return isinstance(pid, int) and fsio.process_alive(
        pid, started if isinstance(started, int | float) else None
    )
