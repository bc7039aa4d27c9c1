"""The parameters of the trading model in the form the event loop wants: times as whole nanoseconds, looked up once."""

from __future__ import annotations

from replaylab.params import TradingParams
from replaylab.trading import formulas


class Rules:
    """``TradingParams`` with times in nanoseconds; made once per system, read at every event."""

    __slots__ = (
        "allow_long",
        "allow_short",
        "allowed_regimes",
        "break_even_offset_pct",
        "cooldown_ns",
        "entry_threshold",
        "exit_threshold",
        "latency_ns",
        "leverage",
        "maker_fee_bps",
        "max_daily_loss_usd",
        "max_hold_ns",
        "max_open_positions",
        "max_trades_per_day",
        "notional_usd",
        "params",
        "risk_per_trade_usd",
        "sl_pct",
        "slippage_bps",
        "taker_fee_bps",
        "tp1_fraction",
        "tp1_pct",
        "tp2_pct",
        "trailing_activation_pct",
        "trailing_distance_pct",
    )

    def __init__(self, params: TradingParams) -> None:
        self.params = params
        self.entry_threshold = params.entry_threshold
        self.exit_threshold = params.exit_threshold
        self.allow_long = params.allow_long
        self.allow_short = params.allow_short
        regimes = params.allowed_regimes
        self.allowed_regimes = None if regimes is None else frozenset(regimes)
        self.cooldown_ns = formulas.seconds_to_ns(params.cooldown_s)
        self.max_hold_ns = None if params.max_hold_s is None else formulas.seconds_to_ns(params.max_hold_s)
        self.latency_ns = formulas.milliseconds_to_ns(params.latency_ms)
        self.tp1_pct = params.tp1_pct
        self.tp1_fraction = params.tp1_fraction
        self.tp2_pct = params.tp2_pct
        self.sl_pct = params.sl_pct
        self.break_even_offset_pct = params.break_even_offset_pct
        self.trailing_activation_pct = params.trailing_activation_pct
        self.trailing_distance_pct = params.trailing_distance_pct
        self.notional_usd = params.notional_usd
        self.risk_per_trade_usd = params.risk_per_trade_usd
        self.leverage = params.leverage
        self.max_open_positions = params.max_open_positions
        self.max_trades_per_day = params.max_trades_per_day
        self.max_daily_loss_usd = params.max_daily_loss_usd
        self.taker_fee_bps = params.taker_fee_bps
        self.maker_fee_bps = params.maker_fee_bps
        self.slippage_bps = params.print_slippage_bps

    def qty(self, entry: float) -> float:
        """Return the quantity of an entry at ``entry``, the price after slippage."""
        if self.risk_per_trade_usd is None:
            return formulas.fixed_qty(entry, self.notional_usd)
        return formulas.risk_qty(
            entry, self.sl_pct, self.risk_per_trade_usd, self.leverage, self.notional_usd
        )
