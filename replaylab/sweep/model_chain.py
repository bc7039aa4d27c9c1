"""The model from trade to trade: only events that decide something are read.

A combination is a chain: next entry, its exit, next entry after that. Where a trade exits does not depend on the
account, so it is the earliest of separate first touches: of the targets, of the stop, of the trailing stop, of the
market exits, of the hole that ends it. Each is read from a table or searched through block minima and maxima. With
limits, the chains of all symbols are merged in the order of events. Results equal those of ``model_loop`` to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replaylab.barriers import first_ge
from replaylab.compiled import compiled, inlined, merged
from replaylab.sweep import fills
from replaylab.sweep.fills import (
    cell,
    find_entry,
    first_at_least,
    first_beyond,
    first_fill,
    first_trailing,
    follow_level,
    raised_stop,
    towards,
    trailing_stop,
)
from replaylab.sweep.model_loop import ACCOUNT, entry_decided, realise, refused, start_account
from replaylab.sweep.tape import NEVER, layout
from replaylab.timestamps import NS_PER_DAY

# ---- Accounting --------------------------------------------------------------------------------------------

# What a symbol is doing: looking for its next entry, about to enter, in a trade (before its entry fill, TP1, a funding
# settlement, its exit), waiting to be flat (until the end of an order that does not fill, or the hole that ended a
# trade), or done for good. The stages before the exit are stopped at only where a daily loss counts.
SEEK, ENTER, FILL, PART, SETTLE, EXIT, WAIT, DONE = range(8)
UNKNOWN = -1
# ``action``: twice the index of the event at which the symbol acts next, plus one for a decision, which comes after the
# price part of its event. ``free``: the action by which the symbol is flat. ``x``: the price event of the exit,
# ``fill`` its price. ``fund_from`` to ``fund_end``: the trade's funding settlements, realised up to ``settled``.
CHAIN = layout(
    i8="phase action free cand follower q end t1 x reason thin filled parted exited ts model"
    " fund_from fund_end settled closed hit moved_at",
    f8="direction entry qty part tp1 fill slip buys sells tick_num tick_den moved",
)


@merged
def start_symbol(plan: Any, s: Any, p: Any, k: Any) -> None:
    """Set a symbol to what it is before the first event of a row."""
    symbol = plan.symbol[k]
    s.phase = SEEK
    s.action = UNKNOWN
    s.free = NEVER
    s.fund_from = plan.funding_from[k]
    s.fund_end = s.fund_from
    s.cand = plan.cand_from[k]
    start = -NEVER
    if symbol.carried_until > -NEVER:
        start = symbol.carried_until
        s.free = NEVER
        if start < NEVER:
            start += p.cooldown_ns
    elif symbol.last_exit > -NEVER:
        start = symbol.last_exit + p.cooldown_ns
    if start > -NEVER:
        s.cand = first_at_least(plan.cand_ts, s.cand, plan.cand_from[k + 1], start)
    s.model = fills.fill_model(p, symbol)
    s.slip = fills.slippage(p, s.model)
    # The formulas at price 1: what multiplies a price, divided out once. 1·x is x to the bit.
    s.buys = fills.market_price(1.0, 1.0, fills.slippage(p, fills.PRINT))
    s.sells = fills.market_price(1.0, -1.0, fills.slippage(p, fills.PRINT))
    s.tick_num = fills.tick_of(p, symbol)
    s.tick_den = symbol.tick_den


@merged
def settle(plan: Any, s: Any, p: Any, losses: Any, account: Any, raw: Any) -> None:
    """Count the trade that exits now, and its last fill on its day."""
    direction, entry, qty = s.direction, s.entry, s.qty
    left = qty
    gross = 0.0
    fees = fills.fee(entry, qty, p.maker_fee_bps if p.entry_order == fills.LIMIT else p.taker_fee_bps)
    if s.t1 >= 0:
        gross += fills.gross_pnl(s.tp1, entry, s.part, direction)
        fees += fills.fee(s.tp1, s.part, p.maker_fee_bps)
        left = fills.remaining_qty(qty, s.part)
    funding = 0.0
    for f in range(s.fund_from, s.fund_end):
        funding += funding_of(plan, s, f)
    gap_pnl = np.nan
    if s.reason == fills.DATA_GAP:
        fill = plan.ticks[s.end].price * (s.sells if direction > 0.0 else s.buys)
        lost = gross + fills.gross_pnl(fill, entry, left, direction)
        gap_pnl = fills.realized_pnl(lost, fees + fills.fee(fill, left, p.taker_fee_bps)) + funding
    if s.reason != fills.TP1:
        cost = fills.fee(s.fill, left, p.maker_fee_bps if s.reason == fills.TP2 else p.taker_fee_bps)
        last = fills.gross_pnl(s.fill, entry, left, direction)
        gross += last
        fees += cost
        if losses and s.reason != fills.SESSION_END and s.reason != fills.DATA_GAP:
            realise(account, p, plan.ticks[s.x].ts, fills.realized_pnl(last, cost))
    fills.add_trade(raw, gross, fees, funding, s.ts, plan.ticks[s.x].ts, s.reason, s.thin, gap_pnl)


@merged
def funding_of(plan: Any, s: Any, f: Any) -> Any:
    """Cash of one funding settlement of the trade."""
    left = s.qty
    if s.t1 >= 0 and plan.ticks[s.t1].index < plan.funding[f].index:
        left = fills.remaining_qty(s.qty, s.part)
    return fills.funding_cash(left, plan.funding[f].mark, plan.funding[f].rate, s.direction)


@merged
def find_funding(plan: Any, s: Any, k: Any) -> None:
    """Find the settlements of the trade: after the entry's event, and before that of the exit or of the hole."""
    last = plan.funding_from[k + 1]
    until: Any = np.int64(plan.ticks[s.x].index)
    if s.reason == fills.SESSION_END:
        until = NEVER
    elif s.reason == fills.DATA_GAP:
        until = np.int64(plan.ticks[s.end].index)
    f = s.fund_from
    while f < last and plan.funding[f].index <= plan.ticks[s.q].index:
        f += 1
    s.fund_from = f
    s.settled = f
    while f < last and plan.funding[f].index < until:
        f += 1
    s.fund_end = f


