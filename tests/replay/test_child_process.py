"""A replay in a child process: steered through the data root, followed, and ended with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from replaylab.errors import ReplayError, ReplayRunningError, SessionNotFoundError, TimeError
from replaylab.params import TradingParams
from replaylab.paths import DataRoot
from replaylab.replay import ReplayControl, ReplayEngine, ReplayProcess, RunFollower, read_status
from replaylab.sessions import SessionStore, build_replay_session
from tests.roots import END, START, SYMBOLS, signal_root

SESSION = "a-minute"


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    made = signal_root(tmp_path / "data")
    build_replay_session(made, START, END, list(SYMBOLS), session_id=SESSION)
    return made


@pytest.fixture
def replay(root: DataRoot) -> Iterator[ReplayProcess]:
    started = ReplayProcess.start(root, SESSION, speed_factor=1.0)
    yield started
    started.stop()


def until(condition: Callable[[], Any]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_it_decides_as_a_replay_in_this_process(root: DataRoot) -> None:
    """Parameters, speed and mode cross the border between processes: the digest of the run is the same."""
    params = TradingParams(entry_threshold=0.8, sl_pct=0.1, max_hold_s=20.0, allowed_regimes=("TREND",))
    engine = ReplayEngine(SessionStore(root), params=params)
    engine.start_session(SESSION, speed_factor=float("inf"))
    engine.wait()
    here = engine.last_run
    assert here is not None
    there = ReplayProcess.start(root, SESSION, speed_factor=float("inf"), params=params)
    assert there.wait(30)
    run = root.run(SESSION, read_status(root).run_id or "")
    assert run.path != here.path
    assert (run.path / "run.json").read_text().count(here.digest) == 1


def test_steering(replay: ReplayProcess, root: DataRoot) -> None:
    """Every command is acknowledged, with its result, and its effect is in the published status by then."""
    control = replay.control
    control.pause()
    assert control.status().paused
    at = control.status().current_event_index
    assert control.step(3) == 3
    assert control.status().current_event_index == at + 3
    assert control.seek(700) == 700
    assert control.status().current_event_index == 700
    control.seek("2025-11-18T10:00:50Z")
    assert control.status().current_event_index > 900
    control.set_speed(50.0)
    assert control.status().speed_factor == 50.0
    control.set_speed(float("inf"))
    control.resume()
    assert replay.wait(20)
    assert not replay.running
    assert control.status().current_event_index == 1202
    with pytest.raises(ReplayError, match="no replay of session a-minute is running"):
        control.pause()
    assert control.stop() is False
    replay.stop()


def test_refusals_come_back_as_the_errors_they_are(root: DataRoot, replay: ReplayProcess) -> None:
    with pytest.raises(ReplayRunningError, match=SESSION):
        ReplayProcess.start(root, SESSION)
    with pytest.raises(SessionNotFoundError, match="nope"):
        ReplayProcess.start(root, "nope")
    with pytest.raises(ReplayError, match="speed factor"):
        replay.control.set_speed(-1.0)
    with pytest.raises(TimeError, match="soon"):
        replay.control.seek("soon")
    with pytest.raises(ReplayError, match="expected an index from 0 to 1202"):
        replay.control.seek(10**9)
    with pytest.raises(ReplayError, match="no replay of session other is running"):
        ReplayControl(root, "other").pause()
    assert ReplayControl(root, "other").stop() is False
    assert replay.running, "a refused command changes nothing"


def test_a_killed_replay_is_noticed(replay: ReplayProcess, root: DataRoot) -> None:
    os.kill(replay.pid, signal.SIGKILL)
    until(lambda: not replay.running)
    assert read_status(root).running is False
    assert read_status(root).error
    replay.stop()


def test_a_replay_does_not_outlive_who_started_it(root: DataRoot) -> None:
    code = (
        "import sys, time; from replaylab.paths import DataRoot; from replaylab.replay import ReplayProcess\n"
        f"r = ReplayProcess.start(DataRoot({str(root)!r}), {SESSION!r}, speed_factor=1.0)\n"
        "print(r.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    status = read_status(root)
    assert status.running is False
    assert "the process that started this replay ended" in str(status.error)


def test_a_follower_sees_a_seek_back_as_a_beginning(root: DataRoot) -> None:
    """Also one that reads no events: what was logged after the time that was sought is not shown."""
    follower = RunFollower(root, events=False)
    started = ReplayProcess.start(root, SESSION, speed_factor=0.01)
    shown: list[str] = []

    def poll() -> int:
        news = follower.poll()
        if news.began:
            shown.clear()
        shown.extend(record["timestamp"] for _, record in news.records)
        return len(shown)

    try:
        started.control.seek(900)
        until(lambda: poll() > 800)
        latest = max(shown)
        started.control.seek(100)
        until(lambda: 0 < poll() < 200)
        assert max(shown) < latest
    finally:
        started.stop()


def test_a_follower_sees_every_event_and_record_once(root: DataRoot) -> None:
    follower = RunFollower(root)
    assert follower.poll().status.running is False
    started = ReplayProcess.start(root, SESSION, speed_factor=60.0)
    events, states, began = [], [], 0
    while True:
        over = not started.running
        news = follower.poll()
        events += news.events
        states += [record for kind, record in news.records if kind == "state"]
        began += news.began
        if over:
            break
        time.sleep(0.1)
    follower.close()
    assert len(events) == 1202
    assert sum(record["eventType"] == "SCORING_UPDATE" for record in states) == 1200
    assert began == 1


def test_a_follower_that_comes_late_leaves_out_and_counts(root: DataRoot) -> None:
    ReplayProcess.start(root, SESSION, speed_factor=float("inf")).wait(30)
    follower = RunFollower(root)
    news = follower.poll()
    follower.close()
    assert len(news.events) == 500
    assert news.skipped == 702
    assert news.events[-1]["timestamp"] == "2025-11-18T10:00:59.900Z"


def test_a_follower_waits_for_the_end_of_a_line(root: DataRoot) -> None:
    """A record that is being written is read when it is whole."""
    ReplayProcess.start(root, SESSION, speed_factor=float("inf")).wait(30)
    run = root.run(SESSION, read_status(root).run_id or "")
    follower = RunFollower(root, events=False)
    before = len(follower.poll().records)
    assert before > 1200
    with run.events("BTCUSDT").open("ab") as log:
        log.write(b'{"half":')
        log.flush()
        assert follower.poll().records == []
        log.write(b"1}\n")
    assert follower.poll().records == [("state", {"half": 1})]
