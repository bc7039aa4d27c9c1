"""The model as a plain loop over every event: the obvious compiled form, and the one that records trades.

``model_chain`` gives the same sums without reading every event; tests force both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from replaylab.compiled import compiled, inlined, merged
from replaylab.sweep import fills
from replaylab.sweep.tape import FORCE, KINDS, NEVER, PRICE, SCORE, layout
from replaylab.timestamps import NS_PER_DAY

TRADE = layout(
    i4="symbol direction entry_index exit_index reason tp1_filled thin",
    i8="entry_ts exit_ts",
    f8="entry_price close_price qty fees funding realized_pnl gap_pnl mfe mae",
)

# What a symbol is doing. RESTING: a limit entry that has arrived. CLOSING: its stop was touched and waits for its
# fill. OVER: the position was closed at the last price before a hole or the session's end, and counts as open until it.
FLAT, PENDING, RESTING, OPEN, CLOSING, OVER, CARRIED = range(7)
_STATE = layout(
    i8="phase at_price at_score at_force at_funding due cooldown_end entry_index entry_at entry_ts"
    " thin stop_reason tp1_filled exit_reason exit_due",
    f8="limit ahead taken direction entry qty left gross fees funding stop"
    " tp1 tp1_qty tp1_ahead tp1_taken tp2 tp2_ahead tp2_taken best high low",
)
# The account: open, pending and carried positions; limit entries that rest; entries of a day; a day's PnL and whether
# it was ever at its limit; trades recorded.


class RuleArrays(NamedTuple):
    """An exit rule as the kernel calls it: its address (0: none), the values of its arguments, features per price.

    ``level``: of a level rule its kind and the nanoseconds of a step of its age; zeros for other rules. ``problem``:
    set by the kernel where the rule returned no usable number or failed: 1, the index of the entry and of the event,
    the row of the features, and what the rule saw.
    """

    address: Any
    values: Any
    features: Any
    problem: Any
    level: Any


NO_RULE = RuleArrays(
    np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros((1, 1)), np.zeros(15), np.zeros(2, dtype=np.int64)
)
ACCOUNT = layout(i8="open resting entry_day entries pnl_day lost carried trades", f8="pnl")


@inlined
def start_account(account: Any, p: Any, start: Any) -> None:
    """Set the account to what it was before the session."""
    account.open = start.open
    account.resting = 0
    account.entry_day = start.day
    account.entries = start.entries
    account.pnl_day = start.day
    account.pnl = start.pnl
    account.lost = 1 if fills.daily_loss_reached(start.lowest, p.max_daily_loss_usd) else 0
    account.carried = 0
    account.trades = 0


@inlined
def realise(account: Any, p: Any, ts: Any, pnl: Any) -> None:
    """Add the PnL of one fill to the UTC day of its event and check the daily loss."""
    day = ts // NS_PER_DAY
    if day != account.pnl_day:
        account.pnl_day = day
        account.pnl = 0.0
        account.lost = 0
    account.pnl += pnl
    if fills.daily_loss_reached(account.pnl, p.max_daily_loss_usd):
        account.lost = 1


@inlined
def refused(account: Any, p: Any, ts: Any) -> Any:
    """Whether a limit of the account forbids an entry decided at ``ts``."""
    day = ts // NS_PER_DAY
    if p.max_open_positions >= 0 and account.open >= p.max_open_positions:
        return True
    if p.max_trades_per_day >= 0:
        entries = account.entries if account.entry_day == day else 0
        if entries >= p.max_trades_per_day:
            return True
    return account.lost == 1 and account.pnl_day == day


@inlined
def entry_decided(account: Any, ts: Any) -> None:
    """Count an entry decision."""
    day = ts // NS_PER_DAY
    if day != account.entry_day:
        account.entry_day = day
        account.entries = 0
    account.entries += 1
    account.open += 1


@inlined
def _trail(s: Any, p: Any, tick_num: Any, tick_den: Any, price: Any) -> None:
    s.best = max(s.best, price) if s.direction > 0.0 else min(s.best, price)
    # NaN (off) compares false.
    if fills.trailing_active(s.best, s.entry, s.direction, p.trailing_activation_pct):
        stop = fills.trailing_price(s.best, s.direction, p.trailing_distance_pct)
        stop = fills.rounded_price(stop, -s.direction, tick_num, tick_den)
        if fills.tightens(stop, s.stop, s.direction):
            s.stop = stop
            s.stop_reason = fills.TRAILING


@inlined
def _queue(tape: Any, p: Any, x: Any, ts: Any, limit: Any, side: Any) -> Any:
    """Quantity ahead of a limit order that arrives at the price event ``x``; −1: only a trade-through fills it."""
    if (
        p.limit_fill != fills.QUEUE
        or len(tape.quote) == 0
        or not fills.usable(tape.quote[x], ts, p.max_book_age_ns)
    ):
        return -1.0
    return fills.queue_ahead(tape.quote[x], tape.book_levels, tape.book_from, limit, side, p.queue_share)


@inlined
def _limit_filled(p: Any, price: Any, limit: Any, side: Any, ahead: Any, taken: Any, qty: Any) -> Any:
    """Whether a resting order (``side``: +1 sells) fills at a price; ``taken``: traded at its own since its arrival."""
    if p.limit_fill == fills.TOUCH:
        return fills.target_hit(price, limit, side)
    return fills.traded_through(price, limit, side) or (
        ahead >= 0.0 and price == limit and taken >= ahead + qty
    )


@inlined
def _flow(tape: Any, p: Any, x: Any, side: Any) -> Any:
    """What the price event ``x`` takes out of the queue of an order at its price."""
    if p.limit_fill != fills.QUEUE or len(tape.flow) == 0:
        return 0.0
    return tape.flow[x].sells if side > 0.0 else tape.flow[x].buys


@inlined
def _market(tape: Any, p: Any, symbol: Any, x: Any, ts: Any, price: Any, qty: Any, side: Any) -> Any:
    """Price of a market fill at a price event, and whether it is thin."""
    model = fills.fill_model(p, symbol)
    if model != fills.PRINT and fills.usable(tape.quote[x], ts, p.max_book_age_ns):
        slip = fills.slippage(p, model)
        return fills.book_fill(tape.quote[x], tape.book_levels, tape.book_from, price, qty, side, slip, model)
    return fills.market_price(price, side, fills.slippage(p, fills.PRINT)), False


@inlined
def _open(tape: Any, p: Any, symbol: Any, s: Any, x: Any, index: Any, ts: Any, price: Any, bps: Any) -> Any:
    """Open the position at ``s.entry`` with ``s.qty``; returns the PnL that this realises: the fee."""
    direction, entry = s.direction, s.entry
    tick_num, tick_den = fills.tick_of(p, symbol), symbol.tick_den
    s.phase = OPEN
    s.entry_index = index
    s.entry_at = x
    s.entry_ts = ts
    s.left = s.qty
    s.gross = 0.0
    s.funding = 0.0
    s.fees = fills.fee(entry, s.qty, bps)
    s.stop = fills.rounded_price(fills.stop_price(entry, direction, p.sl_pct), -direction, tick_num, tick_den)
    s.stop_reason = fills.STOP_LOSS
    s.tp1 = fills.rounded_price(
        fills.target_price(entry, direction, p.tp1_pct), direction, tick_num, tick_den
    )
    s.tp2 = fills.rounded_price(
        fills.target_price(entry, direction, p.tp2_pct), direction, tick_num, tick_den
    )
    s.tp1_qty = fills.tp1_part(p, symbol, s.qty)
    s.tp1_filled = 0
    s.tp1_taken = 0.0
    s.tp2_taken = 0.0
    s.tp1_ahead = _queue(tape, p, x, ts, s.tp1, direction)
    s.tp2_ahead = _queue(tape, p, x, ts, s.tp2, direction)
    s.best = price
    s.high = price
    s.low = price
    s.exit_reason = -1
    return -s.fees


@inlined
def _fill_exit(s: Any, price: Any, bps: Any) -> Any:
    """Close what is left; returns the PnL that this realises."""
    gross = fills.gross_pnl(price, s.entry, s.left, s.direction)
    cost = fills.fee(price, s.left, bps)
    s.gross += gross
    s.fees += cost
    return fills.realized_pnl(gross, cost)


@inlined
def _record(
    s: Any,
    symbol: Any,
    index: Any,
    ts: Any,
    price: Any,
    reason: Any,
    gap_pnl: Any,
    account: Any,
    raw: Any,
    trades: Any,
) -> None:
    fills.add_trade(raw, s.gross, s.fees, s.funding, s.entry_ts, ts, reason, s.thin, gap_pnl)
    if len(trades) == 0:
        return
    t = trades[account.trades]
    account.trades += 1
    t.symbol = symbol
    t.direction = np.int32(s.direction)
    t.entry_index = s.entry_index
    t.exit_index = index
    t.entry_ts = s.entry_ts
    t.exit_ts = ts
    t.entry_price = s.entry
    t.close_price = price
    if s.tp1_filled == 1 and reason != fills.TP1:
        t.close_price = fills.weighted_price(s.tp1, s.tp1_qty, price, s.left)
    t.qty = s.qty
    t.fees = s.fees
    t.funding = s.funding
    t.realized_pnl = fills.realized_pnl(s.gross, s.fees) + s.funding
    t.gap_pnl = gap_pnl
    best, worst = (s.high, s.low) if s.direction > 0.0 else (s.low, s.high)
    t.mfe = max(fills.excursion(best, s.entry, s.qty, s.direction), 0.0)
    t.mae = min(fills.excursion(worst, s.entry, s.qty, s.direction), 0.0)
    t.reason = reason
    t.tp1_filled = s.tp1_filled
    t.thin = s.thin


@inlined
def _exit(
    s: Any,
    p: Any,
    symbol: Any,
    index: Any,
    ts: Any,
    price: Any,
    reason: Any,
    account: Any,
    raw: Any,
    trades: Any,
) -> None:
    """Record a trade that ended at a price event; the symbol is flat."""
    _record(s, symbol, index, ts, price, reason, np.nan, account, raw, trades)
    s.phase = FLAT
    s.cooldown_end = ts + p.cooldown_ns
    account.open -= 1


@inlined
def _ask(rule: Any, view: Any, s: Any, p: Any, x: Any, index: Any, ts: Any, price: Any) -> Any:
    """Let the exit rule decide at a price event: CLOSE, HOLD, or a new stop."""
    view[0] = s.direction
    view[1] = s.entry
    view[2] = s.entry_ts / 1e9
    view[3] = (ts - s.entry_ts) / 1e9
    view[4] = s.high if s.direction > 0.0 else s.low
    view[5] = s.low if s.direction > 0.0 else s.high
    view[6] = s.qty
    view[7] = s.left
    view[8] = s.stop
    view[9] = s.tp1_filled
    view[10] = price
    at = x
    if rule.level[0] == fills.NO_LEVEL:
        answer = fills.rule_answer(rule, view, x)
    else:
        at = s.entry_at
        answer = fills.level_answer(rule, view, at, (ts - s.entry_ts) // rule.level[1])
    if np.isnan(answer):
        if rule.problem[0] == 0:
            rule.problem[0] = 1
            rule.problem[1] = s.entry_index
            rule.problem[2] = index
            rule.problem[3] = at
            for n in range(len(view)):
                rule.problem[4 + n] = view[n]
        return fills.HOLD
    if rule.level[0] == fills.TARGET_LEVEL and answer > 0.0:
        return fills.CLOSE if fills.target_hit(price, answer, s.direction) else fills.HOLD
    return answer


@merged
def _manage(
    tape: Any,
    s: Any,
    p: Any,
    k: Any,
    x: Any,
    entered: Any,
    account: Any,
    raw: Any,
    trades: Any,
    rule: Any,
    view: Any,
) -> None:
    """Steps 1 to 6 of the model at a price event; ``entered``: that of a LIMIT entry's fill (steps 1 and 6 alone)."""
    symbol = tape.symbol[k]
    index, ts, price = tape.price_index[x], tape.price_ts[x], tape.price[x]
    direction = s.direction
    tick_num, tick_den = fills.tick_of(p, symbol), symbol.tick_den
    s.high = max(s.high, price)
    s.low = min(s.low, price)
    reason = -1
    if s.phase == CLOSING:
        if ts < s.due:
            return
        reason = s.stop_reason
    elif fills.stop_hit(price, s.stop, direction):
        if p.stop_latency_ns > 0:
            s.phase = CLOSING
            s.due = ts + p.stop_latency_ns
            return
        reason = s.stop_reason
    elif not entered:
        if price == s.tp1:
            s.tp1_taken += _flow(tape, p, x, direction)
        if price == s.tp2:
            s.tp2_taken += _flow(tape, p, x, direction)
        if (
            s.tp1_qty > 0.0
            and s.tp1_filled == 0
            and _limit_filled(p, price, s.tp1, direction, s.tp1_ahead, s.tp1_taken, s.tp1_qty)
        ):
            gross = fills.gross_pnl(s.tp1, s.entry, s.tp1_qty, direction)
            cost = fills.fee(s.tp1, s.tp1_qty, p.maker_fee_bps)
            s.tp1_filled = 1
            s.left = fills.remaining_qty(s.qty, s.tp1_qty)
            s.gross += gross
            s.fees += cost
            realise(account, p, ts, fills.realized_pnl(gross, cost))
            if p.tp1_fraction == 1.0:
                _exit(s, p, k, index, ts, s.tp1, fills.TP1, account, raw, trades)
                return
            stop = fills.break_even_price(s.entry, direction, p.break_even_offset_pct)
            stop = fills.rounded_price(stop, -direction, tick_num, tick_den)
            if fills.tightens(stop, s.stop, direction):
                s.stop = stop
                s.stop_reason = fills.BREAK_EVEN
        if p.tp1_fraction < 1.0 and _limit_filled(
            p, price, s.tp2, direction, s.tp2_ahead, s.tp2_taken, s.qty
        ):
            realise(account, p, ts, _fill_exit(s, s.tp2, p.maker_fee_bps))
            _exit(s, p, k, index, ts, s.tp2, fills.TP2, account, raw, trades)
            return
        if rule.address[0] != 0:
            answer = _ask(rule, view, s, p, x, index, ts, price)
            if answer == fills.CLOSE:
                reason = fills.RULE
            elif answer != fills.HOLD:
                stop = fills.rounded_price(answer, -direction, tick_num, tick_den)
                if fills.tightens(stop, s.stop, direction):
                    s.stop = stop
                    s.stop_reason = fills.RULE
        if reason >= 0:
            pass
        elif p.max_hold_ns >= 0 and ts - s.entry_ts >= p.max_hold_ns:
            reason = fills.TIMEOUT
        elif s.exit_reason >= 0 and ts >= s.exit_due:
            reason = s.exit_reason
    if reason < 0:
        _trail(s, p, tick_num, tick_den, price)
        return
    fill, thin = _market(tape, p, symbol, x, ts, price, s.left, -direction)
    if thin:
        s.thin = 1
    realise(account, p, ts, _fill_exit(s, fill, p.taker_fee_bps))
    _exit(s, p, k, index, ts, fill, reason, account, raw, trades)


