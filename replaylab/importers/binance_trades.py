"""Binance's downloads of trades and of aggregated trades: spot, USD-M and COIN-M futures; with a header or without.

Spot files count in microseconds from 2025 on, in milliseconds before; the importer looks. Aggregated trades are one
row per taker order and price. Both are the same market: import one of them per symbol, or give one a name of its own
(``save_as``), else every trade counts twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from replaylab.importers.cells import TradeTable
from replaylab.importers.intake import Intake
from replaylab.importers.tables import read_trades

__all__ = ["read_aggregated", "read_single"]

_COMMON = {
    "time": ("time", "transacttime", "transactiontime", "timestamp"),
    "received": ("timestampofreceive", "receivetime", "localtimestamp"),
    "price": ("price",),
    "maker": ("isbuyermaker", "isbuyermarketmaker"),
    "symbol": ("symbol",),
    "kind": ("xunknownparameter", "x"),
}
_SINGLE = TradeTable(
    names={**_COMMON, "qty": ("qty", "quantity"), "id": ("id", "tradeid")},
    headerless=(
        ("id", "price", "qty", "", "time", "maker"),
        ("id", "price", "qty", "", "time", "maker", ""),
    ),
    required=("time", "price", "qty", "maker", "id"),
    units=("ms", "us"),
    numbered=True,
    file_symbol=r"([A-Z0-9_]+?)-trades-",
)
_AGGREGATED = TradeTable(
    names={**_COMMON, "qty": ("quantity", "qty"), "id": ("aggtradeid", "aggid", "aggregatetradeid")},
    headerless=(
        ("id", "price", "qty", "", "", "time", "maker"),
        ("id", "price", "qty", "", "", "time", "maker", ""),
    ),
    required=("time", "price", "qty", "maker", "id"),
    units=("ms", "us"),
    numbered=True,
    file_symbol=r"([A-Z0-9_]+?)-aggTrades-",
)


def read_single(files: Iterable[Path], intake: Intake) -> None:
    """Read ``SYMBOL-trades-DATE`` files."""
    read_trades(files, intake, _SINGLE)


def read_aggregated(files: Iterable[Path], intake: Intake) -> None:
    """Read ``SYMBOL-aggTrades-DATE`` files."""
    read_trades(files, intake, _AGGREGATED)
