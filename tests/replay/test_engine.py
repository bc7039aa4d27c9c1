"""Playing sessions: what is emitted, when, to whom, and how one steers it."""

from __future__ import annotations

import asyncio
import json
import math
import platform
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replaylab.errors import (
    ConfigError,
    PriceError,
    ReplayError,
    ReplayRunningError,
    SessionError,
    SessionNotFoundError,
    TimeError,
)
from replaylab.params import TradingParams
from replaylab.paths import DataRoot
from replaylab.records import ReplayEvent, ReplayStatus, StateEvent
from replaylab.replay import ReplayControl, ReplayEngine, ReplayRun, read_status
from replaylab.replay.engine import ActiveRun
from replaylab.sessions import Session, SessionStore
from replaylab.testing import SessionBuilder
from tests.replay.helpers import START, Collector, market, ticks

INF = math.inf
EAGER = TradingParams(entry_threshold=0.3, max_hold_s=20.0, cooldown_s=2.0)


def engine_of(root: Path, handler: object = None) -> ReplayEngine:
    return ReplayEngine(SessionStore(root), handler, params=EAGER)


def test_t5_run_scoring_only(tmp_path: Path) -> None:
    """T5: with run mode REPLAY, the state machine receives the session's SCORING_UPDATEs and the hotlist moves."""
    session = market(tmp_path)
    engine = ReplayEngine(SessionStore(tmp_path), params=EAGER, run_mode="REPLAY")
    seen: list[ReplayEvent] = []
    scores: set[float] = set()

    def watch(event: ReplayEvent) -> None:
        seen.append(event)
        scores.update(view["score"] for view in engine.views() if view["score"] is not None)

    engine.subscribe(watch)
    assert engine.load_session(session.id) == session.manifest
    asyncio.run(engine.run_session(session.id, speed_factor=INF, inject_mode="SCORING_ONLY"))
    run = engine.last_run
    assert run is not None
    recorded = session.events.filter(type="SCORING_UPDATE").height
    assert run.events.filter(event_type="SCORING_UPDATE").height == recorded == 240
    assert len(seen) == session.events.height
    assert len(scores) > 50
    assert run.trades.height > 3
    assert set(run.orders["mode"]) == {"SIM"}


def test_t6_stop(tmp_path: Path) -> None:
    """T6: after stop(), getStatus().running is false and no more events are emitted."""
    ticks(tmp_path, [0.01] * 500)
    handler = Collector()
    engine = engine_of(tmp_path, handler)
    engine.start_session("ticks")
    while not handler.events:
        time.sleep(0.005)
    assert engine.get_status().running
    engine.stop()
    emitted = len(handler.events)
    status = engine.get_status()
    assert status.running is False
    assert status.current_event_index == emitted < 500
    time.sleep(0.1)
    assert len(handler.events) == emitted
    assert engine.last_run is not None
    assert engine.last_run.record["outcome"] == "stopped"


def test_stop_comes_through_in_the_middle_of_a_long_wait(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0, 3600.0])
    handler = Collector()
    engine = engine_of(tmp_path, handler)
    engine.start_session("ticks")
    while not handler.events:
        time.sleep(0.005)
    time.sleep(0.05)
    engine._run.player.stop()  # type: ignore[union-attr]  # the end of the thread, without the bookkeeping after it
    began = time.monotonic()
    while engine._run.player.outcome is None:  # type: ignore[union-attr]
        time.sleep(0.001)
    assert time.monotonic() - began < 1
    engine.wait()


def test_events_come_in_order_and_in_their_own_time(tmp_path: Path) -> None:
    """At ten times the speed, an event is emitted a tenth of its distance after the first, and never before."""
    session = ticks(tmp_path, [0.0, 1.0, 0.0, 2.0, 0.5])
    handler = Collector()
    engine = engine_of(tmp_path, handler)
    engine.start_session(session.id, speed_factor=10)
    assert engine.wait(10)
    offsets = [at - handler.times[0] for at in handler.times]
    for offset, due in zip(offsets, [0.0, 0.1, 0.1, 0.3, 0.35], strict=True):
        assert due - 0.001 <= offset < due + 2
    assert [event.payload["score"] for event in handler.events] == [0.0, 0.001, 0.002, 0.003, 0.004]
    assert handler.finished == 1
    status = engine.get_status()
    assert status.lateness is not None
    assert 0 <= status.lateness.p50 <= status.lateness.p99 <= status.lateness.max


