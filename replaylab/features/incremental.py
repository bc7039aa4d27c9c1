"""The features of one symbol event by event: what a live system and a replay run on.

>>> engine = FeatureEngine()
>>> engine.trade(0, 100.0, 2.0, 1.0)
>>> engine.values(0)["trade_imbalance"]
1.0
"""

from __future__ import annotations

import math

from replaylab.features.book import OrderBook
from replaylab.features.catalogue import NAMES
from replaylab.features.params import FeatureParams
from replaylab.features.state import constants, new_state, on_book, on_trade, read_values

__all__ = ["FeatureEngine"]


class FeatureEngine:
    """Feed it usable events in order; ``values(ts)`` returns every feature of the catalogue as known then.

    Times in ns since 1970. ``sign`` is +1 for a buying taker, −1 for a selling one; 0, with quantity 0, where either
    is not known. A feature that is not known yet is None.
    """

    __slots__ = ("_consts", "_floats", "_ints", "_levels", "_out")

    def __init__(self, params: FeatureParams | None = None) -> None:
        params = params if params is not None else FeatureParams()
        self._consts = constants(params)
        self._ints, self._floats = new_state(params)
        self._levels = params.depth_levels
        self._out = [math.nan] * len(NAMES)

    def trade(self, ts: int, price: float, qty: float, sign: float) -> None:
        """Take one trade."""
        on_trade(self._ints, self._floats, self._consts, ts, price, qty, sign)

    def book(self, ts: int, book: OrderBook) -> None:
        """Take the book after a change."""
        on_book(self._ints, self._floats, self._consts, ts, *book_columns(book, self._levels))

    def row(self, ts: int) -> list[float]:
        """Return the values at ``ts`` in the catalogue's order, NaN where not known: a row for a model."""
        read_values(self._ints, self._floats, self._consts, ts, self._out)
        return list(self._out)

    def values(self, ts: int) -> dict[str, float | None]:
        """Return the values at ``ts`` by name."""
        return {
            name: None if value != value else value for name, value in zip(NAMES, self.row(ts), strict=True)
        }


def book_columns(book: OrderBook, levels: int) -> tuple[float, float, float, float, float, float]:
    """Return best bid, its quantity, best ask, its quantity, and the depth of both sides; NaN for an empty side."""
    bid, ask = book.best_bid(), book.best_ask()
    bid_depth, ask_depth = book.depth(levels)
    bid_price, bid_qty = bid if bid is not None else (math.nan, math.nan)
    ask_price, ask_qty = ask if ask is not None else (math.nan, math.nan)
    return bid_price, bid_qty, ask_price, ask_qty, bid_depth, ask_depth
