"""Fills, sizes and levels of the model, compiled, and the sums that closed trades add to.

Both kernels (``model_loop``, ``model_chain``) read parameters, fill orders and count trades through this module alone,
so that their results can only differ in which trades they find; the parity tests show that they find the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replaylab.barriers import BRANCH, SHIFT, first_ge, first_le, range_max, range_min
from replaylab.compiled import call_address, inlined, merged
from replaylab.params import TradingParams
from replaylab.sweep.tape import NEVER, layout
from replaylab.trading import formulas

# The packed parameters. ``allowed_regimes_set``: a row of the table of allowed regimes. ``filter``: a number for each
# distinct combination of directions and regimes.
PARAMS = np.dtype(
    [(d.column, d.packed_type) for d in TradingParams.declarations()] + [("filter", "i4")], align=True
)

REASONS = (
    "STOP_LOSS",
    "BREAK_EVEN",
    "TRAILING",
    "TP1",
    "TP2",
    "TIMEOUT",
    "SCORE_EXIT",
    "RISK_EXIT",
    "SESSION_END",
    "DATA_GAP",
    "RULE",
)
STOP_LOSS, BREAK_EVEN, TRAILING, TP1, TP2, TIMEOUT, SCORE_EXIT, RISK_EXIT, SESSION_END, DATA_GAP, RULE = (
    range(11)
)

# Choices in their packed form.
_choices = {
    d.name: {name: k for k, name in enumerate(d.choices)} for d in TradingParams.declarations() if d.choices
}
AUTO, PRINT, QUOTE, BOOK = (_choices["market_fill"][name] for name in ("auto", "print", "quote", "book"))
TOUCH, THROUGH, QUEUE = (_choices["limit_fill"][name] for name in ("touch", "through", "queue"))
LIMIT = _choices["entry_order"]["LIMIT"]
EXCHANGE = _choices["rounding"]["exchange"]

# Columns of a row of raw sums, from which the metrics of a result frame are computed. ``AFTER_GAPS``: PnL with
# ``gap_pnl`` in place of the PnL of trades that a hole ended. ``LOW``: the lowest equity. ``RUN``: how many wins (or
# losses, negative) the last trades are, ``HEAD``: how many of one kind the first ones are, so that sums can be pooled.
RAW = 35
N, WINS, GROSS, FEES, NET, PROFIT, LOSS, PEAK, DRAWDOWN, FIRST, SUM, SQUARES, EXPOSURE = range(13)
# A wider row also sums the PnL by period of the exit. Behind the sums are the start of the first period in ns (as two
# numbers, for a float does not hold it), the length of a period in ns, then a number for each period. With a length of
# 0 it lists the exits: a count, then three numbers for each exit, its time in ns (as two) and the PnL.
CLOCK = 3
FUNDING, AFTER_GAPS, THIN, EXPIRED, REJECTED, CANCELLED = range(13, 19)
BY_REASON = 19
LOW, RUN, HEAD, WIN_STREAK, LOSS_STREAK = range(30, 35)
_HALF = 1 << 32

# What becomes of an entry order. FILLED: at ``price`` for ``qty`` (its sign is the direction) at the price event ``at``
# and its time ``ts``; ``end``: the price event that ends the segment, that of a hole or the symbol's end. Otherwise
# ``kind`` is the column of its count, ``next`` the first candidate from which on the symbol is flat, and the order ends
# at ``at`` (REJECTED), ``end`` (CANCELLED) or the time ``ts`` (EXPIRED). NO_ENTRY: no decision, for want of a reference
# price.
NO_ENTRY, FILLED, FILLED_THIN = range(3)
ENTRY = layout(f8="price qty", i8="ts", i4="at end next kind")

market_price = inlined(formulas.market_price)
book_price = inlined(formulas.book_price)
worse_price = inlined(formulas.worse_price)
rounded_price = inlined(formulas.rounded_price)
rounded_qty = inlined(formulas.rounded_qty)
too_small = inlined(formulas.too_small)
limit_entry_price = inlined(formulas.limit_entry_price)
traded_through = inlined(formulas.traded_through)
funding_cash = inlined(formulas.funding_cash)
fee = inlined(formulas.fee)
fixed_qty = inlined(formulas.fixed_qty)
risk_qty = inlined(formulas.risk_qty)
target_price = inlined(formulas.target_price)
stop_price = inlined(formulas.stop_price)
break_even_price = inlined(formulas.break_even_price)
trailing_active = inlined(formulas.trailing_active)
trailing_price = inlined(formulas.trailing_price)
tightens = inlined(formulas.tightens)
stop_hit = inlined(formulas.stop_hit)
target_hit = inlined(formulas.target_hit)
tp1_qty = inlined(formulas.tp1_qty)
remaining_qty = inlined(formulas.remaining_qty)
gross_pnl = inlined(formulas.gross_pnl)
realized_pnl = inlined(formulas.realized_pnl)
weighted_price = inlined(formulas.weighted_price)
excursion = inlined(formulas.excursion)
weighted_price = inlined(formulas.weighted_price)
daily_loss_reached = inlined(formulas.daily_loss_reached)


@inlined
def fill_model(p: Any, symbol: Any) -> Any:
    """Market fill in force for a symbol: "auto" is "book" where it has a book, else "print"."""
    if p.market_fill == AUTO:
        return BOOK if symbol.has_book == 1 else PRINT
    return p.market_fill


@inlined
def slippage(p: Any, model: Any) -> Any:
    """Slippage in force, in bps, of a fill by a model."""
    if np.isnan(p.slippage_bps):
        return 1.0 if model == PRINT else 0.0
    return p.slippage_bps


@inlined
def usable(quote: Any, ts: Any, max_age_ns: Any) -> Any:
    """Whether a book is used for fills at a price event: both sides, and not too old."""
    return quote.state >= 0 and (max_age_ns < 0 or ts - quote.ts <= max_age_ns)


@inlined
def entry_qty(p: Any, ref: Any) -> Any:
    """Quantity of an entry at a reference price, before rounding."""
    if np.isnan(p.risk_per_trade_usd):
        return fixed_qty(ref, p.notional_usd)
    return risk_qty(ref, p.sl_pct, p.risk_per_trade_usd, p.leverage, p.notional_usd)


@inlined
def sized(p: Any, symbol: Any, ref: Any) -> Any:
    """Quantity of an entry, rounded to the lot; 0: rejected for its size."""
    qty = entry_qty(p, ref)
    if p.rounding == EXCHANGE:
        qty = rounded_qty(qty, symbol.lot_num, symbol.lot_den)
        if too_small(qty, ref, symbol.min_notional):
            return 0.0
    return qty


@inlined
def tick_of(p: Any, symbol: Any) -> Any:
    """Numerator of the tick in force; 0: prices are not rounded."""
    return symbol.tick_num if p.rounding == EXCHANGE else 0.0


@inlined
def tp1_part(p: Any, symbol: Any, qty: Any) -> Any:
    """Quantity that TP1 closes; 0: the trade has no TP1."""
    if p.tp1_fraction == 1.0:
        return qty
    part = tp1_qty(qty, p.tp1_fraction)
    if p.rounding == EXCHANGE:
        part = rounded_qty(part, symbol.lot_num, symbol.lot_den)
    return part if part < qty else 0.0


@inlined
def walk(levels: Any, start: Any, end: Any, qty: Any) -> Any:
    """Cost of a quantity from the best of the levels outwards, and whether something was left after the last one."""
    cost = 0.0
    left = qty
    for row in range(start, end):
        size = levels[2 * row + 1]
        if size >= left:
            return cost + levels[2 * row] * left, False
        cost += levels[2 * row] * size
        left -= size
    return cost + levels[2 * end - 2] * left, True


@merged
def book_fill(
    quote: Any, levels: Any, book_from: Any, price: Any, qty: Any, side: Any, slip: Any, model: Any
) -> Any:
    """Price of a market order by the quote or the book, and whether it went beyond the visible levels.

    ``side``: +1 buys, −1 sells. Never better than the print at ``price``.
    """
    printed = market_price(price, side, slip)
    best = quote.ask if side > 0.0 else quote.bid
    if model == QUOTE:
        return worse_price(market_price(best, side, slip), printed, side), False
    thin = False
    if qty <= (quote.ask_qty if side > 0.0 else quote.bid_qty):
        cost = best * qty
    else:
        state = 2 * quote.state + (1 if side > 0.0 else 0)
        cost, thin = walk(levels, book_from[state], book_from[state + 1], qty)
    return worse_price(book_price(cost, qty, side, slip), printed, side), thin


@merged
def queue_ahead(quote: Any, levels: Any, book_from: Any, limit: Any, side: Any, share: Any) -> Any:
    """Quantity ahead of a limit order that arrives at a usable book; −1: not visible, only a trade-through fills it.

    ``side``: +1 where the order sells, −1 where it buys.
    """
    if quote.bid < limit < quote.ask:
        return 0.0
    state = 2 * quote.state + (1 if side > 0.0 else 0)
    for row in range(book_from[state], book_from[state + 1]):
        if levels[2 * row] == limit:
            return share * levels[2 * row + 1]
    return -1.0


@merged
def add_trade(
    raw: Any,
    gross: Any,
    fees: Any,
    funding: Any,
    entry_ts: Any,
    exit_ts: Any,
    reason: Any,
    thin: Any,
    gap_pnl: Any,
) -> None:
    """Add a closed trade to a row of raw sums; trades come in the order of their exits."""
    pnl = realized_pnl(gross, fees) + funding
    if raw[N] == 0.0:
        raw[FIRST] = pnl
    raw[N] += 1.0
    raw[GROSS] += gross
    raw[FEES] += fees
    raw[FUNDING] += funding
    raw[NET] += pnl
    raw[AFTER_GAPS] += gap_pnl if reason == DATA_GAP else pnl
    raw[THIN] += thin
    # Without a branch: whether a trade wins is the one thing that a processor cannot guess.
    raw[WINS] += pnl > 0.0
    raw[PROFIT] += max(pnl, 0.0)
    raw[LOSS] += max(-pnl, 0.0)
    raw[PEAK] = max(raw[PEAK], raw[NET])
    raw[DRAWDOWN] = min(raw[DRAWDOWN], raw[NET] - raw[PEAK])
    raw[LOW] = min(raw[LOW], raw[NET])
    wins, losses = next_runs(max(raw[RUN], 0.0), max(-raw[RUN], 0.0), pnl)
    raw[RUN] = wins - losses
    raw[HEAD] += wins + losses == raw[N]
    raw[WIN_STREAK] = max(raw[WIN_STREAK], wins)
    raw[LOSS_STREAK] = max(raw[LOSS_STREAK], losses)
    # Sums of deviations from the first trade: equal trades give a variance of exactly zero.
    deviation = pnl - raw[FIRST]
    raw[SUM] += deviation
    raw[SQUARES] += deviation * deviation
    raw[EXPOSURE] += exit_ts - entry_ts
    raw[BY_REASON + reason] += 1.0
    if len(raw) > RAW:
        add_period(raw, exit_ts, pnl)


@inlined
def next_runs(wins: Any, losses: Any, pnl: Any) -> Any:
    """Return how many wins and how many losses the last trades are, with one more; a trade of 0 ends both."""
    if pnl == 0.0:
        return np.int64(0), np.int64(0)
    won = -np.int64(pnl > 0.0)
    return (np.int64(wins) + 1) & won, (np.int64(losses) + 1) & ~won


@merged
def add_period(raw: Any, exit_ts: Any, pnl: Any) -> None:
    """Add the PnL of a trade to the period of its exit, or to the list of exits, in a wide row of raw sums."""
    if raw[RAW + 2] == 0.0:
        place = RAW + CLOCK + 3 * np.int64(raw[RAW])
        if place + 2 < len(raw):
            raw[place] = np.int64(exit_ts) // _HALF
            raw[place + 1] = np.int64(exit_ts) % _HALF
            raw[place + 2] = pnl
        raw[RAW] += 1.0
        return
    start = np.int64(raw[RAW]) * _HALF + np.int64(raw[RAW + 1])
    period = (np.int64(exit_ts) - start) // np.int64(raw[RAW + 2])
    last = np.int64(len(raw) - RAW - CLOCK - 1)
    raw[RAW + CLOCK + min(max(period, np.int64(0)), last)] += pnl


def exits_of(row: Any) -> tuple[Any, Any]:
    """Return times (ns) and PnL of the exits that a row of ``wide_row(0, 0, 3 * n)`` lists, in order."""
    listed = row[RAW + CLOCK : RAW + CLOCK + 3 * int(row[RAW])].reshape(-1, 3)
    return listed[:, 0].astype(np.int64) * _HALF + listed[:, 1].astype(np.int64), listed[:, 2]


def wide_row(start: int, length: int, count: int) -> Any:
    """Return a row of raw sums that also sums the PnL of ``count`` periods of ``length`` ns from ``start``."""
    row = np.zeros(RAW + CLOCK + count)
    row[RAW : RAW + CLOCK] = start // _HALF, start % _HALF, length
    return row


# ---- Searches ----------------------------------------------------------------------------------------------


@merged
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


@merged
def cell(ticks: Any, cand_at: Any, touch: Any, x: Any, last: Any) -> Any:
    """A table's cell: ``touch`` + 1, and below it the first candidate at or after the price event ``x``.

    One number, so that threads that share the table can never see a half of it; and the chain continues at the next
    entry without waiting for what lies at ``x``. ``last``: the symbol's end.
    """
    follower = np.int64(cand_at[ticks[x].next_score]) if x < last else np.int64(0)
    return (touch + 1) << 32 | follower


@merged
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


@merged
def first_fill(plan: Any, p: Any, at: Any, end: Any, limit: Any, side: Any, qty: Any) -> Any:
    """First price event in (at, end) that fills a limit order which arrived at ``at``, else end; ``side``: +1 sells."""
    price, high, low, offsets = plan.price, plan.price_high, plan.price_low, plan.price_offsets
    if p.limit_fill == TOUCH:
        return towards(price, high, low, offsets, at + 1, end, limit, side)
    ahead = -1.0
    if p.limit_fill == QUEUE and usable(plan.quote[at], plan.price_ts[at], p.max_book_age_ns):
        ahead = queue_ahead(plan.quote[at], plan.book_levels, plan.book_from, limit, side, p.queue_share)
    if ahead < 0.0:
        # Strictly beyond: at or beyond the number next to it.
        beyond = np.nextafter(limit, side * np.inf)
        return towards(price, high, low, offsets, at + 1, end, beyond, side)
    taken = 0.0
    x = at
    while True:
        x = towards(price, high, low, offsets, x + 1, end, limit, side)
        if x >= end or price[x] != limit:
            return x
        taken += plan.flow[x].sells if side > 0.0 else plan.flow[x].buys
        if taken >= ahead + qty:
            return x


@merged
def first_trailing(plan: Any, p: Any, s: Any) -> Any:
    """Return the first i in (s.q, s.end) whose price hits the stop that the prices from ``s.q`` to i − 1 raised.

    ``s.end`` where there is none. A block is skipped when its worst price does not reach the stop that its best price
    could raise: then no price in it can, whatever their order.
    """
    values, high, low, offsets = plan.price, plan.price_high, plan.price_low, plan.price_offsets
    entry, direction, tick_num, tick_den, end = s.entry, s.direction, s.tick_num, s.tick_den, s.end
    activation_pct, distance_pct = p.trailing_activation_pct, p.trailing_distance_pct
    best = values[s.q]
    active = trailing_active(best, entry, direction, activation_pct)
    stop = trailed(best, direction, distance_pct, tick_num, tick_den)
    top = len(offsets) - 1
    i = s.q + 1
    while i < end:
        if i & (BRANCH - 1) == 0:
            depth = 0
            reached = best
            while depth < top and i & ((1 << (SHIFT * (depth + 1))) - 1) == 0:
                node = offsets[depth] + (i >> (SHIFT * (depth + 1)))
                if direction > 0.0:
                    hoped, worst = max(best, high[node]), low[node]
                else:
                    hoped, worst = min(best, low[node]), high[node]
                if (active or trailing_active(hoped, entry, direction, activation_pct)) and stop_hit(
                    worst, trailed(hoped, direction, distance_pct, tick_num, tick_den), direction
                ):
                    break
                reached = hoped
                depth += 1
            if depth > 0:
                i += 1 << (SHIFT * depth)
                if reached != best:
                    best = reached
                    active = active or trailing_active(best, entry, direction, activation_pct)
                    stop = trailed(best, direction, distance_pct, tick_num, tick_den)
                continue
        price = values[i]
        if active and stop_hit(price, stop, direction):
            return i
        if direction * (price - best) > 0.0:
            best = price
            active = active or trailing_active(best, entry, direction, activation_pct)
            stop = trailed(best, direction, distance_pct, tick_num, tick_den)
        i += 1
    return end


@inlined
def trailed(best: Any, direction: Any, distance_pct: Any, tick_num: Any, tick_den: Any) -> Any:
    """The trailing stop of a best price, on its tick."""
    return rounded_price(trailing_price(best, direction, distance_pct), -direction, tick_num, tick_den)


@merged
def trailing_stop(plan: Any, p: Any, s: Any, until: Any) -> Any:
    """The trailing stop that the prices from the entry up to ``until`` raised; NaN while it is not active."""
    q, direction = s.q, s.direction
    if direction > 0.0:
        best = range_max(plan.price, plan.price_high, plan.price_offsets, q, until)
    else:
        best = range_min(plan.price, plan.price_low, plan.price_offsets, q, until)
    return raised_stop(p, s, best)


@merged
def raised_stop(p: Any, s: Any, best: Any) -> Any:
    """The trailing stop that a best price raised; NaN while it is not active."""
    if trailing_active(best, s.entry, s.direction, p.trailing_activation_pct):
        return trailed(best, s.direction, p.trailing_distance_pct, s.tick_num, s.tick_den)
    return np.nan


# ---- Exit rules --------------------------------------------------------------------------------------------

# What a rule answers besides a price, and the kinds of level rules in ``RuleArrays.level``.
HOLD, CLOSE = 0.0, -1.0
NO_LEVEL, STOP_LEVEL, TARGET_LEVEL = range(3)
# Steps of a level rule that one search covers.
_LEAP = 64


@inlined
def rule_answer(rule: Any, view: Any, x: Any) -> Any:
    """What a rule's function returns, with the features of the price event ``x``; NaN where that is no answer."""
    row = rule.features[x if len(rule.features) > 1 else 0]
    answer = call_address(rule.address[0], view.ctypes.data, row.ctypes.data, rule.values.ctypes.data)
    if answer in (HOLD, CLOSE) or 0.0 < answer < np.inf:
        return answer
    return np.nan