@inlined
def _end_entry(s: Any, account: Any, raw: Any, fate: Any) -> None:
    """Count an entry order that did not fill; the symbol is flat again."""
    raw[fate] += 1.0
    if s.phase == RESTING:
        account.resting -= 1
    s.phase = FLAT
    account.open -= 1


@inlined
def _arrive(tape: Any, s: Any, p: Any, k: Any, x: Any, account: Any, raw: Any) -> None:
    """Let an entry order arrive at a price event: it fills, rests, or is rejected."""
    symbol = tape.symbol[k]
    ts, price, direction = tape.price_ts[x], tape.price[x], s.direction
    model = fills.fill_model(p, symbol)
    by_book = model != fills.PRINT and fills.usable(tape.quote[x], ts, p.max_book_age_ns)
    if p.entry_order == fills.LIMIT:
        s.qty = fills.sized(p, symbol, s.limit) if s.limit > 0.0 else 0.0
        takes = fills.traded_through(price, s.limit, -direction)
        if by_book:
            takes = fills.target_hit(
                s.limit, tape.quote[x].ask if direction > 0.0 else tape.quote[x].bid, direction
            )
        if s.qty <= 0.0 or takes:
            _end_entry(s, account, raw, fills.REJECTED)
            return
        s.phase = RESTING
        account.resting += 1
        s.due = NEVER if p.entry_ttl_ns < 0 else ts + p.entry_ttl_ns
        s.ahead = _queue(tape, p, x, ts, s.limit, -direction)
        s.taken = 0.0
        return
    if by_book:
        best = tape.quote[x].ask if direction > 0.0 else tape.quote[x].bid
        ref = fills.market_price(best, direction, fills.slippage(p, model))
    else:
        ref = fills.market_price(price, direction, fills.slippage(p, fills.PRINT))
    s.qty = fills.sized(p, symbol, ref)
    if s.qty <= 0.0:
        _end_entry(s, account, raw, fills.REJECTED)
        return
    s.entry, thin = _market(tape, p, symbol, x, ts, price, s.qty, direction)
    s.thin = 1 if thin else 0
    realise(account, p, ts, _open(tape, p, symbol, s, x, tape.price_index[x], ts, price, p.taker_fee_bps))
    _trail(s, p, fills.tick_of(p, symbol), symbol.tick_den, price)


