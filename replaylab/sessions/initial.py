"""What a session starts from: the ``initialState`` that the builder writes, made from logs and history before ``from``.

Regime, blocked flag and book come from state events and history; carried positions and the account's day from the order
log and the trade log. ``replaylab.features.InitialState`` reads it back. Source: the trading model, "Carried state".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import polars as pl

from replaylab import frames, history
from replaylab.features import OrderBook, risk_flag, usable_number
from replaylab.paths import DataRoot
from replaylab.timestamps import NS_PER_DAY, date_key, iso, parse_ns

Book = dict[str, list[list[float]]]
_POSITIONS = ("LONG", "SHORT")
_ON = (*_POSITIONS, "PENDING_ENTRY")
# Closes that no decision or limit of the bot saw: neither a day's PnL nor a cooldown follows.
_UNSEEN = ("DATA_GAP", "SESSION_END")
_FILLED = ("FILLED", "PARTIALLY_FILLED")
_ENDED = ("CANCELED", "CANCELLED", "REJECTED", "EXPIRED")


class StateBefore:
    """Collects, from logs before and after ``start``, what was on at ``start``.

    >>> state = StateBefore(root, start, ["BTCUSDT"])                # doctest: +SKIP
    >>> state.see("BTCUSDT", frame)        # every piece of its log   # doctest: +SKIP
    >>> state.see_orders(frame); state.see_trades(frame)              # doctest: +SKIP
    >>> state.to_dict()["symbols"]["BTCUSDT"]["regime"]               # doctest: +SKIP
    'CALM'

    Pieces come in the order in which they were logged, times in any: the latest event decides, of equals the last.
    """

    def __init__(self, root: DataRoot, start: int, symbols: Iterable[str]) -> None:
        self._root = root
        self._start = start
        self.symbols = list(symbols)
        # What is known of a symbol, with the time that it was known from.
        self._latest: dict[tuple[str, str], tuple[int, Any]] = {}
        self._next_exit: dict[str, int] = {}
        self._orders: list[pl.DataFrame] = []
        self._trades: list[pl.DataFrame] = []

    def see(self, symbol: str, frame: pl.DataFrame) -> None:
        """Add a frame of state events of one symbol."""
        ns, kind = pl.col("timestamp").dt.timestamp("ns"), pl.col("event_type")
        exits = frame.filter((ns >= self._start) & kind.is_in(["EXECUTION_EXIT", "EXECUTION_CANCEL"]))
        if not exits.is_empty():
            first = exits.select(ns.min()).item()
            self._next_exit[symbol] = min(first, self._next_exit.get(symbol, first))
        before = frame.filter(ns < self._start)
        for name, rows in (
            ("regime", before.filter(kind == "REGIME_UPDATE")),
            ("tradingBlocked", before.filter(kind == "RISK_UPDATE")),
            ("entry", before.filter(kind == "EXECUTION_FILL")),
            ("exit", before.filter(kind == "EXECUTION_EXIT")),
            ("state", before),
        ):
            self._see_latest(symbol, name, rows)

    def see_orders(self, frame: pl.DataFrame) -> None:
        """Add a frame of the order log, of all symbols: the account is one."""
        status, entry = pl.col("status").str.to_uppercase(), ~pl.col("reduce_only")
        fills = status.is_in(_FILLED) | (status.is_in(_ENDED) & (pl.col("filled_qty") > 0.0))
        chosen = fills | (entry & ((status == "NEW") | status.is_in(_ENDED)))
        self._orders.append(frame.filter(chosen).select(*_ORDER_COLUMNS).with_columns(status=status))

    def see_trades(self, frame: pl.DataFrame) -> None:
        """Add a frame of the trade log, of all symbols."""
        absent = [
            pl.lit(None, dtype=kind).alias(name)
            for name, kind in _TRADE_COLUMNS.items()
            if name not in frame.columns
        ]
        self._trades.append(frame.with_columns(absent).select(*_TRADE_COLUMNS))

    def to_dict(self) -> dict[str, Any]:
        """Return ``initialState`` as ``meta.json`` stores it."""
        positions = _positions(self._root, self._orders, self._trades)
        on = {p.symbol: p for p in positions if p.decided < self._start and not self._over(p)}
        exits = {p.symbol: p.ended for p in positions if self._over(p) and p.entered and not p.unseen}
        for position in on.values():
            self._end_without_cooldown(position, positions)
        # What is moved ahead of the start is no longer on there: its cooldown end alone holds.
        exits |= {symbol: p.ended for symbol, p in on.items() if self._over(p)}
        symbols = {
            symbol: {
                "regime": self._value(symbol, "regime"),
                "tradingBlocked": bool(self._value(symbol, "tradingBlocked")),
                "book": book_before(self._root, symbol, self._start),
                "carried": None
                if symbol in on and self._over(on[symbol])
                else self._carried(symbol, on.get(symbol)),
                "lastExitAt": _iso_or_none(_latest_of(exits.get(symbol), self._value(symbol, "exit"))),
            }
            for symbol in sorted(self.symbols)
        }
        return {"symbols": symbols, "account": self._account(positions), "reported": self._reported()}

    def _over(self, position: _Position) -> bool:
        return position.ended is not None and position.ended < self._start

    def _end_without_cooldown(self, position: _Position, positions: list[_Position]) -> None:
        """Move the end of an entry that never filled, or of a position that a hole ended, ahead by ``cooldown_s``.

        The bot began no cooldown after it, and the model adds one to ``closedAt``. Until its real end it also counts
        for ``max_open_positions``: where there is such a limit, it is moved only if the bot then entered too early.
        """
        ended = position.ended
        if ended is None or position.guessed or (position.qty and not position.unseen):
            return
        logged = recorded_params(self._root, self._start, self._start)
        params = logged[-1]["params"] if logged else {}
        cooldown = usable_number(params.get("cooldownS")) or 0.0
        free = ended + round(cooldown * 1e9)
        again = any(p.symbol == position.symbol and ended <= p.decided < free for p in positions)
        if params.get("maxOpenPositions") is None or again:
            position.ended = ended - round(cooldown * 1e9)

    def _carried(self, symbol: str, position: _Position | None) -> dict[str, Any] | None:
        state_ns, state = self._latest.get((symbol, "state"), (None, None))
        if state_ns is not None and state not in _ON and (position is None or state_ns >= position.decided):
            return None  # the state machine was flat: lines that close the position are missing from the order log
        if position is None:
            if state not in _ON:
                return None
            return {"closedAt": _iso_or_none(self._next_exit.get(symbol)), "parts": []}
        parts = [
            {"timestamp": iso(ns), "realizedPnl": pnl}
            for ns, _, pnl, *_ in sorted(position.seen_parts())
            if ns >= self._start
        ]
        return {"closedAt": _iso_or_none(position.ended), "parts": parts}

    def _account(self, positions: list[_Position]) -> dict[str, Any]:
        """Return the UTC day of ``start`` as the risk engine had it: running sums in the order of the fills."""
        day = self._start - self._start % NS_PER_DAY
        parts = sorted(part for position in positions for part in position.seen_parts())
        total = lowest = 0.0
        for ns, _, pnl, *_ in parts:
            if day <= ns < self._start:
                total += pnl
                lowest = min(lowest, total)
        return {
            "dateKey": date_key(day),
            "realizedPnl": total,
            "lowestRealizedPnl": lowest,
            "entries": sum(day <= position.decided < self._start for position in positions),
        }

    def _see_latest(self, symbol: str, name: str, rows: pl.DataFrame) -> None:
        if rows.is_empty():
            return
        columns = ["ns", "line", "to_state", "extra"]
        newest = rows.with_columns(pl.col("timestamp").dt.timestamp("ns").alias("ns")).select(columns)
        for ns, _, to_state, extra in newest.sort("ns", "line", descending=True).iter_rows():
            known = self._latest.get((symbol, name))
            if known is not None and known[0] > ns:
                return
            value = _usable(name, to_state, extra, ns)
            if value is not None:
                self._latest[symbol, name] = (ns, value)
                return

    def _value(self, symbol: str, name: str) -> Any:
        return self._latest.get((symbol, name), (None, None))[1]

    def _reported(self) -> dict[str, Any]:
        """Open positions and the day's closed trades, for people: the model does not read them."""
        positions = []
        for symbol in sorted(self.symbols):
            side = self._value(symbol, "state")
            if side in _POSITIONS:
                positions.append({"symbol": symbol, "side": side, **(self._value(symbol, "entry") or {})})
        day = self._start - self._start % NS_PER_DAY
        ns = pl.col("timestamp").dt.timestamp("ns")
        pnl = [
            value
            for frame in self._trades
            for value in frame.filter((ns >= day) & (ns < self._start))["realized_pnl"].to_list()
        ]
        return {
            "openPositions": positions,
            "day": {"dateKey": date_key(day), "realizedPnl": float(sum(pnl)), "tradesCount": len(pnl)},
        }


