"""What every feature is: name, formula, unit, lookback, source. The documentation and the data sets quote it.

>>> [feature.unit for feature in CATALOGUE if feature.name == "spread_bps"]
['bps of mid']
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from replaylab.params import Settings


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of the feature table. ``lookback`` names the field of FeatureParams that sets it."""

    name: str
    formula: str
    unit: str
    lookback: str
    source: str


_NOW = "none: the state at the decision"
_CONT = "Cont, Kukanov & Stoikov 2014, The Price Impact of Order Book Events, eq. 4"
_BOOK = "MARKET_BOOK"
_TRADES = "MARKET_TRADE"
_REFERENCE = "MARKET_BOOK mid, or MARKET_TRADE price without a book"

# In the order of the values in ``state.read_values``.
CATALOGUE: tuple[Feature, ...] = (
    Feature("best_bid", "highest bid price", "quote currency", _NOW, _BOOK),
    Feature("bid_qty", "quantity at the best bid", "base currency", _NOW, _BOOK),
    Feature("best_ask", "lowest ask price", "quote currency", _NOW, _BOOK),
    Feature("ask_qty", "quantity at the best ask", "base currency", _NOW, _BOOK),
    Feature("mid", "(bid + ask)/2", "quote currency", _NOW, _BOOK),
    Feature("spread", "ask − bid", "quote currency", _NOW, _BOOK),
    Feature("spread_bps", "(ask − bid)/mid · 10⁴", "bps of mid", _NOW, _BOOK),
    Feature(
        "microprice",
        "(bid·askQty + ask·bidQty)/(bidQty + askQty)",
        "quote currency",
        _NOW,
        f"{_BOOK}; Gatheral & Oomen 2010, Zero-Intelligence Realized Variance Estimation",
    ),
    Feature("microprice_bps", "(microprice/mid − 1)·10⁴", "bps of mid", _NOW, _BOOK),
    Feature(
        "queue_imbalance",
        "(bidQty − askQty)/(bidQty + askQty)",
        "1, in [−1, 1]",
        _NOW,
        f"{_BOOK}; Gould & Bonart 2016, Queue Imbalance as a One-Tick-Ahead Price Predictor",
    ),
    Feature("bid_depth", "Σ qty of the best bids", "base currency", "depth_levels (levels)", _BOOK),
    Feature("ask_depth", "Σ qty of the best asks", "base currency", "depth_levels (levels)", _BOOK),
    Feature(
        "depth_imbalance",
        "(bidDepth − askDepth)/(bidDepth + askDepth)",
        "1, in [−1, 1]",
        "depth_levels (levels)",
        _BOOK,
    ),
    Feature(
        "ofi",
        "Σ w·e, e = 1[bid ≥ bid′]·bidQty − 1[bid ≤ bid′]·bidQty′ − 1[ask ≤ ask′]·askQty + 1[ask ≥ ask′]·askQty′",
        "base currency",
        "flow_half_life_s",
        f"{_BOOK}; {_CONT}",
    ),
    Feature("last_price", "price of the last trade", "quote currency", _NOW, _TRADES),
    Feature("signed_volume", "Σ w·sign·qty", "base currency", "flow_half_life_s", _TRADES),
    Feature("volume", "Σ w·qty", "base currency", "flow_half_life_s", _TRADES),
    Feature("trade_imbalance", "Σ w·sign·qty / Σ w·qty", "1, in [−1, 1]", "flow_half_life_s", _TRADES),
    Feature(
        "vwap_deviation_bps",
        "(price/vwap − 1)·10⁴, vwap = Σ w·price·qty / Σ w·qty, price = mid or last trade",
        "bps of VWAP",
        "vwap_half_life_s",
        f"{_TRADES}, {_BOOK}",
    ),
    Feature(
        "trade_intensity",
        "Σ β·exp(−β·age), β = ln 2/half-life",
        "trades per second",
        "intensity_half_life_s",
        f"{_TRADES}; the exponential kernel of Hawkes 1971",
    ),
    Feature(
        "realised_volatility_bps",
        "√(Σ w·r² / ∫ w dt)·10⁴, r = change of the log reference price",
        "bps per √second",
        "volatility_half_life_s",
        _REFERENCE,
    ),
    Feature(
        "momentum_bps",
        "(log price − its time-weighted average)·10⁴",
        "bps",
        "momentum_half_life_s",
        _REFERENCE,
    ),
    Feature(
        "kyle_lambda",
        "Σ w·Δp·q / Σ w·q² over closed bars, q = signed volume of a bar",
        "quote currency per base currency",
        "kyle_half_life_s, in bars of kyle_interval_s",
        f"{_TRADES}, {_BOOK}; Kyle 1985, Continuous Auctions and Insider Trading",
    ),
    Feature(
        "vpin",
        "Σ |buy − sell| / Σ value over the last full buckets of equal traded value, with the true taker side",
        "1, in [0, 1]",
        "vpin_buckets of vpin_bucket_usd",
        f"{_TRADES}; Easley, López de Prado & O'Hara 2012, Flow Toxicity and Liquidity",
    ),
)

NAMES: tuple[str, ...] = tuple(feature.name for feature in CATALOGUE)


Lookback = Annotated[float, Meta(gt=0, le=1e9)]


class FeatureParams(Settings, kw_only=True, frozen=True):
    """Lookbacks of the features; ``CATALOGUE`` says what each one means, as does ``docs/features.md``.

    >>> FeatureParams(flow_half_life_s=30).flow_half_life_s
    30.0

    Half-lives are in seconds: after one half-life an observation counts half. ``depth_levels``: levels of the book
    in the depth features. ``kyle_interval_s``: length of the bars that Kyle's lambda is fitted on. VPIN is over the
    last ``vpin_buckets`` buckets of ``vpin_bucket_usd`` traded quote currency each. Raises ConfigError.
    """

    flow_half_life_s: Lookback = 10.0
    vwap_half_life_s: Lookback = 60.0
    intensity_half_life_s: Lookback = 10.0
    volatility_half_life_s: Lookback = 60.0
    momentum_half_life_s: Lookback = 10.0
    depth_levels: Annotated[int, Meta(ge=1, le=1000)] = 5
    kyle_interval_s: Annotated[float, Meta(ge=1e-6, le=1e9)] = 1.0
    kyle_half_life_s: Lookback = 300.0
    vpin_bucket_usd: Annotated[float, Meta(gt=0)] = 100_000.0
    vpin_buckets: Annotated[int, Meta(ge=1, le=100_000)] = 50
