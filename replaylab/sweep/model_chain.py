"""The model from trade to trade: only events that decide something are read.

A combination is a chain: next entry, its exit, next entry after that. Where a trade exits does not depend on the
account, so it is the earliest of separate first touches: of the targets, of the stop, of the trailing stop, of the
market exits. Each is read from a table or searched through block minima and maxima. With limits, the chains of all
symbols are merged in the order of events. Results equal those of ``model_loop`` to the bit.

A *candidate* is a scoring event at which some combination may enter. All that a trade's outcome needs is found by
candidate: a table's row belongs to a level (a parameter value), its column to a candidate, and a cell holds where the
price first touches that level after the candidate's entry. A cell is filled when first needed, so that a level
is searched once per candidate and not once per combination; threads that fill the same cell write the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replaylab.barriers import BRANCH, SHIFT, build_levels, first_ge, first_le, range_max, range_min
from replaylab.compiled import compiled, inlined
from replaylab.sweep import fills
from replaylab.sweep.fills import add_trade, entry_qty, stop_hit, trailing_active, trailing_price
from replaylab.sweep.grid import Rows
from replaylab.sweep.model_loop import ACCOUNT, entry_decided, realise, refused
from replaylab.sweep.tape import Tape
from replaylab.timestamps import NS_PER_DAY

__all__ = ["KEYS", "Numbered", "Plan", "number_tables", "prepare", "run_chain"]

Array = npt.NDArray[Any]

# The table rows that a combination uses; −1: no table, search instead. ``entry_set`` without tables: a row of
# ``strength``.
TABLES = ("entry_set", "tp1", "tp2", "stop", "trail", "hold", "leave", "even")
KEYS = np.dtype([(name, "i4") for name in TABLES])
CANDIDATE = np.dtype([("ts", "i8"), ("direction", "f8"), ("index", "i4"), ("after", "i4")], align=True)


class Plan(NamedTuple):
    """Arrays for the kernel. ``table`` is [row, candidate]: 0 = not yet known, else what ``links.cell`` says: a
    position, and the candidate at which a chain goes on from there.

    ``next_entry`` is [entry set, candidate]: the first candidate from there on that passes. ``cand_at``: per score the
    first candidate at or after it. ``strength``: [filter, candidate] |score|, −1 where the filter forbids.
    """

    ticks: Array
    price: Array
    price_ts: Array
    price_index: Array
    price_from: Array
    price_high: Array
    price_low: Array
    price_offsets: Array
    score: Array
    score_ts: Array
    score_index: Array
    score_from: Array
    score_high: Array
    score_low: Array
    score_offsets: Array
    force_ts: Array
    force_index: Array
    force_from: Array
    cands: Array
    cand_at: Array
    cand_ts: Array
    cand_index: Array
    cand_from: Array
    strength: Array
    strength_high: Array
    strength_offsets: Array
    next_entry: Array
    table: Array


@dataclass(frozen=True)
class Numbered:
    """Each combination's table rows, how many rows there are, and how many entry sets."""

    keys: Array
    rows: int
    sets: int

    def nbytes(self, candidates: int) -> int:
        """Bytes of all tables."""
        return 4 * candidates * (2 * self.rows + self.sets)


def number_tables(rows: Rows) -> Numbered:
    """Number the distinct levels of some combinations: a table's row for each."""
    params = rows.params
    keys = np.full(len(params), -1, dtype=KEYS)
    late = rows.number("latency_ns")
    fill = rows.number(late, "slippage_bps")
    sets = rows.number("filter", "entry_threshold")
    tp1, tp2 = rows.number(fill, "tp1_pct"), rows.number(fill, "tp2_pct")
    keys["entry_set"] = sets[0]
    total = 0
    for key, (codes, count), on in (
        ("stop", rows.number(fill, "sl_pct"), None),
        (
            "trail",
            rows.number(fill, "trailing_activation_pct", "trailing_distance_pct"),
            ~np.isnan(params["trailing_activation_pct"]),
        ),
        ("hold", rows.number(late, "max_hold_ns"), params["max_hold_ns"] >= 0),
        ("leave", rows.number(late, "exit_threshold"), None),
        ("even", rows.number(tp1, "break_even_offset_pct"), ~np.isnan(params["break_even_offset_pct"])),
        ("tp1", tp1, params["tp1_fraction"] > 0.0),
        ("tp2", tp2, params["tp1_fraction"] < 1.0),
    ):
        if on is None or on.any():
            keys[key] = codes + total
            total += count
    return Numbered(keys, total, sets[1])


