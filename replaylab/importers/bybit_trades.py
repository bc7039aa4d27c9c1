"""Bybit's downloads of trades: derivatives (decimal seconds, old files newest first) and spot (milliseconds)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from replaylab.importers.cells import TradeTable
from replaylab.importers.intake import Intake
from replaylab.importers.tables import read_trades

__all__ = ["read"]

_TABLE = TradeTable(
    names={
        "time": ("timestamp",),
        "symbol": ("symbol",),
        "side": ("side",),
        "qty": ("size", "volume"),
        "price": ("price",),
        "id": ("trdmatchid", "id"),
    },
    required=("time", "price", "qty", "side"),
    units=("s", "ms"),
    file_symbol=r"([A-Z0-9]+?)[_-]?\d{4}-\d\d(?:-\d\d)?",
)


def read(files: Iterable[Path], intake: Intake) -> None:
    """Read ``SYMBOLYYYY-MM-DD.csv.gz`` files of derivatives, or ``SYMBOL_YYYY-MM-DD.csv.gz`` of spot."""
    read_trades(files, intake, _TABLE)
