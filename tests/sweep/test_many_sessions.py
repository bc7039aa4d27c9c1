"""Sweeps over several sessions equal the sessions' backtests put together by hand, also when they overlap in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaylab import CLOSE, HOLD, exit_rule
from replaylab.errors import SweepError
from replaylab.params import TradingParams
from replaylab.sessions import Session, SessionStore, save_session_frame
from replaylab.sweep import StudyResult, backtest, sweep
from replaylab.sweep import study as study_module
from replaylab.sweep.fills import RAW, add_trade
from replaylab.sweep.result import metrics

BASE = TradingParams(tp1_fraction=0.0, break_even_offset_pct=None, max_hold_s=30.0, rounding="none")
GRID = {"entry_threshold": [0.1, 0.3, 0.6], "sl_pct": [0.1, 0.4], "market_fill": ["print", "auto"]}


def market(seed: int, symbols: int, start: int) -> pl.DataFrame:
    """A random walk of prints for each symbol, and a score after every fifth of them."""
    rng = np.random.default_rng(seed)
    rows = []
    for name in ("AIUSDT", "BTCUSDT")[:symbols]:
        times = start + np.cumsum(rng.integers(1, 400_000_000, 1200))
        prices = np.round(100 * np.exp(np.cumsum(rng.normal(0, 5e-4, 1200))), 2)
        rows += [
            (int(ts), "MARKET_TRADE", name, f'{{"price":{price},"qty":1.0,"side":"BUY"}}')
            for ts, price in zip(times, prices, strict=True)
        ]
        rows += [
            (int(ts) + 1, "SCORING_UPDATE", name, f'{{"score":{score}}}')
            for ts, score in zip(times[::5], rng.uniform(-1, 1, 240).round(3), strict=True)
        ]
    frame = pl.DataFrame(sorted(rows), schema=["timestamp", "type", "symbol", "payload"], orient="row")
    return frame.with_columns(pl.col("timestamp").cast(pl.Datetime("ns", "UTC")))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SessionStore:
    """Three sessions one after another, and two more in the time of the second."""
    root = tmp_path_factory.mktemp("data")
    start = 1_700_000_000_000_000_000
    for place, (name, symbols) in enumerate((("a", 2), ("b", 1), ("b-other", 2), ("b-third", 1), ("c", 2))):
        begin = start + 300_000_000_000 * (0 if name == "a" else 2 if name == "c" else 1)
        save_session_frame(root, market(place, symbols, begin), name)
    return SessionStore(root)


def opened(store: SessionStore, *names: str) -> list[Session]:
    return [store.open(name) for name in names]


def longest(pnl: list[float], sign: float) -> int:
    """The longest run of trades whose PnL has a sign."""
    return max((len(list(run)) for won, run in groupby(pnl, lambda x: sign * x > 0.0) if won), default=0)


def by_hand(sessions: list[Session], params: TradingParams) -> dict[str, float]:
    """Pooled metrics from the trades of each session, in the order of their exits."""
    trades = pl.concat(
        backtest(one, params).trades.sort("exit_index", maintain_order=True) for one in sessions
    )
    pnl = trades.sort("exit_time", maintain_order=True)["realized_pnl"].to_numpy()
    equity = np.concatenate([[0.0], np.cumsum(pnl)])
    spread = pnl.std(ddof=1) if len(pnl) > 1 else np.nan
    return {
        "n_trades": len(pnl),
        "n_wins": int((pnl > 0).sum()),
        "net_pnl": float(pnl.sum()),
        "fees": float(trades["fees"].sum()),
        "max_drawdown": float((equity - np.maximum.accumulate(equity)).min()),
        "max_win_streak": longest(pnl.tolist(), 1.0),
        "max_loss_streak": longest(pnl.tolist(), -1.0),
        "sharpe_per_trade": float(pnl.mean() / spread) if len(pnl) > 1 and spread > 0 else np.nan,
        "n_stop_loss": int((trades["reason"] == "STOP_LOSS").sum()),
    }


@pytest.mark.parametrize("names", [("a", "b", "c"), ("c", "b-third", "a", "b", "b-other"), ("b", "b-other")])
def test_pooled_metrics_are_those_of_all_trades_in_order(store: SessionStore, names: tuple[str, ...]) -> None:
    sessions = opened(store, *names)
    study = sweep(sessions, GRID, BASE, progress=False)
    assert isinstance(study, StudyResult)
    assert sorted(study.sessions) == sorted(names)
    for row in range(study.frame.height):
        expected = by_hand([store.open(name) for name in study.sessions], study.params_of(row))
        found = study.frame.row(row, named=True)
        assert found["n_trades"] > 3
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), (row, name)
        trades = study.trades(row)
        assert trades["exit_time"].is_sorted()
        assert trades["realized_pnl"].sum() == pytest.approx(found["net_pnl"], abs=1e-9)
    alone = sweep(sessions[0], GRID, BASE, progress=False).frame
    mine = study.by_session.filter(session_id=sessions[0].id).drop("row", "session_id")
    assert mine.equals(alone)
    whole = study.by_session.group_by("row", maintain_order=True).agg(pl.col("net_pnl", "n_trades").sum())
    np.testing.assert_allclose(whole["net_pnl"], study.frame["net_pnl"], atol=1e-9)
    symbols = study.by_symbol.group_by("row", maintain_order=True).agg(pl.col("net_pnl", "n_trades").sum())
    np.testing.assert_allclose(symbols["net_pnl"], study.frame["net_pnl"], atol=1e-9)
    assert symbols["n_trades"].to_list() == study.frame["n_trades"].to_list()
    for mine in study.by_symbol.iter_rows(named=True):
        pnl = study.trades(mine["row"]).filter(symbol=mine["symbol"])["realized_pnl"].to_list()
        assert mine["max_win_streak"] == longest(pnl, 1.0)
        assert mine["max_loss_streak"] == longest(pnl, -1.0)
        equity = np.concatenate([[0.0], np.cumsum(pnl)])
        lowest = (equity - np.maximum.accumulate(equity)).min()
        assert mine["max_drawdown"] == pytest.approx(lowest, abs=1e-9)
    for every in (96, "1m"):
        clock, (_, pnl) = study.clock(every), study.pnl_by_period(every)
        ends = study.trades(2)["exit_time"].dt.timestamp("ns").to_numpy()
        place = np.clip((ends - clock.start) // clock.length, 0, clock.periods - 1)
        np.testing.assert_allclose(
            pnl[:, 2], np.bincount(place, study.trades(2)["realized_pnl"], clock.periods), atol=1e-9
        )
    assert study.verdict().level in ("insufficient", "luck", "fails_out_of_sample", "supported")
    assert f"prices are those of {len(names)} sessions" in study.assumptions


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=6), min_size=1, max_size=5))
def test_streaks_run_on_from_session_to_session(sessions: list[list[float]]) -> None:
    """Also over sessions without trades, and of one run only; a trade of 0 ends a run."""
    sums = []
    for session in sessions:
        sums.append(np.zeros((1, RAW)))
        for pnl in session:
            add_trade(sums[-1][0], pnl, 0.0, 0.0, 0, 1, 0, False, np.nan)
    pooled = sums[0]
    for one in sums[1:]:
        pooled = study_module._pool(pooled, one)
    found, pnl = metrics(pooled).row(0, named=True), list(chain(*sessions))
    assert found["max_win_streak"] == longest(pnl, 1.0)
    assert found["max_loss_streak"] == longest(pnl, -1.0)
    equity = np.concatenate([[0.0], np.cumsum(pnl)])
    assert found["max_drawdown"] == (equity - np.maximum.accumulate(equity)).min()


def test_assumptions_are_those_of_all_sessions(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spacings are medians over sessions, holes are added up, pauses between sessions are none; it names the rule."""

    @exit_rule(seconds=20.0)
    def too_old(trade, price, seconds):  # type: ignore[no-untyped-def]
        return CLOSE if trade.age_s > seconds else HOLD

    params = BASE.replace(max_gap_s=0.3, max_open_positions=1)
    sessions = opened(store, "a", "b", "c")
    study = sweep(sessions, {"sl_pct": [0.1, 0.2]}, params, rule=too_old, progress=False)
    pauses = []
    for one in sessions:
        mine = one.events.filter(type="MARKET_TRADE", symbol="BTCUSDT")["timestamp"].dt.timestamp("ns")
        pauses.append(mine.unique().sort().diff().drop_nulls().to_numpy())
    pauses = [one for one in pauses if len(one)]
    holes = sum(int((one > 300_000_000).sum()) for one in pauses)
    apart = np.median([np.median(one) for one in pauses]) / 1e9
    text = study.assumptions
    assert f"BTCUSDT trade ({apart:.3g} s apart)" in text
    assert (
        f"{holes:,} holes (longest {max(one.max() for one in pauses) / 1e9:.3g} s)"
        in text.split("BTCUSDT")[1]
    )
    assert "exit rule too_old(seconds=20)" in text
    assert "account limits hold within each session only" in text
    monkeypatch.setattr(study_module, "_CHECKED", 10)
    large = sweep(sessions, {"sl_pct": [0.1, 0.2]}, params, progress=False)
    assert "prices are those of the first of 3 sessions" in large.assumptions


