"""Which fields of a market event's payload are usable, and the order book kept from its snapshots and deltas.

>>> book = OrderBook()
>>> book.apply({"bids": [[99.0, 2.0], [98.0, 5.0]], "asks": [[101.0, 1.0]]})
True
>>> book.apply({"kind": "delta", "bids": [[99.0, 0.0]], "asks": []}), book.best_bid()
(True, (98.0, 5.0))
>>> usable_price(50_000), usable_price("50000"), usable_price(True), usable_price(0.0)
(50000.0, None, None, None)
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from typing import Any

Levels = list[tuple[float, float]]
VISIBLE_LEVELS = 25
_INFINITY = float("inf")


def usable_number(value: Any) -> float | None:
    """Return ``value`` as a float if it is a finite number, not text or a bool; else None."""
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        try:
            value = float(value)
        except OverflowError:
            return None
    # The difference is NaN for NaN and for both infinities.
    return value if value - value == 0.0 else None


def usable_price(value: Any) -> float | None:
    """Return ``value`` as a float if it is a finite number above zero; else None."""
    if type(value) is not float:
        value = usable_number(value)
        if value is None:
            return None
    return value if value > 0.0 and value - value == 0.0 else None


def trade_sign(side: Any) -> float | None:
    """Return +1 for a taker that buys, −1 for one that sells, None for anything else."""
    if side == "BUY":
        return 1.0
    return -1.0 if side == "SELL" else None


def risk_flag(payload: Mapping[str, Any], name: str) -> bool | None:
    """Return a flag of a RISK_UPDATE: a bool at top level, else one under ``riskFlags``; None where there is none."""
    value = payload.get(name)
    if isinstance(value, bool):
        return value
    nested = payload.get("riskFlags")
    value = nested.get(name) if isinstance(nested, Mapping) else None
    return value if isinstance(value, bool) else None


def read_levels(side: Any) -> Levels | None:
    """Return the ``(price, qty)`` levels of one side of a MARKET_BOOK; None if it or any level is malformed.

    A level is ``[price, qty]``, finite numbers with price > 0 and qty ≥ 0; further elements are ignored.
    """
    if not isinstance(side, (list, tuple)):
        return None
    levels: Levels = []
    append = levels.append
    for level in side:
        if not isinstance(level, (list, tuple)) or len(level) < 2:
            return None
        price, qty = level[0], level[1]
        if type(price) is not float or type(qty) is not float:
            price, qty = usable_number(price), usable_number(qty)
            if price is None or qty is None:
                return None
        # Written so that NaN and infinity fail as well.
        if not (0.0 < price < _INFINITY and 0.0 <= qty < _INFINITY):
            return None
        append((price, qty))
    return levels


class OrderBook:
    """Both sides of one symbol's book. Prices in quote currency, quantities in base currency.

    ``apply`` takes the payload of a MARKET_BOOK and returns False, changing nothing, when it is unusable:
    an unknown ``kind``, a missing side or a malformed level. No ``kind`` (or null) is a snapshot. ``[]`` is an empty
    side; a delta before any snapshot applies to an empty book; a level of quantity 0 is no level; the order of levels
    does not matter; of a price that is listed twice the last counts.
    """

    __slots__ = ("_ask_prices", "_ask_qty", "_bid_prices", "_bid_qty")

    def __init__(self) -> None:
        # Ascending prices beside price → qty: the best levels and any depth are at an end of a sorted list.
        self._bid_prices: list[float] = []
        self._ask_prices: list[float] = []
        self._bid_qty: dict[float, float] = {}
        self._ask_qty: dict[float, float] = {}

    def apply(self, payload: Mapping[str, Any]) -> bool:
        """Apply a snapshot or a delta; return whether it was usable."""
        kind = payload.get("kind")
        if kind is not None and kind != "snapshot" and kind != "delta":
            return False
        bids = read_levels(payload.get("bids"))
        if bids is None:
            return False
        asks = read_levels(payload.get("asks"))
        if asks is None:
            return False
        if kind != "delta":
            self.reset(bids, asks)
        else:
            self.update(bids, asks)
        return True

    def update(self, bids: Levels, asks: Levels) -> None:
        """Apply checked levels as a delta: quantity 0 deletes a level."""
        if bids:
            _change(self._bid_prices, self._bid_qty, bids)
        if asks:
            _change(self._ask_prices, self._ask_qty, asks)

    def reset(self, bids: Levels, asks: Levels) -> None:
        """Replace both sides by checked levels."""
        self._bid_qty = dict(bids)
        self._ask_qty = dict(asks)
        if 0.0 in self._bid_qty.values():
            self._bid_qty = {price: qty for price, qty in self._bid_qty.items() if qty}
        if 0.0 in self._ask_qty.values():
            self._ask_qty = {price: qty for price, qty in self._ask_qty.items() if qty}
        self._bid_prices = sorted(self._bid_qty)
        self._ask_prices = sorted(self._ask_qty)

    def mid(self) -> float | None:
        """Return the mean of best bid and best ask, also of a crossed book; None while a side is empty."""
        bids, asks = self._bid_prices, self._ask_prices
        return (bids[-1] + asks[0]) / 2.0 if bids and asks else None

    def best_bid(self) -> tuple[float, float] | None:
        """Return price and quantity of the best bid, or None."""
        if not self._bid_prices:
            return None
        price = self._bid_prices[-1]
        return price, self._bid_qty[price]

    def best_ask(self) -> tuple[float, float] | None:
        """Return price and quantity of the best ask, or None."""
        if not self._ask_prices:
            return None
        price = self._ask_prices[0]
        return price, self._ask_qty[price]

    def depth(self, levels: int) -> tuple[float, float]:
        """Return the summed quantity of the best ``levels`` of bids and of asks; summed from the best outward."""
        bid = ask = 0.0
        for price in self._bid_prices[: -levels - 1 : -1]:
            bid += self._bid_qty[price]
        for price in self._ask_prices[:levels]:
            ask += self._ask_qty[price]
        return bid, ask

    def levels(self) -> tuple[Levels, Levels]:
        """Return all levels of bids and of asks, best first."""
        return self.top(max(len(self._bid_prices), len(self._ask_prices)))

    def visible(self) -> tuple[Levels, Levels]:
        """Return the levels that the trading model sees: the best VISIBLE_LEVELS of each side, best first."""
        return self.top(VISIBLE_LEVELS)

    def top(self, levels: int) -> tuple[Levels, Levels]:
        """Return the best ``levels`` of bids and of asks, best first."""
        return (
            [(price, self._bid_qty[price]) for price in self._bid_prices[: -levels - 1 : -1]],
            [(price, self._ask_qty[price]) for price in self._ask_prices[:levels]],
        )


def _change(prices: list[float], quantities: dict[float, float], levels: Levels) -> None:
    for price, qty in levels:
        if qty:
            if price not in quantities:
                insort(prices, price)
            quantities[price] = qty
        elif price in quantities:
            del quantities[price]
            del prices[bisect_left(prices, price)]
