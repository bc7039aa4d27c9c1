"""Microstructure features: formulas, the incremental form that trading runs on, and the vectorised form.

>>> from replaylab.features import CATALOGUE, FeatureEngine, FeatureParams, compute, score_series

``FeatureEngine`` takes event by event; ``compute`` a whole session. Both run the same arithmetic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from replaylab.features.book import VISIBLE_LEVELS, OrderBook
from replaylab.features.catalogue import CATALOGUE, NAMES, Feature
from replaylab.features.incremental import FeatureEngine
from replaylab.features.initial import AccountStart, Carried, CarriedPart, InitialState, SymbolStart
from replaylab.features.params import FeatureParams
from replaylab.features.payloads import read_levels, risk_flag, trade_sign, usable_number, usable_price

if TYPE_CHECKING:
    from replaylab.features.tape import MarketTape as MarketTape
    from replaylab.features.tape import pack_market as pack_market
    from replaylab.features.vectorised import compute as compute
    from replaylab.features.vectorised import score_series as score_series

# polars and numba load when a whole tape is asked for; trading runs without them.
_HOMES = {
    "MarketTape": "replaylab.features.tape",
    "compute": "replaylab.features.vectorised",
    "pack_market": "replaylab.features.tape",
    "score_series": "replaylab.features.vectorised",
}

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
    "MarketTape",
    "OrderBook",
    "SymbolStart",
    "compute",
    "pack_market",
    "read_levels",
    "risk_flag",
    "score_series",
    "trade_sign",
    "usable_number",
    "usable_price",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'replaylab.features' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
