"""The model from trade to trade: no event is looked at that decides nothing.

A combination is a chain: next entry, its exit, next entry after that. Where a trade exits does not depend on the
account, so it is the earliest of separate first touches: of the targets, of the stop, of the trailing stop, of the
market exits. Each is looked up in a table (``plan``) or searched through block minima and maxima. With limits, the
chains of all symbols are merged in the order of events. Figures equal those of ``kernel_loop`` to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replaylab.barriers.compiled import compiled, inlined
from replaylab.barriers.index import first_ge, first_le, range_max, range_min
from replaylab.sweep import rules
from replaylab.sweep.kernel_loop import ACCOUNT, entry_decided, realise, refused
from replaylab.sweep.rules import book_trade, entry_qty
from replaylab.sweep.trailing import first_trailing
from replaylab.timestamps import NS_PER_DAY

__all__ = ["run_chain"]

_NEVER = 2**62
# What a symbol is doing: looking for its next entry, in a trade (before its entry fill, before TP1, before its exit),
# or done for good.
SEEK, FILL, PART, EXIT, DONE = 0, 1, 2, 3, 4
_CHAIN = np.dtype(
    [
        ("phase", "i8"),
        ("action", "i8"),
        ("cand", "i8"),
        ("q", "i8"),
        ("t1", "i8"),
        ("x", "i8"),
        ("reason", "i8"),
        ("entry", "f8"),
        ("direction", "f8"),
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
def towards(tape: Any, plan: Any, start: Any, end: Any, level: Any, direction: Any) -> Any:
    """First price event in [start, end) with dir·(p − level) ≥ 0."""
    if direction > 0.0:
        return first_ge(tape.price, plan.price_high, plan.price_offsets, start, end, level)
    return first_le(tape.price, plan.price_low, plan.price_offsets, start, end, level)


@inlined
def target_touch(tape: Any, plan: Any, row: Any, c: Any, q: Any, end: Any, level: Any, direction: Any) -> Any:
    if row < 0:
        return towards(tape, plan, q + 1, end, level, direction)
    known = plan.target[row, c]
    if known == 0:
        known = towards(tape, plan, q + 1, end, level, direction) + 1
        plan.target[row, c] = known
    return known - 1


@inlined
def stop_touch(tape: Any, plan: Any, row: Any, c: Any, q: Any, end: Any, level: Any, direction: Any) -> Any:
    if row < 0:
        return towards(tape, plan, q + 1, end, level, -direction)
    known = plan.stop[row, c]
    if known == 0:
        known = towards(tape, plan, q + 1, end, level, -direction) + 1
        plan.stop[row, c] = known
    return known - 1


@inlined
def even_touch(tape: Any, plan: Any, row: Any, c: Any, t1: Any, end: Any, level: Any, direction: Any) -> Any:
    """First touch of the break-even stop after TP1: the second stage, shared by all that have this TP1."""
    if row < 0:
        return towards(tape, plan, t1 + 1, end, level, -direction)
    known = plan.even[row, c]
    if known == 0:
        known = towards(tape, plan, t1 + 1, end, level, -direction) + 1
        plan.even[row, c] = known
    return known - 1


@inlined
def trail_touch(tape: Any, plan: Any, row: Any, c: Any, q: Any, end: Any, s: Any, p: Any) -> Any:
    known = 0
    if row >= 0:
        known = plan.trail[row, c]
    if known == 0:
        known = 1 + first_trailing(
            tape.price,
            plan.price_high,
            plan.price_low,
            plan.price_offsets,
            q,
            end,
            s.entry,
            s.direction,
            p.trailing_activation_pct,
            p.trailing_distance_pct,
        )
        if row >= 0:
            plan.trail[row, c] = known
    return known - 1


@inlined
def hold_touch(tape: Any, plan: Any, row: Any, c: Any, q: Any, end: Any, p: Any) -> Any:
    known = 0
    if row >= 0:
        known = plan.hold[row, c]
    if known == 0:
        known = 1 + first_at_least(tape.price_ts, q + 1, end, tape.price_ts[q] + p.max_hold_ns)
        if row >= 0:
            plan.hold[row, c] = known
    return known - 1


@inlined
def leave_touch(tape: Any, plan: Any, row: Any, c: Any, k: Any, q: Any, end: Any, s: Any, p: Any) -> Any:
    """Where the first score or risk exit is due, times two, plus one for a risk exit."""
    if row >= 0:
        known = plan.leave[row, c]
        if known != 0:
            return known - 1
    index = tape.price_index[q]
    decided = _NEVER
    ts = 0
    risk = 0
    if not np.isnan(p.exit_threshold):
        last = tape.score_from[k + 1]
        at = first_at_least(tape.score_index, tape.score_from[k], last, index + 1)
        # dir·score < threshold, as ≤ the next number below it.
        if s.direction > 0.0:
            level = np.nextafter(p.exit_threshold, -np.inf)
            at = first_le(tape.score, plan.score_low, plan.score_offsets, at, last, level)
        else:
            level = np.nextafter(-p.exit_threshold, np.inf)
            at = first_ge(tape.score, plan.score_high, plan.score_offsets, at, last, level)
        if at < last:
            decided = tape.score_index[at]
            ts = tape.score_ts[at]
    last = tape.force_from[k + 1]
    at = first_at_least(tape.force_index, tape.force_from[k], last, index + 1)
    if at < last and tape.force_index[at] < decided:
        decided = tape.force_index[at]
        ts = tape.force_ts[at]
        risk = 1
    due = end
    if decided < _NEVER:
        due = first_at_least(tape.price_index, q + 1, end, decided + 1)
        due = first_at_least(tape.price_ts, due, end, ts + p.latency_ns)
    if row >= 0:
        plan.leave[row, c] = 2 * due + risk + 1
    return 2 * due + risk


@inlined
def trailing_stop(tape: Any, plan: Any, s: Any, p: Any, until: Any) -> Any:
    """The trailing stop that the prices before ``until`` raised; NaN while it is not active."""
    if s.direction > 0.0:
        best = range_max(tape.price, plan.price_high, plan.price_offsets, s.q, until)
    else:
        best = range_min(tape.price, plan.price_low, plan.price_offsets, s.q, until)
    if rules.trailing_active(best, s.entry, s.direction, p.trailing_activation_pct):
        return rules.trailing_price(best, s.direction, p.trailing_distance_pct)
    return np.nan


@inlined
def find_exit(tape: Any, plan: Any, s: Any, p: Any, key: Any, k: Any) -> None:
    """Set the trade's exit (``x``, ``reason``) and TP1 (``t1``, −1: not filled) from its entry at ``q``."""
    c, q, direction, entry = s.cand, s.q, s.direction, s.entry
    end = tape.price_from[k + 1]
    base = rules.stop_price(entry, direction, p.sl_pct)
    base_reason = rules.STOP_LOSS
    base_touch = stop_touch(tape, plan, key.stop, c, q, end, base, direction)
    trails = not np.isnan(p.trailing_activation_pct)
    trail = trail_touch(tape, plan, key.trail, c, q, end, s, p) if trails else end
    market = end
    market_reason = rules.TIMEOUT
    if p.max_hold_ns >= 0:
        market = hold_touch(tape, plan, key.hold, c, q, end, p)
    if not np.isnan(p.exit_threshold) or tape.force_from[k + 1] > tape.force_from[k]:
        leave = leave_touch(tape, plan, key.leave, c, k, q, end, s, p)
        # At one event the time is up first.
        if leave >> 1 < market:
            market = leave >> 1
            market_reason = rules.SCORE_EXIT + (leave & 1)
    s.t1 = -1
    if p.tp1_fraction > 0.0:
        level = rules.target_price(entry, direction, p.tp1_pct)
        t1 = target_touch(tape, plan, key.tp1, c, q, end, level, direction)
        # At one event the stop comes before TP1, and TP1 before a market exit.
        if t1 < end and t1 < base_touch and t1 < trail and t1 <= market:
            s.t1 = t1
            if p.tp1_fraction == 1.0:
                s.x = t1
                s.reason = rules.TP1
                return
            even = rules.break_even_price(entry, direction, p.break_even_offset_pct)
            if rules.tightens(even, base, direction):
                raised = trailing_stop(tape, plan, s, p, t1) if trails else np.nan
                if np.isnan(raised) or rules.tightens(even, raised, direction):
                    base = even
                    base_reason = rules.BREAK_EVEN
                    base_touch = even_touch(tape, plan, key.even, c, t1, end, even, direction)
    stop = min(base_touch, trail)
    if p.tp1_fraction == 0.0 or s.t1 >= 0:
        level = rules.target_price(entry, direction, p.tp2_pct)
        t2 = target_touch(tape, plan, key.tp2, c, q, end, level, direction)
        if t2 < end and t2 < stop and t2 <= market:
            s.x = t2
            s.reason = rules.TP2
            return
    if stop < end and stop <= market:
        s.x = stop
        s.reason = base_reason
        if trail < base_touch or (
            trail == base_touch and rules.tightens(trailing_stop(tape, plan, s, p, stop), base, direction)
        ):
            s.reason = rules.TRAILING
    elif market < end:
        s.x = market
        s.reason = market_reason
    else:
        s.x = end - 1
        s.reason = rules.SESSION_END


