"""How well a replay keeps time, and how fast it goes when it need not.

    python benchmarks/replay.py                       # about four minutes
    python benchmarks/replay.py --seconds 60          # longer pacing rounds
    NAUTILUS_PYTHON=/path/to/venv/bin/python python benchmarks/replay.py

Pacing: the same events are emitted by the engine, by a bare loop on absolute deadlines (nothing but sleeping, spinning
and a list), by `asyncio.sleep` and by a naive `time.sleep(delta)` loop, taking turns. Lateness is measured from the
outside in all of them: when the handler was called, minus when the event was due, counted from the least late event.

Speed: events per second to a handler that does nothing, to the reference trading system with logging (trades, a score
a second and regimes; deciding again: a score after every distinct time), and ticks per second of the same trades
through NautilusTrader's BacktestEngine with a strategy that does nothing, if NAUTILUS_PYTHON names an interpreter that
has it.
"With load" counts opening the session, or making the ticks, too.

Data: an hour of recorded BTCUSDT trades (REPLAYLAB_REAL_DATA), else of the package's own generator.

What it does not show: machines with other things to do (take the engine's p99 against the bare loop's, which had the
same neighbours), handlers that take time, and sessions whose events are large.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from replaylab import ReplayEngine, ScoringParams, TradingParams
from replaylab.history import write_trades
from replaylab.importers.synthetic import generate_market
from replaylab.paths import DataRoot
from replaylab.records import ReplayEvent
from replaylab.replay import run_sim
from replaylab.sessions import Session, SessionStore, build_replay_session
from replaylab.timestamps import iso

SPEEDS = (1.0, 10.0, 100.0)
ROUNDS = 3
HOUR = 3_600_000_000_000
SPIN_NS = 250_000
PARAMS = TradingParams(entry_threshold=0.3, max_hold_s=600)
Emissions = list[int]


class Stamps:
    """A handler that notes when it was called."""

    def __init__(self) -> None:
        self.at: Emissions = []

    def handle_event(self, event: ReplayEvent) -> None:
        self.at.append(time.monotonic_ns())


class Nothing:
    def handle_event(self, event: ReplayEvent) -> None:
        pass


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("--seconds", type=float, default=5.0, help="wall time of each turn of each method")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = DataRoot(folder)
        source, trades = tape()
        write_trades(root, "BTCUSDT", trades)
        start = int(trades["timestamp"].dt.timestamp("ns").min())
        build = {"start": iso(start), "symbols": ["BTCUSDT"], "include_types": ["MARKET_TRADE"]}
        hour = build_replay_session(root, end=iso(start + HOUR), session_id="hour", **build)
        print(f"data: {source}; the first hour has {hour.total_events:,} trades")
        print(f"machine: {os.cpu_count()} cores, Python {sys.version.split()[0]}\n")
        pacing(SessionStore(root).open("hour"), options.seconds)
        stopping(SessionStore(root).open("hour"))
        run_sim(root, ["BTCUSDT"], params=PARAMS, scoring=ScoringParams(interval_ms=1_000))
        build["include_types"] = ["MARKET_TRADE", "SCORING_UPDATE", "REGIME_UPDATE"]
        every = build_replay_session(root, end=iso(start + 48 * HOUR), session_id="all", **build)
        print(
            f"\nas fast as it can: {every.total_events:,} events, {len(trades):,} of them trades (best of 3)"
        )
        throughput(SessionStore(root).open("all"), trades, Path(folder))


def tape() -> tuple[str, pl.DataFrame]:
    """Return recorded trades where there are any, else generated ones."""
    named = os.environ.get("REPLAYLAB_REAL_DATA")
    for folder in [] if named is None else [Path(named), Path(named) / "real"]:
        path = folder / "binance-trades" / "btcusdt_20220115_00h-12h.parquet"
        if path.is_file():
            raw = pl.read_parquet(path)
            return f"{path.name}, recorded", raw.select(
                pl.col("timestamp")
                .cast(pl.Int64)
                .cast(pl.Datetime("ms", "UTC"))
                .cast(pl.Datetime("ns", "UTC")),
                pl.col("price").cast(pl.Float64),
                pl.col("quantity").cast(pl.Float64).alias("qty"),
            )
    trades, _ = generate_market(1, ["BTCUSDT"], "2025-11-18T00:00:00Z", 4)["BTCUSDT"]
    return "generated", trades


# Pacing


def pacing(session: Session, seconds: float) -> None:
    print(
        f"pacing: lateness in ms over {ROUNDS} turns of {seconds:g} s each; drift is the last event's lateness"
    )
    print(
        f"{'speed':>6} {'method':<24} {'events':>7} {'p50':>8} {'p99':>8} {'max':>8} {'drift':>8} {'p99/bare':>9}"
    )
    for speed in SPEEDS:
        methods: dict[str, Callable[[np.ndarray, float, Session], Emissions]] = {
            "bare absolute loop": bare_loop,
            "replaylab engine": engine,
            "asyncio.sleep": asyncio_sleep,
            "naive time.sleep(delta)": naive_sleep,
        }
        late: dict[str, list[np.ndarray]] = {name: [] for name in methods}
        for _ in range(ROUNDS):
            for name, method in methods.items():
                times = busiest(session, speed, seconds)
                at = np.array(method(times, speed, session), np.int64)
                after_first = at - np.round((times[: len(at)] - times[0]) / speed).astype(np.int64)
                late[name].append((after_first - after_first.min()) / 1e6)
        bare = np.percentile(np.concatenate(late["bare absolute loop"]), 99)
        for name, turns in late.items():
            values = np.concatenate(turns)
            p50, p99 = np.percentile(values, [50, 99])
            drift = float(np.median([turn[-1] for turn in turns]))
            print(
                f"{speed:>5g}× {name:<24} {len(values):>7} {p50:>8.3f} {p99:>8.3f} {values.max():>8.2f} {drift:>8.3f} "
                f"{p99 / bare:>8.2f}×"
            )


def busiest(session: Session, speed: float, seconds: float) -> np.ndarray:
    """Return the times of the session's first stretch of ``seconds`` of wall time."""
    times = session.events["timestamp"].dt.timestamp("ns").to_numpy()
    return times[times <= times[0] + seconds * speed * 1e9]