@merged
def _price_event(
    tape: Any, s: Any, p: Any, k: Any, x: Any, account: Any, raw: Any, trades: Any, rule: Any, view: Any
) -> None:
    price, ts = tape.price[x], tape.price_ts[x]
    last = tape.price_from[k + 1] - 1
    if s.phase == RESTING and ts >= s.due:
        _end_entry(s, account, raw, fills.EXPIRED)
    if p.max_gap_ns >= 0 and x > tape.price_from[k] and ts - tape.price_ts[x - 1] > p.max_gap_ns:
        if s.phase == PENDING or s.phase == RESTING:
            _end_entry(s, account, raw, fills.CANCELLED)
        elif s.phase == OVER:
            s.phase = FLAT
            account.open -= 1
    if s.phase == OPEN or s.phase == CLOSING:
        _manage(tape, s, p, k, x, False, account, raw, trades, rule, view)
    elif s.phase == PENDING:
        if ts >= s.due:
            _arrive(tape, s, p, k, x, account, raw)
    elif s.phase == RESTING:
        if price == s.limit:
            s.taken += _flow(tape, p, x, -s.direction)
        if _limit_filled(p, price, s.limit, -s.direction, s.ahead, s.taken, s.qty):
            account.resting -= 1
            s.entry = s.limit
            s.thin = 0
            realise(
                account,
                p,
                ts,
                _open(tape, p, tape.symbol[k], s, x, tape.price_index[x], ts, price, p.maker_fee_bps),
            )
            _manage(tape, s, p, k, x, True, account, raw, trades, rule, view)
    if (s.phase == OPEN or s.phase == CLOSING) and (
        x == last or (p.max_gap_ns >= 0 and tape.price_ts[x + 1] - ts > p.max_gap_ns)
    ):
        # Nothing of this position can happen any more but funding. No limit sees this close.
        _end_segment(tape, s, p, k, x, account, raw, trades)


