"""Positions and the trades they become: the accounting of fills.

An open position is changed only here, so that quantity, fees and PnL always fit each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from replaylab.trading import formulas
from replaylab.trading.rules import Rules


class Position:
    """One open position. Prices in quote currency, quantities in base currency, times in ns."""

    __slots__ = (
        "best",
        "direction",
        "entry",
        "entry_index",
        "entry_ts",
        "exit_due",
        "exit_reason",
        "fees",
        "gross",
        "high",
        "left",
        "low",
        "order_exit",
        "order_stop",
        "order_tp1",
        "order_tp2",
        "qty",
        "stop",
        "stop_reason",
        "symbol",
        "tp1",
        "tp1_filled",
        "tp1_qty",
        "tp2",
    )

    symbol: str
    direction: float
    entry_index: int
    entry_ts: int
    entry: float
    qty: float
    left: float
    gross: float
    fees: float
    tp1: float
    tp2: float
    tp1_qty: float
    tp1_filled: bool
    stop: float
    stop_reason: str
    best: float
    high: float
    low: float
    exit_reason: str | None
    exit_due: int
    # Client order ids of what rests in the (simulated) market; empty while nothing is recorded.
    order_tp1: str
    order_tp2: str
    order_stop: str
    order_exit: str

    @property
    def side(self) -> str:
        return "LONG" if self.direction > 0 else "SHORT"

    def unrealized(self, price: float) -> float:
        """PnL of what is left at ``price``, before the fees of closing it."""
        return formulas.gross_pnl(price, self.entry, self.left, self.direction)


@dataclass(frozen=True, slots=True)
class ClosedTrade:
    """One closed position.

    ``entry_index`` and ``exit_index`` are positions of price events in the session, ``entry_ts`` and ``exit_ts``
    nanoseconds since 1970. Prices, fees and PnL in quote currency, ``qty`` in base currency. ``reason`` is that of
    the last exit: STOP_LOSS, BREAK_EVEN, TRAILING, TP1, TP2, TIMEOUT, SCORE_EXIT, RISK_EXIT or SESSION_END.
    """

    symbol: str
    side: str
    entry_index: int
    exit_index: int
    entry_ts: int
    exit_ts: int
    entry_price: float
    close_price: float
    qty: float
    leverage: float
    reason: str
    tp1_filled: bool
    fees: float
    realized_pnl: float
    mfe: float
    mae: float
    duration_seconds: float


def open_position(rules: Rules, symbol: str, direction: float, index: int, ts: int, price: float) -> Position:
    """Return the position that a market entry at a price event opens, with its levels."""
    position = Position()
    entry = formulas.entry_price(price, direction, rules.slippage_bps("print"))
    position.symbol = symbol
    position.direction = direction
    position.entry_index = index
    position.entry_ts = ts
    position.entry = entry
    position.qty = position.left = rules.qty(entry)
    position.gross = 0.0
    position.fees = formulas.fee(entry, position.qty, rules.params.taker_fee_bps)
    position.tp1 = formulas.target_price(entry, direction, rules.params.tp1_pct)
    position.tp2 = formulas.target_price(entry, direction, rules.params.tp2_pct)
    position.tp1_qty = formulas.tp1_qty(position.qty, rules.params.tp1_fraction)
    position.tp1_filled = False
    position.stop = formulas.stop_price(entry, direction, rules.params.sl_pct)
    position.stop_reason = "STOP_LOSS"
    position.best = position.high = position.low = price
    position.exit_reason = None
    position.exit_due = 0
    position.order_tp1 = position.order_tp2 = position.order_stop = position.order_exit = ""
    return position


def fill_tp1(rules: Rules, position: Position) -> float:
    """Close TP1's share at its price; return the PnL that this realises."""
    gross = formulas.gross_pnl(position.tp1, position.entry, position.tp1_qty, position.direction)
    fee = formulas.fee(position.tp1, position.tp1_qty, rules.params.maker_fee_bps)
    position.tp1_filled = True
    position.left = formulas.remaining_qty(position.qty, position.tp1_qty)
    position.gross += gross
    position.fees += fee
    return formulas.realized_pnl(gross, fee)


def close(
    rules: Rules, position: Position, index: int, ts: int, price: float, fee_bps: float, reason: str
) -> tuple[ClosedTrade, float]:
    """Close what is left at a fill price; return the trade and the PnL that this last fill realises.

    After a TP1 of the whole quantity nothing is left: the trade ends at TP1 and nothing more is realised.
    """
    if position.tp1_filled and reason == "TP1":
        realised, close_price = 0.0, position.tp1
    else:
        gross = formulas.gross_pnl(price, position.entry, position.left, position.direction)
        fee = formulas.fee(price, position.left, fee_bps)
        realised = formulas.realized_pnl(gross, fee)
        position.gross += gross
        position.fees += fee
        if position.tp1_filled:
            close_price = formulas.weighted_price(position.tp1, position.tp1_qty, price, position.left)
        else:
            close_price = price
    if position.direction > 0:
        best, worst = position.high, position.low
    else:
        best, worst = position.low, position.high
    mfe = formulas.excursion(best, position.entry, position.qty, position.direction)
    mae = formulas.excursion(worst, position.entry, position.qty, position.direction)
    trade = ClosedTrade(
        position.symbol,
        position.side,
        position.entry_index,
        index,
        position.entry_ts,
        ts,
        position.entry,
        close_price,
        position.qty,
        rules.params.leverage,
        reason,
        position.tp1_filled,
        position.fees,
        formulas.realized_pnl(position.gross, position.fees),
        mfe if mfe > 0.0 else 0.0,
        mae if mae < 0.0 else 0.0,
        formulas.duration_seconds(position.entry_ts, ts),
    )
    return trade, realised
