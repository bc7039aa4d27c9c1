"""The replay sessions of a data root: list, open, save, pin, delete; and who may have a session's folder.

Those that play a session share its folder; one that builds, replaces or deletes has it alone. Locks are held on the
folders themselves (``fsio.lock_folder``), so the system releases those of a killed process, and process ids of other
containers do not matter.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any

import orjson

from replaylab.errors import RecordError, SessionError, SessionNotFoundError, TimeError, did_you_mean
from replaylab.fsio import (
    FolderLock,
    exchange,
    lock,
    lock_folder,
    make_folder,
    process_alive,
    sha256_of,
    write_atomic,
)
from replaylab.paths import DataRoot, safe_name
from replaylab.records import ReplayManifest, decode_record
from replaylab.sessions.session import Session
from replaylab.timestamps import iso, now_ns, parse_ns

# Sessions that the notebook's view of a store lists.
_SHOWN = 20


class SessionStore:
    """The sessions under ``replay/sessions/``. The folders are the truth; ``system/replay_sessions.json`` is an index
    for readers of the specification, rewritten at each change.

    >>> store = SessionStore("data")                              # doctest: +SKIP
    >>> [m.session_id for m in store.list_sessions()]             # doctest: +SKIP
    """

    def __init__(self, root: str | os.PathLike[str] | DataRoot) -> None:
        self.root = DataRoot(root)
        settle_leftovers(self.root)

    def __repr__(self) -> str:
        return f"SessionStore({str(self.root)!r})"

    def _repr_html_(self) -> str:
        """The sessions, the newest range first."""
        columns = ("session", "from (UTC)", "to (UTC)", "symbols", "events", "notes")
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in columns)
        found = self.list_sessions()
        lines = [
            (
                m.session_id,
                m.source_date_range.from_[:19].replace("T", " "),
                m.source_date_range.to[:19].replace("T", " "),
                ", ".join(m.symbols),
                f"{m.total_events:,}" if isinstance(m.total_events, int) else "?",
                m.notes or "",
            )
            for m in found[:_SHOWN]
        ]
        left = "style='text-align:left'"
        body = "".join(
            f"<tr>{''.join(f'<td {left}>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines
        )
        more = f" · the newest {_SHOWN}" if len(found) > _SHOWN else ""
        title = f"<b>{len(found):,} sessions</b> in <code>{escape(str(self.root))}</code>{more}"
        return f"<div>{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"

    def list_sessions(self) -> list[ReplayManifest]:
        """Return the manifests of all sessions, newest range first.

        A folder without a readable manifest is no session; ``unreadable()`` names those.
        """
        found = sorted((one for _, one, _ in self._scan() if one is not None), key=_newest_first)
        # A process that was killed after it published or deleted a session left the index as it was.
        if self.root.sessions_dir.is_dir() and _indexed(self.root) != [one.session_id for one in found]:
            with suppress(OSError):
                write_index(self.root)
        return found

    def unreadable(self) -> dict[str, str]:
        """Return the folders whose manifest cannot be read, with the reason."""
        return {name: error for name, manifest, error in self._scan() if manifest is None and error}

    def get_session(self, session_id: str) -> ReplayManifest | None:
        """Return the manifest of a session, or None when there is none. Raises UnsafeNameError, SessionError."""
        path = self.root.manifest(session_id)
        if not path.is_file():
            return None
        try:
            return decode_record(ReplayManifest, path.read_bytes())
        except RecordError as error:
            raise SessionError(f"{path}: {error}") from None

    def save_session(self, manifest: ReplayManifest | dict[str, Any]) -> None:
        """Write a manifest, making the session's folder (with no events) where it is missing."""
        record = manifest if isinstance(manifest, ReplayManifest) else ReplayManifest.from_dict(manifest)
        folder = self.root.session_dir(record.session_id)
        folder.mkdir(parents=True, exist_ok=True)
        self.root.session_events(record.session_id).touch()
        write_atomic(folder / "manifest.json", json_bytes(record.to_dict()))
        write_index(self.root)

    def open(self, session_id: str | ReplayManifest | Session) -> Session:
        """Return a session; raises SessionNotFoundError with the closest id."""
        if isinstance(session_id, Session):
            return session_id
        name = session_id.session_id if isinstance(session_id, ReplayManifest) else session_id
        if self.get_session(name) is None:
            known = [manifest.session_id for manifest in self.list_sessions()]
            hint = did_you_mean(name, known) or (f" There are {len(known)}." if known else " There are none.")
            raise SessionNotFoundError(f"there is no replay session {name!r} in {self.root.path}.{hint}")
        return Session(self.root, name)

    def adopt(self, session: Session) -> Session:
        """Return a session of another data root as one of this root: its files are copied, without its runs.

        A session of this root is returned as given. Raises SessionError where the id is taken by other events.
        """
        if session.root.path == self.root.path:
            return session
        target = self.root.session_dir(session.id)
        if not target.exists():
            with build_folder(self.root) as part:
                left = shutil.ignore_patterns("runs", "digest.json")
                shutil.copytree(session.path, part, ignore=left, dirs_exist_ok=True)
                publish_folder(part, target, replace=False)
            write_index(self.root)
        own = Session(self.root, session.id)
        if own.digest != session.digest:
            raise SessionError(f"session {session.id!r} exists in {self.root.path} with other events")
        return own

    def delete_session(self, session_id: str) -> None:
        """Delete a session with its runs, also one whose files are damaged or missing.

        Raises SessionNotFoundError; one that is pinned or is being replayed is refused (SessionError).
        """
        folder = self.root.session_dir(session_id)
        if not folder.is_dir():
            self.open(session_id)
        with unused(self.root, session_id):
            remove_session_folder(folder)
        write_index(self.root)

    def rehash(self, session_id: str) -> ReplayManifest:
        """Accept the events of a session that was cut or edited, and return its manifest with the new counts.

        Its recorded digest, bytes and counts become those of the file; notes, parameters and the initial state stay.
        Raises SessionNotFoundError, and SessionError where the session is being replayed or its events go back in time.
        """
        session = self.open(session_id)
        manifest, meta = session.manifest, dict(session.meta)
        with unused(self.root, session.id, pinned_too=True):
            path = self.root.session_events(session.id)
            meta |= {
                "eventsBytes": path.stat().st_size if path.is_file() else 0,
                "eventsSha256": sha256_of(path) if path.is_file() else hashlib.sha256().hexdigest(),
            }
            session.__dict__["meta"] = meta
            counts = dict(sorted(session.events.group_by("type").len().iter_rows()))
            meta |= {"totalEvents": session.events.height, "eventCounts": counts}
            manifest.total_events, manifest.event_types = session.events.height, list(counts)
            write_atomic(self.root.session_meta(session.id), json_bytes(meta), sync=True)
            write_atomic(self.root.manifest(session.id), json_bytes(manifest.to_dict()), sync=True)
        write_index(self.root)
        return manifest

    def pin(self, session_id: str, pinned: bool = True) -> None:
        """Protect a session from retention, replacement and deletion, or stop protecting it (``pin`` in meta.json)."""
        session = self.open(session_id)
        meta = {**session.meta, "pin": bool(pinned)}
        write_atomic(self.root.session_meta(session.id), json_bytes(meta))

    def _scan(self) -> Iterator[tuple[str, ReplayManifest | None, str]]:
        folder = self.root.sessions_dir
        if not folder.is_dir():
            return
        for child in sorted(folder.iterdir()):
            if child.name.startswith(HIDDEN) or not child.is_dir():
                continue
            if not (child / "manifest.json").is_file():
                yield child.name, None, "it has no manifest.json"
                continue
            try:
                safe_name(child.name, "session id")
                manifest = decode_record(ReplayManifest, (child / "manifest.json").read_bytes())
            except (OSError, RecordError, ValueError) as error:
                yield child.name, None, str(error)
                continue
            if manifest.session_id != child.name:
                yield child.name, None, f"its manifest says sessionId {manifest.session_id!r}"
                continue
            yield child.name, manifest, ""


def write_index(root: DataRoot) -> None:
    """Rewrite ``system/replay_sessions.json`` from the folders."""
    # Listed and written under one lock: of two writers the later one has listed what both changed.
    with lock(root.replay_sessions_index.with_suffix(".lock")):
        found = [manifest for _, manifest, _ in SessionStore(root)._scan() if manifest is not None]
        sessions = [manifest.to_dict() for manifest in sorted(found, key=_newest_first)]
        index = {"timestamp": iso(now_ns()), "sessions": sessions}
        write_atomic(root.replay_sessions_index, json_bytes(index))


def _indexed(root: DataRoot) -> list[Any] | None:
    """Return the session ids of the index, None where it cannot be read."""
    try:
        return [
            entry["sessionId"] for entry in orjson.loads(root.replay_sessions_index.read_bytes())["sessions"]
        ]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return None


def json_bytes(value: Any) -> bytes:
    """Return plain data as the JSON files of a session store it: an indent of 2, a newline at the end."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"


def _newest_first(manifest: ReplayManifest) -> tuple[int, str]:
    return (-parse_ns(manifest.source_date_range.from_), manifest.session_id)


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
