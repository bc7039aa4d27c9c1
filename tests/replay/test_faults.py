"""States that need a living process to end them, and arguments of any size: refused or ended, in words."""

from __future__ import annotations

import errno
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from replaylab.errors import ReplayError, SessionError, SweepError
from replaylab.health import check_health
from replaylab.replay import ReplayEngine, RunFollower, read_status
from replaylab.replay.control import error_of, plain_error
from replaylab.sessions import SessionStore, build_replay_session
from replaylab.sweep import sweep
from replaylab.testing import SessionBuilder
from tests.sessions.logs import log_events, state_event


class Exits:
    def handle_event(self, event: Any) -> None:
        raise SystemExit(3)


def test_a_handler_that_exits_is_an_error_of_the_run_and_of_health(tmp_path: Path) -> None:
    session = SessionBuilder().score("A", 0.5, at=1).build(tmp_path)
    engine = ReplayEngine(SessionStore(tmp_path), Exits())
    engine.start_session(session.id, speed_factor=math.inf)
    with pytest.raises(ReplayError, match="SystemExit: 3"):
        engine.wait(30)
    assert engine.last_run is not None
    assert engine.last_run.record["outcome"] == "failed"
    assert "SystemExit" in engine.last_run.record["error"]
    health = check_health(tmp_path).services["replay"]
    assert (health.status, "SystemExit" in (health.message or "")) == ("ERROR", True)


@pytest.mark.parametrize("pid", [10**30, -5, "x", None, 0])
def test_a_status_with_any_process_id_is_read(tmp_path: Path, pid: Any) -> None:
    session = SessionBuilder().score("A", 0.5, at=1).build(tmp_path)
    status = {"running": True, "sessionId": session.id, "runId": "r", "pid": pid}
    session.root.replay_status.write_bytes(
        orjson.dumps(status) if pid != 10**30 else b'{"running":true,"pid":1%s}' % (b"0" * 30)
    )
    assert read_status(tmp_path).running is False
    SessionStore(tmp_path).delete_session(session.id)


def test_a_file_in_place_of_the_system_folder_is_named(tmp_path: Path) -> None:
    session = SessionBuilder().score("A", 0.5, at=1).build(tmp_path)
    for child in (tmp_path / "system").iterdir():
        child.unlink()
    (tmp_path / "system").rmdir()
    (tmp_path / "system").write_text("")
    assert "system" in (read_status(tmp_path).error or "")
    engine = ReplayEngine(SessionStore(tmp_path), Exits())
    with pytest.raises(ReplayError, match="system"):
        engine.start_session(session.id)


def test_any_limit_of_events_builds(tmp_path: Path) -> None:
    log_events(tmp_path, "A", state_event("2025-11-18T10:00:00Z", symbol="A"))
    built = build_replay_session(
        tmp_path, "2025-11-18T10:00:00Z", "2025-11-18T11:00:00Z", "A", max_events=10**30, session_id="s"
    )
    assert built.total_events == 1


@pytest.mark.parametrize(
    "state", [5, [], {"symbols": 5}, {"symbols": {"A": 5}}, {"symbols": {"A": {"position": 5}}}]
)
def test_a_damaged_initial_state_plays_or_is_refused_in_words(tmp_path: Path, state: Any) -> None:
    session = SessionBuilder().trade("A", 100, at=0).score("A", 0.5, at=1).build(tmp_path)
    path = session.root.session_meta(session.id)
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {"initialState": state}))
    engine = ReplayEngine(SessionStore(tmp_path))
    with suppress(SessionError):
        engine.start_session(session.id, speed_factor=math.inf)
        assert engine.wait(30)


def test_a_grid_of_a_billion_combinations_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    session = SessionBuilder().trade("A", 100, at=0).score("A", 0.5, at=1).build(tmp_path)
    axis = [k / 1000 for k in range(1, 1001)]
    with pytest.raises(SweepError, match="1,000,000,000 combinations"):
        sweep(session, {"sl_pct": axis, "tp1_pct": axis, "tp2_pct": axis}, progress=False)


def test_a_bad_line_or_a_long_one_does_not_end_the_news(tmp_path: Path) -> None:
    session = (
        SessionBuilder().trade("A", 100, at=0).score("A", 0.9, at=1).trade("A", 101, at=2).build(tmp_path)
    )
    engine = ReplayEngine(SessionStore(tmp_path))
    engine.start_session(session.id, speed_factor=math.inf)
    assert engine.wait(30)
    assert engine.last_run is not None
    log = engine.last_run.root.events_dir / "A.jsonl"
    long = orjson.dumps({"reason": "x" * 3_000_000})
    before = log.read_bytes()
    log.write_bytes(b"{broken\n[]\n" + long + b"\n" + before)
    follower = RunFollower(tmp_path)
    records: list[Any] = []
    for _ in range(6):
        records += [record for _, record in follower.poll().records]
    follower.close()
    assert {len(record.get("reason", "")) for record in records} >= {3_000_000}
    assert len([r for r in records if r.get("symbol") == "A" and "fromState" in r]) == len(
        before.splitlines()
    )


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EACCES, 403)])
def test_a_full_disk_and_missing_rights_have_their_own_answers(number: int, code: int) -> None:
    """Raised here, as the cause of another error, and in the process of a replay."""
    from replaylab.server.service import status_of

    plain = OSError(number, "no")
    caused = ReplayError("a replay records into data, which cannot be written")
    caused.__cause__ = plain
    assert [status_of(one) for one in (plain, caused, error_of(plain_error(caused)))] == [code] * 3
    assert status_of(OSError("strange")) == 500