def test_a_saved_study_is_loaded_as_a_sweep(store: SessionStore, tmp_path: Path) -> None:
    study = sweep(opened(store, "a", "b"), GRID, BASE, progress=False)
    loaded = StudyResult.load(study.save(tmp_path / "study.parquet"))
    assert loaded.frame.equals(study.frame)
    assert loaded.session_id == "2 sessions, a to b"
    assert loaded.verdict().level == study.verdict().level


def test_events_of_one_session_are_in_memory_at_a_time(store: SessionStore) -> None:
    sessions = opened(store, "a", "b", "c")
    study = sweep(sessions, GRID, BASE, progress=False)
    study.trades(0)
    assert [one._held for one in sessions] == [None] * 3


def test_every_executor_gives_the_same_to_the_bit(store: SessionStore) -> None:
    sessions = opened(store, "a", "b", "b-other", "c")
    here = sweep(sessions, GRID, BASE, progress=False, threads=1)
    assert sweep(sessions, GRID, BASE, progress=False, threads=2).frame.equals(here.frame)
    with ProcessPoolExecutor(2) as pool:
        assert sweep(sessions, GRID, BASE, progress=False, executor=pool).frame.equals(here.frame)


def test_signals_of_all_sessions_in_one_frame(store: SessionStore) -> None:
    sessions = opened(store, "a", "b", "c")
    frames = [
        one.events.filter(pl.col("type").str.starts_with("MARKET_")).sample(60, seed=3) for one in sessions
    ]
    rng = np.random.default_rng(0)
    signals = pl.concat(frames).select("timestamp", "symbol").drop_nulls().unique(maintain_order=True)
    signals = signals.with_columns(score=pl.Series(rng.uniform(-1, 1, signals.height)))
    study = sweep(sessions, {"entry_threshold": [0.2, 0.5]}, BASE, signals=signals, progress=False)
    for row in range(2):
        total = 0.0
        for one in sessions:
            start, end = one.events["timestamp"][0], one.events["timestamp"][-1]
            mine = signals.filter(pl.col("timestamp").is_between(start, end))
            total += backtest(one, study.params_of(row), signals=mine).metrics["net_pnl"]
        assert study.frame["net_pnl"][row] == pytest.approx(total, abs=1e-9)
    with pytest.raises(SweepError, match="no session has the symbol 'XUSDT'"):
        sweep(sessions, GRID, BASE, signals=signals.with_columns(symbol=pl.lit("XUSDT")), progress=False)
    only = signals.filter(pl.col("timestamp") <= sessions[0].events["timestamp"][-1])
    assert (
        sweep(sessions, GRID, BASE, signals=only, progress=False)
        .by_session.filter(session_id="c")["n_trades"]
        .sum()
        == 0
    )


