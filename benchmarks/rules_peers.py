"""The rule of rules.py in vectorbt and in backtesting.py; run by it with the Python of an environment that has them.

Prints processor seconds, trades, PnL and sets, separated by tabs. Entry at the tick after the score, stop and target at
the price that reaches them, without costs: the same trades as ours.
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np


def vectorbt(work):
    """``from_order_func`` with a compiled order function that keeps the entry of the open trade."""
    import vectorbt as vbt
    from numba import njit
    from vectorbt.portfolio import nb

    @njit
    def order_func(c, ts, score, threshold, sl, rule, notional, state):
        x = c.close[c.i, c.col]
        own = state[c.col]
        order = nb.order_nothing_nb()
        if c.position_now != 0.0:
            d, entry = own[1], own[2]
            age = math.floor((ts[c.i] - own[3]) / 1e9 / rule[3]) * rule[3]
            wanted = max(rule[0] - rule[1] * age / 60.0, rule[2])
            stopped = d * (x - entry * (1 - d * sl[c.col] / 100.0)) <= 0
            if stopped or d * (x - entry * (1 + d * wanted / 100.0)) >= 0:
                order = nb.order_nb(size=-c.position_now, price=x)
                own[1] = 0.0
        elif own[0] != 0.0:
            d = own[0]
            own[0] = 0.0
            own[1] = d
            own[2] = x
            own[3] = ts[c.i]
            order = nb.order_nb(size=d * notional / x, price=x)
        if own[1] == 0.0 and own[0] == 0.0 and abs(score[c.i]) >= threshold[c.col]:
            own[0] = 1.0 if score[c.i] > 0 else -1.0
        return order

    def run(ticks, columns):
        close = np.repeat(work["price"][:ticks, None], columns, axis=1)
        start = time.process_time()
        trades = vbt.Portfolio.from_order_func(
            close,
            order_func,
            work["ts"][:ticks].astype(np.float64),
            work["score"][:ticks],
            work["threshold"][:columns].copy(),
            work["sl"][:columns].copy(),
            work["rule"],
            float(work["notional"]),
            np.zeros((columns, 4)),
            init_cash=1e9,
            update_value=False,
            ffill_val_price=False,
            fill_pos_record=False,
            max_logs=1,
        ).trades
        count, pnl = int(np.sum(trades.count())), float(np.nansum(trades.pnl.sum()))
        return time.process_time() - start, count, pnl, columns

    columns = int(work["columns"])
    run(1000, columns)
    return run(len(work["price"]), columns)


def backtesting(work):
    """``Strategy.next`` with orders at the close of the bar; one set."""
    import pandas as pd
    from backtesting import Backtest, Strategy

    price, ts, score = work["price"], work["ts"], work["score"]
    threshold, sl = float(work["threshold"][0]), float(work["sl"][0])
    start_pct, per_minute, least, step = (float(one) for one in work["rule"])
    notional = float(work["notional"])

    class Rule(Strategy):
        def init(self):
            self.pending, self.side, self.entered = 0.0, 0.0, 0

        def next(self):
            i = len(self.data) - 1
            x = price[i]
            if self.side:
                d, entry = self.side, price[self.entered]
                age = math.floor((ts[i] - ts[self.entered]) / 1e9 / step) * step
                wanted = max(start_pct - per_minute * age / 60.0, least)
                if (
                    d * (x - entry * (1 - d * sl / 100.0)) <= 0
                    or d * (x - entry * (1 + d * wanted / 100.0)) >= 0
                ):
                    self.position.close()
                    self.side = 0.0
            elif self.pending:
                self.side, self.entered = self.pending, i
                self.pending = 0.0
                (self.buy if self.side > 0 else self.sell)(size=1)
            if not self.side and not self.pending and abs(score[i]) >= threshold:
                self.pending = 1.0 if score[i] > 0 else -1.0

    def run(ticks):
        bars = pd.DataFrame(dict.fromkeys(("Open", "High", "Low", "Close"), price[:ticks]))
        test = Backtest(
            bars, Rule, cash=1e9, trade_on_close=True, exclusive_orders=False, finalize_trades=True
        )
        start = time.process_time()
        trades = test.run()._trades
        took = time.process_time() - start
        moved = (trades["ExitPrice"] / trades["EntryPrice"] - 1.0) * np.sign(trades["Size"])
        return took, len(trades), float(moved.sum() * notional), 1

    return run(len(price))


def main():
    work = dict(np.load(sys.argv[2]))
    print(*{"vectorbt": vectorbt, "backtesting": backtesting}[sys.argv[1]](work), sep="\t")


if __name__ == "__main__":
    main()
