"""Records of signals and market data: scoring, regime and feature snapshots, the tape, the order book."""

from __future__ import annotations

from typing import Literal

from msgspec import field

from replaylab.records.codec import Record


class ScoringSnapshot(Record, kw_only=True):
    """One score of one symbol. ``score`` is signed; ``price`` is the price it was computed at."""

    times = ("timestamp",)
    timestamp: str
    symbol: str
    score: float
    side: Literal["LONG", "SHORT", "NONE"]
    price: float | None = None
    components: dict[str, float] = field(default_factory=dict)


class RegimeSnapshot(Record, kw_only=True):
    """The market regime of one symbol, such as "CALM" or "VOLATILE"."""

    times = ("timestamp",)
    timestamp: str
    symbol: str
    regime: str
    confidence: float | None = None
    components: dict[str, float] = field(default_factory=dict)


class FeatureSnapshot(Record, kw_only=True):
    """Feature values of one symbol; null where a feature is not known yet."""

    times = ("timestamp",)
    timestamp: str
    symbol: str
    features: dict[str, float | None]


class MarketTrade(Record, kw_only=True):
    """One print of the tape (``trades/<symbol>.json``); ``side`` is the taker's."""

    times = ("timestamp",)
    timestamp: str
    price: float
    qty: float
    side: Literal["BUY", "SELL"]
    trade_id: str | None = None


class OrderBookSnapshot(Record, kw_only=True):
    """A rolling order book (``orderbook/<symbol>.json``): ``[price, qty]`` pairs, best first."""

    times = ("timestamp",)
    timestamp: str
    symbol: str
    bids: list[tuple[float, float]]
    asks: list[tuple[float, float]]
