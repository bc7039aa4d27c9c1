"""One guard over a session's folder: builders, players and deleters of several processes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replaylab import fsio
from replaylab.errors import SessionError
from replaylab.replay import ReplayEngine
from replaylab.sessions import SessionStore, build_replay_session
from replaylab.sessions import store as guard
from replaylab.testing import SessionBuilder
from tests.sessions.logs import log_events, state_event

FROM, TO = "2025-11-18T10:00:00Z", "2025-11-18T11:00:00Z"


def logs(root: Path, n: int = 200) -> None:
    log_events(
        root,
        "A",
        *(state_event(f"2025-11-18T10:{k // 60:02d}:{k % 60:02d}Z", symbol="A", n=k) for k in range(n)),
    )


def python(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


BUILD = f"""
import sys
from replaylab.sessions import build_replay_session
root, name, how = sys.argv[1:]
print("ready", flush=True); sys.stdin.readline()
print(build_replay_session(root, {FROM!r}, {TO!r}, "A", session_id=name or None, if_exists=how).session_id)
"""


@pytest.mark.parametrize("how", ["reuse", "replace"])
@pytest.mark.parametrize("name", ["s", ""])
def test_five_builds_at_once_all_have_the_session(tmp_path: Path, how: str, name: str) -> None:
    logs(tmp_path)
    builds = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(tmp_path), name, how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(5)
    ]
    for one in builds:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n", one.communicate()[1]
    answers = [one.communicate("\n", timeout=120) for one in builds]
    assert [one.returncode for one in builds] == [0] * 5, answers
    if how == "reuse":
        assert len({out for out, _ in answers}) == 1
    store = SessionStore(tmp_path)
    for manifest in store.list_sessions():
        assert store.open(manifest).events.height == 200
    index = json.loads((tmp_path / "system" / "replay_sessions.json").read_text())
    assert [s["sessionId"] for s in index["sessions"]] == [m.session_id for m in store.list_sessions()]


KILLED = f"""
import os, signal, sys
from replaylab.sessions import build_replay_session
from replaylab.sessions import store as guard
root, step = sys.argv[1], int(sys.argv[2])
import replaylab.sessions.build, replaylab.sessions.store
if sys.argv[3] == "two renames":
    def refused(*names): raise OSError(38, "no exchange here")
    guard.exchange = refused
calls = 0
def counted(frame, event, argument):
    global calls
    if event == "call" and frame.f_code.co_filename.endswith(("pathlib.py", "_local.py", "shutil.py", "store.py")):
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
    return None
