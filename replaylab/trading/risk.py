"""The account over all symbols: limits on entries, the day's realised PnL, and the snapshots of the risk engine."""

from __future__ import annotations

from collections.abc import Iterable

from replaylab.features import AccountStart
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
from replaylab.trading.orders import Journal, OrderRouter
from replaylab.trading.positions import Position
from replaylab.trading.rules import Rules
from replaylab.trading.state import NEVER, SymbolState


class RiskEngine:
    """Counts open, pending and carried positions, entries and losses per UTC day, and decides on entries by them."""

    def __init__(self, rules: Rules, starting_balance: float, start: AccountStart | None = None) -> None:
        self._rules = rules
        self.balance = starting_balance
        self.open_count = 0
        self._trades_day = 0
        self.entries_today = 0
        self._start_day(0)
        if start is not None:
            self._start_day(start.day)
            self._trades_day, self.entries_today = start.day, start.entries
            self.day_pnl = start.realized_pnl
            self.day_peak = max(0.0, start.realized_pnl)
            self._check_loss(start.lowest_realized_pnl)

    def _start_day(self, day: int) -> None:
        self._day = day
        self.day_pnl = 0.0
        self.day_peak = 0.0
        self.day_max_drawdown = 0.0
        self.day_wins = self.day_losses = 0
        self.loss_limit_hit = False

    def refusal(self, ts: int) -> str | None:
        """Return the limit that forbids an entry decided at ``ts``, or None."""
        limit = self._rules.params.max_open_positions
        if limit is not None and self.open_count >= limit:
            return "max_open_positions reached"
        if self.trades_limit_hit_on(ts):
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
        """Count a position that was closed, or an entry that ended without a fill."""
        self.open_count -= 1

    def realised(self, ts: int, pnl: float, *, check: bool = True) -> None:
        """Add the PnL of one fill or payment to the UTC day of ``ts`` and check the daily loss."""
        self.balance += pnl
        day = ts // NS_PER_DAY
        if day != self._day:
            if day < self._day:
                # A day that is over: no decision can depend on it.
                return
            self._start_day(day)
        self.day_pnl += pnl
        if self.day_pnl > self.day_peak:
            self.day_peak = self.day_pnl
        elif self.day_pnl - self.day_peak < self.day_max_drawdown:
            self.day_max_drawdown = self.day_pnl - self.day_peak
        if check:
            self._check_loss(self.day_pnl)

    def _check_loss(self, day_pnl: float) -> None:
        limit = self._rules.params.max_daily_loss_usd
        if limit is not None and formulas.daily_loss_reached(day_pnl, limit):
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
        if limit is None:
            return False
        return (self.entries_today if ts // NS_PER_DAY == self._trades_day else 0) >= limit

    def flags(self, ts: int) -> tuple[bool, bool]:
        """Return whether the loss limit and the trade limit of the UTC day of ``ts`` are reached."""
        return self.loss_limit_hit_on(ts), self.trades_limit_hit_on(ts)

    def daily_stats(self, ts: int) -> DailyRiskStats:
        """Return the statistics of the UTC day of ``ts``: zeros before its first fill."""
        if ts // NS_PER_DAY != self._day:
            return DailyRiskStats(date_key=date_key(ts))
        return DailyRiskStats(
            date_key=date_key(ts),
            realized_pnl=self.day_pnl,
            trades_count=self.day_wins + self.day_losses,
            wins=self.day_wins,
            losses=self.day_losses,
            max_drawdown_usd=self.day_max_drawdown,
        )


class Snapshots:
    """Writes the risk, TPSL and execution snapshots when something changed, at most once in ``interval_ns``.

    Event time, not wall time, decides: the same session writes the same snapshots at every speed.
    """

    def __init__(
        self, journal: Journal, rules: Rules, risk: RiskEngine, router: OrderRouter, interval_ns: int
    ) -> None:
        self._journal = journal
        self._rules = rules
        self._risk = risk
        self._router = router
        self._interval_ns = interval_ns
        self._written = -NEVER
        # Event time from which a write is due; NEVER while nothing has changed.
        self.due = NEVER
        self._tpsl: Position | None = None

    def changed(self, position: Position | None = None) -> None:
        """Note that an order or a flag changed, or the levels of ``position``."""
        if self.due == NEVER:
            self.due = self._written + self._interval_ns
        if position is not None:
            self._tpsl = position

    def write(self, ts: int, symbols: Iterable[SymbolState]) -> None:
        """Write the snapshots that belong to ``ts``."""
        recorder = self._journal.recorder
        if recorder is None:
            return
        self._written = ts
        self.due = NEVER
        states = list(symbols)
        timestamp = self._journal.stamp(ts)
        recorder.write_risk_snapshot(self._risk_snapshot(ts, timestamp, states))
        if self._tpsl is not None:
            recorder.write_tpsl_snapshot(self._tpsl_snapshot(self._tpsl, timestamp))
            self._tpsl = None
        waiting = sum(state.pending is not None for state in states)
        waiting += sum(state.position is not None and bool(state.position.exit_reason) for state in states)
        recorder.write_execution_snapshot(
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
        loss_hit, trades_hit = self._risk.flags(ts)
        limit = self._risk.refusal(ts)
        reasons = [f"trading blocked: {', '.join(blocked)}"] if blocked else []
        if limit == "max_open_positions reached":
            reasons.append(limit)
        if loss_hit:
            reasons.append("max_daily_loss_usd reached")
        if trades_hit:
            reasons.append("max_trades_per_day reached")
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
                trading_blocked=bool(blocked) or limit is not None,
                force_close=any(
                    state.position is not None and state.position.exit_reason == "RISK_EXIT"
                    for state in states
                ),
                daily_loss_limit_hit=loss_hit,
                max_trades_hit=trades_hit,
                reason="; ".join(reasons) or None,
            ),
        )

    def _tpsl_snapshot(self, position: Position, timestamp: str) -> TpslSnapshot:
        """Return the levels of a position; with break-even off its price is the entry's."""
        p = self._rules.params
        offset = 0.0 if p.break_even_offset_pct is None else p.break_even_offset_pct
        break_even = formulas.break_even_price(position.entry, position.direction, offset)
        return TpslSnapshot(
            timestamp=timestamp,
            symbol=position.symbol,
            side="LONG" if position.direction > 0 else "SHORT",
            entry_price=position.entry,
            tp1_price=position.tp1,
            tp2_price=position.tp2,
            stop_loss_price=position.stop,
            break_even_price=position.stop_level(break_even),
            trailing_active=position.stop_reason == "TRAILING",
            trailing_distance_pct=p.trailing_distance_pct,
            pump_override_applied=False,
            spoofing_override_applied=False,
            volatility_override_applied=False,
        )