@inlined
def _end_segment(tape: Any, s: Any, p: Any, k: Any, x: Any, account: Any, raw: Any, trades: Any) -> None:
    """Close a position at the last price event before a hole or the session's end."""
    last = tape.price_from[k + 1] - 1
    until = NEVER if x == last else np.int64(tape.price_index[x + 1])
    for f in range(s.at_funding, tape.funding_from[k + 1]):
        if tape.funding[f].index >= until:
            break
        s.funding += fills.funding_cash(s.left, tape.funding[f].mark, tape.funding[f].rate, s.direction)
    slip = fills.slippage(p, fills.PRINT)
    gap_pnl = np.nan
    if x < last:
        fill = fills.market_price(tape.price[x + 1], -s.direction, slip)
        gross = s.gross + fills.gross_pnl(fill, s.entry, s.left, s.direction)
        gap_pnl = fills.realized_pnl(gross, s.fees + fills.fee(fill, s.left, p.taker_fee_bps)) + s.funding
    fill = fills.market_price(tape.price[x], -s.direction, slip)
    _fill_exit(s, fill, p.taker_fee_bps)
    reason = fills.SESSION_END if x == last else fills.DATA_GAP
    _record(s, k, tape.price_index[x], tape.price_ts[x], fill, reason, gap_pnl, account, raw, trades)
    s.phase = OVER