def initial_state(root: DataRoot, start: int, symbols: Iterable[str]) -> dict[str, Any]:
    """Return ``initialState`` at ``start`` (ns) by logs and imported history, as a session's ``meta.json`` has it."""
    state = StateBefore(root, start, symbols)
    for symbol in state.symbols:
        for loaded in frames.scan_event_chunks(root, symbol):
            state.see(symbol, loaded.frame)
    for _, loaded in frames.scan_days(root, "orders"):
        state.see_orders(loaded.frame)
    for _, loaded in frames.scan_days(root, "trades_log"):
        state.see_trades(loaded.frame)
    return state.to_dict()


# Positions from the order log and the trade log.

_ORDER_COLUMNS = (
    "timestamp",
    "client_order_id",
    "symbol",
    "side",
    "type",
    "reduce_only",
    "status",
    "filled_qty",
    "avg_fill_price",
)
_TRADE_COLUMNS: dict[str, pl.DataType] = {
    "timestamp": pl.Datetime("ns", "UTC"),
    "symbol": pl.String(),
    "side": pl.String(),
    "entry_price": pl.Float64(),
    "close_price": pl.Float64(),
    "qty": pl.Float64(),
    "realized_pnl": pl.Float64(),
    "duration_seconds": pl.Float64(),
    "entry_timestamp": pl.Datetime("ns", "UTC"),
    "reason": pl.String(),
    "fees": pl.Float64(),
}


