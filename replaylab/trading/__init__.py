"""The trading system: state machine, risk, take profit and stop loss, SIM order router, positions, scoring.

>>> from replaylab.trading import TradingSystem, resolve_price_sources

Pure: it reads no files and no wall clock. Time comes from the events; what it wants recorded it hands to a recorder.
"""

from __future__ import annotations

from replaylab.trading.agreement import Agreement, Difference
from replaylab.trading.orders import OrderRouter
from replaylab.trading.positions import ClosedTrade
from replaylab.trading.recorder import Recorder
from replaylab.trading.scoring import ScoreModel, Scorer, Signal
from replaylab.trading.sources import PRICE_SOURCES, check_price_source, initial_book, resolve_price_sources
from replaylab.trading.system import TradingSystem

__all__ = [
    "PRICE_SOURCES",
    "Agreement",
    "ClosedTrade",
    "Difference",
    "OrderRouter",
    "Recorder",
    "ScoreModel",
    "Scorer",
    "Signal",
    "TradingSystem",
    "check_price_source",
    "initial_book",
    "resolve_price_sources",
]
