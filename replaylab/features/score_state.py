"""The state of one symbol's score and regime and what an event does to it: written once, run in two ways.

As in ``replaylab.features.state``: lists of numbers event by event, numpy arrays where these functions are compiled for
a whole tape. ``ScoringParams`` and ``docs/features.md`` document the parts.
"""

from __future__ import annotations

import math
from collections.abc import MutableSequence, Sequence

from replaylab.features.formulas import (
    LN2,
    blend,
    decay,
    flow_imbalance,
    momentum_z,
    squash,
    volatility,
)
from replaylab.params import ScoringParams

Ints = MutableSequence[int]
Floats = MutableSequence[float]

REGIMES = ("CALM", "TRENDING", "VOLATILE")
_CALM, _TRENDING, _VOLATILE = range(3)

# Constants.
(
    _INTERVAL,
    _WARMUP,
    _H_FLOW,
    _H_BOOK,
    _H_MOMENTUM,
    _H_FAST,
    _H_SLOW,
    _H_TREND,
    _W_FLOW,
    _W_BOOK,
    _W_MOMENTUM,
    _SCALE,
    _GAIN,
    _RATIO_BOUND,
    _TREND_BOUND,
    _LOWERED,
) = range(16)

# Whole numbers.
_T_FLOW, _T, _WARM_AT, _BUCKET, _REGIME = range(5)

# Floats; the outputs of the last signal come last.
(
    _SIGNED,
    _TRADED,
    _TRADE_PRICE,
    _FIRST,
    _LEVEL,
    _AVERAGE,
    _LONG_AVERAGE,
    _SQUARES_FAST,
    _SECONDS_FAST,
    _SQUARES_SLOW,
    _SECONDS_SLOW,
    _BOOK_LAST,
    _BOOK_AVERAGE,
) = range(13)
# Places of the outputs: score, momentum, flow, book (the last two NaN where not known), volatility, ratio, trend.
OUT = tuple(range(13, 20))
_SCORE, _MOMENTUM, _FLOW, _BOOK, _SIGMA, _RATIO, _TREND = range(13, 20)


def score_constants(params: ScoringParams) -> list[float]:
    """Return the parameters as the row of numbers that the functions below read."""
    return [
        float(round(params.interval_ms * 1e6)),
        float(round(params.warmup_s * 1e9)),
        params.flow_half_life_s * 1e9,
        params.book_half_life_s * 1e9,
        params.momentum_half_life_s * 1e9,
        params.volatility_half_life_s * 1e9,
        params.baseline_half_life_s * 1e9,
        params.trend_half_life_s * 1e9,
        params.flow_weight,
        params.book_weight,
        params.momentum_weight,
        params.momentum_scale,
        params.gain,
        params.volatile_ratio,
        params.trending_z,
        1.0 - params.regime_hysteresis,
    ]


def new_score_state(regime: str | None = None) -> tuple[list[int], list[float]]:
    """Return the state of a symbol before its first event; ``regime`` is the one that stood before."""
    floats = [0.0] * 20
    floats[_TRADE_PRICE] = floats[_FIRST] = floats[_BOOK_LAST] = math.nan
    return [0, -1, 0, -1, REGIMES.index(regime) if regime in REGIMES else _CALM], floats


def score_trade(
    ints: Ints, floats: Floats, consts: Sequence[float], ts: int, price: float, qty: float, sign: float
) -> None:
    """Take one trade. Where quantity or taker side is not known both are 0, and it only has a price."""
    floats[_TRADE_PRICE] = price
    if sign == 0.0 or qty <= 0.0:
        return
    dt = ts - ints[_T_FLOW]
    if dt > 0:
        kept = decay(dt, consts[_H_FLOW])
        floats[_SIGNED] *= kept
        floats[_TRADED] *= kept
        ints[_T_FLOW] = ts
    floats[_SIGNED] += sign * qty
    floats[_TRADED] += qty