class _Part(NamedTuple):
    """PnL (quote currency) realised by one fill or funding payment; ``seq`` is its order within the logs."""

    ns: int
    seq: int
    pnl: float
    qty: float = 0.0  # added to (an entry) or taken from (an exit) the position
    notional: float = 0.0


@dataclass(slots=True)
class _Position:
    """A decided entry and what followed. ``direction`` 0: not filled yet. Times in ns."""

    symbol: str
    decided: int
    order_id: str = ""
    entered: int | None = None
    ended: int | None = None
    direction: float = 0.0
    entry: float = 0.0
    left: float = 0.0
    qty: float = 0.0
    unseen: bool = False
    guessed: bool = False  # its end was not logged: the next decision ended it at the latest
    parts: list[_Part] = field(default_factory=list)
    filled: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # quantity and value so far, by order

    def seen_parts(self) -> list[_Part]:
        """Return the parts that decisions and limits saw."""
        return self.parts[:-1] if self.unseen else self.parts


class _Fees:
    """Fee rates in force, from ``system/trading_params.jsonl``; None where none were logged."""

    def __init__(self, root: DataRoot) -> None:
        self._lines = [(ns, entry["params"]) for ns, entry in _logged_params(root)]
        self._times = [ns for ns, _ in self._lines]

    def rate(self, ns: int, order_type: str) -> float | None:
        """Return the share of the notional: maker for a LIMIT fill, taker for any other."""
        if not self._lines:
            return None
        params = self._lines[max(bisect_right(self._times, ns) - 1, 0)][1]
        bps = params.get("makerFeeBps" if order_type == "LIMIT" else "takerFeeBps")
        return bps / 10_000 if isinstance(bps, int | float) else None


