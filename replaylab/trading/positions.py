"""Pending entries, resting limit orders, positions, and the trades they become: the accounting of fills.

An open position is changed only here, so that quantity, fees and PnL always fit each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from replaylab.features import usable_price
from replaylab.trading import formulas
from replaylab.trading.rules import Instrument, Rules


class Fill(NamedTuple):
    """Price of a market fill; ``thin``: it went beyond the visible book."""

    price: float
    thin: bool = False


@dataclass(slots=True)
class RestingLimit:
    """A limit order in the book. ``side``: +1 if it sells, −1 if it buys.

    ``ahead``: quantity in the queue ahead of it at its arrival; None where only a trade-through fills it.
    """

    price: float
    qty: float
    side: float
    ahead: float | None = None
    traded: float = 0.0

    def fills(self, price: float, limit_fill: str, payload: Mapping[str, Any]) -> bool:
        """Take a later price event, ``payload`` included for "queue"; return whether it fills the order."""
        if limit_fill == "touch":
            return formulas.target_hit(price, self.price, self.side)
        if formulas.traded_through(price, self.price, self.side):
            return True
        if self.ahead is None or price != self.price:
            return False
        # A trade of the order's own side at its price takes from the other side of the book.
        if payload.get("side") != ("SELL" if self.side > 0.0 else "BUY"):
            self.traded += usable_price(payload.get("qty")) or 0.0
        return self.traded >= self.ahead + self.qty


@dataclass(slots=True)
class PendingEntry:
    """An entry order between its decision and its end. ``limit`` is None for a market order.

    A LIMIT entry rests from its arrival on, when ``resting`` is set. ``order`` is empty while nothing is recorded.
    """

    direction: float
    due: int
    limit: float | None = None
    qty: float = 0.0
    resting: RestingLimit | None = None
    order: str = ""


@dataclass(slots=True)
class Position:
    """One open position. Prices in quote currency, quantities in base currency, times in ns.

    ``tp1_qty`` = 0: there is no TP1. ``closing_due``: set once a stop with latency was touched. The targets rest from
    the entry's event on. Order ids are empty while nothing is recorded.
    """

    symbol: str
    instrument: Instrument
    direction: float
    entry_index: int
    entry_ts: int
    entry: float
    qty: float
    left: float
    tp1: float
    tp2: float
    tp1_qty: float
    stop: float
    best: float
    high: float
    low: float
    target1: RestingLimit
    target2: RestingLimit
    thin: bool = False
    gross: float = 0.0
    fees: float = 0.0
    funding: float = 0.0
    stop_reason: str = "STOP_LOSS"
    tp1_filled: bool = False
    exit_reason: str | None = None
    exit_due: int = 0
    closing_due: int | None = None
    touched: bool = False
    order_tp1: str = ""
    order_tp2: str = ""
    order_stop: str = ""
    order_exit: str = ""

    @classmethod
    def open(
        cls,
        rules: Rules,
        symbol: str,
        instrument: Instrument,
        *,
        direction: float,
        fill: Fill,
        qty: float,
        index: int,
        ts: int,
        printed: float,
    ) -> Position:
        """Return the position that an entry's fill opens, with its levels; ``printed`` is the event's price."""
        p, price, tick = rules.params, fill.price, instrument.tick
        tp1 = formulas.rounded_price(formulas.target_price(price, direction, p.tp1_pct), direction, *tick)
        tp2 = formulas.rounded_price(formulas.target_price(price, direction, p.tp2_pct), direction, *tick)
        stop = formulas.rounded_price(formulas.stop_price(price, direction, p.sl_pct), -direction, *tick)
        tp1_qty = qty
        if p.tp1_fraction < 1.0:
            part = formulas.rounded_qty(formulas.tp1_qty(qty, p.tp1_fraction), *instrument.lot)
            tp1_qty = part if part < qty else 0.0
        return cls(
            symbol=symbol,
            instrument=instrument,
            direction=direction,
            entry_index=index,
            entry_ts=ts,
            entry=price,
            qty=qty,
            left=qty,
            tp1=tp1,
            tp2=tp2,
            tp1_qty=tp1_qty,
            stop=stop,
            best=printed,
            high=printed,
            low=printed,
            target1=RestingLimit(tp1, tp1_qty, direction),
            target2=RestingLimit(tp2, qty, direction),
            thin=fill.thin,
        )

    @property
    def side(self) -> str:
        return "LONG" if self.direction > 0 else "SHORT"

    def stop_level(self, price: float) -> float:
        """Return the price of a stop on its tick: away from the market."""
        return formulas.rounded_price(price, -self.direction, *self.instrument.tick)

    def unrealized(self, price: float) -> float:
        """PnL of what is left at ``price``, before the fees of closing it."""
        return formulas.gross_pnl(price, self.entry, self.left, self.direction)

    def pay_entry(self, fee_bps: float) -> float:
        """Pay the fee of the entry; return the PnL that this realises."""
        self.fees = formulas.fee(self.entry, self.qty, fee_bps)
        return -self.fees

    def fill_tp1(self, fee_bps: float) -> float:
        """Close TP1's share at its price; return the PnL that this realises."""
        gross = formulas.gross_pnl(self.tp1, self.entry, self.tp1_qty, self.direction)
        fee = formulas.fee(self.tp1, self.tp1_qty, fee_bps)
        self.tp1_filled = True
        self.left = formulas.remaining_qty(self.qty, self.tp1_qty)
        self.gross += gross
        self.fees += fee
        return formulas.realized_pnl(gross, fee)

    def settle(self, mark: float, funding_rate: float) -> float:
        """Settle one funding on the open quantity; return its cash."""
        cash = formulas.funding_cash(self.left, mark, funding_rate, self.direction)
        self.funding += cash
        return cash

    def pnl_at(self, price: float, fee_bps: float) -> float:
        """PnL of the whole trade, were what is left closed at a fill price."""
        gross = self.gross + formulas.gross_pnl(price, self.entry, self.left, self.direction)
        return (
            formulas.realized_pnl(gross, self.fees + formulas.fee(price, self.left, fee_bps)) + self.funding
        )

    def close(self, fill: Fill, fee_bps: float, reason: str) -> tuple[float, float]:
        """Close what is left; return the trade's close price and the PnL that this last fill realises.

        After a TP1 of the whole quantity nothing is left: the trade ends at TP1 and nothing more is realised.
        """
        if self.tp1_filled and reason == "TP1":
            return self.tp1, 0.0
        gross = formulas.gross_pnl(fill.price, self.entry, self.left, self.direction)
        fee = formulas.fee(fill.price, self.left, fee_bps)
        self.gross += gross
        self.fees += fee
        self.thin = self.thin or fill.thin
        price = fill.price
        if self.tp1_filled:
            price = formulas.weighted_price(self.tp1, self.tp1_qty, fill.price, self.left)
        return price, formulas.realized_pnl(gross, fee)