def engine(times: np.ndarray, speed: float, session: Session) -> Emissions:
    handler = Stamps()
    player = ReplayEngine(SessionStore(session.root), handler)
    player.start_session(session, speed_factor=speed)
    while len(handler.at) < len(times):
        time.sleep(0.02)
    player.stop()
    return handler.at[: len(times)]


def bare_loop(times: np.ndarray, speed: float, session: Session) -> Emissions:
    """The least that an absolute pacer can do, in a thread of its own like the engine."""
    at: Emissions = []
    offsets = np.round((times - times[0]) / speed).astype(np.int64).tolist()
    now = time.monotonic_ns

    def run() -> None:
        begin = now()
        for offset in offsets:
            deadline = begin + offset
            left = deadline - now()
            if left > SPIN_NS:
                time.sleep((left - SPIN_NS) / 1e9)
            while now() < deadline:
                pass
            at.append(now())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return at


def asyncio_sleep(times: np.ndarray, speed: float, session: Session) -> Emissions:
    at: Emissions = []
    offsets = np.round((times - times[0]) / speed).astype(np.int64).tolist()

    async def run() -> None:
        begin = time.monotonic_ns()
        for offset in offsets:
            left = begin + offset - time.monotonic_ns()
            if left > 0:
                await asyncio.sleep(left / 1e9)
            at.append(time.monotonic_ns())

    asyncio.run(run())
    return at


def naive_sleep(times: np.ndarray, speed: float, session: Session) -> Emissions:
    at: Emissions = []
    before = int(times[0])
    for ts in times.tolist():
        time.sleep((ts - before) / speed / 1e9)
        before = ts
        at.append(time.monotonic_ns())
    return at


def stopping(session: Session) -> None:
    """Print how long a stop takes in the middle of a wait of minutes."""
    took = []
    for _ in range(30):
        player = ReplayEngine(SessionStore(session.root), Nothing())
        player.start_session(session, speed_factor=1e-3)
        time.sleep(0.05)
        began = time.monotonic()
        player.stop()
        took.append((time.monotonic() - began) * 1e3)
    print(
        f"\nstop() in the middle of a long wait: median {np.median(took):.1f} ms, worst of 30 {max(took):.1f} ms"
    )


# Speed


