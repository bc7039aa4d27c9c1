"""Who may have a session's folder: those that play it share it; one that builds, replaces or deletes has it alone.

Locks are held on the folders themselves (``fsio.lock_folder``), so the system releases those of a killed process, and
process ids of other containers do not matter.
"""

from __future__ import annotations

import errno
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from replaylab.errors import SessionError, SessionNotFoundError, TimeError
from replaylab.fsio import FolderLock, exchange, lock_folder, make_folder, process_alive
from replaylab.paths import DataRoot
from replaylab.timestamps import now_ns, parse_ns

# Folders that a build has not finished, or a deletion has begun, start with this; no list shows them.
HIDDEN = "."
_BUILDING, _REPLACED, _DELETED = f"{HIDDEN}building-", f"{HIDDEN}replaced-", f"{HIDDEN}deleted-"
_HEARTBEAT_NS = 15_000_000_000
_WAIT_S = 0.3
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


def playing(root: DataRoot, session_id: str) -> FolderLock:
    """Return a lock that keeps a session from being replaced or deleted; ``release()`` it after the replay."""
    held = _lock(root, session_id, shared=True)
    if held is None:
        raise SessionError(f"session {session_id!r} is being replaced or deleted: try again")
    return held


@contextmanager
def unused(root: DataRoot, session_id: str, *, pinned_too: bool = False) -> Iterator[None]:
    """Have a session alone: no replay of it runs, and none starts until the end of the block.

    Raises SessionError where it is being replayed, or is pinned (but for ``pinned_too``). A damaged meta.json pins
    nothing.
    """
    held = _lock(root, session_id, shared=False)
    if held is None:
        raise SessionError(f"session {session_id!r} is being replayed: stop the replay first")
    with held:
        # A replay on another machine, whose locks may not reach this one, shows in the published status.
        if _replayed(root) == session_id:
            raise SessionError(f"session {session_id!r} is being replayed: stop the replay first")
        if not pinned_too and _pinned(root, session_id):
            raise SessionError(
                f"session {session_id!r} is pinned; pin({session_id!r}, False) allows to replace or delete it"
            )
        yield


def _lock(root: DataRoot, session_id: str, *, shared: bool) -> FolderLock | None:
    """Lock a session's folder; None where it stays locked. Others that publish it hold it for moments only."""
    folder = root.session_dir(session_id)
    limit = time.monotonic() + _WAIT_S
    while True:
        try:
            held = lock_folder(folder, shared=shared)
        except (FileNotFoundError, NotADirectoryError):
            if not folder.is_dir():
                raise SessionNotFoundError(
                    f"there is no replay session {session_id!r} in {root.sessions_dir}"
                ) from None
            continue
        if held is not None or time.monotonic() > limit:
            return held
        time.sleep(0.01)


def _pinned(root: DataRoot, session_id: str) -> bool:
    with suppress(OSError, orjson.JSONDecodeError):
        meta = orjson.loads(root.session_meta(session_id).read_bytes())
        return isinstance(meta, dict) and bool(meta.get("pin"))
    return False


def _replayed(root: DataRoot) -> str | None:
    """Return the id of the session that a live process replays on this data root, or None."""
    try:
        status = orjson.loads(root.replay_status.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    if not isinstance(status, dict) or not status.get("running"):
        return None
    pid, started, host = status.get("pid"), status.get("processStart"), status.get("host")
    if isinstance(pid, int) and host == platform.node():
        alive = process_alive(pid, started if isinstance(started, int | float) else None)
    else:
        # On another machine only the heartbeat shows it.
        alive = False
        with suppress(TimeError, TypeError):
            alive = (
                now_ns() - parse_ns(status["heartbeatAt"]) < _HEARTBEAT_NS
                if "heartbeatAt" in status
                else False
            )
    found = status.get("sessionId")
    return found if alive and isinstance(found, str) else None


@contextmanager
def build_folder(root: DataRoot) -> Iterator[Path]:
    """Yield a hidden folder next to the sessions, locked; it is deleted whatever happens."""
    make_folder(root.sessions_dir)
    settle_leftovers(root)
    while True:
        folder = root.sessions_dir / f"{_BUILDING}{uuid.uuid4().hex}"
        folder.mkdir()
        # Another build may remove it as a leftover between the two calls.
        with suppress(FileNotFoundError):
            if (held := lock_folder(folder)) is not None:
                break
    with held:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish_folder(folder: Path, target: Path, *, replace: bool) -> bool:
    """Give a built folder its name; False where the name is taken (with ``replace``: never).

    A session that is replaced is exchanged in one step: a kill leaves the old one or the new one.
    """
    if replace and target.exists():
        try:
            exchange(folder, target)
        except OSError as error:
            if error.errno not in _NO_EXCHANGE:
                raise
            # Where the file system cannot exchange, ``settle_leftovers`` finishes what a kill interrupts. The caller's
            # lock is on the old folder, whatever its name.
            target.rename(target.with_name(f"{_REPLACED}{target.name}"))
            folder.rename(target)
            remove_session_folder(target.with_name(f"{_REPLACED}{target.name}"))
        return True
    try:
        folder.rename(target)
    except OSError:
        if not target.exists():
            raise
        return False
    return True


def remove_session_folder(path: Path) -> None:
    """Delete a session's folder; it is renamed first, so that no reader finds half of it."""
    doomed = path.with_name(f"{_DELETED}{uuid.uuid4().hex[:8]}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def settle_leftovers(root: DataRoot) -> None:
    """Remove what killed builds and deletions left; bring back a session that was to be replaced and was not."""
    if not root.sessions_dir.is_dir():
        return
    with suppress(OSError):
        for child in list(root.sessions_dir.iterdir()):
            if not child.name.startswith((_BUILDING, _REPLACED, _DELETED)):
                continue
            with suppress(OSError):
                if (held := lock_folder(child)) is None:
                    continue
                with held:
                    target = child.with_name(child.name.removeprefix(_REPLACED))
                    if child.name.startswith(_REPLACED) and not target.exists():
                        child.rename(target)
                    else:
                        shutil.rmtree(child, ignore_errors=True)