@dataclass(frozen=True, slots=True)
class ClosedTrade:
    """One closed position.

    ``entry_index`` and ``exit_index`` are positions of price events in the session, ``entry_ts`` and ``exit_ts``
    nanoseconds since 1970. Prices, fees, ``funding`` and PnL in quote currency, ``qty`` in base currency. ``reason`` is
    that of the last exit: STOP_LOSS, BREAK_EVEN, TRAILING, TP1, TP2, TIMEOUT, SCORE_EXIT, RISK_EXIT, DATA_GAP or
    SESSION_END. ``thin``: a market fill of it went beyond the visible book. ``gap_pnl``, for DATA_GAP: the PnL had the
    trade been closed at the first price after the hole.
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
    funding: float = 0.0
    thin: bool = False
    gap_pnl: float | None = None

    @classmethod
    def of(
        cls,
        position: Position,
        index: int,
        ts: int,
        close_price: float,
        reason: str,
        *,
        leverage: float,
        gap_pnl: float | None,
    ) -> ClosedTrade:
        """Return the trade of a position that was closed at a price event."""
        best, worst = position.high, position.low
        if position.direction < 0:
            best, worst = worst, best
        mfe = formulas.excursion(best, position.entry, position.qty, position.direction)
        mae = formulas.excursion(worst, position.entry, position.qty, position.direction)
        return cls(
            symbol=position.symbol,
            side=position.side,
            entry_index=position.entry_index,
            exit_index=index,
            entry_ts=position.entry_ts,
            exit_ts=ts,
            entry_price=position.entry,
            close_price=close_price,
            qty=position.qty,
            leverage=leverage,
            reason=reason,
            tp1_filled=position.tp1_filled,
            fees=position.fees,
            realized_pnl=formulas.realized_pnl(position.gross, position.fees) + position.funding,
            mfe=mfe if mfe > 0.0 else 0.0,
            mae=mae if mae < 0.0 else 0.0,
            duration_seconds=formulas.duration_seconds(position.entry_ts, ts),
            funding=position.funding,
            thin=position.thin,
            gap_pnl=gap_pnl,
        )
