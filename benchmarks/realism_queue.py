"""Limit orders of one capture in replaylab and in hftbacktest: which fill, and why where they differ.

Used by realism.py, which has the orders and our fills; run with another Python it is the peer:

    /path/to/venv/bin/python benchmarks/realism_queue.py events.npy orders.npy fills.npy

The peer has hftbacktest's risk-averse queue model, its exchange without partial fills, no latency, and the feed in the
order of our session. An order goes in at its decision and is cancelled when ours expires.

To explain the differences, a plain third implementation of our rules takes on the peer's rules one after the other:
what becomes equal with a rule differed for it. Its first form must fill what our model fills, its last what hftbacktest
fills.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from bisect import bisect_right
from math import floor, inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TICK, LOT = 0.1, 0.001
BUY, SELL = 1, -1
# The peer's rules, in the order in which they are taken on.
STEPS = {
    "arrival": "the order rests from its decision, not from the next print",
    "queue": "the queue ahead shrinks with the displayed size (cancellations)",
    "own": "filled once the queue ahead is gone, not when our own quantity has traded, too",
    "book": "filled when the other side's best quote reaches the price, before a print shows it",
    "taker": "a print through the price counts only where its taker is on the other side",
}


class Order(NamedTuple):
    """A resting order: +1 buys, −1 sells; ``at`` its event, ``ts`` its time, ``until`` the end of its life."""

    at: int
    ts: int
    side: int
    price: int  # ticks
    qty: float
    until: int


def ticks(price: float) -> int:
    return round(price / TICK)


class Seen:
    """The events of a session, the best quotes after each, and what each changes in the book."""

    def __init__(self, session: Any) -> None:
        events = session.events
        self.ts = events["timestamp"].dt.epoch("ns").to_list()
        self.kind = events["type"].to_list()
        self.payload = [json.loads(text) for text in events["payload"]]
        self.best: list[tuple[int, int]] = []
        self.changes: list[dict[tuple[int, int], float]] = []
        self.at_best: list[tuple[float, float]] = []
        bids: dict[int, float] = {}
        asks: dict[int, float] = {}
        for kind, payload in zip(self.kind, self.payload, strict=True):
            changed: dict[tuple[int, int], float] = {}
            if kind == "MARKET_BOOK":
                for side, sign, name in ((bids, BUY, "bids"), (asks, SELL, "asks")):
                    if payload.get("kind") != "delta":
                        side.clear()
                    for price, qty in payload[name]:
                        changed[sign, ticks(price)] = qty
                        side[ticks(price)] = qty
                        if qty == 0:
                            del side[ticks(price)]
            self.changes.append(changed)
            best = (max(bids, default=0), min(asks, default=2**40))
            self.best.append(best)
            self.at_best.append((bids.get(best[0], 0.0), asks.get(best[1], 0.0)))


def orders_of(market: Seen, notional_usd: float, ttl_s: float) -> list[Order]:
    """Return a buy at the best bid and a sale at the best ask for each decision."""
    found = []
    prints = [k for k, kind in enumerate(market.kind) if kind == "MARKET_TRADE"]
    for k, kind in enumerate(market.kind):
        if kind != "SCORING_UPDATE":
            continue
        side = BUY if market.payload[k]["score"] > 0 else SELL
        price = market.best[k][side == SELL]
        after = bisect_right(prints, k)
        from_ts = market.ts[prints[after]] if after < len(prints) else market.ts[k]
        qty = floor(notional_usd / (price * TICK) / LOT + 1e-9) * LOT
        found.append(Order(k, market.ts[k], side, price, qty, from_ts + round(ttl_s * 1e9)))
    return found


def slow_fill(market: Seen, order: Order, steps: list[str]) -> bool:
    """Whether an order fills, event by event, under our rules with some of the peer's."""
    shown = market.at_best[order.at][order.side == SELL]
    resting = "arrival" in steps
    ahead = shown
    for k in range(order.at + 1, len(market.ts)):
        if market.ts[k] >= order.until:
            return False
        opposite = market.best[k][order.side == BUY]
        reached = order.side * (order.price - opposite) >= 0
        if market.kind[k] == "MARKET_BOOK":
            change = market.changes[k].get((order.side, order.price))
            if change is not None:
                shown = change
                if "queue" in steps:
                    ahead = min(ahead, shown)
            if "book" in steps and resting and reached:
                return True
        if market.kind[k] != "MARKET_TRADE":
            continue
        trade = market.payload[k]
        through = order.side * (order.price - ticks(trade["price"]))
        against = trade["side"] == ("SELL" if order.side == BUY else "BUY")
        if not resting:
            # Arrival at a print: post-only.
            if reached:
                return False
            resting = True
            inside = market.best[k][0] < order.price < market.best[k][1]
            ahead = shown if shown > 0 else (0.0 if inside else inf)
            continue
        if through > 0 and (against or "taker" not in steps):
            return True
        if through == 0 and against:
            ahead -= trade["qty"]
            if round(ahead / LOT) < 0 if "own" in steps else ahead <= 1e-9 - order.qty:
                return True
    return False


