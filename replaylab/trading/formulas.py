"""The arithmetic of the trading model: one function per formula of ``docs/model.md``, in exactly its order.

>>> from replaylab.trading import formulas
>>> formulas.market_price(50_000.0, 1, 1.0)
50005.0

The event-driven system calls these functions and a sweep compiles the same ones. So they take and return plain
floats, ints and bools, never ``None``, have no default arguments and call no other function than ``math``'s.
``direction`` is +1 for LONG and −1 for SHORT; ``side`` is +1 for an order that buys and −1 for one that sells. Prices
are in quote currency, quantities in base currency, fees and PnL in quote currency; ``_pct`` is percent, ``_bps`` basis
points. A tick or a lot is a fraction ``num/den`` in lowest terms; ``num`` = 0 means that there is none.

Two results are only the same to the last bit when the operations come in the same order: change none here without
running the parity tests.
"""

from __future__ import annotations

import math

# From here on every double is a whole number.
_WHOLE = 4503599627370496.0


def seconds_to_ns(seconds: float) -> int:
    """Whole nanoseconds of a parameter in seconds; rounded once, half to even."""
    return round(seconds * 1e9)


def milliseconds_to_ns(milliseconds: float) -> int:
    """Whole nanoseconds of a parameter in milliseconds; rounded once, half to even."""
    return round(milliseconds * 1e6)


def market_price(price: float, side: float, slippage_bps: float) -> float:
    """Price of a market fill after slippage: ``p · (1 + d·slippage_bps/10000)``."""
    return price * (1.0 + side * slippage_bps / 10000.0)


def book_price(cost: float, qty: float, side: float, slippage_bps: float) -> float:
    """Price of a walk through the book: ``(Σ price·taken)/Q · (1 + d·slippage_bps/10000)``; ``cost`` is the sum."""
    return cost / qty * (1.0 + side * slippage_bps / 10000.0)


def worse_price(price: float, printed: float, side: float) -> float:
    """The worse of two fill prices for the order: the higher one for a buy, the lower one for a sell."""
    return price if side * (price - printed) > 0.0 else printed


def rounded_price(price: float, side: float, tick_num: float, tick_den: float) -> float:
    """Price on a tick: up where ``side`` is +1, down where it is −1.

    Targets: ``side`` = direction. Stops and LIMIT entries: ``side`` = −direction. A price of 0 or less stays.
    """
    if tick_num <= 0.0 or price <= 0.0:
        return price
    # Up is down of what is negative: no branch on the side, which a processor cannot guess.
    ticks = price * tick_den / tick_num - side * 1e-6
    whole = -side * math.floor(-side * ticks) + 0.0
    return whole * tick_num / tick_den if ticks < _WHOLE else ticks * tick_num / tick_den


def rounded_qty(qty: float, lot_num: float, lot_den: float) -> float:
    """Quantity in whole lots, rounded down."""
    if lot_num <= 0.0:
        return qty
    lots = qty * lot_den / lot_num + 1e-9
    return math.floor(lots) * lot_num / lot_den if lots < _WHOLE else lots * lot_num / lot_den


def too_small(qty: float, ref: float, min_notional_usd: float) -> bool:
    """Whether an entry is rejected for its size: no quantity, or ``qty·ref`` below the minimum notional (0: none)."""
    return qty <= 0.0 or qty * ref < min_notional_usd


def limit_entry_price(reference: float, direction: float, entry_offset_bps: float) -> float:
    """Price of a LIMIT entry before rounding: ``reference·(1 − dir·entry_offset_bps/10000)``."""
    return reference * (1.0 - direction * entry_offset_bps / 10000.0)


def traded_through(price: float, limit: float, direction: float) -> bool:
    """Whether a price lies beyond a limit: ``d·(p − L) > 0``; d = +1 where the order sells, −1 where it buys."""
    return direction * (price - limit) > 0.0


def funding_cash(left: float, mark: float, funding_rate: float, direction: float) -> float:
    """Cash of one funding settlement on the open quantity: ``−dir·left·mark·fundingRate``."""
    return -direction * left * mark * funding_rate


def fee(price: float, qty: float, fee_bps: float) -> float:
    """Fee of one fill on its notional: ``(price·qty) · fee_bps/10000``."""
    return price * qty * fee_bps / 10000.0