def test_the_manifest_gives_the_speed(tmp_path: Path) -> None:
    SessionBuilder(START).score("AAA", 0.1, at=0).score("AAA", 0.1, at=10).build(
        tmp_path, "fast", speed_factor=200
    )
    handler = Collector()
    engine = engine_of(tmp_path, handler)
    engine.start_session("fast")
    assert engine.wait(5)
    assert 0.045 < handler.times[1] - handler.times[0] < 5


def test_handlers_get_records_with_the_original_time(tmp_path: Path) -> None:
    session = market(tmp_path, seconds=5)
    handler = Collector()
    asyncio.run(engine_of(tmp_path, handler).run_session(session.id, speed_factor=INF))
    on_disk = [json.loads(line) for line in (session.path / "events.jsonl").read_text().splitlines()]
    delivered = [event for event in on_disk if event["type"] != "EXECUTION_ORDER"]
    assert [event.to_dict() for event in handler.events] == delivered
    assert all(isinstance(event, ReplayEvent) for event in handler.events)


def test_async_handlers_are_awaited(tmp_path: Path) -> None:
    class Slow:
        def __init__(self) -> None:
            self.seen: list[str] = []

        async def handle_event(self, event: ReplayEvent) -> None:
            await asyncio.sleep(0)
            self.seen.append(event.type)

        async def finish(self) -> None:
            self.seen.append("end")

    handler = Slow()
    ticks(tmp_path, [0.0, 1.0])
    asyncio.run(engine_of(tmp_path, handler).run_session("ticks", INF))
    assert handler.seen == ["SCORING_UPDATE", "SCORING_UPDATE", "end"]


def test_a_plain_function_may_return_something_to_await(tmp_path: Path) -> None:
    class Indirect(Collector):
        def handle_event(self, event: ReplayEvent) -> object:  # type: ignore[override]
            return self.later(event)

        async def later(self, event: ReplayEvent) -> None:
            await asyncio.sleep(0)
            self.events.append(event)

    handler = Indirect()
    ticks(tmp_path, [0.0, 0.01])
    for speed in (INF, 1.0):
        engine = engine_of(tmp_path, handler)
        engine.start_session("ticks", speed)
        engine.wait()
        assert len(handler.events) == 2


def test_full_decision_keeps_recorded_signals_from_the_handler(tmp_path: Path) -> None:
    session = market(tmp_path, seconds=20)
    handler, everything = Collector(), Collector()
    engine = engine_of(tmp_path, handler)
    engine.subscribe(everything.handle_event)
    asyncio.run(engine.run_session(session.id, speed_factor=INF, inject_mode="FULL_DECISION"))
    assert {event.type for event in handler.events} == {"MARKET_TRADE", "RISK_UPDATE"}
    assert len(everything.events) == session.events.height


def test_full_decision_reports_the_agreement(tmp_path: Path) -> None:
    session = market(tmp_path, seconds=300)
    run = asyncio.run(
        engine_of(tmp_path).run_session(session.id, speed_factor=INF, inject_mode="FULL_DECISION")
    )
    assert run.record["agreement"]["recorded"] > 0
    assert run.events.filter(event_type="SCORING_UPDATE").height > 0


def test_pause_step_resume(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0] + [0.05] * 9)
    handler = Collector()
    engine = engine_of(tmp_path, handler)
    engine.start_session("ticks", paused=True)
    assert engine.get_status().paused
    assert handler.events == []
    assert engine.step() == 1
    assert engine.step(3) == 3
    assert len(handler.events) == 4
    time.sleep(0.1)
    assert len(handler.events) == 4
    engine.resume()
    assert engine.wait(5)
    assert len(handler.events) == 10


def test_a_pause_does_not_count_as_lateness(tmp_path: Path) -> None:
    """After a pause the rest of the wait is waited for: nothing is late, nothing is early."""
    ticks(tmp_path, [0.0, 0.4, 0.1])
    handler = Collector()
    engine = engine_of(tmp_path, handler)
    engine.start_session("ticks")
    time.sleep(0.1)
    engine.pause()
    time.sleep(0.5)
    engine.resume()
    assert engine.wait(5)
    assert handler.times[1] - handler.times[0] > 0.85
    status = engine.get_status()
    assert status.lateness is not None
    # The pause took half a second, and is none of it.
    assert status.lateness.max < 450


