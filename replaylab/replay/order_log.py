"""Orders and trades of the log as wholes: when each order was sent, filled or ended, and which trade it belongs to.

>>> orders = Orders.of(frames.load_orders(root).frame, "BTCUSDT")                               # doctest: +SKIP
>>> orders.at(entry_ns, buys=True, reduces=False).sent                                          # doctest: +SKIP
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

Array = npt.NDArray[Any]
_STOPS = ("STOP_LOSS", "BREAK_EVEN", "TRAILING")
_TARGETS = ("TP1", "TP2")
# An order belongs to a fill of the trade log that is at most this far away.
NEAR_NS = 2_000_000_000


class Order(NamedTuple):
    """One order of the log: times in ns (``sent``: its first line, ``filled``: −1 without a fill), kind and prices.

    ``qty`` is what filled, ``size`` what was ordered.
    """

    sent: int
    filled: int
    ended: int
    buys: bool
    reduces: bool
    kind: str
    price: float
    trigger: float
    average: float
    qty: float
    size: float


@dataclass
class Orders:
    """The orders of one symbol, by the time of their fill; ``unfilled`` are those that never filled, by time sent."""

    filled: list[Order]
    times: Array
    unfilled: list[Order]

    @classmethod
    def of(cls, frame: pl.DataFrame, symbol: str) -> Orders:
        """Collect the lines of each order of a symbol."""
        lines: dict[str, list[dict[str, Any]]] = {}
        chosen = frame.filter(pl.col("symbol") == symbol).with_columns(
            pl.col("timestamp").dt.timestamp("ns"), pl.col("status").str.to_uppercase()
        )
        for number, row in enumerate(chosen.iter_rows(named=True)):
            lines.setdefault(row["client_order_id"] or f"#{number}", []).append(row)
        found = [_order(group) for group in lines.values()]
        filled = sorted((o for o in found if o.filled >= 0), key=lambda o: o.filled)
        unfilled = sorted((o for o in found if o.filled < 0), key=lambda o: o.sent)
        return cls(filled, np.array([o.filled for o in filled], dtype=np.int64), unfilled)

    def at(self, ts: int, *, buys: bool, reduces: bool) -> Order | None:
        """Return the order of a side that filled nearest to ``ts``, if possible one that ``reduces`` as wanted."""
        low, high = np.searchsorted(self.times, [ts - NEAR_NS, ts + NEAR_NS + 1])
        near = [o for o in self.filled[low:high] if o.buys == buys]
        return min(near, key=lambda o: (abs(o.filled - ts), o.reduces != reduces), default=None)

    def between(self, after: int, until: int, *, buys: bool) -> list[Order]:
        """Return the filled orders of a side with ``after`` < time ≤ ``until``."""
        low, high = np.searchsorted(self.times, [after, until], side="right")
        return [o for o in self.filled[low:high] if o.buys == buys]

    def withdrawn_exits(self, start: int, end: int) -> set[int]:
        """Return when market exits were sent in [start, end] that never filled: something else closed first."""
        return {o.sent for o in self._unfilled(start, end) if o.reduces and o.kind == "MARKET"}

    def never_filled(self, start: int, end: int, *, buys: bool) -> bool:
        """Whether an entry order of a side was sent in [start, end] and never filled."""
        return any(o.buys == buys and not o.reduces for o in self._unfilled(start, end))

    def _unfilled(self, start: int, end: int) -> list[Order]:
        low = bisect_left(self.unfilled, start, key=lambda o: o.sent)
        return self.unfilled[low : bisect_right(self.unfilled, end, key=lambda o: o.sent)]


def _order(lines: list[dict[str, Any]]) -> Order:
    first, last = lines[0], lines[-1]
    fills = [row for row in lines if row["status"] in ("FILLED", "PARTIALLY_FILLED") or row["filled_qty"]]
    done = fills[-1] if fills and (fills[-1]["filled_qty"] or 0.0) > 0.0 else None
    price = math.nan if last["price"] is None else last["price"]
    average = price
    if done is not None and done["avg_fill_price"] is not None:
        average = done["avg_fill_price"]
    return Order(
        first["timestamp"],
        -1 if done is None else done["timestamp"],
        last["timestamp"],
        (first["side"] or "").upper() == "BUY",
        bool(first["reduce_only"]),
        (last["type"] or "").upper(),
        price,
        math.nan if last["trigger_price"] is None else last["trigger_price"],
        average,
        0.0 if done is None else done["filled_qty"],
        last["qty"],
    )


@dataclass
class LiveTrade:
    """What is recorded of one live trade; ``decided``, ``exit_decided``: None where no order says it."""

    symbol: str
    direction: float
    entry_ts: int
    exit_ts: int
    entry: float
    close: float
    qty: float
    pnl: float
    fees: float
    funding: float
    reason: str | None
    decided: int | None = None
    exit_decided: int | None = None
    # Market exits that were sent, but something else closed the position first.
    withdrawn: set[int] = field(default_factory=set)
    # limit, stop, market; "" where nothing says it. ``limit``: the price that an exit's limit order had.
    exit_kind: str = ""
    limit: float = math.nan
    # Earlier partial exits as (price, quantity, maker), what they leave, and the price of the last exit.
    parts: list[tuple[float, float, bool]] = field(default_factory=list)
    left: float = 0.0
    last_price: float = 0.0

    @property
    def opened(self) -> int:
        return self.entry_ts if self.decided is None else self.decided


def live_trade(
    row: dict[str, Any], orders: Orders | None, touched: Callable[[LiveTrade, float, int], int]
) -> LiveTrade:
    """Read a row of the trade log (times in ns), and from its symbol's orders how it was entered and left.

    ``touched`` returns when the price first reached a stop's trigger after a time.
    """
    direction = 1.0 if row["side"] == "LONG" else -1.0
    qty, entry, close = row["qty"], row["entry_price"], row["close_price"]
    funding = row.get("funding") or 0.0
    fees = row["fees"]
    if fees is None:
        fees = direction * (close - entry) * qty + funding - row["realized_pnl"]
    trade = LiveTrade(
        row["symbol"],
        direction,
        row["entry_time"],
        row["exit_time"],
        entry,
        close,
        qty,
        row["realized_pnl"],
        fees,
        funding,
        row["reason"],
        left=qty,
        last_price=close,
    )
    buys = direction > 0.0
    if orders is None:
        return trade
    trade.withdrawn = orders.withdrawn_exits(trade.entry_ts, trade.exit_ts)
    entered = orders.at(trade.entry_ts, buys=buys, reduces=False)
    if entered is not None and entered.sent < entered.filled:
        trade.decided = min(entered.sent, trade.entry_ts)
    left = orders.at(trade.exit_ts, buys=not buys, reduces=True)
    if left is not None:
        _read_exit(trade, left, orders.between(trade.entry_ts, trade.exit_ts, buys=not buys), touched)
    return trade


def _read_exit(
    trade: LiveTrade,
    left: Order,
    exits: Sequence[Order],
    touched: Callable[[LiveTrade, float, int], int],
) -> None:
    """Take the kind, decision and partial exits of a live trade from its orders."""
    if "STOP" in left.kind or trade.reason in _STOPS:
        trade.exit_kind = "stop"
        if not math.isnan(left.trigger):
            trade.exit_decided = touched(trade, left.trigger, max(left.sent, trade.entry_ts))
    elif "LIMIT" in left.kind or "TAKE_PROFIT" in left.kind or trade.reason in _TARGETS:
        trade.exit_kind, trade.limit, trade.exit_decided = "limit", left.price, trade.exit_ts
    else:
        trade.exit_kind = "market"
        trade.exit_decided = min(left.sent, trade.exit_ts) if left.sent < left.filled else trade.exit_ts
    earlier = [(o.average, o.qty, "LIMIT" in o.kind) for o in exits if o is not left]
    total = sum(size for _, size, _ in earlier) + left.qty
    if earlier and abs(total - trade.qty) <= 1e-6 * trade.qty:
        trade.parts, trade.left, trade.last_price = earlier, left.qty, left.average
