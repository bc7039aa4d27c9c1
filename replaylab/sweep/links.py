"""The small parts of a chain walk: searches, a trade's accounting, and what a symbol is doing."""

from __future__ import annotations

from typing import Any

import numpy as np

from replaylab.barriers.index import first_ge, first_le, range_max, range_min
from replaylab.compiled import inlined
from replaylab.sweep import rules
from replaylab.sweep.kernel_loop import realise
from replaylab.sweep.rules import book_trade

__all__ = [
    "CHAIN",
    "DONE",
    "ENTER",
    "EXIT",
    "FILL",
    "NEVER",
    "PART",
    "SEEK",
    "UNKNOWN",
    "advance",
    "cell",
    "first_at_least",
    "first_beyond",
    "first_close",
    "settle",
    "towards",
    "trailing_stop",
]

NEVER = 2**62
# What a symbol is doing: looking for its next entry, about to enter, in a trade (before its entry fill, before TP1,
# before its exit), or done for good. The stages before the exit are stopped at only where a daily loss counts.
SEEK, ENTER, FILL, PART, EXIT, DONE = 0, 1, 2, 3, 4, 5
UNKNOWN = -1
CHAIN = np.dtype(
    [
        ("phase", "i8"),
        ("action", "i8"),
        ("cand", "i8"),
        ("follower", "i8"),
        ("q", "i8"),
        ("t1", "i8"),
        ("x", "i8"),
        ("reason", "i8"),
        ("direction", "f8"),
        ("entry", "f8"),
        ("qty", "f8"),
    ],
    align=True,
)


@inlined
def first_at_least(values: Any, start: Any, end: Any, wanted: Any) -> Any:
    """First i in [start, end) with values[i] ≥ wanted, else end; values ascend. Fast when near the start."""
    step = 1
    low = start
    high = start
    while high < end and values[high] < wanted:
        low = high + 1
        high += step
        step *= 2
    high = min(high, end)
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def cell(ticks: Any, cand_at: Any, touch: Any, x: Any, end: Any) -> Any:
    """A table's cell: ``touch`` + 1, and below it the first candidate at or after the price event ``x``.

    One number, so that threads that share the table can never see a half of it; and the chain goes on to the next
    entry without waiting for what lies at ``x``.
    """
    follower = np.int64(cand_at[ticks[x].next_score]) if x < end else np.int64(0)
    return (touch + 1) << 32 | follower


@inlined
def towards(
    price: Any, high: Any, low: Any, offsets: Any, start: Any, end: Any, level: Any, direction: Any
) -> Any:
    """First price event in [start, end) with dir·(p − level) ≥ 0, else end."""
    if direction > 0.0:
        return first_ge(price, high, offsets, start, end, level)
    return first_le(price, low, offsets, start, end, level)


@inlined
def first_beyond(
    score: Any, high: Any, low: Any, offsets: Any, start: Any, end: Any, threshold: Any, direction: Any
) -> Any:
    """First score in [start, end) with dir·score < threshold: at or beyond the number next to it."""
    if direction > 0.0:
        return first_le(score, low, offsets, start, end, np.nextafter(threshold, -np.inf))
    return first_ge(score, high, offsets, start, end, np.nextafter(-threshold, np.inf))


@inlined
def trailing_stop(
    price: Any, high: Any, low: Any, offsets: Any, q: Any, until: Any, entry: Any, direction: Any, p: Any
) -> Any:
    """The trailing stop that the prices in [q, until) raised; NaN while it is not active."""
    rising = direction > 0.0
    best = range_max(price, high, offsets, q, until) if rising else range_min(price, low, offsets, q, until)
    if rules.trailing_active(best, entry, direction, p.trailing_activation_pct):
        return rules.trailing_price(best, direction, p.trailing_distance_pct)
    return np.nan


@inlined
def settle(
    s: Any,
    p: Any,
    tp1: Any,
    tp2: Any,
    market: Any,
    ts: Any,
    duration: Any,
    losses: Any,
    account: Any,
    raw: Any,
) -> None:
    """Book the trade that exits now, and its last fill on its day; ``market`` is what a market exit would get."""
    direction, entry, qty = s.direction, s.entry, s.qty
    left = qty
    gross = 0.0
    fees = rules.fee(entry, qty, p.taker_fee_bps)
    if s.t1 >= 0:
        part = rules.tp1_qty(qty, p.tp1_fraction)
        gross += rules.gross_pnl(tp1, entry, part, direction)
        fees += rules.fee(tp1, part, p.maker_fee_bps)
        left = rules.remaining_qty(qty, part)
    if s.reason != rules.TP1:
        fill = tp2 if s.reason == rules.TP2 else market
        cost = rules.fee(fill, left, p.maker_fee_bps if s.reason == rules.TP2 else p.taker_fee_bps)
        last = rules.gross_pnl(fill, entry, left, direction)
        gross += last
        fees += cost
        if losses and s.reason != rules.SESSION_END:
            realise(account, p, ts, rules.realized_pnl(last, cost))
    book_trade(raw, gross, fees, duration, s.reason)


@inlined
def advance(s: Any, p: Any, ticks: Any, account: Any) -> None:
    """Book the entry's fee or TP1's part on the day of its event, for the daily loss; go to the next action."""
    if s.phase == FILL:
        realise(account, p, ticks[s.q].ts, -rules.fee(s.entry, s.qty, p.taker_fee_bps))
        s.phase = PART if s.t1 >= 0 else EXIT
    else:
        fill = rules.target_price(s.entry, s.direction, p.tp1_pct)
        part = rules.tp1_qty(s.qty, p.tp1_fraction)
        gross = rules.gross_pnl(fill, s.entry, part, s.direction)
        cost = rules.fee(fill, part, p.maker_fee_bps)
        realise(account, p, ticks[s.t1].ts, rules.realized_pnl(gross, cost))
        s.phase = EXIT
    s.action = ticks[s.t1 if s.phase == PART else s.x].index


@inlined
def first_close(state: Any, ticks: Any) -> Any:
    """Index of the first close of an open position; a close at the session's end frees nothing."""
    free = NEVER
    for k in range(len(state)):
        o = state[k]
        if FILL <= o.phase <= EXIT and o.reason != rules.SESSION_END:
            free = min(free, ticks[o.x].index)
    return free
