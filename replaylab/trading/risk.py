"""The account over all symbols: limits on entries, the day's realised PnL, and the risk snapshot's figures."""

from __future__ import annotations

from collections.abc import Iterable

from replaylab.records import (
    AccountState,
    DailyRiskStats,
    ExecutionSnapshot,
    RiskFlags,
    RiskSnapshot,
    TpslSnapshot,
)
from replaylab.timestamps import NS_PER_DAY, date_key
from replaylab.trading import formulas
from replaylab.trading.orders import OrderRouter, Recorder, Stamp
from replaylab.trading.positions import Position
from replaylab.trading.rules import Rules
from replaylab.trading.state import SymbolState


class RiskEngine:
    """Counts open and pending positions, entries and losses per UTC day, and says whether an entry is allowed."""

    __slots__ = (
        "_day",
        "_rules",
        "_trades_day",
        "balance",
        "day_losses",
        "day_max_drawdown",
        "day_peak",
        "day_pnl",
        "day_wins",
        "entries_today",
        "loss_limit_hit",
        "open_count",
    )

    def __init__(self, rules: Rules, starting_balance: float) -> None:
        self._rules = rules
        self.balance = starting_balance
        self.open_count = 0
        self._trades_day = 0
        self.entries_today = 0
        self._start_day(0)

    def _start_day(self, day: int) -> None:
        self._day = day
        self.day_pnl = 0.0
        self.day_peak = 0.0
        self.day_max_drawdown = 0.0
        self.day_wins = self.day_losses = 0
        self.loss_limit_hit = False

    def refusal(self, ts: int) -> str | None:
        """Return the name of the limit that forbids an entry decided at ``ts``, or None."""
        rules = self._rules
        if rules.params.max_open_positions is not None and self.open_count >= rules.params.max_open_positions:
            return "max_open_positions reached"
        if (
            rules.params.max_trades_per_day is not None
            and self._entries_on(ts) >= rules.params.max_trades_per_day
        ):
            return "max_trades_per_day reached"
        if self.loss_limit_hit_on(ts):
            return "max_daily_loss_usd reached"
        return None

    def entry_decided(self, ts: int) -> None:
        """Count an entry order that was submitted at ``ts``."""
        self.open_count += 1
        day = ts // NS_PER_DAY
        if day != self._trades_day:
            self._trades_day = day
            self.entries_today = 0
        self.entries_today += 1

    def position_gone(self) -> None:
        """Count a position that was closed, or an entry that was cancelled."""
        self.open_count -= 1

    def realised(self, ts: int, pnl: float) -> None:
        """Book the PnL of one fill on the UTC day of its event and check the daily loss."""
        day = ts // NS_PER_DAY
        if day != self._day:
            self._start_day(day)
        self.balance += pnl
        self.day_pnl += pnl
        if self.day_pnl > self.day_peak:
            self.day_peak = self.day_pnl
        elif self.day_pnl - self.day_peak < self.day_max_drawdown:
            self.day_max_drawdown = self.day_pnl - self.day_peak
        limit = self._rules.params.max_daily_loss_usd
        if limit is not None and formulas.daily_loss_reached(self.day_pnl, limit):
            self.loss_limit_hit = True

    def trade_closed(self, realized_pnl: float) -> None:
        """Count a closed trade as won or lost for the day's statistics."""
        if realized_pnl > 0:
            self.day_wins += 1
        else:
            self.day_losses += 1

    def loss_limit_hit_on(self, ts: int) -> bool:
        """Whether the UTC day of ``ts`` has reached its loss limit."""
        return self.loss_limit_hit and ts // NS_PER_DAY == self._day

    def trades_limit_hit_on(self, ts: int) -> bool:
        """Whether the UTC day of ``ts`` has had all its entries."""
        limit = self._rules.params.max_trades_per_day
        return limit is not None and self._entries_on(ts) >= limit

    def daily_stats(self, ts: int) -> DailyRiskStats:
        """Return the statistics of the UTC day of ``ts``: zeros before its first fill."""
        day = ts // NS_PER_DAY
        if day != self._day:
            return DailyRiskStats(date_key=date_key(ts))
        return DailyRiskStats(
            date_key=date_key(ts),
            realized_pnl=self.day_pnl,
            trades_count=self.day_wins + self.day_losses,
            wins=self.day_wins,
            losses=self.day_losses,
            max_drawdown_usd=self.day_max_drawdown,
        )

    def _entries_on(self, ts: int) -> int:
        return self.entries_today if ts // NS_PER_DAY == self._trades_day else 0


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
            self._recorder.write_tpsl_snapshot(_tpsl_snapshot(self._rules, self.tpsl, timestamp))
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
                margin += position.entry * position.left / self._rules.params.leverage
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


def _tpsl_snapshot(rules: Rules, position: Position, timestamp: str) -> TpslSnapshot:
    """Return the levels of a position; with break-even off its price is the entry's."""
    offset = rules.params.break_even_offset_pct
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
        trailing_distance_pct=rules.params.trailing_distance_pct,
        pump_override_applied=False,
        spoofing_override_applied=False,
        volatility_override_applied=False,
    )
