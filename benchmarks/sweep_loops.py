"""The baselines: what a good programmer writes with numba in an afternoon, a parallel loop over every tick.

``score`` is aligned with the ticks: the score that follows a tick, NaN where none does. One symbol, no limits, no
latency. Returns per combination: trades, net PnL, gross, fees, wins, profits, losses, drawdown, sum and sum of squares,
time in the market.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

SUMS = 11


@njit(inline="always")
def book(sums, peak, gross, fees, duration):
    pnl = gross - fees
    sums[0] += 1
    sums[1] += pnl
    sums[2] += gross
    sums[3] += fees
    if pnl > 0:
        sums[4] += 1
        sums[5] += pnl
    else:
        sums[6] -= pnl
    peak = max(peak, sums[1])
    sums[7] = min(sums[7], sums[1] - peak)
    sums[8] += pnl
    sums[9] += pnl * pnl
    sums[10] += duration
    return peak


@njit(parallel=True, error_model="numpy")
def simple_loop(price, ts, score, params):
    """TP, SL, fees and slippage."""
    out = np.zeros((len(params), SUMS))
    for row in prange(len(params)):
        p = params[row]
        threshold, tp_pct, sl_pct = p.entry_threshold, p.tp2_pct / 100, p.sl_pct / 100
        slip, taker, maker = p.slippage_bps / 1e4, p.taker_fee_bps / 1e4, p.maker_fee_bps / 1e4
        sums = np.zeros(SUMS)
        peak = 0.0
        open_ = False
        pending = 0.0
        direction = entry = qty = tp = sl = 0.0
        since = 0
        for i in range(len(price)):
            x = price[i]
            if open_:
                closed = False
                if direction * (x - sl) <= 0:
                    fill = x * (1 - direction * slip)
                    rate = taker
                    closed = True
                elif direction * (x - tp) >= 0:
                    fill = tp
                    rate = maker
                    closed = True
                if closed:
                    fees = entry * qty * taker + fill * qty * rate
                    peak = book(sums, peak, direction * (fill - entry) * qty, fees, ts[i] - since)
                    open_ = False
            elif pending != 0.0:
                direction = pending
                pending = 0.0
                entry = x * (1 + direction * slip)
                qty = p.notional_usd / entry
                tp = entry * (1 + direction * tp_pct)
                sl = entry * (1 - direction * sl_pct)
                since = ts[i]
                open_ = True
            if not open_ and pending == 0.0 and abs(score[i]) >= threshold:
                pending = 1.0 if score[i] > 0 else -1.0
        if open_:
            fill = price[-1] * (1 - direction * slip)
            fees = entry * qty * taker + fill * qty * taker
            book(sums, peak, direction * (fill - entry) * qty, fees, ts[-1] - since)
        out[row] = sums
    return out


@njit(parallel=True, error_model="numpy")
def full_loop(price, ts, score, params):
    """Two targets, break-even, trailing stop, time limit, score exit, fees and slippage."""
    out = np.zeros((len(params), SUMS))
    for row in prange(len(params)):
        p = params[row]
        slip, taker, maker = p.slippage_bps / 1e4, p.taker_fee_bps / 1e4, p.maker_fee_bps / 1e4
        fraction, hold = p.tp1_fraction, p.max_hold_ns
        activation, distance = p.trailing_activation_pct, p.trailing_distance_pct / 100
        sums = np.zeros(SUMS)
        peak = 0.0
        open_ = False
        pending = 0.0
        leaving = False
        direction = entry = qty = left = tp1 = tp2 = stop = best = gross = fees = 0.0
        partly = False
        since = 0
        for i in range(len(price)):
            x = price[i]
            managed = False
            if open_:
                managed = True
                closed = False
                fill = x * (1 - direction * slip)
                rate = taker
                if direction * (x - stop) <= 0:
                    closed = True
                else:
                    if not partly and fraction > 0 and direction * (x - tp1) >= 0:
                        partly = True
                        part = qty * fraction
                        gross += direction * (tp1 - entry) * part
                        fees += tp1 * part * maker
                        left = qty - part
                        even = entry * (1 + direction * p.break_even_offset_pct / 100)
                        if direction * (even - stop) > 0:
                            stop = even
                    if direction * (x - tp2) >= 0:
                        closed = True
                        fill = tp2
                        rate = maker
                    elif (hold >= 0 and ts[i] - since >= hold) or leaving:
                        closed = True
                if closed:
                    gross += direction * (fill - entry) * left
                    fees += fill * left * rate
                    peak = book(sums, peak, gross, fees, ts[i] - since)
                    open_ = False
            elif pending != 0.0:
                managed = True
                direction = pending
                pending = 0.0
                entry = x * (1 + direction * slip)
                qty = left = p.notional_usd / entry
                gross = 0.0
                fees = entry * qty * taker
                tp1 = entry * (1 + direction * p.tp1_pct / 100)
                tp2 = entry * (1 + direction * p.tp2_pct / 100)
                stop = entry * (1 - direction * p.sl_pct / 100)
                best = x
                partly = False
                leaving = False
                since = ts[i]
                open_ = True
            if open_ and managed:
                if direction * (x - best) > 0:
                    best = x
                if direction * (best / entry - 1) * 100 >= activation:
                    trail = best * (1 - direction * distance)
                    if direction * (trail - stop) > 0:
                        stop = trail
            s = score[i]
            if not np.isnan(s):
                if open_:
                    if direction * s < p.exit_threshold:
                        leaving = True
                elif pending == 0.0 and abs(s) >= p.entry_threshold:
                    pending = 1.0 if s > 0 else -1.0
        if open_:
            fill = price[-1] * (1 - direction * slip)
            gross += direction * (fill - entry) * left
            fees += fill * left * taker
            book(sums, peak, gross, fees, ts[-1] - since)
        out[row] = sums
    return out
