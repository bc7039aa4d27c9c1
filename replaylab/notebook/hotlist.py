"""The hotlist: score, state, position and PnL of each symbol, from the events and records of a replay. No widgets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from replaylab.features import usable_number

_OPEN = ("LONG", "SHORT")


@dataclass
class Row:
    """One symbol. Prices and PnL in quote currency, ``qty`` in base currency (0 = no position)."""

    symbol: str
    score: float | None = None
    regime: str | None = None
    state: str = "IDLE"
    price: float | None = None
    side: str | None = None
    entry_price: float | None = None
    qty: float = 0.0
    realized_pnl: float = 0.0
    trades: int = 0
    levels: dict[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def open_pnl(self) -> float:
        """PnL of the open position at the last price, before fees."""
        if self.side not in _OPEN or self.price is None or self.entry_price is None:
            return 0.0
        return (1 if self.side == "LONG" else -1) * (self.price - self.entry_price) * self.qty

    @property
    def pnl(self) -> float:
        """Realised PnL of this run and the open one."""
        return self.realized_pnl + self.open_pnl


class Hotlist:
    """Symbols ranked by the size of their current score.

    >>> hotlist = Hotlist()
    >>> hotlist.state({"symbol": "BTCUSDT", "eventType": "SCORING_UPDATE", "toState": "IDLE",
    ...                "timestamp": "2025-11-18T10:00:00.000Z", "extra": {"score": -0.7, "price": 90000.0}})
    >>> [(row.symbol, row.score) for row in hotlist.ranked()]
    [('BTCUSDT', -0.7)]
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def row(self, symbol: str) -> Row:
        """The row of a symbol, made where there is none."""
        return self.rows.setdefault(symbol, Row(symbol))

    def ranked(self) -> list[Row]:
        """Rows by abs(score), the greatest first; those without a score last."""
        return sorted(
            self.rows.values(),
            key=lambda row: (row.score is None, -abs(row.score or 0.0), row.symbol),
        )

    def record(self, kind: str, record: dict[str, Any]) -> None:
        """Apply a record that the run logged: kind "state", "order" or "trade"."""
        {"state": self.state, "order": self.order, "trade": self.trade}[kind](record)

    def state(self, event: dict[str, Any]) -> None:
        """Apply a StateEvent."""
        row = self.row(event["symbol"])
        extra = event["extra"]
        row.state = event["toState"]
        kind = event["eventType"]
        if kind == "SCORING_UPDATE":
            score = usable_number(extra.get("score"))
            if score is not None:
                side = extra.get("side")
                row.score = abs(score) * (1 if side == "LONG" else -1) if side in _OPEN else score
            row.price = usable_number(extra.get("price")) or row.price
        elif kind == "REGIME_UPDATE":
            row.regime = str(extra.get("regime"))
        elif kind == "EXECUTION_FILL":
            row.side = event["toState"]
            row.entry_price, row.qty = (
                usable_number(extra.get("price")),
                usable_number(extra.get("qty")) or 0.0,
            )
        elif kind == "EXECUTION_PARTIAL":
            row.qty -= usable_number(extra.get("qty")) or 0.0
        elif kind == "EXECUTION_EXIT":
            row.side, row.entry_price, row.qty = None, None, 0.0

    def order(self, order: dict[str, Any]) -> None:
        """Apply an order: those that rest are levels, of a position or of a LIMIT entry that waits for its fill."""
        levels = self.row(order["symbol"]).levels
        if order["status"] != "NEW":
            levels.pop(order["clientOrderId"], None)
            return
        price = order["triggerPrice"] if order["triggerPrice"] is not None else order["price"]
        kind = "stop" if order["type"] == "STOP_MARKET" else "target" if order["reduceOnly"] else "entry"
        if order["type"] != "MARKET" and price is not None:
            levels[order["clientOrderId"]] = (kind, price)

    def trade(self, trade: dict[str, Any]) -> None:
        """Apply a closed trade."""
        row = self.row(trade["symbol"])
        row.realized_pnl += trade["realizedPnl"]
        row.trades += 1
