"""Bybit v5 websocket messages: ``orderbook.DEPTH.SYMBOL`` and ``publicTrade.SYMBOL``; shared by archive and capture.

A book row's exchange time is ``cts``, when the matching engine made it (the same clock as a trade's ``T``); without it
``ts``. Each delta's ``u`` is the one before it plus one, else messages are missing. A snapshot, or ``u`` = 1 after a
restart of the service, starts the book anew. Block trades (``BT``) happen off the book and are flagged as off the
market.
"""

from __future__ import annotations

from typing import Any

from replaylab.importers.books import SymbolRows, levels, positive
from replaylab.importers.clocks import Clock
from replaylab.importers.intake import Intake

__all__ = ["BybitSymbol", "take_message"]

_SIDES = {"Buy": "BUY", "Sell": "SELL"}


class BybitSymbol(SymbolRows):
    """What is kept of one symbol of one market between messages."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.last_update: int | None = None


def take_message(
    one: BybitSymbol, message: dict[str, Any], number: int, received: int | None, clock: Clock, intake: Intake
) -> bool:
    """Take in one message; return whether it made rows. Raises KeyError, TypeError or ValueError if malformed."""
    if message["topic"].startswith("publicTrade."):
        return _trades(one, message, number, received, clock, intake)
    return _book(one, message, number, received, clock, intake)


def _trades(
    one: BybitSymbol, message: dict[str, Any], number: int, received: int | None, clock: Clock, intake: Intake
) -> bool:
    rows = []
    for index, trade in enumerate(message["data"]):
        if trade["S"] not in _SIDES:
            raise ValueError(f"S must be Buy or Sell, found {trade['S']!r}")
        rows.append(
            (
                number,
                clock.ns(int(trade["T"]), intake.file.name, number),
                received,
                positive(trade["p"], "p"),
                positive(trade["v"], "v"),
                _SIDES[trade["S"]],
                str(trade["i"]),
                trade.get("BT", False) is True,
                number * 4096 + index,
            )
        )
    one.trades.rows += rows
    return bool(rows)


def _book(
    one: BybitSymbol, message: dict[str, Any], number: int, received: int | None, clock: Clock, intake: Intake
) -> bool:
    data = message["data"]
    kind, update = message["type"], int(data["u"])
    bids, asks = levels(data["b"]), levels(data["a"])
    exchange = clock.ns(int(message.get("cts") or message["ts"]), intake.file.name, number)
    seq = int(data.get("seq", update))
    if kind == "snapshot" or update == 1:
        if one.kept.known and update == one.last_update:
            one.kept.compare(bids, asks, intake.tape("book", one.name))
        one.snapshot(number, exchange, received, bids, asks, seq)
    elif kind == "delta":
        if one.last_update is not None and update != one.last_update + 1:
            intake.gap("book", one.name, "id", one.last_update, update, number)
        one.delta(intake.file, number, exchange, received, bids, asks, seq)
    else:
        raise ValueError(f"type must be snapshot or delta, found {kind!r}")
    one.last_update = update
    return True
