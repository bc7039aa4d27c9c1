"""How fast features, scores and decisions are made: event by event, and over a whole tape at once.

    python benchmarks/features.py                 # about half a minute
    python benchmarks/features.py --events 200000

Data: a seeded tape of one symbol, trades only, log-normal steps, about 280 trades a second, one in four on the
millisecond of the one before; and the same with a book of 20 levels a side after every tenth trade.

Vectorised: ``compute`` (24 features, a row per distinct time) and ``score_series`` over packed arrays, and
``pack_market``, which reads the JSON payloads of a session into such arrays. Event by event: ``FeatureEngine`` fed and
asked at every trade, and the trading system in FULL_DECISION and SCORING_ONLY without a recorder, on payloads that are
decoded already. Each is the best of three.

What it does not show: reading the session from disk, logging (benchmarks/replay.py has the trading system with it),
deep books with many deltas, and more than one core: each of these runs on one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import polars as pl

from replaylab import ScoringParams, TradingParams
from replaylab.features import FeatureEngine, compute, pack_market, score_series
from replaylab.trading import TradingSystem

SCORING = ScoringParams(warmup_s=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    n = parser.parse_args().events
    few = n // 10
    print(f"{'what':44} {'events':>10} {'seconds':>9} {'events/s':>12}")
    trades = session(n, books=False)
    tapes = pack_market(trades)
    both = session(few, books=True)
    compute(pack_market(trades.head(100)))
    score_series(pack_market(trades.head(100)), SCORING)
    line("vectorised: 24 features", n, lambda: compute(tapes))
    line("vectorised: score and regime", n, lambda: score_series(tapes, SCORING))
    line("packing JSON payloads, trades", n, lambda: pack_market(trades))
    line("packing JSON payloads, 10 % books", both.height, lambda: pack_market(both))
    rows, mixed = plain(trades.head(few)), plain(both.head(few))
    line("event by event: 24 features", few, lambda: ask(rows))
    line("trading system, FULL_DECISION, trades", few, lambda: decide(rows, "FULL_DECISION"))
    line(
        "trading system, FULL_DECISION, 10 % books",
        few,
        lambda: decide(mixed, "FULL_DECISION"),
    )
    scored = with_scores(rows)
    line("trading system, SCORING_ONLY, 10 % scores", len(scored), lambda: decide(scored, "SCORING_ONLY"))


def line(name: str, events: int, work: Callable[[], Any]) -> None:
    best = min(timed(work) for _ in range(3))
    print(f"{name:44} {events:>10,} {best:>9.3f} {events / best:>12,.0f}")


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def session(n: int, *, books: bool) -> pl.DataFrame:
    """Events of a session as its frame has them."""
    source = np.random.default_rng(1)
    ts = 1_763_460_000_000_000_000 + np.sort(source.integers(0, n * 36 // 10, n)) * 1_000_000
    prices = 60_000 * np.exp(np.cumsum(source.normal(0, 1e-5, n)))
    qty, buys = source.exponential(0.05, n), source.random(n) < 0.5
    times, kinds, payloads = [], [], []
    levels = np.arange(1, 21)
    for k, (when, price, size, buy) in enumerate(zip(ts.tolist(), prices, qty.tolist(), buys, strict=True)):
        trade = {"price": float(price), "qty": size, "side": "BUY" if buy else "SELL", "tradeId": str(k)}
        times.append(when)
        kinds.append("MARKET_TRADE")
        payloads.append(orjson.dumps(trade).decode())
        if books and k % 10 == 0:
            sides = {
                name: np.column_stack([price + sign * levels, source.exponential(1, 20)]).tolist()
                for name, sign in (("bids", -1), ("asks", 1))
            }
            times.append(when)
            kinds.append("MARKET_BOOK")
            payloads.append(orjson.dumps(sides).decode())
    return pl.DataFrame(
        {
            "timestamp": pl.Series(times).cast(pl.Datetime("ns", "UTC")),
            "type": kinds,
            "symbol": ["BTCUSDT"] * len(times),
            "payload": payloads,
        }
    )


def plain(frame: pl.DataFrame) -> list[tuple[int, str, dict[str, Any]]]:
    columns = (frame["timestamp"].dt.timestamp("ns").to_list(), frame["type"].to_list())
    return list(zip(*columns, map(orjson.loads, frame["payload"].to_list()), strict=True))


def with_scores(rows: list[tuple[int, str, dict[str, Any]]]) -> list[tuple[int, str, dict[str, Any]]]:
    source = np.random.default_rng(2)
    scores = source.uniform(-1, 1, len(rows) // 10).tolist()
    found = []
    for k, row in enumerate(rows):
        found.append(row)
        if k % 10 == 9:
            found.append((row[0], "SCORING_UPDATE", {"score": scores[k // 10]}))
    return found


def ask(rows: list[tuple[int, str, dict[str, Any]]]) -> None:
    engine = FeatureEngine()
    for ts, _, payload in rows:
        engine.trade(ts, payload["price"], payload["qty"], 1.0 if payload["side"] == "BUY" else -1.0)
        engine.row(ts)


def decide(rows: list[tuple[int, str, dict[str, Any]]], mode: str) -> None:
    system = TradingSystem(
        TradingParams(trailing_activation_pct=0.1),
        scoring=SCORING,
        inject_mode=mode,
        price_sources={"BTCUSDT": "trade"},
    )
    for index, (ts, kind, payload) in enumerate(rows):
        system.on_event(index, ts, kind, "BTCUSDT", payload)
    system.finish()


if __name__ == "__main__":
    main()