def prepare(tape: Tape, allowed: Array, rows: Rows, numbered: Numbered | None) -> tuple[Plan, Array]:
    """Return the plan for some combinations and their keys; with tables if ``numbered``, else with searches only."""
    params = rows.params
    filters, first_row = np.unique(params["filter"], return_index=True)
    eligible = np.stack([_strength(tape, allowed, params[row]) for row in first_row])
    passes = (eligible >= params["entry_threshold"].min()).any(axis=0)
    at = np.flatnonzero(passes)
    strength = np.ascontiguousarray(eligible[:, at])
    cand_at = np.concatenate(([0], np.cumsum(passes))).astype(np.int32)
    cand_from = cand_at[tape.score_from].astype(np.int64)
    lookup = tape.lookup
    cands = np.empty(len(at), dtype=CANDIDATE)
    cands["ts"], cands["index"] = tape.score_ts[at], tape.score_index[at]
    cands["direction"], cands["after"] = np.sign(tape.score[at]), lookup.score_after[at]
    if numbered is None:
        keys = np.full(len(params), -1, dtype=KEYS)
        keys["entry_set"] = np.searchsorted(filters, params["filter"])
        next_entry = np.zeros((0, 0), dtype=np.int32)
        table = np.zeros((0, 0), dtype=np.int64)
    else:
        keys = numbered.keys
        # Pages of zeros take memory only once they are written to.
        table = np.zeros((numbered.rows, len(at)), dtype=np.int64)
        next_entry = np.empty((numbered.sets, len(at)), dtype=np.int32)
        first = np.unique(keys["entry_set"], return_index=True)[1]
        threshold = np.ascontiguousarray(params["entry_threshold"][first])
        filter_row = np.searchsorted(filters, params["filter"][first])
        _fill_next(strength, filter_row, threshold, cand_from, next_entry)
    parts = [build_levels(row) for row in strength]
    plan = Plan(
        ticks=lookup.ticks,
        price=tape.price,
        price_ts=tape.price_ts,
        price_index=tape.price_index,
        price_from=tape.price_from,
        price_high=lookup.price_high,
        price_low=lookup.price_low,
        price_offsets=lookup.price_offsets,
        score=tape.score,
        score_ts=tape.score_ts,
        score_index=tape.score_index,
        score_from=tape.score_from,
        score_high=lookup.score_high,
        score_low=lookup.score_low,
        score_offsets=lookup.score_offsets,
        force_ts=tape.force_ts,
        force_index=tape.force_index,
        force_from=tape.force_from,
        cands=cands,
        cand_at=cand_at,
        cand_ts=tape.score_ts[at],
        cand_index=tape.score_index[at],
        cand_from=cand_from,
        strength=strength,
        strength_high=np.stack([part[0] for part in parts]),
        strength_offsets=parts[0][2],
        next_entry=next_entry,
        table=table,
    )
    return plan, keys


def _strength(tape: Tape, allowed: Array, row: Any) -> Array:
    """|score| where the filter lets an entry through, else −1: below every threshold."""
    score = tape.score
    good = (score > 0) & bool(row["allow_long"]) | (score < 0) & bool(row["allow_short"])
    good &= tape.score_blocked == 0
    if row["allowed_regimes_set"] >= 0:
        good &= allowed[row["allowed_regimes_set"]][tape.score_regime + 1]
    strength: Array = np.where(good, np.abs(score), -1.0)
    return strength


@compiled
def _fill_next(strength: Any, filter_row: Any, threshold: Any, cand_from: Any, next_entry: Any) -> None:
    """Per entry set and candidate the first candidate from there on that passes; its symbol's end where none does."""
    for row in range(len(threshold)):
        f = filter_row[row]
        for k in range(len(cand_from) - 1):
            found = cand_from[k + 1]
            for c in range(cand_from[k + 1] - 1, cand_from[k] - 1, -1):
                if strength[f, c] >= threshold[row]:
                    found = c
                next_entry[row, c] = found


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
    if fills.trailing_active(best, entry, direction, p.trailing_activation_pct):
        return fills.trailing_price(best, direction, p.trailing_distance_pct)
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
    fees = fills.fee(entry, qty, p.taker_fee_bps)
    if s.t1 >= 0:
        part = fills.tp1_qty(qty, p.tp1_fraction)
        gross += fills.gross_pnl(tp1, entry, part, direction)
        fees += fills.fee(tp1, part, p.maker_fee_bps)
        left = fills.remaining_qty(qty, part)
    if s.reason != fills.TP1:
        fill = tp2 if s.reason == fills.TP2 else market
        cost = fills.fee(fill, left, p.maker_fee_bps if s.reason == fills.TP2 else p.taker_fee_bps)
        last = fills.gross_pnl(fill, entry, left, direction)
        gross += last
        fees += cost
        if losses and s.reason != fills.SESSION_END:
            realise(account, p, ts, fills.realized_pnl(last, cost))
    add_trade(raw, gross, fees, duration, s.reason)


