"""How fast is a sweep? ours beside a plain compiled loop over ticks and beside vectorbt, on the same work.

    python benchmarks/sweep.py                    # 1,000,000 ticks × 10,000 combinations, three regimes
    python benchmarks/sweep.py --ticks 200000 --repeat 1 --only sparse
    python benchmarks/sweep.py --count            # instructions per trade and per event, where the time goes
    REPLAYLAB_VECTORBT=/path/to/venv/bin/python python benchmarks/sweep.py

Data: a seeded random walk; scores of an autoregressive process. Every method computes the metrics of a result frame
(our sweep all of them; the loop the sums that they come from). Before a time is printed, numbers of trades and net PnL
of the methods are compared. Times are the fastest of ``--repeat`` runs in turns, with everything compiled; packing is
timed apart.

What this does not show: other data have other numbers of trades per combination, and our cost grows with trades
while a loop's grows with ticks. The sparse and the dense table are the two ends.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numba import njit
from sweep_loops import full_loop, simple_loop

from replaylab import Config, Lab, TradingParams
from replaylab.sweep import make_grid, pack, sweep, warm_up
from replaylab.sweep.fills import RAW
from replaylab.sweep.model_chain import run_chain, run_plain
from replaylab.sweep.model_loop import NO_RULE, TRADE, run_loop
from replaylab.sweep.result import metrics
from replaylab.sweep.run import run_rows
from replaylab.sweep.tables import is_plain, number_tables, prepare
from replaylab.testing import SessionBuilder

SECOND = 1_000_000_000
OFF = {"tp1_fraction": 0.0, "break_even_offset_pct": None}
# What the plain loops compute: fills at the print and at a touch, no holes, no ticks.
PRINT = {
    "market_fill": "print",
    "limit_fill": "touch",
    "max_gap_s": None,
    "rounding": "none",
    "slippage_bps": 1.0,
}
BOOK = {"market_fill": "book", "limit_fill": "through"}
FILLS: dict[str, dict[str, Any]] = {
    "print, touch": PRINT,
    "print, through, holes, ticks": {"market_fill": "print", "limit_fill": "through"},
    "quote, through": {"market_fill": "quote", "limit_fill": "through"},
    "book, through": BOOK,
    "book, through, 100,000 USD": {**BOOK, "notional_usd": 100_000.0},
    "book, queue": {**BOOK, "limit_fill": "queue"},
    "LIMIT entries, book, through": {**BOOK, "entry_order": "LIMIT", "entry_ttl_s": 60.0},
}


def make_events(ticks: int, every: int, step_bps: float, seed: int = 7) -> pl.DataFrame:
    """A session of trades, with a score after every ``every`` of them."""
    rng = np.random.default_rng(seed)
    price = 50_000.0 * np.exp(np.cumsum(rng.normal(0.0, step_bps / 1e4, ticks)))
    ts = 1_700_000_000 * SECOND + np.cumsum(rng.integers(1, 200_000_000, ticks))
    at = np.arange(every - 1, ticks, every)
    noise = rng.normal(size=len(at))
    score = np.empty(len(at))
    last = 0.0
    for k, shock in enumerate(noise):
        last = score[k] = 0.9 * last + shock
    score = np.tanh(score / score.std() / 2.0)
    trades = pl.DataFrame({"n": np.arange(ticks) * 2, "ns": ts, "value": np.round(price, 1)}).select(
        "n",
        "ns",
        type=pl.lit("MARKET_TRADE"),
        payload=pl.concat_str(pl.lit('{"price":'), "value", pl.lit(',"qty":1.0,"side":"BUY"}')),
    )
    scores = pl.DataFrame({"n": at * 2 + 1, "ns": ts[at], "value": score}).select(
        "n",
        "ns",
        type=pl.lit("SCORING_UPDATE"),
        payload=pl.concat_str(pl.lit('{"score":'), "value", pl.lit("}")),
    )
    return (
        pl.concat([trades, scores])
        .sort("n")
        .select(
            timestamp=pl.col("ns").cast(pl.Datetime("ns", "UTC")),
            type="type",
            symbol=pl.lit("BTCUSDT"),
            payload="payload",
        )
    )


def grids(regime: str, n: int) -> tuple[dict[str, Any], TradingParams]:
    """About ``n`` combinations: 25 thresholds and two levels, or seven axes of the full model."""
    side = max(2, round((n / 25) ** 0.5))
    if regime == "full":
        k = max(2, round((n / 400) ** 0.5))
        return {
            "entry_threshold": np.linspace(0.80, 0.92, 10),
            "trailing_activation_pct": [None, 0.15, 0.3, 0.45, 0.6],
            "max_hold_s": [None, 900.0],
            "tp1_pct": np.linspace(0.1, 0.3, 4),
            "tp2_pct": np.linspace(0.4, 1.0, k),
            "sl_pct": np.linspace(0.15, 0.6, k),
        }, TradingParams(**PRINT, trailing_distance_pct=0.1, exit_threshold=-0.95)
    if regime == "dense":
        return {
            "entry_threshold": np.linspace(0.1, 0.6, 25),
            "tp2_pct": np.linspace(0.005, 0.05, side),
            "sl_pct": np.linspace(0.005, 0.05, side),
        }, TradingParams(**{**PRINT, **OFF, "slippage_bps": 0.0}, tp1_pct=0.0)
    return {
        "entry_threshold": np.linspace(0.80, 0.92, 25),
        "tp2_pct": np.linspace(0.2, 1.0, side),
        "sl_pct": np.linspace(0.2, 1.0, side),
    }, TradingParams(**PRINT, **OFF, tp1_pct=0.0)


def fastest(repeat: int, *works: Callable[[], Any]) -> list[tuple[float, float, Any]]:
    """Seconds of the fastest run of each, of all its cores together, and its last result; they take turns.

    The first turn is not counted. Seconds of the cores are what other work on the machine changes least.
    """
    found = [(float("inf"), float("inf"), work()) for work in works]
    for _ in range(repeat):
        for k, work in enumerate(works):
            start, busy = time.perf_counter(), time.process_time()
            result = work()
            took, busy = time.perf_counter() - start, time.process_time() - busy
            found[k] = (min(found[k][0], took), min(found[k][1], busy), result)
    return found


def ours(tape: Any, grid: Any, base: TradingParams, method: str = "auto") -> pl.DataFrame:
    """All metrics of all rows, as ``sweep`` computes them."""
    return metrics(run_rows(tape, grid, base, method, threads=os.cpu_count() or 1)[0])


def baseline(tape: Any, grid: Any, base: TradingParams, regime: str) -> np.ndarray:
    """Sums of the plain loop for every row: trades, net PnL, ..."""
    packed = grid.pack(base).params
    # The score that follows each tick, NaN where none does: what a loop over ticks reads.
    score = np.full(len(tape.arrays.price), np.nan)
    score[np.searchsorted(tape.arrays.price_index, tape.arrays.score_index) - 1] = tape.arrays.score
    loop = full_loop if regime == "full" else simple_loop
    return loop(tape.arrays.price, tape.arrays.price_ts, score, packed)


def run_regime(regime: str, args: argparse.Namespace) -> None:
    every, step = (10, 0.2) if regime == "dense" else (50, 0.5)
    events = make_events(args.ticks, every, step)
    start = time.perf_counter()
    tape = pack(events)
    axes, base = grids(regime, args.combinations)
    grid = make_grid(axes, base)
    rows = []
    tape.lookup  # built once per tape, as packing is  # noqa: B018
    packing = time.perf_counter() - start
    (whole, busy, frame), (loop_seconds, loop_busy, sums) = fastest(
        args.repeat,
        lambda: ours(tape, grid, base, args.method),
        lambda: baseline(tape, grid, base, regime),
    )
    method = run_rows(tape, grid, base, args.method, threads=os.cpu_count() or 1)[1]
    per_row = frame["n_trades"].mean()
    agree = np.array_equal(sums[:, 0], frame["n_trades"].to_numpy()) and np.allclose(
        sums[:, 1], frame["net_pnl"].to_numpy(), rtol=1e-9, atol=1e-6
    )
    work = grid.rows * args.ticks
    rows.append((f"replaylab ({method}), all metrics", whole, 1.0))
    rows.append(("parallel numba loop over ticks", loop_seconds, loop_seconds / whole))
    if regime != "full":
        rows += vectorbt_rows(tape, grid, base, frame, whole, args)
    print(
        f"\n{regime}: {args.ticks:,} ticks, a score every {every}, {grid.rows:,} combinations, "
        f"{per_row:,.0f} trades each; loop agrees: {'yes' if agree else 'NO'}"
    )
    print(f"  {'what':<46} {'seconds':>10} {'M comb·ticks/s':>15} {'ratio':>9}")
    for name, took, ratio in rows:
        print(f"  {name:<46} {took:>10.4f} {work / took / 1e6:>15,.0f} {ratio:>8.1f}×")
    print(
        f"  seconds of all cores: replaylab {busy:.3f}, loop {loop_busy:.2f}: {loop_busy / busy:.1f}×\n"
        f"  packing the session into a tape, with its index: {packing:.2f} s once; {tape.nbytes / 1e6:.0f} MB"
    )
    if not agree:
        raise SystemExit("the methods disagree: no time above means anything")


def vectorbt_rows(
    tape: Any, grid: Any, base: TradingParams, mine: pl.DataFrame, ours_took: float, args: argparse.Namespace
) -> list[Any]:
    python = os.environ.get("REPLAYLAB_VECTORBT", "")
    if not python or not Path(python).exists():
        return [("vectorbt: not run (REPLAYLAB_VECTORBT is not set)", float("nan"), float("nan"))]
    folder = Path(args.scratch)
    folder.mkdir(parents=True, exist_ok=True)
    packed = grid.pack(base).params
    some = np.linspace(0, grid.rows - 1, min(args.vectorbt_part, grid.rows)).astype(int)
    score = np.full(len(tape.arrays.price), np.nan)
    score[np.searchsorted(tape.arrays.price_index, tape.arrays.score_index) - 1] = tape.arrays.score
    np.savez(
        folder / "work.npz",
        price=tape.arrays.price,
        score=score,
        threshold=packed["entry_threshold"][some],
        tp=packed["tp2_pct"][some] / 100,
        sl=packed["sl_pct"][some] / 100,
        fees=[
            base.print_slippage_bps / 1e4,
            base.taker_fee_bps / 1e4,
            base.maker_fee_bps / 1e4,
            base.notional_usd,
        ],
        max_orders=2 * int(mine["n_trades"].max()) + 2,
    )
    script = Path(__file__).with_name("sweep_vectorbt.py")
    done = subprocess.run(
        [python, str(script), str(folder / "work.npz")], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return [(f"vectorbt failed: {done.stderr.strip().splitlines()[-1][:60]}", float("nan"), float("nan"))]
    rows = []
    picked = mine[some.tolist()]
    for line in done.stdout.splitlines():
        name, took, count, pnl = line.split("\t")
        # vectorbt leaves the last trade open at the last price, ours pays to close it: the PnL is compared loosely.
        same = int(count) == picked["n_trades"].sum()
        close = abs(float(pnl) - picked["net_pnl"].sum()) <= 1e-3 * abs(picked["net_pnl"].sum()) + len(some)
        agrees = "" if same and close else f" DISAGREES: {count} trades, {pnl}"
        seconds = float(took) * grid.rows / len(some)
        rows.append((f"{name}, from {len(some)} rows{agrees}", seconds, seconds / ours_took))
    return rows


def run_scaling(args: argparse.Namespace) -> None:
    """1M → 10M ticks at about the same trades per combination: steps shrink so that the walk covers the same range."""
    print("\nscaling at about the same number of trades per combination")
    first = 0.0
    for factor in (1, 10):
        ticks = args.ticks * factor
        tape = pack(make_events(ticks, 50 * factor, 0.5 / factor**0.5))
        axes, base = grids("sparse", args.combinations)
        grid = make_grid(axes, base)
        ((seconds, _, raw),) = fastest(args.repeat, lambda t=tape, g=grid, b=base: ours(t, g, b))
        first = first or seconds
        print(
            f"  {ticks:>12,} ticks: {seconds:.4f} s, {raw['n_trades'].mean():,.0f} trades each, "
            f"{seconds / first:.2f} × the time"
        )


@dataclass
class WithBook:
    """A session of trades and scores with a book after every fifth trade: eight levels a side, a tick apart."""

    events: pl.DataFrame
    instruments: dict[str, Any] = field(
        default_factory=lambda: {"BTCUSDT": {"tickSize": 0.1, "lotSize": 0.001, "minNotionalUsd": 5.0}}
    )

    @classmethod
    def of(cls, trades: pl.DataFrame, seed: int = 7) -> WithBook:
        rng = np.random.default_rng(seed)
        at = trades.with_row_index("n").filter(type="MARKET_TRADE").gather_every(5)
        price = at["payload"].str.json_path_match("$.price").cast(pl.Float64).to_numpy()
        size = rng.lognormal(0.0, 1.0, (len(price), 2, 8)).round(3)
        sides = []
        for side, sign in ((0, -1.0), (1, 1.0)):
            parts: list[Any] = []
            for k in range(8):
                level = pl.Series((price + sign * 0.1 * (k + 1)).round(1))
                parts += [
                    pl.lit("[" if k == 0 else ",["),
                    level,
                    pl.lit(","),
                    pl.Series(size[:, side, k]),
                    pl.lit("]"),
                ]
            sides.append(pl.select(pl.concat_str(parts)).to_series())
        payload = pl.concat_str(pl.lit('{"bids":['), sides[0], pl.lit('],"asks":['), sides[1], pl.lit("]}"))
        books = at.with_columns(type=pl.lit("MARKET_BOOK"), payload=payload, late=pl.lit(1))
        merged = pl.concat([trades.with_row_index("n").with_columns(late=pl.lit(0)), books]).sort("n", "late")
        return cls(merged.drop("n", "late"))


def run_fills(args: argparse.Namespace) -> None:
    """What each model of fills costs, beside print and touch: the same grid over trades with a book."""
    session = WithBook.of(make_events(args.ticks, 50, 0.5))
    start = time.perf_counter()
    tape = pack(session)
    tape.lookup  # noqa: B018
    took = time.perf_counter() - start
    print(
        f"\nfills: {args.ticks:,} ticks with {args.ticks // 5:,} books; packing {took:.1f} s, "
        f"{tape.nbytes / 1e6:.0f} MB, of these {tape.arrays.book_levels.nbytes / 1e6:.0f} MB levels of the book"
    )
    for regime in ("sparse", "full"):
        axes, base = grids(regime, args.combinations)
        print(
            f"  {regime}: {'what':<36} {'seconds':>9} {'trades each':>12} {'ratio':>7} {'of all cores':>13}"
        )
        settings = [
            base.replace(max_gap_s=900.0, rounding="exchange").replace(**some) for some in FILLS.values()
        ]
        every = [make_grid(axes, params) for params in settings]
        works = [
            partial(ours, tape, grid, params, args.method)
            for grid, params in zip(every, settings, strict=True)
        ]
        found = fastest(4 * args.repeat, *works)
        for name, params, grid, (took, busy, frame) in zip(FILLS, settings, every, found, strict=True):
            some = grid.part(grid.rows // 2, grid.rows // 2 + 4)
            same = ours(tape, some, params, "loop").equals(frame[grid.rows // 2 : grid.rows // 2 + 4])
            print(
                f"  {'':<{len(regime) + 1}} {name:<36} {took:>9.4f} {frame['n_trades'].mean():>12,.0f} "
                f"{took / found[0][0]:>6.1f} × {busy / found[0][1]:>10.1f} ×{'' if same else '  DIFFERS from the loop'}"
            )


# What ``--count`` counts: a kernel's name, its regime, and the fills in place of print and touch.
COUNTED = (
    ("plain loop over ticks, dense", "dense", ""),
    ("plain loop over ticks, full model", "full", ""),
    ("event loop, full model", "full", ""),
    ("tables, dense", "dense", ""),
    ("tables, sparse", "sparse", ""),
    ("tables, sparse, book and through", "sparse", "book, through"),
    ("tables, full model", "full", ""),
    ("tables, full model, book and through", "full", "book, through"),
    ("tables, full model, LIMIT entries", "full", "LIMIT entries, book, through"),
)


@njit
def chain_of_shifts(n: int) -> int:
    """Six operations a round, each of which waits for the one before: six cycles of any processor."""
    x = np.uint64(88172645463325252)
    for _ in range(n):
        x ^= x << np.uint64(13)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
    return int(x)


def gigahertz() -> float:
    chain_of_shifts(1)
    return max(6.0 * 20e6 / timed(lambda: chain_of_shifts(20_000_000)) for _ in range(5)) / 1e9


def timed(work: Callable[[], Any]) -> float:
    """Seconds of the processor, which other processes do not add to."""
    start = time.process_time()
    work()
    return time.process_time() - start


def counted_work(
    which: int, ticks: int, rows: int, args: argparse.Namespace
) -> tuple[Callable[[int], Any], Any]:
    """One of COUNTED on so many ticks: a function that runs the first of some rows, and how often each row trades.

    The second half of the rows repeats the first.
    """
    name, regime, fill = COUNTED[which]
    every, step = (10, 0.2) if regime == "dense" else (50, 0.5)
    axes, base = grids(regime, args.combinations)
    trades = make_events(ticks, every, step)
    tape = pack(WithBook.of(trades) if fill else trades)
    if fill:
        base = base.replace(max_gap_s=900.0, rounding="exchange").replace(**FILLS[fill])
    grid = make_grid(axes, base).pack(base)
    allowed = np.zeros((1, len(tape.regimes) + 1), dtype=np.bool_)
    # Rows from the middle of the grid.
    picked = np.tile(np.arange(len(grid) // 2, len(grid) // 2 + rows // 2), 2)
    some = grid.params[picked]
    raw = np.zeros((rows, RAW))
    if "plain" in name:
        score = np.full(len(tape.arrays.price), np.nan)
        score[np.searchsorted(tape.arrays.price_index, tape.arrays.score_index) - 1] = tape.arrays.score
        plain = full_loop if regime == "full" else simple_loop
        loop = partial(plain, tape.arrays.price, tape.arrays.price_ts, score)
        return lambda n: loop(some[:n]), loop(some)[:, 0]
    if "event" in name:
        none = np.empty(0, dtype=TRADE)
        run_loop(tape.arrays, allowed, some, raw, none, NO_RULE)
        return lambda n: run_loop(tape.arrays, allowed, some[:n], raw, none, NO_RULE), raw[:, 0]
    plan, keys = prepare(tape, allowed, grid, number_tables(tape, grid))
    keys = keys[picked]
    if is_plain(tape, grid.params):
        kernel: Callable[..., Any] = run_plain
    else:
        kernel = partial(run_chain, rule=NO_RULE)
    kernel(plan, some, keys, raw)
    return lambda n: kernel(plan, some[:n], keys[:n], raw[:n]), raw[:, 0].copy()


def counted(which: int, args: argparse.Namespace) -> None:
    """In a process of its own: prints what one thing takes in seconds, and how many there are in what is counted.

    Then it runs half the rows, and all, each between two signals: the difference is what the rows take. Step by step a
    small part of the ticks is enough: the instructions of a trade do not depend on how long the tape is.
    """
    name, regime, _ = COUNTED[which]
    tables = "tables" in name
    rows = 2000 if tables else 2
    work, trades = counted_work(which, args.ticks, rows, args)
    took = min(timed(lambda: work(rows)) for _ in range(10))
    took /= trades.sum() if tables else rows * args.ticks
    if args.count == "perf":
        for _ in range(args.times):
            work(rows)
        print(took, trades.sum() if tables else rows * args.ticks, flush=True)
        return
    ticks = args.ticks // (5 if tables else 200)
    rows = 40 if tables and regime != "dense" else 2
    work, trades = counted_work(which, ticks, rows, args)
    print(took, trades.sum() / 2 if tables else rows // 2 * ticks, flush=True)
    if ctypes.CDLL(None, use_errno=True).ptrace(0, 0, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
    for n in (rows // 2, rows):
        os.kill(os.getpid(), signal.SIGUSR1)
        work(n)
        os.kill(os.getpid(), signal.SIGUSR2)


def steps(process: subprocess.Popen[str]) -> list[int]:
    """Instructions between SIGUSR1 and SIGUSR2 of a traced process, each time."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    go_on, step = 7, 9
    counts: list[int] = []
    how, sent = go_on, 0
    while True:
        _, status = os.waitpid(process.pid, 0)
        if not os.WIFSTOPPED(status):
            process.returncode = os.waitstatus_to_exitcode(status)
            return counts
        found, sent = os.WSTOPSIG(status), 0
        if found == signal.SIGUSR1:
            how = step
            counts.append(0)
        elif found == signal.SIGUSR2:
            how = go_on
        elif found == signal.SIGTRAP:
            counts[-1] += 1
        else:
            sent = found
        ptrace(how, process.pid, None, sent)


