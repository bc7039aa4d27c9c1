"""The snapshots that the trading system overwrites as it goes: risk, TPSL and execution."""

from __future__ import annotations

from collections.abc import Iterable

from replaylab.records import AccountState, ExecutionSnapshot, RiskFlags, RiskSnapshot
from replaylab.trading.orders import OrderRouter
from replaylab.trading.positions import Position
from replaylab.trading.recorder import Recorder, Stamp
from replaylab.trading.risk import RiskEngine
from replaylab.trading.rules import Rules
from replaylab.trading.state import SymbolState
from replaylab.trading.tpsl import tpsl_snapshot

__all__ = ["NEVER", "Snapshots"]

NEVER = 1 << 62


class Snapshots:
    """Writes what changed, at most once in ``interval_ns`` of event time, and once more at the end.

    Event time, not wall time, decides: the same session writes the same snapshots at every speed.
    """

    __slots__ = (
        "_interval_ns",
        "_recorder",
        "_risk",
        "_router",
        "_rules",
        "_stamp",
        "_written",
        "due",
        "tpsl",
    )

    def __init__(
        self,
        recorder: Recorder,
        rules: Rules,
        risk: RiskEngine,
        router: OrderRouter,
        stamp: Stamp,
        interval_ns: int,
    ) -> None:
        self._recorder = recorder
        self._rules = rules
        self._risk = risk
        self._router = router
        self._stamp = stamp
        self._interval_ns = interval_ns
        self._written = -NEVER
        # Event time from which a write is due; NEVER while nothing has changed.
        self.due = NEVER
        self.tpsl: Position | None = None

    def changed(self) -> None:
        """Note that a position, an order or a flag changed."""
        if self.due == NEVER:
            self.due = self._written + self._interval_ns

    def write(self, ts: int, symbols: Iterable[SymbolState]) -> None:
        """Write the snapshots that belong to ``ts``."""
        self._written = ts
        self.due = NEVER
        states = list(symbols)
        timestamp = self._stamp(ts)
        self._recorder.write_risk_snapshot(self._risk_snapshot(ts, timestamp, states))
        if self.tpsl is not None:
            self._recorder.write_tpsl_snapshot(tpsl_snapshot(self._rules, self.tpsl, timestamp))
            self.tpsl = None
        waiting = sum(state.pending != 0.0 for state in states)
        waiting += sum(state.position is not None and bool(state.position.exit_reason) for state in states)
        self._recorder.write_execution_snapshot(
            ExecutionSnapshot(
                timestamp=timestamp,
                mode=self._router.mode,
                safe_mode=False,
                pending_orders_count=waiting,
                active_orders_count=self._router.open_orders,
                last_error_at=None,
                last_error_message=None,
            )
        )

    def _risk_snapshot(self, ts: int, timestamp: str, states: list[SymbolState]) -> RiskSnapshot:
        equity = self._risk.balance
        margin = 0.0
        open_positions = 0
        for state in states:
            position = state.position
            if position is not None:
                open_positions += 1
                margin += position.entry * position.left / self._rules.leverage
                equity += position.unrealized(
                    position.entry if state.last_price is None else state.last_price
                )
        blocked = [state.symbol for state in states if state.blocked]
        loss_hit, trades_hit = self._risk.loss_limit_hit_on(ts), self._risk.trades_limit_hit_on(ts)
        reasons = [
            text
            for holds, text in (
                (bool(blocked), f"trading blocked: {', '.join(blocked)}"),
                (loss_hit, "max_daily_loss_usd reached"),
                (trades_hit, "max_trades_per_day reached"),
            )
            if holds
        ]
        return RiskSnapshot(
            timestamp=timestamp,
            account=AccountState(
                equity_usd=equity,
                balance_usd=self._risk.balance,
                used_margin_usd=margin,
                open_positions=open_positions,
            ),
            daily_stats=self._risk.daily_stats(ts),
            risk_flags=RiskFlags(
                trading_blocked=bool(blocked),
                force_close=any(
                    state.position is not None and state.position.exit_reason == "RISK_EXIT"
                    for state in states
                ),
                daily_loss_limit_hit=loss_hit,
                max_trades_hit=trades_hit,
                reason="; ".join(reasons) or None,
            ),
        )
