"""The model from trade to trade: no event is looked at that decides nothing.

A combination is a chain: next entry, its exit, next entry after that. Where a trade exits does not depend on the
account, so it is the earliest of separate first touches: of the targets, of the stop, of the trailing stop, of the
market exits. Each is looked up in a table (``plan``) or searched through block minima and maxima. With limits, the
chains of all symbols are merged in the order of events. Figures equal those of ``kernel_loop`` to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replaylab.barriers.index import first_ge
from replaylab.compiled import compiled
from replaylab.sweep import rules
from replaylab.sweep.kernel_loop import ACCOUNT, entry_decided, refused
from replaylab.sweep.links import (
    CHAIN,
    DONE,
    ENTER,
    EXIT,
    FILL,
    NEVER,
    SEEK,
    UNKNOWN,
    advance,
    cell,
    first_at_least,
    first_beyond,
    first_close,
    settle,
    towards,
    trailing_stop,
)
from replaylab.sweep.rules import entry_qty
from replaylab.sweep.trailing import first_trailing
from replaylab.timestamps import NS_PER_DAY

__all__ = ["run_chain"]


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
    cand_at, table, next_entry = plan.cand_at, plan.table, plan.next_entry
    tables = len(next_entry) > 0
    n_symbols = len(price_from) - 1
    state = np.zeros(n_symbols, dtype=CHAIN)
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
        # The formulas at price 1: what multiplies a price, divided out once per combination. 1·x is x to the bit.
        entry_long = rules.entry_price(1.0, 1.0, p.slippage_bps)
        entry_short = rules.entry_price(1.0, -1.0, p.slippage_bps)
        market_long = rules.market_exit_price(1.0, 1.0, p.slippage_bps)
        market_short = rules.market_exit_price(1.0, -1.0, p.slippage_bps)
        stop_long = rules.stop_price(1.0, 1.0, p.sl_pct)
        stop_short = rules.stop_price(1.0, -1.0, p.sl_pct)
        tp1_long = rules.target_price(1.0, 1.0, p.tp1_pct)
        tp1_short = rules.target_price(1.0, -1.0, p.tp1_pct)
        tp2_long = rules.target_price(1.0, 1.0, p.tp2_pct)
        tp2_short = rules.target_price(1.0, -1.0, p.tp2_pct)
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
            s.action = UNKNOWN
        while True:
            chosen = -1
            earliest = NEVER
            for k in range(n_symbols):
                s = state[k]
                if s.action == UNKNOWN:
                    c = s.cand
                    if s.phase == SEEK:
                        last = cand_from[k + 1]
                        if c < last:
                            if tables:
                                c = np.int64(next_entry[key.entry_set, c])
                            else:
                                c = first_ge(
                                    strength, strength_high, plan.strength_offsets, c, last, p.entry_threshold
                                )
                            s.cand = c
                        if c >= last:
                            s.phase = DONE
                            s.action = NEVER
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
                            s.action = NEVER
                            continue
                        direction = cand.direction
                        rising = direction > 0.0
                        entry = ticks[q].price * (entry_long if rising else entry_short)
                        s.q = q
                        s.direction = direction
                        s.entry = entry
                        s.qty = entry_qty(p, entry)
                        # The first stop.
                        base = entry * (stop_long if rising else stop_short)
                        base_reason = rules.STOP_LOSS
                        known: Any = table[key.stop, c] if tables else np.int64(0)
                        if known == 0:
                            x = towards(price, high, low, offsets, q + 1, end, base, -direction)
                            known = cell(ticks, cand_at, x, x, end)
                            if tables:
                                table[key.stop, c] = known
                        base_cell = known
                        base_touch = (known >> 32) - 1
                        # The trailing stop: it does not depend on the others, only which is hit first does.
                        trail = end
                        trail_cell = base_cell
                        if trails:
                            known = table[key.trail, c] if tables else np.int64(0)
                            if known == 0:
                                activation, distance = p.trailing_activation_pct, p.trailing_distance_pct
                                x = first_trailing(
                                    price, high, low, offsets, q, end, entry, direction, activation, distance
                                )
                                known = cell(ticks, cand_at, x, x, end)
                                if tables:
                                    table[key.trail, c] = known
                            trail_cell = known
                            trail = (known >> 32) - 1
                        # Market exits: the time that is up, and the first score or risk exit to be submitted.
                        market = end
                        market_reason = rules.TIMEOUT
                        market_cell = base_cell
                        if p.max_hold_ns >= 0:
                            known = table[key.hold, c] if tables else np.int64(0)
                            if known == 0:
                                x = first_at_least(price_ts, q + 1, end, price_ts[q] + p.max_hold_ns)
                                known = cell(ticks, cand_at, x, x, end)
                                if tables:
                                    table[key.hold, c] = known
                            market_cell = known
                            market = (known >> 32) - 1
                        if leaves or force_from[k + 1] > force_from[k]:
                            known = table[key.leave, c] if tables else np.int64(0)
                            if known == 0:
                                # The cell holds twice the position where it is due, plus one for a risk exit.
                                index = price_index[q]
                                decided: Any = NEVER
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
                                if decided < NEVER:
                                    due = first_at_least(price_index, q + 1, end, decided + 1)
                                    due = first_at_least(price_ts, due, end, due_ts)
                                known = cell(ticks, cand_at, 2 * due + risk, due, end)
                                if tables:
                                    table[key.leave, c] = known
                            # At one event the time is up first.
                            leave = (known >> 32) - 1
                            if leave >> 1 < market:
                                market = leave >> 1
                                market_reason = rules.SCORE_EXIT + (leave & 1)
                                market_cell = known
                        # TP1, and the second stage that it starts. At one event: stop, TP1, TP2, market exit.
                        s.t1 = -1
                        s.x = -1
                        then = trail_cell
                        if p.tp1_fraction > 0.0:
                            known = table[key.tp1, c] if tables else np.int64(0)
                            if known == 0:
                                level = entry * (tp1_long if rising else tp1_short)
                                x = towards(price, high, low, offsets, q + 1, end, level, direction)
                                known = cell(ticks, cand_at, x, x, end)
                                if tables:
                                    table[key.tp1, c] = known
                            t1 = (known >> 32) - 1
                            if t1 < end and t1 < base_touch and t1 < trail and t1 <= market:
                                s.t1 = t1
                                even = rules.break_even_price(entry, direction, p.break_even_offset_pct)
                                if p.tp1_fraction == 1.0:
                                    s.x = t1
                                    s.reason = rules.TP1
                                    then = known
                                elif rules.tightens(even, base, direction):
                                    raised = np.nan
                                    if trails:
                                        raised = trailing_stop(
                                            price, high, low, offsets, q, t1, entry, direction, p
                                        )
                                    if np.isnan(raised) or rules.tightens(even, raised, direction):
                                        base = even
                                        base_reason = rules.BREAK_EVEN
                                        known = table[key.even, c] if tables else np.int64(0)
                                        if known == 0:
                                            x = towards(
                                                price, high, low, offsets, t1 + 1, end, even, -direction
                                            )
                                            known = cell(ticks, cand_at, x, x, end)
                                            if tables:
                                                table[key.even, c] = known
                                        base_cell = known
                                        base_touch = (known >> 32) - 1
                        stop = min(base_touch, trail)
                        if s.x < 0 and (p.tp1_fraction == 0.0 or s.t1 >= 0):
                            known = table[key.tp2, c] if tables else np.int64(0)
                            if known == 0:
                                level = entry * (tp2_long if rising else tp2_short)
                                x = towards(price, high, low, offsets, q + 1, end, level, direction)
                                known = cell(ticks, cand_at, x, x, end)
                                if tables:
                                    table[key.tp2, c] = known
                            t2 = (known >> 32) - 1
                            if t2 < end and t2 < stop and t2 <= market:
                                s.x = t2
                                s.reason = rules.TP2
                                then = known
                        if s.x < 0:
                            if stop < end and stop <= market:
                                s.x = stop
                                s.reason = base_reason
                                if base_touch <= trail:
                                    then = base_cell
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
                                then = market_cell
                            else:
                                s.x = end - 1
                                s.reason = rules.SESSION_END
                        s.follower = then & 0xFFFFFFFF
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
                rising = s.direction > 0.0
                settle(
                    s,
                    p,
                    s.entry * (tp1_long if rising else tp1_short),
                    s.entry * (tp2_long if rising else tp2_short),
                    tick.price * (market_long if rising else market_short),
                    tick.ts,
                    tick.ts - ticks[s.q].ts,
                    losses,
                    account,
                    figures,
                )
                if s.reason == rules.SESSION_END:
                    s.phase = DONE
                    s.action = NEVER
                else:
                    account.open -= 1
                    s.phase = SEEK
                    s.action = UNKNOWN
                    s.cand = s.follower
                    if p.cooldown_ns > 0:
                        s.cand = first_at_least(
                            cand_ts, s.cand, cand_from[chosen + 1], tick.ts + p.cooldown_ns
                        )
            elif s.phase == SEEK:
                ts = cand_ts[s.cand]
                s.action = UNKNOWN
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