def _positions(root: DataRoot, orders: list[pl.DataFrame], trades: list[pl.DataFrame]) -> list[_Position]:
    """Return all positions and pending entries of the logs, by the time of their decision."""
    ledger = _Ledger(_Fees(root))
    if orders:
        ns = pl.col("timestamp").dt.timestamp("ns")
        lines = pl.concat(orders).with_columns(ns.alias("timestamp")).sort("timestamp", maintain_order=True)
        for seq, row in enumerate(lines.iter_rows(named=True)):
            ledger.take_order(seq, row)
    for symbol in history.symbols(root, "funding"):
        ledger.take_funding(symbol, _settlements(root, symbol))
    if trades:
        entered = ["timestamp", "entry_timestamp"]
        records = pl.concat(trades).with_columns(pl.col(entered).dt.timestamp("ns"))
        for row in records.sort("timestamp", maintain_order=True).iter_rows(named=True):
            ledger.take_trade(row)
    return sorted(ledger.positions, key=lambda position: position.decided)


class _Ledger:
    """Positions made from order lines; the trade log then confirms or completes them."""

    def __init__(self, fees: _Fees) -> None:
        self.positions: list[_Position] = []
        self._fees = fees
        self._current: dict[str, _Position] = {}
        self._of_symbol: dict[str, list[_Position]] = {}
        self._closed: dict[tuple[str, int], _Position] = {}
        self._seq = 0

    def take_order(self, seq: int, row: dict[str, Any]) -> None:
        """Take a fill, or a line of an entry that is new or ended."""
        self._seq = seq
        current = self._current.get(row["symbol"])
        # An order that was cancelled or expired may have filled in part.
        if row["status"] in _FILLED or (row["status"] in _ENDED and row["filled_qty"] > 0.0):
            if current is not None and current.left > 0 and _closes(current, row):
                self._exit(current, row)
            elif not row["reduce_only"]:
                # A further order of the same side adds to the position.
                if current is None or (current.order_id != row["client_order_id"] and current.left <= 0):
                    current = self._decide(row)
                self._enter(current, row)
        elif row["status"] == "NEW":
            if current is None or current.left <= 0 or not _closes(current, row):
                self._decide(row)
        elif current is not None and current.order_id == row["client_order_id"] and not current.qty:
            current.ended = row["timestamp"]  # cancelled, rejected or expired before any fill
            del self._current[row["symbol"]]

    def take_funding(self, symbol: str, settlements: list[tuple[int, float, float]]) -> None:
        """Take the settlements of a symbol (ns, rate, mark price); the last part of a closed position stays last."""
        for position in self._of_symbol.get(symbol, []):
            paid = _funding_parts(position, settlements)
            last = position.parts[-1:] if position.ended is not None else []
            before = position.parts[: len(position.parts) - len(last)]
            position.parts = [*sorted([*before, *paid]), *last]

    def take_trade(self, row: dict[str, Any]) -> None:
        """Take a record of the trade log: its PnL holds, whatever the order log lacks."""
        ns, symbol = row["timestamp"], row["symbol"]
        position = self._closed.pop((symbol, ns), None) or self._unclosed(row)
        if position is None:
            entered = row["entry_timestamp"]
            if entered is None:
                entered = ns - round((row["duration_seconds"] or 0.0) * 1e9)
            position = self._add(_Position(symbol, entered, entered=entered, guessed=True))
        if position.ended is None or position.guessed:
            position.parts = [part for part in position.parts if part.ns <= ns] + [_Part(ns, self._seq, 0.0)]
            position.ended, position.guessed = ns, False
        position.unseen = row["reason"] in _UNSEEN
        notional = sum(part.notional for part in position.parts)
        if row["fees"] is not None and notional > 0 and self._fees.rate(ns, "MARKET") is None:
            # No fee rates were logged: the trade's fees go by the notional of its fills.
            rate = row["fees"] / notional
            position.parts = [part._replace(pnl=part.pnl - rate * part.notional) for part in position.parts]
        missing = row["realized_pnl"] - sum(part.pnl for part in position.parts)
        if abs(missing) > 1e-9 * (1.0 + abs(row["realized_pnl"])):
            last = position.parts[-1]
            position.parts[-1] = last._replace(pnl=last.pnl + missing)

    def _decide(self, row: dict[str, Any]) -> _Position:
        before = self._current.get(row["symbol"])
        if before is not None and before.ended is None:
            before.ended, before.guessed = row["timestamp"], True
        position = self._add(_Position(row["symbol"], row["timestamp"], row["client_order_id"]))
        self._current[row["symbol"]] = position
        return position

    def _add(self, position: _Position) -> _Position:
        self.positions.append(position)
        self._of_symbol.setdefault(position.symbol, []).append(position)
        return position

    def _enter(self, position: _Position, row: dict[str, Any]) -> None:
        fill = _new_fill(position, row)
        if fill is None:
            return
        qty, price, fee = *fill, self._fees.rate(row["timestamp"], row["type"]) or 0.0
        position.direction = 1.0 if row["side"] == "BUY" else -1.0
        if position.entered is None:
            position.entered, position.entry = row["timestamp"], price
        else:
            position.entry = (position.entry * position.qty + price * qty) / (position.qty + qty)
        position.qty += qty
        position.left += qty
        position.parts.append(_Part(row["timestamp"], self._seq, -(price * qty * fee), qty, price * qty))

    def _exit(self, position: _Position, row: dict[str, Any]) -> None:
        fill = _new_fill(position, row)
        if fill is None:
            return
        qty, price, fee = *fill, self._fees.rate(row["timestamp"], row["type"]) or 0.0
        pnl = position.direction * (price - position.entry) * qty - price * qty * fee
        position.parts.append(_Part(row["timestamp"], self._seq, pnl, -qty, price * qty))
        position.left -= qty
        if position.left <= 1e-9 * position.qty:
            position.left, position.ended = 0.0, row["timestamp"]
            self._closed[position.symbol, row["timestamp"]] = position
            del self._current[position.symbol]

    def _unclosed(self, row: dict[str, Any]) -> _Position | None:
        """Return the position that a record closes and whose last fill the order log lacks, or has after a hole.

        A position that ends at a hole has its record at the last price before it, its order at the first one after.
        """
        ns, entered = row["timestamp"], row["entry_timestamp"]
        for position in reversed(self._of_symbol.get(row["symbol"], [])):
            if (
                position.entered is not None
                and position.entered <= ns
                and entered in (None, position.entered)
            ):
                after_hole = (
                    row["reason"] == "DATA_GAP" and position.ended is not None and position.ended > ns
                )
                return position if position.ended is None or position.guessed or after_hole else None
        return None


