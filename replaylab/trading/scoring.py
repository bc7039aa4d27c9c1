"""The scoring engine: trades and book of one symbol in, a score in [−1, 1] and a regime out, event by event.

The parts and their parameters are described at ``ScoringParams`` and in ``docs/features.md``. The compiled form for
whole tapes is ``replaylab.features.score_series``; both call the functions of ``replaylab.features.formulas``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from replaylab.features import OrderBook, formulas
from replaylab.params import ScoringParams

__all__ = ["CALM", "TRENDING", "VOLATILE", "ScoreModel", "Scorer", "Signal"]

CALM = "CALM"
TRENDING = "TRENDING"
VOLATILE = "VOLATILE"


@runtime_checkable
class ScoreModel(Protocol):
    """Anything with scikit-learn's ``predict``: rows of features in, one score per row out."""

    def predict(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Signal:
    """One score of one symbol and the regime beside it. ``volatility`` is in bps per square root of a second."""

    score: float
    components: dict[str, float]
    regime: str
    regime_components: dict[str, float]

    @property
    def side(self) -> str:
        if self.score == 0.0:
            return "NONE"
        return "LONG" if self.score > 0.0 else "SHORT"


class Scorer:
    """The scoring state of one symbol.

    Feed it every usable trade, then call ``step`` once per distinct timestamp, after all market events that bear it.
    """

    __slots__ = (
        "_book_average",
        "_book_half_life",
        "_book_last",
        "_bucket",
        "_first_price",
        "_first_ts",
        "_flow_half_life",
        "_flow_ts",
        "_interval_ns",
        "_long_average",
        "_momentum_average",
        "_params",
        "_price",
        "_regime",
        "_seconds_fast",
        "_seconds_slow",
        "_signed",
        "_squares_fast",
        "_squares_slow",
        "_trade_price",
        "_traded",
        "_ts",
        "_volatility_half_life",
        "_warm_at",
    )

    def __init__(self, params: ScoringParams, regime: str | None = None) -> None:
        self._params = params
        self._interval_ns = round(params.interval_ms * 1e6)
        self._flow_half_life = formulas.half_life_ns(params.flow_half_life_s)
        self._book_half_life = formulas.half_life_ns(params.book_half_life_s)
        self._volatility_half_life = formulas.half_life_ns(params.volatility_half_life_s)
        self._trade_price: float | None = None
        self._signed = self._traded = 0.0
        self._flow_ts = 0
        self._ts = -1
        self._warm_at = 0
        self._bucket = -1
        self._first_price = 0.0
        self._price = 0.0
        self._momentum_average = self._long_average = 0.0
        self._squares_fast = self._seconds_fast = 0.0
        self._squares_slow = self._seconds_slow = 0.0
        self._book_last: float | None = None
        self._book_average = 0.0
        self._regime = regime if regime in (TRENDING, VOLATILE) else CALM

    def trade(self, ts: int, price: float, qty: float, sign: float) -> None:
        """Take one trade; ``sign`` +1 for a buying taker, −1 for a selling one, 0 where it is not known."""
        self._trade_price = price
        if sign == 0.0 or qty <= 0.0:
            return
        if ts != self._flow_ts:
            kept = formulas.decay(ts - self._flow_ts, self._flow_half_life)
            self._signed *= kept
            self._traded *= kept
            self._flow_ts = ts
        self._signed += sign * qty
        self._traded += qty

    def step(self, ts: int, book: OrderBook) -> Signal | None:
        """Take the state of the market at the end of ``ts``; return a signal if one is due."""
        mid = book.mid()
        price = mid if mid is not None else self._trade_price
        if price is None:
            return None
        params = self._params
        if self._ts < 0:
            self._first_price = price
            self._warm_at = ts + round(params.warmup_s * 1e9)
        else:
            self._advance(ts - self._ts, math.log(price / self._first_price))
        self._ts = ts
        if mid is None:
            self._book_last = None
        else:
            bid, ask = book.depth(params.book_levels)
            imbalance = formulas.book_imbalance(bid, ask)
            if self._book_last is None:
                self._book_average = imbalance
            self._book_last = imbalance
        if ts < self._warm_at:
            return None
        if self._interval_ns:
            bucket = ts // self._interval_ns
            if bucket == self._bucket:
                return None
            self._bucket = bucket
        return self._signal(ts)

    def _advance(self, dt: int, price: float) -> None:
        """Let the averages run over ``dt`` with the last values standing, then take the new log price."""
        params = self._params
        last = self._price
        kept = formulas.decay(dt, params.momentum_half_life_s * 1e9)
        self._momentum_average = formulas.blend(self._momentum_average, last, kept)
        kept = formulas.decay(dt, params.trend_half_life_s * 1e9)
        self._long_average = formulas.blend(self._long_average, last, kept)
        square = (price - last) * (price - last)
        kept = formulas.decay(dt, self._volatility_half_life)
        self._squares_fast = self._squares_fast * kept + square
        self._seconds_fast = (
            self._seconds_fast * kept + (1.0 - kept) * params.volatility_half_life_s / formulas.LN2
        )
        kept = formulas.decay(dt, params.baseline_half_life_s * 1e9)
        self._squares_slow = self._squares_slow * kept + square
        self._seconds_slow = (
            self._seconds_slow * kept + (1.0 - kept) * params.baseline_half_life_s / formulas.LN2
        )
        if self._book_last is not None:
            kept = formulas.decay(dt, self._book_half_life)
            self._book_average = formulas.blend(self._book_average, self._book_last, kept)
        self._price = price

    def _signal(self, ts: int) -> Signal:
        params = self._params
        sigma = formulas.volatility(self._squares_fast, self._seconds_fast)
        z = formulas.momentum_z(self._price - self._momentum_average, sigma, params.momentum_half_life_s)
        momentum = formulas.squash(z / params.momentum_scale)
        components = {"momentum": momentum}
        total = params.momentum_weight * momentum
        weight = abs(params.momentum_weight)
        if self._traded > 0.0:
            # A flow that nobody adds to fades: the ratio alone would stand for ever.
            fading = formulas.decay(ts - self._flow_ts, self._flow_half_life)
            flow = formulas.flow_imbalance(self._signed, self._traded) * fading
            components["flow"] = flow
            total += params.flow_weight * flow
            weight += abs(params.flow_weight)
        if self._book_last is not None:
            components["book"] = self._book_average
            total += params.book_weight * self._book_average
            weight += abs(params.book_weight)
        components["volatility"] = sigma * 1e4
        score = formulas.squash(params.gain * total / weight) if weight > 0.0 else 0.0
        baseline = formulas.volatility(self._squares_slow, self._seconds_slow)
        ratio = sigma / baseline if baseline > 0.0 else 1.0
        trend = formulas.momentum_z(self._price - self._long_average, sigma, params.trend_half_life_s)
        self._regime = next_regime(self._regime, ratio, trend, params)
        return Signal(score, components, self._regime, {"volatilityRatio": ratio, "trend": trend})


def next_regime(regime: str, ratio: float, trend: float, params: ScoringParams) -> str:
    """Return the regime after one look at volatility ratio and trend; a regime is left below its lowered bound."""
    lowered = 1.0 - params.regime_hysteresis
    if ratio >= params.volatile_ratio * (lowered if regime == VOLATILE else 1.0):
        return VOLATILE
    if abs(trend) >= params.trending_z * (lowered if regime == TRENDING else 1.0):
        return TRENDING
    return CALM
