from .book import VISIBLE_LEVELS, OrderBook
from .catalogue import CATALOGUE, NAMES, Feature, FeatureParams
from .initial import AccountStart, Carried, CarriedPart, InitialState, SymbolStart
from .kernels import compute, score_series
from .payloads import Levels, read_levels, risk_flag, trade_sign, usable_number, usable_price
from .state import FeatureEngine
from .tape import (
    MarketTape,
    TradeColumns,
    book_mids,
    pack_market,
    regime_names,
    risk_flags,
    scores,
    tape_of_trades,
    trade_columns,
)

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