@merged
def set_action(plan: Any, s: Any, losses: Any) -> None:
    """Set the phase of a trade and its action, from what of it is still to come."""
    if s.exited == 1:
        s.phase = WAIT
        s.action = s.free
    else:
        s.phase = EXIT
        at = s.x
        if s.filled == 0:
            s.phase = FILL
            at = s.q
        elif losses and s.t1 >= 0 and s.parted == 0:
            s.phase = PART
            at = s.t1
        s.action = 2 * np.int64(plan.ticks[at].index)
    if losses and s.phase != FILL and s.settled < s.fund_end and 2 * plan.funding[s.settled].index < s.action:
        s.phase = SETTLE
        s.action = 2 * plan.funding[s.settled].index


@merged
def advance(plan: Any, s: Any, p: Any, account: Any) -> None:
    """Realise the entry's fee, TP1's part or a funding settlement on the day of its event, for the daily loss."""
    if s.phase == FILL:
        bps = p.maker_fee_bps if p.entry_order == fills.LIMIT else p.taker_fee_bps
        realise(account, p, s.ts, -fills.fee(s.entry, s.qty, bps))
        s.filled = 1
    elif s.phase == PART:
        gross = fills.gross_pnl(s.tp1, s.entry, s.part, s.direction)
        cost = fills.fee(s.tp1, s.part, p.maker_fee_bps)
        realise(account, p, plan.ticks[s.t1].ts, fills.realized_pnl(gross, cost))
        s.parted = 1
    else:
        realise(account, p, plan.funding[s.settled].ts, funding_of(plan, s, s.settled))
        s.settled += 1
    set_action(plan, s, True)


@merged
def first_free(plan: Any, state: Any, account: Any) -> Any:
    """Index of the event by which the first of the open, pending and carried positions is gone."""
    free = NEVER
    for k in range(len(state)):
        o = state[k]
        if FILL <= o.phase <= WAIT:
            free = min(free, o.free)
    for n in range(account.carried, len(plan.carried)):
        if plan.carried[n].release == 1:
            free = min(free, 2 * plan.carried[n].index)
            break
    return free >> 1


@merged
def carry(plan: Any, account: Any, p: Any, index: Any) -> None:
    """Apply what happened to carried positions before the event at ``index``."""
    while account.carried < len(plan.carried) and plan.carried[account.carried].index <= index:
        change = plan.carried[account.carried]
        account.carried += 1
        if change.release == 1:
            account.open -= 1
        else:
            realise(account, p, change.ts, change.pnl)