def test_set_speed(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0, 0.2, 1000.0])
    handler = Collector()
    engine = engine_of(tmp_path, handler)
    engine.start_session("ticks")
    while len(handler.events) < 2:
        time.sleep(0.005)
    assert engine.get_status().speed_factor == 1.0
    engine.set_speed(INF)
    assert engine.wait(5)
    assert len(handler.events) == 3
    with pytest.raises(ReplayError):
        engine.set_speed(2)


def test_seek_forward_and_back(tmp_path: Path) -> None:
    """Seeking plays what lies between, from the start when it goes back, and subscribers do not see it."""
    ticks(tmp_path, [0.0] + [60.0] * 9)
    handler, watcher = Collector(), Collector()
    engine = engine_of(tmp_path, handler)
    engine.subscribe(watcher.handle_event)
    engine.start_session("ticks", paused=True)
    assert engine.seek(5) == 5
    assert len(handler.events) == 5
    assert engine.get_status().current_event_index == 5
    assert engine.seek("2025-11-18T10:02:30Z") == 3
    assert len(handler.events) == 3
    assert watcher.events == []
    assert engine.step() == 1
    assert watcher.events[0].payload["score"] == 0.003
    with pytest.raises(ReplayError, match="index from 0 to 10"):
        engine.seek(11)
    engine.stop()


@pytest.mark.parametrize("nonsense", [True, 1.5, None, [1], -1, 11, "soon", {}])
def test_a_nonsense_command_is_refused_and_the_replay_goes_on(tmp_path: Path, nonsense: Any) -> None:
    """Not even a True, which Python takes for an index, ends the replay."""
    ticks(tmp_path, [0.0] + [60.0] * 9)
    engine = engine_of(tmp_path, Collector())
    engine.start_session("ticks", paused=True)
    with pytest.raises((ReplayError, TimeError)):
        engine.seek(nonsense)
    if nonsense != 11:
        with pytest.raises(ReplayError):
            engine.step(nonsense)
    with pytest.raises(ReplayError):
        engine.set_speed(True)
    assert engine.seek(np.int64(4)) == 4
    assert engine.step(np.int32(2)) == 2
    assert engine.get_status().running
    engine.stop()


def test_a_price_source_of_a_symbol_that_is_not_there_is_refused(tmp_path: Path) -> None:
    market(tmp_path, seconds=4)
    engine = ReplayEngine(SessionStore(tmp_path))
    with pytest.raises(ConfigError, match=r"price_source names 'AAB', which is not in this session.*'AAA'"):
        engine.start_session("market", price_source={"AAB": "trade"})
    assert not engine.get_status().running
    engine.start_session("market", price_source={"AAA": "trade"}, speed_factor=INF)
    assert engine.wait(20)


def test_a_step_to_the_next_decision(tmp_path: Path) -> None:
    """Over scores that change nothing, to the entry, its fill, a refusal and the exits; then to the end."""
    builder = SessionBuilder(START)
    builder.trade("AAA", 100.0, at=0).score("AAA", 0.1, at=1).score("AAA", 0.2, at=2).score("AAA", 0.9, at=3)
    builder.trade("AAA", 100.0, at=4).score("AAA", 0.9, at=5).trade("AAA", 100.1, at=6)
    builder.trade("AAA", 90.0, at=7).score("AAA", 0.3, at=8).score("AAA", 0.9, at=9).trade("AAA", 90.0, at=10)
    builder.build(tmp_path, "s")
    params = TradingParams(entry_threshold=0.8, cooldown_s=60, latency_ms=0, stop_latency_ms=0)
    engine = ReplayEngine(SessionStore(tmp_path), params=params)
    engine.start_session("s", paused=True)
    reached = []
    while engine.get_status().current_event_index < 11:
        engine.step(unit="decision")
        reached.append(engine.get_status().current_event_index)
    assert reached == [4, 5, 8, 10, 11]
    engine.seek(0)
    assert ReplayControl(tmp_path).step(3, "decision") == 8
    with pytest.raises(ReplayError, match="unit of event, decision, found 'trade'"):
        engine.step(1, "trade")  # type: ignore[arg-type]
    engine.stop()
    other = engine_of(tmp_path, Collector())
    other.start_session("s", paused=True)
    with pytest.raises(ReplayError, match="handler's decisions are not known"):
        other.step(unit="decision")
    other.stop()


