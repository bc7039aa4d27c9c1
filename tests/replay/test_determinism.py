"""The same session and parameters give the same run, at every speed, however it is steered, in any process."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab.errors import PriceError
from replaylab.params import TradingParams
from replaylab.replay import ReplayEngine, ReplayRun
from replaylab.sessions import Session, SessionStore
from replaylab.testing import SessionBuilder
from tests.replay.helpers import START, market

INF = math.inf
EAGER = TradingParams(entry_threshold=0.3, max_hold_s=20.0, cooldown_s=2.0, latency_ms=300)
MODES = ["SCORING_ONLY", "FULL_DECISION"]


def play(session: Session, params: TradingParams = EAGER, **options: object) -> ReplayRun:
    engine = ReplayEngine(SessionStore(session.root), params=params)
    engine.start_session(session, **{"speed_factor": INF, **options})  # type: ignore[arg-type]
    assert engine.wait(60)
    run = engine.last_run
    assert run is not None
    assert run.record["outcome"] == "finished"
    return run


@pytest.mark.parametrize("mode", MODES)
def test_every_speed_gives_the_same_run(tmp_path: Path, mode: str) -> None:
    session = market(tmp_path, seconds=90)
    fast = play(session, inject_mode=mode)
    timed = play(session, inject_mode=mode, speed_factor=150)
    assert timed.digest == fast.digest
    for table in ("trades", "orders", "events"):
        columns = [name for name in getattr(fast, table).columns if name != "file"]
        assert getattr(timed, table).select(columns).equals(getattr(fast, table).select(columns))
    assert fast.record["counts"]["stateEvents"] > 100


@pytest.mark.parametrize("seed", range(4))
def test_steering_changes_nothing(tmp_path: Path, seed: int) -> None:
    """Pauses, steps, seeks to and fro and changes of speed, at random: the run is the same as a straight one."""
    session = market(tmp_path, seconds=90)
    straight = play(session)
    rng = random.Random(seed)
    engine = ReplayEngine(SessionStore(tmp_path), params=EAGER)
    engine.start_session(session, speed_factor=100)
    total = session.events.height
    for _ in range(12):
        time.sleep(rng.uniform(0, 0.01))
        rng.choice(
            [
                engine.pause,
                engine.resume,
                lambda: engine.step(rng.randrange(1, 30)),
                lambda: engine.seek(rng.randrange(total // 2)),
                lambda: engine.seek("2025-11-18T10:00:20Z"),
                lambda: engine.set_speed(rng.choice([10, 100, 1000])),
            ]
        )()
    engine.resume()
    engine.set_speed(INF)
    assert engine.wait(30)
    assert engine.last_run is not None
    assert engine.last_run.digest == straight.digest
    assert engine.last_run.trades.drop("file").equals(straight.trades.drop("file"))


def test_another_process_gives_the_same_digest(tmp_path: Path) -> None:
    session = market(tmp_path, seconds=60)
    code = (
        "import asyncio, math, sys; from replaylab import ReplayEngine, TradingParams\n"
        f"engine = ReplayEngine({str(tmp_path)!r}, params=TradingParams.from_dict({EAGER.to_dict()!r}))\n"
        f"run = asyncio.run(engine.run_session({session.id!r}, speed_factor=math.inf, inject_mode=sys.argv[1]))\n"
        "print(run.digest)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "TZ": "America/Lima"}
    for mode in MODES:
        answer = subprocess.run(
            [sys.executable, "-c", code, mode],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        assert answer.stdout.strip() == play(session, inject_mode=mode).digest


def test_a_run_repeated_by_the_same_engine_is_the_same(tmp_path: Path) -> None:
    """Nothing of a run is left in the engine for the next one."""
    session = market(tmp_path, seconds=60)
    engine = ReplayEngine(SessionStore(tmp_path), params=EAGER)
    digests = set()
    for _ in range(3):
        engine.start_session(session.id, speed_factor=INF)
        engine.wait()
        assert engine.last_run is not None
        digests.add(engine.last_run.digest)
    assert len(digests) == 1


def test_the_digest_tells_runs_apart(tmp_path: Path) -> None:
    """Other parameters or another session give another digest; run ids and wall times are not in it."""
    session, other = market(tmp_path, seconds=60), market(tmp_path, "other", seconds=60, seed=2)
    first, again = play(session), play(session)
    assert first.id != again.id
    assert first.digest == again.digest
    assert play(session, EAGER.replace(sl_pct=0.05)).digest != first.digest
    assert play(other).digest != first.digest
    assert play(session, inject_mode="FULL_DECISION").digest != first.digest


def test_handlers_of_ones_own_get_a_digest_of_what_was_emitted(tmp_path: Path) -> None:
    class Nothing:
        def handle_event(self, event: object) -> None: ...

    session = market(tmp_path, seconds=10)
    digests = []
    for speed in (INF, 500.0):
        engine = ReplayEngine(SessionStore(tmp_path), Nothing())
        engine.start_session(session, speed_factor=speed)
        engine.wait()
        assert engine.last_run is not None
        digests.append(engine.last_run.digest)
    assert digests[0] == digests[1]


def events() -> st.SearchStrategy[list[tuple[int, str, str, float]]]:
    kinds = st.sampled_from(["trade", "score", "regime", "risk", "book", "odd"])
    return st.lists(
        st.tuples(st.integers(0, 40), kinds, st.sampled_from("AB"), st.floats(-1, 1)), max_size=60
    )


@settings(max_examples=20, deadline=None)
@given(events(), st.sampled_from(MODES), st.integers(0, 60))
def test_any_session_is_deterministic(found: list[tuple[int, str, str, float]], mode: str, back: int) -> None:
    """Sessions of any mixture, unusable events among them: straight, and after a seek to anywhere and back."""
    builder = SessionBuilder(START)
    for at, kind, symbol, value in found:
        if kind == "trade":
            builder.trade(symbol, 100 + value, at=at, side="SELL" if value < 0 else "BUY")
        elif kind == "score":
            builder.score(symbol, value, at=at, price=100 + value)
        elif kind == "regime":
            builder.regime(symbol, "CALM" if value < 0 else "WILD", at=at)
        elif kind == "risk":
            builder.risk(
                symbol if value < 0 else None, at=at, trading_blocked=value > 0.5, force_close=value < -0.5
            )
        elif kind == "book":
            builder.book(symbol, [[99 + value, 1]], [[101 + value, 2]], at=at)
        else:
            builder.event("SCORING_UPDATE", symbol, {"score": "high"}, at=at)
    params = TradingParams(entry_threshold=0.2, tp1_pct=0.1, tp2_pct=0.2, sl_pct=0.1, max_hold_s=5)
    with tempfile.TemporaryDirectory() as folder:
        session = builder.build(folder, "s")
        try:
            straight = play(session, params, inject_mode=mode)
        except PriceError:
            # Nothing to trade at: refused, and no session of this test.
            return
        engine = ReplayEngine(SessionStore(folder), params=params)
        engine.start_session(session, speed_factor=INF, inject_mode=mode, paused=True)
        engine.seek(len(found))
        engine.seek(min(back, len(found)))
        engine.resume()
        engine.wait()
        assert engine.last_run is not None
        assert engine.last_run.digest == straight.digest
        assert engine.last_run.unusable == straight.unusable
        record = json.loads((straight.path / "run.json").read_text())
        assert record["digest"] == straight.digest
