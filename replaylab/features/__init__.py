"""Microstructure features: formulas, the incremental form that trading runs on, and the vectorised form.

>>> from replaylab.features import CATALOGUE, FeatureEngine, FeatureParams, compute, score_series

``FeatureEngine`` takes event by event; ``compute`` a whole session. Both run the same arithmetic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from replaylab.features.book import OrderBook
from replaylab.features.catalogue import CATALOGUE, NAMES, Feature
from replaylab.features.incremental import FeatureEngine
from replaylab.features.inputs import read_levels, usable_number, usable_price
from replaylab.features.params import FeatureParams

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
    "Feature",
    "FeatureEngine",
    "FeatureParams",
    "MarketTape",
    "OrderBook",
    "compute",
    "pack_market",
    "read_levels",
    "score_series",
    "usable_number",
    "usable_price",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'replaylab.features' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