@inlined
def level_answer(rule: Any, view: Any, q: Any, step: Any) -> Any:
    """What a level rule returns in a step of the age of the trade that entered at the price event ``q``."""
    view[3] = step * rule.level[1] / 1e9
    return rule_answer(rule, view, q)


@inlined
def leap(plan: Any, s: Any, rule: Any, view: Any, x: Any, until: Any) -> Any:
    """Search many steps of a level rule at once, for the level among theirs that a price reaches first.

    Returns the event to continue at and the last step that needs a search of its own from there: where no price
    reaches that level, none reaches any of theirs, and the event after these steps is the next one.
    """
    price_ts, direction, length = plan.price_ts, s.direction, rule.level[1]
    stops = rule.level[0] == STOP_LEVEL
    first = (price_ts[x] - s.ts) // length
    end = min((price_ts[until - 1] - s.ts) // length + 1, first + _LEAP)
    level, level_step, step = np.nan, first, first
    while step < end:
        answer = level_answer(rule, view, s.q, step)
        if answer == CLOSE or np.isnan(answer):
            break
        if answer > 0.0:
            if stops:
                answer = rounded_price(answer, -direction, s.tick_num, s.tick_den)
            # The tightest stop, or the nearest target.
            if np.isnan(level) or (
                tightens(answer, level, direction) if stops else tightens(level, answer, direction)
            ):
                level, level_step = answer, step
        step += 1
    if step == first:
        return x, first
    then = first_at_least(price_ts, x, until, s.ts + step * length)
    if not stops:
        at = towards(
            plan.price, plan.price_high, plan.price_low, plan.price_offsets, x, then, level, direction
        )
        return (at, step - 1) if at < then else (then, first - 1)
    moves = np.isnan(s.moved) or tightens(level, s.moved, direction)
    if not moves:
        level = s.moved
    last = min(then + 1, until)
    if (
        towards(
            plan.price, plan.price_high, plan.price_low, plan.price_offsets, x + 1, last, level, -direction
        )
        < last
    ):
        return x, step - 1
    if moves and not np.isnan(level):
        # A step without a price is not asked for.
        at = first_at_least(price_ts, x, then, s.ts + level_step * length)
        if at == then or (price_ts[at] - s.ts) // length != level_step:
            return x, step - 1
        s.moved = level
        s.moved_at = at
    return then, first - 1


@inlined
def follow_level(plan: Any, s: Any, rule: Any, view: Any, until: Any) -> None:
    """Follow a level rule over the price events in (s.q, until): some searches in place of reading them.

    ``s.closed``: where the rule closes the trade, ``s.hit``: where the price hits its stop; ``until`` where it does
    not. ``s.moved``: its stop in force at the end (NaN: none), ``s.moved_at``: the event that set it. A step without a
    price event is never asked for, except by ``leap``, where an answer that is none ends the range of the search alone.
    """
    price, high, low, offsets = plan.price, plan.price_high, plan.price_low, plan.price_offsets
    price_ts, direction, length = plan.price_ts, s.direction, rule.level[1]
    stops = rule.level[0] == STOP_LEVEL
    s.closed = until
    s.hit = until
    s.moved = np.nan
    s.moved_at = s.q
    view[0] = direction
    view[1] = s.entry
    x = s.q + 1
    closely = np.int64(-1)
    while x < until:
        step = (price_ts[x] - s.ts) // length
        if step > closely:
            x, closely = leap(plan, s, rule, view, x, until)
            continue
        answer = level_answer(rule, view, s.q, step)
        if np.isnan(answer):
            rule.problem[0] = 1
            return
        if answer == CLOSE:
            s.closed = x
            return
        then = first_at_least(price_ts, x + 1, until, s.ts + (step + 1) * length)
        if stops:
            if answer > 0.0:
                stop = rounded_price(answer, -direction, s.tick_num, s.tick_den)
                if np.isnan(s.moved) or tightens(stop, s.moved, direction):
                    s.moved = stop
                    s.moved_at = x
            # A stop acts from the next price on, and still at the event that moves it.
            end = min(then + 1, until)
            if not np.isnan(s.moved):
                at = towards(price, high, low, offsets, x + 1, end, s.moved, -direction)
                if at < end:
                    s.hit = at
                    return
        elif answer > 0.0:
            at = towards(price, high, low, offsets, x, then, answer, direction)
            if at < then:
                s.closed = at
                return
        x = then


# ---- Entries -----------------------------------------------------------------------------------------------


@inlined
def entry_limit(plan: Any, p: Any, cand: Any, model: Any) -> Any:
    """Price of a LIMIT entry that a candidate decides; NaN without a reference price."""
    symbol = plan.symbol[cand.symbol]
    reference = plan.price[cand.after - 1] if cand.after > plan.price_from[cand.symbol] else np.nan
    if model != PRINT and usable(plan.score_quote[cand.score], cand.ts, p.max_book_age_ns):
        quote = plan.score_quote[cand.score]
        reference = quote.bid if cand.direction > 0.0 else quote.ask
    limit = limit_entry_price(reference, cand.direction, p.entry_offset_bps)
    return rounded_price(limit, -cand.direction, tick_of(p, symbol), symbol.tick_den)


@inlined
def find_entry(plan: Any, p: Any, gap: Any, c: Any, e: Any) -> None:
    """Find out what becomes of the entry order that a candidate decides; the answer into the ENTRY ``e``."""
    cand = plan.cands[c]
    k = cand.symbol
    symbol = plan.symbol[k]
    direction = cand.direction
    first = np.int64(cand.after)
    last = plan.price_from[k + 1]
    model = fill_model(p, symbol)
    limit = entry_limit(plan, p, cand, model) if p.entry_order == LIMIT else 0.0
    if np.isnan(limit):
        e.kind = NO_ENTRY
        e.next = c + 1
        return
    q = first
    if p.latency_ns > 0:
        q = first_at_least(plan.price_ts, first, last, cand.ts + p.latency_ns)
    # The last entry of a symbol's holes is its end.
    h = first_at_least(plan.holes, plan.hole_from[gap, k], plan.hole_from[gap, k + 1] - 1, first)
    end = plan.holes[h]
    if q >= end:
        e.kind = CANCELLED
        e.end = end
        e.next = plan.cand_at[plan.ticks[end].next_score] if end < last else plan.cand_from[k + 1]
        return
    e.at = q
    e.kind = REJECTED
    e.next = plan.cand_at[plan.ticks[q].next_score]
    e.end = end
    price, ts = plan.price[q], plan.price_ts[q]
    by_book = model != PRINT and usable(plan.quote[q], ts, p.max_book_age_ns)
    opposite = np.nan
    if by_book:
        opposite = plan.quote[q].ask if direction > 0.0 else plan.quote[q].bid
    slip = slippage(p, model if by_book else PRINT)
    if p.entry_order != LIMIT:
        qty = sized(p, symbol, market_price(opposite if by_book else price, direction, slip))
        if qty <= 0.0:
            return
        e.kind = FILLED
        e.price = market_price(price, direction, slip)
        if by_book:
            found, thin = book_fill(
                plan.quote[q], plan.book_levels, plan.book_from, price, qty, direction, slip, model
            )
            e.price = found
            if thin:
                e.kind = FILLED_THIN
        e.qty = direction * qty
        e.ts = ts
        return
    qty = sized(p, symbol, limit) if limit > 0.0 else 0.0
    takes = traded_through(price, limit, -direction)
    if by_book:
        takes = target_hit(limit, opposite, direction)
    if qty <= 0.0 or takes:
        return
    until = end
    expires = NEVER
    if p.entry_ttl_ns >= 0:
        expires = ts + p.entry_ttl_ns
        until = first_at_least(plan.price_ts, q + 1, end, expires)
    j = first_fill(plan, p, q, until, limit, -direction, qty)
    if j < until:
        e.kind = FILLED
        e.price = limit
        e.qty = direction * qty
        e.at = j
        e.ts = plan.price_ts[j]
    elif expires <= (plan.price_ts[end] if end < last else plan.start[0].last_ts):
        e.kind = EXPIRED
        e.ts = expires
        e.next = first_at_least(plan.cand_ts, c + 1, plan.cand_from[k + 1], expires)
    else:
        e.kind = CANCELLED
        e.next = plan.cand_at[plan.ticks[end].next_score] if end < last else plan.cand_from[k + 1]
