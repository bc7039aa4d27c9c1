"""Replays of several processes on one data root: one at a time, seen, stopped, and buried when they die."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replaylab.errors import InterlockError, ReplayRunningError
from replaylab.logging import Logger
from replaylab.replay import ReplayEngine, read_status, request_stop, stop_replay
from replaylab.sessions import SessionStore
from replaylab.trading import OrderRouter, TradingSystem
from tests.replay.helpers import Collector, market, ticks

HERE = Path(__file__).parents[2]


@contextlib.contextmanager
def playing_elsewhere(root: Path, session_id: str, speed: float = 1.0) -> Iterator[subprocess.Popen[str]]:
    """A process that plays a session and says so."""
    code = (
        "from replaylab import ReplayEngine\n"
        f"engine = ReplayEngine({str(root)!r})\n"
        f"engine.start_session({session_id!r}, speed_factor={speed!r})\n"
        "print('playing', flush=True)\n"
        "engine.wait()\n"
        "print(engine.last_run.record['outcome'], flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=HERE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "playing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_seen_refused_and_stopped_from_another_process(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0, 3600.0])
    engine = ReplayEngine(SessionStore(tmp_path), Collector())
    with playing_elsewhere(tmp_path, "ticks", 2.0) as process:
        status = engine.get_status()
        assert (status.running, status.session_id, status.speed_factor) == (True, "ticks", 2.0)
        with pytest.raises(ReplayRunningError, match="ticks"):
            engine.start_session("ticks")
        began = time.monotonic()
        assert engine.stop() is True
        assert time.monotonic() - began < 9
        assert not engine.get_status().running
        assert process.communicate(timeout=10)[0] == "stopped\n"
    engine.start_session("ticks", speed_factor=math.inf)
    assert engine.wait(10)
    assert len(list((tmp_path / "replay/sessions/ticks/runs").iterdir())) == 2


def test_stop_requests(tmp_path: Path) -> None:
    """Without a replay there is nothing to stop; a request to an earlier run does not stop a later one."""
    ticks(tmp_path, [0.0, 3600.0])
    assert request_stop(tmp_path) is False
    assert stop_replay(tmp_path) == (False, "no replay is running")
    stale = tmp_path / "system" / "replay_stop.json"
    stale.parent.mkdir(exist_ok=True)
    stale.write_text('{"runId": null}')
    engine = ReplayEngine(SessionStore(tmp_path), Collector())
    engine.start_session("ticks")
    time.sleep(0.1)
    assert engine.get_status().running
    stale.write_text('{"runId": "another"}')
    time.sleep(0.1)
    assert engine.get_status().running
    assert stop_replay(tmp_path) == (True, "replay of ticks stopped")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_replay_is_dead_and_not_running_for_ever(tmp_path: Path, number: int) -> None:
    session = market(tmp_path, seconds=60)
    with playing_elsewhere(tmp_path, session.id) as process:
        time.sleep(0.3)
        os.kill(process.pid, number)
        process.wait()
    status = read_status(tmp_path)
    assert status.running is False
    assert status.session_id == session.id
    assert "ended without a word" in (status.error or "")
    # Its lock died with it, and its run says that it never ended.
    engine = ReplayEngine(SessionStore(tmp_path))
    engine.start_session(session, speed_factor=math.inf)
    assert engine.wait(30)
    runs = sorted((session.path / "runs").iterdir())
    outcomes = [json.loads((run / "run.json").read_text())["outcome"] for run in runs]
    assert sorted(outcomes) == ["finished", "running"]


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """Whenever the process dies: the status is readable, says not running, and the next replay starts."""
    session = market(tmp_path, seconds=60)
    for delay in (0.0, 0.02, 0.11, 0.23, 0.31):
        with playing_elsewhere(tmp_path, session.id, 20.0) as process:
            time.sleep(delay)
            process.kill()
            process.wait()
            assert not read_status(tmp_path).running
    run = ReplayEngine(SessionStore(tmp_path))
    run.start_session(session, speed_factor=math.inf)
    assert run.wait(30)


def test_a_process_that_ends_stops_its_replay(tmp_path: Path) -> None:
    """A notebook that is closed leaves a stopped replay behind."""
    ticks(tmp_path, [0.0, 3600.0])
    code = f"from replaylab import ReplayEngine; ReplayEngine({str(tmp_path)!r}).start_session('ticks')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE, timeout=30)
    status = read_status(tmp_path)
    assert (status.running, status.error) == (False, None)


def test_a_status_of_another_process_with_the_same_id_is_not_ours(tmp_path: Path) -> None:
    """Process ids are used again: the start time is compared, too."""
    ticks(tmp_path, [0.0])
    engine = ReplayEngine(SessionStore(tmp_path), Collector())
    engine.start_session("ticks", speed_factor=math.inf)
    engine.wait()
    path = tmp_path / "system" / "replay_status.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "running": True}))
    assert read_status(tmp_path).running
    path.write_text(json.dumps({**plain, "running": True, "processStart": "1"}))
    assert not read_status(tmp_path).running
    path.write_text(
        json.dumps({**plain, "running": True, "host": "elsewhere", "heartbeatAt": "2020-01-01T00:00:00Z"})
    )
    assert not read_status(tmp_path).running
    path.write_text("{torn")
    assert "cannot be read" in (read_status(tmp_path).error or "")


def test_interlock_in_replay_mode(tmp_path: Path) -> None:
    """From a replay neither a LIVE router nor the live logs can be reached."""
    with pytest.raises(InterlockError):
        OrderRouter("LIVE", run_mode="REPLAY")
    with pytest.raises(InterlockError):
        TradingSystem(mode="LIVE", run_mode="REPLAY")
    logger = Logger(tmp_path, run_mode="REPLAY")
    event = {
        "timestamp": "2025-11-18T10:00:00.000Z",
        "symbol": "AAA",
        "fromState": "IDLE",
        "toState": "IDLE",
        "eventType": "SCORING_UPDATE",
        "reason": "test",
        "extra": {},
    }
    with pytest.raises(InterlockError):
        logger.log_state_event("AAA", event)
    assert not (tmp_path / "events").exists()


def test_the_system_of_a_replay_is_interlocked(tmp_path: Path) -> None:
    """Whatever run mode the engine was given, its trading system runs in SIM and knows that it replays."""
    session = market(tmp_path, seconds=30)
    engine = ReplayEngine(SessionStore(tmp_path), run_mode="LIVE")
    engine.start_session(session, paused=True)
    target = engine._run.player.target  # type: ignore[union-attr]
    router = target.system._router  # type: ignore[attr-defined]
    assert router.mode == "SIM"
    engine.stop()