@merged
def end_of_order(plan: Any, e: Any, last: Any) -> Any:
    """The action by which an entry order that does not fill is gone."""
    if e.kind == fills.EXPIRED:
        # By the first decision of any symbol at that time.
        at = first_at_least(plan.all_ts, 0, len(plan.all_ts), e.ts)
        return 2 * np.int64(plan.all_index[at]) if at < len(plan.all_ts) else NEVER
    at = e.at if e.kind == fills.REJECTED else e.end
    return 2 * np.int64(plan.ticks[at].index) if at < last else NEVER


@inlined
def reason_of_stop(
    plan: Any, p: Any, s: Any, base: Any, base_reason: Any, trail: Any, moved: Any, moved_at: Any
) -> Any:
    """The reason of a trade that hits a rule's stop at ``s.x``: that of the tightest stop, of equal ones the first."""
    if trail == s.x:
        trailed = trailing_stop(plan, p, s, s.x)
        if trailed == moved:
            # At its event a rule moves the stop before the price trails it.
            earlier = trailing_stop(plan, p, s, moved_at)
            if fills.tightens(trailed, base, s.direction) and not (
                np.isnan(earlier) or fills.tightens(moved, earlier, s.direction)
            ):
                return fills.TRAILING
        elif fills.tightens(trailed, moved, s.direction) and fills.tightens(trailed, base, s.direction):
            return fills.TRAILING
    return fills.RULE if fills.tightens(moved, base, s.direction) else base_reason


# ---- The walk ----------------------------------------------------------------------------------------------


@compiled
def run_chain(plan: Any, params: Any, keys: Any, raw: Any, rule: Any) -> None:
    """Run every row of ``params`` with its table rows ``keys``; sums into the rows of ``raw``.

    ``rule``: RuleArrays of a level rule, or NO_RULE. Where the rule gave no answer its ``problem[0]`` is 1, and the
    sums mean nothing.
    """
    state = np.zeros(len(plan.price_from) - 1, dtype=CHAIN)
    # A record holds no reference to its array: the arrays live here until the call returns.
    scratch = (np.zeros(1, dtype=ACCOUNT), np.zeros(1, dtype=fills.ENTRY), np.zeros(11))
    _run_chain(plan, params, keys, raw, rule, state, *scratch)