@inlined
def _entry_limit(tape: Any, s: Any, p: Any, k: Any, x: Any, direction: Any) -> Any:
    """Price of a LIMIT entry decided at the score ``x``; NaN without a reference price."""
    symbol = tape.symbol[k]
    reference = np.nan
    if s.at_price > tape.price_from[k]:
        reference = tape.price[s.at_price - 1]
    if fills.fill_model(p, symbol) != fills.PRINT and fills.usable(
        tape.score_quote[x], tape.score_ts[x], p.max_book_age_ns
    ):
        reference = tape.score_quote[x].bid if direction > 0.0 else tape.score_quote[x].ask
    limit = fills.limit_entry_price(reference, direction, p.entry_offset_bps)
    return fills.rounded_price(limit, -direction, fills.tick_of(p, symbol), symbol.tick_den)


@merged
def _score_event(tape: Any, allowed: Any, state: Any, p: Any, k: Any, x: Any, account: Any, raw: Any) -> None:
    s = state[k]
    score = tape.score[x]
    ts = tape.score_ts[x]
    if s.phase == OPEN:
        # NaN (off) compares false. The entry's own event comes as its price part: not after the fill.
        if (
            s.direction * score < p.exit_threshold
            and s.exit_reason < 0
            and tape.score_index[x] > s.entry_index
        ):
            s.exit_reason = fills.SCORE_EXIT
            s.exit_due = ts + p.latency_ns
        return
    if abs(score) < p.entry_threshold or score == 0.0:
        return
    if s.phase == CARRIED and ts >= s.due:
        s.phase = FLAT
    if account.resting > 0:
        for other in range(len(state)):
            if state[other].phase == RESTING and ts >= state[other].due:
                _end_entry(state[other], account, raw, fills.EXPIRED)
    if (
        s.phase != FLAT
        or ts < s.cooldown_end
        or not (p.allow_long if score > 0.0 else p.allow_short)
        or tape.score_blocked[x] != 0
        or (p.allowed_regimes_set >= 0 and not allowed[p.allowed_regimes_set, tape.score_regime[x] + 1])
        or refused(account, p, ts)
    ):
        return
    direction = 1.0 if score > 0.0 else -1.0
    if p.entry_order == fills.LIMIT:
        s.limit = _entry_limit(tape, s, p, k, x, direction)
        if np.isnan(s.limit):
            return
    entry_decided(account, ts)
    s.phase = PENDING
    s.direction = direction
    s.due = ts + p.latency_ns


