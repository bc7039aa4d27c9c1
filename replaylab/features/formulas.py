"""Feature arithmetic as plain scalar functions, called event by event and compiled for whole tapes.

>>> book_imbalance(3.0, 1.0)
0.5

Times are whole nanoseconds, decays are exponential with a half-life: after one half-life a weight has halved.
The incremental and the vectorised form call these same functions, so that they cannot drift apart.
"""

from __future__ import annotations

import math

LN2 = math.log(2.0)


def decay(dt_ns: int, half_life: float) -> float:
    """Weight left after ``dt_ns``: ``2^(−dt/half_life)``."""
    return math.exp(-LN2 * dt_ns / half_life)


def blend(average: float, value: float, kept: float) -> float:
    """Time-weighted average after ``value`` stood while the weight decayed to ``kept``."""
    return value + (average - value) * kept


def book_imbalance(bid_qty: float, ask_qty: float) -> float:
    """``(bid − ask)/(bid + ask)`` of resting quantity, in [−1, 1]; 0 for an empty sum."""
    total = bid_qty + ask_qty
    if total <= 0.0:
        return 0.0
    return (bid_qty - ask_qty) / total


def microprice(bid: float, bid_qty: float, ask: float, ask_qty: float) -> float:
    """Quantity-weighted mid ``(bid·askQty + ask·bidQty)/(bidQty + askQty)`` (Gatheral & Oomen 2010)."""
    return (bid * ask_qty + ask * bid_qty) / (bid_qty + ask_qty)


def order_flow(
    bid: float,
    bid_qty: float,
    ask: float,
    ask_qty: float,
    last_bid: float,
    last_bid_qty: float,
    last_ask: float,
    last_ask_qty: float,
) -> float:
    """Order-flow contribution ``e_n`` of one change of the best quotes (Cont, Kukanov & Stoikov 2014, eq. 4)."""
    flow = 0.0
    if bid >= last_bid:
        flow += bid_qty
    if bid <= last_bid:
        flow -= last_bid_qty
    if ask <= last_ask:
        flow -= ask_qty
    if ask >= last_ask:
        flow += last_ask_qty
    return flow


def flow_imbalance(signed: float, total: float) -> float:
    """Signed over total traded quantity, in [−1, 1]; 0 without trades."""
    if total <= 0.0:
        return 0.0
    return signed / total


def volatility(squares: float, seconds: float) -> float:
    """Realised volatility of log returns per square root of a second, from decayed squares and decayed time."""
    if squares <= 0.0 or seconds <= 0.0:
        return 0.0
    return math.sqrt(squares / seconds)


def momentum_z(deviation: float, sigma: float, half_life_s: float) -> float:
    """Deviation of the log price from its average, in units of the volatility over one half-life; 0 without any."""
    if sigma <= 0.0:
        return 0.0
    return deviation / (sigma * math.sqrt(half_life_s))


def squash(value: float) -> float:
    """``tanh``: any number into (−1, 1)."""
    return math.tanh(value)
