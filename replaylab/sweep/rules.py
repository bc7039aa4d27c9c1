"""Parameters as one structured array, the account's figures as one row of numbers, and the model's formulas compiled.

Both kernels (``kernel_loop``, ``kernel_chain``) read parameters and book trades through this module alone, so that
their results can only differ in which trades they find; the parity tests show that they find the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replaylab.compiled import inlined
from replaylab.trading import formulas

__all__ = ["PARAMS", "RAW", "REASONS", "book_trade"]

# NaN or −1: the rule is off. Times in whole nanoseconds. ``regime_set``: a row of the table of allowed regimes.
PARAMS = np.dtype(
    [
        ("entry_threshold", "f8"),
        ("exit_threshold", "f8"),
        ("tp1_pct", "f8"),
        ("tp1_fraction", "f8"),
        ("tp2_pct", "f8"),
        ("sl_pct", "f8"),
        ("break_even_offset_pct", "f8"),
        ("trailing_activation_pct", "f8"),
        ("trailing_distance_pct", "f8"),
        ("notional_usd", "f8"),
        ("risk_per_trade_usd", "f8"),
        ("leverage", "f8"),
        ("max_daily_loss_usd", "f8"),
        ("taker_fee_bps", "f8"),
        ("maker_fee_bps", "f8"),
        ("slippage_bps", "f8"),
        ("cooldown_ns", "i8"),
        ("max_hold_ns", "i8"),
        ("latency_ns", "i8"),
        ("max_open_positions", "i8"),
        ("max_trades_per_day", "i8"),
        ("allow_long", "i4"),
        ("allow_short", "i4"),
        ("regime_set", "i4"),
        ("filter", "i4"),
    ],
    align=True,
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
)
STOP_LOSS, BREAK_EVEN, TRAILING, TP1, TP2, TIMEOUT, SCORE_EXIT, RISK_EXIT, SESSION_END = range(9)

# Columns of a row of raw figures; ``figures.py`` turns them into those of a result frame.
RAW = 22
N, WINS, GROSS, FEES, NET, PROFIT, LOSS, PEAK, DRAWDOWN, FIRST, SUM, SQUARES, EXPOSURE = range(13)
BY_REASON = 13

entry_price = inlined(formulas.entry_price)
market_exit_price = inlined(formulas.market_exit_price)
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
daily_loss_reached = inlined(formulas.daily_loss_reached)


@inlined
def entry_qty(p: Any, entry: Any) -> Any:
    """Quantity of an entry at ``entry``, the price after slippage."""
    if np.isnan(p.risk_per_trade_usd):
        return fixed_qty(entry, p.notional_usd)
    return risk_qty(entry, p.sl_pct, p.risk_per_trade_usd, p.leverage, p.notional_usd)


@inlined
def book_trade(raw: Any, gross: Any, fees: Any, duration_ns: Any, reason: Any) -> None:
    """Add a closed trade to a row of raw figures; trades come in the order of their exits."""
    pnl = realized_pnl(gross, fees)
    if raw[N] == 0.0:
        raw[FIRST] = pnl
    raw[N] += 1.0
    raw[GROSS] += gross
    raw[FEES] += fees
    raw[NET] += pnl
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