@inlined
def advance(s: Any, p: Any, ticks: Any, account: Any) -> None:
    """Book the entry's fee or TP1's part on the day of its event, for the daily loss; go to the next action."""
    if s.phase == FILL:
        realise(account, p, ticks[s.q].ts, -fills.fee(s.entry, s.qty, p.taker_fee_bps))
        s.phase = PART if s.t1 >= 0 else EXIT
    else:
        fill = fills.target_price(s.entry, s.direction, p.tp1_pct)
        part = fills.tp1_qty(s.qty, p.tp1_fraction)
        gross = fills.gross_pnl(fill, s.entry, part, s.direction)
        cost = fills.fee(fill, part, p.maker_fee_bps)
        realise(account, p, ticks[s.t1].ts, fills.realized_pnl(gross, cost))
        s.phase = EXIT
    s.action = ticks[s.t1 if s.phase == PART else s.x].index


@inlined
def first_close(state: Any, ticks: Any) -> Any:
    """Index of the first close of an open position; a close at the session's end frees nothing."""
    free = NEVER
    for k in range(len(state)):
        o = state[k]
        if FILL <= o.phase <= EXIT and o.reason != fills.SESSION_END:
            free = min(free, ticks[o.x].index)
    return free


@inlined
def first_trailing(
    values: Any,
    high: Any,
    low: Any,
    offsets: Any,
    start: Any,
    end: Any,
    entry: Any,
    direction: Any,
    activation_pct: Any,
    distance_pct: Any,
) -> Any:
    """Return the first i in (start, end) whose price hits the stop that the prices from ``start`` to i − 1 raised.

    ``end`` where there is none. A block is skipped when its worst price does not reach the stop that its best price
    could raise: then no price in it can, whatever their order.
    """
    best = values[start]
    active = trailing_active(best, entry, direction, activation_pct)
    stop = trailing_price(best, direction, distance_pct)
    top = len(offsets) - 1
    i = start + 1
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
                    worst, trailing_price(hoped, direction, distance_pct), direction
                ):
                    break
                reached = hoped
                depth += 1
            if depth > 0:
                i += 1 << (SHIFT * depth)
                if reached != best:
                    best = reached
                    active = active or trailing_active(best, entry, direction, activation_pct)
                    stop = trailing_price(best, direction, distance_pct)
                continue
        price = values[i]
        if active and stop_hit(price, stop, direction):
            return i
        if direction * (price - best) > 0.0:
            best = price
            active = active or trailing_active(best, entry, direction, activation_pct)
            stop = trailing_price(best, direction, distance_pct)
        i += 1
    return end


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
        entry_long = fills.entry_price(1.0, 1.0, p.slippage_bps)
        entry_short = fills.entry_price(1.0, -1.0, p.slippage_bps)
        market_long = fills.market_exit_price(1.0, 1.0, p.slippage_bps)
        market_short = fills.market_exit_price(1.0, -1.0, p.slippage_bps)
        stop_long = fills.stop_price(1.0, 1.0, p.sl_pct)
        stop_short = fills.stop_price(1.0, -1.0, p.sl_pct)
        tp1_long = fills.target_price(1.0, 1.0, p.tp1_pct)
        tp1_short = fills.target_price(1.0, -1.0, p.tp1_pct)
        tp2_long = fills.target_price(1.0, 1.0, p.tp2_pct)
        tp2_short = fills.target_price(1.0, -1.0, p.tp2_pct)
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
                        base_reason = fills.STOP_LOSS
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
                        market_reason = fills.TIMEOUT
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
                                market_reason = fills.SCORE_EXIT + (leave & 1)
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
                                even = fills.break_even_price(entry, direction, p.break_even_offset_pct)
                                if p.tp1_fraction == 1.0:
                                    s.x = t1
                                    s.reason = fills.TP1
                                    then = known
                                elif fills.tightens(even, base, direction):
                                    raised = np.nan
                                    if trails:
                                        raised = trailing_stop(
                                            price, high, low, offsets, q, t1, entry, direction, p
                                        )
                                    if np.isnan(raised) or fills.tightens(even, raised, direction):
                                        base = even
                                        base_reason = fills.BREAK_EVEN
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
                                s.reason = fills.TP2
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
                                    and fills.tightens(
                                        trailing_stop(
                                            price, high, low, offsets, q, stop, entry, direction, p
                                        ),
                                        base,
                                        direction,
                                    )
                                ):
                                    s.reason = fills.TRAILING
                            elif market < end:
                                s.x = market
                                s.reason = market_reason
                                then = market_cell
                            else:
                                s.x = end - 1
                                s.reason = fills.SESSION_END
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
                if s.reason == fills.SESSION_END:
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