@inlined
def _run_chain(
    plan: Any, params: Any, keys: Any, raw: Any, rule: Any, state: Any, accounts: Any, entries: Any, view: Any
) -> None:
    """All in one body on purpose: a call that carries the plan's arrays costs more than what it would do."""
    account, found = accounts[0], entries[0]
    ticks, price, price_ts, price_index = plan.ticks, plan.price, plan.price_ts, plan.price_index
    price_from, high, low, offsets = plan.price_from, plan.price_high, plan.price_low, plan.price_offsets
    cand_ts, cand_index, cand_from, cand_at = plan.cand_ts, plan.cand_index, plan.cand_from, plan.cand_at
    score_index, score_from, force_from = plan.score_index, plan.score_from, plan.force_from
    force_index, table, next_entry = plan.force_index, plan.table, plan.next_entry
    tables = len(next_entry) > 0
    ruled, moves = rule.level[0] != fills.NO_LEVEL, rule.level[0] == fills.STOP_LEVEL
    n_symbols = len(price_from) - 1
    for row in range(len(params)):
        p = params[row]
        key = keys[row]
        sums = raw[row]
        strength = plan.strength[0 if tables else key.entry_set]
        strength_high = plan.strength_high[0 if tables else key.entry_set]
        losses = not np.isnan(p.max_daily_loss_usd)
        limited = losses or p.max_open_positions >= 0 or p.max_trades_per_day >= 0
        leaves = not np.isnan(p.exit_threshold)
        trails = not np.isnan(p.trailing_activation_pct)
        stop_long = fills.stop_price(1.0, 1.0, p.sl_pct)
        stop_short = fills.stop_price(1.0, -1.0, p.sl_pct)
        tp1_long = fills.target_price(1.0, 1.0, p.tp1_pct)
        tp1_short = fills.target_price(1.0, -1.0, p.tp1_pct)
        tp2_long = fills.target_price(1.0, 1.0, p.tp2_pct)
        tp2_short = fills.target_price(1.0, -1.0, p.tp2_pct)
        if p.max_open_positions == 0 or p.max_trades_per_day == 0:
            continue
        start_account(account, p, plan.start[0])
        for k in range(n_symbols):
            start_symbol(plan, state[k], p, k)
        while True:
            chosen = -1
            earliest = NEVER
            for k in range(n_symbols):
                s = state[k]
                while s.action == UNKNOWN:
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
                            break
                        if limited:
                            s.action = 2 * np.int64(cand_index[c]) + 1
                            if p.entry_order == fills.LIMIT:
                                # Without a reference price there is nothing to decide.
                                find_entry(plan, p, key.gap, c, found)
                                if found.kind == fills.NO_ENTRY:
                                    s.cand = c + 1
                                    s.action = UNKNOWN
                                    continue
                            break
                        # Without limits an entry does not depend on other symbols: at once.
                    e = found
                    if tables:
                        e = plan.entries[key.entry, c]
                    else:
                        find_entry(plan, p, key.gap, c, e)
                    if e.kind > fills.FILLED_THIN or e.kind == fills.NO_ENTRY:
                        s.cand = np.int64(e.next)
                        s.phase = SEEK
                        if e.kind != fills.NO_ENTRY:
                            sums[e.kind] += 1.0
                            if limited:
                                s.phase = WAIT
                                s.free = end_of_order(plan, e, price_from[k + 1])
                                s.action = s.free
                        continue
                    q = np.int64(e.at)
                    end = np.int64(e.end)
                    last = price_from[k + 1]
                    direction = 1.0 if e.qty > 0.0 else -1.0
                    rising = direction > 0.0
                    entry = e.price
                    s.q, s.end, s.ts, s.direction, s.entry, s.qty = q, end, e.ts, direction, entry, abs(e.qty)
                    s.thin = 1 if e.kind == fills.FILLED_THIN else 0
                    s.filled = 0 if losses else 1
                    s.parted = s.exited = 0
                    tick_num, tick_den = s.tick_num, s.tick_den
                    # The first stop; that of a LIMIT entry may be touched by its own event.
                    base = fills.rounded_price(
                        entry * (stop_long if rising else stop_short), -direction, tick_num, tick_den
                    )
                    base_reason = fills.STOP_LOSS
                    known: Any = table[key.stop, c] if tables else np.int64(0)
                    if known == 0:
                        x = q if p.entry_order == fills.LIMIT else q + 1
                        x = towards(price, high, low, offsets, x, end, base, -direction)
                        known = cell(ticks, cand_at, x, x, last)
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
                            x = first_trailing(plan, p, s)
                            known = cell(ticks, cand_at, x, x, last)
                            if tables:
                                table[key.trail, c] = known
                        trail_cell = known
                        trail = (known >> 32) - 1
                    # Market exits: the time that is up, and the first score or risk exit to be submitted.
                    market = end
                    market_reason = fills.TIMEOUT
                    market_cell = base_cell
                    if p.max_hold_ns >= 0:
                        known = table[key.hold, c] if tables else np.int64(0)
                        if known == 0:
                            x = first_at_least(price_ts, q + 1, end, price_ts[q] + p.max_hold_ns)
                            known = cell(ticks, cand_at, x, x, last)
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
                                final = score_from[k + 1]
                                at = first_at_least(score_index, score_from[k], final, index + 1)
                                at = first_beyond(
                                    plan.score,
                                    plan.score_high,
                                    plan.score_low,
                                    plan.score_offsets,
                                    at,
                                    final,
                                    p.exit_threshold,
                                    direction,
                                )
                                if at < final:
                                    decided = np.int64(score_index[at])
                                    due_ts = plan.score_ts[at] + p.latency_ns
                            final = force_from[k + 1]
                            at = first_at_least(force_index, force_from[k], final, index + 1)
                            if at < final and force_index[at] < decided:
                                decided = np.int64(force_index[at])
                                due_ts = plan.force_ts[at] + p.latency_ns
                                risk = 1
                            due = end
                            if decided < NEVER:
                                due = first_at_least(price_index, q + 1, end, decided + 1)
                                due = first_at_least(price_ts, due, end, due_ts)
                            known = cell(ticks, cand_at, 2 * due + risk, due, last)
                            if tables:
                                table[key.leave, c] = known
                        # At one event the time is up first.
                        leave = (known >> 32) - 1
                        if leave >> 1 < market:
                            market = leave >> 1
                            market_reason = fills.SCORE_EXIT + (leave & 1)
                            market_cell = known
                    # A level rule, as far as the trade can last: its stop, and where it closes, before the time is up.
                    hit = end
                    moved = np.nan
                    moved_at = q
                    if ruled:
                        until = min(end, min(base_touch, trail, market) + 1)
                        follow_level(plan, s, rule, view, until)
                        moved, moved_at = s.moved, s.moved_at
                        if s.hit < until:
                            hit = s.hit
                        if s.closed < until and s.closed <= market:
                            market = s.closed
                            market_reason = fills.RULE
                            market_cell = cell(ticks, cand_at, market, market, last)
                    # TP1, and the second stage that it starts. At one event: stop, TP1, TP2, market exit.
                    s.t1 = -1
                    s.x = -1
                    then = trail_cell
                    s.part = fills.tp1_part(p, plan.symbol[k], s.qty) if p.tp1_fraction > 0.0 else 0.0
                    if s.part > 0.0:
                        s.tp1 = fills.rounded_price(
                            entry * (tp1_long if rising else tp1_short), direction, tick_num, tick_den
                        )
                        known = table[key.tp1, c] if tables else np.int64(0)
                        if known == 0:
                            x = first_fill(plan, p, q, end, s.tp1, direction, s.part)
                            known = cell(ticks, cand_at, x, x, last)
                            if tables:
                                table[key.tp1, c] = known
                        t1 = (known >> 32) - 1
                        if t1 < end and t1 < base_touch and t1 < trail and t1 < hit and t1 <= market:
                            s.t1 = t1
                            even = fills.rounded_price(
                                fills.break_even_price(entry, direction, p.break_even_offset_pct),
                                -direction,
                                tick_num,
                                tick_den,
                            )
                            if p.tp1_fraction == 1.0:
                                s.x = t1
                                s.reason = fills.TP1
                                then = known
                            elif fills.tightens(even, base, direction):
                                raised = np.nan
                                if trails:
                                    # No price since the entry's own was better than the one that fills TP1, and
                                    # where that raises the stop beyond break-even, it does so in the same event.
                                    best = price[t1]
                                    best = max(best, price[q]) if rising else min(best, price[q])
                                    raised = raised_stop(p, s, best)
                                    if raised == even or moves:
                                        raised = trailing_stop(plan, p, s, t1)
                                if moves:
                                    follow_level(plan, s, rule, view, t1)
                                    if np.isnan(raised) or fills.tightens(s.moved, raised, direction):
                                        raised = s.moved
                                if np.isnan(raised) or fills.tightens(even, raised, direction):
                                    base = even
                                    base_reason = fills.BREAK_EVEN
                                    known = table[key.even, c] if tables else np.int64(0)
                                    if known == 0:
                                        x = towards(price, high, low, offsets, t1 + 1, end, even, -direction)
                                        known = cell(ticks, cand_at, x, x, last)
                                        if tables:
                                            table[key.even, c] = known
                                    base_cell = known
                                    base_touch = (known >> 32) - 1
                    stop = min(base_touch, trail, hit)
                    if s.x < 0 and p.tp1_fraction < 1.0 and (s.part == 0.0 or s.t1 >= 0):
                        level = fills.rounded_price(
                            entry * (tp2_long if rising else tp2_short), direction, tick_num, tick_den
                        )
                        known = table[key.tp2, c] if tables else np.int64(0)
                        if known == 0:
                            x = first_fill(plan, p, q, end, level, direction, s.qty)
                            known = cell(ticks, cand_at, x, x, last)
                            if tables:
                                table[key.tp2, c] = known
                        t2 = (known >> 32) - 1
                        if t2 < end and t2 < stop and t2 <= market:
                            s.x = t2
                            s.reason = fills.TP2
                            s.fill = level
                            then = known
                    if s.x < 0:
                        s.x = end
                        if stop < end and stop <= market:
                            s.x = stop
                            s.reason = base_reason
                            if base_touch <= trail:
                                then = base_cell
                            # Both stops at once: the tighter one had been moved last.
                            if trail < base_touch or (
                                trail == base_touch
                                and fills.tightens(trailing_stop(plan, p, s, stop), base, direction)
                            ):
                                s.reason = fills.TRAILING
                            if hit == stop:
                                s.reason = reason_of_stop(
                                    plan, p, s, base, base_reason, trail, moved, moved_at
                                )
                                then = cell(ticks, cand_at, stop, stop, last)
                            if p.stop_latency_ns > 0:
                                s.x = first_at_least(price_ts, stop, end, price_ts[stop] + p.stop_latency_ns)
                                then = cell(ticks, cand_at, s.x, s.x, last)
                        elif market < end:
                            s.x = market
                            s.reason = market_reason
                            then = market_cell
                        factor = s.sells if rising else s.buys
                        if s.x < end:
                            s.fill = ticks[s.x].price * factor
                            if s.model != fills.PRINT and fills.usable(
                                plan.quote[s.x], price_ts[s.x], p.max_book_age_ns
                            ):
                                left = fills.remaining_qty(s.qty, s.part) if s.t1 >= 0 else s.qty
                                filled_at, thin = fills.book_fill(
                                    plan.quote[s.x],
                                    plan.book_levels,
                                    plan.book_from,
                                    price[s.x],
                                    left,
                                    -direction,
                                    s.slip,
                                    s.model,
                                )
                                s.fill = filled_at
                                if thin:
                                    s.thin = 1
                        else:
                            # The segment ends: at a hole, or with the session.
                            s.x = end - 1
                            s.reason = fills.SESSION_END if end == last else fills.DATA_GAP
                            s.fill = ticks[s.x].price * factor
                    s.follower = then & 0xFFFFFFFF
                    s.free = 2 * np.int64(ticks[s.x].index)
                    if s.reason == fills.DATA_GAP:
                        s.free = 2 * np.int64(ticks[end].index)
                    elif s.reason == fills.SESSION_END:
                        s.free = NEVER
                    s.fund_end = s.settled = s.fund_from
                    if plan.funding_from[k + 1] > plan.funding_from[k]:
                        find_funding(plan, s, k)
                    set_action(plan, s, losses)
                if s.action < earliest:
                    earliest = s.action
                    chosen = k
            if chosen < 0:
                break
            if len(plan.carried) > 0:
                carry(plan, account, p, earliest >> 1)
            s = state[chosen]
            if s.phase == EXIT:
                settle(plan, s, p, losses, account, sums)
                s.cand = s.follower
                if s.reason == fills.SESSION_END or s.reason == fills.DATA_GAP:
                    s.exited = 1
                    if limited:
                        set_action(plan, s, losses)
                        continue
                    s.phase = SEEK if s.reason == fills.DATA_GAP else DONE
                    s.action = UNKNOWN if s.reason == fills.DATA_GAP else NEVER
                else:
                    account.open -= 1
                    s.phase = SEEK
                    s.action = UNKNOWN
                    if p.cooldown_ns > 0:
                        s.cand = first_at_least(
                            cand_ts, s.cand, cand_from[chosen + 1], ticks[s.x].ts + p.cooldown_ns
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
                        cand_index, s.cand + 1, cand_from[chosen + 1], first_free(plan, state, account)
                    )
                else:
                    tomorrow = (ts // NS_PER_DAY + 1) * NS_PER_DAY
                    s.cand = first_at_least(cand_ts, s.cand + 1, cand_from[chosen + 1], tomorrow)
            elif s.phase == WAIT:
                account.open -= 1
                s.phase = SEEK
                s.action = UNKNOWN
            else:
                advance(plan, s, p, account)


# ---- Targets and stops alone ---------------------------------------------------------------------------------


@compiled
def run_plain(plan: Any, params: Any, keys: Any, raw: Any) -> None:
    """``run_chain`` for one symbol with nothing but one target and one stop, by tables.

    In a dense regime, with thousands of trades per combination, memory decides: all rows go through one stretch of
    candidates before the next stretch, so that its tables stay in the processor's cache.
    """
    _run_plain(plan, params, keys, raw, np.zeros(len(params), dtype=np.int64), np.zeros((3, 2)))


@inlined
def _run_plain(plan: Any, params: Any, keys: Any, raw: Any, at: Any, factors: Any) -> None:
    n = len(plan.cands)
    lines = (plan.table.reshape(-1), plan.next_entry.reshape(-1), plan.entries.reshape(-1))
    done = 0
    stretch: Any = n
    first_row, rows = 0, min(1, len(params))
    while done < n or first_row == 0:
        until = min(done + stretch, n)
        for row in range(first_row, rows):
            if at[row] < until:
                at[row] = _walk(plan, lines, params[row], keys[row], raw[row], at[row], until, factors)
        done = until
        if first_row == 0:
            # The first row says how dense the others are: some hundred trades of a row in each stretch.
            first_row, rows, done = 1, len(params), 0
            stretch = max(256, np.int64(96.0 * n / max(96.0, raw[0, fills.N]))) if len(params) > 0 else 1


@merged
def _stop_cell(plan: Any, p: Any, e: Any, direction: Any) -> Any:
    """Search where a trade's stop is touched; that of a LIMIT entry may be by the entry's own event."""
    symbol = plan.symbol[0]
    stop = fills.stop_price(e.price, direction, p.sl_pct)
    stop = fills.rounded_price(stop, -direction, fills.tick_of(p, symbol), symbol.tick_den)
    x = np.int64(e.at) if p.entry_order == fills.LIMIT else np.int64(e.at + 1)
    x = towards(
        plan.price,
        plan.price_high,
        plan.price_low,
        plan.price_offsets,
        x,
        np.int64(e.end),
        stop,
        -direction,
    )
    return cell(plan.ticks, plan.cand_at, x, x, len(plan.ticks))


@merged
def _target_cell(plan: Any, p: Any, e: Any, direction: Any, level: Any) -> Any:
    """Search where a trade's target fills."""
    x = first_fill(plan, p, np.int64(e.at), np.int64(e.end), level, direction, abs(e.qty))
    return cell(plan.ticks, plan.cand_at, x, x, len(plan.ticks))


@merged
def _walk(plan: Any, lines: Any, p: Any, key: Any, sums: Any, c: Any, until: Any, factors: Any) -> Any:
    """Make the trades of a row from the candidate ``c`` to ``until``; returns the candidate to continue from.

    Every instruction counts, at some hundred of them a trade: sums stay in registers, positions are unsigned (numba
    then does not look for negative ones), and factors and fees are picked by position, since a choice between two
    quotients would divide again at every trade.
    """
    table, following, entries = lines
    ticks, n, last, symbol = plan.ticks, len(plan.cands), len(plan.ticks), plan.symbol[0]
    stop_row, target_row, entry_row, following_row = (
        key.stop * n,
        key.tp2 * n,
        key.entry * n,
        key.entry_set * n,
    )
    tick_num, tick_den = fills.tick_of(p, symbol), symbol.tick_den
    model = fills.fill_model(p, symbol)
    slip = fills.slippage(p, model)
    by_book, cooldown = model != fills.PRINT, p.cooldown_ns
    for up in range(2):
        direction = 2.0 * up - 1.0
        factors[0, up] = fills.market_price(1.0, -direction, fills.slippage(p, fills.PRINT))
        factors[1, up] = fills.target_price(1.0, direction, p.tp2_pct)
    factors[2, 0], factors[2, 1] = p.taker_fee_bps, p.maker_fee_bps
    entry_bps = p.maker_fee_bps if p.entry_order == fills.LIMIT else p.taker_fee_bps
    count, wins, net = np.int64(sums[fills.N]), sums[fills.WINS], sums[fills.NET]
    gross_sum, fees_sum, profit = sums[fills.GROSS], sums[fills.FEES], sums[fills.PROFIT]
    loss, peak, drawdown = sums[fills.LOSS], sums[fills.PEAK], sums[fills.DRAWDOWN]
    lowest, run = sums[fills.LOW], np.int64(sums[fills.RUN])
    none, head = np.int64(0), np.int64(sums[fills.HEAD])
    won, lost = max(run, none), max(-run, none)
    most_won, most_lost = np.int64(sums[fills.WIN_STREAK]), np.int64(sums[fills.LOSS_STREAK])
    first, deviations, squares = sums[fills.FIRST], sums[fills.SUM], sums[fills.SQUARES]
    exposure, after_gaps, targets = sums[fills.EXPOSURE], sums[fills.AFTER_GAPS], 0.0
    wide = len(sums) > fills.RAW
    while c < until:
        c = np.int64(following[np.uint64(following_row + c)])
        if c >= until:
            break
        e = entries[np.uint64(entry_row + c)]
        if e.kind > fills.FILLED_THIN or e.kind == fills.NO_ENTRY:
            if e.kind != fills.NO_ENTRY:
                sums[e.kind] += 1.0
            c = np.int64(e.next)
            continue
        rising = np.uint64(e.qty > 0.0)
        direction = 1.0 if e.qty > 0.0 else -1.0
        entry, qty, end = e.price, abs(e.qty), np.int64(e.end)
        level = fills.rounded_price(entry * factors[np.uint64(1), rising], direction, tick_num, tick_den)
        stopped, reached = table[np.uint64(stop_row + c)], table[np.uint64(target_row + c)]
        if stopped == 0:
            table[stop_row + c] = stopped = _stop_cell(plan, p, e, direction)
        if reached == 0:
            table[target_row + c] = reached = _target_cell(plan, p, e, direction, level)
        # At one event the stop comes first. Cells of one event are equal, also those of the segment's end.
        hit = np.uint64(reached < stopped)
        then = min(reached, stopped)
        x = (then >> 32) - 1
        c = then & 0xFFFFFFFF
        over = x >= end
        if over:
            x = end - 1
        tick = ticks[np.uint64(x)]
        market = tick.price * factors[np.uint64(0), rising]
        thin = e.kind == fills.FILLED_THIN
        if by_book and not over and hit == 0:
            quote = plan.quote[np.uint64(x)]
            if fills.usable(quote, tick.ts, p.max_book_age_ns):
                market, beyond = fills.book_fill(
                    quote, plan.book_levels, plan.book_from, tick.price, qty, -direction, slip, model
                )
                thin = thin or beyond
        fill = level if hit == 1 else market
        fees = fills.fee(entry, qty, entry_bps) + fills.fee(fill, qty, factors[np.uint64(2), hit])
        gross = fills.gross_pnl(fill, entry, qty, direction)
        pnl = fills.realized_pnl(gross, fees)
        if count == 0:
            first = pnl
        count += 1
        gross_sum += gross
        fees_sum += fees
        net += pnl
        wins += pnl > 0.0
        profit += max(pnl, 0.0)
        loss += max(-pnl, 0.0)
        peak = max(peak, net)
        drawdown = min(drawdown, net - peak)
        lowest = min(lowest, net)
        won, lost = fills.next_runs(won, lost, pnl)
        most_won, most_lost = max(most_won, won), max(most_lost, lost)
        head += won + lost == count
        deviation = pnl - first
        deviations += deviation
        squares += deviation * deviation
        exposure += tick.ts - e.ts
        targets += hit
        if thin:
            sums[fills.THIN] += 1.0
        if wide:
            fills.add_period(sums, tick.ts, pnl)
        if over:
            if end == last:
                sums[fills.BY_REASON + fills.SESSION_END] += 1.0
                c = n
            else:
                sums[fills.BY_REASON + fills.DATA_GAP] += 1.0
                fill = ticks[end].price * factors[np.uint64(0), rising]
                gross = fills.gross_pnl(fill, entry, qty, direction)
                fees = fills.fee(entry, qty, entry_bps) + fills.fee(fill, qty, p.taker_fee_bps)
                pnl = fills.realized_pnl(gross, fees)
        elif cooldown > 0:
            c = first_at_least(plan.cand_ts, c, n, tick.ts + cooldown)
        after_gaps += pnl
    ended = sums[fills.BY_REASON + fills.SESSION_END] + sums[fills.BY_REASON + fills.DATA_GAP]
    sums[fills.BY_REASON + fills.TP2] += targets
    sums[fills.BY_REASON + fills.STOP_LOSS] = count - ended - sums[fills.BY_REASON + fills.TP2]
    sums[fills.N], sums[fills.WINS], sums[fills.NET] = count, wins, net
    sums[fills.GROSS], sums[fills.FEES], sums[fills.PROFIT] = gross_sum, fees_sum, profit
    sums[fills.LOSS], sums[fills.PEAK], sums[fills.DRAWDOWN] = loss, peak, drawdown
    sums[fills.FIRST], sums[fills.LOW], sums[fills.RUN], sums[fills.HEAD] = first, lowest, won - lost, head
    sums[fills.WIN_STREAK], sums[fills.LOSS_STREAK] = most_won, most_lost
    sums[fills.SUM], sums[fills.SQUARES], sums[fills.EXPOSURE] = deviations, squares, exposure
    sums[fills.AFTER_GAPS] = after_gaps
    return c