@inlined
def entry_from(plan: Any, row: Any, has_table: Any, c: Any, end: Any, threshold: Any) -> Any:
    """First candidate in [c, end) at which this combination may enter, else end."""
    if c >= end:
        return end
    if has_table:
        return plan.next_entry[row, c]
    return first_ge(plan.strength[row], plan.strength_high[row], plan.strength_offsets, c, end, threshold)


@inlined
def seek_after(tape: Any, plan: Any, s: Any, p: Any, k: Any) -> Any:
    """First candidate after the cooldown that follows the exit at ``x``."""
    c = plan.next_cand[s.x]
    if p.cooldown_ns > 0:
        c = first_at_least(plan.cand_ts, c, plan.cand_from[k + 1], tape.price_ts[s.x] + p.cooldown_ns)
    return c


@inlined
def enter(tape: Any, plan: Any, s: Any, p: Any, key: Any, k: Any, losses: Any) -> None:
    """Take the entry at ``cand``: find its fill and its exit."""
    c = s.cand
    end = tape.price_from[k + 1]
    q = plan.cand_after[c]
    if p.latency_ns > 0:
        q = first_at_least(tape.price_ts, q, end, plan.cand_ts[c] + p.latency_ns)
    if q >= end:
        # Pending until the session ends.
        s.phase = DONE
        s.action = _NEVER
        return
    s.q = q
    s.direction = plan.cand_direction[c]
    s.entry = rules.entry_price(tape.price[q], s.direction, p.slippage_bps)
    find_exit(tape, plan, s, p, key, k)
    s.phase = FILL if losses else EXIT
    s.action = tape.price_index[q if losses else s.x]