def perf_counts(command: list[str], times: int) -> tuple[str, dict[str, float]] | None:
    """What ``counted`` prints, and `perf stat` for one run of its work; None without perf or counters."""
    events = ("instructions", "cycles", "branch-misses")
    totals, printed = [], ""
    for run in (["true"], [*command, "--times", str(times)], [*command, "--times", str(2 * times)]):
        perf = ["perf", "stat", "-x;", "-e", ":u,".join(events) + ":u", *run]
        done = subprocess.run(perf, capture_output=True, text=True, check=False)
        lines = [line.split(";") for line in done.stderr.splitlines() if ";" in line]
        found = {line[2].split(":")[0]: line[0] for line in lines}
        if not all(found.get(name, "").isdigit() for name in events):
            return None
        totals.append({name: int(found[name]) for name in events})
        printed = done.stdout
    return printed, {name: (totals[2][name] - totals[1][name]) / times for name in events}


def run_count(args: argparse.Namespace) -> None:
    """Where the time goes: instructions per trade by tables and per tick of a loop, one thread, tables filled."""
    here = [sys.executable, __file__, "--ticks", str(args.ticks), "--combinations", str(args.combinations)]
    os.environ["NUMBA_NUM_THREADS"] = "1"
    clock = gigahertz()
    print(f"\ninstructions on one thread, tables filled; the processor runs at {clock:.2f} GHz")
    print(
        f"  {'what':<38} {'each':>6} {'instructions':>13} {'ns':>7} {'per cycle':>10} {'branch misses':>14}"
    )
    for which, (name, _, _) in enumerate(COUNTED):
        command = [*here, "--counted", str(which), "--count"]
        found = perf_counts([*command, "perf"], 20) if shutil.which("perf") else None
        if found is None:
            with subprocess.Popen([*command, "steps"], stdout=subprocess.PIPE, text=True) as process:
                counts = steps(process)
                assert process.stdout is not None
                printed = process.stdout.readline()
            took, number = (float(word) for word in printed.split())
            instructions, missed = (counts[1] - counts[0]) / number, "–"
            per_cycle = instructions / (took * clock * 1e9)
        else:
            printed, of = found
            took, number = (float(word) for word in printed.split())
            instructions, missed = of["instructions"] / number, f"{of['branch-misses'] / number:.2f}"
            per_cycle = of["instructions"] / of["cycles"]
        what = "trade" if "tables" in name else "tick"
        print(
            f"  {name:<38} {what:>6} {instructions:>13,.1f} {took * 1e9:>7.2f} {per_cycle:>10.1f} {missed:>14}",
            flush=True,
        )