def fixed_qty(entry: float, notional_usd: float) -> float:
    """Quantity of an entry of fixed size; ``entry`` is the price after slippage."""
    return notional_usd / entry


def risk_qty(
    entry: float, sl_pct: float, risk_per_trade_usd: float, leverage: float, notional_usd: float
) -> float:
    """Quantity that loses ``risk_per_trade_usd`` at the stop, capped at ``leverage·notional_usd / entry``.

    With ``sl_pct`` = 0 it is the cap.
    """
    cap = leverage * notional_usd / entry
    distance = entry * sl_pct / 100.0
    if distance <= 0.0:
        return cap
    qty = risk_per_trade_usd / distance
    return qty if qty < cap else cap


def target_price(entry: float, direction: float, tp_pct: float) -> float:
    """Price of TP1 or TP2: ``entry·(1 + dir·tp_pct/100)``."""
    return entry * (1.0 + direction * tp_pct / 100.0)


def stop_price(entry: float, direction: float, sl_pct: float) -> float:
    """Price of the first stop: ``entry·(1 − dir·sl_pct/100)``."""
    return entry * (1.0 - direction * sl_pct / 100.0)


def break_even_price(entry: float, direction: float, break_even_offset_pct: float) -> float:
    """Price that the stop moves to after TP1: ``entry·(1 + dir·break_even_offset_pct/100)``."""
    return entry * (1.0 + direction * break_even_offset_pct / 100.0)


def trailing_active(best: float, entry: float, direction: float, trailing_activation_pct: float) -> bool:
    """Whether the best price is far enough in profit: ``dir·(best/entry − 1)·100 ≥ activation``."""
    return direction * (best / entry - 1.0) * 100.0 >= trailing_activation_pct


def trailing_price(best: float, direction: float, trailing_distance_pct: float) -> float:
    """Price of the trailing stop: ``best·(1 − dir·trailing_distance_pct/100)``."""
    return best * (1.0 - direction * trailing_distance_pct / 100.0)


def tightens(candidate: float, stop: float, direction: float) -> bool:
    """Whether a stop at ``candidate`` is tighter than ``stop``: ``dir·(candidate − stop) > 0``."""
    return direction * (candidate - stop) > 0.0


def stop_hit(price: float, stop: float, direction: float) -> bool:
    """Whether a price triggers the stop: ``dir·(p − stop) ≤ 0``."""
    return direction * (price - stop) <= 0.0


def target_hit(price: float, target: float, direction: float) -> bool:
    """Whether a price reaches a target: ``dir·(p − target) ≥ 0``."""
    return direction * (price - target) >= 0.0


def tp1_qty(qty: float, tp1_fraction: float) -> float:
    """Quantity closed at TP1. ``tp1_fraction`` = 1 gives ``qty`` itself."""
    return qty * tp1_fraction


def remaining_qty(qty: float, closed: float) -> float:
    """Quantity left after TP1."""
    return qty - closed


def gross_pnl(price: float, entry: float, qty: float, direction: float) -> float:
    """PnL of one exit before fees: ``dir·(exit − entry)·qty_part``."""
    return direction * (price - entry) * qty


def realized_pnl(gross: float, fees: float) -> float:
    """PnL of a closed position.

    ``gross`` is TP1's part plus the last part, in this order; ``fees`` the entry's, plus TP1's, plus the last one's.
    """
    return gross - fees


def weighted_price(first_price: float, first_qty: float, last_price: float, last_qty: float) -> float:
    """Close price of a position with two exits, weighted by quantity. One exit: that exit's own price."""
    return (first_price * first_qty + last_price * last_qty) / (first_qty + last_qty)


def excursion(price: float, entry: float, qty: float, direction: float) -> float:
    """Unrealised PnL of the full quantity at a price: ``dir·(p − entry)·qty``; MFE and MAE are its best and worst."""
    return direction * (price - entry) * qty


def daily_loss_reached(day_pnl: float, max_daily_loss_usd: float) -> bool:
    """Whether a UTC day's realised PnL stands at or below ``−max_daily_loss_usd``."""
    return day_pnl <= -max_daily_loss_usd


def duration_seconds(entry_ts: int, exit_ts: int) -> float:
    """Seconds between two timestamps in nanoseconds."""
    return (exit_ts - entry_ts) / 1e9
