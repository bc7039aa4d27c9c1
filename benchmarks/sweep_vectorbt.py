"""vectorbt on the work of the simple sweep; run by sweep.py with the Python of an environment that has vectorbt.

Two routes that follow the model's rules exactly (entry at the tick after the score, stop at the tick's price, target at
its level); ``from_signals`` fills stops at other prices:

- ``from_order_func`` with a compiled order function: vectorbt's own way of writing such rules;
- a compiled loop that writes sizes, prices and fees, and ``from_orders`` that accounts for them: the fastest found.

Prints per route: name, seconds, trades and PnL, separated by tabs.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import vectorbt as vbt
from numba import njit
from vectorbt.portfolio import nb


@njit
def order_func(c, score, threshold, tp, sl, fees, state):
    slip, taker, maker, notional = fees
    x = c.close[c.i, c.col]
    own = state[c.col]
    order = nb.order_nothing_nb()
    if c.position_now != 0.0:
        d = own[1]
        if d * (x - own[3]) <= 0:
            order = nb.order_nb(size=-c.position_now, price=x * (1 - d * slip), fees=taker)
            own[1] = 0.0
        elif d * (x - own[2]) >= 0:
            order = nb.order_nb(size=-c.position_now, price=own[2], fees=maker)
            own[1] = 0.0
    elif own[0] != 0.0:
        d = own[0]
        entry = x * (1 + d * slip)
        own[0] = 0.0
        own[1] = d
        own[2] = entry * (1 + d * tp[c.col])
        own[3] = entry * (1 - d * sl[c.col])
        order = nb.order_nb(size=d * notional / entry, price=entry, fees=taker)
    if own[1] == 0.0 and own[0] == 0.0 and abs(score[c.i]) >= threshold[c.col]:
        own[0] = 1.0 if score[c.i] > 0 else -1.0
    return order


@njit(parallel=False)
def write_orders(ticks, score, threshold, tp, sl, fees):
    slip, taker, maker, notional = fees
    shape = (len(ticks), len(threshold))
    size, price, rate = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape)
    for col in range(shape[1]):
        pending = d = qty = target = stop = 0.0
        for i in range(len(ticks)):
            x = ticks[i]
            if qty != 0.0:
                stopped = d * (x - stop) <= 0
                if stopped or d * (x - target) >= 0:
                    size[i, col] = -d * qty
                    price[i, col] = x * (1 - d * slip) if stopped else target
                    rate[i, col] = taker if stopped else maker
                    qty = 0.0
            elif pending != 0.0:
                d = pending
                pending = 0.0
                entry = x * (1 + d * slip)
                qty = notional / entry
                target = entry * (1 + d * tp[col])
                stop = entry * (1 - d * sl[col])
                size[i, col] = d * qty
                price[i, col] = entry
                rate[i, col] = taker
            if qty == 0.0 and pending == 0.0 and abs(score[i]) >= threshold[col]:
                pending = 1.0 if score[i] > 0 else -1.0
    return size, price, rate


def by_order_func(close, work, arguments, fees, columns):
    return vbt.Portfolio.from_order_func(
        close,
        order_func,
        *arguments,
        fees,
        np.zeros((columns, 4)),
        init_cash=1e9,
        update_value=False,
        ffill_val_price=False,
        fill_pos_record=False,
        max_orders=int(work["max_orders"]) * columns,
        max_logs=1,
    )


def by_orders(close, work, arguments, fees, columns):
    size, price, rate = write_orders(work["price"], *arguments, fees)
    return vbt.Portfolio.from_orders(
        close,
        size=size,
        price=price,
        fees=rate,
        init_cash=1e9,
        update_value=False,
        ffill_val_price=False,
        max_orders=int(work["max_orders"]) * columns,
        max_logs=1,
    )


def run(route, work, columns):
    close = np.repeat(work["price"][:, None], columns, axis=1)
    fees = tuple(float(value) for value in work["fees"])
    arguments = [work["score"]] + [work[name][:columns].copy() for name in ("threshold", "tp", "sl")]
    start = time.perf_counter()
    trades = route(close, work, arguments, fees, columns).trades
    count, pnl = np.asarray(trades.count()), np.asarray(trades.pnl.sum())
    return time.perf_counter() - start, count, pnl


def main():
    work = dict(np.load(sys.argv[1]))
    columns = len(work["threshold"])
    small = {**work, "price": work["price"][:1000], "score": work["score"][:1000]}
    for name, route in (("from_order_func", by_order_func), ("loop + from_orders", by_orders)):
        run(route, small, columns)
        took, count, pnl = run(route, work, columns)
        print(f"vectorbt {name}", took, int(count.sum()), float(np.nansum(pnl)), sep="\t")


if __name__ == "__main__":
    main()