def run_call(args: argparse.Namespace) -> None:
    """``lab.sweep("session-id", grid)`` beside the call with an open Session, also for a large file of events."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(folder, config=Config(cache_dir=f"{folder}/cache"))
        manifest = SessionBuilder().build(folder, "benchmark").manifest
        line = pl.concat_str(
            pl.lit('{"timestamp":"'),
            pl.col("timestamp").dt.strftime("%Y-%m-%dT%H:%M:%S%.9fZ"),
            pl.lit('","type":"'),
            "type",
            pl.lit('","symbol":"BTCUSDT","payload":'),
            "payload",
            pl.lit("}"),
        )
        path = lab.sessions.open("benchmark").root.session_events("benchmark")
        lines = make_events(args.ticks, 50, 0.5).select(line).to_series()
        path.write_text("\n".join(lines.to_list()) + "\n")
        size = path.stat().st_size
        manifest = lab.sessions.rehash("benchmark")
        time.sleep(2.5)
        grid = {"entry_threshold": np.linspace(0.80, 0.92, 5), "sl_pct": np.linspace(0.2, 1.0, 5)}
        opened = lab.session(manifest)
        (with_session, _, _), (by_id, _, _) = fastest(
            args.repeat,
            lambda: lab.sweep(opened, grid, progress=False),
            lambda: lab.sweep("benchmark", grid, progress=False),
        )
        print(
            f"\none call of 25 combinations on {args.ticks:,} ticks ({size / 1e6:,.0f} MB): open Session "
            f"{with_session:.4f} s, by id {by_id:.4f} s ({by_id / with_session:.2f} ×)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ticks", type=int, default=1_000_000)
    parser.add_argument("--combinations", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--only", choices=["sparse", "full", "dense", "fills", "scaling", "million", "call"])
    parser.add_argument("--vectorbt-part", type=int, default=16, help="rows that vectorbt runs")
    parser.add_argument("--scratch", default=".benchmark-scratch", help="folder for what vectorbt reads")
    parser.add_argument(
        "--count",
        nargs="?",
        const="all",
        help="count instructions instead: `perf stat` where the processor lets it, else step by step (Linux)",
    )
    parser.add_argument("--counted", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.counted is not None:
        counted(args.counted, args)
        return
    if args.count:
        run_count(args)
        return
    start = time.perf_counter()
    warm_up()
    print(f"compiling or loading the kernels: {time.perf_counter() - start:.2f} s; {os.cpu_count()} cores")
    for regime in ("sparse", "full", "dense"):
        if args.only in (None, regime):
            run_regime(regime, args)
    if args.only in (None, "fills"):
        run_fills(args)
    if args.only in (None, "scaling"):
        run_scaling(args)
    if args.only in (None, "call"):
        run_call(args)
    if args.only in (None, "million"):
        events = make_events(args.ticks, 50, 0.5)
        axes, base = grids("sparse", 100 * args.combinations)
        start = time.perf_counter()
        result = sweep(events, axes, base, progress=sys.stderr.isatty())
        took = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"\n{result.frame.height:,} combinations on {args.ticks:,} ticks: {took:.1f} s, packing included"
        )
        print(
            f"  peak memory of this process {peak:,.0f} MB, result {result.frame.estimated_size('mb'):,.0f} MB"
        )


if __name__ == "__main__":
    main()
