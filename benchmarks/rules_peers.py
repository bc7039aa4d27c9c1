"""The rules of rules.py in vectorbt and in backtesting.py; run by it with the Python of an environment that has them.

Prints a line for each rule: processor seconds, trades, PnL and sets, separated by tabs. Entry at the tick after the
score, stop and rule at the price that reaches them, without costs: the same trades as ours.
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np


def ask(which, d, entry, age, best, x):
    """What a rule answers: 0 holds, −1 closes, a price moves the stop if that is tighter; numbered as RULES."""
    if which == 0:
        wanted = max(0.6 - 0.01 * math.floor(age / 5.0) * 5.0 / 60.0, 0.1)
        return -1.0 if d * (x - entry * (1.0 + d * wanted / 100.0)) >= 0.0 else 0.0
    if which == 1:
        return best * (1.0 - d * 0.3 / 100.0)
    if which == 2:
        steps = math.floor(d * (best / entry - 1.0) * 100.0 / 0.2)
        return entry * (1.0 + d * (steps - 1) * 0.2 / 100.0) if steps >= 1 else 0.0
    if which == 3:
        won = d * (best - entry)
        return -1.0 if won > 0.002 * entry and d * (x - entry) < 0.5 * won else 0.0
    return -1.0 if age >= 600.0 and d * (best / entry - 1.0) * 100.0 < 0.2 else 0.0


def vectorbt(work, which):
    """``from_order_func`` with a compiled order function that keeps what it must know of the open trade."""
    import vectorbt as vbt
    from numba import njit
    from vectorbt.portfolio import nb

    asked = njit(ask)

    @njit
    def order_func(c, ts, score, threshold, sl, which, notional, state):
        x = c.close[c.i, c.col]
        own = state[c.col]
        order = nb.order_nothing_nb()
        if c.position_now != 0.0:
            d, entry = own[1], own[2]
            own[4] = max(own[4], x) if d > 0.0 else min(own[4], x)
            closes = d * (x - own[5]) <= 0.0
            if not closes:
                answer = asked(which, d, entry, (ts[c.i] - own[3]) / 1e9, own[4], x)
                closes = answer == -1.0
                if answer > 0.0 and d * (answer - own[5]) > 0.0:
                    own[5] = answer
            if closes:
                order = nb.order_nb(size=-c.position_now, price=x)
                own[1] = 0.0
        elif own[0] != 0.0:
            d = own[0]
            own[0] = 0.0
            own[1] = d
            own[2] = x
            own[3] = ts[c.i]
            own[4] = x
            own[5] = x * (1.0 - d * sl[c.col] / 100.0)
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
            which,
            float(work["notional"]),
            np.zeros((columns, 6)),
            init_cash=1e9,
            update_value=False,
            ffill_val_price=False,
            fill_pos_record=False,
            max_logs=1,
        ).trades
        count, pnl = int(np.sum(trades.count())), float(np.nansum(trades.pnl.sum()))
        return time.process_time() - start, count, pnl, columns

    columns = int(work["columns"])
    # Enough ticks for some trades: what counts them is compiled, too.
    run(len(work["price"]) // 4, columns)
    return run(len(work["price"]), columns)


def backtesting(work, which):
    """``Strategy.next`` with orders at the close of the bar; one set."""
    import pandas as pd
    from backtesting import Backtest, Strategy

    price, ts, score = work["price"], work["ts"], work["score"]
    threshold, sl = float(work["threshold"][0]), float(work["sl"][0])
    notional = float(work["notional"])

    class Rule(Strategy):
        def init(self):
            self.pending, self.side, self.entered, self.best, self.stop = 0.0, 0.0, 0, 0.0, 0.0

        def next(self):
            i = len(self.data) - 1
            x = price[i]
            if self.side:
                d, entry = self.side, price[self.entered]
                self.best = max(self.best, x) if d > 0.0 else min(self.best, x)
                closes = d * (x - self.stop) <= 0.0
                if not closes:
                    answer = ask(which, d, entry, (ts[i] - ts[self.entered]) / 1e9, self.best, x)
                    closes = answer == -1.0
                    if answer > 0.0 and d * (answer - self.stop) > 0.0:
                        self.stop = answer
                if closes:
                    self.position.close()
                    self.side = 0.0
            elif self.pending:
                self.side, self.entered = self.pending, i
                self.pending = 0.0
                self.best, self.stop = x, x * (1.0 - self.side * sl / 100.0)
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
    for which in range(int(work["rules"])):
        print(
            *{"vectorbt": vectorbt, "backtesting": backtesting}[sys.argv[1]](work, which),
            sep="\t",
            flush=True,
        )


if __name__ == "__main__":
    main()
