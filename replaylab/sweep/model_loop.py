"""The model as a plain loop over every event: the obvious compiled form, and the one that records trades.

``model_chain`` gives the same sums without reading every event; tests force both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replaylab.compiled import compiled, inlined
from replaylab.sweep import fills
from replaylab.sweep.fills import add_trade, entry_qty
from replaylab.sweep.tape import KINDS, PRICE, SCORE
from replaylab.timestamps import NS_PER_DAY

__all__ = ["ACCOUNT", "TRADE", "entry_decided", "realise", "refused", "run_loop"]

TRADE = np.dtype(
    [
        ("symbol", "i4"),
        ("direction", "i4"),
        ("entry_index", "i4"),
        ("exit_index", "i4"),
        ("entry_ts", "i8"),
        ("exit_ts", "i8"),
        ("entry_price", "f8"),
        ("close_price", "f8"),
        ("qty", "f8"),
        ("fees", "f8"),
        ("realized_pnl", "f8"),
        ("mfe", "f8"),
        ("mae", "f8"),
        ("reason", "i4"),
        ("tp1_filled", "i4"),
    ],
    align=True,
)

# What a symbol is doing. OVER: its last price is past and what was open was closed there; it still counts as open.
FLAT, PENDING, OPEN, OVER = 0, 1, 2, 3
_STATE = np.dtype(
    [
        ("phase", "i8"),
        ("at_price", "i8"),
        ("at_score", "i8"),
        ("at_force", "i8"),
        ("due", "i8"),
        ("direction", "f8"),
        ("cooldown_end", "i8"),
        ("entry_index", "i8"),
        ("entry_ts", "i8"),
        ("entry", "f8"),
        ("qty", "f8"),
        ("left", "f8"),
        ("gross", "f8"),
        ("fees", "f8"),
        ("stop", "f8"),
        ("stop_reason", "i8"),
        ("tp1", "f8"),
        ("tp2", "f8"),
        ("tp1_filled", "i8"),
        ("best", "f8"),
        ("high", "f8"),
        ("low", "f8"),
        ("exit_reason", "i8"),
        ("exit_due", "i8"),
    ],
    align=True,
)
# The account: open and pending positions, entries of a day, a day's PnL and whether it was ever at its limit.
ACCOUNT = np.dtype(
    [
        ("open", "i8"),
        ("entry_day", "i8"),
        ("entries", "i8"),
        ("pnl_day", "i8"),
        ("pnl", "f8"),
        ("lost", "i8"),
        ("trades", "i8"),
    ],
    align=True,
)


@inlined
def realise(account: Any, p: Any, ts: Any, pnl: Any) -> None:
    """Book the PnL of one fill on the UTC day of its event and check the daily loss."""
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
    day = ts // NS_PER_DAY
    if day != account.entry_day:
        account.entry_day = day
        account.entries = 0
    account.entries += 1
    account.open += 1


@inlined
def _trail(s: Any, p: Any, price: Any) -> None:
    s.best = max(s.best, price) if s.direction > 0.0 else min(s.best, price)
    # NaN (off) compares false.
    if fills.trailing_active(s.best, s.entry, s.direction, p.trailing_activation_pct):
        stop = fills.trailing_price(s.best, s.direction, p.trailing_distance_pct)
        if fills.tightens(stop, s.stop, s.direction):
            s.stop = stop
            s.stop_reason = fills.TRAILING


@inlined
def _fill_entry(s: Any, p: Any, index: Any, ts: Any, price: Any) -> Any:
    """Open the position; returns the PnL that this realises: the fee."""
    direction = s.direction
    entry = fills.entry_price(price, direction, p.slippage_bps)
    s.phase = OPEN
    s.entry_index = index
    s.entry_ts = ts
    s.entry = entry
    s.qty = entry_qty(p, entry)
    s.left = s.qty
    s.gross = 0.0
    s.fees = fills.fee(entry, s.qty, p.taker_fee_bps)
    s.stop = fills.stop_price(entry, direction, p.sl_pct)
    s.stop_reason = fills.STOP_LOSS
    s.tp1 = fills.target_price(entry, direction, p.tp1_pct)
    s.tp2 = fills.target_price(entry, direction, p.tp2_pct)
    s.tp1_filled = 0
    s.best = price
    s.high = price
    s.low = price
    s.exit_reason = -1
    _trail(s, p, price)
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
    add_trade(raw, s.gross, s.fees, ts - s.entry_ts, reason)
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
        part = fills.tp1_qty(s.qty, p.tp1_fraction)
        t.close_price = fills.weighted_price(s.tp1, part, price, s.left)
    t.qty = s.qty
    t.fees = s.fees
    t.realized_pnl = fills.realized_pnl(s.gross, s.fees)
    best, worst = (s.high, s.low) if s.direction > 0.0 else (s.low, s.high)
    t.mfe = max(fills.excursion(best, s.entry, s.qty, s.direction), 0.0)
    t.mae = min(fills.excursion(worst, s.entry, s.qty, s.direction), 0.0)
    t.reason = reason
    t.tp1_filled = s.tp1_filled


@inlined
def _manage(
    s: Any, p: Any, symbol: Any, index: Any, ts: Any, price: Any, account: Any, raw: Any, trades: Any
) -> None:
    """Steps 1 to 6 of the model at a price event after the entry's."""
    direction = s.direction
    s.high = max(s.high, price)
    s.low = min(s.low, price)
    reason = -1
    fill = fills.market_exit_price(price, direction, p.slippage_bps)
    bps = p.taker_fee_bps
    if fills.stop_hit(price, s.stop, direction):
        reason = s.stop_reason
    else:
        if p.tp1_fraction > 0.0 and s.tp1_filled == 0 and fills.target_hit(price, s.tp1, direction):
            part = fills.tp1_qty(s.qty, p.tp1_fraction)
            gross = fills.gross_pnl(s.tp1, s.entry, part, direction)
            cost = fills.fee(s.tp1, part, p.maker_fee_bps)
            s.tp1_filled = 1
            s.left = fills.remaining_qty(s.qty, part)
            s.gross += gross
            s.fees += cost
            realise(account, p, ts, fills.realized_pnl(gross, cost))
            if p.tp1_fraction == 1.0:
                _record(s, p, symbol, index, ts, s.tp1, fills.TP1, account, raw, trades)
                s.phase = FLAT
                s.cooldown_end = ts + p.cooldown_ns
                account.open -= 1
                return
            stop = fills.break_even_price(s.entry, direction, p.break_even_offset_pct)
            if fills.tightens(stop, s.stop, direction):
                s.stop = stop
                s.stop_reason = fills.BREAK_EVEN
        if fills.target_hit(price, s.tp2, direction):
            reason = fills.TP2
            fill = s.tp2
            bps = p.maker_fee_bps
        elif p.max_hold_ns >= 0 and ts - s.entry_ts >= p.max_hold_ns:
            reason = fills.TIMEOUT
        elif s.exit_reason >= 0 and ts >= s.exit_due:
            reason = s.exit_reason
    if reason < 0:
        _trail(s, p, price)
        return
    realise(account, p, ts, _fill_exit(s, fill, bps))
    _record(s, p, symbol, index, ts, fill, reason, account, raw, trades)
    s.phase = FLAT
    s.cooldown_end = ts + p.cooldown_ns
    account.open -= 1


