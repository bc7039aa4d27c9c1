"""What stood at the beginning of a session's range: the ``initialState`` that a run or sweep starts from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import polars as pl

from replaylab import frames, history
from replaylab.features import OrderBook, risk_flag
from replaylab.paths import DataRoot
from replaylab.timestamps import NS_PER_DAY, date_key, iso, parse_ns

Book = dict[str, list[list[float]]]
_POSITIONS = ("LONG", "SHORT")


class StateBefore:
    """Collects, from the state events before ``start``, what each symbol's state was at ``start``.

    >>> state = StateBefore(root, start, ["BTCUSDT"])                # doctest: +SKIP
    >>> state.see("BTCUSDT", frame)        # every piece of its log   # doctest: +SKIP
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

    def see(self, symbol: str, frame: pl.DataFrame) -> None:
        """Add a frame of state events of one symbol."""
        before = frame.filter(pl.col("timestamp").dt.timestamp("ns") < self._start)
        if before.is_empty():
            return
        kind = pl.col("event_type")
        for name, rows in (
            ("regime", before.filter(kind == "REGIME_UPDATE")),
            ("tradingBlocked", before.filter(kind == "RISK_UPDATE")),
            ("entry", before.filter(kind == "EXECUTION_FILL")),
            ("state", before),
        ):
            self._see_latest(symbol, name, rows)

    def to_dict(self) -> dict[str, Any]:
        """Return ``initialState`` as ``meta.json`` holds it."""
        symbols = {
            symbol: {
                "regime": self._value(symbol, "regime"),
                "tradingBlocked": bool(self._value(symbol, "tradingBlocked")),
                "book": book_before(self._root, symbol, self._start),
            }
            for symbol in sorted(self.symbols)
        }
        return {"symbols": symbols, "reported": self._reported()}

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
        """Open positions and the day's PnL: for the reader's eyes, a run does not begin with them."""
        positions = []
        for symbol in sorted(self.symbols):
            side = self._value(symbol, "state")
            if side in _POSITIONS:
                positions.append({"symbol": symbol, "side": side, **(self._value(symbol, "entry") or {})})
        day = self._start - self._start % NS_PER_DAY
        pnl = trades = 0
        if self._start > day:
            closed = (
                frames.load_trades(self._root, iso(day), iso(self._start)).frame["realized_pnl"].to_list()
            )
            pnl, trades = sum(closed), len(closed)
        return {
            "openPositions": positions,
            "day": {"dateKey": date_key(self._start), "realizedPnl": float(pnl), "tradesCount": trades},
        }


def initial_state(root: DataRoot, start: int, symbols: Iterable[str]) -> dict[str, Any]:
    """Return what stood at ``start`` (ns) by the logs and the imported history, as a session's ``meta.json`` has it."""
    state = StateBefore(root, start, symbols)
    for symbol in state.symbols:
        for loaded in frames.scan_event_chunks(root, symbol, None, iso(start)):
            state.see(symbol, loaded.frame)
    return state.to_dict()


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

    Where none were in force at ``start`` yet, the first ones set inside the range lead. Lines of
    ``system/trading_params.jsonl`` as they are: ``timestamp``, ``params``, and ``scoring`` where logged.
    """
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
    lines.sort(key=lambda line: line[0])
    before = [entry for ns, entry in lines if ns <= start]
    return before[-1:] + [entry for ns, entry in lines if start < ns < end]


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
    if name == "regime":
        regime = payload.get("regime")
        return regime if isinstance(regime, str) else None
    if name == "tradingBlocked":
        return risk_flag(payload, "tradingBlocked")
    return {"entryTimestamp": iso(ns), "entryPrice": payload.get("price"), "qty": payload.get("qty")}