def score_step(
    ints: Ints, floats: Floats, consts: Sequence[float], ts: int, mid: float, imbalance: float
) -> bool:
    """Take the market as it stands after all events of ``ts``; return whether a signal is due.

    ``mid`` is NaN while a side of the book is empty. The signal is then in the places ``OUT`` and in the regime.
    """
    price = mid if mid == mid else floats[_TRADE_PRICE]
    if price != price:
        return False
    if ints[_T] < 0:
        floats[_FIRST] = price
        ints[_WARM_AT] = ts + int(consts[_WARMUP])
    else:
        advance(floats, consts, ts - ints[_T], math.log(price / floats[_FIRST]))
    ints[_T] = ts
    if mid != mid:
        floats[_BOOK_LAST] = math.nan
    else:
        if floats[_BOOK_LAST] != floats[_BOOK_LAST]:
            floats[_BOOK_AVERAGE] = imbalance
        floats[_BOOK_LAST] = imbalance
    if ts < ints[_WARM_AT]:
        return False
    interval = int(consts[_INTERVAL])
    if interval > 0:
        bucket = ts // interval
        if bucket == ints[_BUCKET]:
            return False
        ints[_BUCKET] = bucket
    make_signal(ints, floats, consts, ts)
    return True


def advance(floats: Floats, consts: Sequence[float], dt: int, level: float) -> None:
    """Let the averages run over ``dt`` with the last values standing, then take the new log price."""
    last = floats[_LEVEL]
    floats[_AVERAGE] = blend(floats[_AVERAGE], last, decay(dt, consts[_H_MOMENTUM]))
    floats[_LONG_AVERAGE] = blend(floats[_LONG_AVERAGE], last, decay(dt, consts[_H_TREND]))
    square = (level - last) * (level - last)
    kept = decay(dt, consts[_H_FAST])
    floats[_SQUARES_FAST] = floats[_SQUARES_FAST] * kept + square
    floats[_SECONDS_FAST] = floats[_SECONDS_FAST] * kept + (1.0 - kept) * (consts[_H_FAST] / 1e9) / LN2
    kept = decay(dt, consts[_H_SLOW])
    floats[_SQUARES_SLOW] = floats[_SQUARES_SLOW] * kept + square
    floats[_SECONDS_SLOW] = floats[_SECONDS_SLOW] * kept + (1.0 - kept) * (consts[_H_SLOW] / 1e9) / LN2
    if floats[_BOOK_LAST] == floats[_BOOK_LAST]:
        kept = decay(dt, consts[_H_BOOK])
        floats[_BOOK_AVERAGE] = blend(floats[_BOOK_AVERAGE], floats[_BOOK_LAST], kept)
    floats[_LEVEL] = level


def make_signal(ints: Ints, floats: Floats, consts: Sequence[float], ts: int) -> None:
    """Put score, parts, volatility ratio, trend and regime into the state."""
    sigma = volatility(floats[_SQUARES_FAST], floats[_SECONDS_FAST])
    z = momentum_z(floats[_LEVEL] - floats[_AVERAGE], sigma, consts[_H_MOMENTUM] / 1e9)
    momentum = squash(z / consts[_SCALE])
    total = consts[_W_MOMENTUM] * momentum
    weight = abs(consts[_W_MOMENTUM])
    flow = math.nan
    if floats[_TRADED] > 0.0:
        # A flow without new trades fades: the ratio alone would never change.
        fading = decay(ts - ints[_T_FLOW], consts[_H_FLOW])
        flow = flow_imbalance(floats[_SIGNED], floats[_TRADED]) * fading
        total += consts[_W_FLOW] * flow
        weight += abs(consts[_W_FLOW])
    book = math.nan
    if floats[_BOOK_LAST] == floats[_BOOK_LAST]:
        book = floats[_BOOK_AVERAGE]
        total += consts[_W_BOOK] * book
        weight += abs(consts[_W_BOOK])
    baseline = volatility(floats[_SQUARES_SLOW], floats[_SECONDS_SLOW])
    ratio = sigma / baseline if baseline > 0.0 else 1.0
    trend = momentum_z(floats[_LEVEL] - floats[_LONG_AVERAGE], sigma, consts[_H_TREND] / 1e9)
    floats[_SCORE] = squash(consts[_GAIN] * total / weight) if weight > 0.0 else 0.0
    floats[_MOMENTUM], floats[_FLOW], floats[_BOOK] = momentum, flow, book
    floats[_SIGMA], floats[_RATIO], floats[_TREND] = sigma * 1e4, ratio, trend
    ints[_REGIME] = next_regime(ints[_REGIME], ratio, trend, consts)


def next_regime(regime: int, ratio: float, trend: float, consts: Sequence[float]) -> int:
    """Return the regime after one look; a regime is left only below its lowered bound."""
    if ratio >= consts[_RATIO_BOUND] * (consts[_LOWERED] if regime == _VOLATILE else 1.0):
        return _VOLATILE
    if abs(trend) >= consts[_TREND_BOUND] * (consts[_LOWERED] if regime == _TRENDING else 1.0):
        return _TRENDING
    return _CALM
