"""Bybit: downloads of trades and order books, and captures of v5 websocket messages.

Messages are ``orderbook.DEPTH.SYMBOL`` and ``publicTrade.SYMBOL``. A book row's exchange time is ``cts``, when the
matching engine made it (the same clock as a trade's ``T``); without it ``ts``. Each delta's ``u`` is the one before it
plus one, else messages are missing. A snapshot, or ``u`` = 1 after a restart of the service, replaces the book. Block
trades (``BT``) happen off the book and are flagged as off the market.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from replaylab.errors import HistoryError, TimeError
from replaylab.importers.intake import Intake
from replaylab.importers.messages import Arrival, SymbolRows, levels, number_of, positive, read_lines
from replaylab.importers.text_tables import Clock, TradeTable, read_trades
from replaylab.timestamps import decimal_to_ns

_SIDES = {"Buy": "BUY", "Sell": "SELL"}
_MARKETS = ("linear", "inverse", "spot", "option")
_TRADES = TradeTable(
    names={
        "time": ("timestamp",),
        "symbol": ("symbol",),
        "side": ("side",),
        "qty": ("size", "volume"),
        "price": ("price",),
        "id": ("trdmatchid", "id"),
    },
    required=("time", "price", "qty", "side"),
    units=("s", "ms"),
    short_header=True,
    file_symbol=lambda name: _symbol_before_date(name),
)


def read_table(files: Iterable[Path], intake: Intake) -> None:
    """Read ``SYMBOLYYYY-MM-DD.csv.gz`` files of derivatives (decimal s), or ``SYMBOL_YYYY-MM-DD.csv.gz`` of spot (ms).

    Old files of derivatives run newest first.
    """
    read_trades(files, intake, _TRADES)


def read_book(files: Iterable[Path], intake: Intake) -> None:
    """Read order book archives ``YYYY-MM-DD_SYMBOL_ob500.data.zip`` of any depth, in the order given.

    A line is a websocket message; raw captures without an envelope have the same form.
    """
    stream = _Stream(intake)

    def take(line: bytes, number: int) -> bool:
        try:
            message = orjson.loads(line)
            topic = message["topic"]
            name = topic.rpartition(".")[2]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError("expected a JSON object with a topic") from None
        return stream.take(name, topic, message, number, None)

    read_lines(files, intake, stream.symbols, take)
    stream.finish()


def read_capture(files: Iterable[Path], intake: Intake, *, market: str | None = None) -> None:
    """Read captures, JSON Lines of ``{"t", "conn", "ts", "data": "<raw message>"}``, as cryptofeed records them.

    Read are older captures of cryptofeed too: lines of local time, ``: `` and the message, ``ADDRESS <-> time`` where a
    connection begins.

    ``ts`` is local time in decimal seconds. The address of a connection (in its ``connect`` line) names the market.
    Linear and inverse contracts keep their symbol; the same symbol on the spot market is another one and gets
    ``@spot`` after it. ``market`` ("linear", "inverse", "spot") takes one market only.
    """
    if market is not None and market not in _MARKETS:
        raise HistoryError(f"market is one of {', '.join(_MARKETS)}, found {market!r}")
    stream = _Stream(intake)
    markets: dict[str, str] = {}
    # An inverse contract is 1 USD.
    intake.known_contract = lambda name: 1.0 if name in stream.inverse else None

    def take(line: bytes, number: int) -> bool:
        try:
            envelope = _older_envelope(line) if line[:1] != b"{" else orjson.loads(line)
            kind, connection = envelope["t"], envelope.get("conn", "")
            if kind == "connect":
                markets[connection] = str(envelope.get("addr", "")).rstrip("/").rpartition("/")[2]
            message = _inner(envelope)
            if kind == "http":
                intake.instruments |= bybit_instruments(orjson.loads(envelope["data"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError("expected a JSON object with t, conn, ts and data") from None
        topic = str(message.get("topic", ""))
        place = markets.get(connection, "linear")
        if not topic or (market is not None and place != market):
            if topic:
                intake.leave_out()
            return False
        name = topic.rpartition(".")[2]
        if place == "inverse":
            stream.inverse.add(name)
        try:
            # repr of the float has the digits of the file, which has 17 at the most.
            received = decimal_to_ns(repr(envelope["ts"]), "s")
        except TimeError as error:
            raise ValueError(f"ts: {error}") from None
        return stream.take(f"{name}@spot" if place == "spot" else name, topic, message, number, received)

    read_lines(files, intake, stream.symbols, take)
    stream.finish()


def _symbol_before_date(name: str) -> str | None:
    """Return the symbol of ``SYMBOLYYYY-MM...`` and ``SYMBOL_YYYY-MM...``."""
    for at, mark in enumerate(name):
        if mark == "-" and name[max(at - 4, 0) : at].isdigit() and name[at + 1 : at + 3].isdigit():
            symbol = name[: at - 4].rstrip("_-")
            return symbol if symbol.isalnum() and symbol == symbol.upper() else None
    return None


def bybit_instruments(answer: Any) -> dict[str, dict[str, Any]]:
    """Return the instruments of an ``instruments-info`` answer, spot symbols with ``@spot``; {} for other answers."""
    given = answer.get("result") if isinstance(answer, dict) else None
    result: dict[str, Any] = given if isinstance(given, dict) else {}
    rows = result.get("list")
    found = {}
    for row in rows if isinstance(rows, list) else ():
        price, lot = (
            (row.get("priceFilter"), row.get("lotSizeFilter")) if isinstance(row, dict) else (None, None)
        )
        if not (isinstance(price, dict) and isinstance(lot, dict) and isinstance(row.get("symbol"), str)):
            continue
        name = f"{row['symbol']}@spot" if result.get("category") == "spot" else row["symbol"]
        found[name] = {
            "tickSize": number_of(price.get("tickSize")),
            "lotSize": number_of(lot.get("qtyStep") or lot.get("basePrecision")),
            "minNotionalUsd": number_of(lot.get("minNotionalValue") or lot.get("minOrderAmt")),
            "contractSize": 1.0 if result.get("category") == "inverse" else None,
        }
    return found


def _older_envelope(line: bytes) -> dict[str, Any]:
    """Return a line of an older cryptofeed capture in the form of newer ones. Raises ValueError."""
    text = line.decode()
    address, connects, _ = text.partition(" <-> ")
    if connects:
        return {"t": "connect", "addr": address}
    if text.startswith("configuration: ") or " <- " in text[:200] or " -> " in text[:200]:
        return {"t": "other"}
    stamp, _, message = text.partition(": ")
    return {"t": "recv", "ts": float(stamp), "data": message}


def _inner(envelope: dict[str, Any]) -> dict[str, Any]:
    """Return the message inside, or nothing where the line is a header, a request or an answer to one."""
    if envelope["t"] not in ("recv", "ws") or not isinstance(envelope.get("data"), str):
        return {}
    message = orjson.loads(envelope["data"])
    return message if isinstance(message, dict) else {}


class _Stream:
    """The messages of one import: a clock, and what is kept of each symbol between messages."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.clock = Clock("exchange time", None, ("ms",))
        self.symbols: dict[str, SymbolRows] = {}
        self.inverse: set[str] = set()

    def take(self, name: str, topic: str, message: dict[str, Any], number: int, received: int | None) -> bool:
        """Take one message; return whether it made rows. Raises KeyError, TypeError or ValueError if malformed."""
        trades = topic.startswith("publicTrade.")
        if not (trades or topic.startswith("orderbook.")) or not self.intake.wants(name):
            return False
        one = self.symbols.setdefault(name, SymbolRows(name))
        return (self._trades if trades else self._book)(one, message, number, received)

    def finish(self) -> None:
        for one in self.symbols.values():
            one.finish(self.intake)

    def _ns(self, value: Any) -> int:
        return self.clock.ns(int(value))

    def _trades(self, one: SymbolRows, message: dict[str, Any], number: int, received: int | None) -> bool:
        rows = []
        for index, trade in enumerate(message["data"]):
            if trade["S"] not in _SIDES:
                raise ValueError(f"S must be Buy or Sell, found {trade['S']!r}")
            at = Arrival(number, self._ns(trade["T"]), received)
            price, qty = positive(trade["p"], "p"), positive(trade["v"], "v")
            flags: dict[str, Any] = {
                "trade_id": str(trade["i"]),
                "off_market": trade.get("BT", False) is True,
            }
            rows.append((at, price, qty, _SIDES[trade["S"]], {**flags, "seq": number * 4096 + index}))
        # All or none: a malformed trade rejects the message.
        for at, price, qty, side, rest in rows:
            one.trade(at, price, qty, side, **rest)
        return bool(rows)

    def _book(self, one: SymbolRows, message: dict[str, Any], number: int, received: int | None) -> bool:
        data = message["data"]
        kind, update = message["type"], int(data["u"])
        bids, asks = levels(data["b"]), levels(data["a"])
        at = Arrival(number, self._ns(message.get("cts") or message["ts"]), received)
        seq = int(data.get("seq", update))
        if kind == "snapshot" or update == 1:
            if one.known and update == one.last_update:
                one.compare(bids, asks, self.intake)
            one.snapshot(at, bids, asks, seq)
        elif kind == "delta":
            if one.last_update is not None and update != one.last_update + 1:
                one.gap(self.intake, one.last_update, update, number)
            one.delta(self.intake.file, at, bids, asks, seq)
        else:
            raise ValueError(f"type must be snapshot or delta, found {kind!r}")
        one.last_update = update
        return True
