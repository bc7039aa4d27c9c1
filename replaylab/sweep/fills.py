"""Fills, sizes and levels of the model, compiled, and the sums that closed trades add to.

Both kernels (``model_loop``, ``model_chain``) read parameters, fill orders and count trades through this module alone,
so that their results can only differ in which trades they find; the parity tests show that they find the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replaylab.compiled import inlined
from replaylab.params import TradingParams
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
# ``gap_pnl`` in place of the PnL of trades that a hole ended.
RAW = 30
N, WINS, GROSS, FEES, NET, PROFIT, LOSS, PEAK, DRAWDOWN, FIRST, SUM, SQUARES, EXPOSURE = range(13)
FUNDING, AFTER_GAPS, THIN, EXPIRED, REJECTED, CANCELLED = range(13, 19)
BY_REASON = 19

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
excursion = inlined(formulas.excursion)
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


@inlined
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


@inlined
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


@inlined
def add_trade(
    raw: Any, gross: Any, fees: Any, funding: Any, duration_ns: Any, reason: Any, thin: Any, gap_pnl: Any
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
    # Sums of deviations from the first trade: equal trades give a variance of exactly zero.
    deviation = pnl - raw[FIRST]
    raw[SUM] += deviation
    raw[SQUARES] += deviation * deviation
    raw[EXPOSURE] += duration_ns
    raw[BY_REASON + reason] += 1.0
