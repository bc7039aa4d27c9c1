"""Market history: trades, order books and funding of the past, as Parquet by symbol and UTC day under ``history/``.

>>> from replaylab import history
>>> history.scan_trades("data", "BTCUSDT", start="2025-11-18T10:00").collect()          # doctest: +SKIP

History is research data, not a log: retention never touches it. A tape may be larger than memory, so reading is
lazy and writing goes by UTC day. Columns: :data:`TRADES_SCHEMA`, :data:`BOOK_SCHEMA`, :data:`FUNDING_SCHEMA`.
"""

from __future__ import annotations

from replaylab.history.instruments import decimals_of, load_instruments, normalised, save_instruments, step_of
from replaylab.history.tapes import (
    BOOK_SCHEMA,
    FUNDING_SCHEMA,
    GAPS_SCHEMA,
    TRADES_SCHEMA,
    Coverage,
    Kind,
    coverage,
    day_files,
    days,
    level_lists,
    scan,
    scan_book,
    scan_funding,
    scan_gaps,
    scan_trades,
    symbols,
)
from replaylab.history.writing import Conflicts, Staging, Written, write_book, write_funding, write_trades

__all__ = [
    "BOOK_SCHEMA",
    "FUNDING_SCHEMA",
    "GAPS_SCHEMA",
    "TRADES_SCHEMA",
    "Conflicts",
    "Coverage",
    "Kind",
    "Staging",
    "Written",
    "coverage",
    "day_files",
    "days",
    "decimals_of",
    "level_lists",
    "load_instruments",
    "normalised",
    "save_instruments",
    "scan",
    "scan_book",
    "scan_funding",
    "scan_gaps",
    "scan_trades",
    "step_of",
    "symbols",
    "write_book",
    "write_funding",
    "write_trades",
]
