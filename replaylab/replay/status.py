"""One status for all screens: what a running replay publishes in the data root, and stop requests made there.

Files in ``system/``: ``replay_status.json`` (the status, who publishes it, and when), ``replay_stop.json`` (a request
to stop) and ``replay.lock``. The lock is held by the process that plays, so the death of that process frees it, and a
status left behind by a dead process is recognised by its process id and start time.
"""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import orjson

from replaylab.errors import RecordError, ReplayRunningError, TimeError
from replaylab.logging.atomic import write_atomic
from replaylab.paths import DataRoot
from replaylab.records import ReplayStatus
from replaylab.timestamps import iso, now_ns, parse_ns

__all__ = [
    "ReplayLock",
    "clear_stop_request",
    "publish",
    "publish_failure",
    "read_status",
    "request_stop",
    "stop_replay",
    "stop_requested",
]

RootLike = str | os.PathLike[str] | DataRoot
# Another machine's processes cannot be looked up: there, a heartbeat this old means that the replay is dead.
_SILENCE_NS = 15_000_000_000
_PATIENCE_S = 0.5


class ReplayLock:
    """Held while a replay of a data root runs: one at a time, over all processes.

    Raises ReplayRunningError from ``acquire`` when somebody else holds it.
    """

    def __init__(self, root: RootLike) -> None:
        self._path = DataRoot(root).system_dir / "replay.lock"
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, or raise ReplayRunningError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        patience = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                root = DataRoot(self._path.parent.parent)
                now = read_status(root)
                # One that has said its last word is about to let go.
                if not now.running and time.monotonic() < patience:
                    time.sleep(0.005)
                    continue
                os.close(fd)
                what = f"session {now.session_id}" if now.session_id else "another session"
                raise ReplayRunningError(f"a replay of {what} is running in {root}; stop it first") from None
            except OSError:
                os.close(fd)
                raise
            self._fd = fd
            return

    def release(self) -> None:
        """Give the lock back; without effect when it is not held."""
        if self._fd is not None:
            # Explicitly: a child process that was forked meanwhile has the file open too.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = None


def publish(root: DataRoot, status: ReplayStatus) -> None:
    """Write the status of this process's replay where every process can read it. Raises OSError."""
    plain = {
        **status.to_dict(),
        "pid": os.getpid(),
        "host": platform.node(),
        "processStart": _process_start(os.getpid()),
        "heartbeatAt": iso(now_ns()),
    }
    # A status is worth nothing after a crash of the machine: no sync.
    write_atomic(root.replay_status, orjson.dumps(plain, option=orjson.OPT_INDENT_2) + b"\n", sync=False)


def publish_failure(root: RootLike, session_id: str, error: Exception) -> None:
    """Let health say that the replay that was asked for last could not start; says nothing while another one runs.

    The caller raises the error anyway, so a root that cannot be written, or is not there, is left alone.
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

    A run whose process died is not running: its ``error`` says so. Without any replay so far, an empty status.
    """
    path = DataRoot(root).replay_status
    try:
        plain = orjson.loads(path.read_bytes())
        status = ReplayStatus.from_dict({name: plain[name] for name in _FIELDS if name in plain})
    except FileNotFoundError:
        return ReplayStatus()
    except (orjson.JSONDecodeError, RecordError, TypeError) as error:
        return ReplayStatus(error=f"{path} cannot be read: {error}")
    if status.running and not _is_alive(plain):
        status.running = False
        status.paused = False
        status.error = f"the process that ran this replay ended without a word (process {plain.get('pid')})"
    return status


def request_stop(root: RootLike) -> bool:
    """Ask the replay of a data root to stop, whichever process runs it; returns whether one was running."""
    data = DataRoot(root)
    status = read_status(data)
    if not status.running:
        return False
    request = {"runId": status.run_id, "requestedAt": iso(now_ns())}
    write_atomic(_stop_path(data), orjson.dumps(request) + b"\n", sync=False)
    return True


def stop_replay(root: RootLike, timeout: float = 10.0) -> tuple[bool, str]:
    """Stop the replay of a data root and wait until it has; returns success and a message for people."""
    data = DataRoot(root)
    before = read_status(data)
    if not request_stop(data):
        return False, "no replay is running"
    limit = time.monotonic() + timeout
    while time.monotonic() < limit:
        now = read_status(data)
        if not now.running or now.run_id != before.run_id:
            return True, f"replay of {before.session_id} stopped"
        time.sleep(0.01)
    return False, f"the replay of {before.session_id} did not stop within {timeout:g} s"


def stop_requested(root: DataRoot, run_id: str) -> bool:
    """Return whether somebody asked this run to stop."""
    try:
        plain = orjson.loads(_stop_path(root).read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        # Half a request is one that is being written: it is read whole the next time.
        return False
    # A request without a run's id, as another program may write it, means whichever runs.
    asked = plain.get("runId") if isinstance(plain, dict) else None
    return asked is None or asked == run_id


def clear_stop_request(root: DataRoot) -> None:
    """Forget requests made to earlier runs."""
    _stop_path(root).unlink(missing_ok=True)


_FIELDS = ReplayStatus.__struct_encode_fields__


def _stop_path(root: DataRoot) -> Path:
    return root.system_dir / "replay_stop.json"


def _is_alive(plain: dict[str, Any]) -> bool:
    if plain.get("host") != platform.node():
        try:
            return now_ns() - parse_ns(plain.get("heartbeatAt", "")) < _SILENCE_NS
        except TimeError:
            return False
    pid = plain.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It exists and belongs to somebody else.
        pass
    # Process ids are used again: the start time tells whether it is still the same process.
    return _process_start(pid) == plain.get("processStart")


def _process_start(pid: int) -> str | None:
    """Return when a process began, in whatever form its system tells; None where it does not."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        # The name in parentheses may itself hold spaces and parentheses.
        fields = stat.read_text(errors="replace").rpartition(")")[2].split()
        # A zombie is dead: its parent has not looked yet.
        return None if fields[0] == "Z" else fields[19]
    if Path("/proc/self").exists():
        return None
    answer = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None