sys.setprofile(counted)
build_replay_session(root, {FROM!r}, "2025-11-18T10:01:00Z", "A", session_id="s", if_exists="replace")
sys.setprofile(None)
print(calls)
"""


@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_a_killed_replacement_leaves_the_old_session_or_the_new_one(tmp_path: Path, how: str) -> None:
    """Killed at calls all along the publication: a whole session is there each time, and no leftover."""
    kills(tmp_path, how, 4)


@pytest.mark.stress
@pytest.mark.parametrize("how", ["exchange", "two renames"])
@pytest.mark.timeout(1800)
def test_many_killed_replacements(tmp_path: Path, how: str) -> None:
    dead = kills(tmp_path, how, 60)
    print(f"kills of replacements ({how}): {dead} injected, {dead} survived: a whole session each time")


def kills(root: Path, how: str, count: int) -> int:
    """Kill replacements all along their publication; returns how many."""
    dead = 0
    logs(root)
    build_replay_session(root, FROM, TO, "A", session_id="s")
    whole = python(KILLED, str(root), "0", how)
    total = int(whole.communicate(timeout=120)[0])
    build_replay_session(root, FROM, TO, "A", session_id="s", if_exists="replace")
    # The publication is in the last calls.
    for step in range(total - 1, max(0, total - 400), -max(1, 400 // count)):
        killed = python(KILLED, str(root), str(step), how)
        killed.communicate(timeout=120)
        assert killed.returncode == -signal.SIGKILL
        dead += 1
        store = SessionStore(root)
        assert [manifest.session_id for manifest in store.list_sessions()] == ["s"]
        assert store.open("s").events.height in (60, 200)
        index = json.loads((root / "system" / "replay_sessions.json").read_text())
        assert [session["totalEvents"] for session in index["sessions"]] in ([60], [200])
        build_replay_session(root, FROM, TO, "A", session_id="s", if_exists="replace")
        assert [child.name for child in (root / "replay" / "sessions").iterdir()] == ["s"]
    return dead


def test_leftovers_are_known_by_their_locks_and_not_by_process_ids(tmp_path: Path) -> None:
    """A build that runs keeps its folder, whatever its name says; unheld ones are deleted, also of pid 1."""
    folder = tmp_path / "replay" / "sessions"
    for name in (".building-1-abc", ".deleted-abc", ".building-live"):
        (folder / name).mkdir(parents=True)
    held = fsio.lock_folder(folder / ".building-live")
    assert held is not None
    with held:
        SessionStore(tmp_path)
        assert [child.name for child in folder.iterdir()] == [".building-live"]
    SessionStore(tmp_path)
    assert list(folder.iterdir()) == []


def test_a_session_that_is_played_is_not_deleted_replaced_or_accepted(tmp_path: Path) -> None:
    """The lock says so, also without any status, and for as long as the replay lasts."""
    logs(tmp_path)
    manifest = build_replay_session(tmp_path, FROM, TO, "A", session_id="s")
    store = SessionStore(tmp_path)
    engine = ReplayEngine(store, handler=Silent())
    engine.start_session("s", speed_factor=math.inf, paused=True)
    store.root.replay_status.unlink()
    try:
        with pytest.raises(SessionError, match="is being replayed"):
            store.delete_session("s")
        with pytest.raises(SessionError, match="is being replayed"):
            store.rehash("s")
        with pytest.raises(SessionError, match="is being replayed"):
            build_replay_session(tmp_path, FROM, TO, "A", session_id="s", if_exists="replace")
        assert store.get_session("s") == manifest
    finally:
        engine.stop()
    store.delete_session("s")
    assert store.list_sessions() == []


class Silent:
    def handle_event(self, event: object) -> None:
        """Take an event."""


def test_a_damaged_session_can_be_deleted_and_its_bookmarks_say_what_is_wrong(tmp_path: Path) -> None:
    session = SessionBuilder().score("A", 0.5, at=1).build(tmp_path)
    for damage in (b"[1]", b"{", b'{"a": "x"}', b'{"a": null}'):
        (session.path / "bookmarks.json").write_bytes(damage)
        with pytest.raises(SessionError, match=r"bookmarks\.json: expected an object"):
            session.bookmarks  # noqa: B018
    session.root.manifest(session.id).write_text("{")
    session.root.session_meta(session.id).write_text("[")
    store = SessionStore(tmp_path)
    store.delete_session(session.id)
    assert store.unreadable() == {}


def test_an_index_that_a_killed_process_left_stale_is_made_again(tmp_path: Path) -> None:
    SessionBuilder().score("A", 0.5, at=1).build(tmp_path, "one")
    index = tmp_path / "system" / "replay_sessions.json"
    before = index.read_bytes()
    SessionBuilder().score("A", 0.5, at=1).build(tmp_path, "two")
    index.write_bytes(before)
    SessionStore(tmp_path).list_sessions()
    assert {entry["sessionId"] for entry in json.loads(index.read_text())["sessions"]} == {"one", "two"}


def test_a_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from replaylab import fsio; held = fsio.lock_folder(sys.argv[1], shared=True);"
        "print('held', flush=True); time.sleep(60)"
    )
    child = python(code, str(tmp_path))
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    assert fsio.lock_folder(tmp_path) is None
    both = fsio.lock_folder(tmp_path, shared=True)
    assert both is not None
    both.release()
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    alone = fsio.lock_folder(tmp_path)
    assert alone is not None
    alone.release()
    alone.release()


def test_a_session_that_another_machine_plays_is_kept_by_its_heartbeat(tmp_path: Path) -> None:
    session = SessionBuilder().score("A", 0.5, at=1).build(tmp_path)
    path = session.root.replay_status
    for beat, kept in ((time.time(), True), (time.time() - 60, False), (None, False), ("yesterday", False)):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(beat)) if isinstance(beat, float) else beat
        status = {
            "running": True,
            "sessionId": session.id,
            "pid": 10**30,
            "host": "elsewhere",
            "heartbeatAt": stamp,
        }
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(status))
        if kept:
            with (
                pytest.raises(SessionError, match="is being replayed"),
                guard.unused(session.root, session.id),
            ):
                pass
        else:
            with guard.unused(session.root, session.id):
                pass