def compare(market: Seen, orders: list[Order], ours: list[bool], peer: str) -> None:
    """Print how many orders fill here and there, and how many decisions are equal after each step."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("events.npy", "orders.npy", "fills.npy")]
        np.save(files[0], feed(market))
        np.save(files[1], np.array([(o.ts, o.until, o.side, o.price * TICK, o.qty) for o in orders]))
        subprocess.run([peer, __file__, *files], check=True)
        theirs = np.load(files[2]).astype(bool).tolist()
    print(f"\nLimit orders at the best quote of BTCUSDT, {len(orders):,} orders, beside hftbacktest\n")
    again = [slow_fill(market, order, []) for order in orders]
    print(f"The plain form of our rules decides like the model in {share(ours, again)} of the orders.")
    print(
        f"Filled: {sum(ours):,} by replaylab's queue, {sum(theirs):,} by the risk-averse queue of hftbacktest\n"
    )
    print(
        "| rule of hftbacktest taken on, one after the other | equal decisions | became equal | became different |"
    )
    print("|---|---|---|---|")
    before, steps = ours, []
    for name, meaning in {"": "none: replaylab's model", **STEPS}.items():
        steps += [name]
        now = ours if not name else [slow_fill(market, order, steps) for order in orders]
        better = sum(b != t and n == t for b, n, t in zip(before, now, theirs, strict=True))
        worse = sum(b == t and n != t for b, n, t in zip(before, now, theirs, strict=True))
        print(f"| {meaning} | {share(now, theirs)} | {better} | {worse} |")
        before = now


def share(some: list[bool], others: list[bool]) -> str:
    return f"{100 * np.mean(np.array(some) == np.array(others)):.1f} %"


EVENT = np.dtype(
    [
        ("ev", "u8"),
        ("exch_ts", "i8"),
        ("local_ts", "i8"),
        ("px", "f8"),
        ("qty", "f8"),
        ("order_id", "u8"),
        ("ival", "i8"),
        ("fval", "f8"),
    ]
)
BOTH, OF_BUY, OF_SELL, DEPTH, TRADE = 1 << 31 | 1 << 30, 1 << 29, 1 << 28, 1, 2


def feed(market: Seen) -> Any:
    """Return the events in hftbacktest's form; exchange and local time are the same."""
    rows = []
    for ts, kind, payload in zip(market.ts, market.kind, market.payload, strict=True):
        if kind == "MARKET_TRADE":
            side = OF_BUY if payload["side"] == "BUY" else OF_SELL
            rows.append((BOTH | TRADE | side, ts, ts, payload["price"], payload["qty"], 0, 0, 0.0))
        elif kind == "MARKET_BOOK":
            for side, name in ((OF_BUY, "bids"), (OF_SELL, "asks")):
                rows += [(BOTH | DEPTH | side, ts, ts, price, qty, 0, 0, 0.0) for price, qty in payload[name]]
    return np.array(rows, dtype=EVENT)


def run_peer(events: str, orders: str, fills: str) -> None:
    """Write which orders hftbacktest fills. Runs with the Python that has it."""
    import hftbacktest as hft
    from numba import njit

    @njit
    def play(hbt, at, order, opens, rows, filled):
        # The clock of a backtest that has not begun is not a time.
        hbt.elapse(1)
        for k in range(len(at)):
            if hbt.elapse(at[k] - hbt.current_timestamp) != 0:
                break
            j = order[k]
            side, price, qty = rows[j, 2], rows[j, 3], rows[j, 4]
            if opens[k]:
                if side > 0:
                    hbt.submit_buy_order(0, j + 1, price, qty, hft.GTX, hft.LIMIT, False)
                else:
                    hbt.submit_sell_order(0, j + 1, price, qty, hft.GTX, hft.LIMIT, False)
            else:
                one = hbt.orders(0).get(j + 1)
                filled[j] = one is not None and one.status == hft.FILLED
                if one is not None and one.cancellable:
                    hbt.cancel(0, j + 1, False)
        for j in range(len(rows)):
            one = hbt.orders(0).get(j + 1)
            if one is not None and one.status == hft.FILLED:
                filled[j] = True

    rows = np.load(orders)
    data = np.load(events)
    asset = (
        hft.BacktestAsset()
        .data([data])
        .linear_asset(1.0)
        .constant_order_latency(0, 0)
        .risk_adverse_queue_model()
        .no_partial_fill_exchange()
        .trading_value_fee_model(0.0, 0.0)
        .tick_size(TICK)
        .lot_size(LOT)
        .last_trades_capacity(0)
    )
    moments = np.concatenate([rows[:, 0], rows[:, 1] - 1]).astype(np.int64)
    which = np.tile(np.arange(len(rows)), 2)
    opens = np.arange(len(moments)) < len(rows)
    turn = np.argsort(moments, kind="stable")
    filled = np.zeros(len(rows), dtype=np.bool_)
    hbt = hft.HashMapMarketDepthBacktest([asset])
    play(hbt, moments[turn], which[turn], opens[turn], rows, filled)
    np.save(fills, filled)


if __name__ == "__main__":
    run_peer(*sys.argv[1:])
