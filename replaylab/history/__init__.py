"""Market history: trades and order books of the past, as Parquet by symbol and UTC day under ``history/``.

>>> from replaylab import history
>>> history.scan_trades("data", "BTCUSDT", start="2025-11-18T10:00").collect()          # doctest: +SKIP

History is research data, not a log: retention never touches it. A tape may be larger than memory, so reading is
lazy and writing goes by UTC day. What a row holds says :data:`TRADES_SCHEMA` and :data:`BOOK_SCHEMA`.
"""

from __future__ import annotations

from replaylab.history.tapes import (
    BOOK_SCHEMA,
    TRADES_SCHEMA,
    Coverage,
    coverage,
    days,
    level_lists,
    scan_book,
    scan_trades,
    symbols,
)
from replaylab.history.writing import Staging, Written, write_book, write_trades

__all__ = [
    "BOOK_SCHEMA",
    "TRADES_SCHEMA",
    "Coverage",
    "Staging",
    "Written",
    "coverage",
    "days",
    "level_lists",
    "scan_book",
    "scan_trades",
    "symbols",
    "write_book",
    "write_trades",
]