@compiled
def run_loop(tape: Any, allowed: Any, params: Any, raw: Any, trades: Any) -> Any:
    """Run every row of ``params``; figures into the rows of ``raw``, trades of the last row into ``trades``.

    ``tape`` is a ``TapeArrays``, ``allowed`` a table [regime set, regime + 1] (column 0: no regime yet). ``trades`` is
    a TRADE array that holds all trades, or empty to record none. Returns the number of trades recorded.
    """
    n_symbols = len(tape.price_from) - 1
    state = np.zeros(n_symbols, dtype=_STATE)
    accounts = np.zeros(1, dtype=ACCOUNT)
    account = accounts[0]
    for row in range(len(params)):
        p = params[row]
        figures = raw[row]
        for k in range(n_symbols):
            s = state[k]
            s.phase = FLAT
            s.at_price = tape.price_from[k]
            s.at_score = tape.score_from[k]
            s.at_force = tape.force_from[k]
            s.cooldown_end = -(2**63)
        account.open = 0
        account.entries = 0
        account.pnl = 0.0
        account.lost = 0
        account.trades = 0
        for code in tape.order:
            k = code // KINDS
            kind = code - k * KINDS
            s = state[k]
            if kind == PRICE:
                x = s.at_price
                s.at_price += 1
                if s.phase == FLAT:
                    continue
                price = tape.price[x]
                ts = tape.price_ts[x]
                if s.phase == OPEN:
                    _manage(s, p, k, tape.price_index[x], ts, price, account, figures, trades)
                elif ts >= s.due:
                    realise(account, p, ts, _fill_entry(s, p, tape.price_index[x], ts, price))
                if s.phase == OPEN and x == tape.price_from[k + 1] - 1:
                    # Nothing of this symbol can happen any more. No limit sees this close.
                    fill = fills.market_exit_price(price, s.direction, p.slippage_bps)
                    _fill_exit(s, fill, p.taker_fee_bps)
                    _record(
                        s, p, k, tape.price_index[x], ts, fill, fills.SESSION_END, account, figures, trades
                    )
                    s.phase = OVER
            elif kind == SCORE:
                x = s.at_score
                s.at_score += 1
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
                elif (
                    s.phase == FLAT
                    and abs(score) >= p.entry_threshold
                    and score != 0.0
                    and ts >= s.cooldown_end
                    and (p.allow_long if score > 0.0 else p.allow_short)
                    and tape.score_blocked[x] == 0
                    and (
                        p.allowed_regimes_set < 0 or allowed[p.allowed_regimes_set, tape.score_regime[x] + 1]
                    )
                    and not refused(account, p, ts)
                ):
                    entry_decided(account, ts)
                    s.phase = PENDING
                    s.direction = 1.0 if score > 0.0 else -1.0
                    s.due = ts + p.latency_ns
            else:
                x = s.at_force
                s.at_force += 1
                if s.phase == OPEN and s.exit_reason < 0:
                    s.exit_reason = fills.RISK_EXIT
                    s.exit_due = tape.force_ts[x] + p.latency_ns
    return account.trades