@inlined
def _carry(carried: Any, account: Any, p: Any, index: Any) -> None:
    """Apply what happened to carried positions before the event at ``index``."""
    while account.carried < len(carried) and carried[account.carried].index <= index:
        change = carried[account.carried]
        account.carried += 1
        if change.release == 1:
            account.open -= 1
        else:
            realise(account, p, change.ts, change.pnl)


@compiled
def run_loop(tape: Any, allowed: Any, params: Any, raw: Any, trades: Any, rule: Any) -> Any:
    """Run every row of ``params``; sums into the rows of ``raw``, trades of the last row into ``trades``.

    ``tape`` is a ``TapeArrays``, ``allowed`` a table [regime set, regime + 1] (column 0: no regime yet). ``trades`` is
    a TRADE array that holds all trades, or empty to record none. ``rule``: RuleArrays. Returns the number of trades
    recorded.
    """
    state = np.zeros(len(tape.price_from) - 1, dtype=_STATE)
    # A record holds no reference to its array: the arrays live here until the call returns.
    scratch = (np.zeros(1, dtype=ACCOUNT), np.zeros(11))
    return _run_loop(tape, allowed, params, raw, trades, rule, state, *scratch)


@inlined
def _run_loop(
    tape: Any,
    allowed: Any,
    params: Any,
    raw: Any,
    trades: Any,
    rule: Any,
    state: Any,
    accounts: Any,
    view: Any,
) -> Any:
    account = accounts[0]
    n_symbols = len(state)
    for row in range(len(params)):
        p = params[row]
        sums = raw[row]
        start_account(account, p, tape.start[0])
        for k in range(n_symbols):
            s = state[k]
            symbol = tape.symbol[k]
            s.phase = FLAT
            s.at_price = tape.price_from[k]
            s.at_score = tape.score_from[k]
            s.at_force = tape.force_from[k]
            s.at_funding = tape.funding_from[k]
            s.cooldown_end = -NEVER
            if symbol.carried_until > -NEVER:
                s.phase = CARRIED
                s.due = symbol.carried_until
                if s.due < NEVER:
                    s.cooldown_end = s.due + p.cooldown_ns
            elif symbol.last_exit > -NEVER:
                s.cooldown_end = symbol.last_exit + p.cooldown_ns
        for code in tape.order:
            k = code // KINDS
            kind = code - k * KINDS
            s = state[k]
            if kind == PRICE:
                x = s.at_price
                s.at_price += 1
                if len(tape.carried) > 0:
                    _carry(tape.carried, account, p, tape.price_index[x])
                if s.phase != FLAT and s.phase != CARRIED:
                    _price_event(tape, s, p, k, x, account, sums, trades, rule, view)
            elif kind == SCORE:
                x = s.at_score
                s.at_score += 1
                if len(tape.carried) > 0:
                    _carry(tape.carried, account, p, tape.score_index[x])
                _score_event(tape, allowed, state, p, k, x, account, sums)
            elif kind == FORCE:
                x = s.at_force
                s.at_force += 1
                if s.phase == OPEN and s.exit_reason < 0:
                    s.exit_reason = fills.RISK_EXIT
                    s.exit_due = tape.force_ts[x] + p.latency_ns
            else:
                settled = tape.funding[s.at_funding]
                s.at_funding += 1
                if len(tape.carried) > 0:
                    _carry(tape.carried, account, p, settled.index)
                if s.phase == OPEN or s.phase == CLOSING or s.phase == OVER:
                    cash = fills.funding_cash(s.left, settled.mark, settled.rate, s.direction)
                    realise(account, p, settled.ts, cash)
                    if s.phase != OVER:
                        s.funding += cash
        for k in range(n_symbols):
            s = state[k]
            if s.phase == PENDING or s.phase == RESTING:
                expired = s.phase == RESTING and s.due <= tape.start[0].last_ts
                sums[fills.EXPIRED if expired else fills.CANCELLED] += 1.0
    return account.trades