def _closes(position: _Position, row: dict[str, Any]) -> bool:
    return bool(row["reduce_only"]) or (row["side"] == "BUY") != (position.direction > 0)


def _new_fill(position: _Position, row: dict[str, Any]) -> tuple[float, float] | None:
    """Return quantity and price that a line adds: ``filledQty`` and ``avgFillPrice`` are sums of an order so far."""
    if row["avg_fill_price"] is None:
        return None
    qty, value = row["filled_qty"], row["filled_qty"] * row["avg_fill_price"]
    had_qty, had_value = position.filled.get(row["client_order_id"], (0.0, 0.0))
    position.filled[row["client_order_id"]] = (qty, value)
    if qty <= had_qty:
        return None
    if had_qty:
        return qty - had_qty, (value - had_value) / (qty - had_qty)
    return qty, row["avg_fill_price"]


def _funding_parts(position: _Position, settlements: list[tuple[int, float, float]]) -> list[_Part]:
    """Return what a position paid (negative) or received at the settlements while it was open."""
    if position.entered is None or not position.qty:
        return []
    paid = []
    for ns, rate, mark in settlements:
        if position.entered <= ns and (position.ended is None or ns < position.ended):
            left = sum(part.qty for part in position.parts if part.ns <= ns)
            paid.append(_Part(ns, -1, -position.direction * left * mark * rate))
    return paid


def _settlements(root: DataRoot, symbol: str) -> list[tuple[int, float, float]]:
    ns = pl.col("timestamp").dt.timestamp("ns")
    rows = history.scan_funding(root, symbol).filter(pl.col("mark_price").is_not_null())
    return rows.select(ns, "funding_rate", "mark_price").collect().rows()