@inlined
def settle(tape: Any, s: Any, p: Any, account: Any, raw: Any) -> None:
    """Book the trade that exits now, and its last fill on its day."""
    direction, entry = s.direction, s.entry
    qty = entry_qty(p, entry)
    left = qty
    gross = 0.0
    fees = rules.fee(entry, qty, p.taker_fee_bps)
    ts = tape.price_ts[s.x]
    if s.t1 >= 0:
        price = rules.target_price(entry, direction, p.tp1_pct)
        part = rules.tp1_qty(qty, p.tp1_fraction)
        gross += rules.gross_pnl(price, entry, part, direction)
        fees += rules.fee(price, part, p.maker_fee_bps)
        left = rules.remaining_qty(qty, part)
    if s.reason != rules.TP1:
        if s.reason == rules.TP2:
            price = rules.target_price(entry, direction, p.tp2_pct)
            cost = rules.fee(price, left, p.maker_fee_bps)
        else:
            price = rules.market_exit_price(tape.price[s.x], direction, p.slippage_bps)
            cost = rules.fee(price, left, p.taker_fee_bps)
        last = rules.gross_pnl(price, entry, left, direction)
        gross += last
        fees += cost
        if s.reason != rules.SESSION_END:
            realise(account, p, ts, rules.realized_pnl(last, cost))
    book_trade(raw, gross, fees, ts - tape.price_ts[s.q], s.reason)


