"""The model from trade to trade: no event is looked at that decides nothing.

A combination is a chain: next entry, its exit, next entry after that. Where a trade exits does not depend on the
account, so it is the earliest of separate first touches: of the targets, of the stop, of the trailing stop, of the
market exits. Each is looked up in a table (``plan``) or searched through block minima and maxima. With limits, the
chains of all symbols are merged in the order of events. Figures equal those of ``kernel_loop`` to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replaylab.barriers.index import first_ge, first_le, range_max, range_min
from replaylab.features.compiled import compiled, inlined
from replaylab.sweep import rules
from replaylab.sweep.kernel_loop import ACCOUNT, entry_decided, realise, refused
from replaylab.sweep.rules import book_trade, entry_qty
from replaylab.sweep.trailing import first_trailing
from replaylab.timestamps import NS_PER_DAY

__all__ = ["run_chain"]

_NEVER = 2**62
# What a symbol is doing: looking for its next entry, about to enter, in a trade (before its entry fill, before TP1,
# before its exit), or done for good. The stages before the exit are stopped at only where a daily loss counts.
SEEK, ENTER, FILL, PART, EXIT, DONE = 0, 1, 2, 3, 4, 5
_UNKNOWN = -1
_CHAIN = np.dtype(
    [
        ("phase", "i8"),
        ("action", "i8"),
        ("cand", "i8"),
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
def settle(s: Any, p: Any, price: Any, ts: Any, duration: Any, losses: Any, account: Any, raw: Any) -> None:
    """Book the trade that exits now at an event with ``price``, and its last fill on its day."""
    direction, entry, qty = s.direction, s.entry, s.qty
    left = qty
    gross = 0.0
    fees = rules.fee(entry, qty, p.taker_fee_bps)
    if s.t1 >= 0:
        fill = rules.target_price(entry, direction, p.tp1_pct)
        part = rules.tp1_qty(qty, p.tp1_fraction)
        gross += rules.gross_pnl(fill, entry, part, direction)
        fees += rules.fee(fill, part, p.maker_fee_bps)
        left = rules.remaining_qty(qty, part)
    if s.reason != rules.TP1:
        if s.reason == rules.TP2:
            fill = rules.target_price(entry, direction, p.tp2_pct)
            cost = rules.fee(fill, left, p.maker_fee_bps)
        else:
            fill = rules.market_exit_price(price, direction, p.slippage_bps)
            cost = rules.fee(fill, left, p.taker_fee_bps)
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
    free = _NEVER
    for k in range(len(state)):
        o = state[k]
        if FILL <= o.phase <= EXIT and o.reason != rules.SESSION_END:
            free = min(free, ticks[o.x].index)
    return free


@compiled
def run_chain(plan: Any, params: Any, keys: Any, raw: Any) -> None:
    """Run every row of ``params`` with its table rows ``keys``; figures into the rows of ``raw``.

    All in one body on purpose: a call that carries the plan's arrays costs more than what it would do.
    """
    ticks, price, price_ts, price_index = plan.ticks, plan.price, plan.price_ts, plan.price_index
    price_from, high, low, offsets = plan.price_from, plan.price_high, plan.price_low, plan.price_offsets
    cands, cand_ts, cand_index, cand_from = plan.cands, plan.cand_ts, plan.cand_index, plan.cand_from
    score_index, score_from, force_from = plan.score_index, plan.score_from, plan.force_from
    force_index = plan.force_index
    cand_at, table = plan.cand_at, plan.table
    tables = len(table) > 0
    n_symbols = len(price_from) - 1
    state = np.zeros(n_symbols, dtype=_CHAIN)
    accounts = np.zeros(1, dtype=ACCOUNT)
    account = accounts[0]
    for row in range(len(params)):
        p = params[row]
        key = keys[row]
        figures = raw[row]
        strength = plan.strength[0 if tables else key.entry_set]
        strength_high = plan.strength_high[0 if tables else key.entry_set]
        losses = not np.isnan(p.max_daily_loss_usd)
        limited = losses or p.max_open_positions >= 0 or p.max_trades_per_day >= 0
        leaves = not np.isnan(p.exit_threshold)
        trails = not np.isnan(p.trailing_activation_pct)
        if p.max_open_positions == 0 or p.max_trades_per_day == 0:
            continue
        account.open = 0
        account.entries = 0
        account.pnl = 0.0
        account.lost = 0
        for k in range(n_symbols):
            s = state[k]
            s.phase = SEEK
            s.cand = cand_from[k]
            s.action = _UNKNOWN
        while True:
            chosen = -1
            earliest = _NEVER
            for k in range(n_symbols):
                s = state[k]
                if s.action == _UNKNOWN:
                    c = s.cand
                    if s.phase == SEEK:
                        last = cand_from[k + 1]
                        if c < last:
                            if tables:
                                c = np.int64(table[key.entry_set, c])
                            else:
                                c = first_ge(
                                    strength, strength_high, plan.strength_offsets, c, last, p.entry_threshold
                                )
                            s.cand = c
                        if c >= last:
                            s.phase = DONE
                            s.action = _NEVER
                        elif limited:
                            s.action = cand_index[c]
                        else:
                            # Without limits an entry is nobody else's business: at once.
                            s.phase = ENTER
                    if s.phase == ENTER:
                        end = price_from[k + 1]
                        cand = cands[c]
                        q = np.int64(cand.after)
                        if p.latency_ns > 0:
                            q = first_at_least(price_ts, q, end, cand.ts + p.latency_ns)
                        if q >= end:
                            # Pending until the session ends.
                            s.phase = DONE
                            s.action = _NEVER
                            continue
                        direction = cand.direction
                        entry = rules.entry_price(ticks[q].price, direction, p.slippage_bps)
                        s.q = q
                        s.direction = direction
                        s.entry = entry
                        s.qty = entry_qty(p, entry)
                        # The first stop.
                        base = rules.stop_price(entry, direction, p.sl_pct)
                        base_reason = rules.STOP_LOSS
                        known: Any = np.int64(table[key.stop, c]) if tables else 0
                        if known == 0:
                            known = towards(price, high, low, offsets, q + 1, end, base, -direction) + 1
                            if tables:
                                table[key.stop, c] = known
                        base_touch = known - 1
                        # The trailing stop: it does not depend on the others, only which is hit first does.
                        trail = end
                        if trails:
                            known = np.int64(table[key.trail, c]) if tables else 0
                            if known == 0:
                                activation, distance = p.trailing_activation_pct, p.trailing_distance_pct
                                known = 1 + first_trailing(
                                    price, high, low, offsets, q, end, entry, direction, activation, distance
                                )
                                if tables:
                                    table[key.trail, c] = known
                            trail = known - 1
                        # Market exits: the time that is up, and the first score or risk exit to be submitted.
                        market = end
                        market_reason = rules.TIMEOUT
                        if p.max_hold_ns >= 0:
                            known = np.int64(table[key.hold, c]) if tables else 0
                            if known == 0:
                                known = 1 + first_at_least(price_ts, q + 1, end, price_ts[q] + p.max_hold_ns)
                                if tables:
                                    table[key.hold, c] = known
                            market = known - 1
                        if leaves or force_from[k + 1] > force_from[k]:
                            known = np.int64(table[key.leave, c]) if tables else 0
                            if known == 0:
                                # Twice the position where it is due, plus one for a risk exit, plus one.
                                index = price_index[q]
                                decided: Any = _NEVER
                                due_ts = 0
                                risk = 0
                                if leaves:
                                    last = score_from[k + 1]
                                    at = first_at_least(score_index, score_from[k], last, index + 1)
                                    at = first_beyond(
                                        plan.score,
                                        plan.score_high,
                                        plan.score_low,
                                        plan.score_offsets,
                                        at,
                                        last,
                                        p.exit_threshold,
                                        direction,
                                    )
                                    if at < last:
                                        decided = np.int64(score_index[at])
                                        due_ts = plan.score_ts[at] + p.latency_ns
                                last = force_from[k + 1]
                                at = first_at_least(force_index, force_from[k], last, index + 1)
                                if at < last and force_index[at] < decided:
                                    decided = np.int64(force_index[at])
                                    due_ts = plan.force_ts[at] + p.latency_ns
                                    risk = 1
                                due = end
                                if decided < _NEVER:
                                    due = first_at_least(price_index, q + 1, end, decided + 1)
                                    due = first_at_least(price_ts, due, end, due_ts)
                                known = 2 * due + risk + 1
                                if tables:
                                    table[key.leave, c] = known
                            # At one event the time is up first.
                            if (known - 1) >> 1 < market:
                                market = (known - 1) >> 1
                                market_reason = rules.SCORE_EXIT + ((known - 1) & 1)
                        # TP1, and the second stage that it starts. At one event: stop, TP1, TP2, market exit.
                        s.t1 = -1
                        s.x = -1
                        if p.tp1_fraction > 0.0:
                            known = np.int64(table[key.tp1, c]) if tables else 0
                            if known == 0:
                                level = rules.target_price(entry, direction, p.tp1_pct)
                                known = towards(price, high, low, offsets, q + 1, end, level, direction) + 1
                                if tables:
                                    table[key.tp1, c] = known
                            t1 = known - 1
                            if t1 < end and t1 < base_touch and t1 < trail and t1 <= market:
                                s.t1 = t1
                                even = rules.break_even_price(entry, direction, p.break_even_offset_pct)
                                if p.tp1_fraction == 1.0:
                                    s.x = t1
                                    s.reason = rules.TP1
                                elif rules.tightens(even, base, direction):
                                    raised = np.nan
                                    if trails:
                                        raised = trailing_stop(
                                            price, high, low, offsets, q, t1, entry, direction, p
                                        )
                                    if np.isnan(raised) or rules.tightens(even, raised, direction):
                                        base = even
                                        base_reason = rules.BREAK_EVEN
                                        known = np.int64(table[key.even, c]) if tables else 0
                                        if known == 0:
                                            known = 1 + towards(
                                                price, high, low, offsets, t1 + 1, end, even, -direction
                                            )
                                            if tables:
                                                table[key.even, c] = known
                                        base_touch = known - 1
                        stop = min(base_touch, trail)
                        if s.x < 0 and (p.tp1_fraction == 0.0 or s.t1 >= 0):
                            known = np.int64(table[key.tp2, c]) if tables else 0
                            if known == 0:
                                level = rules.target_price(entry, direction, p.tp2_pct)
                                known = towards(price, high, low, offsets, q + 1, end, level, direction) + 1
                                if tables:
                                    table[key.tp2, c] = known
                            t2 = known - 1
                            if t2 < end and t2 < stop and t2 <= market:
                                s.x = t2
                                s.reason = rules.TP2
                        if s.x < 0:
                            if stop < end and stop <= market:
                                s.x = stop
                                s.reason = base_reason
                                # Both stops at once: the tighter one had been moved last.
                                if trail < base_touch or (
                                    trail == base_touch
                                    and rules.tightens(
                                        trailing_stop(
                                            price, high, low, offsets, q, stop, entry, direction, p
                                        ),
                                        base,
                                        direction,
                                    )
                                ):
                                    s.reason = rules.TRAILING
                            elif market < end:
                                s.x = market
                                s.reason = market_reason
                            else:
                                s.x = end - 1
                                s.reason = rules.SESSION_END
                        s.phase = FILL if losses else EXIT
                        s.action = ticks[q if losses else s.x].index
                if s.action < earliest:
                    earliest = s.action
                    chosen = k
            if chosen < 0:
                break
            s = state[chosen]
            if s.phase == EXIT:
                tick = ticks[s.x]
                settle(s, p, tick.price, tick.ts, tick.ts - ticks[s.q].ts, losses, account, figures)
                if s.reason == rules.SESSION_END:
                    s.phase = DONE
                    s.action = _NEVER
                else:
                    account.open -= 1
                    s.phase = SEEK
                    s.action = _UNKNOWN
                    s.cand = np.int64(cand_at[tick.next_score])
                    if p.cooldown_ns > 0:
                        s.cand = first_at_least(
                            cand_ts, s.cand, cand_from[chosen + 1], tick.ts + p.cooldown_ns
                        )
            elif s.phase == SEEK:
                ts = cand_ts[s.cand]
                s.action = _UNKNOWN
                if not refused(account, p, ts):
                    entry_decided(account, ts)
                    s.phase = ENTER
                elif p.max_open_positions >= 0 and account.open >= p.max_open_positions:
                    # Not before one of the open positions closes.
                    s.cand = first_at_least(
                        cand_index, s.cand + 1, cand_from[chosen + 1], first_close(state, ticks)
                    )
                else:
                    tomorrow = (ts // NS_PER_DAY + 1) * NS_PER_DAY
                    s.cand = first_at_least(cand_ts, s.cand + 1, cand_from[chosen + 1], tomorrow)
            else:
                advance(s, p, ticks, account)