def test_a_list_that_cannot_be_swept_says_why(store: SessionStore, tmp_path: Path) -> None:
    a, b = opened(store, "a", "b")
    with pytest.raises(SweepError, match="list of sessions is empty"):
        sweep([], GRID, BASE, progress=False)
    with pytest.raises(SweepError, match="session a is in the list twice"):
        sweep([a, b, a], GRID, BASE, progress=False)
    with pytest.raises(SweepError, match="folder= keeps the parts"):
        sweep(a, GRID, BASE, progress=False, folder=tmp_path)
    events = a.events
    for name, sl in (("x", 0.3), ("y", 0.4)):
        shifted = events.with_columns(pl.col("timestamp").dt.offset_by("1d" if name == "y" else "0s"))
        save_session_frame(tmp_path, shifted, name, recorded_params=BASE.replace(sl_pct=sl))
    pair = opened(SessionStore(tmp_path), "x", "y")
    with pytest.raises(SweepError, match=r"different parameters: sl_pct is 0.3 in x and 0.4 in y"):
        sweep(pair, {"tp2_pct": [1.0]}, progress=False)
    assert sweep(pair, {"sl_pct": [0.3]}, progress=False).frame.height == 1

    @exit_rule
    def divides(trade, price):  # type: ignore[no-untyped-def]
        return 1.0 / (trade.qty - trade.qty)

    with pytest.raises(SweepError, match=r"session a: divides\(\) raised ZeroDivisionError.*at event"):
        sweep([a, b], GRID, BASE, rule=divides, progress=False)


