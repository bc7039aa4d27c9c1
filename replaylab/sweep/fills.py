"""The model's arithmetic compiled: packed parameters, formulas, and the sums that closed trades add to.

Both kernels (``model_loop``, ``model_chain``) read parameters and count trades through this module alone, so that
their results can only differ in which trades they find; the parity tests show that they find the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from replaylab.compiled import inlined
from replaylab.params import TradingParams
from replaylab.trading import formulas

__all__ = ["PARAMS", "RAW", "REASONS", "add_trade"]

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
)
STOP_LOSS, BREAK_EVEN, TRAILING, TP1, TP2, TIMEOUT, SCORE_EXIT, RISK_EXIT, SESSION_END = range(9)

# Columns of a row of raw sums, from which the metrics of a result frame are computed.
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
def add_trade(raw: Any, gross: Any, fees: Any, duration_ns: Any, reason: Any) -> None:
    """Add a closed trade to a row of raw sums; trades come in the order of their exits."""
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
