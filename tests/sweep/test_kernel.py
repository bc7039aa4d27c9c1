"""Tables, index walk and plain loop give the same metrics to the bit; metrics are those of the trades."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings

from replaylab.errors import PriceError, ReplaylabError, SweepError
from replaylab.params import TradingParams
from replaylab.sweep.grid import Grid, make_grid
from replaylab.sweep.result import COUNTS, metrics
from replaylab.sweep.run import Positions, run_rows, trades_of
from replaylab.sweep.tables import is_plain
from replaylab.sweep.tape import Tape, pack
from tests.strategies import RandomSession, allow, cases, make_case, make_session, random_params

METHODS = ("loop", "index", "tables")


def rows_of(several: list[TradingParams]) -> Grid:
    """A grid whose rows are whole parameter sets."""
    axes = {name: [getattr(p, name) for p in several] for name in TradingParams.__struct_fields__}
    codes = {name: np.arange(len(several), dtype=np.int32) for name in axes}
    return Grid(axes, codes, len(several), {})


def all_methods(tape: Tape, grid: Grid) -> list[np.ndarray]:
    return [run_rows(tape, grid, TradingParams(), method)[0] for method in METHODS]


@pytest.mark.parametrize("block", range(5))
def test_every_method_gives_the_same_metrics_to_the_bit(block: int) -> None:
    """A dozen unlike parameter sets at a time, which share some levels, over random sessions."""
    for seed in range(20 * block, 20 * block + 20):
        session = make_session(seed, 300, 1 + seed % 3)
        several = [allow(session, random_params(100 * seed + k)) for k in range(12)]
        loop, index, tables = all_methods(pack(session, session.price_source), rows_of(several))
        assert np.array_equal(loop, index, equal_nan=True), seed
        assert np.array_equal(loop, tables, equal_nan=True), seed


@pytest.mark.parametrize("seed", range(4))
def test_a_product_shares_tables_without_mixing_them_up(seed: int) -> None:
    """Hundreds of combinations that share levels, over a longer session of three symbols."""
    tape = pack(make_session(seed, 6000, 3))
    grid = make_grid(
        {
            "entry_threshold": [0.2, 0.7],
            "latency_ms": [0, 1000],
            "slippage_bps": [0.0, 5.0],
            "tp1_pct": [0.1, 0.2],
            "tp1_fraction": [0.0, 0.5, 1.0],
            "sl_pct": [0.1, 0.5],
            "break_even_offset_pct": [None, 0.0],
            "trailing_activation_pct": [None, 0.1],
            "max_hold_s": [None, 60.0],
            "exit_threshold": [None, 0.0],
        }
    )
    loop, index, tables = all_methods(tape, grid)
    assert loop[:, 0].sum() > 10_000
    assert np.array_equal(loop, index)
    assert np.array_equal(loop, tables)


@pytest.mark.parametrize("seed", range(2))
def test_a_product_of_fills_shares_tables_too(seed: int) -> None:
    """Sizes, books, queues, LIMIT entries and holes as axes: rows that differ in them share no level by mistake."""
    session = make_session(seed + 30, 2000, 2)
    grid = make_grid(
        {
            "market_fill": ["print", "auto"],
            "limit_fill": ["touch", "through"],
            "entry_order": ["MARKET", "LIMIT"],
            "entry_ttl_s": [None, 5.0],
            "notional_usd": [1000.0, 100_000.0],
            "risk_per_trade_usd": [None, 20.0],
            "max_book_age_s": [1.0, None],
            "max_gap_s": [30.0, None],
            "rounding": ["exchange", "none"],
            "stop_latency_ms": [0, 500],
            "tp1_fraction": [0.0, 0.4],
            "sl_pct": [0.1, 0.5],
        },
        TradingParams(entry_threshold=0.2, tp1_pct=0.1, tp2_pct=0.3),
    )
    loop, index, tables = all_methods(pack(session, "auto"), grid)
    assert loop[:, 0].sum() > 10_000
    assert np.array_equal(loop, index, equal_nan=True)
    assert np.array_equal(loop, tables, equal_nan=True)


@pytest.mark.parametrize("latency_ms", [0, 200])
@pytest.mark.parametrize("cooldown_s", [0, 3])
@pytest.mark.parametrize("seed", range(6))
def test_targets_and_stops_have_a_kernel_of_their_own(
    seed: int, cooldown_s: float, latency_ms: float
) -> None:
    """One symbol, all fills, over holes, on two threads that fill the same tables: the sums of the loop."""
    session = make_session(seed, 4000, 1)
    kept = ("MARKET_TRADE", "MARKET_BOOK", "SCORING_UPDATE", "REGIME_UPDATE")
    session.raw = [event for event in session.raw if event[1] in kept and event[2]]
    tape = pack(RandomSession(session.raw, {}, "auto", session.instruments))
    tick = session.instruments.get("AAA", {}).get("tickSize")
    queue = tape.sources == ("trade",) and isinstance(tick, (int, float)) and bool(tape.prices.books)
    base = TradingParams(
        tp1_fraction=0.0, tp1_pct=0.0, notional_usd=2000.0, cooldown_s=cooldown_s, latency_ms=latency_ms
    )
    grid = make_grid(
        {
            "entry_threshold": [0.2, 0.7],
            "max_gap_s": [None, 5.0],
            "market_fill": ["print", "quote", "book"] if tape.prices.books else ["print"],
            "limit_fill": ["touch", "through", "queue"] if queue else ["touch", "through"],
            "entry_order": ["MARKET", "LIMIT"],
            "entry_ttl_s": [20.0],
            "tp2_pct": np.linspace(0.0, 1.0, 4),
            "sl_pct": np.linspace(0.0, 1.0, 4),
            "risk_per_trade_usd": [None, 3.0],
        },
        base,
    )

    assert is_plain(tape, grid.pack(base).params)
    loop = run_rows(tape, grid, base, "loop")[0]
    assert loop[:, 0].sum() > 1000
    for threads in (1, 2):
        tables = run_rows(tape, grid, base, "tables", threads=threads)[0]
        assert np.array_equal(loop, tables, equal_nan=True)


def test_threads_that_share_tables_see_whole_cells() -> None:
    """Many trades, many rows, many threads: the full kernel gives what one thread gives."""
    tape = pack(make_session(77, 20_000, 2))
    grid = make_grid({"sl_pct": np.linspace(0.05, 1.0, 20), "tp1_pct": np.linspace(0.05, 0.5, 20)})
    one = run_rows(tape, grid, TradingParams(), "tables", threads=1)[0]
    for _ in range(5):
        assert np.array_equal(one, run_rows(tape, grid, TradingParams(), "tables", threads=4)[0])


@settings(max_examples=60, deadline=None)
@given(cases())
def test_metrics_are_those_of_the_trades(case: tuple[RandomSession, TradingParams]) -> None:
    """Recomputed from the trades with numpy, by the formulas of docs/sweep.md."""
    session, params = case
    try:
        tape = pack(session, session.price_source)
    except PriceError:  # a symbol of the random session has no price
        reject()
    trades, one = trades_of(tape, params)
    trades = trades.sort("exit_index")
    row = metrics(run_rows(tape, rows_of([params]), params, "tables")[0]).row(0, named=True)
    pnl = trades["realized_pnl"].to_numpy()
    n = len(pnl)
    equity = np.cumsum(pnl)
    peak = np.maximum.accumulate(np.concatenate(([0.0], equity)))
    expected = {
        "n_trades": n,
        "n_wins": int((pnl > 0).sum()),
        "win_rate": (pnl > 0).mean() if n else None,
        "gross_pnl": (pnl + trades["fees"].to_numpy() - trades["funding"].to_numpy()).sum(),
        "fees": trades["fees"].sum(),
        "funding": trades["funding"].sum(),
        "net_pnl_after_gaps": trades["gap_pnl"].fill_null(trades["realized_pnl"]).sum(),
        "net_pnl": pnl.sum(),
        "expectancy": pnl.mean() if n else None,
        "max_drawdown": min(0.0, (equity - peak[1:]).min()) if n else 0.0,
        "avg_duration_s": trades["duration_seconds"].mean(),
        "exposure_s": trades["duration_seconds"].sum(),
    }
    profit, loss = pnl[pnl > 0].sum(), -pnl[pnl < 0].sum()
    if profit or loss:
        expected["profit_factor"] = profit / loss if loss else np.inf
    else:
        expected["profit_factor"] = None
    for name, value in expected.items():
        same = row[name] is None if value is None else row[name] == pytest.approx(value, rel=1e-9, abs=1e-9)
        assert same, name
    if n > 1 and pnl.std() > 1e-6:
        assert row["sharpe_per_trade"] == pytest.approx(pnl.mean() / pnl.std(ddof=1), rel=1e-6)
    else:
        assert row["sharpe_per_trade"] is None or pnl.std() > 0
    by_reason = dict(trades["reason"].value_counts().iter_rows())
    assert {name: row[name] for name in COUNTS} == {
        name: by_reason.get(name[2:].upper(), 0) for name in COUNTS
    }
    assert row["n_thin"] == trades["thin"].sum()
    assert row == one


@pytest.mark.parametrize("method", METHODS)
def test_sessions_of_nothing_have_no_trades(method: str) -> None:
    """No events; prices only; a score after the last price, which stays pending."""
    trade = (0, "MARKET_TRADE", "A", {"price": 1.0})
    score = (1, "SCORING_UPDATE", "A", {"score": 1.0})
    for raw in ([], [trade], [trade, score]):
        tape = pack(RandomSession(raw, {}, "auto"))
        metrics_of_one = metrics(run_rows(tape, rows_of([TradingParams()]), TradingParams(), method)[0])
        assert metrics_of_one.row(0, named=True)["n_trades"] == 0
        assert metrics_of_one["win_rate"][0] is None


@pytest.mark.parametrize("memory", [0, 20_000, 600_000])
def test_tables_that_do_not_fit_are_made_in_parts(memory: int) -> None:
    """Halves of the rows with tables of their own, or searches where even those are too large: same metrics."""
    tape = pack(make_session(21, 3000, 2))
    grid = make_grid({"sl_pct": np.linspace(0.05, 1.0, 40), "tp1_pct": np.linspace(0.05, 0.5, 40)})
    whole, method = run_rows(tape, grid, TradingParams(), "tables")
    assert method == "tables"
    parts, method = run_rows(tape, grid, TradingParams(), "tables", memory=memory)
    assert ("index" in method) == (memory < 100_000)
    assert np.array_equal(whole, parts)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(SweepError, match="Did you mean 'tables'"):
        run_rows(pack(make_session(1)), make_grid({"sl_pct": [0.1]}), TradingParams(), "table")


def test_single_positions_end_as_in_the_loop() -> None:
    """From the entries of the loop's own trades ``Positions`` gives the same exits, to the bit."""
    compared = 0
    for seed in range(60):
        session, params = make_case(seed)
        params = allow(session, params)
        try:
            tape = pack(session)
            trades, _ = trades_of(tape, params)
        except ReplaylabError:
            continue
        positions, arrays = Positions(tape, params), tape.arrays
        for trade in trades.iter_rows(named=True):
            low, high = arrays.price_from[tape.symbols.index(trade["symbol"]) :][:2]
            at = int(low + np.searchsorted(arrays.price_index[low:high], trade["entry_index"]))
            qty = trade["qty"] if trade["side"] == "LONG" else -trade["qty"]
            found = positions.run(at, trade["entry_price"], qty, maker=params.entry_order == "LIMIT")
            assert (found.reason, found.close_price) == (trade["reason"], trade["close_price"])
            assert arrays.price_index[found.exit_at] == trade["exit_index"]
            assert found.funding == pytest.approx(trade["funding"], abs=1e-12)
            compared += 1
    assert compared > 100


@pytest.mark.stress
def test_processes_that_start_on_a_cold_cache_compile_once(tmp_path: Path) -> None:
    """Three processes at once: all give the same, and one cache entry per kernel is left."""
    script = (
        "from replaylab.sweep import warm_up; from replaylab.compiled import cache_folder;"
        "warm_up(); print(cache_folder())"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    folders = {process.communicate(timeout=280)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(folders) == 1
    for kernel in ("run_chain", "run_loop", "run_plain", "rank_splits", "reaches"):
        assert len(list(Path(next(iter(folders))).rglob(f"*.{kernel}-*.nbc"))) == 1