def test_seeking_to_a_time_waits_for_the_next_event_from_there(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0, 60.0, 60.0])
    handler = Collector()
    engine = engine_of(tmp_path, handler)
    engine.start_session("ticks")
    engine.seek("2025-11-18T10:00:59.800Z")
    began = time.monotonic()
    while len(handler.events) < 2:
        time.sleep(0.005)
    assert 0.15 < time.monotonic() - began < 30
    engine.stop()


def test_going_back_needs_a_reset(tmp_path: Path) -> None:
    class Forgetful:
        def handle_event(self, event: ReplayEvent) -> None: ...

    ticks(tmp_path, [0.0] * 5)
    engine = engine_of(tmp_path, Forgetful())
    engine.start_session("ticks", paused=True)
    engine.seek(3)
    with pytest.raises(ReplayError, match="reset"):
        engine.seek(1)
    assert engine.get_status().current_event_index == 3
    engine.stop()


def test_next_event_next_gap_and_bookmarks(tmp_path: Path) -> None:
    builder = SessionBuilder(START)
    for at in (0, 1, 2, 100, 101):
        builder.score("AAA", 0.1, at=at)
    builder.risk("AAA", at=101.5, trading_blocked=True)
    session = builder.build(tmp_path, "s")
    engine = engine_of(tmp_path, Collector())
    engine.start_session("s", paused=True)
    assert engine.next_gap(30) == 3
    assert engine.add_bookmark("after the silence") == 3
    assert engine.next_event("RISK*") == 5
    with pytest.raises(ReplayError, match="no event of type REGIME_UPDATE"):
        engine.next_event("REGIME_UPDATE")
    with pytest.raises(ReplayError, match="no gap"):
        engine.next_gap(30)
    assert engine.seek_bookmark("after the silence") == 3
    assert SessionStore(tmp_path).open(session.id).bookmarks == {"after the silence": 3}
    with pytest.raises(ReplayError, match="after the silence"):
        engine.seek_bookmark("nowhere")
    engine.stop()


def test_loop(tmp_path: Path) -> None:
    """A looped session begins again, with fresh state, until it is stopped."""
    session = market(tmp_path, seconds=5)
    handler = Collector()
    engine = engine_of(tmp_path, handler)
    engine.start_session(session.id, speed_factor=INF, loop=True)
    while handler.resets < 4:
        time.sleep(0.002)
    engine.stop()
    assert engine.last_run is not None
    assert engine.last_run.record["loops"] >= 3


def test_an_empty_session_ends_at_once(tmp_path: Path) -> None:
    SessionBuilder(START).build(tmp_path, "empty")
    run = asyncio.run(engine_of(tmp_path).run_session("empty"))
    assert run.record["outcome"] == "finished"
    assert run.trades.height == 0


def test_a_failing_handler_ends_the_run_with_its_error(tmp_path: Path) -> None:
    class Broken(Collector):
        def handle_event(self, event: ReplayEvent) -> None:
            super().handle_event(event)
            if len(self.events) == 3:
                raise ZeroDivisionError("oh")

    ticks(tmp_path, [0.0] * 5)
    for speed in (INF, 1.0):
        engine = engine_of(tmp_path, Broken())
        engine.start_session("ticks", speed_factor=speed)
        with pytest.raises(ReplayError, match="event 2: ZeroDivisionError: oh") as caught:
            engine.wait(5)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        status = engine.get_status()
        assert not status.running
        assert "ZeroDivisionError" in (status.error or "")
        assert engine.last_run is not None
        assert engine.last_run.record["outcome"] == "failed"


def test_a_failing_subscriber_does_not_end_the_run(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0] * 5)
    handler = Collector()
    engine = engine_of(tmp_path, handler)
    calls = []

    def broken(event: ReplayEvent) -> None:
        calls.append(event)
        raise ValueError("cannot draw")

    engine.subscribe(broken)
    # Warnings are errors in these tests, and would end the run; here they may be seen.
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(engine.run_session("ticks", speed_factor=INF))
    assert len(calls) == 1
    assert len(handler.events) == 5
    assert any("cannot draw" in str(warning.message) for warning in caught)


