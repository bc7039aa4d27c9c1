"""What does an exit rule of one's own cost? The loop beside vectorbt and backtesting.py, a level rule beside the loop.

    python benchmarks/rules.py
    REPLAYLAB_VECTORBT=PYTHON REPLAYLAB_BACKTESTING=PYTHON python benchmarks/rules.py --ticks 200000

Five rules for all: a target that falls with the age of the trade in steps of five seconds, a stop behind the best
price, a stop that follows in steps, a share of the best profit that is gone, a trade that does not move; each with a
stop at a fixed distance. Ours runs them as exit rules (the loop asks them at every price of an open trade), the first
also as a level rule (through the block index); vectorbt as a compiled order function (its callback), backtesting.py in
``Strategy.next``. Fills at the price, without costs. Data: those of ``sweep.py``, seeded. Before a time is printed,
numbers of trades and PnL are compared. Peers run a stated part of the sets. Times are processor time per set, one
thread each, for all of them: what else the machine does changes little. Everything is compiled before it is timed.

What this does not show: the loop's cost grows with ticks and with the time in trades, a level rule's with trades and
the steps of their age. ``--dense`` has many short trades.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sweep import PRINT, make_events

from replaylab import CLOSE, HOLD, TradingParams, exit_rule, level_rule
from replaylab.sweep import make_grid, pack, warm_up
from replaylab.sweep.result import metrics
from replaylab.sweep.run import BoundRule, run_rows
from replaylab.trading import ExitRule

COSTLESS = {"slippage_bps": 0.0, "taker_fee_bps": 0.0, "maker_fee_bps": 0.0}
START_PCT, PER_MINUTE, LEAST_PCT, STEP_S = 0.6, 0.01, 0.1, 5.0


@exit_rule(start_pct=START_PCT, per_minute=PER_MINUTE, least_pct=LEAST_PCT)
def asked_at_each_price(trade, price, start_pct, per_minute, least_pct):
    age = math.floor(trade.age_s / 5.0) * 5.0
    wanted = max(start_pct - per_minute * age / 60.0, least_pct)
    level = trade.entry_price * (1.0 + trade.side * wanted / 100.0)
    return CLOSE if trade.side * (price - level) >= 0.0 else HOLD


@exit_rule(pct=0.3)
def chandelier(trade, price, pct):
    return trade.best * (1.0 - trade.side * pct / 100.0)


@exit_rule(step_pct=0.2)
def ladder(trade, price, step_pct):
    steps = math.floor(trade.side * (trade.best / trade.entry_price - 1.0) * 100.0 / step_pct)
    return trade.entry_price * (1.0 + trade.side * (steps - 1) * step_pct / 100.0) if steps >= 1 else HOLD


@exit_rule(share=0.5, least=0.002)
def gives_back(trade, price, share, least):
    won = trade.side * (trade.best - trade.entry_price)
    gone = trade.side * (price - trade.entry_price) < share * won
    return CLOSE if won > least * trade.entry_price and gone else HOLD


@exit_rule(seconds=600.0, pct=0.2)
def no_progress(trade, price, seconds, pct):
    best = trade.side * (trade.best / trade.entry_price - 1.0) * 100.0
    return CLOSE if trade.age_s >= seconds and best < pct else HOLD


# In the order of ``rules_peers.ask``.
RULES = (asked_at_each_price, chandelier, ladder, gives_back, no_progress)


@level_rule("target", every_s=STEP_S, start_pct=START_PCT, per_minute=PER_MINUTE, least_pct=LEAST_PCT)
def a_level(side, entry_price, age_s, start_pct, per_minute, least_pct):
    wanted = max(start_pct - per_minute * age_s / 60.0, least_pct)
    return entry_price * (1.0 + side * wanted / 100.0)


def timed(tape: Any, grid: Any, base: TradingParams, rule: ExitRule | None, method: str, repeat: int) -> Any:
    """Processor seconds of the median run, its metrics and its method."""
    bound = BoundRule.of(rule, tape, None)
    raw, used = run_rows(tape, grid, base, method, rule=bound)
    times = []
    for _ in range(repeat):
        began = time.process_time()
        run_rows(tape, grid, base, method, rule=bound)
        times.append(time.process_time() - began)
    seconds = statistics.median(times)
    return seconds, metrics(raw), used


def peers(tape: Any, base: TradingParams, thresholds: Any, stops: Any, columns: int) -> dict[str, list[Any]]:
    """By name, (seconds per set, trades, PnL, sets) for each rule of what is installed; says so of what is not."""
    score = np.full(len(tape.arrays.price), np.nan)
    score[np.searchsorted(tape.arrays.price_index, tape.arrays.score_index) - 1] = tape.arrays.score
    found: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.npz"
        np.savez(
            path,
            price=tape.arrays.price,
            ts=tape.arrays.price_ts,
            score=score,
            threshold=thresholds,
            sl=stops,
            rules=len(RULES),
            notional=base.notional_usd,
            columns=columns,
        )
        for name in ("vectorbt", "backtesting"):
            variable = f"REPLAYLAB_{name.upper()}"
            python = os.environ.get(variable, "")
            if not python or not Path(python).exists():
                print(f"  {name}: not run ({variable} is not set)")
                continue
            script = Path(__file__).with_name("rules_peers.py")
            done = subprocess.run(
                [python, str(script), name, str(path)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"  {name} failed: {done.stderr.strip().splitlines()[-1][:90]}")
                continue
            lines = [line.split("\t") for line in done.stdout.strip().splitlines()[-len(RULES) :]]
            found[name] = [
                (float(took) / int(sets), int(n), float(pnl), int(sets)) for took, n, pnl, sets in lines
            ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ticks", type=int, default=1_000_000)
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--loop-sets", type=int, default=40, help="sets that the loop runs")
    parser.add_argument(
        "--columns", type=int, default=4, help="sets that vectorbt runs; backtesting.py runs one"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dense", action="store_true", help="many short trades instead of few long ones")
    args = parser.parse_args()
    warm_up()
    every, step, low, high = (10, 2.0, 0.1, 0.6) if args.dense else (50, 0.5, 0.80, 0.92)
    tape = pack(make_events(args.ticks, every, step))
    began = time.perf_counter()
    tape.lookup  # noqa: B018
    built = time.perf_counter() - began
    base = TradingParams(
        **{**PRINT, **COSTLESS}, tp1_fraction=0.0, break_even_offset_pct=None, tp1_pct=0.0, tp2_pct=50.0
    )
    side = max(2, round(args.sets**0.5))
    grid = make_grid(
        {"entry_threshold": np.linspace(low, high, side), "sl_pct": np.linspace(0.3, 0.9, side)}, base
    )
    picked = np.linspace(0, grid.rows - 1, min(args.loop_sets, grid.rows)).astype(int)
    some = grid.rows_at(picked, len(picked))
    loop, looped, _ = timed(tape, some, base, asked_at_each_price, "loop", args.repeat)
    plain, _, _ = timed(tape, some, base, None, "loop", args.repeat)
    level, levelled, used = timed(tape, grid, base, a_level, "auto", args.repeat)
    alone, searched, _ = timed(tape, some, base, a_level, "index", args.repeat)
    slow, asked, _ = timed(tape, some, base, a_level, "loop", 1)
    same = all(one.equals(looped) for one in (searched, asked, levelled[picked.tolist()]))
    loop_set, level_set = loop / len(picked), level / grid.rows
    print(
        f"{args.ticks:,} ticks, {looped['n_trades'].mean():,.0f} trades per set of which the rule ends "
        f"{looped['n_rule'].mean():,.0f}; {os.cpu_count()} cores, one thread each"
    )
    print(f"  {'what':<52} {'sets':>5} {'ms per set':>11} {'× the loop':>11}")
    lines = [
        ("loop, exit rule asked at each price", len(picked), loop_set),
        ("loop without a rule", len(picked), plain / len(picked)),
        ("loop, level rule", len(picked), slow / len(picked)),
        ("level rule, index", len(picked), alone / len(picked)),
        (f"level rule, all sets ({used})", grid.rows, level_set),
    ]
    for what, sets, seconds in lines:
        print(f"  {what:<52} {sets:>5} {1e3 * seconds:>11.3f} {seconds / loop_set:>11.4g}")
    print(f"  the level rule is {loop_set / level_set:,.0f} times as fast as the loop with the exit rule")
    print(
        f"  same metrics of loop, index and tables: {'yes' if same else 'NO'}; the index, built once: {built:.2f} s"
    )
    packed = some.pack(base).params
    rows = peers(tape, base, packed["entry_threshold"].copy(), packed["sl_pct"].copy(), args.columns)
    print(
        f"  {'rule, ms per set (× the loop)':<28} {'trades':>7} {'loop':>9}"
        + "".join(f"{one:>21}" for one in rows)
    )
    for k, rule in enumerate(RULES):
        mine, took = (looped, loop) if k == 0 else timed(tape, some, base, rule, "loop", args.repeat)[1::-1]
        text = f"  {rule.function.__name__:<28} {mine['n_trades'].mean():>7,.0f} {1e3 * took / len(picked):>9.3f}"
        for seconds, count, pnl, sets in (one[k] for one in rows.values()):
            first = mine[:sets]
            # The peers leave the last trade open, or close it at the last price as we do.
            agrees = abs(count - first["n_trades"].sum()) <= sets and np.isclose(
                pnl, first["net_pnl"].sum(), rtol=1e-3, atol=sets * 20.0
            )
            text += f"{1e3 * seconds:>12.1f} ({seconds * len(picked) / took:>4,.0f} ×)"
            text += "" if agrees else f" DISAGREES: {count} trades, {pnl:.2f}"
        print(text)
    if not same:
        raise SystemExit("the methods disagree: no time above means anything")


if __name__ == "__main__":
    main()
