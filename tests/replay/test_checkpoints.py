"""Seeking by checkpoints: whatever the way through a session, the run and its files are those of straight play."""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab import exit_rule
from replaylab.errors import PriceError, ReplayError
from replaylab.params import TradingParams
from replaylab.paths import DataRoot
from replaylab.replay import ReplayEngine, RunFollower, checkpoints, targets
from replaylab.replay.checkpoints import Checkpoints, RunRecorder, Tape
from replaylab.sessions import Session, SessionStore
from replaylab.testing import SessionBuilder
from replaylab.trading import TradingSystem
from tests.replay.helpers import START, Collector, market, ticks
from tests.replay.test_determinism import EAGER, MODES, events
from tests.replay.test_player import state_event

INF = math.inf
SETTINGS = [
    EAGER,
    TradingParams(entry_threshold=0.2, tp1_pct=0.1, tp2_pct=0.2, sl_pct=0.1, max_hold_s=5, cooldown_s=1),
    TradingParams(
        entry_threshold=0.1, entry_order="LIMIT", entry_offset_bps=5, entry_ttl_s=3, stop_latency_ms=1500
    ),
    TradingParams(
        entry_threshold=0.1, max_trades_per_day=3, max_daily_loss_usd=1, trailing_activation_pct=0.05
    ),
]


@contextmanager
def every(stride: int, *, shown: int = 1 << 22, most_bytes: int = 1 << 28) -> Iterator[None]:
    """Make a checkpoint at each multiple of ``stride``, whatever it costs; ``shown``: bytes of the logs per flush."""
    often = partial(Checkpoints, share=0, most_bytes=most_bytes)
    with (
        mock.patch.dict(targets._STRIDE, dict.fromkeys(MODES, stride)),
        mock.patch.object(targets, "Checkpoints", often),
        mock.patch.object(checkpoints, "_SHORTEST", 1),
        mock.patch.object(RunRecorder.flush, "__defaults__", (shown,)),
    ):
        yield