def throughput(session: Session, trades: pl.DataFrame, folder: Path) -> None:
    params = PARAMS
    rows = [
        ("replaylab, handler that does nothing", *best(session, Nothing(), params)),
        ("replaylab, trading system + logs", *best(session, None, params)),
        ("replaylab, deciding again + logs", *best(session, None, params, inject_mode="FULL_DECISION")),
        ("NautilusTrader, empty strategy", *nautilus(trades, folder)),
    ]
    print(f"{'':<38} {'events/s':>12} {'with load':>12}  records")
    for name, rate, whole, note in rows:
        print(f"{name:<38} {rate:>12} {whole:>12}  {note}")


def best(session: Session, handler: object, params: TradingParams, **options: str) -> tuple[str, str, str]:
    """Return events/s while playing, events/s with opening the session and the run's end, and what was recorded."""
    playing, whole, records = 0.0, 0.0, 0
    for _ in range(3):
        player = ReplayEngine(SessionStore(session.root), handler, params=params)
        began = time.perf_counter()
        player.start_session(session.id, speed_factor=math.inf, **options)
        player.wait()
        whole = max(whole, session.events.height / (time.perf_counter() - began))
        run = player.last_run
        if run is not None:
            playing = max(playing, run.record["eventsPerSecond"])
            records = sum(run.record["counts"].values())
    return f"{playing:,.0f}", f"{whole:,.0f}", f"{records:,} lines" if records else ""


def nautilus(trades: pl.DataFrame, folder: Path) -> tuple[str, str, str]:
    interpreter = os.environ.get("NAUTILUS_PYTHON")
    if interpreter is None:
        return "not run", "", "(NAUTILUS_PYTHON is not set)"
    path = folder / "ticks.npy"
    times = trades["timestamp"].dt.timestamp("ns").to_numpy()
    np.save(path, np.stack([times.astype(np.float64), trades["price"].to_numpy(), trades["qty"].to_numpy()]))
    answer = subprocess.run(
        [interpreter, "-c", NAUTILUS, str(path)], capture_output=True, text=True, check=False, cwd=folder
    )
    if answer.returncode:
        return "failed", "", answer.stderr.strip().splitlines()[-1][:80]
    rate, whole, version = answer.stdout.split()[-3:]
    return f"{float(rate):,.0f}", f"{float(whole):,.0f}", f"version {version}"


NAUTILUS = """
import sys, time
import numpy as np
import nautilus_trader
from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig
from nautilus_trader.config import LoggingConfig
from nautilus_trader.model.currencies import USDT
from nautilus_trader.model.data import TradeTick
from nautilus_trader.model.enums import AccountType, AggressorSide, OmsType
from nautilus_trader.model.identifiers import TradeId, Venue
from nautilus_trader.model.objects import Money
from nautilus_trader.test_kit.providers import TestInstrumentProvider
from nautilus_trader.trading.strategy import Strategy

class Nothing(Strategy):
    def on_start(self):
        self.seen = 0
        self.subscribe_trade_ticks(INSTRUMENT.id)
    def on_trade_tick(self, tick):
        self.seen += 1

INSTRUMENT = TestInstrumentProvider.btcusdt_binance()
data = np.load(sys.argv[1])
best = whole_best = 0.0
for _ in range(3):
    began = time.perf_counter()
    engine = BacktestEngine(BacktestEngineConfig(logging=LoggingConfig(bypass_logging=True)))
    engine.add_venue(venue=Venue("BINANCE"), oms_type=OmsType.NETTING, account_type=AccountType.MARGIN,
                     starting_balances=[Money(1_000_000, USDT)], base_currency=None)
    engine.add_instrument(INSTRUMENT)
    ticks = [
        TradeTick(INSTRUMENT.id, INSTRUMENT.make_price(price), INSTRUMENT.make_qty(max(qty, 1e-6)),
                  AggressorSide.BUYER, TradeId(str(n)), int(ts), int(ts))
        for n, (ts, price, qty) in enumerate(data.T.tolist())
    ]
    engine.add_data(ticks)
    strategy = Nothing()
    engine.add_strategy(strategy)
    start = time.perf_counter()
    engine.run()
    end = time.perf_counter()
    assert strategy.seen == len(ticks), strategy.seen
    best = max(best, len(ticks) / (end - start))
    whole_best = max(whole_best, len(ticks) / (end - began))
    engine.dispose()
print(best, whole_best, nautilus_trader.__version__)
"""


if __name__ == "__main__":
    main()
