"""Binance: downloads of trades and aggregated trades, and websocket captures.

A capture has lines of local time, a space, the raw JSON; as recorders of hftbacktest and others write them. Read are
``trade`` or ``aggTrade`` (the one that comes first), ``depthUpdate`` and REST snapshots (``lastUpdateId``), of spot and
of USD-M or COIN-M futures, as raw messages or under ``{"stream", "data"}``. A ``bookTicker`` makes no row; where it
names an update that ends a depth message, it is compared with the book that the depth messages make.

**Continuity.** Futures: each ``pu`` is the ``u`` before it. Spot: each ``U`` is the ``u`` before it plus one. Where
not, messages are missing: a gap of the book.

**Snapshots.** A REST answer arrives late: updates newer than it may be in already. They are applied to it, so that
the snapshot row says what the book was when the snapshot came in, on either clock. Updates that a snapshot already
contains are left out. Source: "How to manage a local order book correctly", Binance API documentation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from replaylab.errors import HistoryError
from replaylab.features import Levels
from replaylab.importers.intake import Intake
from replaylab.importers.messages import Arrival, SymbolRows, levels, number_of, positive, read_lines
from replaylab.importers.text_tables import Clock, TradeTable, read_trades

_REMEMBERED = 5_000  # updates that a late snapshot may still need
_COMMON = {
    "time": ("time", "transacttime", "transactiontime", "timestamp"),
    "received": ("timestampofreceive", "receivetime", "localtimestamp"),
    "price": ("price",),
    "maker": ("isbuyermaker", "isbuyermarketmaker"),
    "symbol": ("symbol",),
    "kind": ("xunknownparameter", "x"),
}
_SINGLE = TradeTable(
    names={**_COMMON, "qty": ("qty", "quantity"), "id": ("id", "tradeid")},
    headerless=(
        ("id", "price", "qty", "", "time", "maker"),
        ("id", "price", "qty", "", "time", "maker", ""),
    ),
    required=("time", "price", "qty", "maker", "id"),
    units=("ms", "us"),
    numbered=True,
    file_symbol=lambda name: symbol_before(name, "-trades-"),
)
_AGGREGATED = TradeTable(
    names={**_COMMON, "qty": ("quantity", "qty"), "id": ("aggtradeid", "aggid", "aggregatetradeid")},
    headerless=(
        ("id", "price", "qty", "", "", "time", "maker"),
        ("id", "price", "qty", "", "", "time", "maker", ""),
    ),
    required=("time", "price", "qty", "maker", "id"),
    units=("ms", "us"),
    numbered=True,
    file_symbol=lambda name: symbol_before(name, "-aggTrades-"),
)


def read_single(files: Iterable[Path], intake: Intake) -> None:
    """Read ``SYMBOL-trades-DATE`` files: spot, USD-M and COIN-M futures; with a header or without.

    Spot files count in microseconds from 2025 on, in milliseconds before; the importer detects it.
    """
    intake.known_contract = coin_margined
    read_trades(files, intake, _SINGLE)


def read_aggregated(files: Iterable[Path], intake: Intake) -> None:
    """Read ``SYMBOL-aggTrades-DATE`` files: a row per taker order and price.

    They are the same market as single trades: import one of both per symbol, or give one a name of its own
    (``save_as``), else every trade counts twice.
    """
    intake.known_contract = coin_margined
    read_trades(files, intake, _AGGREGATED)


def read_capture(files: Iterable[Path], intake: Intake) -> None:
    """Read captures in the order given; a pair of files that continue each other is one capture."""
    intake.known_contract = coin_margined
    capture = _Capture(intake)
    read_lines(files, intake, capture.symbols, capture.take)
    capture.finish()


def coin_margined(symbol: str) -> float | None:
    """Return the USD per contract of a COIN-M symbol such as BTCUSD_PERP: 100 for BTC, 10 for others; else None.

    Source: Binance COIN-M contract specifications.
    """
    base, found, _ = symbol.partition("USD_")
    if not (found and base):
        return None
    return 100.0 if base == "BTC" else 10.0


def binance_instruments(answer: Any) -> dict[str, dict[str, Any]]:
    """Return the instruments of an ``exchangeInfo`` answer of spot or futures; {} for others."""
    rows = answer.get("symbols") if isinstance(answer, dict) else None
    found = {}
    for row in rows if isinstance(rows, list) else ():
        given = row.get("filters") if isinstance(row, dict) else None
        if not isinstance(given, list) or not isinstance(row.get("symbol"), str):
            continue
        filters = {str(one.get("filterType")): one for one in given if isinstance(one, dict)}
        notional = filters.get("NOTIONAL") or filters.get("MIN_NOTIONAL") or {}
        found[row["symbol"]] = {
            "tickSize": number_of(filters.get("PRICE_FILTER", {}).get("tickSize")),
            "lotSize": number_of(filters.get("LOT_SIZE", {}).get("stepSize")),
            "minNotionalUsd": number_of(notional.get("minNotional") or notional.get("notional")),
            "contractSize": number_of(row.get("contractSize")) if "USD_" in row["symbol"] else None,
        }
    return found


def symbol_before(name: str, mark: str) -> str | None:
    """Return the symbol that a file's name has before ``mark``, such as ``-trades-``; None without one."""
    symbol, found, _ = name.partition(mark)
    return symbol if found and symbol.replace("_", "").isalnum() and symbol == symbol.upper() else None


