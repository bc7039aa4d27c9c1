"""Fills: what a price event does to a pending entry and to an open position, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replaylab.records import StateEvent, TradeLogRecord
from replaylab.timestamps import date_key, iso
from replaylab.trading import formulas
from replaylab.trading.orders import OrderRouter, Recorder, Stamp
from replaylab.trading.positions import ClosedTrade, Position, close, fill_tp1, open_position
from replaylab.trading.risk import RiskEngine, Snapshots
from replaylab.trading.rules import Rules
from replaylab.trading.state import COOLDOWN, IDLE, LONG, PENDING_ENTRY, SHORT, SymbolState


class TpslEngine:
    """Checks the exits of a position in the order of the model and moves its stop."""

    __slots__ = ("_on_tp1", "_router", "_rules", "_tp1_all", "_tp1_on")

    def __init__(self, rules: Rules, router: OrderRouter, on_tp1: Callable[[Position, int], None]) -> None:
        self._rules = rules
        self._router = router
        self._on_tp1 = on_tp1
        self._tp1_on = rules.params.tp1_fraction > 0.0
        self._tp1_all = rules.params.tp1_fraction == 1.0

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
        if rules.max_hold_ns >= 0 and ts - position.entry_ts >= rules.max_hold_ns:
            return "TIMEOUT"
        if position.exit_reason is not None and ts >= position.exit_due:
            return position.exit_reason
        if rules.params.trailing_activation_pct is not None:
            self.trail(position, ts, price)
        return ""

    def trail(self, position: Position, ts: int, price: float) -> None:
        """Raise the best price and, once trailing is active, the stop; it acts from the next price event on."""
        rules = self._rules
        activation = rules.params.trailing_activation_pct
        if activation is None:
            return
        direction = position.direction
        if direction * (price - position.best) > 0.0:
            position.best = price
        best = position.best
        if formulas.trailing_active(best, position.entry, direction, activation):
            stop = formulas.trailing_price(best, direction, rules.params.trailing_distance_pct)
            if formulas.tightens(stop, position.stop, direction):
                position.stop = stop
                position.stop_reason = "TRAILING"
                self._router.move_stop(ts, position)

    def _break_even(self, position: Position, ts: int) -> None:
        offset = self._rules.params.break_even_offset_pct
        if offset is None:
            return
        stop = formulas.break_even_price(position.entry, position.direction, offset)
        if formulas.tightens(stop, position.stop, position.direction):
            position.stop = stop
            position.stop_reason = "BREAK_EVEN"
            self._router.move_stop(ts, position)


class Execution:
    """Submits orders for the state machine and fills them at price events, as the model says."""

    def __init__(
        self,
        rules: Rules,
        risk: RiskEngine,
        router: OrderRouter,
        recorder: Recorder | None,
        stamp: Stamp,
        snapshots: Snapshots | None,
    ) -> None:
        self._rules = rules
        self._risk = risk
        self._router = router
        self._recorder = recorder
        self._stamp = stamp
        self._snapshots = snapshots
        self._tpsl = TpslEngine(rules, router, self._fill_tp1)
        self.trades: list[ClosedTrade] = []

    # Orders of the state machine.

    def submit_entry(self, state: SymbolState, ts: int, direction: float) -> None:
        """Submit a market entry; its fill is the first price event from now on that latency allows."""
        state.pending = direction
        state.pending_due = ts + self._rules.latency_ns
        state.state = PENDING_ENTRY
        self._risk.entry_decided(ts)
        if self._router.records:
            # The size is only known at the fill; the order names what it would be at the last price.
            price = state.last_price or 0.0
            qty = self._rules.qty(price) if price else 0.0
            state.pending_order = self._router.market(
                ts, state.symbol, direction > 0, qty, price, False, "STATE_MACHINE"
            )
            self._changed()

    def submit_exit(self, state: SymbolState, position: Position, ts: int, reason: str) -> None:
        """Submit a market exit; the first one submitted stands."""
        position.exit_reason = reason
        position.exit_due = ts + self._rules.latency_ns
        if self._router.records:
            position.order_exit = self._market_exit(state, position, ts, "STATE_MACHINE")
            self._changed()

    # Price events.

    def on_price(self, state: SymbolState, index: int, ts: int, price: float) -> None:
        """Take one price event of a symbol: fill what waits for it, check what is open."""
        state.last_price = price
        state.last_index = index
        state.last_ts = ts
        position = state.position
        if position is not None:
            reason = self._tpsl.on_price(position, ts, price)
            if reason:
                self._close(state, position, index, ts, price, reason)
        elif state.pending != 0.0 and ts >= state.pending_due:
            self._fill_entry(state, index, ts, price)

    def end(self, states: list[SymbolState], ts: int) -> None:
        """Close what is open at its symbol's last price event and cancel entries that were never filled."""
        for state in states:
            position = state.position
            if position is not None and state.last_price is not None:
                self._close(state, position, state.last_index, state.last_ts, state.last_price, "SESSION_END")
            elif state.pending != 0.0:
                state.pending = 0.0
                state.state = IDLE
                self._risk.position_gone()
                self._router.cancel(state.pending_order, ts)
                self._log(state, ts, PENDING_ENTRY, "EXECUTION_CANCEL", "no price event before the end", {})

    def _fill_entry(self, state: SymbolState, index: int, ts: int, price: float) -> None:
        direction = state.pending
        position = open_position(self._rules, state.symbol, direction, index, ts, price)
        state.pending = 0.0
        state.position = position
        state.state = LONG if direction > 0 else SHORT
        self._risk.realised(ts, -position.fees)
        if self._recorder is not None:
            self._router.filled(state.pending_order, ts, position.entry, position.qty)
            extra = {"reason": "ENTRY", "price": position.entry, "qty": position.qty}
            self._log(state, ts, PENDING_ENTRY, "EXECUTION_FILL", "entry filled", extra)
            self._router.rest_exits(ts, position, self._tpsl.tp1_on)
            self._changed(position)
        self._tpsl.trail(position, ts, price)

    def _fill_tp1(self, position: Position, ts: int) -> None:
        self._risk.realised(ts, fill_tp1(self._rules, position))
        if self._recorder is not None:
            self._router.filled(position.order_tp1, ts, position.tp1, position.tp1_qty)
            extra = {"reason": "TP1", "price": position.tp1, "qty": position.tp1_qty}
            if self._rules.params.tp1_fraction < 1.0:
                self._recorder.log_state_event(
                    position.symbol,
                    StateEvent(
                        timestamp=self._stamp(ts),
                        symbol=position.symbol,
                        from_state=position.side,
                        to_state=position.side,
                        event_type="EXECUTION_PARTIAL",
                        reason="TP1",
                        extra=extra,
                    ),
                )
            self._changed(position)

    def _close(
        self, state: SymbolState, position: Position, index: int, ts: int, price: float, reason: str
    ) -> None:
        rules = self._rules
        left = position.left
        if reason in ("TP1", "TP2"):
            fill, fee_bps = (position.tp1 if reason == "TP1" else position.tp2), rules.params.maker_fee_bps
        else:
            fill = formulas.market_exit_price(price, position.direction, rules.slippage_bps("print"))
            fee_bps = rules.params.taker_fee_bps
        trade, realised = close(rules, position, index, ts, fill, fee_bps, reason)
        if reason != "TP1":
            self._risk.realised(ts, realised)
        self._risk.position_gone()
        self._risk.trade_closed(trade.realized_pnl)
        self.trades.append(trade)
        state.position = None
        before = state.state
        state.state = COOLDOWN if rules.cooldown_ns > 0 else IDLE
        state.cooldown_end = ts + rules.cooldown_ns
        if self._recorder is None:
            return
        if reason != "TP1":
            self._router.filled(self._exit_order(state, position, ts, reason), ts, fill, left)
        self._router.cancel_exits(ts, position)
        extra = {"reason": reason, "price": fill, "qty": position.tp1_qty if reason == "TP1" else left}
        self._log(state, ts, before, "EXECUTION_EXIT", reason, extra)
        self._recorder.log_trade(_trade_record(trade, self._stamp(ts), self._router.mode))
        self._changed(position)

    def _exit_order(self, state: SymbolState, position: Position, ts: int, reason: str) -> str:
        """Return the order that an exit fills; a market exit without an order yet gets one."""
        if reason == "TP2":
            return position.order_tp2
        if reason in ("STOP_LOSS", "BREAK_EVEN", "TRAILING"):
            return position.order_stop
        if reason in ("SCORE_EXIT", "RISK_EXIT"):
            return position.order_exit
        source = "TPSL_ENGINE" if reason == "TIMEOUT" else "STATE_MACHINE"
        return self._market_exit(state, position, ts, source)

    def _market_exit(self, state: SymbolState, position: Position, ts: int, source: str) -> str:
        price = position.entry if state.last_price is None else state.last_price
        return self._router.market(
            ts, position.symbol, position.direction < 0, position.left, price, True, source
        )

    def _log(
        self, state: SymbolState, ts: int, before: str, kind: str, reason: str, extra: dict[str, Any]
    ) -> None:
        if self._recorder is not None:
            self._recorder.log_state_event(
                state.symbol,
                StateEvent(
                    timestamp=self._stamp(ts),
                    symbol=state.symbol,
                    from_state=before,
                    to_state=state.state,
                    event_type=kind,
                    reason=reason,
                    extra=extra,
                ),
            )

    def _changed(self, position: Position | None = None) -> None:
        if self._snapshots is not None:
            self._snapshots.changed()
            if position is not None:
                self._snapshots.tpsl = position


def _trade_record(trade: ClosedTrade, timestamp: str, mode: Any) -> TradeLogRecord:
    return TradeLogRecord(
        timestamp=timestamp,
        date_key=date_key(trade.exit_ts),
        symbol=trade.symbol,
        side="LONG" if trade.side == "LONG" else "SHORT",
        entry_price=trade.entry_price,
        close_price=trade.close_price,
        qty=trade.qty,
        leverage=trade.leverage,
        realized_pnl=trade.realized_pnl,
        mfe=trade.mfe,
        mae=trade.mae,
        duration_seconds=trade.duration_seconds,
        mode=mode,
        entry_timestamp=iso(trade.entry_ts),
        reason=trade.reason,
        tp1_filled=trade.tp1_filled,
        fees=trade.fees,
    )