def book_before(root: DataRoot, symbol: str, start: int) -> Book | None:
    """Return the order book of ``symbol`` as it stood just before ``start``, best levels first, or None.

    Rebuilt from the last snapshot of the imported history and the deltas after it; without history, the rolling
    ``orderbook/<symbol>.json`` where that is older than ``start``.
    """
    time = pl.col("timestamp").dt.timestamp("ns")
    events = history.scan_book(root, symbol, None, start)
    last = events.filter(pl.col("kind") == "snapshot").select(time.max()).collect().item()
    book = OrderBook()
    seen = False
    for day in history.days(root, "book", symbol):
        if last is None or day >= date_key(last):
            for kind, bids, asks in _day_of_book(root, symbol, day, last, start).iter_rows():
                seen = True
                if kind == "snapshot":
                    book.reset(bids, asks)
                else:
                    book.update(bids, asks)
    if seen:
        bids, asks = book.levels()
        return {
            side: [list(level) for level in levels]
            for side, levels in zip(("bids", "asks"), book.levels(), strict=True)
        }
    return _rolling_book(root, symbol, start)


def recorded_params(root: DataRoot, start: int, end: int) -> list[dict[str, Any]]:
    """Return the parameters in force at ``start``, and each change before ``end``, oldest first.

    Where none were in force at ``start`` yet, the first ones set inside the range lead. Entries are lines of
    ``system/trading_params.jsonl``: ``timestamp``, ``params``, and ``scoring`` where logged.
    """
    lines = _logged_params(root)
    before = [entry for ns, entry in lines if ns <= start]
    return before[-1:] + [entry for ns, entry in lines if start < ns < end]


def _logged_params(root: DataRoot) -> list[tuple[int, dict[str, Any]]]:
    if not root.trading_params.is_file():
        return []
    lines: list[tuple[int, dict[str, Any]]] = []
    # A Python datetime would drop the nanoseconds.
    logged = frames.load_trading_params(root).frame.with_columns(ns=pl.col("timestamp").dt.timestamp("ns"))
    for row in logged.iter_rows(named=True):
        entry: dict[str, Any] = {"timestamp": None, "params": orjson.loads(row["params"])}
        if row.get("unknown_fields"):
            entry |= orjson.loads(row["unknown_fields"])
        lines.append((row["ns"], {**entry, "timestamp": iso(row["ns"])}))
    return sorted(lines, key=lambda line: line[0])


def _iso_or_none(ns: int | None) -> str | None:
    return None if ns is None else iso(ns)


def _latest_of(*times: int | None) -> int | None:
    return max((ns for ns in times if ns is not None), default=None)


def _day_of_book(root: DataRoot, symbol: str, day: str, first: int | None, end: int) -> pl.DataFrame:
    low = parse_ns(day)
    rows = history.scan_book(
        root, symbol, low if first is None else max(low, first), min(low + NS_PER_DAY, end)
    )
    return rows.select("kind", "bids", "asks").collect()


def _rolling_book(root: DataRoot, symbol: str, start: int) -> Book | None:
    if not root.order_book(symbol).is_file():
        return None
    rows = frames.load_order_book_json(root, [symbol], None, iso(start)).frame
    if rows.is_empty():
        return None
    row = rows.sort("timestamp", "line").row(-1, named=True)
    return {"bids": orjson.loads(row["bids"]), "asks": orjson.loads(row["asks"])}


def _usable(name: str, to_state: str, extra: str, ns: int) -> Any:
    """Return what an event says about ``name``, or None when it says nothing usable."""
    if name == "state":
        return to_state
    payload = orjson.loads(extra)
    if name == "exit":
        return None if payload.get("reason") in _UNSEEN else ns
    if name == "regime":
        regime = payload.get("regime")
        return regime if isinstance(regime, str) else None
    if name == "tradingBlocked":
        return risk_flag(payload, "tradingBlocked")
    return {"entryTimestamp": iso(ns), "entryPrice": payload.get("price"), "qty": payload.get("qty")}