def test_a_handler_may_steer(tmp_path: Path) -> None:
    """Called from within a handler, pause and stop take effect when it returns."""

    class Pauser(Collector):
        engine: ReplayEngine

        def handle_event(self, event: ReplayEvent) -> None:
            super().handle_event(event)
            if len(self.events) == 2:
                self.engine.pause()
            if len(self.events) == 4:
                self.engine.stop()

    ticks(tmp_path, [0.0] * 9)
    handler = Pauser()
    handler.engine = engine = engine_of(tmp_path, handler)
    engine.start_session("ticks")
    while not engine.get_status().paused:
        time.sleep(0.005)
    assert len(handler.events) == 2
    engine.resume()
    assert engine.wait(5)
    assert len(handler.events) == 4


def test_the_first_event_may_be_answered_with_a_command(tmp_path: Path, monkeypatch: Any) -> None:
    """The engine knows of its run before the run's thread begins, however slow the caller's thread is."""

    class Hasty(Collector):
        engine: ReplayEngine

        def handle_event(self, event: ReplayEvent) -> None:
            super().handle_event(event)
            self.engine.stop()

    begin = ActiveRun.start
    monkeypatch.setattr(ActiveRun, "start", lambda run: (begin(run), run.over.wait(5)))
    ticks(tmp_path, [0.0] * 9)
    handler = Hasty()
    handler.engine = engine = engine_of(tmp_path, handler)
    engine.start_session("ticks")
    assert engine.wait(5)
    assert len(handler.events) == 1


def test_cancelling_run_session_while_it_loads_stops_it(tmp_path: Path, monkeypatch: Any) -> None:
    ticks(tmp_path, [0.0, 3600.0])
    engine = engine_of(tmp_path, Collector())
    loading, go_on = threading.Event(), threading.Event()
    load = engine.load_session

    def slowly(session_id: Any) -> Any:
        loading.set()
        assert go_on.wait(10)
        return load(session_id)

    monkeypatch.setattr(engine, "load_session", slowly)

    async def main() -> None:
        task = asyncio.create_task(engine.run_session("ticks"))
        await asyncio.to_thread(loading.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    asyncio.run(main())
    assert engine.wait(10)
    assert not engine.get_status().running


def test_cancelling_run_session_stops_it(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0, 3600.0])
    engine = engine_of(tmp_path, Collector())

    async def main() -> None:
        task = asyncio.create_task(engine.run_session("ticks"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert engine.wait(5)
    assert engine.last_run is not None
    assert engine.last_run.record["outcome"] == "stopped"


def test_run_session_leaves_the_event_loop_free(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0, 0.5])
    engine = engine_of(tmp_path, Collector())

    async def main() -> int:
        task = asyncio.create_task(engine.run_session("ticks"))
        turns = 0
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        return turns

    assert asyncio.run(main()) > 5


def test_one_replay_per_data_root(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0, 3600.0])
    first, second = engine_of(tmp_path, Collector()), engine_of(tmp_path, Collector())
    first.start_session("ticks")
    with pytest.raises(ReplayRunningError, match="ticks"):
        second.start_session("ticks")
    with pytest.raises(ReplayError, match="already"):
        first.start_session("ticks")
    assert second.get_status().running
    assert second.stop() is True
    assert not first.get_status().running
    second.start_session("ticks", speed_factor=INF)
    assert second.wait(5)


