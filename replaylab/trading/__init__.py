"""The trading system: state machine, risk, take profit and stop loss, SIM order router, positions, scoring.

>>> from replaylab.trading import TradingSystem, resolve_prices

Pure: it reads no files and no wall clock. Time comes from the events; what it wants recorded it hands to a recorder.
"""

from __future__ import annotations

from replaylab.trading.assumptions import assumptions
from replaylab.trading.exit_rules import (
    CLOSE,
    HOLD,
    ExitRule,
    FeatureRows,
    LevelRule,
    OpenTrade,
    as_answer,
    as_rule,
    exit_rule,
    level_rule,
)
from replaylab.trading.orders import OrderRouter, Recorder
from replaylab.trading.positions import ClosedTrade
from replaylab.trading.prices import PRICE_SOURCES, PRICE_TYPES, ResolvedPrices, resolve_prices
from replaylab.trading.rules import Instrument
from replaylab.trading.scoring import ScoreModel, Scorer, Signal
from replaylab.trading.system import TradingSystem

__all__ = [
    "CLOSE",
    "HOLD",
    "PRICE_SOURCES",
    "PRICE_TYPES",
    "ClosedTrade",
    "ExitRule",
    "FeatureRows",
    "Instrument",
    "LevelRule",
    "OpenTrade",
    "OrderRouter",
    "Recorder",
    "ResolvedPrices",
    "ScoreModel",
    "Scorer",
    "Signal",
    "TradingSystem",
    "as_answer",
    "as_rule",
    "assumptions",
    "exit_rule",
    "level_rule",
    "resolve_prices",
]
