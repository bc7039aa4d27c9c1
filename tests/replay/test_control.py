"""The control plane: one replay per data root, seen and steered from every process, and recognised when it died."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from replaylab.errors import InterlockError, ReplayError, ReplayRunningError
from replaylab.logging import Logger
from replaylab.paths import DataRoot
from replaylab.records import ReplayEvent
from replaylab.replay import ReplayControl, ReplayEngine, read_status
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


def test_steered_from_another_process(tmp_path: Path) -> None:
    """A control in this process pauses, steps, seeks and ends a replay of another, which acknowledges each command."""
    ticks(tmp_path, [0.0] + [60.0] * 99)
    control = ReplayControl(tmp_path)
    with playing_elsewhere(tmp_path, "ticks") as process:
        control.pause()
        assert control.status().paused
        assert control.step(2) == 2
        assert control.seek("2025-11-18T10:30:00Z") == 30
        assert control.seek(np.int64(40)) == 40
        assert control.status().current_event_index == 40
        control.set_speed(7.0)
        control.resume()
        status = control.status()
        assert (status.speed_factor, status.paused) == (7.0, False)
        plain = json.loads((tmp_path / "system/replay_status.json").read_bytes())
        assert len(plain["acknowledged"]) == 6
        assert control.stop() is True
        assert process.communicate(timeout=10)[0] == "stopped\n"
    assert control.stop() is False
    with pytest.raises(ReplayError, match="no replay is running"):
        control.resume()


def test_several_processes_steer_one_replay(tmp_path: Path) -> None:
    """Commands of several threads and processes are carried out one by one, and none is lost."""
    ticks(tmp_path, [0.0] + [1000.0] * 400)
    engine = ReplayEngine(SessionStore(tmp_path), Collector())
    engine.start_session("ticks", paused=True)
    code = (
        "from replaylab.replay import ReplayControl\n"
        f"control = ReplayControl({str(tmp_path)!r})\n"
        "print(sum(control.step() for _ in range(20)))"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=HERE)
        for _ in range(2)
    ]
    here = [
        threading.Thread(target=lambda: [ReplayControl(tmp_path).step() for _ in range(20)]) for _ in range(2)
    ]
    for thread in here:
        thread.start()
    for thread in here:
        thread.join()
    assert [process.communicate(timeout=60)[0] for process in others] == ["20\n", "20\n"]
    assert engine.get_status().current_event_index == 80
    engine.stop()


def test_a_command_while_a_handler_hangs_is_not_acknowledged(tmp_path: Path) -> None:
    """The caller gets an error after its time limit; the status is published meanwhile."""
    release = threading.Event()

    class Hanging(Collector):
        def handle_event(self, event: ReplayEvent) -> None:
            super().handle_event(event)
            release.wait(20)

    ticks(tmp_path, [0.0, 3600.0])
    engine = ReplayEngine(SessionStore(tmp_path), Hanging())
    engine.start_session("ticks")
    control = ReplayControl(tmp_path, timeout=0.3)
    with pytest.raises(ReplayError, match=r"did not acknowledge 'pause' within 0\.3 s"):
        control.pause()
    with pytest.raises(ReplayError, match=r"did not stop within 0\.2 s"):
        control.stop(timeout=0.2)
    release.set()
    assert engine.wait(10)


def test_commands_to_other_runs_are_ignored(tmp_path: Path) -> None:
    """A command to an earlier run does not reach a later one; lines that are no commands do no harm."""
    ticks(tmp_path, [0.0, 3600.0])
    engine = ReplayEngine(SessionStore(tmp_path), Collector())
    commands = DataRoot(tmp_path).replay_commands
    commands.parent.mkdir(exist_ok=True)
    commands.write_text('{"id": "1", "runId": null, "command": "stop"}\n')
    engine.start_session("ticks")
    with commands.open("a") as file:
        file.write('{"id": "2", "runId": "another", "command": "stop"}\n{torn\n[]\n')
        file.write('{"id": "3", "runId": null, "command": "dance"}\n{"id": "4", "command": "seek"}\n')
    ReplayControl(tmp_path).pause()
    plain = json.loads((tmp_path / "system/replay_status.json").read_bytes())
    assert {"3", "4"} <= set(plain["acknowledged"])
    assert "expected one of pause" in plain["acknowledged"]["3"]["error"]["message"]
    assert "wrong arguments" in plain["acknowledged"]["4"]["error"]["message"]
    assert engine.get_status().running
    engine.stop()


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
    assert "ended without publishing its end" in (status.error or "")
    # Its lock died with it, and its run says that it never ended.
    engine = ReplayEngine(SessionStore(tmp_path))
    engine.start_session(session, speed_factor=math.inf)
    assert engine.wait(30)
    runs = sorted((session.path / "runs").iterdir())
    outcomes = [json.loads((run / "run.json").read_text())["outcome"] for run in runs]
    assert sorted(outcomes) == ["died", "finished"]


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
    path.write_text(json.dumps({**plain, "running": True, "processStart": 1.0}))
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
