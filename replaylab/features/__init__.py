"""Microstructure features: formulas, the incremental form that trading runs on, and the vectorised form.

>>> from replaylab.features import OrderBook
>>> book = OrderBook()
>>> book.apply({"bids": [[99.0, 2.0]], "asks": [[101.0, 1.0]]}), book.mid()
(True, 100.0)
"""

from __future__ import annotations

from replaylab.features.book import OrderBook
from replaylab.features.inputs import read_levels, usable_number, usable_price

__all__ = ["OrderBook", "read_levels", "usable_number", "usable_price"]