def test_wrong_arguments(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0])
    engine = engine_of(tmp_path)
    with pytest.raises(SessionNotFoundError, match="Did you mean 'ticks'"):
        engine.start_session("tick")
    with pytest.raises(SessionError):
        engine_of(tmp_path).start_session()
    for speed in (0, -1, math.nan, "fast"):
        with pytest.raises(ReplayError, match="speed factor"):
            engine.start_session("ticks", speed_factor=speed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Did you mean 'SCORING_ONLY'"):
        engine.start_session("ticks", inject_mode="SCORING")
    with pytest.raises(ReplayError, match="overload"):
        engine.start_session("ticks", overload="drop")  # type: ignore[arg-type]
    with pytest.raises(ReplayError, match="handle_event"):
        ReplayEngine(SessionStore(tmp_path), object()).start_session("ticks")
    for call in (
        engine.pause,
        engine.resume,
        engine.step,
        lambda: engine.seek(1),
        lambda: engine.set_speed(2),
    ):
        with pytest.raises(ReplayError, match="not playing"):
            call()
    # None of them left the data root locked.
    engine.start_session("ticks")
    assert engine.wait(5)
    assert engine.stop() is False


def test_skip_leaves_out_replaced_market_data_and_never_a_signal(tmp_path: Path) -> None:
    class Slow(Collector):
        def handle_event(self, event: ReplayEvent) -> None:
            super().handle_event(event)
            time.sleep(0.005)

    builder = SessionBuilder(START)
    for tick in range(400):
        builder.trade("AAA", 100 + tick, at=tick / 1000)
        if tick % 50 == 0:
            builder.score("AAA", 0.1, at=tick / 1000)
    builder.build(tmp_path, "burst")
    handler = Slow()
    engine = engine_of(tmp_path, handler)
    engine.start_session("burst", overload="skip")
    assert engine.wait(20)
    kinds = [event.type for event in handler.events]
    assert kinds.count("SCORING_UPDATE") == 8
    assert kinds.count("MARKET_TRADE") < 300
    assert handler.events[-1].payload["price"] == 499
    assert engine.last_run is not None
    assert engine.last_run.record["eventsSkipped"] == 400 - kinds.count("MARKET_TRADE")
    times = [event.timestamp for event in handler.events]
    assert times == sorted(times)


def test_stretch_keeps_every_event_and_reports_lateness(tmp_path: Path) -> None:
    class Slow(Collector):
        def handle_event(self, event: ReplayEvent) -> None:
            super().handle_event(event)
            time.sleep(0.003)

    ticks(tmp_path, [0.001] * 100)
    handler = Slow()
    engine = engine_of(tmp_path, handler)
    engine.start_session("ticks")
    assert engine.wait(20)
    assert len(handler.events) == 100
    run = engine.last_run
    assert run is not None
    assert run.record["lateness"]["max"] > 100
    assert run.record["achievedSpeed"] < 0.6


def test_a_run_is_a_data_root_of_its_own(tmp_path: Path) -> None:
    """Nothing of a run is written outside its folder, the published status aside."""
    session = market(tmp_path, seconds=60)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    run = asyncio.run(engine_of(tmp_path).run_session(session.id, speed_factor=INF))
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    outside = {path.relative_to(tmp_path).as_posix() for path in made if run.path not in path.parents}
    assert outside <= {"system/replay_status.json", "system/replay.lock"}
    again = ReplayRun.open(SessionStore(tmp_path).root, session.id, run.id)
    assert again.digest == run.digest
    assert again.trades.equals(run.trades)
    assert run.record["counts"]["trades"] == run.trades.height
    assert (run.path / "system" / "risk_snapshot.json").is_file()


def test_status_of_another_reader(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0, 3600.0])
    engine = engine_of(tmp_path, Collector())
    assert engine.get_status().session_id is None
    engine.start_session("ticks", speed_factor=2)
    published = read_status(tmp_path)
    assert published.running
    assert (published.session_id, published.total_events, published.speed_factor) == ("ticks", 2, 2.0)
    engine.stop()
    assert not read_status(tmp_path).running
    assert read_status(tmp_path).session_id == "ticks"


