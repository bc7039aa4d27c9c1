"""Microstructure features: formulas, the incremental form that trading runs on, and the compiled form for whole tapes.

>>> from replaylab.features import CATALOGUE, FeatureEngine, FeatureParams, compute, score_series

``FeatureEngine`` takes event by event; ``compute`` a whole session. Both run the same arithmetic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from replaylab.features.book import VISIBLE_LEVELS, OrderBook
from replaylab.features.catalogue import CATALOGUE, NAMES, Feature, FeatureParams
from replaylab.features.initial import AccountStart, Carried, CarriedPart, InitialState, SymbolStart
from replaylab.features.payloads import (
    Levels,
    read_levels,
    risk_flag,
    trade_sign,
    usable_number,
    usable_price,
)
from replaylab.features.state import FeatureEngine

if TYPE_CHECKING:
    from replaylab.features.kernels import compute as compute
    from replaylab.features.kernels import score_series as score_series
    from replaylab.features.tape import MarketTape as MarketTape
    from replaylab.features.tape import TradeColumns as TradeColumns
    from replaylab.features.tape import book_mids as book_mids
    from replaylab.features.tape import pack_market as pack_market
    from replaylab.features.tape import regime_names as regime_names
    from replaylab.features.tape import risk_flags as risk_flags
    from replaylab.features.tape import scores as scores
    from replaylab.features.tape import tape_of_trades as tape_of_trades
    from replaylab.features.tape import trade_columns as trade_columns

# polars and numba load when a whole tape is asked for; trading runs without them.
_LAZY = {
    "kernels": ("compute", "score_series"),
    "tape": (
        "MarketTape",
        "TradeColumns",
        "book_mids",
        "pack_market",
        "regime_names",
        "risk_flags",
        "scores",
        "tape_of_trades",
        "trade_columns",
    ),
}
_HOMES = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "CATALOGUE",
    "NAMES",
    "VISIBLE_LEVELS",
    "AccountStart",
    "Carried",
    "CarriedPart",
    "Feature",
    "FeatureEngine",
    "FeatureParams",
    "InitialState",
    "Levels",
    "MarketTape",
    "OrderBook",
    "SymbolStart",
    "TradeColumns",
    "book_mids",
    "compute",
    "pack_market",
    "read_levels",
    "regime_names",
    "risk_flag",
    "risk_flags",
    "score_series",
    "scores",
    "tape_of_trades",
    "trade_columns",
    "trade_sign",
    "usable_number",
    "usable_price",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'replaylab.features' has no attribute {name!r}")
    value = getattr(import_module(f"replaylab.features.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
