"""How often a verdict is wrong: noise that it calls "supported", and planted edges that it does not find.

    python benchmarks/evidence.py               # 60 sweeps of each kind
    python benchmarks/evidence.py --sweeps 1000 # the long run
    python benchmarks/evidence.py --speed       # what the statistics cost, beside the sweep that they judge

A tape is a random walk of 12,000 ticks, one a second. Noise: scores that know nothing, in five kinds of sweep, with and
without costs. Planted: the score has the given correlation with the return of the next 10 ticks. All runs are the
product's own: ``sweep`` and ``verdict``. What it does not show: trends, volatility that clusters, other grids.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from replaylab.params import TradingParams
from replaylab.sweep import (
    bootstrap_intervals,
    make_grid,
    overfitting_probability,
    pack,
    superior_predictive_ability,
    sweep,
    walk_forward_steps,
)
from replaylab.sweep.evidence import _bootstrap_weights

TICKS, STEP, AHEAD = 12_000, 5e-5, 10
FREE = {"taker_fee_bps": 0.0, "maker_fee_bps": 0.0, "slippage_bps": 0.0}
COSTS = {"taker_fee_bps": 0.5, "maker_fee_bps": 0.2, "slippage_bps": 0.1}
THRESHOLDS = [0.8, 1.0, 1.2, 1.5]
# Name: the grid, and other parameters. A move of one standard deviation over 10 ticks is 0.016 %.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "symmetric": (
        {"entry_threshold": THRESHOLDS, "tp1_pct": [0.03, 0.05, 0.08], "sl_pct": [0.03, 0.05, 0.08]},
        {},
    ),
    "scalping": (
        {"entry_threshold": THRESHOLDS, "tp1_pct": [0.01, 0.015, 0.02], "sl_pct": [0.1, 0.2, 0.3]},
        {},
    ),
    "sparse": (
        {"entry_threshold": [2.6, 2.8, 3.0], "tp1_pct": [0.05, 0.1, 0.2], "sl_pct": [0.05, 0.1, 0.2]},
        {},
    ),
    "long": (
        {"entry_threshold": THRESHOLDS, "tp1_pct": [0.03, 0.05, 0.08], "sl_pct": [0.03, 0.05, 0.08]},
        {"allow_short": False},
    ),
    "short": (
        {"entry_threshold": THRESHOLDS, "tp1_pct": [0.03, 0.05, 0.08], "sl_pct": [0.03, 0.05, 0.08]},
        {"allow_long": False},
    ),
}
# What a planted edge is searched with: positions are held as long as the score foresees.
EDGE = (
    {"entry_threshold": THRESHOLDS, "tp1_pct": [0.02, 0.03, 0.05], "sl_pct": [0.02, 0.03, 0.05]},
    {"max_hold_s": 10.0},
)
EDGES = {0.1: 0.50, 0.2: 0.90, 0.4: 0.99}


def tape(rng: np.random.Generator, edge: float = 0.0) -> pl.DataFrame:
    """Return the events of a session: a price and, after it, a score at every second."""
    steps = rng.normal(0.0, STEP, TICKS + AHEAD)
    walk = np.cumsum(steps)
    prices = 100.0 * np.exp(walk[:TICKS])
    ahead = (walk[AHEAD:] - walk[:TICKS]) / (STEP * math.sqrt(AHEAD))
    scores = edge * ahead + math.sqrt(1.0 - edge**2) * rng.normal(size=TICKS)
    ns = 1_700_000_000_000_000_000 + 1_000_000_000 * np.arange(TICKS, dtype=np.int64)
    payloads = np.empty(2 * TICKS, dtype=object)
    payloads[0::2] = [f'{{"price":{price:.6f},"qty":1.0}}' for price in prices]
    payloads[1::2] = [f'{{"score":{score:.6f}}}' for score in scores]
    return pl.DataFrame(
        {
            "timestamp": pl.Series(np.repeat(ns, 2)).cast(pl.Datetime("ns", "UTC")),
            "type": ["MARKET_TRADE", "SCORING_UPDATE"] * TICKS,
            "symbol": ["A"] * (2 * TICKS),
            "payload": pl.Series(payloads.tolist(), dtype=pl.String),
        }
    )


def base(**given: Any) -> TradingParams:
    """Return the parameters beside the grid: one target, a time limit, no cool-down."""
    common = {"tp1_fraction": 1.0, "max_hold_s": 60.0, "tp2_pct": 1.0, "exit_threshold": None}
    return TradingParams(**{**common, **given})


def level_of(events: pl.DataFrame, kind: str, costs: dict[str, float]) -> str:
    """Return the level of the verdict on one sweep."""
    grid, more = KINDS.get(kind, EDGE)
    return sweep(events, grid, base(**more, **costs), progress=False, threads=1).verdict().level


def false_alarms(kind: str, costs: dict[str, float], sweeps: int) -> dict[str, int]:
    """Return how often each level was given to sweeps of noise."""
    found: dict[str, int] = {}
    for number in range(sweeps):
        level = level_of(tape(np.random.default_rng([number, 1])), kind, costs)
        found[level] = found.get(level, 0) + 1
    return found


def power(edge: float, sweeps: int) -> dict[str, int]:
    """Return how often each level was given to sweeps of a planted edge, without costs."""
    found: dict[str, int] = {}
    for number in range(sweeps):
        level = level_of(tape(np.random.default_rng([number, 2]), edge), "edge", FREE)
        found[level] = found.get(level, 0) + 1
    return found


def most_allowed(sweeps: int, rate: float = 0.05) -> float:
    """Return how many false alarms a true rate of ``rate`` does not exceed, but with a chance of one in a thousand."""
    return sweeps * rate + 3.1 * math.sqrt(sweeps * rate * (1 - rate))


def best_of(work: Callable[[], Any], repeat: int = 15) -> float:
    """Return the seconds of the fastest run: the others waited for something else."""
    times = []
    for _ in range(repeat):
        _bootstrap_weights.cache_clear()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def resampled(pnl: npt.NDArray[np.float64]) -> None:
    """Run what reads bootstrap resamples, as a verdict does: the SPA test, and the intervals of the best row."""
    superior_predictive_ability(pnl)
    bootstrap_intervals(pnl[:, int(np.argmax(pnl.sum(axis=0)))])


def speed() -> int:
    """Print what each statistic takes for 10,000 combinations in 100 periods, noise and with an edge planted."""
    # The benchmark of that name beside this file.
    from sweep import grids, make_events, ours

    axes, params = grids("sparse", 10_000)
    events = make_events(1_000_000, 50, 0.5)
    packed, grid = pack(events), make_grid(axes, params)
    swept = sweep(events, axes, params, progress=False)

    def pass_over() -> npt.NDArray[np.float64]:
        swept.__dict__.pop("_pnl", None)
        return swept.pnl_by_period(100)[1]

    base_s = best_of(lambda: ours(packed, grid, params))
    noise = pass_over()
    planted = noise.copy(order="F")
    planted[:, 5_000:5_050] += 0.5 * noise[:, 5_000:5_050].std(axis=0)
    print(f"{grid.rows:,} combinations, 1,000,000 ticks, {len(noise)} periods; ms, best of 15")
    pass_s = best_of(pass_over)
    print(
        f"{'sweep, its metrics alone':<40}{base_s * 1e3:>8.1f}\n{'sweep with PnL by period':<40}{pass_s * 1e3:>8.1f}"
    )
    failed = False
    for name, pnl in (("noise", noise), ("50 rows with an edge", planted)):
        tests: dict[str, Callable[[], Any]] = {
            "overfitting, 16 blocks, 1,000 splits": partial(
                overfitting_probability, pnl, 16, max_splits=1_000
            ),
            "walk-forward, 20 and 5 periods": partial(walk_forward_steps, pnl, 20, 5),
            "SPA test, 1,000 resamples; intervals": partial(resampled, pnl),
        }
        took = {test: best_of(work) for test, work in tests.items()}
        ratio = sum(took.values()) / pass_s
        failed |= ratio > 5.0
        print(f"\n{name}")
        for test, seconds in took.items():
            print(f"  {test:<38}{seconds * 1e3:>8.1f}")
        print(f"  {'together':<38}{sum(took.values()) * 1e3:>8.1f}   {ratio:.1f} × the PnL pass, at most 5")
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=60, help="sweeps of each kind")
    parser.add_argument("--speed", action="store_true", help="time the statistics instead")
    given = parser.parse_args()
    if given.speed:
        return speed()
    sweeps = given.sweeps
    started, failed = time.perf_counter(), False
    print(f"{'sweeps of noise':<28}{'supported':>10}{'fails oos':>11}{'luck':>7}{'too few':>9}")
    for kind in KINDS:
        for name, costs in (("no costs", FREE), ("with costs", COSTS)):
            found = false_alarms(kind, costs, sweeps)
            share = {level: found.get(level, 0) / sweeps for level in LEVELS}
            failed |= found.get("supported", 0) > (sweeps * 0.05 if sweeps >= 1000 else most_allowed(sweeps))
            print(
                f"{kind + ', ' + name:<28}"
                + "".join(f"{share[level]:>{w}.1%}" for level, w in LEVELS.items())
            )
            sys.stdout.flush()
    print(f"\n{'planted edge':<28}{'supported':>10}{'fails oos':>11}{'luck':>7}{'too few':>9}")
    for edge, wanted in EDGES.items():
        found = power(edge, sweeps)
        share = {level: found.get(level, 0) / sweeps for level in LEVELS}
        failed |= share["supported"] < wanted
        print(f"{edge:<28}" + "".join(f"{share[level]:>{w}.1%}" for level, w in LEVELS.items()))
        sys.stdout.flush()
    print(f"\n{sweeps} sweeps of {TICKS:,} ticks each; {time.perf_counter() - started:.0f} s")
    return int(failed)


LEVELS = {"supported": 10, "fails_out_of_sample": 11, "luck": 7, "insufficient": 9}

if __name__ == "__main__":
    sys.exit(main())