class _Symbol(SymbolRows):
    """What is kept of one symbol between messages."""

    numbered = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.last_exchange: int | None = None
        self.trades: str | None = None  # the stream that trades are taken from: trade or aggTrade
        self.recent: deque[tuple[int, Levels, Levels]] = deque(maxlen=_REMEMBERED)
        self.snapshot_id: int | None = None  # lastUpdateId of the last snapshot
        self.waiting: tuple[int, int, Levels, Levels] | None = None  # a snapshot without an exchange time
        self.stale = 0


class _Capture:
    """The lines of one capture: clocks, and what is kept of each symbol."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.local = Clock("local time", None, ("ms", "us", "ns"))
        self.clock = Clock("exchange time", None, ("ms", "us"))
        self.symbols: dict[str, _Symbol] = {}
        self.handlers = {
            "trade": self._trade,
            "aggTrade": self._trade,
            "depthUpdate": self._depth,
            "snapshot": self._snapshot,
            "bookTicker": self._ticker,
        }

    def take(self, line: bytes, number: int) -> bool:
        """Take one line; return whether it made rows."""
        intake = self.intake
        stamp, _, rest = line.partition(b" ")
        if not stamp.isdigit():
            raise ValueError("expected a local time and a space before the JSON")
        received = self.local.ns(int(stamp))
        try:
            message = orjson.loads(rest)
            stream = message.get("stream", "")
            data = message.get("data", message)
            kind = "snapshot" if "lastUpdateId" in data else data.get("e") or _kind_of(stream, data)
            symbol = self._symbol_of(data, stream)
        except (ValueError, AttributeError, TypeError):
            raise ValueError("the message is not a JSON object") from None
        handler = self.handlers.get(kind)
        if handler is None:
            intake.note(f"messages of the kind {kind!r} are not read")
            return False
        if symbol is None:
            raise ValueError("the line does not say which symbol this snapshot is of: give symbol=...")
        if not intake.wants(symbol):
            return False
        try:
            return handler(self.symbols.setdefault(symbol, _Symbol(symbol)), data, number, received)
        except HistoryError:
            raise
        except KeyError as error:
            raise ValueError(f"{kind}: no field {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{kind}: {error}") from None

    def finish(self) -> None:
        for file in self.intake.report.files if self.local.unit else ():
            self.intake.note(f"{file.name}: local time in {self.local.unit}")
        for one in self.symbols.values():
            self._release(one, None)
            one.finish(self.intake)
            if one.stale:
                self.intake.note(
                    f"{one.name}: {one.stale} depth messages that a snapshot already contained were left out"
                )

    def _symbol_of(self, data: dict[str, Any], stream: str) -> str | None:
        if "s" in data:
            return str(data["s"])
        if "@" in stream:
            return stream.partition("@")[0].upper()
        # REST answers name no symbol. A capture of one symbol leaves no doubt; at its start the name may help.
        if len(self.symbols) == 1:
            return next(iter(self.symbols))
        name = self.intake.file.name.partition("_")[0].partition(".")[0].upper()
        return self.intake.symbol or (name if not self.symbols and name.isalnum() else None)

    def _trade(self, one: _Symbol, data: dict[str, Any], number: int, received: int) -> bool:
        kind = data.get("e", "trade")
        if one.trades is None:
            one.trades = kind
        elif one.trades != kind:
            self.intake.note(
                f"{one.name}: {kind} left out, as {one.trades} came first: each is the whole market"
            )
            return False
        price, qty = positive(data["p"], "p"), positive(data["q"], "q")
        exchange = self.clock.ns(data["T"])
        identity = int(data["t" if kind == "trade" else "a"])
        if not isinstance(data["m"], bool):
            raise ValueError(f"m must be true or false, found {data['m']!r}")
        one.trade(
            Arrival(number, exchange, received),
            price,
            qty,
            "SELL" if data["m"] else "BUY",
            trade_id=str(identity),
            off_market=data.get("X", "MARKET") != "MARKET",
            seq=identity,
        )
        return True

    def _depth(self, one: _Symbol, data: dict[str, Any], number: int, received: int) -> bool:
        first, last = int(data["U"]), int(data["u"])
        bids, asks = levels(data["b"]), levels(data["a"])
        exchange = self.clock.ns(data.get("T", data["E"]))
        before = int(data["pu"]) if "pu" in data else first - 1
        if one.last_update is not None and before != one.last_update:
            one.gap(self.intake, one.last_update, first, number)
        elif one.last_update is None and one.snapshot_id is not None and before > one.snapshot_id:
            one.gap(self.intake, one.snapshot_id, first, number)
        one.last_update = last
        if one.snapshot_id is not None and last <= one.snapshot_id:
            one.stale += 1
            return False
        one.last_exchange = exchange
        one.recent.append((last, bids, asks))
        self._release(one, exchange)
        one.delta(self.intake.file, Arrival(number, exchange, received), bids, asks, last)
        return True

    def _snapshot(self, one: _Symbol, data: dict[str, Any], number: int, received: int) -> bool:
        last = int(data["lastUpdateId"])
        bids, asks = levels(data["bids"]), levels(data["asks"])
        moment = data.get("T") or data.get("E")
        exchange = None if moment is None else self.clock.ns(moment)
        if one.known and one.last_update == last:
            one.compare(bids, asks, self.intake)
        newest = one.last_update if one.last_update is not None and one.last_update > last else None
        if newest is not None and one.recent[0][0] > last + 1 and one.snapshot_id is None:
            self.intake.note(
                f"{self.intake.file.name}:{number}: the snapshot is older than the depth messages before it reach"
            )
        one.snapshot_id = last
        one.replace(bids, asks)
        for update, more_bids, more_asks in one.recent:
            if update > last:
                one.book.update(more_bids, more_asks)
        one.recent.clear()
        bids, asks = one.book.levels()
        if newest is not None:
            one.snapshot(Arrival(number, one.last_exchange, received), bids, asks, newest)
        elif exchange is not None:
            one.snapshot(Arrival(number, exchange, received), bids, asks, last)
        else:
            self._release(one, None)
            one.waiting = (number, received, bids, asks)
        return True

    def _release(self, one: _Symbol, exchange: int | None) -> None:
        """Write a snapshot that has no exchange time: it was true just before the next update at the latest."""
        if one.waiting is None:
            return
        number, received, bids, asks = one.waiting
        one.waiting = None
        moment = received if exchange is None else min(received, exchange)
        self.intake.note(
            f"{one.name}: a snapshot carries no exchange time; it is placed before the update that follows it"
        )
        one.snapshot(Arrival(number, moment, received), bids, asks, one.snapshot_id or 0)

    def _ticker(self, one: _Symbol, data: dict[str, Any], number: int, received: int) -> bool:
        """Compare the best bid and ask where the ticker is exactly of the last depth message's end."""
        if one.known and one.last_update == data["u"]:
            tape = self.intake.tape("book", one.name)
            tape.checked += 1
            best = ((float(data["b"]), float(data["B"])), (float(data["a"]), float(data["A"])))
            tape.disagreed += (one.book.best_bid(), one.book.best_ask()) != best
        return False


def _kind_of(stream: str, data: dict[str, Any]) -> str:
    """Spot bookTickers carry no event name."""
    return "bookTicker" if stream.endswith("@bookTicker") or {"u", "b", "B", "a", "A"} <= data.keys() else "?"