def files_of(folder: Path) -> dict[str, bytes]:
    """All that a run shows, without ``run.json``, in which its id and wall times are."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def shown_by(folder: Path) -> dict[str, bytes]:
    """The files of a run that is not over, without its tape."""
    return {name: data for name, data in files_of(folder).items() if name[0] != "."}


def straight(session: Session, params: TradingParams, index: int | None = None, **options: Any) -> Any:
    """Play without checkpoints, to the end or to an event; return digest, totals and files."""
    engine = ReplayEngine(SessionStore(session.root), params=params)
    engine.start_session(session, INF, overload="skip", paused=True, **options)
    assert engine.get_status().seek_ready is None
    return ended(engine, index)


def ended(engine: ReplayEngine, index: int | None = None) -> Any:
    if index is None:
        engine.resume()
        assert engine.wait(60)
    else:
        engine.seek(index)
        engine.stop()
    run = engine.last_run
    assert run is not None
    assert not list(run.path.glob(".*"))
    return run.digest, run.totals, run.unusable, files_of(run.path)


def session_of(folder: str, found: list[tuple[int, str, str, float]]) -> Session:
    builder = SessionBuilder(START)
    for at, kind, symbol, value in found:
        if kind == "trade":
            builder.trade(symbol, 100 + value, at=at, side="SELL" if value < 0 else "BUY")
        elif kind == "score":
            builder.score(symbol, value, at=at, price=100 + value)
        elif kind == "regime":
            builder.regime(symbol, "CALM" if value < 0 else "WILD", at=at)
        elif kind == "risk":
            builder.risk(symbol if value < 0 else None, at=at, force_close=value < -0.5)
        elif kind == "book":
            builder.book(symbol, [[99 + value, 1]], [[101 + value, 2]], at=at)
        else:
            builder.event("SCORING_UPDATE", symbol, {"score": "high"}, at=at)
    builder.event("NOTE", "A", {}, at=1_000)
    return builder.build(folder, "s")


COMMANDS = st.lists(
    st.tuples(
        st.sampled_from(["seek", "seek", "seek", "step", "play", "scout", "speed"]), st.integers(0, 70)
    ),
    max_size=9,
)


@settings(max_examples=25, deadline=None)
@given(events(), st.sampled_from(MODES), st.sampled_from(SETTINGS), COMMANDS, st.integers(1, 9), st.data())
def test_any_way_through_any_session_is_straight_play(
    found: list[tuple[int, str, str, float]],
    mode: str,
    params: TradingParams,
    commands: list[tuple[str, int]],
    stride: int,
    data: st.DataObject,
) -> None:
    """Seeks to and fro, steps, stretches of play, a scout ahead or not: digest, totals and every file are the same."""
    stop = data.draw(st.none() | st.integers(0, len(found) + 1), label="stop at")
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(folder, found)
        total = session.events.height
        try:
            expected = straight(session, params, stop, inject_mode=mode)
        except PriceError:
            return
        engine = ReplayEngine(SessionStore(folder), params=params)
        with every(stride, shown=data.draw(st.sampled_from([50, 1 << 22])), most_bytes=30_000):
            engine.start_session(session, INF, inject_mode=mode, paused=True)
            for command, number in commands:
                index = min(number, total)
                if command == "seek":
                    assert engine.seek(index) == index
                elif command == "step":
                    engine.step(1 + number % 7)
                elif command == "play" and engine.get_status().current_event_index < total - 1:
                    # At a speed that leaves room between events; the last one stays far away.
                    engine.set_speed(5)
                    engine.resume()
                    time.sleep(0.005)
                    engine.pause()
                elif command == "scout":
                    wait_for_scout(engine, total)
                else:
                    engine.set_speed(INF)
            engine.set_speed(INF)
            assert ended(engine, stop) == expected


def wait_for_scout(engine: ReplayEngine, total: int) -> None:
    limit = time.monotonic() + 20
    while engine.get_status().seek_ready != total:
        assert time.monotonic() < limit
        time.sleep(0.001)


@pytest.mark.parametrize("mode", MODES)
def test_after_each_seek_the_logs_are_those_of_the_place(tmp_path: Path, mode: str) -> None:
    """Paused after a seek, system and files are as if the run had been played to there and no further."""
    session = market(tmp_path, seconds=60)
    total = session.events.height
    expected = {index: straight(session, EAGER, index, inject_mode=mode) for index in (0, 60, 301, total - 5)}
    engine = ReplayEngine(SessionStore(tmp_path), params=EAGER)
    engine.start_session(session, INF, inject_mode=mode, paused=True, overload="skip")
    wanted = {index: (engine.seek(index), engine.views())[1] for index in sorted(expected)}
    engine.stop()
    with every(16):
        engine.start_session(session, INF, inject_mode=mode, paused=True)
        for index in (301, 60, total - 5, 0, 301, total - 5, 60):
            engine.seek(index)
            views = engine.views()
            run = engine._run
            assert run is not None
            # Files that grow from the tape are whole a moment later.
            limit = time.monotonic() + 10
            while shown_by(run.result.path) != expected[index][3]:
                assert time.monotonic() < limit
                time.sleep(0.001)
            assert views == wanted[index]
        engine.stop()


def test_followers_see_each_record_once(tmp_path: Path) -> None:
    """Someone who reads along while the run is sought to and fro has at the end what the logs hold, no line twice."""
    session = market(tmp_path, seconds=120)
    total = session.events.height
    follower, seen, over = RunFollower(tmp_path), [], threading.Event()

    def follow() -> None:
        last = False
        while True:
            news = follower.poll()
            if news.began:
                seen.clear()
            seen.extend(news.records)
            # No line twice, at any time.
            lines = [repr(one) for one in seen]
            assert len(lines) == len(set(lines)), "a record was shown twice"
            if last and not news.records:
                return
            last = over.is_set()

    failed: list[BaseException] = []
    thread = threading.Thread(target=lambda: _caught(follow, failed))
    engine = ReplayEngine(SessionStore(tmp_path), params=EAGER)
    with every(32, shown=20_000):
        engine.start_session(session, INF, paused=True)
        thread.start()
        for index in (500, 100, 700, 20, 900, 899, 0, 600, 300, total - 1, 50):
            engine.seek(index)
            engine.step(7)
            time.sleep(0.02)
        engine.resume()
        assert engine.wait(60)
    over.set()
    thread.join(60)
    follower.close()
    assert not failed, failed
    assert engine.last_run is not None
    counts = engine.last_run.record["counts"]
    assert len(seen) == counts["stateEvents"] + counts["orders"] + counts["trades"]
    assert engine.get_status().rewinds == 6


def _caught(work: Any, failed: list[BaseException]) -> None:
    try:
        work()
    except BaseException as error:
        failed.append(error)


def test_a_seek_goes_to_a_checkpoint_and_a_scout_makes_those_ahead(tmp_path: Path) -> None:
    """Once the scout was there, no seek plays more than a stride of events."""
    session = market(tmp_path, seconds=120)
    total = session.events.height
    engine = ReplayEngine(SessionStore(tmp_path), params=EAGER)
    with every(64):
        engine.start_session(session, INF, paused=True)
        wait_for_scout(engine, total)
        assert engine.get_status().current_event_index == 0
        assert engine.views()[0]["price"] is None
        played = 0
        taken = TradingSystem.on_event

        def counted(self: TradingSystem, *event: Any) -> None:
            nonlocal played
            played += 1
            taken(self, *event)

        with mock.patch.object(TradingSystem, "on_event", counted):
            for index in (total - 1, 1, 500, 499, 333, total):
                played = 0
                engine.seek(index)
                assert played == index % 64 or index == total
        engine.seek(5)
        engine.stop()


def test_without_checkpoints_a_seek_back_plays_from_the_start(tmp_path: Path) -> None:
    """A handler of one's own cannot be copied: the status says that there are no checkpoints."""
    ticks(tmp_path, [0.0] * 9)
    handler = Collector()
    engine = ReplayEngine(SessionStore(tmp_path), handler)
    engine.start_session("ticks", paused=True)
    engine.seek(7)
    engine.seek(3)
    assert handler.resets == 2
    assert engine.get_status().seek_ready is None
    assert engine.get_status().rewinds == 1
    engine.stop()


