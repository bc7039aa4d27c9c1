"""vectorbt on the work of the simple sweep; run by sweep.py with the Python of an environment that has vectorbt.

Its fastest exact route: ``Portfolio.from_order_func`` with a compiled order function, which follows the model's rules
(entry at the tick after the score, stop at the tick's price, target at its level). ``from_signals`` is faster to write
and fills stops at other prices. Prints what was timed, seconds, trades and PnL per line, separated by tabs.
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


def run(work, columns):
    close = np.repeat(work["price"][:, None], columns, axis=1)
    state = np.zeros((columns, 4))
    fees = tuple(float(value) for value in work["fees"])
    arguments = [work["score"]] + [work[name][:columns].copy() for name in ("threshold", "tp", "sl")]
    start = time.perf_counter()
    portfolio = vbt.Portfolio.from_order_func(
        close,
        order_func,
        *arguments,
        fees,
        state,
        init_cash=1e9,
        update_value=False,
        ffill_val_price=False,
        fill_pos_record=False,
        max_orders=int(work["max_orders"]) * columns,
        max_logs=1,
    )
    trades = portfolio.trades
    count, pnl = np.asarray(trades.count()), np.asarray(trades.pnl.sum())
    return time.perf_counter() - start, count, pnl


def main():
    work = dict(np.load(sys.argv[1]))
    columns = len(work["threshold"])
    small = {**work, "price": work["price"][:1000], "score": work["score"][:1000]}
    run(small, columns)
    took, count, pnl = run(work, columns)
    print("vectorbt from_order_func", took, int(count.sum()), float(np.nansum(pnl)), sep="\t")


if __name__ == "__main__":
    main()