KILLED = """
import sys
from pathlib import Path
from replaylab.params import TradingParams
from replaylab.sessions import SessionStore
from replaylab.sweep import study
import os, signal
from tests.sweep.test_many_sessions import BASE, GRID
root, folder = sys.argv[1:]
write = study.write_part
def write_and_die(path, key, raw):
    write(path, key, raw)
    if len(list(Path(folder).glob("*.parquet"))) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
study.write_part = write_and_die
store = SessionStore(root)
study.sweep([store.open(name) for name in ("a", "b", "c")], GRID, BASE, progress=False, folder=folder)
"""


def test_a_killed_study_continues_where_it_was(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done is not done again; the result is that of a study that was never killed."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(store.root.path), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert len(kept) == 2
    sessions = opened(store, "a", "b", "c")
    again = sweep(sessions, GRID, BASE, progress=False, folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    assert again.frame.equals(sweep(sessions, GRID, BASE, progress=False).frame)
    # Another grid, and a file that was cut, are not taken for what is asked.
    one = next(iter(kept))
    whole = one.read_bytes()
    damaged = [bytearray(whole) for _ in range(3)]
    for place, byte in enumerate((200, len(whole) // 2, len(whole) - 40)):
        damaged[place][byte] ^= 0xFF
    for data in (b"", b"PAR1", whole[:-9], *damaged):
        one.write_bytes(data)
        assert sweep(sessions, GRID, BASE, progress=False, folder=tmp_path).frame.equals(again.frame)
    with pytest.raises(SweepError, match=r"folder: .* cannot be used"):
        sweep(sessions, GRID, BASE, progress=False, folder=one)
    other: Any = {**GRID, "sl_pct": [0.2, 0.5]}
    assert not sweep(sessions, other, BASE, progress=False, folder=tmp_path).frame.equals(again.frame)


def test_the_folder_tells_sweeps_apart(store: SessionStore, tmp_path: Path) -> None:
    """Other regime sets, bases and signals are other sums; a model has no identity that a file could keep."""
    sessions = opened(store, "a", "c")
    for base in (BASE, BASE.replace(allowed_regimes=("CALM",)), BASE.replace(taker_fee_bps=9.0)):
        kept = sweep(sessions, GRID, base, progress=False, folder=tmp_path)
        assert kept.frame.equals(sweep(sessions, GRID, base, progress=False).frame)
    for sets in ([None, ("CALM",)], [None, ()]):
        grid = {"allowed_regimes": sets}
        assert sweep(sessions, grid, BASE, progress=False, folder=tmp_path).frame.equals(
            sweep(sessions, grid, BASE, progress=False).frame
        )

    class Model:
        def predict(self, rows: Any) -> Any:
            return np.zeros(len(rows))

    with pytest.raises(SweepError, match="cannot tell one scoring model from another"):
        sweep(sessions, GRID, BASE, scoring=Model(), progress=False, folder=tmp_path)
