"""What the model accepts from a payload: finite JSON numbers, prices above zero, well-formed book levels.

>>> usable_price(50_000), usable_price("50000"), usable_price(True), usable_price(0.0)
(50000.0, None, None, None)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Levels = list[tuple[float, float]]


def usable_number(value: Any) -> float | None:
    """Return ``value`` as a float if it is a finite number, not text or a bool; else None."""
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        try:
            value = float(value)
        except OverflowError:
            return None
    # The difference is NaN for NaN and for both infinities.
    return value if value - value == 0.0 else None


def usable_price(value: Any) -> float | None:
    """Return ``value`` as a float if it is a finite number above zero; else None."""
    if type(value) is not float:
        value = usable_number(value)
        if value is None:
            return None
    return value if value > 0.0 and value - value == 0.0 else None


def trade_sign(side: Any) -> float | None:
    """Return +1 for a taker that buys, −1 for one that sells, None for anything else."""
    if side == "BUY":
        return 1.0
    return -1.0 if side == "SELL" else None


def risk_flag(payload: Mapping[str, Any], name: str) -> bool | None:
    """Return a flag of a RISK_UPDATE: a bool at top level, else one under ``riskFlags``; None where there is none."""
    value = payload.get(name)
    if isinstance(value, bool):
        return value
    nested = payload.get("riskFlags")
    value = nested.get(name) if isinstance(nested, Mapping) else None
    return value if isinstance(value, bool) else None


def read_levels(side: Any) -> Levels | None:
    """Return the ``(price, qty)`` levels of one side of a MARKET_BOOK; None if it or any level is malformed.

    A level is ``[price, qty]``, finite numbers with price > 0 and qty ≥ 0; further elements are ignored.
    """
    if not isinstance(side, (list, tuple)):
        return None
    levels: Levels = []
    append = levels.append
    for level in side:
        if not isinstance(level, (list, tuple)) or len(level) < 2:
            return None
        price, qty = level[0], level[1]
        if type(price) is not float or type(qty) is not float:
            price, qty = usable_number(price), usable_number(qty)
            if price is None or qty is None:
                return None
        # Written so that NaN and infinity fail as well.
        if not (0.0 < price < _INFINITY and 0.0 <= qty < _INFINITY):
            return None
        append((price, qty))
    return levels


_INFINITY = float("inf")