def test_a_rule_that_keeps_a_state_is_found_out(tmp_path: Path) -> None:
    """Events that are played again must give the same records; where they do not, the run says so and ends."""
    asked = []

    @exit_rule(compiled=False)
    def moody(trade: Any, price: float) -> float:
        asked.append(price)
        return -1.0 if len(asked) > 150 else 0.0

    session = market(tmp_path, seconds=120)
    engine = ReplayEngine(SessionStore(tmp_path), params=EAGER, rule=moody)
    with every(16):
        engine.start_session(session, INF, paused=True)
        engine.seek(800)
        assert len(asked) > 150
        engine.seek(3)
        engine.resume()
        with pytest.raises(ReplayError, match="keeps a state of its own"):
            engine.wait(60)


def test_too_many_checkpoints_thin_out(tmp_path: Path) -> None:
    recorder = RunRecorder(DataRoot(tmp_path))
    system = TradingSystem(recorder=recorder, price_sources={"A": "trade"})
    size = len(checkpoints.freeze(system))
    found = Checkpoints(4, most_bytes=10 * size + size // 2, share=0)
    for index in range(0, 400, 4):
        if found.due(index):
            found.add(index, system, recorder)
    assert found.spacing >= 32
    assert found.before(399).index >= 399 - 2 * found.spacing
    assert found.before(3).index == 0


def test_the_tape_brings_back_what_was_cut(tmp_path: Path) -> None:
    """The shown log gets shorter as a new file, and grows again from the tape, in whole lines."""
    root = DataRoot(tmp_path)
    recorder = RunRecorder(root)
    path = root.events("AAA")
    places = []
    for number in range(100):
        places.append(recorder.place())
        recorder.log_state_event("AAA", state_event(number))
    recorder.flush()
    whole, inode = path.read_bytes(), path.stat().st_ino
    recorder.go_to(places[10])
    recorder.flush()
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:10])
    assert path.stat().st_ino != inode
    recorder.go_to(places[90])
    with mock.patch.object(checkpoints, "_SHORTEST", 1):
        recorder.flush(400)
        assert recorder.behind
        shown = path.read_bytes()
        assert whole.startswith(shown)
        assert shown.endswith(b"\n")
    for number in range(90, 120):
        recorder.log_state_event("AAA", state_event(number))
    recorder.close()
    assert path.read_bytes().startswith(whole)
    assert path.read_bytes().count(b"\n") == 120
    assert not (tmp_path / checkpoints.TAPE_FOLDER).exists()
    assert Tape(root).logs == []
