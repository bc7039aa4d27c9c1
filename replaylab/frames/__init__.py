"""Logs to DataFrames without losing a line: what cannot be read is in ``rejects``, with its place and the reason.

>>> from replaylab import frames
>>> loaded = frames.load_events("data", "BTCUSDT")          # doctest: +SKIP
>>> loaded.lines == loaded.rows + len(loaded.rejects) + loaded.blank    # doctest: +SKIP
True
"""

from replaylab.frames.jsonl import REJECTS_SCHEMA, Loaded
from replaylab.frames.logs import (
    SNAPSHOT_RECORDS,
    list_days,
    list_symbols,
    load_events,
    load_orders,
    load_replay_events,
    load_snapshot,
    load_trades,
    load_trading_params,
    scan_days,
    scan_event_chunks,
    scan_event_files,
)
from replaylab.frames.pandas_view import to_pandas
from replaylab.frames.rolling import load_market_trades_json, load_metrics, load_order_book_json

__all__ = [
    "REJECTS_SCHEMA",
    "SNAPSHOT_RECORDS",
    "Loaded",
    "list_days",
    "list_symbols",
    "load_events",
    "load_market_trades_json",
    "load_metrics",
    "load_order_book_json",
    "load_orders",
    "load_replay_events",
    "load_snapshot",
    "load_trades",
    "load_trading_params",
    "scan_days",
    "scan_event_chunks",
    "scan_event_files",
    "to_pandas",
]
