"""Binance websocket captures: local time, a space, the raw JSON; as recorders of hftbacktest and others write them.

Taken in: ``trade``, ``depthUpdate`` and REST snapshots (``lastUpdateId``), of spot and of USD-M or COIN-M futures, as
raw messages or under ``{"stream", "data"}``. A ``bookTicker`` makes no row; where it names an update that ends a depth
message, it is compared with the book that the depth messages make.

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
from replaylab.importers.books import SLICE_ROWS, Levels, SymbolRows, levels, positive
from replaylab.importers.clocks import Clock
from replaylab.importers.intake import Intake

__all__ = ["read"]

_REMEMBERED = 5_000  # updates that a late snapshot may still need


class _Symbol(SymbolRows):
    """What is kept of one symbol between messages."""

    numbered = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.last_update: int | None = None  # u of the last depth message
        self.last_exchange: int | None = None
        self.recent: deque[tuple[int, Levels, Levels]] = deque(maxlen=_REMEMBERED)
        self.snapshot_id: int | None = None  # lastUpdateId of the last snapshot
        self.waiting: tuple[int, int, Levels, Levels] | None = (
            None  # a snapshot without a time of the exchange
        )
        self.stale = 0


def read(files: Iterable[Path], intake: Intake) -> None:
    """Read captures in the order given; a pair of files that continue each other is one capture."""
    local = Clock("local time", None, ("ms", "us", "ns"))
    clock = Clock("exchange time", None, ("ms", "us"))
    symbols: dict[str, _Symbol] = {}
    for file in intake.open(files):
        for block in file.blocks():
            for number, line in enumerate(block.data.splitlines(), block.first_line):
                intake.file.lines += 1
                if not line.strip():
                    intake.file.blank += 1
                    continue
                _line(line, number, intake, symbols, local, clock)
            for one in symbols.values():
                one.hand_over(intake, SLICE_ROWS)
        for one in symbols.values():
            one.hand_over(intake)
        if local.unit:
            intake.note(f"{file.name}: local time in {local.unit}")
    for one in symbols.values():
        _release(one, None, intake)
        one.finish(intake)
        if one.stale:
            intake.note(
                f"{one.name}: {one.stale} depth messages that a snapshot already contained were left out"
            )


def _line(
    line: bytes, number: int, intake: Intake, symbols: dict[str, _Symbol], local: Clock, clock: Clock
) -> None:
    stamp, _, text = line.partition(b" ")
    if not stamp.isdigit():
        intake.reject(number, "expected a local time and a space before the JSON", line)
        return
    received = local.ns(int(stamp), intake.file.name, number)
    try:
        message = orjson.loads(text)
        stream = message.get("stream", "")
        data = message.get("data", message)
        kind = "snapshot" if "lastUpdateId" in data else data.get("e") or _kind_of(stream, data)
        symbol = _symbol_of(data, stream, symbols, intake)
    except (ValueError, AttributeError, TypeError):
        intake.reject(number, "the message is not a JSON object", line)
        return
    handler = _HANDLERS.get(kind)
    if handler is None:
        intake.file.other += 1
        if kind != "bookTicker":
            intake.note(f"messages of the kind {kind!r} are not read")
        return
    if symbol is None:
        intake.reject(number, "nothing says which symbol this snapshot is of: give symbol=...", text)
        return
    if not intake.wants(symbol):
        intake.file.other += 1
        return
    try:
        rows = handler(symbols.setdefault(symbol, _Symbol(symbol)), data, number, received, clock, intake)
    except HistoryError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else str(error)
        intake.reject(number, f"{kind}: {what}", text)
        return
    if rows:
        intake.file.rows_in_lines += 1
    else:
        intake.file.other += 1


def _kind_of(stream: str, data: dict[str, Any]) -> str:
    """Spot bookTickers carry no event name."""
    return "bookTicker" if stream.endswith("@bookTicker") or {"u", "b", "B", "a", "A"} <= data.keys() else "?"


def _symbol_of(data: dict[str, Any], stream: str, symbols: dict[str, _Symbol], intake: Intake) -> str | None:
    if "s" in data:
        return str(data["s"])
    if "@" in stream:
        return stream.partition("@")[0].upper()
    # REST answers name no symbol. A capture of one symbol leaves no doubt; at its beginning the name may help.
    if len(symbols) == 1:
        return next(iter(symbols))
    name = intake.file.name.partition("_")[0].partition(".")[0].upper()
    return intake.symbol or (name if not symbols and name.isalnum() else None)


def _trade(
    one: _Symbol, data: dict[str, Any], number: int, received: int, clock: Clock, intake: Intake
) -> bool:
    price, qty = positive(data["p"], "p"), positive(data["q"], "q")
    exchange = clock.ns(data["T"], intake.file.name, number)
    identity = int(data["t"])
    if not isinstance(data["m"], bool):
        raise ValueError(f"m must be true or false, found {data['m']!r}")
    side = "SELL" if data["m"] else "BUY"
    off_market = data.get("X", "MARKET") != "MARKET"
    one.trades.rows.append(
        (number, exchange, received, price, qty, side, str(identity), off_market, identity)
    )
    return True


def _depth(
    one: _Symbol, data: dict[str, Any], number: int, received: int, clock: Clock, intake: Intake
) -> bool:
    first, last = int(data["U"]), int(data["u"])
    bids, asks = levels(data["b"]), levels(data["a"])
    exchange = clock.ns(data.get("T", data["E"]), intake.file.name, number)
    before = int(data["pu"]) if "pu" in data else first - 1
    if one.last_update is not None and before != one.last_update:
        intake.gap("book", one.name, "id", one.last_update, first, number)
    elif one.last_update is None and one.snapshot_id is not None and before > one.snapshot_id:
        intake.gap("book", one.name, "id", one.snapshot_id, first, number)
    one.last_update = last
    if one.snapshot_id is not None and last <= one.snapshot_id:
        one.stale += 1
        return False
    one.last_exchange = exchange
    one.recent.append((last, bids, asks))
    _release(one, exchange, intake)
    one.delta(intake.file, number, exchange, received, bids, asks, last)
    return True


def _snapshot(
    one: _Symbol, data: dict[str, Any], number: int, received: int, clock: Clock, intake: Intake
) -> bool:
    last = int(data["lastUpdateId"])
    bids, asks = levels(data["bids"]), levels(data["asks"])
    moment = data.get("T") or data.get("E")
    exchange = None if moment is None else clock.ns(moment, intake.file.name, number)
    if one.kept.known and one.last_update == last:
        one.kept.compare(bids, asks, intake.tape("book", one.name))
    newest = one.last_update if one.last_update is not None and one.last_update > last else None
    if newest is not None and one.recent[0][0] > last + 1 and one.snapshot_id is None:
        intake.note(
            f"{intake.file.name}:{number}: the snapshot is older than the depth messages before it reach"
        )
    one.snapshot_id = last
    one.replace(bids, asks)
    for update, more_bids, more_asks in one.recent:
        if update > last:
            one.kept.apply(more_bids, more_asks)
    one.recent.clear()
    bids, asks = list(one.kept.bids.items()), list(one.kept.asks.items())
    if newest is not None:
        one.snapshot(number, one.last_exchange, received, bids, asks, newest)
    elif exchange is not None:
        one.snapshot(number, exchange, received, bids, asks, last)
    else:
        _release(one, None, intake)
        one.waiting = (number, received, bids, asks)
    return True


def _release(one: _Symbol, exchange: int | None, intake: Intake) -> None:
    """Write a snapshot that has no time of the exchange: it was true just before the next update at the latest."""
    if one.waiting is None:
        return
    number, received, bids, asks = one.waiting
    one.waiting = None
    moment = received if exchange is None else min(received, exchange)
    intake.note(
        f"{one.name}: a snapshot carries no exchange time; it is placed before the update that follows it"
    )
    one.snapshot(number, moment, received, bids, asks, one.snapshot_id or 0)


def _ticker(
    one: _Symbol, data: dict[str, Any], number: int, received: int, clock: Clock, intake: Intake
) -> bool:
    """Compare the best bid and ask where the ticker stands exactly where the last depth message ended."""
    if one.kept.known and one.last_update == data["u"]:
        tape = intake.tape("book", one.name)
        tape.checked += 1
        best = ((float(data["b"]), float(data["B"])), (float(data["a"]), float(data["A"])))
        tape.disagreed += one.kept.best() != best
    return False


_HANDLERS = {"trade": _trade, "depthUpdate": _depth, "snapshot": _snapshot, "bookTicker": _ticker}