@inlined
def advance(tape: Any, s: Any, p: Any, account: Any) -> None:
    """Book the entry's fee or TP1's part on the day of its event, for the daily loss; go to the next action."""
    qty = entry_qty(p, s.entry)
    if s.phase == FILL:
        realise(account, p, tape.price_ts[s.q], -rules.fee(s.entry, qty, p.taker_fee_bps))
        s.phase = EXIT
        if s.t1 >= 0:
            s.phase = PART
            s.action = tape.price_index[s.t1]
    else:
        price = rules.target_price(s.entry, s.direction, p.tp1_pct)
        part = rules.tp1_qty(qty, p.tp1_fraction)
        gross = rules.gross_pnl(price, s.entry, part, s.direction)
        cost = rules.fee(price, part, p.maker_fee_bps)
        realise(account, p, tape.price_ts[s.t1], rules.realized_pnl(gross, cost))
        s.phase = EXIT
    if s.phase == EXIT:
        s.action = tape.price_index[s.x]


@inlined
def after_refusal(tape: Any, plan: Any, state: Any, s: Any, p: Any, account: Any, k: Any) -> Any:
    """First candidate at which the limit that refused ``cand`` can have changed its mind."""
    ts = plan.cand_ts[s.cand]
    end = plan.cand_from[k + 1]
    if p.max_open_positions >= 0 and account.open >= p.max_open_positions:
        # Not before one of the open positions closes.
        free = _NEVER
        for other in range(len(state)):
            o = state[other]
            if FILL <= o.phase <= EXIT and o.reason != rules.SESSION_END:
                free = min(free, tape.price_index[o.x])
        return first_at_least(plan.cand_index, s.cand + 1, end, free)
    tomorrow = (ts // NS_PER_DAY + 1) * NS_PER_DAY
    return first_at_least(plan.cand_ts, s.cand + 1, end, tomorrow)


@compiled
def run_chain(tape: Any, plan: Any, params: Any, keys: Any, raw: Any) -> None:
    """Run every row of ``params`` with its table rows ``keys``; figures into the rows of ``raw``."""
    n_symbols = len(tape.price_from) - 1
    state = np.zeros(n_symbols, dtype=_CHAIN)
    accounts = np.zeros(1, dtype=ACCOUNT)
    account = accounts[0]
    has_table = len(plan.next_entry) > 0
    for row in range(len(params)):
        p = params[row]
        key = keys[row]
        figures = raw[row]
        losses = not np.isnan(p.max_daily_loss_usd)
        limited = losses or p.max_open_positions >= 0 or p.max_trades_per_day >= 0
        if p.max_open_positions == 0 or p.max_trades_per_day == 0:
            continue
        account.open = 0
        account.entries = 0
        account.pnl = 0.0
        account.lost = 0
        for k in range(n_symbols):
            s = state[k]
            s.phase = SEEK
            s.cand = entry_from(
                plan, key.entry_set, has_table, plan.cand_from[k], plan.cand_from[k + 1], p.entry_threshold
            )
            s.action = -1
        while True:
            # Whose action comes first in the session? Without limits an entry is nobody else's business: at once.
            k = -1
            earliest = _NEVER
            for other in range(n_symbols):
                o = state[other]
                if o.phase == SEEK and o.action == -1:
                    if o.cand >= plan.cand_from[other + 1]:
                        o.phase = DONE
                        o.action = _NEVER
                    elif limited:
                        o.action = plan.cand_index[o.cand]
                    else:
                        enter(tape, plan, o, p, key, other, losses)
                if o.action < earliest:
                    earliest = o.action
                    k = other
            if k < 0:
                break
            s = state[k]
            if s.phase == SEEK:
                ts = plan.cand_ts[s.cand]
                if refused(account, p, ts):
                    c = after_refusal(tape, plan, state, s, p, account, k)
                    s.cand = entry_from(
                        plan, key.entry_set, has_table, c, plan.cand_from[k + 1], p.entry_threshold
                    )
                    s.action = -1
                else:
                    entry_decided(account, ts)
                    enter(tape, plan, s, p, key, k, losses)
            elif s.phase == EXIT:
                settle(tape, s, p, account, figures)
                if s.reason == rules.SESSION_END:
                    s.phase = DONE
                    s.action = _NEVER
                else:
                    account.open -= 1
                    s.phase = SEEK
                    s.action = -1
                    s.cand = entry_from(
                        plan,
                        key.entry_set,
                        has_table,
                        seek_after(tape, plan, s, p, k),
                        plan.cand_from[k + 1],
                        p.entry_threshold,
                    )
            else:
                advance(tape, s, p, account)