def test_threads_may_steer_at_once(tmp_path: Path) -> None:
    """Commands from several threads are carried out one by one, and none is lost."""
    ticks(tmp_path, [0.0] + [1000.0] * 400)
    handler = Collector()
    engine = engine_of(tmp_path, handler)
    engine.start_session("ticks", paused=True)
    threads = [threading.Thread(target=lambda: [engine.step() for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.get_status().current_event_index == 200
    engine.stop()


def test_the_last_run_stays_while_the_next_one_plays(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0, 3600.0])
    engine = engine_of(tmp_path)
    assert engine.last_run is None
    engine.start_session("ticks", INF)
    engine.wait()
    first = engine.last_run
    engine.start_session("ticks")
    assert engine.last_run is first
    engine.stop()
    assert engine.last_run is not first


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    ticks(tmp_path, [0.0])
    (tmp_path / "replay" / "sessions" / "ticks" / "runs").write_text("in the way")
    engine = engine_of(tmp_path)
    with pytest.raises(ReplayError, match="cannot be written"):
        engine.start_session("ticks")
    assert not engine.get_status().running


def every_type(root: Path) -> Session:
    """A session with an event of each kind that a handler may or may not receive."""
    builder = SessionBuilder(START)
    builder.trade("AAA", 100.0, at=0).book("AAA", [[99.0, 1.0]], [[101.0, 1.0]], at=1)
    builder.score("AAA", 0.9, at=2).regime("AAA", "CALM", at=3)
    builder.risk("AAA", at=4, trading_blocked=True).risk(at=5, force_close=True)
    builder.event("FUNDING", "AAA", {"fundingRate": 0.0001}, at=6)
    builder.event("STATE_EVENT", "AAA", {"eventType": "SCORING_UPDATE"}, at=7)
    builder.event("EXECUTION_FILL", "AAA", {"price": 100.0}, at=8)
    builder.event("FEATURE_SNAPSHOT", "AAA", {"spread": 1.0}, at=9)
    return builder.build(root, "every-type")


def delivered_to(root: Path, **options: Any) -> list[str]:
    handler = Collector()
    engine = ReplayEngine(SessionStore(root), handler)
    engine.start_session("every-type", speed_factor=INF, **options)
    assert engine.wait(10)
    return [event.type for event in handler.events]


def test_what_a_handler_receives(tmp_path: Path) -> None:
    """Signals, risk, funding and market data; never the recorded consequences. Strict: the specification's minimum."""
    every_type(tmp_path)
    market_data, signals = ["MARKET_TRADE", "MARKET_BOOK"], ["SCORING_UPDATE", "REGIME_UPDATE"]
    rest = ["RISK_UPDATE", "RISK_UPDATE", "FUNDING", "FEATURE_SNAPSHOT"]
    assert delivered_to(tmp_path) == [*market_data, *signals, *rest]
    assert delivered_to(tmp_path, inject_mode="FULL_DECISION") == [*market_data, *rest]
    assert delivered_to(tmp_path, strict=True) == signals
    with pytest.raises(ConfigError, match="strict"):
        delivered_to(tmp_path, strict=True, inject_mode="FULL_DECISION")


def test_a_state_machine_receives_state_events(tmp_path: Path) -> None:
    """``deliver="state_events"``: one StateEvent per signal and symbol, with the payload as extra, awaited in order."""

    class Machine:
        def __init__(self) -> None:
            self.events: list[StateEvent] = []

        async def handle_event(self, event: StateEvent) -> None:
            await asyncio.sleep(0)
            self.events.append(event)

    session = every_type(tmp_path)
    machine, observer = Machine(), Collector()
    engine = ReplayEngine(SessionStore(tmp_path), machine, deliver="state_events")
    engine.subscribe(observer.handle_event)
    for speed in (INF, 1000.0):
        engine.start_session(session, speed_factor=speed)
        assert engine.wait(10)
    once = ["SCORING_UPDATE", "REGIME_UPDATE", "RISK_UPDATE", "RISK_UPDATE"]
    assert [event.event_type for event in machine.events] == once * 2
    assert all(isinstance(event, StateEvent) and event.symbol == "AAA" for event in machine.events)
    assert machine.events[0].extra == {"score": 0.9}
    assert len(observer.events) == 2 * session.events.height
    with pytest.raises(ConfigError, match="deliver"):
        ReplayEngine(SessionStore(tmp_path), machine, deliver="events")  # type: ignore[arg-type]


def test_strict_with_the_reference_system_uses_prices_of_scores(tmp_path: Path) -> None:
    """Without market data the prices in the scoring events remain; where there are none the replay is refused."""
    session = market(tmp_path)
    engine = engine_of(tmp_path)
    engine.start_session(session, speed_factor=INF, strict=True)
    assert engine.wait(10)
    run = engine.last_run
    assert run is not None
    assert set(run.record["priceSources"].values()) == {"score"}
    assert run.record["strict"] is True
    every_type(tmp_path)
    with pytest.raises(PriceError, match="no prices"):
        engine.start_session("every-type", strict=True)


def recorded_session(root: Path, **options: Any) -> Session:
    builder = SessionBuilder(START)
    for second in range(60):
        builder.trade("AAA", 100 + second % 7, at=second).score("AAA", (second % 10) / 10, at=second + 0.5)
    return builder.build(root, "recorded", **options)


def test_recorded_parameters_are_the_default(tmp_path: Path) -> None:
    """None runs the session's parameters, a dict changes them, TradingParams replace them; run and status say so."""
    recorded = TradingParams(entry_threshold=0.8, sl_pct=0.4, tp1_pct=1.0, tp2_pct=2.0)
    session = recorded_session(tmp_path, recorded_params=recorded)

    def run(params: Any) -> tuple[ReplayRun, ReplayStatus]:
        engine = ReplayEngine(SessionStore(tmp_path), params=params, default_params=EAGER)
        engine.start_session(session, speed_factor=INF)
        assert engine.wait(10)
        assert engine.last_run is not None
        return ReplayRun.open(DataRoot(tmp_path), session.id, engine.last_run.id), engine.get_status()

    as_recorded, status = run(None)
    assert (as_recorded.params, as_recorded.params_source, as_recorded.changes) == (recorded, "recorded", {})
    assert (status.params_source, status.changes) == ("recorded", {})
    assert "recorded parameters" in as_recorded.assumptions
    assert "AAA trade (1 s apart)" in as_recorded.assumptions
    changed, status = run({"sl_pct": 0.5})
    assert changed.params == recorded.replace(sl_pct=0.5)
    assert (changed.params_source, changed.changes) == ("recorded", {"sl_pct": (0.4, 0.5)})
    assert status.changes == {"slPct": [0.4, 0.5]}
    assert "sl_pct 0.4 → 0.5" in repr(changed)
    given, _ = run(EAGER)
    assert (given.params, given.params_source) == (EAGER, "given")
    assert given.changes["entry_threshold"] == (0.8, 0.3)
    with pytest.raises(ConfigError, match="Did you mean 'sl_pct'"):
        run({"sl_pc": 0.5})


def test_a_session_without_recorded_parameters_runs_the_default(tmp_path: Path) -> None:
    session = recorded_session(tmp_path)
    engine = ReplayEngine(SessionStore(tmp_path), default_params=EAGER)
    engine.start_session(session, speed_factor=INF)
    assert engine.wait(10)
    assert engine.last_run is not None
    assert (engine.last_run.params, engine.last_run.params_source) == (EAGER, "config")


def test_a_session_without_prices_is_refused(tmp_path: Path) -> None:
    """As the sweep does: the error names the types to include, and nothing is recorded."""
    SessionBuilder(START).score("AAA", 0.9, at=0).score("AAA", 0.9, at=1).build(tmp_path, "scores")
    engine = ReplayEngine(SessionStore(tmp_path))
    with pytest.raises(PriceError, match=r"AAA.*include_types.*MARKET_TRADE"):
        engine.start_session("scores")
    assert "no prices" in (read_status(tmp_path).error or "")
    assert not (tmp_path / "replay/sessions/scores/runs").exists()
    with pytest.raises(PriceError, match="market data"):
        engine.start_session("scores", inject_mode="FULL_DECISION")


def test_the_status_of_a_loaded_session(tmp_path: Path) -> None:
    """After load_session it has the id and the number of events; a dead run of another process is not this engine's."""
    ticks(tmp_path, [0.0] * 7)
    engine = engine_of(tmp_path)
    dead = {"sessionId": "other", "running": True, "pid": 999_999_999, "processStart": 1.0, "runId": "x"}
    status_file = DataRoot(tmp_path).replay_status
    status_file.parent.mkdir(exist_ok=True)
    status_file.write_text(json.dumps({**dead, "host": platform.node()}))
    assert (engine.get_status().session_id, engine.get_status().error) == (None, None)
    engine.load_session("ticks")
    status = engine.get_status()
    assert (status.session_id, status.total_events, status.running) == ("ticks", 7, False)
    assert (status.error, status.run_mode) == (None, "LIVE")
    engine.start_session(speed_factor=INF)
    engine.wait()
    assert engine.get_status().current_event_index == 7


def test_a_run_does_not_bring_a_deleted_session_back(tmp_path: Path) -> None:
    session = market(tmp_path, seconds=20)
    engine = engine_of(tmp_path)
    engine.start_session(session, paused=True)
    shutil.rmtree(session.path)
    engine.set_speed(INF)
    engine.resume()
    with pytest.raises(ReplayError, match=r"cannot be recorded|was deleted"):
        engine.wait(10)
    assert not session.path.exists()
    assert not engine.get_status().running
