"""The parameters and instruments of the trading model in the form that the event loop reads.

>>> Instrument.read({"tickSize": 0.05, "lotSize": 0.001}).tick
(1.0, 20.0)
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Self

from replaylab.features import usable_number, usable_price
from replaylab.params import TradingParams
from replaylab.trading import formulas

_NO_STEP = (0.0, 1.0)


class Instrument(NamedTuple):
    """Tick and lot of a symbol as fractions ``(num, den)`` in lowest terms, and its minimum notional in USD.

    ``num`` = 0: prices or quantities are not rounded. ``min_notional_usd`` = 0: no minimum.
    """

    tick: tuple[float, float] = _NO_STEP
    lot: tuple[float, float] = _NO_STEP
    min_notional_usd: float = 0.0

    @classmethod
    def read(cls, entry: Mapping[str, Any] | None, rounding: str = "exchange") -> Self:
        """Return the instrument of an entry of ``instruments.json``; without one, or rounding "none", no rounding."""
        if rounding == "none" or not isinstance(entry, Mapping):
            return cls()
        least = usable_number(entry.get("minNotionalUsd"))
        return cls(_step(entry.get("tickSize")), _step(entry.get("lotSize")), 0.0 if least is None else least)


def _step(size: Any) -> tuple[float, float]:
    """Return a tick or lot as a fraction, read from its shortest decimal text; what is no size gives no rounding."""
    number = usable_price(size)
    if number is None:
        return _NO_STEP
    exact = Fraction(repr(number))
    return float(exact.numerator), float(exact.denominator)


class Rules:
    """``TradingParams`` with what the event loop derives from them once: times in nanoseconds, rules that are on."""

    def __init__(self, params: TradingParams) -> None:
        self.params = params
        packed = {declared.name: declared.packed for declared in params.declarations()}

        def ns(name: str) -> int:
            return int(packed[name](getattr(params, name)))

        self.cooldown_ns = ns("cooldown_s")
        self.latency_ns = ns("latency_ms")
        self.stop_latency_ns = ns("stop_latency_ms")
        # -1: the rule is off.
        self.max_hold_ns = ns("max_hold_s")
        self.entry_ttl_ns = ns("entry_ttl_s")
        self.max_book_age_ns = ns("max_book_age_s")
        self.max_gap_ns = ns("max_gap_s")
        regimes = params.allowed_regimes
        self.allowed_regimes = None if regimes is None else frozenset(regimes)

    def qty(self, ref: float) -> float:
        """Return the quantity of an entry at the reference price ``ref``, before rounding."""
        p = self.params
        if p.risk_per_trade_usd is None:
            return formulas.fixed_qty(ref, p.notional_usd)
        return formulas.risk_qty(ref, p.sl_pct, p.risk_per_trade_usd, p.leverage, p.notional_usd)

    def slippage_bps(self, fill: str) -> float:
        """Return the slippage in force of a fill: "print" has 1.0 by default, "quote" and "book" have 0."""
        p = self.params
        return p.print_slippage_bps if fill == "print" or p.slippage_bps is not None else 0.0
