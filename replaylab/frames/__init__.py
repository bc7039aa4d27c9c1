"""Logs to DataFrames without losing a line: what cannot be read is in ``rejects``, with its place and the reason.

>>> from replaylab import frames
>>> loaded = frames.load_events("data", "BTCUSDT")          # doctest: +SKIP
>>> loaded.lines == loaded.rows + len(loaded.rejects) + loaded.blank    # doctest: +SKIP
True
"""

from replaylab.frames.cache import to_table
from replaylab.frames.files import (
    METADATA_KEY,
    Fingerprint,
    PartInfo,
    ReplacedError,
    archive_folder,
    begins_with,
    chunks_of,
    fingerprint,
    is_superseded,
    part_info,
    parts_of,
    pending_mark,
    read_part,
)
from replaylab.frames.jsonl import (
    REJECTS_SCHEMA,
    Block,
    Loaded,
    Reject,
    blocks,
    decode_block,
    is_blank,
    preview,
    reject_frame,
    without_mark,
)
from replaylab.frames.logs import (
    CHUNK_BYTES,
    EVENTS,
    ORDERS,
    PARAMS,
    REPLAY_EVENTS,
    SNAPSHOT_RECORDS,
    TRADES,
    held_mode,
    list_days,
    list_symbols,
    load_events,
    load_orders,
    load_replay_events,
    load_snapshot,
    load_trades,
    load_trading_params,
    open_log,
    opened_log,
    scan_days,
    scan_event_chunks,
    scan_event_files,
    until_whole,
)
from replaylab.frames.rolling import load_market_trades_json, load_metrics, load_order_book_json
from replaylab.frames.schema import TIMESTAMP, LogSchema, to_pandas


def warm_up() -> None:
    """Compile the reader of large logs, or load it where that was done before; numba loads here and not earlier."""
    from replaylab.frames import scanner

    scanner.warm_up()


__all__ = [
    "CHUNK_BYTES",
    "EVENTS",
    "METADATA_KEY",
    "ORDERS",
    "PARAMS",
    "REJECTS_SCHEMA",
    "REPLAY_EVENTS",
    "SNAPSHOT_RECORDS",
    "TIMESTAMP",
    "TRADES",
    "Block",
    "Fingerprint",
    "Loaded",
    "LogSchema",
    "PartInfo",
    "Reject",
    "ReplacedError",
    "archive_folder",
    "begins_with",
    "blocks",
    "chunks_of",
    "decode_block",
    "fingerprint",
    "held_mode",
    "is_blank",
    "is_superseded",
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
    "open_log",
    "opened_log",
    "part_info",
    "parts_of",
    "pending_mark",
    "preview",
    "read_part",
    "reject_frame",
    "scan_days",
    "scan_event_chunks",
    "scan_event_files",
    "to_pandas",
    "to_table",
    "until_whole",
    "warm_up",
    "without_mark",
]
