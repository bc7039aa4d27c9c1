"""Take profit and stop loss: what a price event does to an open position."""

from __future__ import annotations

from collections.abc import Callable

from replaylab.records import TpslSnapshot
from replaylab.trading import formulas
from replaylab.trading.orders import OrderRouter
from replaylab.trading.positions import Position
from replaylab.trading.rules import Rules

__all__ = ["TpslEngine", "tpsl_snapshot"]


class TpslEngine:
    """Checks the exits of a position in the order of the model and moves its stop."""

    __slots__ = ("_on_tp1", "_router", "_rules", "_tp1_all", "_tp1_on")

    def __init__(self, rules: Rules, router: OrderRouter, on_tp1: Callable[[Position, int], None]) -> None:
        self._rules = rules
        self._router = router
        self._on_tp1 = on_tp1
        self._tp1_on = rules.tp1_fraction > 0.0
        self._tp1_all = rules.tp1_fraction == 1.0

    @property
    def tp1_on(self) -> bool:
        return self._tp1_on

    def on_price(self, position: Position, ts: int, price: float) -> str:
        """Take one later price event; return the reason to close what is left, or "" to stay open."""
        rules = self._rules
        direction = position.direction
        if price > position.high:
            position.high = price
        elif price < position.low:
            position.low = price
        if formulas.stop_hit(price, position.stop, direction):
            return position.stop_reason
        if self._tp1_on and not position.tp1_filled and formulas.target_hit(price, position.tp1, direction):
            self._on_tp1(position, ts)
            if self._tp1_all:
                return "TP1"
            self._break_even(position, ts)
        # No else: one jump can fill both targets.
        if formulas.target_hit(price, position.tp2, direction):
            return "TP2"
        if rules.max_hold_ns is not None and ts - position.entry_ts >= rules.max_hold_ns:
            return "TIMEOUT"
        if position.exit_reason is not None and ts >= position.exit_due:
            return position.exit_reason
        if rules.trailing_activation_pct is not None:
            self.trail(position, ts, price)
        return ""

    def trail(self, position: Position, ts: int, price: float) -> None:
        """Raise the best price and, once trailing is active, the stop; it acts from the next price event on."""
        rules = self._rules
        activation = rules.trailing_activation_pct
        if activation is None:
            return
        direction = position.direction
        if direction * (price - position.best) > 0.0:
            position.best = price
        best = position.best
        if formulas.trailing_active(best, position.entry, direction, activation):
            stop = formulas.trailing_price(best, direction, rules.trailing_distance_pct)
            if formulas.tightens(stop, position.stop, direction):
                position.stop = stop
                position.stop_reason = "TRAILING"
                self._router.move_stop(ts, position)

    def _break_even(self, position: Position, ts: int) -> None:
        offset = self._rules.break_even_offset_pct
        if offset is None:
            return
        stop = formulas.break_even_price(position.entry, position.direction, offset)
        if formulas.tightens(stop, position.stop, position.direction):
            position.stop = stop
            position.stop_reason = "BREAK_EVEN"
            self._router.move_stop(ts, position)


def tpsl_snapshot(rules: Rules, position: Position, timestamp: str) -> TpslSnapshot:
    """Return the levels of a position; with break-even off its price is the entry's."""
    offset = rules.break_even_offset_pct
    return TpslSnapshot(
        timestamp=timestamp,
        symbol=position.symbol,
        side="LONG" if position.direction > 0 else "SHORT",
        entry_price=position.entry,
        tp1_price=position.tp1,
        tp2_price=position.tp2,
        stop_loss_price=position.stop,
        break_even_price=formulas.break_even_price(
            position.entry, position.direction, 0.0 if offset is None else offset
        ),
        trailing_active=position.stop_reason == "TRAILING",
        trailing_distance_pct=rules.trailing_distance_pct,
        pump_override_applied=False,
        spoofing_override_applied=False,
        volatility_override_applied=False,
    )