# A position that ran from a given entry: its last exit, when that was decided (a stop: touched), and what TP1 closed.
HELD = layout(
    i8="exit_ts decided_ts exit_at",
    f8="close_price price tp1_price tp1_qty left funding",
    i4="reason tp1_filled",
)


@compiled
def run_position(
    tape: Any, params: Any, k: Any, x: Any, entry: Any, qty: Any, maker: Any, held: Any, rule: Any
) -> None:
    """Run one position of symbol ``k``, opened at the price event ``x`` for ``entry``, to its end; into ``held[0]``.

    ``qty`` is negative for a SHORT. ``maker``: a limit order opened it, so the event's own price can stop it out.
    Whatever price and quantity are given, exits, holes and funding follow ``params[0]`` as in ``run_loop``.
    """
    # A record holds no reference to its array: the arrays live here until the call returns.
    states, accounts, trades = np.zeros(1, dtype=_STATE), np.zeros(1, dtype=ACCOUNT), np.zeros(1, dtype=TRADE)
    about = (states, accounts, np.zeros(fills.RAW), trades, rule, np.zeros(11))
    _run_position(tape, params[0], k, x, entry, qty, maker, held[0], about)


@inlined
def _run_position(
    tape: Any, p: Any, k: Any, x: Any, entry: Any, qty: Any, maker: Any, found: Any, about: Any
) -> None:
    states, accounts, raw, trades, rule, view = about
    s, account = states[0], accounts[0]
    symbol, last = tape.symbol[k], tape.price_from[k + 1] - 1
    index = tape.price_index[x]
    s.at_score = tape.score_from[k]
    while s.at_score < tape.score_from[k + 1] and tape.score_index[s.at_score] <= index:
        s.at_score += 1
    s.at_force = tape.force_from[k]
    while s.at_force < tape.force_from[k + 1] and tape.force_index[s.at_force] <= index:
        s.at_force += 1
    s.at_funding = tape.funding_from[k]
    while s.at_funding < tape.funding_from[k + 1] and tape.funding[s.at_funding].index <= index:
        s.at_funding += 1
    s.direction = 1.0 if qty > 0.0 else -1.0
    s.qty = abs(qty)
    s.entry = entry
    price = tape.price[x]
    _open(tape, p, symbol, s, x, index, tape.price_ts[x], price, 0.0)
    if not maker:
        _trail(s, p, fills.tick_of(p, symbol), symbol.tick_den, price)
    found.decided_ts = -NEVER
    at = x
    while True:
        ts = tape.price_ts[at]
        if at > x or maker:
            _manage(tape, s, p, k, at, at == x, account, raw, trades, rule, view)
            if s.phase == CLOSING and found.decided_ts == -NEVER:
                found.decided_ts = ts
        if s.phase != OPEN and s.phase != CLOSING:
            break
        if at == last or (p.max_gap_ns >= 0 and tape.price_ts[at + 1] - ts > p.max_gap_ns):
            _end_segment(tape, s, p, k, at, account, raw, trades)
            found.decided_ts = ts
            break
        at += 1
        _between(tape, s, p, k, tape.price_index[at])
    trade = trades[0]
    found.exit_ts = trade.exit_ts
    found.exit_at = at
    found.reason = trade.reason
    if found.decided_ts == -NEVER:
        decided = trade.reason == fills.SCORE_EXIT or trade.reason == fills.RISK_EXIT
        found.decided_ts = s.exit_due - p.latency_ns if decided else trade.exit_ts
    found.close_price = trade.close_price
    found.tp1_filled = trade.tp1_filled
    found.tp1_price = s.tp1
    found.tp1_qty = s.tp1_qty if trade.tp1_filled == 1 else 0.0
    found.left = 0.0 if trade.reason == fills.TP1 else s.left
    found.price = trade.close_price
    if found.tp1_qty > 0.0 and found.left > 0.0:
        found.price = (trade.close_price * trade.qty - s.tp1 * s.tp1_qty) / s.left
    found.funding = trade.funding


