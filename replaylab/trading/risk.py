"""The account over all symbols: limits on entries, the day's realised PnL, and the risk snapshot's figures."""

from __future__ import annotations

from replaylab.records import DailyRiskStats
from replaylab.timestamps import NS_PER_DAY, date_key
from replaylab.trading import formulas
from replaylab.trading.rules import Rules

__all__ = ["RiskEngine"]


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
        if rules.max_open_positions is not None and self.open_count >= rules.max_open_positions:
            return "max_open_positions reached"
        if rules.max_trades_per_day is not None and self._entries_on(ts) >= rules.max_trades_per_day:
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
        limit = self._rules.max_daily_loss_usd
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
        limit = self._rules.max_trades_per_day
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