@inlined
def _between(tape: Any, s: Any, p: Any, k: Any, index: Any) -> None:
    """Apply the scores, forced closes and funding of a symbol's open position before the event ``index``."""
    while True:
        score = force = paid = NEVER
        if s.at_score < tape.score_from[k + 1]:
            score = int(tape.score_index[s.at_score])
        if s.at_force < tape.force_from[k + 1]:
            force = int(tape.force_index[s.at_force])
        if s.at_funding < tape.funding_from[k + 1]:
            paid = int(tape.funding[s.at_funding].index)
        first = min(score, force, paid)
        if first >= index:
            return
        may_decide = s.phase == OPEN and s.exit_reason < 0
        if first == paid:
            settled = tape.funding[s.at_funding]
            s.funding += fills.funding_cash(s.left, settled.mark, settled.rate, s.direction)
            s.at_funding += 1
        elif first == score:
            if may_decide and s.direction * tape.score[s.at_score] < p.exit_threshold:
                s.exit_reason = fills.SCORE_EXIT
                s.exit_due = tape.score_ts[s.at_score] + p.latency_ns
            s.at_score += 1
        else:
            if may_decide:
                s.exit_reason = fills.RISK_EXIT
                s.exit_due = tape.force_ts[s.at_force] + p.latency_ns
            s.at_force += 1


@compiled
def displayed(tape: Any, params: Any, x: Any, limit: Any, side: Any) -> Any:
    """Return the quantity in the book ahead of a limit order that arrives at the price event ``x``.

    0 inside the spread; −1 where the price is not visible: only a trade-through fills it. ``side``: +1 sells.
    """
    if len(tape.quote) == 0 or not fills.usable(tape.quote[x], tape.price_ts[x], params[0].max_book_age_ns):
        return -1.0
    return fills.queue_ahead(tape.quote[x], tape.book_levels, tape.book_from, limit, side, 1.0)


@compiled
def market_fill(tape: Any, params: Any, k: Any, x: Any, qty: Any, side: Any) -> Any:
    """Return the price of a market order of ``qty`` at the price event ``x``; ``side``: +1 buys, −1 sells."""
    price, _ = _market(tape, params[0], tape.symbol[k], x, tape.price_ts[x], tape.price[x], qty, side)
    return price
